//! Page tables of scalable mode: the first stage, alone and below a second one, and the bits that hardware writes by
//! itself (I1, I3, I4).

mod world;

use holdover_audit::{Invariant, Item, Role, What};
use world::scalable::{F, G, N_LEAVES, N_TOP, S, TOKENS, pasid_at, to};
use world::{LARGE, SMALL, World, entry_to, requester};

fn with(at: u64, words: &[u64]) -> World {
    let mut world = World::scalable_arrived();
    world.memory.write(at, words);
    world.digest();
    world.seal();
    world
}

#[track_caller]
fn only(world: &World, invariant: Invariant, at: u64, what: What) {
    let finding = world.only();
    assert_eq!((finding.invariant, finding.at, finding.what), (invariant, at, what));
    let upper = finding.domain == Some(TOKENS[3]);
    assert_eq!(finding.requester, Some(requester(0, 0, if upper { 0x10 } else { 2 }, 0)));
}

#[test]
fn a_leaf_outside_of_every_region_is_a_violation_of_i3_at_each_size() {
    let outside = |iova, output, bytes| What::LeafOutside { iova, output, leaves: 1, bytes };
    let at = F + 0x3000 + 8 * 9;
    only(&with(at, &[to(0x9000_0000).raw()]), Invariant::I3, at, outside(0x9000, 0x9000_0000, 0x1000));
    // Not writable, not for user requests: still a leaf.
    let entry = to(0x9000_0000).with_rw(false).with_us(false);
    only(&with(at, &[entry.raw()]), Invariant::I3, at, outside(0x9000, 0x9000_0000, 0x1000));
    assert_eq!(with(at, &[entry.with_present(false).raw()]).findings(), []);
    let at = F + 0x2000 + 8 * 2;
    let world = with(at, &[to(SMALL + 0x20_0000).with_ps(true).raw()]);
    only(&world, Invariant::I3, at, outside(0x40_0000, SMALL + 0x20_0000, 0x20_0000));
    let at = F + 0x1000 + 8 * 2;
    let world = with(at, &[to(2 * LARGE).with_ps(true).raw()]);
    only(&world, Invariant::I3, at, outside(0x8000_0000, 2 * LARGE, 0x4000_0000));
    // The bit of the page attribute table in a large leaf is no part of the address.
    let world = with(F + 0x2000 + 8, &[to(SMALL).with_ps(true).raw() | 1 << 12]);
    assert_eq!(world.findings(), []);
}

#[test]
fn the_upper_half_of_the_input_is_named_as_devices_put_it() {
    let mut world = World::scalable_arrived();
    world.memory.write(F + 8 * 511, &[to(F + 0x1000).raw()]);
    world.memory.write(F, &[0]);
    world.memory.write(F + 0x3000 + 8 * 9, &[to(0x9000_0000).raw()]);
    world.digest();
    world.seal();
    let iova = 0xffff_ff80_0000_9000;
    let what = What::LeafOutside { iova, output: 0x9000_0000, leaves: 1, bytes: 0x1000 };
    only(&world, Invariant::I3, F + 0x3000 + 72, what);
    // Five levels: one bit more than 48 is no sign yet.
    let mut world = World::scalable_arrived();
    world.memory.write(G, &[0, to(G + 0x1000).raw()]);
    world.memory.write(G + 0x4000, &[to(0x9000_0000).raw()]);
    world.digest();
    world.seal();
    let what = What::LeafOutside { iova: 1 << 48, output: 0x9000_0000, leaves: 1, bytes: 0x1000 };
    only(&world, Invariant::I3, G + 0x4000, what);
}

#[test]
fn reserved_bits_of_the_first_stage_are_found() {
    let world = with(F, &[to(F + 0x1000).with_ps(true).raw()]);
    only(&world, Invariant::I1, F, What::ReservedBits { bits: 1 << 7 });
    let at = F + 0x2000 + 8;
    let world = with(at, &[to(SMALL).with_ps(true).raw() | 3 << 13]);
    only(&world, Invariant::I3, at, What::ReservedBits { bits: 3 << 13 });
    // What the second stage reserves is ignored here.
    assert_eq!(with(F + 0x3000, &[to(SMALL).raw() | 1 << 62 | 1 << 11]).findings(), []);
}

