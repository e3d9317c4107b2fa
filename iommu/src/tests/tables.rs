//! Page tables against the interval model: both formats, at every number of levels, with and without large leaves.

use super::model::Model;
use crate::domain::{Domain, Shape};
use crate::error::MapError;
use crate::fake::Fake;
use crate::table::format::{Access, Stage};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, TableMemory};
use proptest::prelude::*;
use spec::first_stage::FirstStageEntry;
use spec::second_stage::{SecondStageEntry, span};
use spec::{Iova, PAGE_SIZE, PhysAddr};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn staged(stage: Stage, levels: u8, sslps: u64) -> Shape {
    Shape { stage, levels, sslps, input_bits: Shape::address_bits(stage, levels), output_bits: 46 }
}

fn shape(levels: u8, sslps: u64) -> Shape {
    staged(Stage::Second, levels, sslps)
}

fn small(fake: &Fake, ctx: &mut MaySleep, levels: u8, sslps: u64) -> Domain {
    small_of(fake, ctx, shape(levels, sslps))
}

fn small_of(fake: &Fake, ctx: &mut MaySleep, shape: Shape) -> Domain {
    Domain::with_chunks(fake, ctx, shape, 1).expect("one frame")
}

/// What an entry is to hardware.
enum Meaning {
    Nothing,
    Table(PhysAddr),
    Leaf(PhysAddr, Access),
}

/// The meaning of an entry by the layouts alone; reserved bits must be zero, and in the first stage the user bit set.
fn meaning(stage: Stage, raw: u64, level: u8) -> Meaning {
    match stage {
        Stage::Second => {
            let entry = SecondStageEntry::from_raw(raw);
            assert_eq!(
                spec::second_stage::reserved(entry, level, 46, false) & raw,
                0,
                "{entry:?} at {level}"
            );
            match (entry.is_present(), entry.is_leaf(level)) {
                (false, _) => Meaning::Nothing,
                (_, false) => Meaning::Table(entry.address()),
                _ => Meaning::Leaf(entry.address(), Access { read: entry.r(), write: entry.w() }),
            }
        }
        Stage::First => {
            let entry = FirstStageEntry::from_raw(raw);
            assert_eq!(spec::first_stage::reserved(entry, level, 46) & raw, 0, "{entry:?} at {level}");
            assert!(entry.us() || raw == 0, "{entry:?} at {level} refuses users");
            match (entry.is_present(), entry.is_leaf(level)) {
                (false, _) => Meaning::Nothing,
                (_, false) => Meaning::Table(entry.address(level)),
                _ => Meaning::Leaf(entry.address(level), Access { read: true, write: entry.rw() }),
            }
        }
    }
}

/// What hardware does to first-stage entries whenever it likes: all of a domain's are accessed, its leaves dirty.
fn use_all(fake: &Fake, domain: &Domain) {
    if domain.shape().stage == Stage::Second {
        return;
    }
    let mut tables = Vec::from([(domain.top(), domain.shape().levels - 1)]);
    while let Some((table, level)) = tables.pop() {
        for at in (0..512).map(|i| table.plus(8 * i)) {
            let raw = fake.read(at).expect("a table");
            let entry = FirstStageEntry::from_raw(raw);
            match meaning(Stage::First, raw, level) {
                Meaning::Nothing => continue,
                Meaning::Table(next) => tables.push((next, level - 1)),
                Meaning::Leaf(..) => {}
            }
            fake.write(at, entry.with_a(true).with_d(entry.is_leaf(level)).raw()).expect("a table");
        }
    }
}

