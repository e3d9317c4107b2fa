//! Damage to what lies where: scratch memory, regions, the container, the preserved set (I1, I3, I4, I9).

mod world;

use holdover_audit::{Finding, Invariant, RecordKind, Role, Unreadable, What};
use spec::handover::kind;
use world::{
    A, A_L0, A_MORE, A_TOKEN, B, BLOB, CONTEXT_0, DEVICE, FDT, LARGE, MAP, ROOT, SCRATCH, SMALL, World,
};

/// A finding that concerns no requester, domain or unit.
fn plain(invariant: Invariant, at: u64, what: What) -> Finding {
    Finding { invariant, requester: None, domain: None, unit: None, at, what }
}

/// Takes one page out of the preserved set.
fn unpreserve(world: &mut World, page: u64) {
    let runs = std::mem::take(&mut world.preserved);
    for (start, bytes) in runs {
        let end = start + bytes;
        if start <= page && page < end {
            world.preserved.extend([(start, page - start), (page + 0x1000, end - page - 0x1000)]);
        } else {
            world.preserved.push((start, bytes));
        }
    }
    world.seal();
}

#[test]
fn a_preserved_run_in_scratch_memory_is_a_violation_of_i9() {
    let mut world = World::arrived();
    let last = SCRATCH + 0xff_f000;
    world.preserved.push((last, 0x1000));
    world.seal();
    assert_eq!(world.only(), plain(Invariant::I9, last, What::PreservedInScratch { frames: 1 }));
}

#[test]
fn preserved_memory_that_touches_scratch_memory_is_none() {
    let mut world = World::arrived();
    world.preserved.extend([(SCRATCH - 0x1000, 0x1000), (SCRATCH + 0x100_0000, 0x1000)]);
    world.seal();
    assert_eq!(world.findings(), []);
}

#[test]
fn a_container_in_scratch_memory_is_found_part_by_part() {
    for (at, role) in [(FDT, Role::Fdt), (BLOB, Role::Records), (MAP + 0x2000, Role::MapNode)] {
        let mut world = World::arrived();
        world.scratch.push(spec::handover::Scratch { start: at, bytes: 0x1000 });
        world.seal();
        let finding = world.find(|what| *what == What::ContainerInScratch(role));
        assert_eq!((finding.invariant, finding.at), (Invariant::I9, at));
    }
}

#[test]
fn a_region_in_scratch_memory_is_found() {
    let mut world = World::arrived();
    world.scratch.push(spec::handover::Scratch { start: DEVICE + 0xf000, bytes: 0x2000 });
    world.seal();
    assert_eq!(world.only(), plain(Invariant::I9, DEVICE, What::RegionInScratch { region: 0x12 }));
}

#[test]
fn overlapping_scratch_records_hide_nothing() {
    let mut world = World::arrived();
    let scratch = |start, bytes| spec::handover::Scratch { start, bytes };
    world.scratch = vec![scratch(DEVICE - 0x1000, 0x1000), scratch(SCRATCH, 0xf000_0000 - SCRATCH)];
    world.seal();
    world.find(|what| matches!(what, What::RegionInScratch { region: 0x12 }));
    world.find(|what| matches!(what, What::PreservedInScratch { .. }));
}

#[test]
fn container_pages_that_are_not_preserved_are_found() {
    for (at, role) in [(FDT, Role::Fdt), (BLOB, Role::Records)] {
        let mut world = World::arrived();
        unpreserve(&mut world, at);
        assert_eq!(world.only(), plain(Invariant::I4, at, What::NotPreserved(role)));
    }
}

#[test]
fn a_hole_in_a_region_of_memory_is_found_at_its_frame() {
    for page in [LARGE, LARGE + 0x1234_5000, LARGE + 0x3fff_f000] {
        let mut world = World::arrived();
        unpreserve(&mut world, page);
        let expected = plain(Invariant::I3, LARGE, What::RegionNotPreserved { missing: page });
        assert_eq!(world.only(), expected);
    }
}

