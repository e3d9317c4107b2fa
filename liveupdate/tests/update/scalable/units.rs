//! Units in different modes in one update: each is walked, cut off, digested and adopted in its own.

use super::adoption::{adopt, retrieve, retrieve_domains};
use crate::common::machine::Machine;
use crate::common::scalable::*;
use crate::common::scene::freeze;
use crate::common::{Store, requester, source};
use liveupdate::host::{Adoptable, Atomic, MaySleep};
use liveupdate::{Container, FreezeError, NotAdoptable, Token};
use spec::{DomainId, SourceId};

/// Behind the second unit, in legacy mode, in the guest's domain under an id that is another domain's on the first.
const DISK: Token = Token(0x60);
const DISK_SOURCE: SourceId = SourceId::new(0, 0x16, 0);
const LEGACY_STRANGER: SourceId = SourceId::new(0, 0x17, 0);

fn mixed() -> Scene {
    let scene = Scene::on(Machine::new(2), 0, 1);
    let machine = &scene.machine;
    machine.attach(1, DISK_SOURCE, 8, scene.guest);
    machine.attach(1, LEGACY_STRANGER, 9, scene.guest);
    machine.functions.borrow_mut().extend([DISK_SOURCE, LEGACY_STRANGER].map(requester));
    scene
}

fn update(scene: &Scene) -> Container {
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    outgoing.preserve_requester(&mut ctx, DISK, requester(DISK_SOURCE)).unwrap();
    scene.exercise();
    for who in [DISK_SOURCE, LEGACY_STRANGER] {
        scene.machine.dma(who, IOVA).unwrap();
    }
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    scene.machine.jump(&container);
    container
}

#[test]
fn lesson_08_a_domain_on_units_of_both_modes_has_an_id_on_each_and_goes_on_on_both() {
    let scene = mixed();
    let container = update(&scene);
    let well = |scene: &Scene| {
        scene.all_is_well();
        assert_eq!(scene.machine.dma(DISK_SOURCE, IOVA + 8), Ok(guest_memory().start().get() + 8));
        assert!(scene.machine.dma(LEGACY_STRANGER, IOVA).is_err());
        assert!(STRANGERS.iter().all(|who| scene.machine.dma(*who, IOVA).is_err()));
    };
    well(&scene);
    let [first, second] = [0, 1].map(|n| scene.machine.units[n].id);
    let (mut store, mut reserved) = (Store::of(16), Vec::new());
    let reserve = &mut |unit, id: DomainId| {
        reserved.push((unit, id.0));
        true
    };
    let (mut incoming, _, violations) = adopt(&scene, &container, &mut store, reserve);
    assert_eq!(violations, 0);
    reserved.sort_unstable();
    assert_eq!(reserved, [(first, 7), (first, 8), (first, 9), (second, 8)]);
    incoming.retrieve_domain(GUEST_DOMAIN).unwrap();
    assert!(incoming.domain_ids_of(GUEST_DOMAIN).eq([(first, DomainId(7)), (second, DomainId(8))]));
    retrieve_domains(&mut incoming, &[SHARED_DOMAIN, PROCESS_DOMAIN]);
    assert_eq!([NIC, GPU, DISK].map(|token| retrieve(&mut incoming, token).len()), [3, 1, 1]);
    assert_eq!(incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ()), 0);
    well(&scene);
}

#[test]
fn lesson_14_a_next_kernel_must_drive_the_modes_of_all_units() {
    let (scene, mut store) = (mixed(), Store::of(16));
    let mut ctx = MaySleep::at_thread_start();
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    outgoing.preserve_requester(&mut ctx, DISK, requester(DISK_SOURCE)).unwrap();
    let mut words = vec![0; 1 << 15];
    for (successor, unit) in [
        (Adoptable { legacy: false, ..Adoptable::EVERYTHING }, 1),
        (Adoptable { scalable: false, ..Adoptable::EVERYTHING }, 0),
    ] {
        let input = super::continuity::input(successor);
        let scratch = &mut audit::Scratch::new(&mut words);
        let failed = outgoing.freeze(&mut ctx, &input, scratch, &mut |_| ()).unwrap_err();
        let FreezeError::NotAdoptable(NotAdoptable::Mode { unit: named, .. }) = failed.why else {
            panic!("{}", failed.why)
        };
        assert_eq!(named, scene.machine.units[unit].id);
        outgoing = failed.outgoing;
    }
}

#[test]
fn an_entry_that_is_wrong_on_one_unit_blocks_its_domain_on_both_and_no_other() {
    let scene = mixed();
    let container = update(&scene);
    // The legacy unit's stranger came back, and its preserved entry got another id.
    let at = scene.machine.context_entry(1, DISK_SOURCE).plus(8);
    scene.machine.set(at, scene.machine.get(at) ^ 1 << 20);
    scene.machine.attach(1, source(7, 0, 0), 8, scene.guest);
    let mut store = Store::of(16);
    let (incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert!(incoming.is_blocked(GUEST_DOMAIN), "an entry of it is wrong: it is blocked on both");
    assert!(!incoming.is_blocked(SHARED_DOMAIN));
    assert!(scene.machine.dma(DISK_SOURCE, IOVA).is_err() && scene.machine.dma(NIC_SOURCE, IOVA).is_err());
    scene.machine.request(NIC_SOURCE, Some(SHARED_PASID), SHARED_IOVA).unwrap();
    scene.machine.dma(GPU_SOURCE, SHARED_IOVA).unwrap();
}
