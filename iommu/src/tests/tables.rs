//! Page tables against the interval model, at every number of levels, with and without large leaves.

use super::model::Model;
use crate::domain::{Domain, Shape};
use crate::error::MapError;
use crate::fake::Fake;
use crate::table::format::Access;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, TableMemory};
use proptest::prelude::*;
use spec::second_stage::{SecondStageEntry, span};
use spec::{Iova, PAGE_SIZE, PhysAddr};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn shape(levels: u8, sslps: u64) -> Shape {
    Shape { levels, sslps, input_bits: Shape::table_bits(levels), output_bits: 46 }
}

fn small(fake: &Fake, ctx: &mut MaySleep, levels: u8, sslps: u64) -> Domain {
    Domain::with_chunks(fake, ctx, shape(levels, sslps), 1).expect("one frame")
}

/// All leaves below `top`, read with the layouts alone, and the number of tables. Tables but the top one must not be empty.
fn leaves(fake: &Fake, top: PhysAddr, levels: u8) -> (Model, u64, BTreeSet<u8>) {
    let mut model = Model::default();
    let mut sizes = BTreeSet::new();
    let mut tables = Vec::from([(top, levels - 1, 0_u64)]);
    let mut seen = 0;
    while let Some((table, level, base)) = tables.pop() {
        seen += 1;
        let mut empty = true;
        for i in 0..512 {
            let entry = SecondStageEntry::from_raw(fake.read(table.plus(8 * i)).expect("a table"));
            assert_eq!(
                spec::second_stage::reserved(entry, level, 46, false) & entry.raw(),
                0,
                "{entry:?} at {level}"
            );
            if !entry.is_present() {
                assert_eq!(entry.raw(), 0);
                continue;
            }
            empty = false;
            let at = base + i * span(level);
            if entry.is_leaf(level) {
                sizes.insert(level);
                let access = Access { read: entry.r(), write: entry.w() };
                assert!(model.map(at, span(level), entry.address().get(), access));
            } else {
                tables.push((entry.address(), level - 1, at));
            }
        }
        assert!(!empty || table == top, "an empty table was left at level {level}");
    }
    (model, seen, sizes)
}

#[derive(Debug, Clone)]
enum Step {
    Map { iova: u64, pages: u64, phys: u64, access: Access },
    Unmap { iova: u64, pages: u64 },
}

/// Addresses around the borders that matter: of tables of each level, and the end of the address space.
fn place(levels: u8) -> impl Strategy<Value = u64> {
    let end = 1 << Shape::table_bits(levels);
    let base = prop_oneof![
        Just(0),
        Just(2 * MIB),
        Just(GIB),
        Just(512 * GIB - GIB),
        Just(end / 2),
        Just(end - 2 * GIB)
    ];
    let offset = prop_oneof![0_u64..4, 510_u64..515, Just(512), Just(1024), Just(262_143), Just(262_144)];
    (base, offset).prop_map(move |(base, offset)| (base + offset * PAGE_SIZE) % end)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1_u64..5, 3 => Just(512_u64), 3 => 500_u64..1600, 2 => Just(262_144_u64), 1 => 262_000_u64..264_000]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::READ_WRITE), Just(Access::READ), Just(Access::WRITE)]
}

fn steps(levels: u8) -> impl Strategy<Value = Vec<Step>> {
    let target = prop_oneof![2 => Just(None), 1 => (0_u64..4096).prop_map(Some)];
    let map = (place(levels), length(), target, access()).prop_map(|(iova, pages, target, access)| {
        // Usually aligned like the address, so that large leaves are possible.
        let phys = target.map_or(GIB * 16 + iova % (4 * GIB), |frame| frame * PAGE_SIZE);
        Step::Map { iova, pages, phys, access }
    });
    let unmap = (place(levels), length()).prop_map(|(iova, pages)| Step::Unmap { iova, pages });
    prop::collection::vec(prop_oneof![2 => map, 1 => unmap], 1..14)
}

/// Does a step on the domain. Bytes unmapped, for an unmap.
fn attempt(domain: &mut Domain, fake: &Fake, ctx: &mut MaySleep, step: &Step) -> Result<u64, MapError> {
    match *step {
        Step::Map { iova, pages, phys, access } => {
            let (iova, phys) = (Iova::new(iova), PhysAddr::new(phys));
            domain.map(fake, ctx, iova, phys, pages * PAGE_SIZE, access).map(|()| 0)
        }
        Step::Unmap { iova, pages } => {
            let unmapped = domain.unmap(fake, ctx, Iova::new(iova), pages * PAGE_SIZE)?;
            domain.settle(fake, ctx, unmapped.removed);
            Ok(unmapped.bytes)
        }
    }
}

