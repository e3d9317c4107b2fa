//! Damage to registers, root and context tables, records of units and requesters (I1, I2, I4, I5, I8, I10).

mod world;

use holdover_audit::{Invariant, Item, RecordKind, Stage, What};
use spec::Requester;
use spec::handover::{Alias, ContextTable, DomainIdUse, kind};
use world::{
    A, A_TOKEN, B, B_TOKEN, BASE, BASE_OF_1, CONTEXT_0, CONTEXT_1, CONTEXT_3, CONTEXT_5_OF_1, ROOT, World,
    context, requester, unit_id,
};

type Damage = fn(&mut World);

fn hda() -> Requester {
    requester(0, 0, 2, 0)
}

#[test]
fn translation_off_is_a_violation_of_i8() {
    let mut world = World::arrived();
    world.states[1].status = world.states[1].status.with_tes(false);
    let finding = world.only();
    assert_eq!((finding.invariant, finding.what), (Invariant::I8, What::TranslationOff));
    assert_eq!((finding.unit, finding.at), (Some(unit_id(1)), BASE_OF_1 + 0x1c));
}

#[test]
fn another_mode_is_a_violation_of_i10_and_not_walked() {
    let mut world = World::arrived();
    world.states[0].root = world.states[0].root.with_ttm(1);
    let whats: Vec<_> = world.findings().iter().map(|f| (f.invariant, f.what)).collect();
    assert_eq!(
        whats,
        [
            (Invariant::I10, What::ModeDiffers { sealed: 0, found: 1 }),
            (Invariant::I1, What::ModeNotWalked { ttm: 1 }),
        ]
    );
    for ttm in [2, 3] {
        world.states[0].root = world.states[0].root.with_ttm(ttm);
        let finding = world.find(|what| *what == What::ModeInvalid { ttm: ttm as u8 });
        assert_eq!((finding.invariant, finding.unit), (Invariant::I8, Some(unit_id(0))));
    }
}

#[test]
fn registers_that_differ_from_the_sealed_ones_are_violations_of_i4() {
    let mut world = World::arrived();
    world.units[0].cap ^= 1 << 59;
    world.units[1].ecap ^= 1 << 40;
    world.seal();
    let found: Vec<_> = world.findings().iter().map(|f| (f.invariant, f.unit, f.at)).collect();
    assert_eq!(
        found,
        [(Invariant::I4, Some(unit_id(0)), BASE + 0x08), (Invariant::I4, Some(unit_id(1)), BASE_OF_1 + 0x10),]
    );
}

#[test]
fn the_walk_follows_the_root_pointer_of_hardware() {
    let mut world = World::arrived();
    world.states[0].root = world.states[0].root.with_rta(0x600_0000 >> 12);
    world.memory.exist(0x600_0000, 0x1000);
    let finding = world.find(|w| matches!(w, What::Differs { item: Item::RootAddr, .. }));
    assert_eq!((finding.invariant, finding.at), (Invariant::I4, BASE + 0x20));
    // The root table that hardware reads is empty and not preserved.
    let finding = world.find(|what| matches!(what, What::NotPreserved(_)));
    assert_eq!((finding.invariant, finding.at), (Invariant::I1, 0x600_0000));
    let finding = world.find(|what| *what == What::EntryNotPresent);
    assert_eq!((finding.invariant, finding.requester), (Invariant::I4, Some(hda())));
}

#[test]
fn a_unit_that_is_gone_is_found() {
    let mut world = World::arrived();
    world.states.remove(1);
    let finding = world.only();
    assert_eq!((finding.invariant, finding.what), (Invariant::I4, What::UnitMissing));
    assert_eq!((finding.unit, finding.at), (Some(unit_id(1)), world.record(kind::UNIT, 1)));
}

#[test]
fn a_unit_that_translates_without_being_handed_over_is_found_after_the_jump_only() {
    for (mut world, count) in [(World::arrived(), 1), (World::sealed(), 0)] {
        let mut stranger = world.states[0];
        stranger.id.register_base = 0xfed9_9000;
        world.states.push(stranger);
        assert_eq!(world.findings().len(), count);
        world.states[2].status = world.states[2].status.with_tes(false);
        assert_eq!(world.findings(), []);
    }
}

