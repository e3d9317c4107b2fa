//! Scalable mode: a sound machine, and damage to root entries, context entries, PASID directories, tables, entries and
//! the records of them (I1, I2, I3, I4, I5, I10).

mod world;

use holdover_audit::{Invariant, Item, RecordKind, Role, Stage, What};
use spec::Requester;
use spec::handover::{DomainIdUse, kind};
use spec::scalable::{PasidEntry, ScalableContextEntry, pasid_type};
use world::scalable::{
    DIR_2, DIR_10, F, G, LEAVES, LOWER, OF_1, OF_3, ROOT, S, TABLE_0, TABLE_64, TABLE_40000, TABLE_OF_10,
    TOKENS, UPPER, directory, first, pasid_at, second,
};
use world::{BASE, World, requester};

fn nic() -> Requester {
    requester(0, 0, 2, 0)
}

fn upper() -> Requester {
    requester(0, 0, 0x10, 0)
}

/// Other words at `at`, in agreement with the digests.
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
}

/// The damage is found, apart from the digest that it changes.
#[track_caller]
fn found(world: &World, invariant: Invariant, at: u64, wanted: What) {
    let finding = world.find(|what| *what == wanted);
    assert_eq!((finding.invariant, finding.at), (invariant, at));
}

#[test]
fn a_sound_handover_has_no_finding_and_all_is_counted() {
    let (report, findings) = World::scalable_arrived().audit().unwrap();
    assert_eq!(findings, []);
    let totals = report.totals;
    assert_eq!((totals.units, totals.context_tables, totals.kept_entries), (1, 3, 3));
    assert_eq!((totals.pasid_tables, totals.kept_pasids), (6, 6));
    assert_eq!((totals.tables, totals.leaves, totals.unreached_tables), (17, LEAVES, 0));
    // Root, three context tables, seven frames of PASID structures, 17 page tables.
    assert_eq!(totals.bytes_hashed, (1 + 3 + 7 + 17) * 4096);
    let items = report.checked.map(|line| line.items);
    assert_eq!(items[1], 3 + 3 + 4 + 6, "I2: root pointers, context, directory and PASID entries");
    assert_eq!(items[4], 4 + 6, "I5: records and PASID entries");
}

#[test]
fn before_the_cut_off_strangers_are_counted_and_not_reported() {
    let (report, findings) = World::scalable_sealed().audit().unwrap();
    assert_eq!(findings, []);
    let totals = report.totals;
    assert_eq!((totals.entries_to_cut_off, totals.root_entries_to_cut_off), (3, 1));
    assert_eq!((totals.pasids_to_cut_off, totals.pasid_tables_to_cut_off), (2, 1));
    assert_eq!((totals.kept_entries, totals.kept_pasids), (3, 6));
}

#[test]
fn a_cut_off_that_forgot_a_half_is_a_violation_of_i2() {
    // The upper half of bus 1: the lower one has none.
    let mut world = World::scalable_arrived();
    world.memory.write(ROOT + 24, &[OF_1 | 1]);
    let stranger = requester(0, 1, 0x10, 0);
    let finding = world.find(|what| *what == What::BusNotListed { bus: 1 });
    assert_eq!((finding.invariant, finding.at), (Invariant::I2, ROOT + 24));
    assert_eq!(finding.requester, Some(stranger));
    let finding = world.find(|what| *what == What::EntryNotOwned);
    assert_eq!((finding.requester, finding.at), (Some(stranger), OF_1));
    // The second half of a bus whose first is listed.
    let mut world = World::scalable_arrived();
    world.memory.write(ROOT + 16 * 3 + 8, &[OF_1 | 1]);
    found(&world, Invariant::I2, ROOT + 16 * 3 + 8, What::BusNotListed { bus: 3 });
}

