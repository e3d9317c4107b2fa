//! Damage to page tables (I1, I3, I4): leaves, formats, cycles, declarations.

mod world;

use holdover_audit::{Invariant, Item, Role, What};
use spec::handover::{Region, kind};
use world::{
    A, A_L0, A_L1, A_L2, A_MORE, A_TOKEN, B, B_L0, B_L1, B_TOKEN, DEVICE, LARGE, SMALL, World, entry_to,
    requester, unit_id,
};

/// A sound machine with other words at `at`, in agreement with the digests.
fn with(at: u64, words: &[u64]) -> World {
    let mut world = World::arrived();
    world.memory.write(at, words);
    world.digest();
    world.seal();
    world
}

/// A finding about domain A, which names its first requester.
#[track_caller]
fn of_a(world: &World, invariant: Invariant, at: u64, what: What) {
    let finding = world.only();
    assert_eq!((finding.invariant, finding.at, finding.what), (invariant, at, what));
    assert_eq!(finding.domain, Some(A_TOKEN));
    assert_eq!((finding.requester, finding.unit), (Some(requester(0, 0, 2, 0)), Some(unit_id(0))));
}

#[test]
fn a_leaf_outside_of_every_region_is_a_violation_of_i3() {
    let world = with(A_L0 + 8 * 100, &[entry_to(0x9000_0000).raw()]);
    let what = What::LeafOutside { iova: 100 << 12, output: 0x9000_0000, leaves: 1, bytes: 0x1000 };
    of_a(&world, Invariant::I3, A_L0 + 800, what);
}

#[test]
fn read_only_and_write_only_leaves_count_as_leaves() {
    for entry in [entry_to(0x9000_0000).with_r(false), entry_to(0x9000_0000).with_w(false)] {
        let finding = with(A_L0 + 8 * 100, &[entry.raw()]).only();
        assert_eq!(finding.invariant, Invariant::I3);
    }
    assert_eq!(
        with(A_L0 + 8 * 100, &[entry_to(0x9000_0000).with_r(false).with_w(false).raw()]).findings(),
        []
    );
}

#[test]
fn a_leaf_that_reaches_one_page_beyond_its_region_is_a_violation_of_i3() {
    let beyond = DEVICE + world::DEVICE_BYTES;
    let what = |output| What::LeafOutside { iova: 0x60_0000 + (510 << 12), output, leaves: 1, bytes: 0x1000 };
    of_a(&with(A_MORE + 8 * 510, &[entry_to(beyond).raw()]), Invariant::I3, A_MORE + 8 * 510, what(beyond));
    let before = DEVICE - 0x1000;
    of_a(&with(A_MORE + 8 * 510, &[entry_to(before).raw()]), Invariant::I3, A_MORE + 8 * 510, what(before));
}

#[test]
fn large_leaves_must_lie_in_a_region_whole() {
    // 2 MiB where only the last page of it is beyond the region.
    let output = SMALL + 0x20_0000;
    let world = with(A_L1 + 8, &[entry_to(output).with_ps(true).raw()]);
    let what = What::LeafOutside { iova: 0x20_0000, output, leaves: 1, bytes: 0x20_0000 };
    of_a(&world, Invariant::I3, A_L1 + 8, what);
    // 1 GiB next to the region.
    let output = LARGE + 0x4000_0000;
    let world = with(A_L2 + 8, &[entry_to(output).with_ps(true).raw()]);
    let what = What::LeafOutside { iova: 0x4000_0000, output, leaves: 1, bytes: 0x4000_0000 };
    of_a(&world, Invariant::I3, A_L2 + 8, what);
}

#[test]
fn a_leaf_over_two_regions_that_touch_is_sound() {
    let mut world = World::arrived();
    let half = world.regions[0].bytes / 2;
    world.regions[0].bytes = half;
    world.regions.push(Region { token: 0x14, start: LARGE + half, bytes: half, kind: 0, reserved: 0 });
    world.seal();
    assert_eq!(world.findings(), []);
}

#[test]
fn a_leaf_half_in_memory_and_half_in_a_device_is_a_violation_of_i3() {
    let mut world = World::arrived();
    let half = SMALL + 0x10_0000;
    world.regions[2].bytes = 0x10_0000;
    world.regions.push(Region {
        token: 0x14,
        start: SMALL + 0x20_0000,
        bytes: 0x1_0000,
        kind: 0,
        reserved: 0,
    });
    world.regions.push(Region { token: 0x15, start: half, bytes: 0x10_0000, kind: 1, reserved: 0 });
    world.preserved.retain(|(start, _)| *start != SMALL);
    world.preserved.extend([(SMALL, 0x10_0000), (SMALL + 0x20_0000, 0x1_0000)]);
    world.seal();
    let what = What::LeafOutside { iova: 0x20_0000, output: SMALL, leaves: 1, bytes: 0x20_0000 };
    of_a(&world, Invariant::I3, A_L1 + 8, what);
}