#[test]
fn large_leaves_need_what_the_unit_offers_for_the_first_stage() {
    let mut world = World::scalable_arrived();
    world.states[0].cap = world.states[0].cap.with_fs1gp(false);
    world.units[0].cap = world.states[0].cap.raw();
    world.seal();
    only(&world, Invariant::I3, F + 0x1008, What::LeafSizeUnsupported { level: 2 });
    // The sizes of the second stage speak of that alone.
    let mut world = World::scalable_arrived();
    world.states[0].cap = world.states[0].cap.with_sslps(0);
    world.units[0].cap = world.states[0].cap.raw();
    world.seal();
    only(&world, Invariant::I3, S + 0x2008, What::LeafSizeUnsupported { level: 1 });
}

#[test]
fn cycles_and_foreign_tables_in_the_first_stage_are_found() {
    let at = G + 0x2000 + 8;
    let world = with(at, &[to(G).raw()]);
    only(&world, Invariant::I1, at, What::TableReachedTwice { table: G, level: 1 });
    let world = with(at, &[to(F + 0x3000).raw()]);
    only(&world, Invariant::I1, at, What::TableOfAnotherDomain { table: F + 0x3000, owner: TOKENS[1] });
    let world = with(at, &[to(0x600_0000).raw()]);
    only(&world, Invariant::I1, at, What::TableNotDeclared { table: 0x600_0000, level: 1 });
}

#[test]
fn accessed_and_dirty_bits_that_hardware_writes_are_no_violation() {
    for mut world in [World::scalable_arrived(), World::scalable_sealed()] {
        for table in [F, F + 0x1000, F + 0x2000, F + 0x3000, G, G + 0x4000, N_TOP, N_LEAVES] {
            let word = world.memory.read(table, 1)[0];
            world.memory.write(table, &[word | 1 << 5 | 1 << 6]);
        }
        for table in [S, S + 0x1000, S + 0x2000, S + 0x3000] {
            let word = world.memory.read(table, 1)[0];
            world.memory.write(table, &[word | 1 << 8 | 1 << 9]);
        }
        assert_eq!(world.findings(), []);
    }
}