/// Does a step on the model, which says what must have come of it.
fn judge(result: Result<u64, MapError>, end: u64, model: &mut Model, step: &Step) {
    let (Step::Map { iova, pages, .. } | Step::Unmap { iova, pages }) = *step;
    let bytes = pages * PAGE_SIZE;
    if iova + bytes > end {
        assert!(matches!(result, Err(MapError::OutOfRange { .. })), "{result:?}");
        return;
    }
    match *step {
        Step::Map { .. } if iova < 0xfef0_0000 && iova + bytes > 0xfee0_0000 => {
            assert_eq!(result, Err(MapError::InterruptRange));
        }
        Step::Map { phys, access, .. } => {
            if model.map(iova, bytes, phys, access) {
                assert_eq!(result, Ok(0));
            } else {
                let Err(MapError::AlreadyMapped { iova: named }) = result else { panic!("{result:?}") };
                assert!(model.translate(named.get()).is_some());
            }
        }
        Step::Unmap { .. } => assert_eq!(result, Ok(model.unmap(iova, iova + bytes))),
    }
}

fn check(domain: &Domain, fake: &Fake, model: &Model) {
    let (found, tables, _) = leaves(fake, domain.top(), domain.shape().levels);
    assert_eq!(found.joined(), model.joined());
    assert_eq!(domain.table_frames(), tables, "frames in use are the tables that hardware can reach");
    for (&start, &(bytes, ..)) in &model.0 {
        for at in [start.wrapping_sub(1), start, start + bytes / 2, start + bytes - 1, start + bytes] {
            let found = domain.translate(fake, Iova::new(at)).expect("tables in memory");
            let meant = model.translate(at).map(|(to, access)| (PhysAddr::new(to), access));
            assert_eq!(found, meant, "at {at:#x}");
        }
    }
}

fn cases() -> impl Strategy<Value = (u8, u64, Vec<Step>)> {
    (3_u8..=5, prop_oneof![Just(0_u64), Just(1), Just(3)])
        .prop_flat_map(|(levels, sslps)| (Just(levels), Just(sslps), steps(levels)))
        .prop_filter("without large leaves, keep it small", |(_, sslps, steps)| {
            let small_leaves = |iova: u64, phys: u64| *sslps == 0 || (iova ^ phys) % (2 * MIB) != 0;
            let huge = |s: &Step| {
                matches!(*s, Step::Map { pages, iova, phys, .. } if pages > 10_000 && small_leaves(iova, phys))
            };
            !steps.iter().any(huge)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(160) })]

    #[test]
    fn tables_mean_what_the_model_means_after_any_sequence((levels, sslps, steps) in cases()) {
        let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
        let mut domain = small(&fake, &mut ctx, levels, sslps);
        let mut model = Model::default();
        for step in &steps {
            let result = attempt(&mut domain, &fake, &mut ctx, step);
            judge(result, 1 << domain.shape().input_bits, &mut model, step);
            check(&domain, &fake, &model);
        }
        let all = 1_u64 << domain.shape().input_bits;
        let rest = domain.unmap(&fake, &mut ctx, Iova::new(0), all).expect("unmap all");
        prop_assert_eq!(rest.bytes, model.unmap(0, all));
        domain.settle(&fake, &mut ctx, rest.removed);
        prop_assert_eq!(domain.table_frames(), 1, "the top table alone is left");
        prop_assert_eq!(fake.memory(), BTreeMap::new(), "and no word is set in it");
        domain.dissolve(&fake, &mut ctx);
        prop_assert!(fake.frames_given().is_empty());
    }

    #[test]
    fn a_change_that_runs_out_of_memory_leaves_every_byte_and_frame_as_before((levels, sslps, steps) in cases()) {
        let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
        let mut domain = small(&fake, &mut ctx, levels, sslps);
        let mut model = Model::default();
        for step in &steps {
            let result = starve(&mut domain, &fake, &mut ctx, step)?;
            judge(result, 1 << domain.shape().input_bits, &mut model, step);
        }
        check(&domain, &fake, &model);
    }
}

/// Lets `step` run out of memory at its first frame, at its second, and so on, until it comes to its end.
fn starve(
    domain: &mut Domain,
    fake: &Fake,
    ctx: &mut MaySleep,
    step: &Step,
) -> Result<Result<u64, MapError>, TestCaseError> {
    let before = (fake.memory(), fake.frames_given());
    for left in 0.. {
        fake.0.borrow_mut().frames_left = left;
        let result = attempt(domain, fake, ctx, step);
        if !matches!(result, Err(MapError::OutOfMemory { .. })) {
            return Ok(result);
        }
        prop_assert!((fake.memory(), fake.frames_given()) == before, "failing at frame {left} left a trace");
    }
    unreachable!("memory is found at last")
}

