//! Every input that was worth keeping, once more, without an engine.

use holdover_fuzz::{TARGETS, run};
use std::path::Path;

fn replay(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 5, "the corpus of {name} has {} inputs", inputs.len());
    for input in inputs {
        let data = std::fs::read(&input).unwrap();
        let longest = TARGETS.iter().find(|target| target.name == name).unwrap().longest;
        assert!(data.len() <= longest, "{}: longer than the target takes", input.display());
        // A panic shows where; this shows which input.
        println!("{}", input.display());
        run(name, &data);
    }
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($target)),*];
            assert_eq!(replayed.to_vec(), TARGETS.map(|target| target.name).to_vec());
        }
    };
}

replays!(page_file elf dmar fdt radix handover walk);

#[test]
#[should_panic(expected = "bytes were allocated at once; 1024 are allowed")]
fn memory_out_of_proportion_is_noticed() {
    holdover_fuzz::bounds::bounded(1024, || drop(std::hint::black_box(vec![0_u8; 4096])));
}
