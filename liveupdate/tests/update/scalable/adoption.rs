//! The incoming kernel: check against running hardware, adopt in place, retrieve by token and PASID.

use crate::common::machine::{Machine, POISON, Step};
use crate::common::scalable::*;
use crate::common::scene::{check, freeze};
use crate::common::{Store, requester};
use liveupdate::host::{Atomic, MaySleep};
use liveupdate::{AdoptEvent, Container, Incoming, RetrieveError, RetrievedPasid, Stage, Token};
use spec::{DomainId, PhysAddr, UnitId};

/// Opens, checks and adopts; says what happened.
pub(super) fn adopt<'h, 's>(
    scene: &'h Scene,
    container: &Container,
    store: &'s mut Store,
    reserve: &mut dyn FnMut(UnitId, DomainId) -> bool,
) -> (Incoming<'h, 's, Machine>, Vec<AdoptEvent>, u32) {
    let mut events = Vec::new();
    let checked = check(&scene.machine, container, store);
    let violations = checked.violations;
    let mut ctx = MaySleep::at_thread_start();
    let incoming = checked.adopt(&scene.machine, &mut ctx, reserve, &mut |e| events.push(e));
    assert!(scene.machine.units[0].status.get().tes());
    (incoming, events, violations)
}

/// Retrieves a requester: its PASIDs.
pub(super) fn retrieve(incoming: &mut Incoming<'_, '_, Machine>, token: Token) -> Vec<RetrievedPasid> {
    incoming.retrieve_requester(token).unwrap();
    incoming.pasids_of(token).collect()
}

pub(super) fn retrieve_domains(incoming: &mut Incoming<'_, '_, Machine>, tokens: &[Token]) {
    for token in tokens {
        incoming.retrieve_domain(*token).unwrap();
    }
}

#[test]
fn from_preserve_to_finish_the_devices_never_miss_a_translation() {
    let scene = Scene::new();
    let container = scene.update();
    scene.all_is_well();
    assert_eq!(scene.machine.get(PhysAddr::new(0x3000_0000)), POISON, "what nobody preserved is gone");
    let (mut store, mut ids) = (Store::of(16), Vec::new());
    let unit = scene.machine.units[0].id;
    let reserve = &mut |unit, id: DomainId| {
        ids.push((unit, id.0));
        true
    };
    let (mut incoming, events, violations) = adopt(&scene, &container, &mut store, reserve);
    assert_eq!(violations, 0);
    let entries = events.iter().filter(|e| !matches!(e, AdoptEvent::Entry(_)));
    assert!(entries.eq(&[AdoptEvent::Adopted(unit)]));
    ids.sort_unstable();
    assert_eq!(ids, [7, 8, 9].map(|id| (unit, id)), "each once, the nested one too");
    scene.all_is_well();
    assert!(scene.machine.take_steps().iter().all(|s| !matches!(s, Step::Disable(_))));

    let process = incoming.retrieve_domain(PROCESS_DOMAIN).unwrap();
    assert_eq!((process.top_table, process.stage, process.levels), (scene.process.top, Stage::First, 4));
    assert_eq!(process.parent, Some(GUEST_DOMAIN));
    assert!(incoming.domain_ids_of(PROCESS_DOMAIN).eq([(unit, DomainId(9))]));
    assert!(incoming.domain_ids_of(GUEST_DOMAIN).eq([]), "not retrieved yet");
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, SHARED_DOMAIN]);
    let pasids = retrieve(&mut incoming, NIC);
    let told: Vec<_> = pasids.iter().map(|p| (p.pasid, p.domain, p.parent, p.domain_id.0)).collect();
    let expected = [
        (0, GUEST_DOMAIN, None, 7),
        (SHARED_PASID, SHARED_DOMAIN, None, 8),
        (PROCESS_PASID, PROCESS_DOMAIN, Some(GUEST_DOMAIN), 9),
    ];
    assert_eq!(told, expected);
    let pointer = pasids[2].entry.first_stage_table().get();
    assert_eq!(pointer, IOVA + 0x1000 * PROCESS_TABLES, "as the guest says it");
    let gpu = incoming.retrieve_requester(GPU).unwrap();
    assert!(incoming.pasids_of(GPU).map(|p| p.pasid).eq([1]));
    assert_eq!((gpu.requester, gpu.domain), (requester(GPU_SOURCE), Some((SHARED_DOMAIN, DomainId(8)))));
    assert_eq!(incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ()), 0);
    scene.all_is_well();
}

