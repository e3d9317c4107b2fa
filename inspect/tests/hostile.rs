//! Images that were spoiled, by chance and on purpose: nothing panics, runs on for ever, or believes a count.

mod common;

use common::{WITH_UNIT, folder, model_of, synthetic::Pages};
use holdover_inspect::format::{debugfs, html, json, text};
use holdover_inspect::image::{self, Memory, Options};
use holdover_inspect::model::{FindKho, Limits, Mode, Model, Route};
use holdover_inspect::registers::{self, USUAL_BASE};
use holdover_inspect::tables::{Budget, Fault, Hardware};
use holdover_inspect::translate::{Asker, Outcome, translate};
use holdover_inspect::{dmar, reach};
use proptest::prelude::*;
use spec::fault::Reason;
use spec::{PhysAddr, SourceId};
use std::io::Read;
use std::time::{Duration, Instant};

/// The unpacked pages of an image.
fn unpacked(name: &str, pages: &str) -> Vec<u8> {
    let file = std::fs::File::open(folder(name).join(pages)).unwrap();
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Small enough that a trap is a trap in a test already.
fn limits() -> Limits {
    Limits { budget: Budget { tables: 5000, repeats: 64 }, pasids: 1 << 13, ranges: 10_000, problems: 64 }
}

/// Everything that can be done with an image.
fn exercise(memory: &Memory, window: &[u8]) -> Option<Model> {
    let units = registers::parse(window, USUAL_BASE).ok()?;
    let model = Model::build(memory, units, Hardware::default(), FindKho::Scan, limits());
    let mut out = Vec::new();
    text::all(&mut out, memory, &model, text::Options::default()).unwrap();
    let _ = json::all(memory, &model, None);
    let _ = html::page(memory, &model, "image");
    if model.spaces.len() < 64 {
        debugfs::all(&mut out, memory, &model).unwrap();
        for at in model.spaces.iter().flat_map(|space| space.ranges.first()).map(|range| range.target).take(4)
        {
            let _ = (reach::reach(memory, &model, at), reach::roles(&model, at));
        }
    }
    for unit in &model.units {
        for (source, iova) in [(0x10, 0xffff_d000), (0xfa, 0x1234_5678), (0x100, u64::MAX)] {
            for pasid in [None, Some(0), Some(0xf_ffff)] {
                let asker = Asker { source: SourceId::from_raw(source), pasid };
                let _ = translate(memory, &unit.registers, Hardware::default(), asker, iova);
            }
        }
    }
    Some(model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
    ))]

    #[test]
    fn spoiled_images_of_real_kernels_are_read_to_an_end(
        which in 0..WITH_UNIT.len(),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200),
        pointers in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u64..8), 0..40),
        registers in prop::collection::vec((0_usize..0x230, any::<u8>()), 0..4),
    ) {
        let mut bytes = unpacked(WITH_UNIT[which], "reach.pages.zst");
        let count = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
        let addresses: Vec<u64> = bytes[16..16 + 8 * count].as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let first = 16 + 8 * count;
        for (at, value) in spoils {
            let at = first + at.index(bytes.len() - first);
            bytes[at] = value;
        }
        // Words that lead from one page to another.
        for (from, to, flags) in pointers {
            let at = first + 8 * from.index((bytes.len() - first) / 8);
            bytes[at..at + 8].copy_from_slice(&(addresses[to.index(count)] | flags).to_le_bytes());
        }
        let mut window = std::fs::read(folder(WITH_UNIT[which]).join("vtd-regs.bin")).unwrap();
        for (at, value) in registers {
            window[at] = value;
        }
        let start = Instant::now();
        exercise(&image::from_bytes(bytes, Options::default()).unwrap(), &window);
        prop_assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn spoiled_handovers_are_read_to_an_end(
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
    ) {
        let mut bytes = unpacked("kho", "kho.pages.zst");
        let count = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
        let first = 16 + 8 * count;
        for (at, value) in spoils {
            let at = first + at.index(bytes.len() - first);
            bytes[at] = value;
        }
        for (from, to) in words {
            let (from, to) = (first + 8 * from.index((bytes.len() - first) / 8), 16 + 8 * to.index(count));
            bytes.copy_within(to..to + 8, from);
        }
        let memory = image::from_bytes(bytes, Options::default()).unwrap();
        let window = std::fs::read(folder("min-legacy").join("vtd-regs.bin")).unwrap();
        exercise(&memory, &window);
    }

    #[test]
    fn files_that_are_anything_are_refused_or_read(
        head in prop::sample::select(vec![&b"VTDPAGE1"[..], b"\x7fELF\x02\x01\x01\0", b"\x7fELF\x01\x01\x01\0", b"\x28\xb5\x2f\xfd", b"DMAR", b""]),
        tail in prop::collection::vec(any::<u8>(), 0..4096),
        base in prop::option::of(any::<u64>()),
    ) {
        let bytes = [head, &tail].concat();
        if let Ok(memory) = image::from_bytes(bytes.clone(), Options { base, ..Options::default() }) {
            prop_assert!(memory.bytes() <= bytes.len() as u64 || head.starts_with(b"\x28"));
            exercise(&memory, &std::fs::read(folder("min-legacy").join("vtd-regs.bin")).unwrap());
        }
        let _ = registers::parse(&bytes, 0);
        if let Ok(report) = dmar::examine(&bytes) {
            let _ = (dmar::json(&report), dmar::text(&mut Vec::new(), &report));
        }
    }
}

