//! The incoming kernel: check against running hardware, adopt in place, retrieve by token.

use crate::common::machine::{POISON, Step};
use crate::common::scene::*;
use crate::common::tables::context;
use crate::common::unit::Blocked;
use crate::common::{Store, requester, source};
use audit::Invariant;
use liveupdate::host::{Atomic, MaySleep};
use liveupdate::{AdoptEvent, Container, CutOffEvent, Incoming, RetrieveError, Token, UnpreserveError};
use spec::{DomainId, Requester, UnitId};
use std::collections::BTreeSet;

type Arrived<'h, 's> = Incoming<'h, 's, crate::common::machine::Machine>;

/// Opens, checks and adopts; says what happened.
fn adopt<'h, 's>(
    scene: &'h Scene,
    container: &Container,
    store: &'s mut Store,
    reserve: &mut dyn FnMut(UnitId, DomainId) -> bool,
) -> (Arrived<'h, 's>, Vec<AdoptEvent>, u32) {
    let mut events = Vec::new();
    let checked = check(&scene.machine, container, store);
    let violations = checked.violations;
    let mut ctx = MaySleep::at_thread_start();
    let incoming = checked.adopt(&scene.machine, &mut ctx, reserve, &mut |e| events.push(e));
    assert!(scene.machine.units.iter().all(|u| u.status.get().tes() || u.id != scene.machine.units[0].id));
    (incoming, events, violations)
}

fn cleared(events: &[AdoptEvent]) -> BTreeSet<Requester> {
    let one = |e: &AdoptEvent| match e {
        AdoptEvent::Entry(CutOffEvent::Cleared { requester, .. }) => Some(*requester),
        _ => None,
    };
    events.iter().filter_map(one).collect()
}

fn blocked(events: &[AdoptEvent]) -> Vec<Token> {
    events
        .iter()
        .filter_map(|e| if let AdoptEvent::Blocked(token) = e { Some(*token) } else { None })
        .collect()
}

#[test]
fn from_preserve_to_retrieve_the_devices_never_miss_a_translation() {
    let scene = Scene::new();
    let container = scene.update();
    let sound_at = |offset| Ok(sound().start().get() + offset);
    assert_eq!(scene.machine.dma(AUDIO_SOURCE, IOVA + 0x2345), sound_at(0x2345), "in the gap");
    assert_ne!(scene.machine.get(sound().start()), POISON);
    assert_eq!(scene.machine.get(spec::PhysAddr::new(0x3000_0000)), POISON, "what nobody preserved is gone");

    let mut store = Store::of(16);
    let mut ids = Vec::new();
    let reserve = &mut |unit, id| {
        ids.push((unit, id));
        true
    };
    let (mut incoming, events, violations) = adopt(&scene, &container, &mut store, reserve);
    let unit = scene.machine.units[0].id;
    assert_eq!((violations, blocked(&events).len(), cleared(&events).len()), (0, 0, 0));
    assert!(events.contains(&AdoptEvent::Adopted(unit)));
    assert_eq!(
        ids,
        [(unit, DomainId(7)), (unit, DomainId(8))],
        "each once, though two requesters might share"
    );
    assert_eq!(scene.machine.dma(AUDIO_SOURCE, IOVA), sound_at(0), "adopted");
    assert!(scene.machine.take_steps().iter().all(|s| !matches!(s, Step::Disable(_))));

    assert_eq!(incoming.retrieve_region(SOUND), Ok(sound()));
    let domain = incoming.retrieve_domain(DISK_DOMAIN).unwrap();
    assert_eq!((domain.top_table, domain.levels), (scene.disk.top, 4));
    assert!(incoming.tables_of(DISK_DOMAIN).any(|r| r.contains(scene.disk.top.frame())));
    assert!(incoming.domain_ids_of(DISK_DOMAIN).eq([(unit, DomainId(8))]));
    assert_eq!(
        (incoming.aliases_of(DISK).count(), incoming.pasids_of(DISK).count()),
        (0, 0),
        "not retrieved"
    );
    let disk = incoming.retrieve_requester(DISK).unwrap();
    assert_eq!((disk.requester, disk.unit), (requester(DISK_SOURCE), unit));
    assert_eq!(disk.domain, Some((DISK_DOMAIN, DomainId(8))));
    assert!(incoming.aliases_of(DISK).eq([DISK_ALIAS]));
    assert!(incoming.pasids_of(DISK).map(|p| p.pasid).eq([0]));
}