/// A mapping with large leaves in the middle and small ones at its ends.
fn mixed(fake: &Fake, ctx: &mut MaySleep) -> (Domain, Model) {
    let mut domain = small(fake, ctx, 4, 3);
    let (start, bytes) = (GIB - 3 * MIB - PAGE_SIZE, 2 * GIB + 6 * MIB + 2 * PAGE_SIZE);
    let target = PhysAddr::new(16 * GIB + start);
    domain.map(fake, ctx, Iova::new(start), target, bytes, Access::READ_WRITE).expect("map");
    let mut model = Model::default();
    assert!(model.map(start, bytes, target.get(), Access::READ_WRITE));
    (domain, model)
}

#[test]
fn leaves_are_as_large_as_alignment_and_hardware_permit() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let (domain, model) = mixed(&fake, &mut ctx);
    check(&domain, &fake, &model);
    let (_, tables, sizes) = leaves(&fake, domain.top(), 4);
    assert_eq!(sizes, BTreeSet::from([0, 1, 2]));
    // Top; one of level 2; a level 1 and a level 0 table at each end.
    assert_eq!(tables, 6);
    for (sslps, largest) in [(0, 0), (1, 1), (2, 0), (3, 2)] {
        let mut domain = small(&fake, &mut ctx, 3, sslps);
        let bytes = if sslps & 1 == 0 { 4 * MIB } else { 2 * GIB };
        domain
            .map(&fake, &mut ctx, Iova::new(4 * GIB), PhysAddr::new(4 * GIB), bytes, Access::READ)
            .expect("map");
        assert_eq!(leaves(&fake, domain.top(), 3).2, BTreeSet::from([largest]));
    }
}

#[test]
fn unmapping_part_of_a_large_leaf_splits_it_and_keeps_the_rest() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let (mut domain, mut model) = mixed(&fake, &mut ctx);
    for (at, bytes) in
        [(GIB + 5 * PAGE_SIZE, PAGE_SIZE), (2 * GIB - PAGE_SIZE, 2 * PAGE_SIZE), (GIB, 2 * MIB)]
    {
        let unmapped = domain.unmap(&fake, &mut ctx, Iova::new(at), bytes).expect("unmap");
        assert_eq!(unmapped.bytes, model.unmap(at, at + bytes));
        domain.settle(&fake, &mut ctx, unmapped.removed);
        check(&domain, &fake, &model);
    }
}

#[test]
fn a_change_asks_for_no_more_frames_than_it_uses() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let mut domain = small(&fake, &mut ctx, 4, 3);
    // A 1 GiB leaf lies in one table below the top; splitting it down to a page takes two more.
    let left = |frames| fake.0.borrow_mut().frames_left = frames;
    left(1);
    domain.map(&fake, &mut ctx, Iova::new(0x40_0000_0000), PhysAddr::new(0), GIB, Access::READ).expect("map");
    left(2);
    domain.unmap(&fake, &mut ctx, Iova::new(0x40_0000_5000), PAGE_SIZE).expect("split twice");
    left(0);
    domain.unmap(&fake, &mut ctx, Iova::new(0x40_0000_7000), PAGE_SIZE).expect("nothing to split");
    left(1);
    domain.unmap(&fake, &mut ctx, Iova::new(0x40_0020_0000), 2 * MIB + PAGE_SIZE).expect("one to split");
}

#[test]
fn bits_that_another_driver_set_in_a_large_leaf_survive_its_split() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let mut domain = small(&fake, &mut ctx, 3, 1);
    domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(GIB), 2 * MIB, Access::READ_WRITE).expect("map");
    let middle = SecondStageEntry::from_raw(fake.read(domain.top()).expect("top")).address();
    let leaf = SecondStageEntry::from_raw(fake.read(middle).expect("leaf"));
    fake.write(middle, leaf.with_snp(true).raw()).expect("leaf");
    domain.unmap(&fake, &mut ctx, Iova::new(0), PAGE_SIZE).expect("unmap");
    let table = SecondStageEntry::from_raw(fake.read(middle).expect("middle")).address();
    let second = SecondStageEntry::from_raw(fake.read(table.plus(8)).expect("leaf"));
    assert!(second.snp() && !second.ps());
    assert_eq!(second.address(), PhysAddr::new(GIB + PAGE_SIZE));
}