#[test]
fn a_cut_off_that_left_a_listed_neighbour_is_a_violation_of_i2() {
    let mut world = World::arrived();
    let at = world.entry(CONTEXT_0, 4, 0);
    world.memory.write(at, &context(0x7777_7000, 4, 9));
    let findings = world.findings();
    let stranger = Some(requester(0, 0, 4, 0));
    assert_eq!((findings[0].invariant, findings[0].what), (Invariant::I2, What::EntryNotOwned));
    assert_eq!((findings[0].requester, findings[0].at, findings[0].unit), (stranger, at, Some(unit_id(0))));
    // The digest differs too: explained by the stranger, so that no preserved requester is blamed.
    assert_eq!(findings.len(), 2);
    assert!(matches!(findings[1].what, What::Differs { item: Item::UnitDigest, .. }));
    assert_eq!((findings[1].requester, findings[1].domain), (stranger, None));
}

#[test]
fn a_cut_off_that_left_a_bus_without_preserved_requesters_is_a_violation_of_i2() {
    let mut world = World::sealed();
    world.stage = Stage::Arrived;
    // The neighbours on preserved buses are gone, as is the stranger of unit 1; only bus 1 was forgotten.
    let after = World::arrived().memory;
    for page in [CONTEXT_0, CONTEXT_5_OF_1, world::ROOT_OF_1] {
        world.memory.write(page, &after.read(page, 512));
    }
    let findings = world.findings();
    let found: Vec<_> = findings.iter().map(|f| (f.invariant, f.at, f.requester)).collect();
    let stranger = Some(requester(0, 1, 0, 0));
    assert_eq!(
        found,
        [
            (Invariant::I2, ROOT + 16, stranger),
            (Invariant::I1, CONTEXT_1, stranger),
            (Invariant::I2, CONTEXT_1, stranger),
            (Invariant::I4, ROOT, stranger),
        ]
    );
    assert_eq!(findings[0].what, What::BusNotListed { bus: 1 });
    assert_eq!(findings[2].what, What::EntryNotOwned);
    assert_eq!(
        findings[0].to_string(),
        "I2 at 0x4000010: the root entry of bus 0x01 is present, but nothing on that bus was preserved (requester 0000:01:00.0, unit 0000@0xfed90000)"
    );
}

#[test]
fn a_root_entry_left_behind_with_an_empty_table_blames_no_preserved_requester() {
    let mut world = World::arrived();
    world.memory.write(CONTEXT_1, &[0; 512]);
    world.memory.write(ROOT + 16, &[CONTEXT_1 | 1]);
    let findings = world.findings();
    assert_eq!(findings.len(), 3, "the root entry, its table, the digest");
    assert!(findings.iter().all(|f| f.requester == Some(requester(0, 1, 0, 0)) && f.domain.is_none()));
}

#[test]
fn an_alias_that_is_not_recorded_is_a_stranger() {
    let mut world = World::arrived();
    world.aliases.clear();
    world.seal();
    let finding = world.find(|what| *what == What::EntryNotOwned);
    assert_eq!(
        (finding.invariant, finding.requester, finding.at),
        (Invariant::I2, Some(requester(0, 3, 0, 0)), CONTEXT_3)
    );
}

#[test]
fn an_entry_of_a_requester_preserved_on_another_unit_is_a_stranger() {
    // Both units on segment 0: 05:00.0 is preserved on unit 1, and unit 0 has an entry for it too.
    let mut world = World::arrived();
    world.states[1].id.segment = spec::Segment(0);
    world.units[1].segment = 0;
    world.requesters[2].segment = 0;
    world.seal();
    assert_eq!(world.findings(), []);
    world.memory.write(ROOT + 16 * 5, &[CONTEXT_1 | 1]);
    world.memory.write(CONTEXT_1, &context(A, 4, 7));
    let finding = world.find(|what| *what == What::EntryNotOwned);
    assert_eq!((finding.requester, finding.unit), (Some(requester(0, 5, 0, 0)), Some(unit_id(0))));
    assert_eq!(finding.at, CONTEXT_1);
}