#[test]
fn what_was_opened_shows_what_was_handed_over() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let opened = liveupdate::open(&scene.machine, container.fdt, store.storage()).unwrap();
    let unit = scene.machine.units[0].id;
    assert_eq!(opened.container(), Some(container.frames));
    assert!(container.frames.covers(opened.blob()));
    assert!(opened.is_table(scene.disk.top.frame()) && !opened.is_table(sound().first()));
    assert_eq!(opened.scratch().collect::<Vec<_>>(), [scratch()]);
    assert!(opened.units().map(|u| u.id).eq([unit]));
    let mut units = Vec::new();
    opened.for_each_unit(&mut |u| units.push(u));
    assert_eq!(units, [unit]);
    let extents: BTreeSet<_> = opened.regions().map(|r| (r.token, r.extent)).collect();
    assert_eq!(extents, [(SOUND, sound()), (DISK_MEMORY, disk_memory()), (BAR, bar())].into());
    assert!(opened.domains().map(|d| (d.token, d.top_table)).any(|d| d == (AUDIO_DOMAIN, scene.audio.top)));
    assert!(opened.requesters().all(|(u, _)| u == unit) && opened.requesters().count() == 2);
    assert!(opened.context_tables().map(|(u, c)| (u, c.bus)).eq([(unit, 0), (unit, 2)]));
}

#[test]
fn what_cannot_be_retrieved_is_refused_by_name() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    let unknown = Token(0xabc);
    assert_eq!(incoming.retrieve_region(unknown), Err(RetrieveError::Unknown(unknown)));
    assert_eq!(
        incoming.retrieve_region(AUDIO_DOMAIN),
        Err(RetrieveError::Unknown(AUDIO_DOMAIN)),
        "no region"
    );
    let early = incoming.retrieve_requester(AUDIO);
    let (requester, domain) = (requester(AUDIO_SOURCE), AUDIO_DOMAIN);
    assert_eq!(early, Err(RetrieveError::DomainFirst { requester, domain }));
    assert!(early.unwrap_err().to_string().contains("before its requester"));
    assert!(incoming.retrieve_domain(SOUND).is_err());
    assert!(incoming.retrieve_requester(DISK_DOMAIN).is_err());
    let mut tokens = BTreeSet::new();
    incoming.for_each_token(&mut |t| assert!(tokens.insert(t)));
    assert_eq!(tokens, [SOUND, DISK_MEMORY, BAR, AUDIO_DOMAIN, DISK_DOMAIN, AUDIO, DISK].into());
}

#[test]
fn lesson_04_the_highest_numbers_are_names_like_any_other() {
    const HIGHEST: Token = Token(u64::MAX);
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    let (machine, last) = (&scene.machine, source(0xff, 0x1f, 7));
    machine.attach(0, last, 7, scene.audio);
    machine.functions.borrow_mut().insert(requester(last));
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let before = outgoing.totals();
    assert_eq!(outgoing.unpreserve_requester(&mut ctx, HIGHEST), Err(UnpreserveError::Unknown(HIGHEST)));
    assert_eq!(outgoing.totals(), before);
    outgoing.preserve_requester(&mut ctx, HIGHEST, requester(last)).unwrap();
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    machine.jump(&container);
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    assert_eq!(incoming.retrieve_requester(HIGHEST).unwrap().requester, requester(last));
    assert_eq!(incoming.retrieve_requester(AUDIO).unwrap().requester, requester(AUDIO_SOURCE));
    assert_eq!(incoming.retrieve_domain(HIGHEST), Err(RetrieveError::Unknown(HIGHEST)));
}

#[test]
fn lesson_10_nothing_is_retrieved_twice() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    incoming.retrieve_region(SOUND).unwrap();
    assert_eq!(incoming.retrieve_region(SOUND), Err(RetrieveError::Twice(SOUND)));
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    let again = incoming.retrieve_domain(AUDIO_DOMAIN);
    assert_eq!(again, Err(RetrieveError::Twice(AUDIO_DOMAIN)));
    incoming.retrieve_requester(AUDIO).unwrap();
    let again = incoming.retrieve_requester(AUDIO);
    assert_eq!(again, Err(RetrieveError::Twice(AUDIO)));
}

