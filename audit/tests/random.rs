//! Foreign bytes: whatever memory holds, the audit ends soon, without a panic, and says something when it must.

mod world;

use holdover_audit::{Image, Missing, Scratch, Stage, audit};
use proptest::prelude::*;
use spec::PhysAddr;
use world::{A, A_L0, A_L1, A_L2, A_MORE, B, B_L0, B_L1, BLOB, CONTEXT_0, CONTEXT_3, FDT, MAP, ROOT, World};

/// Memory in which every address holds the same arbitrary page: every pointer leads somewhere, and in circles.
struct Everywhere(Vec<u64>);

impl Image for Everywhere {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        for (index, word) in (at.get() / 8..).zip(out) {
            *word = self.0[(index % self.0.len() as u64) as usize];
        }
        Ok(())
    }
}

/// Memory of the sound machine, and an arbitrary page wherever there is none.
struct Filled(World, Vec<u64>);

impl Image for Filled {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        match Image::read(&self.0.memory, at, out) {
            Ok(()) => Ok(()),
            Err(_) => Everywhere(self.1.clone()).read(at, out),
        }
    }
}

/// Words that look like what tables and records hold, and words that do not.
fn word() -> impl Strategy<Value = u64> {
    let pages = [
        ROOT,
        CONTEXT_0,
        CONTEXT_3,
        A,
        A_L2,
        A_L1,
        A_L0,
        A_MORE,
        B,
        B_L1,
        B_L0,
        BLOB,
        FDT,
        MAP,
        MAP + 0x1000,
    ];
    prop_oneof![
        any::<u64>(),
        (0..64u32).prop_map(|bit| 1 << bit),
        (0..64u32).prop_map(|bit| u64::MAX >> bit),
        (prop::sample::select(pages.to_vec()), 0..0x1000u64).prop_map(|(page, low)| page | low),
        0..16u64,
    ]
}

/// Words of the machine that mean something: records, tree, map, tables.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0..0x700u64 / 8).prop_map(|word| BLOB + 8 * word),
        1 => (0..0x200u64 / 8).prop_map(|word| FDT + 8 * word),
        1 => (0..0x20u64 * 512).prop_map(|word| MAP + 8 * word),
        2 => (0..5u64 * 512).prop_map(|word| ROOT + 8 * word),
        2 => (0..4u64 * 512).prop_map(|word| A + 8 * word),
        1 => (0..3u64 * 512).prop_map(|word| B + 8 * word),
        1 => (0..2u64 * 512).prop_map(|word| A_MORE + 8 * word),
    ]
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![Just(Stage::Sealed), Just(Stage::Arrived)]
}

/// Runs an audit and shows every finding, as a host would.
fn run(image: &impl Image, world: &World, stage: Stage) -> Result<u64, String> {
    let mut words = vec![u64::MAX; 1 << 16];
    let mut scratch = Scratch::new(&mut words);
    let mut shown = 0;
    let started = std::time::Instant::now();
    let report = audit(image, PhysAddr::new(FDT), &world.states, stage, &mut scratch, &mut |finding| {
        shown += u64::from(!finding.to_string().is_empty());
    });
    assert!(started.elapsed().as_secs() < 60, "it must end soon");
    let report = report.map_err(|error| error.to_string())?;
    assert_eq!(report.violations(), shown);
    Ok(shown)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_words_anywhere_end_in_findings_or_an_error(
        changes in prop::collection::vec((place(), word()), 1..12), stage in stage(), reseal in any::<bool>(),
    ) {
        let mut world = World::sealed();
        for (at, word) in changes {
            world.memory.write(at, &[word]);
        }
        if reseal {
            // Damage that bears a sound digest reaches the checks behind it.
            let length = world.blob().len() as u64;
            let mut bytes = world.memory.bytes(BLOB, length);
            world::reseal(&mut bytes);
            world.memory.write_bytes(BLOB, &bytes);
        }
        let _ = run(&world.memory, &world, stage);
    }

    #[test]
    fn any_records_with_a_sound_digest_end_in_findings_or_an_error(
        changes in prop::collection::vec((8..0x700usize / 8, word()), 1..20), stage in stage(),
        filler in prop::collection::vec(word(), 512),
    ) {
        let mut world = World::sealed();
        world.patch(|bytes| {
            for (index, word) in changes {
                if let Some(place) = bytes.get_mut(8 * index..8 * index + 8) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
            }
        });
        let filled = Filled(world.clone(), filler);
        let _ = run(&filled, &world, stage);
    }

    #[test]
    fn a_page_that_is_everywhere_is_no_handover(page in prop::collection::vec(word(), 512), stage in stage()) {
        let world = World::sealed();
        prop_assert!(run(&Everywhere(page), &world, stage).is_err());
    }

    #[test]
    fn a_flipped_bit_in_what_is_sealed_never_passes(
        page in prop::sample::select(vec![ROOT, CONTEXT_0, CONTEXT_3, A, A_L2, A_L1, A_L0, A_MORE, B, B_L1, B_L0]),
        word in 0..512u64, bit in 0..64u32,
    ) {
        let mut world = World::arrived();
        let at = page + 8 * word;
        let flipped = world.memory.read(at, 1)[0] ^ 1 << bit;
        world.memory.write(at, &[flipped]);
        prop_assert!(run(&world.memory, &world, Stage::Arrived).unwrap() > 0);
    }

    #[test]
    fn a_flipped_bit_in_the_records_is_always_refused(bit in 0..8 * 0x600usize) {
        let mut world = World::arrived();
        let mut bytes = world.blob();
        let at = bit % (8 * bytes.len());
        bytes[at / 8] ^= 1 << (at % 8);
        world.memory.write_bytes(BLOB, &bytes);
        prop_assert!(run(&world.memory, &world, Stage::Arrived).is_err());
    }

    #[test]
    fn any_missing_page_is_found(
        page in prop::sample::select(vec![FDT, BLOB, MAP, ROOT, CONTEXT_0, A, A_L2, A_L1, A_L0, A_MORE, B, B_L1, B_L0]),
        stage in stage(),
    ) {
        let mut world = if stage == Stage::Sealed { World::sealed() } else { World::arrived() };
        world.memory.remove(page);
        prop_assert!(run(&world.memory, &world, stage).is_ok_and(|n| n > 0) || page == FDT || page == BLOB || page == MAP);
    }
}