#[test]
fn a_neighbour_in_either_half_is_a_violation_of_i2() {
    for (at, device) in [(LOWER + 32 * 0x20, 4), (UPPER + 32 * 0x78, 0x1f)] {
        let mut world = World::scalable_arrived();
        world.memory.write(at, &world::scalable::context(0x7777_7000, 0, 0));
        let finding = world.find(|what| *what == What::EntryNotOwned);
        let stranger = Some(requester(0, 0, device, 0));
        assert_eq!((finding.invariant, finding.at, finding.requester), (Invariant::I2, at, stranger));
        assert!(world.findings().iter().all(|finding| finding.requester == stranger));
    }
}

#[test]
fn a_pasid_and_a_pasid_table_of_nobody_are_violations_of_i2() {
    let mut world = World::scalable_arrived();
    let at = pasid_at(TABLE_0, 6);
    world.memory.write(at, &first(0x7777_5000, 0, 9).raw());
    let finding = world.find(|what| *what == What::PasidNotListed { pasid: 6 });
    assert_eq!((finding.invariant, finding.at, finding.requester), (Invariant::I2, at, Some(nic())));
    let mut world = World::scalable_arrived();
    world.memory.write(DIR_2 + 8 * 3, &[directory(0x7777_6000)]);
    found(&world, Invariant::I2, DIR_2 + 24, What::PasidTableNotListed { first_pasid: 192 });
    // In the second frame of a directory larger than one.
    let mut world = World::scalable_arrived();
    world.memory.write(DIR_2 + 8 * 1023, &[directory(0x7777_6000)]);
    found(&world, Invariant::I2, DIR_2 + 8 * 1023, What::PasidTableNotListed { first_pasid: 65472 });
}

#[test]
fn what_hardware_does_not_read_of_a_small_directory_is_covered_by_the_digest_alone() {
    // 128 entries are in use.
    let mut world = World::scalable_arrived();
    world.memory.write(DIR_10 + 8 * 128, &[directory(0x7777_6000)]);
    assert!(matches!(world.only().what, What::Differs { item: Item::UnitDigest, .. }));
    let mut world = World::scalable_arrived();
    world.memory.write(DIR_10 + 8 * 127, &[directory(0x7777_6000)]);
    found(&world, Invariant::I2, DIR_10 + 8 * 127, What::PasidTableNotListed { first_pasid: 8128 });
}

#[test]
fn a_bit_left_in_a_cleared_pasid_entry_shows_in_the_digest() {
    for (at, word) in [(pasid_at(TABLE_0, 6) + 56, 1 << 9), (DIR_2 + 24, 0x7777_6000)] {
        let mut world = World::scalable_arrived();
        world.memory.write(at, &[word]);
        let finding = world.only();
        assert!(matches!(finding.what, What::Differs { item: Item::UnitDigest, .. }));
        assert_eq!((finding.invariant, finding.at), (Invariant::I4, ROOT));
    }
}

#[test]
fn the_order_of_the_pasid_structures_is_part_of_the_units_digest() {
    for mut world in [World::scalable_arrived(), World::scalable_sealed()] {
        world.pasids.swap(2, 4);
        world.seal();
        assert!(matches!(world.only().what, What::Differs { item: Item::UnitDigest, .. }));
    }
}

#[test]
fn every_word_of_a_context_entry_is_compared() {
    let items =
        [Item::ContextEntryLow, Item::ContextEntryHigh, Item::ContextEntryWord(2), Item::ContextEntryWord(3)];
    for (word, item) in (0u64..).zip(items) {
        let at = UPPER + 8 * word;
        let mut world = World::scalable_arrived();
        let sealed = world.memory.read(at, 1)[0];
        world.memory.write(at, &[sealed ^ 1 << 63]);
        found(&world, Invariant::I4, at, What::Differs { item, sealed, found: sealed ^ 1 << 63 });
    }
}