#[test]
fn a_bit_left_in_a_cleared_entry_shows_in_the_digest() {
    let mut world = World::arrived();
    let at = world.entry(CONTEXT_0, 9, 0);
    world.memory.write(at + 8, &[1 << 8]);
    let finding = world.only();
    assert!(matches!(finding.what, What::Differs { item: Item::UnitDigest, .. }));
    assert_eq!((finding.invariant, finding.unit, finding.requester), (Invariant::I4, Some(unit_id(0)), None));
}

#[test]
fn a_root_entry_that_leads_elsewhere_is_a_violation_of_i4_and_i1() {
    for mut world in [World::arrived(), World::sealed()] {
        let table = world.memory.read(CONTEXT_0, 512);
        world.memory.write(0x600_0000, &table);
        world.memory.write(ROOT, &[0x600_0001]);
        let finding = world.find(|what| matches!(what, What::Differs { item: Item::ContextTable, .. }));
        assert_eq!((finding.invariant, finding.at), (Invariant::I4, ROOT));
        let finding = world.find(|what| matches!(what, What::NotPreserved(_)));
        assert_eq!((finding.invariant, finding.at), (Invariant::I1, 0x600_0000));
    }
}

#[test]
fn an_entry_that_lost_its_present_bit_is_a_violation_of_i4() {
    for mut world in [World::arrived(), World::sealed()] {
        let at = world.entry(CONTEXT_0, 2, 0);
        world.change_entry(at, None, |entry| entry.with_present(false));
        let finding = world.find(|what| *what == What::EntryNotPresent);
        assert_eq!((finding.invariant, finding.requester, finding.at), (Invariant::I4, Some(hda()), at));
        assert_eq!(finding.domain, Some(A_TOKEN));
        // What the digest says is laid at the same door.
        let digest = world.find(|what| matches!(what, What::Differs { item: Item::UnitDigest, .. }));
        assert_eq!((digest.requester, digest.domain), (Some(hda()), Some(A_TOKEN)));
        assert_eq!(world.findings().len(), 2);
    }
}

#[test]
fn a_whole_bus_that_vanished_is_found_for_every_requester_on_it() {
    let mut world = World::arrived();
    world.memory.write(ROOT, &[0, 0]);
    let lost: Vec<_> =
        world.findings().iter().filter(|f| f.what == What::EntryNotPresent).map(|f| f.requester).collect();
    assert_eq!(lost, [Some(hda()), Some(requester(0, 0, 3, 0))]);
}

#[test]
fn both_words_of_a_context_entry_are_compared() {
    let mut world = World::arrived();
    let at = world.entry(CONTEXT_0, 2, 0);
    world.change_entry(at, None, |entry| entry.with_fpd(true));
    let finding = world.find(|what| matches!(what, What::Differs { item: Item::ContextEntryLow, .. }));
    assert_eq!((finding.invariant, finding.requester, finding.at), (Invariant::I4, Some(hda()), at));
    world.change_entry(at, None, |entry| entry.with_fpd(false).with_did(9));
    let finding = world.find(|what| matches!(what, What::Differs { item: Item::ContextEntryHigh, .. }));
    assert_eq!((finding.invariant, finding.requester, finding.at), (Invariant::I4, Some(hda()), at + 8));
    let finding = world.find(|what| matches!(what, What::DomainIdDiffers { recorded: 7, found: 9 }));
    assert_eq!((finding.invariant, finding.requester), (Invariant::I5, Some(hda())));
}

#[test]
fn an_alias_whose_entry_differs_is_named_itself() {
    let mut world = World::arrived();
    world.change_entry(CONTEXT_3, None, |entry| entry.with_fpd(true));
    let finding = world.find(|what| matches!(what, What::Differs { item: Item::ContextEntryLow, .. }));
    assert_eq!((finding.requester, finding.domain), (Some(requester(0, 3, 0, 0)), Some(B_TOKEN)));
}