/// All leaves of a domain, read with the layouts alone, and the number of tables. Tables but the top one must not be empty.
fn leaves(fake: &Fake, domain: &Domain) -> (Model, u64, BTreeSet<u8>) {
    let Shape { stage, levels, .. } = domain.shape();
    let top = domain.top();
    let mut model = Model::default();
    let mut sizes = BTreeSet::new();
    let mut tables = Vec::from([(top, levels - 1, 0_u64)]);
    let mut seen = 0;
    while let Some((table, level, base)) = tables.pop() {
        seen += 1;
        let mut empty = true;
        for i in 0..512 {
            let raw = fake.read(table.plus(8 * i)).expect("a table");
            let at = base + i * span(level);
            match meaning(stage, raw, level) {
                Meaning::Nothing => {
                    assert_eq!(raw, 0);
                    continue;
                }
                Meaning::Leaf(to, access) => {
                    sizes.insert(level);
                    assert!(model.map(at, span(level), to.get(), access));
                }
                Meaning::Table(next) => tables.push((next, level - 1, at)),
            }
            empty = false;
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
fn place(stage: Stage, levels: u8) -> impl Strategy<Value = u64> {
    let end = 1 << Shape::address_bits(stage, levels);
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

fn steps(stage: Stage, levels: u8) -> impl Strategy<Value = Vec<Step>> {
    let target = prop_oneof![2 => Just(None), 1 => (0_u64..4096).prop_map(Some)];
    let map = (place(stage, levels), length(), target, access()).prop_map(|(iova, pages, target, access)| {
        // Usually aligned like the address, so that large leaves are possible.
        let phys = target.map_or(GIB * 16 + iova % (4 * GIB), |frame| frame * PAGE_SIZE);
        Step::Map { iova, pages, phys, access }
    });
    let unmap = (place(stage, levels), length()).prop_map(|(iova, pages)| Step::Unmap { iova, pages });
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
fn judge(result: Result<u64, MapError>, shape: Shape, model: &mut Model, step: &Step) {
    let end = 1 << shape.input_bits;
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
        Step::Map { access: Access::WRITE, .. } if shape.stage == Stage::First => {
            assert_eq!(result, Err(MapError::WriteOnly));
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
    let (found, tables, _) = leaves(fake, domain);
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

fn cases() -> impl Strategy<Value = (Shape, Vec<Step>)> {
    let kinds = prop_oneof![
        3 => (Just(Stage::Second), 3_u8..=5),
        2 => (Just(Stage::First), 4_u8..=5)
    ];
    (kinds, prop_oneof![Just(0_u64), Just(1), Just(3)])
        .prop_flat_map(|((stage, levels), sslps)| (Just(staged(stage, levels, sslps)), steps(stage, levels)))
        .prop_filter("without large leaves, keep it small", |(shape, steps)| {
            let small_leaves = |iova: u64, phys: u64| shape.sslps == 0 || (iova ^ phys) % (2 * MIB) != 0;
            let huge = |s: &Step| {
                matches!(*s, Step::Map { pages, iova, phys, .. } if pages > 10_000 && small_leaves(iova, phys))
            };
            !steps.iter().any(huge)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(240) })]

    #[test]
    fn tables_mean_what_the_model_means_after_any_sequence((shape, steps) in cases()) {
        let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
        let mut domain = small_of(&fake, &mut ctx, shape);
        let mut model = Model::default();
        for step in &steps {
            let result = attempt(&mut domain, &fake, &mut ctx, step);
            judge(result, shape, &mut model, step);
            use_all(&fake, &domain);
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
    fn a_change_that_runs_out_of_memory_leaves_every_byte_and_frame_as_before((shape, steps) in cases()) {
        let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
        let mut domain = small_of(&fake, &mut ctx, shape);
        let mut model = Model::default();
        for step in &steps {
            let result = starve(&mut domain, &fake, &mut ctx, step)?;
            judge(result, shape, &mut model, step);
            use_all(&fake, &domain);
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
    let (_, tables, sizes) = leaves(&fake, &domain);
    assert_eq!(sizes, BTreeSet::from([0, 1, 2]));
    // Top; one of level 2; a level 1 and a level 0 table at each end.
    assert_eq!(tables, 6);
    for (sslps, largest) in [(0, 0), (1, 1), (2, 0), (3, 2)] {
        let mut domain = small(&fake, &mut ctx, 3, sslps);
        let bytes = if sslps & 1 == 0 { 4 * MIB } else { 2 * GIB };
        domain
            .map(&fake, &mut ctx, Iova::new(4 * GIB), PhysAddr::new(4 * GIB), bytes, Access::READ)
            .expect("map");
        assert_eq!(leaves(&fake, &domain).2, BTreeSet::from([largest]));
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
fn a_split_first_stage_leaf_keeps_its_bits_and_the_memory_type_moves_to_its_place() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    for (level, bytes) in [(1, 2 * MIB), (2, GIB)] {
        let mut domain = small_of(&fake, &mut ctx, staged(Stage::First, 4, 3));
        domain.map(&fake, &mut ctx, Iova::new(0), PhysAddr::new(GIB), bytes, Access::READ).expect("map");
        let mut at = domain.top();
        for _ in level..3 {
            at = FirstStageEntry::from_raw(fake.read(at).expect("table")).address(3);
        }
        let leaf = FirstStageEntry::from_raw(fake.read(at).expect("leaf"));
        assert!(leaf.is_leaf(level));
        // Bit 12 of a large leaf is the third bit into the page attribute table.
        let touched = leaf.with_a(true).with_pcd(true).with_xd(true).raw() | 1 << 12;
        fake.write(at, touched).expect("leaf");
        domain.unmap(&fake, &mut ctx, Iova::new(0), PAGE_SIZE).expect("unmap");
        let mut level = level;
        while level > 0 {
            at = FirstStageEntry::from_raw(fake.read(at).expect("table")).address(level);
            level -= 1;
            let part = FirstStageEntry::from_raw(fake.read(at.plus(8)).expect("part"));
            let expected = PhysAddr::new(GIB + span(level));
            assert_eq!((part.address(level), part.pat(level)), (expected, true), "{part:?} at {level}");
            assert!(part.a() && part.pcd() && part.xd() && part.us() && !part.rw() && part.is_leaf(level));
        }
        domain.dissolve(&fake, &mut ctx);
    }
}

#[test]
fn the_first_stage_gives_out_the_lower_half_of_its_addresses_only() {
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    for (levels, bits) in [(4, 47), (5, 56)] {
        let mut domain = small_of(&fake, &mut ctx, staged(Stage::First, levels, 3));
        let mut map = |at| domain.map(&fake, &mut ctx, Iova::new(at), PhysAddr::new(0), 4096, Access::READ);
        assert_eq!(map(1 << bits), Err(MapError::OutOfRange { bits, last: (1 << bits) + 4095 }));
        assert_eq!(map((1 << bits) - 4096), Ok(()));
    }
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