#[test]
fn an_alias_whose_entry_differs_or_is_gone_is_named_itself() {
    let mut world = World::scalable_arrived();
    world.memory.write(OF_3, &[0]);
    let finding = world.find(|what| *what == What::EntryNotPresent);
    assert_eq!((finding.invariant, finding.at), (Invariant::I4, OF_3));
    assert_eq!(finding.requester, Some(requester(0, 3, 0, 0)));
    let mut world = World::scalable_arrived();
    world.memory.write(OF_3, &world::scalable::context(DIR_2, 0, 1));
    let finding =
        world.find(|what| matches!(what, What::Differs { item: Item::PasidDirectory, sealed: DIR_10, .. }));
    assert_eq!(finding.requester, Some(requester(0, 3, 0, 0)));
}

#[test]
fn every_word_of_a_pasid_entry_is_compared() {
    for word in 0..8u8 {
        let at = pasid_at(TABLE_40000, 40000) + 8 * u64::from(word);
        let mut world = World::scalable_arrived();
        let sealed = world.memory.read(at, 1)[0];
        let changed = sealed ^ 1 << 40;
        world.memory.write(at, &[changed]);
        let item = Item::PasidEntryWord(word);
        let finding = world.find(|what| *what == What::Differs { item, sealed, found: changed });
        assert_eq!((finding.invariant, finding.at, finding.domain), (Invariant::I4, at, Some(TOKENS[1])));
        assert_eq!(finding.requester, Some(nic()));
    }
}

#[test]
fn a_pasid_that_lost_its_entry_is_a_violation_of_i4() {
    for mut world in [World::scalable_arrived(), World::scalable_sealed()] {
        let at = pasid_at(TABLE_64, 70);
        world.memory.write(at, &[0]);
        world.digest();
        world.seal();
        only(&world, Invariant::I4, at, What::PasidNotPresent { pasid: 70 });
    }
}

#[test]
fn a_directory_entry_that_leads_elsewhere_is_a_violation_of_i4() {
    for found in [0, TABLE_64] {
        let entry = if found == 0 { TABLE_0 } else { directory(found) };
        let what = What::Differs { item: Item::PasidTable, sealed: TABLE_0, found };
        only(&with(DIR_2, &[entry]), Invariant::I4, DIR_2, what);
    }
}

#[test]
fn reserved_bits_at_every_level_are_violations_of_i1() {
    let world = with(DIR_2, &[directory(TABLE_0) | 1 << 2]);
    only(&world, Invariant::I1, DIR_2, What::ReservedBits { bits: 1 << 2 });
    let world = with(ROOT + 8, &[UPPER | 1 | 1 << 5]);
    only(&world, Invariant::I1, ROOT + 8, What::ReservedBits { bits: 1 << 5 });
    // A device-TLB, page requests and a PASID for requests without one that the unit does not offer.
    let bits = |f: fn(ScalableContextEntry) -> ScalableContextEntry, rps: bool, word: u64, bits: u64| {
        let mut world = World::scalable_arrived();
        world.states[0].ecap = world.states[0].ecap.with_rps(rps);
        world.units[0].ecap = world.states[0].ecap.raw();
        let words: [u64; 4] = world.memory.read(LOWER + 32 * 0x10, 4).try_into().unwrap();
        let changed = f(ScalableContextEntry::from_raw(words)).raw();
        world.memory.write(LOWER + 32 * 0x10, &changed);
        world.requesters[0].context = [changed[0], changed[1]];
        world.digest();
        world.seal();
        let finding = world.find(|what| *what == What::ReservedBits { bits });
        assert_eq!((finding.invariant, finding.at), (Invariant::I1, LOWER + 32 * 0x10 + 8 * word));
    };
    bits(|entry| entry.with_dte(true), true, 0, 1 << 2);
    bits(|entry| entry.with_pre(true), true, 0, 1 << 4);
    bits(|entry| entry.with_rid_pasid(5), false, 1, 5);
}

/// A PASID entry as sealed, and what is found about it.
#[track_caller]
fn agreed(
    table: u64,
    pasid: u64,
    ordinal: usize,
    change: impl FnOnce(PasidEntry) -> PasidEntry,
) -> (World, u64) {
    let mut world = World::scalable_arrived();
    let at = pasid_at(table, pasid);
    world.change_pasid(at, Some(ordinal), change);
    (world, at)
}