/// Changes the entry of 00:02.0 in memory and record, so that nothing but the change itself can be wrong.
fn agreed(change: impl FnOnce(spec::context::ContextEntry) -> spec::context::ContextEntry) -> World {
    let mut world = World::arrived();
    let at = world.entry(CONTEXT_0, 2, 0);
    world.change_entry(at, Some(0), change);
    world.digest();
    world.seal();
    world
}

#[test]
fn a_preserved_requester_in_pass_through_is_a_violation_of_i3() {
    let world = agreed(|entry| entry.with_tt(2));
    let finding = world.only();
    assert_eq!((finding.invariant, finding.what), (Invariant::I3, What::PassThrough));
    assert_eq!((finding.requester, finding.at), (Some(hda()), world.entry(CONTEXT_0, 2, 0)));
}

#[test]
fn a_translation_type_that_the_unit_lacks_is_found() {
    for tt in [1, 3] {
        let unsupported = What::TranslationTypeUnsupported { tt: tt as u8 };
        let finding = agreed(|entry| entry.with_tt(tt)).find(|what| *what == unsupported);
        assert_eq!((finding.invariant, finding.requester), (Invariant::I1, Some(hda())));
    }
    let mut world = agreed(|entry| entry.with_tt(1));
    world.states[0].ecap = world.states[0].ecap.with_dt(true);
    world.units[0].ecap = world.states[0].ecap.raw();
    world.seal();
    assert_eq!(world.only().what, What::NoDeviceTlb { missing: 1 });
}

#[test]
fn reserved_bits_of_a_context_entry_are_found_word_by_word() {
    for (word, bits) in [(0, 1 << 5), (0, 1 << 60), (1, 1 << 30)] {
        let world = agreed(|entry| {
            let mut raw = entry.raw();
            raw[word] |= bits;
            spec::context::ContextEntry::from_raw(raw)
        });
        let finding = world.find(|what| *what == What::ReservedBits { bits });
        let at = world.entry(CONTEXT_0, 2, 0) + 8 * word as u64;
        assert_eq!((finding.invariant, finding.requester, finding.at), (Invariant::I1, Some(hda()), at));
    }
}

#[test]
fn reserved_bits_of_a_root_entry_are_found() {
    let mut world = World::arrived();
    world.memory.write(ROOT + 8, &[1]);
    world.digest();
    world.seal();
    let finding = world.only();
    assert_eq!((finding.invariant, finding.what), (Invariant::I1, What::ReservedBits { bits: 1 }));
    assert_eq!(finding.at, ROOT + 8);
}

#[test]
fn a_width_that_the_unit_lacks_is_found() {
    for aw in [0, 3, 7] {
        let mut world = agreed(|entry| entry.with_aw(aw));
        // Widths that no revision defines are none, whatever the register says.
        if aw != 3 {
            world.states[0].cap = world.states[0].cap.with_sagaw(0b11111);
        }
        let finding = world.find(|w| matches!(w, What::LevelsUnsupported { .. }));
        assert_eq!(finding.what, What::LevelsUnsupported { levels: aw as u8 + 2 });
        assert_eq!((finding.invariant, finding.requester), (Invariant::I1, Some(hda())));
    }
}

#[test]
fn an_entry_that_leads_to_other_tables_than_its_domains_is_a_violation_of_i1() {
    let finding = agreed(|entry| entry.with_ssptptr(B >> 12)).only();
    assert_eq!(finding.what, What::Differs { item: Item::TopTable, sealed: A, found: B });
    assert_eq!(
        (finding.invariant, finding.requester, finding.domain),
        (Invariant::I1, Some(hda()), Some(A_TOKEN))
    );
    let finding = agreed(|entry| entry.with_aw(1)).only();
    assert_eq!(finding.what, What::Differs { item: Item::Levels, sealed: 4, found: 3 });
}