#[test]
fn lesson_13_tokens_of_64_bits_survive_whole() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    for token in [SOUND, DISK_MEMORY, AUDIO_DOMAIN, AUDIO] {
        assert!(token.0 > u64::from(u32::MAX));
        let cut = Token(token.0 & 0xffff_ffff);
        assert!(incoming.retrieve_region(cut).is_err() || cut == BAR);
        assert!(incoming.retrieve_domain(cut).is_err());
    }
    assert_eq!(incoming.retrieve_region(DISK_MEMORY), Ok(disk_memory()));
    let domain = incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    let requester = incoming.retrieve_requester(AUDIO).unwrap();
    assert_eq!((domain.token, requester.token), (AUDIO_DOMAIN, AUDIO));
}

#[test]
fn a_domain_that_fails_its_checks_is_blocked_alone_and_forgotten() {
    let scene = Scene::new();
    let container = scene.update();
    // In the gap a leaf of the disk's domain is turned to memory that is nobody's.
    scene.machine.set(scene.machine.entry(scene.disk, 0x40_0000_0000, 0), 0x3000_0000 | 3);
    for source in [DISK_SOURCE, DISK_ALIAS] {
        scene.machine.dma(source, IOVA).unwrap(); // cached
    }
    let mut store = Store::of(16);
    let (mut incoming, events, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert!(violations > 0);
    assert_eq!(blocked(&events), [DISK_DOMAIN]);
    assert_eq!(cleared(&events), [DISK_SOURCE, DISK_ALIAS].map(requester).into());
    for source in [DISK_SOURCE, DISK_ALIAS] {
        assert!(scene.machine.dma(source, IOVA).is_err());
    }
    scene.machine.dma(AUDIO_SOURCE, IOVA).unwrap();
    assert!(incoming.is_blocked(DISK_DOMAIN) && !incoming.is_blocked(AUDIO_DOMAIN));
    let refused = incoming.retrieve_domain(DISK_DOMAIN);
    assert_eq!(refused, Err(RetrieveError::Blocked(DISK_DOMAIN)));
    assert_eq!(incoming.retrieve_requester(DISK), Err(RetrieveError::Blocked(DISK)));
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    incoming.retrieve_requester(AUDIO).unwrap();
}

#[test]
fn lesson_11_a_blocked_requester_gets_no_other_domain_but_none() {
    let scene = Scene::new();
    let container = scene.update();
    scene.machine.set(scene.machine.entry(scene.audio, IOVA, 0), 0x3000_0000 | 3);
    let mut store = Store::of(16);
    scene.machine.take_steps();
    let (_, events, _) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert_eq!(blocked(&events), [AUDIO_DOMAIN]);
    let at = scene.machine.context_entry(0, AUDIO_SOURCE);
    assert_eq!([scene.machine.get(at), scene.machine.get(at.plus(8))], [0, 0]);
    assert_eq!(scene.machine.dma(AUDIO_SOURCE, IOVA), Err(Blocked::Context));
    for step in scene.machine.take_steps() {
        if let Step::Write { before, after, .. } = step {
            assert_eq!(after & before, after, "{step:?}: adoption only ever clears bits");
        }
    }
}

#[test]
fn an_entry_of_a_stranger_found_on_arrival_is_cleared_and_blocks_nobody() {
    let scene = Scene::new();
    let container = scene.update();
    // As if the cut-off had left them out: one on a preserved bus, one on a bus of its own.
    let machine = &scene.machine;
    machine.put_context(0, OTHER, context(9, scene.audio));
    machine.attach(0, source(0x44, 3, 0), 9, scene.audio);
    let mut store = Store::of(16);
    let (_, events, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert!(violations >= 2);
    assert!(blocked(&events).is_empty(), "{events:?}");
    assert_eq!(cleared(&events), [OTHER, source(0x44, 3, 0)].map(requester).into());
    assert!(machine.dma(OTHER, IOVA).is_err() && machine.dma(source(0x44, 3, 0), IOVA).is_err());
    machine.dma(AUDIO_SOURCE, IOVA).unwrap();
}

#[test]
fn what_a_unit_did_not_confirm_before_the_jump_it_forgets_at_adoption() {
    let scene = Scene::new();
    scene.machine.units[0].hangs.set(true);
    let mut late = 0;
    let container = scene.update_with(&mut |e| late += u32::from(matches!(e, CutOffEvent::NotConfirmed(_))));
    assert_eq!(late, 1);
    scene.machine.dma(OTHER, IOVA).expect("hardware still uses what it cached");
    scene.machine.units[0].hangs.set(false);
    let mut store = Store::of(16);
    let (_, events, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert_eq!((violations, blocked(&events).len()), (0, 0));
    assert_eq!(scene.machine.dma(OTHER, IOVA), Err(Blocked::Context));
}

/// A scene whose disk lives behind a second unit, after the jump.
fn two_units() -> (Scene, Container) {
    let scene = Scene::with_units(2);
    let bare = [0, 0];
    for source in [DISK_SOURCE, DISK_ALIAS] {
        let at = scene.machine.context_entry(0, source);
        crate::common::reseal::write(&scene.machine, at, &bare);
        scene.machine.attach(1, source, 7, scene.disk);
    }
    let container = scene.update();
    (scene, container)
}

#[test]
fn a_unit_that_is_missing_takes_its_domains_with_it_and_no_other() {
    let (mut scene, container) = two_units();
    let missing = scene.machine.units.pop().unwrap().id;
    let mut store = Store::of(16);
    let mut ids = Vec::new();
    let reserve = &mut |unit, id| {
        ids.push((unit, id));
        true
    };
    let (mut incoming, events, _) = adopt(&scene, &container, &mut store, reserve);
    assert!(events.contains(&AdoptEvent::UnitMissing(missing)));
    assert!(!events.contains(&AdoptEvent::Adopted(missing)));
    assert_eq!(blocked(&events), [DISK_DOMAIN]);
    assert_eq!(ids, [(scene.machine.units[0].id, DomainId(7))]);
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    // What the missing unit may still reach is not given away.
    incoming.retrieve_requester(AUDIO).unwrap();
    scene.machine.take_steps();
    incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ());
    assert!(!scene.machine.take_steps().iter().any(|s| matches!(s, Step::GiveBack(_))));
}

#[test]
fn a_domain_id_that_the_driver_cannot_reserve_blocks_its_domain_on_that_unit() {
    let (scene, container) = two_units();
    let [first, second] = [0, 1].map(|i| scene.machine.units[i].id);
    let mut store = Store::of(16);
    // Both domains have id 7, each on its own unit (lesson 8).
    let mut ids = Vec::new();
    let reserve = &mut |unit, id| {
        ids.push((unit, id));
        unit != second
    };
    let (incoming, events, violations) = adopt(&scene, &container, &mut store, reserve);
    assert_eq!(ids, [(first, DomainId(7)), (second, DomainId(7))]);
    assert_eq!((violations, blocked(&events)), (0, vec![DISK_DOMAIN]));
    assert!(events.contains(&AdoptEvent::DomainIdTaken(second, DomainId(7))));
    assert_eq!(cleared(&events), [DISK_SOURCE, DISK_ALIAS].map(requester).into());
    assert!(scene.machine.dma(DISK_SOURCE, IOVA).is_err() && scene.machine.dma(AUDIO_SOURCE, IOVA).is_ok());
    assert!(incoming.is_blocked(DISK_DOMAIN));
}

#[test]
fn lesson_14_another_mode_blocks_and_never_switches_translation_off() {
    let (scene, container) = two_units();
    let unit = &scene.machine.units[1];
    unit.root.set(unit.root.get().with_ttm(1));
    let mut store = Store::of(16);
    let mut invariants = BTreeSet::new();
    let opened = liveupdate::open(&scene.machine, container.fdt, store.storage()).unwrap();
    let mut words = vec![0; 1 << 15];
    let checked = opened.check(&scene.machine, &mut audit::Scratch::new(&mut words), &mut |f| {
        invariants.insert(f.invariant);
    });
    assert!(invariants.contains(&Invariant::I10), "{invariants:?}");
    let (mut ctx, mut events) = (MaySleep::at_thread_start(), Vec::new());
    scene.machine.take_steps();
    let _adopted =
        checked.unwrap().adopt(&scene.machine, &mut ctx, &mut |_, _| true, &mut |e| events.push(e));
    assert_eq!(blocked(&events), [DISK_DOMAIN]);
    assert!(!scene.machine.take_steps().iter().any(|s| matches!(s, Step::Disable(_))));
    assert!(scene.machine.units.iter().all(|u| u.status.get().tes()));
}

#[test]
fn translation_found_off_on_arrival_is_a_violation_of_i8_that_blocks_that_unit() {
    let (scene, container) = two_units();
    let unit = &scene.machine.units[1];
    unit.status.set(unit.status.get().with_tes(false));
    let mut store = Store::of(16);
    let checked = check(&scene.machine, &container, &mut store);
    let of = checked.report.checked.iter().find(|c| c.invariant == Invariant::I8).unwrap();
    assert!(of.violations == 1 && checked.violations >= 1);
    let (mut ctx, mut events) = (MaySleep::at_thread_start(), Vec::new());
    let _adopted = checked.adopt(&scene.machine, &mut ctx, &mut |_, _| true, &mut |e| events.push(e));
    assert_eq!(blocked(&events), [DISK_DOMAIN]);
}

#[test]
fn a_unit_that_nobody_handed_over_blocks_nobody() {
    let scene = Scene::with_units(2);
    let container = scene.update();
    assert!(!scene.machine.units[1].status.get().tes());
    // It came on again, for whatever reason.
    scene.machine.units[1].status.set(scene.machine.units[1].status.get().with_tes(true));
    let mut store = Store::of(16);
    let (_, events, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert!(violations >= 1);
    assert!(blocked(&events).is_empty());
}

#[test]
fn two_updates_in_a_row_carry_the_same_things() {
    let scene = Scene::new();
    let mut container = scene.update();
    for _ in 0..2 {
        let mut store = Store::of(16);
        let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
        for region in [SOUND, DISK_MEMORY, BAR] {
            incoming.retrieve_region(region).unwrap();
        }
        for domain in [AUDIO_DOMAIN, DISK_DOMAIN] {
            incoming.retrieve_domain(domain).unwrap();
        }
        for who in [AUDIO, DISK] {
            incoming.retrieve_requester(who).unwrap();
        }
        let mut ctx = MaySleep::at_thread_start();
        assert_eq!(incoming.finish(&mut ctx, &mut |_| ()), 0);
        let mut store = Store::of(16);
        let outgoing = scene.preserve(&mut store, &mut ctx);
        let sealed = freeze(outgoing, &mut ctx).unwrap();
        container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
        scene.machine.jump(&container);
        scene.machine.dma(AUDIO_SOURCE, IOVA).unwrap();
    }
}

#[test]
fn when_a_handover_cannot_be_opened_everybody_is_stopped_and_translation_stays_on() {
    let (scene, container) = two_units();
    let machine = &scene.machine;
    let kept = [AUDIO_SOURCE, DISK_SOURCE, DISK_ALIAS];
    kept.iter().for_each(|s| assert!(machine.dma(*s, IOVA).is_ok())); // cached
    machine.set(container.blob, 0);
    let mut store = Store::of(16);
    liveupdate::open(machine, container.fdt, store.storage()).map(|_| ()).unwrap_err();
    machine.units[1].hangs.set(true);
    let (mut ctx, mut events) = (MaySleep::at_thread_start(), Vec::new());
    machine.take_steps();
    liveupdate::block_all(machine, &mut ctx, &mut |e| events.push(e));
    let [first, second] = [0, 1].map(|i| machine.units[i].id);
    assert!(events.contains(&CutOffEvent::Confirmed(first)));
    assert!(events.iter().any(|e| matches!(e, CutOffEvent::NotConfirmed(t) if t.unit == second)));
    assert_eq!(machine.dma(AUDIO_SOURCE, IOVA), Err(Blocked::Root));
    assert!(machine.dma(DISK_SOURCE, IOVA).is_ok(), "this unit did not confirm, and that was reported");
    assert!(machine.units.iter().all(|u| u.status.get().tes()));
    assert!(!machine.take_steps().iter().any(|s| matches!(s, Step::Disable(_))));
    for unit in [0, 1] {
        assert!((0..=255).all(|bus| machine.get(machine.root_entry(unit, bus)) == 0));
    }
}