#[test]
fn adjacent_leaves_outside_are_one_finding_and_others_are_another() {
    let page = |n: u64| entry_to(0x9000_0000 + n * 0x1000).raw();
    let world = with(A_L0 + 8 * 100, &[page(0), page(5), page(1), 0, page(3)]);
    let found: Vec<_> = world.findings().iter().map(|f| f.what).collect();
    let outside = |iova, output, leaves| What::LeafOutside { iova, output, leaves, bytes: leaves << 12 };
    assert_eq!(found, [outside(100 << 12, 0x9000_0000, 3), outside(104 << 12, 0x9000_3000, 1)]);
}

#[test]
fn the_top_of_the_address_space_is_reached_without_overflow() {
    let top = 0xf_ffff_ffff_f000;
    let finding = with(A_L0 + 8 * 511, &[entry_to(top).raw()]).only();
    assert!(matches!(finding.what, What::LeafOutside { output, .. } if output == top));
}

#[test]
fn large_leaves_that_one_of_the_units_lacks_are_found() {
    for (unit, sslps, entry, level) in [(0, 0b01, A_L2 + 8, 2), (1, 0b10, A_L1 + 8, 1)] {
        let mut world = World::arrived();
        world.states[unit].cap = world.states[unit].cap.with_sslps(sslps);
        world.units[unit].cap = world.states[unit].cap.raw();
        world.seal();
        of_a(&world, Invariant::I3, entry, What::LeafSizeUnsupported { level });
    }
}

#[test]
fn snoop_control_that_one_of_the_units_lacks_is_a_reserved_bit() {
    for unit in [0, 1] {
        let mut world = World::arrived();
        world.states[unit].ecap = world.states[unit].ecap.with_sc(false);
        world.units[unit].ecap = world.states[unit].ecap.raw();
        world.seal();
        of_a(&world, Invariant::I3, A_L1 + 8, What::ReservedBits { bits: 1 << 11 });
    }
}

#[test]
fn reserved_bits_in_tables_and_leaves_are_found_at_their_entry() {
    let entry = entry_to(SMALL).raw();
    of_a(&with(A_L0, &[entry | 1 << 62]), Invariant::I3, A_L0, What::ReservedBits { bits: 1 << 62 });
    // A page-size bit above level 2 is no leaf but a reserved bit.
    let world = with(A, &[entry_to(A_L2).with_ps(true).raw()]);
    of_a(&world, Invariant::I1, A, What::ReservedBits { bits: 1 << 7 });
    // Low address bits of a large leaf.
    let world = with(A_L1 + 8, &[entry_to(SMALL + 0x3000).with_ps(true).raw()]);
    of_a(&world, Invariant::I3, A_L1 + 8, What::ReservedBits { bits: 0x3000 });
}

#[test]
fn a_table_pointing_to_itself_is_found_at_each_level() {
    for (table, level) in [(A, 3), (A_L2, 2), (A_L1, 1)] {
        let at = table + 8 * 200;
        let world = with(at, &[entry_to(table).raw()]);
        of_a(&world, Invariant::I1, at, What::TableReachedTwice { table, level: level - 1 });
    }
    // A leaf table pointing to itself is a leaf that reaches a table.
    let at = A_L0 + 8 * 200;
    let world = with(at, &[entry_to(A_L0).raw()]);
    let what = What::LeafOutside { iova: 200 << 12, output: A_L0, leaves: 1, bytes: 0x1000 };
    of_a(&world, Invariant::I3, at, what);
}

#[test]
fn a_table_pointing_to_itself_everywhere_ends_the_walk() {
    let world = with(A, &[entry_to(A).raw(); 512]);
    let (report, findings) = world.audit().unwrap();
    assert_eq!(findings.len(), 512);
    assert_eq!(report.totals.tables, 1 + 3, "the top table of A, and all of B");
}

#[test]
fn a_table_used_twice_is_found() {
    let at = A_L1 + 8 * 4;
    let world = with(at, &[entry_to(A_L0).raw()]);
    of_a(&world, Invariant::I1, at, What::TableReachedTwice { table: A_L0, level: 0 });
}

#[test]
fn a_table_of_another_domain_is_found() {
    let at = A_L1 + 8 * 4;
    let world = with(at, &[entry_to(B_L0).raw()]);
    of_a(&world, Invariant::I1, at, What::TableOfAnotherDomain { table: B_L0, owner: B_TOKEN });
}

#[test]
fn a_table_that_nobody_declared_is_found_and_not_entered() {
    let mut world = with(A_L1 + 8 * 4, &[entry_to(0x600_0000).raw()]);
    world.memory.write(0x600_0000, &[entry_to(0x9000_0000).raw(); 512]);
    of_a(&world, Invariant::I1, A_L1 + 32, What::TableNotDeclared { table: 0x600_0000, level: 0 });
    // Neither is a root table a page table.
    let world = with(A_L1 + 8 * 4, &[entry_to(world::ROOT).raw()]);
    of_a(&world, Invariant::I1, A_L1 + 32, What::TableNotDeclared { table: world::ROOT, level: 0 });
}

