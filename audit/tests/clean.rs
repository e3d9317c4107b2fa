//! A sound handover has no finding, and the report says how much was looked at.

mod world;

use holdover_audit::handover::{Handover, Record};
use holdover_audit::kho::PreservedMap;
use holdover_audit::{Invariant, Scratch, Totals};
use spec::{Frame, PhysAddr};
use world::{LARGE_BYTES, LEAVES, MAP, Memory, SMALL_BYTES, World};

/// Frames that the test machine preserves: tables, container, regions.
const PRESERVED: u64 = 5 + 6 + 3 + 2 + 1 + (SMALL_BYTES + LARGE_BYTES) / 4096;
const MAPPED: u64 = 16 * 0x1000 + 0x20_0000 + 0x4000_0000 + 2 * 0x1000 + 8 * 0x1000;

#[test]
fn a_sound_handover_has_no_finding_and_all_totals_are_right() {
    let (report, findings) = World::arrived().audit().unwrap();
    assert_eq!(findings, []);
    let totals = Totals {
        units: 2,
        context_tables: 3,
        tables: 8,
        unreached_tables: 1,
        leaves: LEAVES,
        mapped_bytes: MAPPED,
        // Two roots, three context tables, nine page tables.
        bytes_hashed: 14 * 4096,
        preserved_frames: PRESERVED,
        preserved_runs: report.totals.preserved_runs,
        kept_entries: 4,
        entries_to_cut_off: 0,
        root_entries_to_cut_off: 0,
        pasid_tables: 0,
        kept_pasids: 0,
        pasids_to_cut_off: 0,
        pasid_tables_to_cut_off: 0,
        kept_interrupts: 0,
        interrupts_to_cut_off: 0,
    };
    assert_eq!(report.totals, totals);
}

#[test]
fn before_the_cut_off_strangers_are_counted_and_not_reported() {
    let (report, findings) = World::sealed().audit().unwrap();
    assert_eq!(findings, []);
    assert_eq!(report.totals.entries_to_cut_off, 3, "00:04.0, 01:00.0 and 0001:06:01.0");
    assert_eq!(report.totals.root_entries_to_cut_off, 2, "bus 1 of unit 0 and bus 6 of unit 1");
    assert_eq!(report.totals.kept_entries, 4);
}

#[test]
fn what_memory_cannot_show_is_not_counted_as_checked() {
    let (report, _) = World::arrived().audit().unwrap();
    for line in report.checked {
        let cannot = matches!(line.invariant, Invariant::I6 | Invariant::I7);
        assert_eq!(line.checkable, !cannot, "{}", line.invariant);
        assert_eq!(line.items == 0, cannot, "{}", line.invariant);
        assert_eq!(line.what.starts_with("not checkable"), cannot);
    }
    let items = report.checked.map(|line| line.items);
    // I1: root and context tables, declared frames, tables entered, formats, top tables and levels of entries, interrupt tables.
    assert_eq!(items[0], 5 + 9 + 8 + 2 + 3 * 4 + 2);
    assert_eq!(items[1], 3 + 4, "I2: root and context entries");
    assert_eq!(items[2], LEAVES + 3 + 4, "I3: leaves, regions, entries");
    // I4: records, registers, context table pointers, requesters with both words, digests and counts, container.
    assert_eq!(items[3], 23 + 6 + 3 + 3 * 4 + 2 + 4 + 3);
    assert_eq!(items[4], 3 + 4, "I5: records and entries");
    assert_eq!(items[7], 2 * 2, "I8: state and mode of each unit");
    // I9: preserved runs, regions, tree, records and nodes of the map.
    assert_eq!(items[8], report.totals.preserved_runs + 3 + 2 + world::map_nodes(&World::arrived()));
    assert_eq!(items[9], 2, "I10: units");
}

#[test]
fn longer_records_and_unknown_kinds_of_a_newer_release_are_read() {
    let mut world = World::arrived();
    world.appended = 16;
    world.header.version = 2;
    world.others = vec![(999, vec![0xab; 24]), (1000, vec![])];
    world.seal();
    assert_eq!(world.findings(), []);
    let at = PhysAddr::new(world::FDT);
    let counts = Handover::locate(&world.memory, at).unwrap().verify().unwrap();
    assert_eq!((counts.unknown, counts.requesters, counts.table_frames), (2, 3, 9));
}

