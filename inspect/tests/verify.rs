//! Verdicts on handovers of ours and on kernels that hand nothing over; extracts that answer as the whole image does.

mod common;

use audit::Invariant;
use common::synthetic::Pages;
use common::{folder, model_of};
use holdover_inspect::image::{self, Memory, Options};
use holdover_inspect::model::{FindKho, Limits, Model};
use holdover_inspect::registers::{self, USUAL_BASE};
use holdover_inspect::tables::Hardware;
use holdover_inspect::verify::{Policy, Report, Stage, verify};
use holdover_inspect::{extract, format};
use spec::PhysAddr;

/// Registers that a page file carries along.
fn carried(memory: &Memory) -> Vec<u8> {
    let mut window = vec![0; 0x230];
    memory.read_bytes(PhysAddr::new(USUAL_BASE), &mut window).unwrap();
    window
}

fn judged(memory: &Memory, window: &[u8], stage: Stage, policy: &Policy) -> Report {
    let units = registers::parse(window, USUAL_BASE).unwrap();
    let model = Model::build(memory, units, Hardware::default(), FindKho::Scan, Limits::default());
    verify(memory, &model, stage, policy).unwrap()
}

fn count(report: &Report, invariant: Invariant) -> u64 {
    report.lines.iter().find(|line| line.invariant == invariant).unwrap().violations
}

/// The sealed handover of a run on QEMU, with one word replaced.
fn ours(change: Option<(u64, u64)>) -> Memory {
    let whole = image::open(&folder("ours").join("reach.pages.zst"), Options::default()).unwrap();
    let mut pages = Pages::default();
    for run in whole.runs() {
        for at in (run.start..run.start + run.bytes).step_by(8) {
            pages.set(at, image::word(&whole, PhysAddr::new(at)).unwrap());
        }
    }
    if let Some((at, value)) = change {
        pages.set(at, value);
    }
    pages.memory()
}

#[test]
fn a_sealed_handover_holds_and_has_not_arrived_yet() {
    let memory = ours(None);
    let sealed = judged(&memory, &carried(&memory), Stage::Sealed, &Policy::default());
    assert!(sealed.holds(), "{sealed:?}");
    assert!(sealed.lines.iter().map(|line| line.items).sum::<u64>() > 100);
    // Before the cut-off the entries of others are still there.
    let arrived = judged(&memory, &carried(&memory), Stage::Arrived, &Policy::default());
    assert!(count(&arrived, Invariant::I2) > 0, "{arrived:?}");
    assert!(arrived.violations.iter().any(|violation| violation.path.len() >= 2));
}

#[test]
fn a_leaf_bent_to_somewhere_else_is_found_with_the_entries_that_lead_to_it() {
    let (memory, model) = {
        let memory = ours(None);
        let units = registers::parse(&carried(&memory), USUAL_BASE).unwrap();
        let model = Model::build(&memory, units, Hardware::default(), FindKho::Scan, Limits::default());
        (memory, model)
    };
    let preserved = &model.handovers[0].preserved;
    let space = model.spaces.iter().find(|space| preserved.holds(space.top.table)).unwrap();
    let found = holdover_inspect::reach::reach(&memory, &model, space.ranges[0].target);
    let leaf = *found.ways[0].path.last().unwrap();
    let bent = ours(Some((leaf.at.get(), 0x7000_0000 | leaf.raw & 0xfff)));
    let report = judged(&bent, &carried(&bent), Stage::Sealed, &Policy::default());
    assert_eq!(count(&report, Invariant::I3), 1, "{report:?}");
    let violation = report.violations.iter().find(|violation| violation.invariant == Invariant::I3).unwrap();
    let last = violation.path.last().unwrap();
    assert!(last.contains(&format!("{}", leaf.at)) && last.contains("0x70000"), "{violation:?}");
}

