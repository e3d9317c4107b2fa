//! Requesters behind one bridge: they share an alias, and with it their context entry and their PASID directory.

use super::adoption::{adopt, retrieve, retrieve_domains};
use crate::common::machine::Machine;
use crate::common::scalable::*;
use crate::common::scene::{check, freeze};
use crate::common::unit::Blocked;
use crate::common::{Store, requester, source};
use liveupdate::host::{Atomic, MaySleep};
use liveupdate::{Container, Outgoing, PreserveError, Token};
use spec::SourceId;

const FIRST: SourceId = SourceId::new(5, 0, 0);
const SECOND: SourceId = SourceId::new(5, 0x11, 0);
/// In the upper half of its bus, which has no lower one.
const BRIDGE: SourceId = SourceId::new(4, 0x1e, 0);
const ONE: Token = Token(0x51);
const TWO: Token = Token(0x52);

/// The scene with two more requesters, in different halves of a bus, behind one bridge.
fn bridged() -> Scene {
    let scene = Scene::new();
    let machine = &scene.machine;
    let context = machine.directory(0);
    machine.put_pasid(context, 0, second(7, scene.guest));
    machine.put_pasid(context, SHARED_PASID, first(8, scene.shared));
    machine.put_pasid(context, 200, first(8, scene.shared));
    machine.put_pasid(context, 6, first(10, scene.other));
    for who in [FIRST, SECOND, BRIDGE] {
        machine.put_scalable(0, who, context);
    }
    machine.functions.borrow_mut().extend([FIRST, SECOND].map(requester));
    for who in [FIRST, SECOND] {
        machine.aliases.borrow_mut().insert(requester(who), vec![BRIDGE]);
    }
    scene
}

/// One has PASID 5, the other 200.
fn preserve<'h, 's>(scene: &'h Scene, store: &'s mut Store, ctx: &mut MaySleep) -> Outgoing<'h, 's, Machine> {
    let mut outgoing = scene.preserve(store, ctx);
    outgoing.preserve_requester(ctx, ONE, requester(FIRST)).unwrap();
    outgoing.preserve_pasid(ctx, ONE, SHARED_PASID).unwrap();
    outgoing.preserve_requester(ctx, TWO, requester(SECOND)).unwrap();
    outgoing.preserve_pasid(ctx, TWO, 200).unwrap();
    outgoing
}

fn update(scene: &Scene) -> Container {
    let (mut store, mut ctx) = (Store::of(32), MaySleep::at_thread_start());
    let sealed = freeze(preserve(scene, &mut store, &mut ctx), &mut ctx).unwrap();
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    scene.machine.jump(&container);
    container
}

#[test]
fn what_either_of_them_preserved_goes_on_for_both() {
    let scene = bridged();
    let container = update(&scene);
    for who in [FIRST, SECOND, BRIDGE] {
        for (pasid, iova) in [(None, IOVA), (Some(SHARED_PASID), SHARED_IOVA), (Some(200), SHARED_IOVA)] {
            assert!(scene.machine.request(who, pasid, iova).is_ok(), "{who} {pasid:?}");
        }
        assert_eq!(scene.machine.request(who, Some(6), IOVA), Err(Blocked::Pasid));
    }
    let mut store = Store::of(32);
    assert_eq!(check(&scene.machine, &container, &mut store).violations, 0);
}

#[test]
fn the_shared_directory_is_kept_until_the_last_of_them_is_taken_back() {
    let (scene, mut store, mut ctx) = (bridged(), Store::of(32), MaySleep::at_thread_start());
    let without = {
        let mut store = Store::of(32);
        let _outgoing = scene.preserve(&mut store, &mut ctx);
        let snapshot = scene.machine.snapshot();
        scene.machine.reservations.take();
        scene.machine.holds.take();
        snapshot
    };
    let mut outgoing = preserve(&scene, &mut store, &mut ctx);
    let directory = scene.machine.scalable_words(0, FIRST).directory().frame().number();
    let table_of_200 = scene.machine.get(scene.machine.scalable_words(0, FIRST).directory().plus(24)) >> 12;
    outgoing.unpreserve_requester(&mut ctx, ONE).unwrap();
    assert!(scene.machine.marked().contains(&directory) && scene.machine.marked().contains(&table_of_200));
    outgoing.unpreserve_pasid(&mut ctx, TWO, 200).unwrap();
    assert!(!scene.machine.marked().contains(&table_of_200));
    outgoing.unpreserve_requester(&mut ctx, TWO).unwrap();
    assert_eq!(scene.machine.snapshot(), without);
}

#[test]
fn a_pasid_that_one_of_them_retrieved_stays_for_both() {
    let scene = bridged();
    let container = update(&scene);
    let mut store = Store::of(32);
    let (mut incoming, _, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert_eq!(violations, 0);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, SHARED_DOMAIN]);
    // Each is told all PASIDs of the directory: its own and the other's.
    let pasids = |list: Vec<liveupdate::RetrievedPasid>| {
        let mut pasids: Vec<_> = list.iter().map(|p| p.pasid).collect();
        pasids.sort_unstable();
        pasids
    };
    assert_eq!(pasids(retrieve(&mut incoming, ONE)), [0, SHARED_PASID, 200]);
    let mut ctx = MaySleep::at_thread_start();
    // The second, the NIC and the GPU are left.
    assert_eq!(incoming.finish(&mut ctx, &mut |_| ()), 3);
    for who in [FIRST, BRIDGE] {
        assert!(scene.machine.dma(who, IOVA).is_ok());
        assert!(scene.machine.request(who, Some(200), SHARED_IOVA).is_ok());
    }
    assert_eq!(scene.machine.dma(SECOND, IOVA), Err(Blocked::Context));
}

#[test]
fn a_pasid_that_only_the_second_of_them_retrieved_is_not_cut_off_for_the_first() {
    let scene = bridged();
    let container = update(&scene);
    let mut store = Store::of(32);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN]);
    assert_eq!(retrieve(&mut incoming, ONE).len(), 1);
    retrieve_domains(&mut incoming, &[SHARED_DOMAIN]);
    assert_eq!(retrieve(&mut incoming, TWO).len(), 3);
    // The NIC and the GPU are left.
    assert_eq!(incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ()), 2);
    for who in [FIRST, SECOND, BRIDGE] {
        assert!(scene.machine.request(who, Some(SHARED_PASID), SHARED_IOVA).is_ok(), "{who}");
        assert!(scene.machine.request(who, Some(200), SHARED_IOVA).is_ok(), "{who}");
    }
}

#[test]
fn an_alias_in_another_half_with_another_entry_or_none_is_named() {
    let (scene, mut store, mut ctx) = (bridged(), Store::of(32), MaySleep::at_thread_start());
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let who = requester(FIRST);
    for alias in [source(4, 0, 0), OTHER, source(0x77, 0x1f, 7)] {
        scene.machine.aliases.borrow_mut().insert(who, vec![BRIDGE, alias]);
        let refused = outgoing.preserve_requester(&mut ctx, ONE, who);
        assert_eq!(refused, Err(PreserveError::AliasDiffers { requester: who, alias }));
        assert_eq!((scene.machine.snapshot(), outgoing.totals()), before, "lesson 3");
    }
}