#[test]
fn ranges_that_cannot_be_are_refused_by_name() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let mut domain = small(&fake, &mut ctx, 3, 3);
    let before = fake.memory();
    let mut map = |iova, phys, bytes, access| {
        domain.map(&fake, &mut ctx, Iova::new(iova), PhysAddr::new(phys), bytes, access)
    };
    let both = Access::READ_WRITE;
    let misaligned = |iova, bytes| Err(MapError::Misaligned { iova: Iova::new(iova), bytes });
    assert_eq!(map(1, 0, 4096, both), misaligned(1, 4096));
    assert_eq!(map(0, 8, 4096, both), misaligned(0, 4096));
    assert_eq!(map(0, 0, 0, both), misaligned(0, 0));
    assert_eq!(map(0, 0, 4095, both), misaligned(0, 4095));
    assert_eq!(map(1 << 39, 0, 4096, both), Err(MapError::OutOfRange { bits: 39, last: (1 << 39) + 4095 }));
    assert_eq!(map(0, 1 << 46, 4096, both), Err(MapError::OutOfRange { bits: 46, last: (1 << 46) + 4095 }));
    assert_eq!(map(!0xfff, 0, 8192, both), Err(MapError::OutOfRange { bits: 39, last: u64::MAX }));
    assert_eq!(map(0xfee0_f000, 0, 4096, both), Err(MapError::InterruptRange));
    assert_eq!(map(0, 0, 4096, Access { read: false, write: false }), Err(MapError::NoAccess));
    assert_eq!(map(0xfedf_f000, 0, 4096, both), Ok(()));
    assert_eq!(map(0xfef0_0000, 0, 4096, both), Ok(()));
    domain.hold(true);
    let held = domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(0), 4096, both);
    assert_eq!(held, Err(MapError::Frozen));
    assert_eq!(domain.unmap(&fake, &mut ctx, Iova::new(0), 4096).map(|u| u.bytes), Err(MapError::Frozen));
    domain.hold(false);
    for at in [0xfedf_f000, 0xfef0_0000] {
        let unmapped = domain.unmap(&fake, &mut ctx, Iova::new(at), 4096).expect("unmap");
        domain.settle(&fake, &mut ctx, unmapped.removed);
    }
    assert_eq!(fake.memory(), before);
}

#[test]
fn a_table_that_points_out_of_memory_is_an_error_and_not_a_walk_into_nothing() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let mut domain = small(&fake, &mut ctx, 4, 3);
    let nowhere = PhysAddr::new(0x7000_0000_0000);
    let entry = SecondStageEntry::ZERO.with_r(true).with_addr(nowhere.frame().number());
    fake.write(domain.top(), entry.raw()).expect("top");
    let gone = Err(MapError::NoMemory(liveupdate::host::NoMemory { at: nowhere }));
    assert_eq!(domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(0), 4096, Access::READ), gone);
    assert_eq!(domain.unmap(&fake, &mut ctx, Iova::new(0), 4096).map(|_| ()), gone);
    assert!(domain.translate(&fake, Iova::new(0)).is_err());
}

#[test]
fn tables_lie_in_few_runs_and_freed_frames_are_used_again() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let mut domain = Domain::new(&fake, &mut ctx, shape(4, 0)).expect("top table");
    let runs = |domain: &Domain| {
        let mut runs = Vec::new();
        domain.tables(&mut |run| runs.push(run));
        runs
    };
    // 1 GiB of 4 KiB leaves: 512 leaf tables and three above them, so two chunks.
    domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(0), GIB, Access::READ).expect("map");
    let full = runs(&domain);
    assert!(full.len() <= 2, "{full:?}");
    assert_eq!(full.iter().map(|run| run.count()).sum::<u64>(), 515);
    assert!(full[0].start().is_aligned(2 * MIB));
    let frames = fake.frames_given();
    for round in 0..5 {
        let unmapped = domain.unmap(&fake, &mut ctx, Iova::new(0), GIB / 2).expect("unmap");
        domain.settle(&fake, &mut ctx, unmapped.removed);
        domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(0), GIB / 2, Access::WRITE).expect("map");
        assert_eq!(fake.frames_given(), frames, "round {round}");
    }
    let unmapped = domain.unmap(&fake, &mut ctx, Iova::new(0), GIB).expect("unmap");
    domain.settle(&fake, &mut ctx, unmapped.removed);
    assert_eq!(runs(&domain).iter().map(|run| run.count()).sum::<u64>(), 1, "the top table");
    domain.dissolve(&fake, &mut ctx);
    assert!(fake.frames_given().is_empty());
}

#[test]
fn where_no_large_run_is_free_small_ones_do() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    fake.0.borrow_mut().largest_run = 8;
    let mut domain = Domain::new(&fake, &mut ctx, shape(3, 0)).expect("top table");
    domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(0), 64 * MIB, Access::READ).expect("map");
    assert_eq!(domain.table_frames(), 34);
    assert_eq!(fake.frames_given().len(), 40);
}