#[test]
fn on_a_kernel_without_a_handover_every_table_is_lost_and_everybody_goes_on() {
    let (memory, model) = model_of(&folder("min-legacy"), "reach.pages.zst");
    let report = verify(&memory, &model, Stage::Sealed, &Policy::default()).unwrap();
    // One root table, one context table, 17 page tables, and the interrupt table.
    assert_eq!(count(&report, Invariant::I1), 1 + 1 + 17 + 1);
    assert_eq!(count(&report, Invariant::I2), 7);
    let ranges: usize =
        model.users.iter().zip(&model.spaces).map(|(users, space)| users.len() * space.ranges.len()).sum();
    assert_eq!(count(&report, Invariant::I3), ranges as u64);
    assert_eq!(
        (count(&report, Invariant::I5), count(&report, Invariant::I8), count(&report, Invariant::I10)),
        (0, 0, 0)
    );
    let line = "00:02.0 could still write 1032 KiB and read 12 KiB of memory that nobody preserved";
    assert!(report.outlook.iter().any(|outlook| outlook == line), "{:?}", report.outlook);
}

#[test]
fn a_policy_says_who_goes_on_and_where_they_may_reach() {
    let (memory, model) = model_of(&folder("min-legacy"), "reach.pages.zst");
    let text = br#"{ "preserved_requesters": ["00:03.0", "0000:00:02.0"],
                     "targets": [{ "start": "0", "bytes": "0xb00000" }, { "start": "0xb00000", "bytes": "0x7500000" }] }"#;
    let report = verify(&memory, &model, Stage::Sealed, &Policy::parse(text).unwrap()).unwrap();
    assert_eq!((count(&report, Invariant::I2), count(&report, Invariant::I3)), (5, 0), "{report:?}");
    let less = br#"{ "targets": [{ "start": "0", "bytes": "0xa8f000" }, { "start": "0xa90000", "bytes": "0x7500000" }] }"#;
    let report = verify(&memory, &model, Stage::Sealed, &Policy::parse(less).unwrap()).unwrap();
    assert_eq!(count(&report, Invariant::I3), 1, "the one page left out: {report:?}");
}

#[test]
fn preserved_frames_of_linux_that_lie_in_scratch_memory_are_named() {
    let memory = image::open(&folder("kho").join("kho.pages.zst"), Options::default()).unwrap();
    let window = std::fs::read(folder("min-legacy").join("vtd-regs.bin")).unwrap();
    let text = br#"{ "scratch": [{ "start": "0x1000000", "bytes": "0x2000000" }, { "start": "0x2000000", "bytes": "0x8000000" }] }"#;
    let report = judged(&memory, &window, Stage::Sealed, &Policy::parse(text).unwrap());
    let nine = report.lines.iter().find(|line| line.invariant == Invariant::I9).unwrap();
    assert!(nine.checkable && nine.items == 29 && nine.violations == 0, "{nine:?}");
    let over = br#"{ "scratch": [{ "start": "0xc672000", "bytes": "0x1000" }] }"#;
    assert_eq!(
        count(&judged(&memory, &window, Stage::Sealed, &Policy::parse(over).unwrap()), Invariant::I9),
        1
    );
}

/// What a model says, without what it says about the file.
fn said(memory: &Memory, model: &Model) -> serde_json::Value {
    let mut value = format::json::all(memory, model, None);
    value.as_object_mut().unwrap().remove("image");
    value
}

#[test]
fn an_extract_answers_as_the_image_does() {
    for (name, file) in
        [("min-legacy", "reach.pages.zst"), ("deb73-sm-fl", "reach.pages.zst"), ("kho", "kho.pages.zst")]
    {
        let (memory, model) = model_of(&folder(name), file);
        let mut bytes = Vec::new();
        let pages = extract::write(&mut bytes, &memory, &model).unwrap();
        let small = image::from_bytes(bytes, Options::default()).unwrap();
        assert_eq!(small.bytes(), 4096 * pages as u64);
        let units = if model.units.is_empty() {
            Vec::new()
        } else {
            registers::parse(&carried(&small), USUAL_BASE).unwrap()
        };
        let again = Model::build(&small, units, Hardware::default(), FindKho::Scan, Limits::default());
        assert_eq!(said(&small, &again), said(&memory, &model), "{name}");
    }
}