#[test]
fn reserved_and_unsupported_bits_of_a_pasid_entry_are_found_word_by_word() {
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_pwsnp(true));
    only(&world, Invariant::I1, at + 8, What::ReservedBits { bits: 1 << 23 });
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_sre(true).with_ere(true));
    only(&world, Invariant::I1, at + 16, What::ReservedBits { bits: 3 });
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_fsptptr(F >> 12 | 1 << 48));
    found(&world, Invariant::I1, at + 16, What::ReservedBits { bits: 1 << 60 });
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| {
        let [a, b, c, d, e, f, g, _] = entry.raw();
        PasidEntry::from_raw([a, b, c, d, e, f, g, 4])
    });
    only(&world, Invariant::I1, at + 56, What::ReservedBits { bits: 4 });
    let mut world = World::scalable_arrived();
    world.states[0].ecap = world.states[0].ecap.with_ssads(false);
    world.units[0].ecap = world.states[0].ecap.raw();
    world.seal();
    found(&world, Invariant::I1, pasid_at(TABLE_OF_10, 1), What::ReservedBits { bits: 1 << 9 });
}

#[test]
fn extended_accessed_bits_are_refused() {
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_eafe(true));
    only(&world, Invariant::I4, at, What::ExtendedAccess);
}

#[test]
fn a_preserved_pasid_in_pass_through_is_a_violation_of_i3() {
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_pgtt(pasid_type::PASS_THROUGH));
    let finding = world.only();
    assert_eq!((finding.invariant, finding.at, finding.what), (Invariant::I3, at, What::PassThrough));
    assert_eq!(finding.requester, Some(nic()));
}

#[test]
fn translation_types_that_the_unit_lacks_are_found() {
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_pgtt(7));
    only(&world, Invariant::I1, at, What::TranslationTypeUnsupported { tt: 7 });
    for (tt, ats) in [
        (1, vec![pasid_at(TABLE_OF_10, 2), pasid_at(TABLE_40000, 40000), pasid_at(TABLE_0, 5)]),
        (2, vec![pasid_at(TABLE_OF_10, 1), pasid_at(TABLE_0, 0)]),
        (3, vec![pasid_at(TABLE_64, 70)]),
    ] {
        let mut world = World::scalable_arrived();
        let ecap = world.states[0].ecap;
        world.states[0].ecap = [ecap.with_fsts(false), ecap.with_ssts(false), ecap.with_nest(false)][tt - 1];
        world.units[0].ecap = world.states[0].ecap.raw();
        world.seal();
        let found: Vec<_> = world.findings().iter().map(|f| (f.what, f.at)).collect();
        let what = What::TranslationTypeUnsupported { tt: tt as u8 };
        assert_eq!(found, ats.into_iter().map(|at| (what, at)).collect::<Vec<_>>());
    }
}

#[test]
fn levels_that_the_unit_lacks_are_found_in_either_stage() {
    let mut world = World::scalable_arrived();
    world.states[0].cap = world.states[0].cap.with_fs5lp(false);
    world.units[0].cap = world.states[0].cap.raw();
    world.seal();
    only(&world, Invariant::I1, pasid_at(TABLE_OF_10, 2), What::LevelsUnsupported { levels: 5 });
    let mut world = World::scalable_arrived();
    world.states[0].cap = world.states[0].cap.with_sagaw(0b00010);
    world.units[0].cap = world.states[0].cap.raw();
    world.seal();
    let found: Vec<_> = world.findings().iter().map(|f| (f.what, f.at)).collect();
    let what = What::LevelsUnsupported { levels: 4 };
    let ats = [pasid_at(TABLE_OF_10, 1), pasid_at(TABLE_0, 0), pasid_at(TABLE_64, 70)];
    assert_eq!(found, ats.map(|at| (what, at)));
}