#[test]
fn a_requester_whose_bus_has_no_context_table_record_is_found() {
    let mut world = World::sealed();
    world.contexts.remove(2);
    world.digest();
    world.seal();
    let finding = world.only();
    assert_eq!((finding.invariant, finding.what), (Invariant::I4, What::NoContextTable));
    assert_eq!(
        (finding.requester, finding.at),
        (Some(requester(0, 3, 0, 0)), world.record(kind::REQUESTER, 1))
    );
}

#[test]
fn a_requester_on_another_segment_than_its_unit_is_found() {
    let mut world = World::arrived();
    world.requesters[0].segment = 1;
    world.seal();
    let finding = world.find(|what| *what == What::WrongSegment);
    assert_eq!((finding.invariant, finding.requester), (Invariant::I4, Some(requester(1, 0, 2, 0))));
    world.find(|what| *what == What::EntryNotOwned);
}

#[test]
fn domain_ids_zero_too_large_missing_or_used_twice_are_violations_of_i5() {
    let change = |change: fn(&mut World)| {
        let mut world = World::arrived();
        change(&mut world);
        world.digest();
        world.seal();
        world
    };
    let with_id = |world: &mut World, id: u16| {
        world.ids[0].id = id;
        let at = world.entry(CONTEXT_0, 2, 0);
        world.change_entry(at, Some(0), |entry| entry.with_did(id.into()));
        world.digest();
        world.seal();
    };
    let mut world = World::arrived();
    for (id, what) in [
        (0, What::DomainIdZero),
        (256, What::DomainIdTooLarge { id: 256, limit: 256 }),
        (8, What::DomainIdTwice { id: 8, other: A_TOKEN }),
    ] {
        with_id(&mut world, id);
        let finding = world.only();
        assert_eq!((finding.invariant, finding.what, finding.unit), (Invariant::I5, what, Some(unit_id(0))));
    }
    with_id(&mut world, 255);
    assert_eq!(world.findings(), [], "the last id is a legal one");

    let finding = change(|world| world.ids = world.ids.split_off(1)).only();
    assert_eq!((finding.what, finding.requester), (What::DomainIdMissing, Some(hda())));
    // The same domain under another id on the same unit.
    let world = change(|world| world.ids.push(DomainIdUse { domain: 0, unit: 0, id: 77, reserved: [0; 3] }));
    let finding = world.only();
    assert_eq!(finding.what, What::DomainIdTwice { id: 77, other: A_TOKEN });
    assert_eq!((finding.at, finding.domain), (world.record(kind::DOMAIN_ID, 3), Some(A_TOKEN)));
}

#[test]
fn the_same_id_on_two_units_is_legal() {
    let mut world = World::arrived();
    world.ids[2].id = 8;
    world.change_entry(CONTEXT_5_OF_1, Some(2), |entry| entry.with_did(8));
    world.digest();
    world.seal();
    assert_eq!(world.findings(), []);
}

#[test]
fn references_to_records_that_are_not_there_are_found_at_the_referring_record() {
    let cases: [(Damage, u16, usize, RecordKind, RecordKind); 7] = [
        (|w| w.contexts[1].unit = 2, kind::CONTEXT_TABLE, 1, RecordKind::ContextTable, RecordKind::Unit),
        (|w| w.tables[0].domain = 9, kind::DOMAIN_TABLES, 0, RecordKind::DomainTables, RecordKind::Domain),
        (|w| w.ids[2].domain = u32::MAX, kind::DOMAIN_ID, 2, RecordKind::DomainId, RecordKind::Domain),
        (|w| w.ids[2].unit = 2, kind::DOMAIN_ID, 2, RecordKind::DomainId, RecordKind::Unit),
        (|w| w.requesters[1].unit = 77, kind::REQUESTER, 1, RecordKind::Requester, RecordKind::Unit),
        (|w| w.requesters[1].domain = 2, kind::REQUESTER, 1, RecordKind::Requester, RecordKind::Domain),
        (|w| w.aliases[0].requester = 3, kind::ALIAS, 0, RecordKind::Alias, RecordKind::Requester),
    ];
    for (damage, kind, n, from, to) in cases {
        let mut world = World::arrived();
        damage(&mut world);
        world.seal();
        let finding = world
            .find(|what| matches!(what, What::Dangling { from: f, to: t, .. } if (*f, *t) == (from, to)));
        assert_eq!((finding.invariant, finding.at), (Invariant::I4, world.record(kind, n)));
    }
}