/// Debian's 6.1 under QEMU: captured by itself, and seen from outside through QEMU's monitor right afterwards.
#[test]
fn what_a_kernel_captures_of_itself_is_what_is_seen_from_outside() {
    for (mode, leaves) in [("legacy", 4120), ("scalable", 4120), ("pass-through", 0)] {
        let open = |view: &str| {
            let path = folder("deb61").join(format!("{mode}-{view}.pages.zst"));
            let memory = image::open(&path, Options::default()).unwrap();
            let units = registers::parse(&carried(&memory), USUAL_BASE).unwrap();
            let model = Model::build(&memory, units, Hardware::default(), FindKho::Scan, Limits::default());
            assert!(model.is_whole(), "{mode} {view}: {:?}", model.units[0].problems);
            (memory, model)
        };
        let ((memory, inside), (outside_memory, outside)) = (open("captured"), open("qmp"));
        let count: u64 = inside.spaces.iter().map(|space| space.leaf_count()).sum();
        assert_eq!(count, leaves, "{mode}");
        assert_eq!(holdover_inspect::diff::diff(&inside, &outside), []);
        assert_eq!(said(&memory, &inside)["domains"], said(&outside_memory, &outside)["domains"], "{mode}");
    }
}

#[test]
fn raw_memory_says_what_its_extract_says() {
    let Some(shared) = std::env::var_os("HOLDOVER_SHARED") else { return };
    let shared = std::path::Path::new(&shared).join("dumps/min-legacy");
    let raw =
        image::open(&shared.join("mem.raw.zst"), Options { base: Some(0), ..Options::default() }).unwrap();
    assert_eq!(raw.bytes(), 128 << 20);
    let window = std::fs::read(shared.join("vtd-regs.bin")).unwrap();
    let units = registers::parse(&window, USUAL_BASE).unwrap();
    let model = Model::build(&raw, units, Hardware::default(), FindKho::No, Limits::default());
    let (memory, extract) = model_of(&shared, "reach.pages.zst");
    assert_eq!(said(&raw, &model), said(&memory, &extract));
}

/// 300 leaves of which no two are adjacent; only 10 ranges are kept.
#[test]
fn a_target_outside_is_found_behind_the_ranges_that_are_kept() {
    let mut pages = Pages::default();
    pages.set(0x1000, 0x2001);
    (0x2000..0x6000).step_by(0x1000).for_each(|at| pages.zero(at));
    pages.set(0x2000 + 16 * 0x10, 0x3001);
    pages.set(0x2000 + 16 * 0x10 + 8, 1 << 8 | 1);
    for (table, next) in [(0x3000, 0x4003), (0x4000, 0x5003)] {
        pages.set(table, next);
    }
    (0..300).for_each(|slot| pages.set(0x5000 + 8 * slot, (0x100_0000 + 0x2000 * slot) | 3));
    pages.set(0x5000 + 8 * 299, 0x7777_7000 | 3);
    let memory = pages.memory();
    let mut unit = registers::Registers::unknown("dmar0".into(), USUAL_BASE);
    for (name, value) in [("RTADDR", 0x1000), ("GSTS", 0x8000_0000)] {
        unit.set(registers::named(name).unwrap(), value);
    }
    let limits = Limits { ranges: 10, ..Limits::default() };
    let model = Model::build(&memory, vec![unit], Hardware::default(), FindKho::No, limits);
    assert_eq!((model.spaces[0].ranges.len(), model.spaces[0].ranges_left_off), (10, 290));
    let policy = br#"{ "targets": [{ "start": "0x1000000", "bytes": "0x1000000" }] }"#;
    let report = verify(&memory, &model, Stage::Sealed, &Policy::parse(policy).unwrap()).unwrap();
    assert_eq!(count(&report, Invariant::I3), 1, "{report:#?}");
    let line = report.lines.iter().find(|line| line.invariant == Invariant::I3).unwrap();
    assert_eq!(line.items, 300);
    assert!(report.violations.iter().any(|found| found.at.get() == 0x7777_7000));
}