/// Registers with this root table.
fn window(rtaddr: u64) -> Vec<u8> {
    let mut window = std::fs::read(folder("min-sm-sl").join("vtd-regs.bin")).unwrap();
    window[0x20..0x28].copy_from_slice(&rtaddr.to_le_bytes());
    // All stages, nested too; three to five levels.
    window[0x08..0x10]
        .copy_from_slice(&(0x1080_d200_8c22_2f06_u64 & !0x3f_0000 | 0x38_0e00 | 1 << 60).to_le_bytes());
    window[0x10..0x18]
        .copy_from_slice(&(0x4998_80f0_0f4a_u64 | 1 << 26 | 1 << 47 | 1 << 46 | 1 << 6).to_le_bytes());
    window
}

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const TOP: u64 = 0x3000;

/// A legacy unit whose requester 00:00.0 has a table of `levels` levels at `TOP`.
fn legacy(levels: u64) -> Pages {
    let mut pages = Pages::default();
    pages.set(ROOT, CONTEXT | 1);
    pages.set(CONTEXT, TOP | 1);
    pages.set(CONTEXT + 8, 5 << 8 | (levels - 2));
    pages
}

#[test]
fn a_table_that_names_itself_is_reported_and_not_followed() {
    let mut pages = legacy(4);
    for slot in 0..512 {
        pages.set(TOP + 8 * slot, TOP | 3);
    }
    let model = exercise(&pages.memory(), &window(ROOT)).unwrap();
    let [space] = model.spaces.as_slice() else { panic!("{model:?}") };
    assert!(space.troubles.iter().all(|trouble| trouble.fault == Fault::Cycle));
    assert_eq!((space.troubles.len() as u64 + space.troubles_left_off, space.leaf_count()), (512, 0));
}

#[test]
fn leaves_at_the_end_of_the_address_space_are_not_merged_with_what_looks_adjacent() {
    let mut pages = legacy(3);
    pages.set(CONTEXT + 8, 5 << 8 | 1);
    pages.set(TOP, 0x4003);
    pages.set(0x4000, 0x5003);
    // Ignored bits above the address: adding a page to the last target would run into them.
    for (slot, word) in
        [0x000f_ffff_ffff_e003, 0x000f_ffff_ffff_f003, 0x0010_0000_0000_0003_u64].iter().enumerate()
    {
        pages.set(0x5000 + 8 * slot as u64, *word);
    }
    let model = exercise(&pages.memory(), &window(ROOT)).unwrap();
    let targets: Vec<(u64, u64)> =
        model.spaces[0].ranges.iter().map(|range| (range.target.get(), range.bytes)).collect();
    assert_eq!(targets, [(0x000f_ffff_ffff_e000, 0x2000), (0, 0x1000)]);
}