#[test]
fn an_entry_that_leads_to_other_tables_than_its_domains_is_a_violation_of_i1() {
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_fsptptr(G >> 12));
    only(&world, Invariant::I1, at, What::Differs { item: Item::TopTable, sealed: F, found: G });
    let (world, at) = agreed(TABLE_0, 0, 0, |entry| entry.with_ssptptr(F >> 12));
    only(&world, Invariant::I1, at, What::Differs { item: Item::TopTable, sealed: S, found: F });
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_fspm(1));
    only(&world, Invariant::I1, at, What::Differs { item: Item::Levels, sealed: 4, found: 5 });
    // The right top table, walked as the other stage.
    let (world, at) = agreed(TABLE_0, 5, 1, |_| second(2).with_ssptptr(F >> 12));
    only(&world, Invariant::I1, at, What::Differs { item: Item::Format, sealed: 1, found: 0 });
}

#[test]
fn a_nested_entry_is_checked_against_both_domains() {
    let nested = |f: fn(PasidEntry) -> PasidEntry| agreed(TABLE_64, 70, 2, f);
    let (world, at) = nested(|entry| entry.with_ssptptr(F >> 12));
    only(&world, Invariant::I1, at, What::Differs { item: Item::TopTable, sealed: S, found: F });
    // An address of the parent that leads to another page, and one that it does not know.
    let (world, at) = nested(|entry| entry.with_fsptptr(1));
    let (sealed, found) = (world::scalable::N_TOP, world::scalable::N_TOP - 0x1000);
    only(&world, Invariant::I1, at, What::Differs { item: Item::TopTable, sealed, found });
    let (world, at) = nested(|entry| entry.with_fsptptr(0x10));
    only(&world, Invariant::I1, at, What::TableBeyondParent { table: 0x1_0000, level: 3 });
}

#[test]
fn a_parent_that_is_missing_or_does_not_belong_is_found() {
    let mut world = World::scalable_arrived();
    world.attachments[2].parent = 0;
    world.seal();
    found(&world, Invariant::I4, pasid_at(TABLE_64, 70), What::ParentWrong { pasid: 70 });
    let mut world = World::scalable_arrived();
    world.attachments[5].parent = 1;
    world.seal();
    found(&world, Invariant::I4, pasid_at(TABLE_OF_10, 2), What::ParentWrong { pasid: 2 });
    let mut world = World::scalable_arrived();
    world.attachments[1].domain = 2;
    world.seal();
    found(&world, Invariant::I4, world.record(kind::ATTACHMENT, 2), What::ParentsDiffer);
}

#[test]
fn domain_ids_of_pasid_entries_are_checked_against_the_records() {
    let (world, at) = agreed(TABLE_0, 5, 1, |entry| entry.with_did(1));
    only(&world, Invariant::I5, at, What::DomainIdDiffers { recorded: 2, found: 1 });
    let mut world = World::scalable_arrived();
    world.ids.remove(3);
    world.seal();
    only(&world, Invariant::I5, pasid_at(TABLE_OF_10, 2), What::DomainIdMissing);
    let mut world = World::scalable_arrived();
    world.ids[3].id = 2;
    world.seal();
    let finding = world.find(|what| matches!(what, What::DomainIdTwice { id: 2, .. }));
    assert_eq!(finding.invariant, Invariant::I5);
}

#[test]
fn requests_without_pasid_need_an_attachment_of_the_requesters_domain() {
    let mut world = World::scalable_arrived();
    world.requesters[0].domain = 1;
    world.seal();
    let what = What::Differs { item: Item::DomainWithoutPasid, sealed: 1, found: 0 };
    only(&world, Invariant::I4, LOWER + 32 * 0x10, what);
    let mut world = World::scalable_arrived();
    world.attachments.remove(4);
    world.memory.write(pasid_at(TABLE_OF_10, 1), &[0; 8]);
    world.digest();
    world.seal();
    let found: Vec<_> = world.findings().iter().map(|f| (f.what, f.requester)).collect();
    let what = What::NoAttachment { pasid: 1 };
    assert_eq!(found, [(what, Some(upper())), (what, Some(requester(0, 3, 0, 0)))]);
}