#[test]
fn the_records_can_be_iterated_with_their_places() {
    let world = World::arrived();
    let handover = Handover::locate(&world.memory, PhysAddr::new(world::FDT)).unwrap();
    let records: Vec<_> = handover.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), handover.header().records as usize);
    assert!(matches!(records[0].record, Record::Release(release) if release.update == 1));
    assert_eq!(records[1].at.get(), handover.start().get() + 64 + 88);
    assert!(records.iter().any(|r| r.record == Record::Alias(world.aliases[0])));
}

#[test]
fn exactly_the_working_memory_asked_for_is_enough() {
    let world = World::arrived();
    let needed = Scratch::words_needed(&world.memory, PhysAddr::new(world::FDT)).unwrap() as usize;
    assert_eq!(world.audit_with(&mut vec![7; needed]).unwrap().1, []);
    let error = world.audit_with(&mut vec![7; needed - 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("working memory of {} words is too small: give {needed}", needed - 1)
    );
}

/// Runs that touch, joined.
fn joined(mut runs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in runs {
        match out.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

#[test]
fn the_map_gives_back_the_runs_that_were_put_in_whatever_the_orders() {
    // Frame 0, runs across bitmap boundaries (32768 frames), large blocks, high memory.
    let runs = [(0, 0x3000), (0x7ff_f000, 0x5000), (0x4000_0000, 0x4000_3000), (0xff_ffff_0000, 0x9000)];
    for limit in [0, 1, 4, 9, 10, 18, 30] {
        let mut memory = Memory::default();
        memory.write_map(MAP, &runs, limit);
        let mut map = PreservedMap::open(&memory, PhysAddr::new(MAP)).unwrap();
        let found =
            map.extents().map(Result::unwrap).map(|e| (e.first().number(), e.end().number())).collect();
        let wanted: Vec<_> = runs.iter().map(|(s, b)| (s >> 12, (s + b) >> 12)).collect();
        assert_eq!(joined(found), wanted, "orders up to {limit}");
        for &(first, end) in &wanted {
            assert_eq!(
                map.first_gap(Frame::new(first), Frame::new(end)).unwrap(),
                None,
                "orders up to {limit}"
            );
            let beyond = map.first_gap(Frame::new(first), Frame::new(end + 3)).unwrap();
            assert_eq!(beyond, Some(Frame::new(end)), "orders up to {limit}");
            assert!(!map.preserved(Frame::new(end)).unwrap());
            assert!(map.preserved(Frame::new(end - 1)).unwrap());
            let before = Frame::new(first.saturating_sub(2));
            assert_eq!(map.first_preserved(before, Frame::new(end)).unwrap(), Some(Frame::new(first)));
        }
        assert_eq!(map.first_preserved(Frame::new(3), Frame::new(0x7fff)).unwrap(), None);
    }
}

#[test]
fn keys_of_two_orders_that_touch_in_one_bitmap_are_kept_apart() {
    // The last block of order 40 and the first of order 39 have adjacent keys.
    let mut memory = Memory::default();
    memory.write_map(MAP, &[], 0);
    let mut nodes = 1;
    for key in [0x1fff, 0x2000] {
        memory.set_key(MAP, &mut nodes, key);
    }
    let mut map = PreservedMap::open(&memory, PhysAddr::new(MAP)).unwrap();
    let found: Vec<_> = map.extents().map(Result::unwrap).map(|e| (e.first().number(), e.count())).collect();
    assert_eq!(found, [(0xfff << 40, 1 << 40), (0, 1 << 39)]);
    let last = Frame::new(0xfff << 40);
    assert_eq!(map.first_gap(last, Frame::new(1 << 52)).unwrap(), None);
    assert_eq!(map.first_gap(Frame::new(0), last).unwrap(), Some(Frame::new(1 << 39)));
}