#[test]
fn any_other_bit_that_changed_after_the_seal_is_a_violation_of_i4() {
    let first: Vec<u32> = vec![1, 2, 3, 4, 8, 9, 10, 11, 52, 63];
    let second: Vec<u32> = vec![2, 3, 5, 6, 10, 52];
    for (table, bits, token) in
        [(F + 0x3000, first.clone(), 1), (N_LEAVES, first, 2), (S + 0x3000, second, 0)]
    {
        for bit in bits {
            let mut world = World::scalable_arrived();
            let word = world.memory.read(table, 1)[0];
            world.memory.write(table, &[word ^ 1 << bit]);
            let finding = world.find(|what| matches!(what, What::Differs { item: Item::DomainDigest, .. }));
            assert_eq!(
                (finding.invariant, finding.domain),
                (Invariant::I4, Some(TOKENS[token])),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn without_an_entry_that_lets_hardware_write_them_the_second_stages_bits_are_sealed() {
    // Legacy mode.
    let mut world = World::arrived();
    let word = world.memory.read(world::A_L0, 1)[0];
    world.memory.write(world::A_L0, &[word | 1 << 8]);
    assert!(matches!(world.only().what, What::Differs { item: Item::DomainDigest, .. }));
    // Scalable mode: one entry that names the domain is enough.
    let mut world = World::scalable_arrived();
    let ats = [(world::scalable::TABLE_0, 0, 0), (world::scalable::TABLE_64, 70, 2)];
    for (table, pasid, ordinal) in ats {
        world.change_pasid(pasid_at(table, pasid), Some(ordinal), |entry| entry.with_ssade(false));
    }
    let at = pasid_at(world::scalable::TABLE_OF_10, 1);
    let mut all = world.clone();
    all.change_pasid(at, Some(4), |entry| entry.with_ssade(false));
    // Or as parent alone.
    let mut parent = all.clone();
    let ats = (pasid_at(world::scalable::TABLE_64, 70), Some(2));
    parent.change_pasid(ats.0, ats.1, |entry| entry.with_ssade(true));
    for (mut world, violations) in [(world, 0), (all, 1), (parent, 0)] {
        let word = world.memory.read(S + 0x3000, 1)[0];
        world.memory.write(S + 0x3000, &[word | 1 << 9]);
        assert_eq!(world.findings().len(), violations);
    }
}

#[test]
fn pointers_below_a_second_stage_are_the_parents_addresses() {
    // A table pointer that the parent does not translate.
    let at = N_TOP + 8;
    let world = with(at, &[to(0x1_0000).raw()]);
    only(&world, Invariant::I1, at, What::TableBeyondParent { table: 0x1_0000, level: 2 });
    // One that it translates to a page that is no table of the domain.
    let world = with(at, &[to(0x7000).raw()]);
    only(&world, Invariant::I1, at, What::TableNotDeclared { table: SMALL + 0x8000, level: 2 });
    // A physical address is none of the parent's.
    let world = with(at, &[to(N_LEAVES).raw()]);
    only(&world, Invariant::I1, at, What::TableBeyondParent { table: N_LEAVES, level: 2 });
}

#[test]
fn nothing_is_translated_through_tables_that_the_parent_did_not_declare() {
    // A table that nobody declared, and one of another domain.
    for table in [0x600_0000, F + 0x3000] {
        let mut world = World::scalable_arrived();
        let leaves = world.memory.read(S + 0x3000, 512);
        world.memory.write(0x600_0000, &leaves);
        world.memory.write(S + 0x2000, &[entry_to(table).raw()]);
        world.digest();
        world.seal();
        let finding = world.find(|what| *what == What::TableBeyondParent { table: 0, level: 3 });
        assert_eq!((finding.invariant, finding.domain), (Invariant::I1, Some(TOKENS[2])));
    }
}

#[test]
fn leaves_below_a_second_stage_must_be_taken_up_by_it() {
    let at = N_LEAVES + 8;
    assert_eq!(with(at, &[to(0xf000).raw()]).findings(), []);
    let world = with(at, &[to(0x1_0000).raw()]);
    only(&world, Invariant::I3, at, What::LeafBeyondParent { iova: 0x1000, output: 0x1_0000 });
    // A large leaf whose first page the parent knows, but not the last.
    let at = N_TOP - 0x2000 + 16;
    let world = with(at, &[to(0).with_ps(true).raw()]);
    only(&world, Invariant::I3, at, What::LeafBeyondParent { iova: 0x40_0000, output: 0 });
    // And the other way round.
    let mut world = with(at, &[to(0).with_ps(true).raw()]);
    world.memory.write(S + 0x3000, &[0]);
    world.memory.write(S + 0x3000 + 8 * 511, &[entry_to(SMALL).raw()]);
    world.digest();
    world.seal();
    world.find(|what| *what == What::LeafBeyondParent { iova: 0x40_0000, output: 0 });
}

#[test]
fn what_the_parent_leads_to_is_judged_with_the_parent() {
    let at = S + 0x3000 + 8 * 9;
    let world = with(at, &[entry_to(0x9000_0000).raw()]);
    let what = What::LeafOutside { iova: 0x9000, output: 0x9000_0000, leaves: 1, bytes: 0x1000 };
    only(&world, Invariant::I3, at, what);
}

#[test]
fn an_execute_bit_makes_an_entry_present_only_where_it_counts() {
    let execute = entry_to(0x9000_0000).with_r(false).with_w(false).with_x(true).raw();
    let at = S + 0x3000 + 8 * 20;
    let mut world = with(at, &[execute]);
    assert_eq!(world.findings(), []);
    world.change_pasid(pasid_at(world::scalable::TABLE_0, 0), Some(0), |entry| entry.with_ssee(true));
    let what = What::LeafOutside { iova: 0x1_4000, output: 0x9000_0000, leaves: 1, bytes: 0x1000 };
    only(&world, Invariant::I3, at, what);
}

#[test]
fn only_tables_below_a_second_stage_may_lie_in_a_region() {
    // N's do. F's do not.
    let mut world = World::scalable_arrived();
    world.regions.push(spec::handover::Region { token: 0x99, start: F, bytes: 0x4000, kind: 0, reserved: 0 });
    world.seal();
    let finding = world.only();
    assert_eq!((finding.invariant, finding.at), (Invariant::I3, F));
    assert_eq!(finding.what, What::TableInRegion { role: Role::DomainTable, region: 0x99 });
}

#[test]
fn three_levels_are_none_of_the_first_stage() {
    let mut world = World::scalable_arrived();
    world.domains[1].levels = 3;
    world.seal();
    let finding = world.find(|what| *what == What::LevelsUnsupported { levels: 3 });
    assert_eq!((finding.invariant, finding.domain), (Invariant::I1, Some(TOKENS[1])));
}