#[test]
fn what_was_opened_shows_what_was_handed_over() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let opened = liveupdate::open(&scene.machine, container.fdt, store.storage()).unwrap();
    let unit = scene.machine.units[0].id;
    let halves: Vec<_> = opened.context_tables().map(|(u, c)| (u, c.bus, c.half)).collect();
    assert_eq!(halves, [(unit, 0, 0), (unit, 3, 1)]);
    let nic: Vec<_> = opened.pasids(NIC).map(|a| a.pasid).collect();
    assert_eq!(nic, [0, SHARED_PASID, PROCESS_PASID]);
    assert!(opened.requesters().any(|(_, k)| k.token == GPU && k.rid_pasid() == 1));
    for at in [scene.nic, scene.gpu, scene.shared.top, scene.machine.scalable_entry(0, GPU_SOURCE)] {
        assert!(opened.is_table(at.frame()), "{at}");
    }
    assert!(!opened.is_table(shared_memory().first()));
}

#[test]
fn domains_come_before_their_requester_and_nothing_is_retrieved_twice() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    let early = incoming.retrieve_requester(NIC);
    let (requester, domain) = (requester(NIC_SOURCE), GUEST_DOMAIN);
    assert_eq!(early, Err(RetrieveError::DomainFirst { requester, domain }));
    // A nested PASID needs both its domains; without them it is left.
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN]);
    let pasids: Vec<_> = retrieve(&mut incoming, NIC).iter().map(|p| p.pasid).collect();
    assert_eq!(pasids, [0]);
    let again = incoming.retrieve_requester(NIC);
    assert_eq!(again, Err(RetrieveError::Twice(NIC)), "lesson 10");
}

#[test]
fn accessed_and_dirty_bits_that_hardware_writes_after_the_seal_are_no_damage() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    let machine = &scene.machine;
    // Hardware keeps such bits in the guest's second stage too, but for the GPU's sake not in the other one.
    let nic = scene.nic_context();
    machine.put_pasid(nic, 0, second(7, scene.guest).with_ssade(true));
    machine.put_pasid(nic, PROCESS_PASID, nested(9, IOVA + 0x1000 * PROCESS_TABLES, scene.guest));
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    let leaf = machine.entry(scene.shared, SHARED_IOVA, 0);
    let guest_leaf = machine.entry(scene.guest, IOVA + 0x1000, 0);
    let before = machine.get(leaf);
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    machine.jump(&container);
    scene.all_is_well();
    assert_eq!(machine.get(leaf) & !before, 0b11 << 5, "hardware wrote");
    for at in [guest_leaf, machine.entry(scene.guest, IOVA, 3)] {
        machine.set(at, machine.get(at) | 0b11 << 8);
    }
    let mut store = Store::of(16);
    assert_eq!(check(machine, &container, &mut store).violations, 0);
    // Any other bit is damage.
    machine.set(guest_leaf, machine.get(guest_leaf) ^ 1 << 55);
    let mut store = Store::of(16);
    assert_ne!(check(machine, &container, &mut store).violations, 0);
}

#[test]
fn bits_that_hardware_was_not_to_write_are_damage() {
    let scene = Scene::new();
    let container = scene.update();
    // The guest's second stage is walked without accessed and dirty bits.
    let leaf = scene.machine.entry(scene.guest, IOVA, 0);
    scene.machine.set(leaf, scene.machine.get(leaf) | 1 << 8);
    let mut store = Store::of(16);
    let (incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert!(incoming.is_blocked(GUEST_DOMAIN) && !incoming.is_blocked(SHARED_DOMAIN));
}
