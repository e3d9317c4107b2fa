//! Foreign bytes in scalable mode: whatever the tables and records hold, the audit ends soon, without a panic.

mod world;

use holdover_audit::{Image, Missing, Scratch, Stage, audit};
use proptest::prelude::*;
use spec::PhysAddr;
use world::scalable::{
    DIR_2, F, G, LOWER, N_LEAVES, N_TOP, OF_3, ROOT, S, TABLE_0, TABLE_64, TABLE_40000, TABLE_OF_10, UPPER,
};
use world::{BLOB, FDT, World};

const PAGES: [u64; 16] = [
    ROOT,
    LOWER,
    UPPER,
    OF_3,
    DIR_2,
    DIR_2 + 0x1000,
    TABLE_0,
    TABLE_64,
    TABLE_40000,
    TABLE_OF_10,
    S,
    S + 0x3000,
    F,
    F + 0x3000,
    G,
    N_TOP,
];

/// Memory of the machine, and an arbitrary page wherever there is none.
struct Filled<'a>(&'a World, Vec<u64>);

impl Image for Filled<'_> {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        if Image::read(&self.0.memory, at, out).is_err() {
            for (index, word) in (at.get() / 8..).zip(out) {
                *word = self.1[(index % 512) as usize];
            }
        }
        Ok(())
    }
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..64u32).prop_map(|bit| 1 << bit),
        (0..64u32).prop_map(|bit| u64::MAX >> bit),
        (prop::sample::select(PAGES.to_vec()), 0..0x1000u64).prop_map(|(page, low)| page | low),
        // The last page of the address space.
        (0..0x1000u64).prop_map(|low| u64::MAX << 12 | low),
        0..16u64,
    ]
}

fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => (0..0xa00u64 / 8).prop_map(|word| BLOB + 8 * word),
        3 => (prop::sample::select(PAGES.to_vec()), 0..512u64).prop_map(|(page, word)| page + 8 * word),
        2 => (prop::sample::select(PAGES.to_vec()), 0..16u64).prop_map(|(page, word)| page + 8 * word),
        1 => (0..4u64).prop_map(|word| LOWER + 32 * 0x10 + 8 * word),
        1 => (0..512u64).prop_map(|word| N_LEAVES + 8 * word),
    ]
}

fn run(image: &impl Image, world: &World) -> Option<u64> {
    let mut words = vec![u64::MAX; 1 << 16];
    let mut scratch = Scratch::new(&mut words);
    let mut shown = 0;
    let started = std::time::Instant::now();
    let report = audit(image, PhysAddr::new(FDT), &world.states, world.stage, &mut scratch, &mut |finding| {
        shown += u64::from(!finding.to_string().is_empty());
    });
    assert!(started.elapsed().as_secs() < 60, "it must end soon");
    let report = report.ok()?;
    assert_eq!(report.violations(), shown);
    Some(shown)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_words_in_tables_and_records_end_in_findings_or_an_error(
        changes in prop::collection::vec((place(), word()), 1..12), arrived in any::<bool>(),
        filler in prop::collection::vec(word(), 512),
    ) {
        let mut world = if arrived { World::scalable_arrived() } else { World::scalable_sealed() };
        for (at, word) in changes {
            world.memory.write(at, &[word]);
        }
        let length = world.blob().len() as u64;
        let mut bytes = world.memory.bytes(BLOB, length);
        world::reseal(&mut bytes);
        world.memory.write_bytes(BLOB, &bytes);
        let _ = run(&world.memory, &world);
        let _ = run(&Filled(&world, filler), &world);
    }

    #[test]
    fn a_flipped_bit_in_what_is_sealed_never_passes_unless_hardware_writes_it(
        page in prop::sample::select(PAGES.to_vec()), word in 0..512u64, bit in 0..64u32,
    ) {
        let mut world = World::scalable_arrived();
        let at = page + 8 * word;
        let flipped = world.memory.read(at, 1)[0] ^ 1 << bit;
        world.memory.write(at, &[flipped]);
        let first = [F, F + 0x3000, G, N_TOP].contains(&page) && matches!(bit, 5 | 6);
        let second = [S, S + 0x3000].contains(&page) && matches!(bit, 8 | 9);
        let found = run(&world.memory, &world);
        prop_assert_eq!(found.is_some_and(|found| found == 0), first || second);
    }

    #[test]
    fn any_missing_page_is_found(page in prop::sample::select(PAGES.to_vec()), arrived in any::<bool>()) {
        let mut world = if arrived { World::scalable_arrived() } else { World::scalable_sealed() };
        assert!(matches!(world.stage, Stage::Sealed | Stage::Arrived));
        world.memory.remove(page);
        prop_assert!(run(&world.memory, &world).is_some_and(|found| found > 0));
    }
}