#[test]
fn a_device_range_in_the_preserved_set_is_found() {
    let mut world = World::arrived();
    world.preserved.push((DEVICE + 0x8000, 0x1000));
    world.seal();
    assert_eq!(world.only(), plain(Invariant::I3, DEVICE, What::DeviceRangePreserved));
}

#[test]
fn regions_that_overlap_are_found() {
    let mut world = World::arrived();
    world.regions.push(spec::handover::Region {
        token: 0x13,
        start: SMALL + 0x1000,
        bytes: 0x1000,
        kind: 0,
        reserved: 0,
    });
    world.seal();
    assert_eq!(world.only(), plain(Invariant::I3, SMALL + 0x1000, What::RegionsOverlap { other: 0x10 }));
}

#[test]
fn a_region_behind_a_small_one_within_a_large_one_is_found() {
    let mut world = World::arrived();
    for (token, start) in [(0x13, SMALL + 0x1000), (0x14, SMALL + 0x5000)] {
        world.regions.push(spec::handover::Region { token, start, bytes: 0x1000, kind: 0, reserved: 0 });
    }
    world.seal();
    let found: Vec<_> = world.findings().iter().map(|f| (f.at, f.what)).collect();
    let what = What::RegionsOverlap { other: 0x10 };
    assert_eq!(found, [(SMALL + 0x1000, what), (SMALL + 0x5000, what)]);
}

#[test]
fn a_table_behind_a_small_run_within_a_large_one_is_found() {
    let mut world = World::arrived();
    for start in [A + 0x1000, A + 0x3000] {
        world.tables.push(spec::handover::DomainTables { start, bytes: 0x1000, domain: 1, reserved: 0 });
    }
    world.domains[1].table_frames = 5;
    world.digest();
    world.seal();
    let findings = world.findings();
    let overlaps = findings.iter().filter(|f| matches!(f.what, What::TablesOverlap { .. })).map(|f| f.at);
    assert_eq!(overlaps.collect::<Vec<_>>(), [A + 0x1000, A + 0x3000]);
}

#[test]
fn a_region_of_unknown_kind_or_no_whole_frames_is_found_at_its_record() {
    let mut world = World::arrived();
    world.regions.push(spec::handover::Region { token: 0x13, start: 0, bytes: 0x1000, kind: 2, reserved: 0 });
    world.seal();
    let at = world.record(kind::REGION, 3);
    assert_eq!(world.only(), plain(Invariant::I4, at, What::RegionKindUnknown { kind: 2 }));
    for (start, bytes) in
        [(0x8000_0800, 0x1000), (0x8000_0000, 0x800), (0x8000_0000, 0), (u64::MAX - 0xfff, 0x2000)]
    {
        world.regions[3] = spec::handover::Region { token: 0x13, start, bytes, kind: 0, reserved: 0 };
        world.seal();
        assert_eq!(world.only(), plain(Invariant::I4, at, What::BadRange(RecordKind::Region)));
    }
}

#[test]
fn bad_ranges_of_scratch_and_table_records_are_found() {
    let mut world = World::arrived();
    world.scratch.push(spec::handover::Scratch { start: 0x8000_0001, bytes: 0x1000 });
    world.tables.push(spec::handover::DomainTables { start: 0x8000_0000, bytes: 0, domain: 0, reserved: 0 });
    world.contexts.push(spec::handover::ContextTable {
        table: 0x8000_0008,
        unit: 0,
        bus: 9,
        half: 0,
        reserved: 0,
    });
    world.seal();
    let whats: Vec<_> = world.findings().iter().map(|f| (f.at, f.what)).collect();
    assert_eq!(
        whats,
        [
            (world.record(kind::SCRATCH, 1), What::BadRange(RecordKind::Scratch)),
            (world.record(kind::CONTEXT_TABLE, 3), What::BadRange(RecordKind::ContextTable)),
            (world.record(kind::DOMAIN_TABLES, 3), What::BadRange(RecordKind::DomainTables)),
        ]
    );
}

