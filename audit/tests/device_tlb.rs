//! Devices that keep translations, in the audit: each described exactly once, and nobody else.

mod world;

use holdover_audit::{Invariant, RecordKind, Stage, What};
use spec::handover::{DeviceTlb, kind};
use world::{CONTEXT_0, World};
use zerocopy::IntoBytes;

fn record(requester: u32, queue_depth: u8) -> DeviceTlb {
    DeviceTlb { requester, physical_function: 0x10, queue_depth, page_requests: 0, reserved: 0 }
}

/// A sound world in which the first requester may keep translations, with these records.
fn world(stage: Stage, allowed: bool, records: &[DeviceTlb]) -> World {
    let mut world = if stage == Stage::Sealed { World::sealed() } else { World::arrived() };
    let ecap = world.states[0].ecap.with_dt(true);
    (world.states[0].ecap, world.units[0].ecap) = (ecap, ecap.raw());
    if allowed {
        world.change_entry(world.entry(CONTEXT_0, 2, 0), Some(0), |entry| entry.with_tt(1));
    }
    world.others = records.iter().map(|r| (kind::DEVICE_TLB, r.as_bytes().to_vec())).collect();
    world.digest();
    (world.header.records, world.header.bytes) = (0, 0);
    world.seal();
    world
}

#[test]
fn a_device_that_is_described_as_its_entry_allows_has_no_finding() {
    for stage in [Stage::Sealed, Stage::Arrived] {
        assert_eq!(world(stage, true, &[record(0, 32)]).findings(), []);
        assert_eq!(world(stage, false, &[]).findings(), []);
    }
}

#[test]
fn i4_a_device_that_is_not_described_is_found() {
    let found = world(Stage::Arrived, true, &[]).only();
    assert_eq!((found.invariant, found.what), (Invariant::I4, What::NoDeviceTlb { missing: 1 }));
}

#[test]
fn i4_a_device_that_is_described_though_its_entry_does_not_allow_it_or_twice_or_as_none_can_be_is_found() {
    for (allowed, records) in [
        (false, vec![record(0, 32)]),
        (true, vec![record(0, 32), record(0, 32)]),
        (true, vec![record(0, 32), record(1, 32)]),
    ] {
        let found = world(Stage::Sealed, allowed, &records).only();
        assert_eq!((found.invariant, found.what), (Invariant::I4, What::DeviceTlb));
    }
    for depth in [0, 33] {
        let found = world(Stage::Sealed, true, &[record(0, depth)]).findings();
        assert_eq!(found[0].what, What::DeviceTlb);
    }
    let found = world(Stage::Arrived, true, &[record(0, 1), record(77, 1)]).only();
    let what = What::Dangling { from: RecordKind::DeviceTlb, to: RecordKind::Requester, ordinal: 77 };
    assert_eq!(found.what, what);
}