#[test]
fn pasid_frames_that_are_not_preserved_or_missing_are_violations_of_i1() {
    for (frame, role) in [(DIR_2 + 0x1000, Role::PasidDirectory), (TABLE_64, Role::PasidTable)] {
        let mut world = World::scalable_arrived();
        world.preserved.retain(|(start, _)| *start != DIR_2);
        world.preserved.extend([(DIR_2, frame - DIR_2), (frame + 0x1000, DIR_2 + 0x6000 - frame)]);
        // The map is written anew at the same place.
        for page in 0..16 {
            world.memory.remove(world::MAP + page * 0x1000);
        }
        world.seal();
        only(&world, Invariant::I1, frame, What::NotPreserved(role));
        let mut world = World::scalable_arrived();
        world.memory.remove(frame);
        only(&world, Invariant::I1, frame, What::Unreadable(role));
    }
}

#[test]
fn records_of_pasid_structures_that_lie_are_found() {
    let damaged = |damage: fn(&mut World)| {
        let mut world = World::scalable_arrived();
        damage(&mut world);
        world.seal();
        world
    };
    let at = |world: &World, of, n| world.record(of, n);
    let world = damaged(|world| world.pasids[1].bytes = 0x1000);
    let what = What::Differs { item: Item::PasidDirectoryBytes, sealed: 0x1000, found: 0x2000 };
    found(&world, Invariant::I4, at(&world, kind::PASID_TABLES, 1), what);
    let world = damaged(|world| world.pasids[2].first_pasid = 40001);
    found(&world, Invariant::I4, at(&world, kind::PASID_TABLES, 2), What::BadRange(RecordKind::PasidTables));
    found(&world, Invariant::I4, at(&world, kind::ATTACHMENT, 3), What::NoPasidTable { pasid: 40000 });
    let world = damaged(|world| world.pasids[0].first_pasid = 128 * 64);
    found(&world, Invariant::I4, at(&world, kind::PASID_TABLES, 0), What::NoPasidTable { pasid: 8192 });
    let world = damaged(|world| {
        world.pasids[0].first_pasid = 128 * 64;
        world.attachments[5].pasid = 128 * 64 + 2;
    });
    found(&world, Invariant::I4, at(&world, kind::ATTACHMENT, 5), What::NoPasidTable { pasid: 8194 });
    let world = damaged(|world| world.pasids.truncate(5));
    found(&world, Invariant::I4, UPPER, What::NoPasidDirectory);
    let world = damaged(|world| world.pasids.push(world.pasids[3]));
    found(
        &world,
        Invariant::I4,
        at(&world, kind::PASID_TABLES, 6),
        What::RecordTwice(RecordKind::PasidTables),
    );
    let world = damaged(|world| world.attachments.push(world.attachments[3]));
    found(&world, Invariant::I4, at(&world, kind::ATTACHMENT, 6), What::RecordTwice(RecordKind::Attachment));
    let world = damaged(|world| world.attachments[0].pasid = 1 << 20);
    found(&world, Invariant::I4, at(&world, kind::ATTACHMENT, 0), What::NoPasidTable { pasid: 1 << 20 });
    for damage in [
        (|world| world.attachments[0].requester = 9) as fn(&mut World),
        |world| world.attachments[0].domain = 9,
        |world| world.attachments[0].parent = 10,
    ] {
        let world = damaged(damage);
        let finding = world
            .find(|what| matches!(what, What::Dangling { from: RecordKind::Attachment, ordinal: 9, .. }));
        assert_eq!(finding.at, at(&world, kind::ATTACHMENT, 0));
    }
    let world = damaged(|world| world.contexts[0].half = 2);
    found(&world, Invariant::I4, at(&world, kind::CONTEXT_TABLE, 0), What::HalfUnsupported { half: 2 });
    let world = damaged(|world| world.contexts.push(world.contexts[1]));
    found(
        &world,
        Invariant::I4,
        at(&world, kind::CONTEXT_TABLE, 3),
        What::RecordTwice(RecordKind::ContextTable),
    );
}