#[test]
fn a_top_table_that_is_not_the_domains_own_is_found() {
    let mut world = World::arrived();
    world.domains[0].top_table = B;
    world.seal();
    let finding = world.find(|what| matches!(what, What::TableOfAnotherDomain { .. }));
    assert_eq!((finding.invariant, finding.at), (Invariant::I1, world.record(kind::DOMAIN, 0)));
    world.domains[0].top_table = A + 8;
    world.seal();
    world.find(|what| matches!(what, What::TableNotDeclared { table, level: 3 } if *table == A + 8));
}

#[test]
fn five_levels_on_hardware_with_four_are_found_and_the_walk_ends() {
    let mut world = World::arrived();
    world.domains[0].levels = 5;
    for (ordinal, at) in [(0, world.entry(world::CONTEXT_0, 2, 0)), (2, world::CONTEXT_5_OF_1)] {
        world.change_entry(at, Some(ordinal), |entry| entry.with_aw(3));
    }
    world.digest();
    world.seal();
    let findings = world.findings();
    let levels: Vec<_> = findings
        .iter()
        .filter(|f| f.what == What::LevelsUnsupported { levels: 5 })
        .map(|f| (f.invariant, f.requester))
        .collect();
    assert_eq!(
        levels,
        [(Invariant::I1, Some(requester(0, 0, 2, 0))), (Invariant::I1, Some(requester(1, 5, 0, 0)))]
    );
    // Tables taken one level too high: what were leaves are tables now.
    assert!(findings.iter().any(|f| matches!(f.what, What::TableNotDeclared { level: 0, .. })));
}

#[test]
fn levels_and_formats_that_cannot_be_walked_are_found() {
    for levels in [0, 2, 6, 255] {
        let mut world = World::arrived();
        world.domains[0].levels = levels;
        world.seal();
        let finding = world.find(|what| *what == What::LevelsUnsupported { levels });
        assert_eq!((finding.invariant, finding.at), (Invariant::I1, world.record(kind::DOMAIN, 0)));
    }
    let mut world = World::arrived();
    world.domains[1].format = 1;
    world.seal();
    let finding = world.only();
    assert_eq!((finding.what, finding.domain), (What::FormatUnsupported { format: 1 }, Some(B_TOKEN)));
}

#[test]
fn a_table_that_changed_after_the_seal_is_a_violation_of_i4() {
    for mut world in [World::arrived(), World::sealed()] {
        // A leaf moved within its region: nothing but the digest can tell.
        world.memory.write(B_L0, &[entry_to(SMALL + 0x9000).raw()]);
        let finding = world.only();
        assert!(matches!(finding.what, What::Differs { item: Item::DomainDigest, .. }));
        assert_eq!((finding.invariant, finding.domain, finding.at), (Invariant::I4, Some(B_TOKEN), B));
        assert_eq!(finding.requester, Some(requester(0, 0, 3, 0)));
    }
}

#[test]
fn the_order_of_the_runs_is_part_of_the_digest() {
    let mut world = World::arrived();
    world.tables.swap(0, 2);
    world.seal();
    assert!(matches!(world.only().what, What::Differs { item: Item::DomainDigest, .. }));
}

#[test]
fn a_number_of_table_frames_that_lies_is_found() {
    let mut world = World::arrived();
    world.domains[1].table_frames = 4;
    world.seal();
    let finding = world.only();
    assert_eq!(finding.what, What::Differs { item: Item::TableFrames, sealed: 4, found: 3 });
    assert_eq!((finding.invariant, finding.at), (Invariant::I4, world.record(kind::DOMAIN, 1)));
}

#[test]
fn a_leaf_table_that_is_missing_is_found_and_the_other_domain_is_walked() {
    let mut world = World::arrived();
    world.memory.remove(A_L0);
    let (report, findings) = world.audit().unwrap();
    assert!(
        findings.iter().all(|f| f.what == What::Unreadable(Role::DomainTable) && f.domain == Some(A_TOKEN))
    );
    assert_eq!(report.totals.leaves, world::LEAVES - 16);
}

#[test]
fn a_domain_that_nobody_uses_is_walked_all_the_same() {
    let mut world = with(B_L1, &[entry_to(0x600_0000).raw()]);
    world.requesters.remove(1);
    world.requesters.truncate(1);
    world.aliases.clear();
    world.seal();
    let finding = world.find(|what| matches!(what, What::TableNotDeclared { .. }));
    assert_eq!((finding.requester, finding.domain), (None, Some(B_TOKEN)));
}