#[test]
fn tokens_that_name_two_things_are_found() {
    let cases: [(Damage, RecordKind, u64); 3] = [
        (|w| w.regions[1].token = 0x10, RecordKind::Region, 0x10),
        (|w| w.domains[1].token = A_TOKEN, RecordKind::Domain, A_TOKEN),
        (|w| w.requesters[2].token = 0x21, RecordKind::Requester, 0x21),
    ];
    for (damage, kind, token) in cases {
        let mut world = World::arrived();
        damage(&mut world);
        world.seal();
        let finding = world.only();
        assert_eq!((finding.invariant, finding.what), (Invariant::I4, What::TokenTwice { kind, token }));
    }
}

#[test]
fn a_requester_alias_unit_or_bus_that_is_recorded_twice_is_found() {
    let mut world = World::arrived();
    world.aliases.push(Alias { requester: 2, source: 0x0010, reserved: 0 });
    world.aliases.push(Alias { requester: 0, source: requester(0, 0, 3, 0).source.raw(), reserved: 0 });
    world.seal();
    let finding = world.find(|what| *what == What::RecordTwice(RecordKind::Requester));
    assert_eq!(finding.requester, Some(requester(0, 0, 3, 0)));

    let mut world = World::arrived();
    world.contexts.push(ContextTable { table: CONTEXT_3, unit: 0, bus: 0, half: 0, reserved: 0 });
    world.seal();
    let finding = world.find(|what| *what == What::RecordTwice(RecordKind::ContextTable));
    assert_eq!((finding.unit, finding.at), (Some(unit_id(0)), world.record(kind::CONTEXT_TABLE, 3)));

    let mut world = World::arrived();
    let unit = world.units[0];
    world.units.push(unit);
    world.seal();
    let finding = world.find(|what| *what == What::RecordTwice(RecordKind::Unit));
    assert_eq!((finding.unit, finding.at), (Some(unit_id(0)), world.record(kind::UNIT, 2)));
}

#[test]
fn requesters_behind_one_bridge_may_share_its_alias_within_one_domain() {
    let mut world = World::arrived();
    let neighbour = requester(0, 0, 6, 0).source.raw();
    let at = world.entry(CONTEXT_0, 6, 0);
    world.memory.write(at, &context(B, 3, 8));
    world.requesters.push(spec::handover::RequesterRecord {
        token: 0x23,
        source: neighbour,
        ..world.requesters[1]
    });
    world.aliases.push(Alias { requester: 3, ..world.aliases[0] });
    world.digest();
    world.seal();
    assert_eq!(world.findings(), []);
    // In another domain the same alias is a contradiction.
    world.requesters[3].domain = 0;
    world.seal();
    let finding = world.find(|what| *what == What::RecordTwice(RecordKind::Requester));
    assert_eq!(finding.requester, Some(requester(0, 3, 0, 0)));
    // And so is an alias that is listed twice for one requester.
    let mut world = World::arrived();
    world.aliases.push(world.aliases[0]);
    world.seal();
    assert_eq!(world.only().what, What::RecordTwice(RecordKind::Requester));
}

#[test]
fn an_upper_half_in_legacy_mode_is_found() {
    let mut world = World::arrived();
    world.contexts[1].half = 1;
    world.seal();
    let finding = world.find(|what| *what == What::HalfUnsupported { half: 1 });
    assert_eq!((finding.invariant, finding.at), (Invariant::I4, world.record(kind::CONTEXT_TABLE, 1)));
}