#[test]
fn a_requester_whose_half_has_no_context_table_record_is_found() {
    let mut world = World::scalable_arrived();
    world.contexts.remove(1);
    world.digest();
    world.seal();
    let finding = world.find(|what| *what == What::NoContextTable);
    assert_eq!((finding.invariant, finding.requester), (Invariant::I4, Some(upper())));
}

#[test]
fn pasids_on_a_unit_in_legacy_mode_are_found() {
    let mut world = World::arrived();
    world.attachments = World::scalable_arrived().attachments[..1].to_vec();
    world.seal();
    only(&world, Invariant::I4, world.record(kind::ATTACHMENT, 0), What::PasidInLegacyMode);
}

#[test]
fn a_unit_that_came_back_in_legacy_mode_is_a_violation_of_i10_and_not_walked() {
    let mut world = World::scalable_arrived();
    world.states[0].root = world.states[0].root.with_ttm(0);
    let found: Vec<_> = world.findings().iter().map(|f| (f.invariant, f.what)).collect();
    let differs = What::ModeDiffers { sealed: 1, found: 0 };
    assert_eq!(found, [(Invariant::I10, differs), (Invariant::I1, What::ModeNotWalked { ttm: 0 })]);
    // A unit that does not offer the mode cannot be in it.
    let mut world = World::scalable_arrived();
    world.states[0].ecap = world.states[0].ecap.with_smts(false);
    world.units[0].ecap = world.states[0].ecap.raw();
    world.seal();
    only(&world, Invariant::I8, BASE + 0x20, What::ModeInvalid { ttm: 1 });
}

#[test]
fn tables_that_share_a_frame_are_found_unless_requesters_share_one_entry() {
    let mut world = World::scalable_arrived();
    world.pasids[4].start = TABLE_0;
    world.memory.write(DIR_2 + 8, &[directory(TABLE_0)]);
    world.digest();
    world.seal();
    let what = What::TablesOverlap { role: Role::PasidTable, other: Role::PasidTable };
    found(&world, Invariant::I1, TABLE_0, what);
    // Two requesters behind one bridge have one alias and one directory.
    let mut world = World::scalable_arrived();
    let source = spec::SourceId::new(3, 1, 0);
    let mut second = world.requesters[1];
    (second.token, second.source) = (0x22, source.raw());
    world.requesters.push(second);
    world.memory.write(OF_3 + 32 * u64::from(source.devfn()), &world::scalable::context(DIR_10, 0, 1));
    for n in [0, 5] {
        let run = spec::handover::PasidTables { requester: 2, ..world.pasids[n] };
        world.pasids.push(run);
    }
    for n in [4, 5] {
        let attachment = spec::handover::Attachment { requester: 2, ..world.attachments[n] };
        world.attachments.push(attachment);
    }
    world.digest();
    world.seal();
    assert_eq!(world.findings(), []);
    // With entries that differ they share nothing.
    world.requesters[2].context_high[1] = 1 << 5;
    world.seal();
    found(
        &world,
        Invariant::I1,
        DIR_10,
        What::TablesOverlap { role: Role::PasidDirectory, other: Role::PasidDirectory },
    );
}

#[test]
fn the_same_domain_id_record_for_two_domains_is_found_in_the_seal_too() {
    let mut world = World::scalable_sealed();
    assert_eq!(world.stage, Stage::Sealed);
    world.ids.push(DomainIdUse { domain: 1, unit: 0, id: 4, reserved: [0; 3] });
    world.seal();
    let finding = world.find(|what| matches!(what, What::DomainIdTwice { id: 4, .. }));
    assert_eq!(finding.invariant, Invariant::I5);
}