#[test]
fn a_region_in_which_tables_lie_is_found() {
    for (page, role, domain) in [
        (ROOT, Role::RootTable, None),
        (CONTEXT_0, Role::ContextTable, None),
        (A_L0, Role::DomainTable, Some(A_TOKEN)),
        (BLOB, Role::Records, None),
        (FDT, Role::Fdt, None),
    ] {
        let mut world = World::arrived();
        world.regions.push(spec::handover::Region {
            token: 0x13,
            start: page,
            bytes: 0x1000,
            kind: 0,
            reserved: 0,
        });
        world.seal();
        let finding = world.only();
        assert_eq!(finding.what, What::TableInRegion { role, region: 0x13 });
        assert_eq!((finding.invariant, finding.domain), (Invariant::I3, domain));
    }
}

#[test]
fn a_container_that_covers_tables_or_regions_or_frames_that_are_not_preserved_is_found() {
    let container = |start, bytes| vec![spec::handover::Container { start, bytes }];
    let mut world = World::arrived();
    world.containers = container(A_MORE + 0x1000, 0x1000);
    world.seal();
    let finding = world.only();
    let (role, other) = (Role::Container, Role::DomainTable);
    assert_eq!((finding.invariant, finding.what), (Invariant::I1, What::TablesOverlap { role, other }));
    world.containers = container(SMALL, 0x1000);
    world.seal();
    assert_eq!(world.only(), plain(Invariant::I3, SMALL, What::TableInRegion { role, region: 0x10 }));
    world.containers = container(BLOB, 0x3000);
    world.seal();
    assert_eq!(world.only(), plain(Invariant::I4, BLOB + 0x2000, What::NotPreserved(role)));
    world.containers = container(BLOB, 0x3001);
    world.seal();
    let at = world.record(kind::CONTAINER, 0);
    assert_eq!(world.only(), plain(Invariant::I4, at, What::BadRange(RecordKind::Container)));
}

#[test]
fn tables_that_share_a_frame_are_found() {
    let mut world = World::arrived();
    world.tables.push(spec::handover::DomainTables {
        start: A + 0x1000,
        bytes: 0x1000,
        domain: 1,
        reserved: 0,
    });
    world.domains[1].table_frames = 4;
    world.digest();
    world.seal();
    let role = Role::DomainTable;
    let finding = world.find(|what| *what == What::TablesOverlap { role, other: role });
    assert_eq!((finding.invariant, finding.at), (Invariant::I1, A + 0x1000));
}

#[test]
fn every_table_frame_that_is_not_preserved_is_a_violation_of_i1() {
    for (page, role, domain) in [
        (ROOT, Role::RootTable, None),
        (CONTEXT_0, Role::ContextTable, None),
        (A_L0, Role::DomainTable, Some(A_TOKEN)),
        (A_MORE + 0x1000, Role::DomainTable, Some(A_TOKEN)),
        (B, Role::DomainTable, Some(world::B_TOKEN)),
    ] {
        for mut world in [World::arrived(), World::sealed()] {
            unpreserve(&mut world, page);
            let finding = world.only();
            assert_eq!(finding.what, What::NotPreserved(role));
            assert_eq!((finding.invariant, finding.at, finding.domain), (Invariant::I1, page, domain));
        }
    }
}

#[test]
fn a_table_that_cannot_be_read_is_found_and_the_rest_is_still_checked() {
    for (page, role) in [
        (ROOT, Role::RootTable),
        (CONTEXT_0, Role::ContextTable),
        (A_L0, Role::DomainTable),
        (B, Role::DomainTable),
    ] {
        let mut world = World::arrived();
        world.states[1].status = world.states[1].status.with_tes(false);
        world.memory.remove(page);
        let finding = world.find(|what| *what == What::Unreadable(role));
        assert_eq!((finding.invariant, finding.at), (Invariant::I1, page));
        world.find(|what| *what == What::TranslationOff);
    }
}

#[test]
fn records_that_are_not_there_are_no_finding_but_an_error() {
    let mut world = World::arrived();
    world.memory.remove(BLOB);
    assert!(matches!(world.unreadable(), Unreadable::Missing { part: "records", .. }));
}
