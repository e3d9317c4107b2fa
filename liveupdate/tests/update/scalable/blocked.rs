//! What fails its checks is blocked alone: one PASID, one domain with all its PASIDs, or one requester.

use super::adoption::{adopt, retrieve, retrieve_domains};
use crate::common::machine::Step;
use crate::common::scalable::*;
use crate::common::unit::Blocked;
use crate::common::{Store, requester, source};
use liveupdate::{AdoptEvent, CutOffEvent, RetrieveError, Token};
use spec::{PhysAddr, Requester};
use std::collections::BTreeSet;

/// What adoption said: domains blocked, requesters blocked, entries cleared, PASIDs cleared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    domains: BTreeSet<Token>,
    requesters: BTreeSet<Token>,
    cleared: BTreeSet<Requester>,
    pasids: BTreeSet<(Requester, u32)>,
}

fn said(events: &[AdoptEvent]) -> Said {
    let mut said = Said::default();
    for event in events {
        match event {
            AdoptEvent::Blocked(token) => _ = said.domains.insert(*token),
            AdoptEvent::RequesterBlocked(token) => _ = said.requesters.insert(*token),
            AdoptEvent::Entry(CutOffEvent::Cleared { requester, .. }) => _ = said.cleared.insert(*requester),
            AdoptEvent::Entry(CutOffEvent::PasidCleared { requester, pasid, .. }) => {
                _ = said.pasids.insert((*requester, *pasid));
            }
            _ => {}
        }
    }
    said
}