#[test]
fn tables_that_multiply_come_to_an_end() {
    let mut pages = legacy(5);
    // Each level names the next one 512 times: 2^45 leaves in five pages.
    for level in 0..5_u64 {
        for slot in 0..512 {
            pages.set(TOP + 0x1000 * level + 8 * slot, (TOP + 0x1000 * (level + 1)) | 3);
        }
    }
    let start = Instant::now();
    let model = exercise(&pages.memory(), &window(ROOT)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
    let space = &model.spaces[0];
    assert!(space.troubles.iter().any(|trouble| trouble.fault == Fault::Repeats), "{:?}", space.troubles);
    assert_eq!(space.table_count(), 5);
}

#[test]
fn every_half_entry_of_a_scalable_unit_may_lead_to_the_same_pages() {
    let mut pages = Pages::default();
    for slot in 0..512 {
        pages.set(ROOT + 8 * slot, CONTEXT | 1);
        // Every context entry names a directory of 16384 entries, every directory entry a table of 64.
        pages.set(CONTEXT + 8 * slot, if slot % 4 == 0 { TOP | 7 << 9 | 1 } else { 0 });
    }
    for page in 0..32 {
        for slot in 0..512 {
            pages.set(TOP + 0x1000 * page + 8 * slot, 0x4_0000 | 1);
        }
    }
    for slot in 0..64 {
        pages.set(0x4_0000 + 64 * slot, 4 << 6 | 1);
    }
    let start = Instant::now();
    let model = exercise(&pages.memory(), &window(ROOT | 0x400)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert!(model.units[0].pasids_left_off);
    assert_eq!(model.units[0].mode, Some(Mode::Scalable));
}

#[test]
fn five_levels_are_walked_and_refused_where_hardware_has_only_four() {
    let mut pages = legacy(5);
    for level in 0..5_u64 {
        let entry = if level == 4 { 0xabc000 | 3 } else { (TOP + 0x1000 * (level + 1)) | 3 };
        pages.set(TOP + 0x1000 * level, entry);
    }
    let memory = pages.memory();
    let model = exercise(&memory, &window(ROOT)).unwrap();
    assert_eq!(model.spaces[0].ranges[0].target, PhysAddr::new(0xabc000));
    let asker = Asker { source: SourceId::from_raw(0), pasid: None };
    let ask = |window: &[u8]| {
        let unit = registers::parse(window, USUAL_BASE).unwrap().remove(0);
        translate(&memory, &unit, Hardware::default(), asker, 0x123).outcome
    };
    assert!(matches!(ask(&window(ROOT)), Outcome::Translated { target, .. } if target.get() == 0xabc123));
    let mut four = window(ROOT);
    four[0x09] = 0x06;
    let Outcome::Refused { read, .. } = ask(&four) else { panic!("{:?}", ask(&four)) };
    assert_eq!(read.reason, Some(Reason::CONTEXT_INVALID));
}

#[test]
fn nested_tables_go_through_the_second_stage_twice() {
    let mut pages = Pages::default();
    let (directory, table, first, second) = (0x1_0000, 0x1_1000, 0x2_0000, 0x3_0000);
    pages.set(ROOT, CONTEXT | 1);
    pages.set(CONTEXT, directory | 1);
    pages.set(directory, table | 1);
    // PASID 0: nested, second stage of four levels, first stage of four.
    pages.set(table, second | 2 << 2 | 3 << 6 | 1);
    pages.set(table + 8, 9);
    pages.set(table + 16, 0x10_0000);
    // Second stage: guest addresses 0x100000 to 0x105fff lie at 0x20000 and on.
    pages.set(second, 0x3_1000 | 3);
    pages.set(0x3_1000, 0x3_2000 | 3);
    pages.set(0x3_2000, 0x3_3000 | 3);
    for page in 0..6 {
        let access = if page == 5 { 1 } else { 3 };
        pages.set(0x3_3000 + 8 * (0x100 + page), (first + 0x1000 * page) | access);
    }
    // First stage, in guest addresses; its leaf is guest page 0x105000, which may only be read.
    for level in 0..4 {
        pages.set(
            first + 0x1000 * level,
            (0x10_0000 + 0x1000 * (level + 1) + if level == 3 { 0x1000 } else { 0 }) | 7,
        );
    }
    let memory = pages.memory();
    let model = exercise(&memory, &window(ROOT | 0x400)).unwrap();
    assert_eq!((&model.units[0].problems, &model.spaces[0].troubles), (&Vec::new(), &Vec::new()));
    let range = model.spaces[0].ranges[0];
    assert_eq!((range.iova, range.target.get(), range.access.letters()), (0, 0x2_5000, "r-"));
    let asker = Asker { source: SourceId::from_raw(0), pasid: None };
    let translation = translate(&memory, &model.units[0].registers, Hardware::default(), asker, 0x10);
    let Outcome::Translated { target, read: Ok(()), write: Err(refused), .. } = &translation.outcome else {
        panic!("{translation:?}")
    };
    assert_eq!((target.get(), refused.reason), (0x2_5010, Some(Reason::SECOND_STAGE_DENIED)));
    // Root, context, directory, PASID; then four first-stage entries and the target, each after a walk of four.
    assert_eq!(translation.steps.iter().filter(|step| step.at.is_some()).count(), 4 + 4 * 5 + 4);
    let found = reach::reach(&memory, &model, PhysAddr::new(0x2_5000));
    assert_eq!(found.ways.iter().map(|way| way.iova).collect::<Vec<_>>(), [0]);
}

#[test]
fn reserved_bits_and_pages_that_are_not_there_are_named_with_their_place() {
    let mut pages = legacy(4);
    pages.set(TOP, 0x9_9000 | 3);
    pages.set(TOP + 8, 0x4000 | 1 << 62 | 3);
    pages.set(TOP + 16, 0x4000 | 0x80 | 3);
    let model = exercise(&pages.memory(), &window(ROOT)).unwrap();
    let troubles: Vec<(u64, Fault)> =
        model.spaces[0].troubles.iter().map(|t| (t.at.get(), t.fault)).collect();
    assert_eq!(
        troubles,
        [(0x9_9000, Fault::Missing), (TOP + 8, Fault::Reserved(1 << 62)), (TOP + 16, Fault::Reserved(0x80))]
    );
    assert!(!model.is_whole());
}

#[test]
fn one_domain_id_for_two_page_tables_is_a_problem_and_for_one_is_none() {
    let mut pages = legacy(4);
    pages.zero(TOP);
    pages.zero(TOP + 0x1000);
    pages.set(CONTEXT + 16, TOP | 1);
    pages.set(CONTEXT + 24, 5 << 8 | 2);
    let shared = exercise(&pages.memory(), &window(ROOT)).unwrap();
    assert_eq!(shared.units[0].problems, []);
    pages.set(CONTEXT + 16, (TOP + 0x1000) | 1);
    let mixed = exercise(&pages.memory(), &window(ROOT)).unwrap();
    assert_eq!(mixed.units[0].problems.len(), 1, "{:?}", mixed.units[0].problems);
    assert!(mixed.units[0].problems[0].what.contains("another page table by 00:00.0"));
}

#[test]
fn pass_through_reaches_every_frame() {
    let mut pages = legacy(4);
    pages.set(CONTEXT, 2 << 2 | 1);
    let memory = pages.memory();
    let model = exercise(&memory, &window(ROOT)).unwrap();
    assert_eq!(model.units[0].requesters[0].attachments[0].route, Route::PassThrough);
    let found = reach::reach(&memory, &model, PhysAddr::new(0x7777_7000));
    assert_eq!(found.ways.len(), 1);
}

/// Two readers of the same tables that share no line: what the walk finds, a single translation must find.
#[test]
fn every_leaf_of_every_image_translates_to_what_the_walk_found() {
    for name in WITH_UNIT {
        let (memory, model) = model_of(&folder(name), "reach.pages.zst");
        let unit = &model.units[0];
        let mut compared = 0;
        for (space, users) in model.spaces.iter().zip(&model.users) {
            let asker = Asker { source: users[0].1, pasid: None };
            for range in &space.ranges {
                for offset in [0, range.bytes / 2, range.bytes - 1] {
                    let iova = range.iova + offset;
                    let outcome = translate(&memory, &unit.registers, model.hardware, asker, iova).outcome;
                    let Outcome::Translated { target, read, write, .. } = outcome else {
                        panic!("{iova:#x}: {outcome:?}")
                    };
                    assert_eq!(target.get(), range.target.get() + offset, "{name}: {iova:#x}");
                    assert_eq!(
                        (read.is_ok(), write.is_ok()),
                        (range.access.read, range.access.write),
                        "{name}: {iova:#x}"
                    );
                    compared += 1;
                }
            }
        }
        assert!(compared > 1000, "{name}: {compared}");
    }
}