/// After the jump one word is changed, everybody who can moves data, and the handover is adopted: what was said, and
/// whether each of the four preserved requests still goes through (guest, shared, process, GPU).
fn after(change: &dyn Fn(&Scene)) -> (Said, [bool; 4]) {
    let scene = Scene::new();
    let container = scene.update();
    change(&scene);
    let requests = |scene: &Scene| {
        [
            scene.machine.dma(NIC_SOURCE, IOVA).is_ok(),
            scene.machine.request(NIC_SOURCE, Some(SHARED_PASID), SHARED_IOVA).is_ok(),
            scene.machine.request(NIC_SOURCE, Some(PROCESS_PASID), PROCESS_IOVA).is_ok(),
            scene.machine.dma(GPU_SOURCE, SHARED_IOVA).is_ok(),
        ]
    };
    let _ = requests(&scene); // cached
    let mut store = Store::of(16);
    scene.machine.take_steps();
    let (_, events, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert!(violations > 0);
    for step in scene.machine.take_steps() {
        if let Step::Write { before, after, .. } = step {
            assert_eq!(after & before, after, "{step:?}: adoption only ever clears bits");
        }
    }
    (said(&events), requests(&scene))
}

fn tokens<const N: usize>(tokens: [Token; N]) -> BTreeSet<Token> {
    tokens.into()
}

fn nic_pasids<const N: usize>(pasids: [u32; N]) -> BTreeSet<(Requester, u32)> {
    pasids.map(|pasid| (requester(NIC_SOURCE), pasid)).into()
}

#[test]
fn a_bad_domain_is_blocked_alone_pasid_by_pasid_and_forgotten() {
    let (said, goes_on) = after(&|scene| {
        let leaf = scene.machine.entry(scene.shared, SHARED_IOVA + 0x2000, 0);
        scene.machine.set(leaf, 0x3000_0000 | 0b111);
    });
    let cleared = [requester(GPU_SOURCE)].into();
    let domains = tokens([SHARED_DOMAIN]);
    assert_eq!(said, Said { domains, cleared, pasids: nic_pasids([SHARED_PASID]), ..Said::default() });
    assert_eq!(goes_on, [true, false, true, false]);
}

#[test]
fn a_bad_second_stage_takes_along_what_lies_below_it_and_nothing_else() {
    let (said, goes_on) = after(&|scene| {
        let leaf = scene.machine.entry(scene.guest, IOVA + 0xf000, 0);
        scene.machine.set(leaf, 0x3000_0000 | 0b11);
    });
    let domains = tokens([GUEST_DOMAIN, PROCESS_DOMAIN]);
    assert_eq!(said, Said { domains, pasids: nic_pasids([0, PROCESS_PASID]), ..Said::default() });
    assert_eq!(goes_on, [false, true, false, true]);
}

#[test]
fn a_bad_nested_stage_is_blocked_alone() {
    let (said, goes_on) = after(&|scene| {
        let table = guest_memory().start().plus(0x1000 * (PROCESS_TABLES + 2));
        scene.machine.set(table.plus(8 * 77), (IOVA + 0x4000) | 0b111);
    });
    let domains = tokens([PROCESS_DOMAIN]);
    assert_eq!(said, Said { domains, pasids: nic_pasids([PROCESS_PASID]), ..Said::default() });
    assert_eq!(goes_on, [true, true, false, true]);
}

#[test]
fn a_bad_pasid_entry_blocks_the_domain_that_it_was_to_lead_to() {
    let (said, goes_on) = after(&|scene| {
        let at = scene.machine.pasid_entry_at(scene.nic, PROCESS_PASID);
        scene.machine.set(at.plus(8), scene.machine.get(at.plus(8)) ^ 1);
    });
    assert_eq!((said.domains, said.requesters), (tokens([PROCESS_DOMAIN]), tokens([])));
    assert_eq!(goes_on, [true, true, false, true]);
}

#[test]
fn a_bad_context_entry_or_directory_blocks_the_requester_with_all_its_pasids_and_no_domain() {
    let nic_context = |scene: &Scene| scene.machine.scalable_entry(0, NIC_SOURCE);
    let flip =
        |scene: &Scene, at: PhysAddr, bit: u32| scene.machine.set(at, scene.machine.get(at) ^ 1 << bit);
    let changes: [&dyn Fn(&Scene); 7] = [
        &|s| flip(s, nic_context(s), 3),
        &|s| flip(s, nic_context(s).plus(8), 20),
        &|s| flip(s, nic_context(s).plus(24), 5),
        &|s| s.machine.set(nic_context(s), s.nic_context().with_pasiddirptr(s.gpu.get() >> 12).raw()[0]),
        &|s| s.machine.set(s.nic, s.machine.get(s.nic) + 0x1000),
        &|s| s.machine.set(s.nic.plus(8), 0),
        &|s| _ = s.machine.shared.frames.borrow_mut().remove(&s.nic.frame().number()),
    ];
    for (n, change) in changes.iter().enumerate() {
        let (said, goes_on) = after(change);
        assert_eq!((said.domains, said.requesters), (tokens([]), tokens([NIC])), "change {n}");
        assert!(said.cleared.contains(&requester(NIC_SOURCE)), "change {n}");
        assert_eq!(goes_on, [false, false, false, true], "change {n}");
    }
}

#[test]
fn strangers_found_on_arrival_are_cleared_and_block_nobody() {
    let late = source(3, 1, 0);
    let (said, goes_on) = after(&|scene| {
        // As if the cut-off had left them out: in both halves, with a PASID in a table that stays, with a new table.
        let stranger = crate::common::scalable::second(7, scene.guest);
        scene.machine.attach_scalable(0, OTHER, stranger);
        scene.machine.attach_scalable(0, late, stranger);
        scene.machine.put_pasid(scene.nic_context(), 11, stranger);
        scene.machine.put_pasid(scene.nic_context(), 900, stranger);
    });
    let cleared = [OTHER, late].map(requester).into();
    assert_eq!(said, Said { cleared, pasids: nic_pasids([11, 900]), ..Said::default() });
    assert_eq!(goes_on, [true; 4]);
}

#[test]
fn lesson_08_a_domain_id_that_the_driver_cannot_reserve_blocks_its_domain_also_a_nested_one() {
    for (taken, domains, goes_on) in [
        (9, tokens([PROCESS_DOMAIN]), [true, true, false]),
        (8, tokens([SHARED_DOMAIN]), [true, false, true]),
        (7, tokens([GUEST_DOMAIN, PROCESS_DOMAIN]), [false, true, false]),
    ] {
        let scene = Scene::new();
        let container = scene.update();
        let mut store = Store::of(16);
        let (_, events, violations) = adopt(&scene, &container, &mut store, &mut |_, id| id.0 != taken);
        assert_eq!((violations, said(&events).domains), (0, domains));
        let unit = scene.machine.units[0].id;
        assert!(events.contains(&AdoptEvent::DomainIdTaken(unit, spec::DomainId(taken))));
        let requests = [(None, IOVA), (Some(SHARED_PASID), SHARED_IOVA), (Some(PROCESS_PASID), PROCESS_IOVA)];
        let goes = requests.map(|(pasid, iova)| scene.machine.request(NIC_SOURCE, pasid, iova).is_ok());
        assert_eq!(goes, goes_on, "id {taken}");
    }
}

#[test]
fn lesson_11_a_requester_goes_on_with_the_pasids_that_are_sound_and_gets_no_other_domain() {
    let scene = Scene::new();
    let container = scene.update();
    let leaf = scene.machine.entry(scene.guest, IOVA, 0);
    scene.machine.set(leaf, 0x3000_0000 | 0b11);
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    for token in [GUEST_DOMAIN, PROCESS_DOMAIN] {
        let refused = incoming.retrieve_domain(token);
        assert_eq!(refused, Err(RetrieveError::Blocked(token)));
    }
    retrieve_domains(&mut incoming, &[SHARED_DOMAIN]);
    let nic = incoming.retrieve_requester(NIC).unwrap();
    let pasids: Vec<_> = incoming.pasids_of(NIC).map(|p| p.pasid).collect();
    assert_eq!((nic.domain, pasids), (None, vec![SHARED_PASID]));
    assert_eq!(scene.machine.dma(NIC_SOURCE, IOVA), Err(Blocked::Pasid));
    let entry = scene.machine.pasid_entry_at(scene.nic, 0);
    assert!((0..8).all(|n| scene.machine.get(entry.plus(8 * n)) == 0));
    assert_eq!(retrieve(&mut incoming, GPU).len(), 1);
}

#[test]
fn a_requester_without_a_sound_pasid_cannot_be_retrieved() {
    let scene = Scene::new();
    let container = scene.update();
    scene.machine.set(scene.machine.entry(scene.shared, SHARED_IOVA, 0), 0x3000_0000 | 0b111);
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    let refused = incoming.retrieve_requester(GPU);
    assert_eq!(refused, Err(RetrieveError::Blocked(GPU)));
    assert_eq!(scene.machine.dma(GPU_SOURCE, SHARED_IOVA), Err(Blocked::Root), "its half had nobody else");
}
