//! I7 in scalable mode: a step that fails at any point leaves memory, marks, holds and book as they were.

use crate::common::machine::{Machine, Snapshot, Step};
use crate::common::scalable::*;
use crate::common::scene::freeze;
use crate::common::{Store, requester};
use liveupdate::host::{KeepError, MaySleep};
use liveupdate::{Attached, FreezeError, KeptUnit, Outgoing, PreserveError, Totals};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

type Attempt<'a> = dyn FnMut(&mut Outgoing<'_, '_, Machine>, &mut MaySleep) -> Result<(), PreserveError> + 'a;

type State = (Snapshot, Totals, Vec<KeptUnit>, Vec<Attached>);

/// Everything that may not change when a step fails.
fn state(scene: &Scene, outgoing: &Outgoing<'_, '_, Machine>) -> State {
    let units: Vec<_> = outgoing.units().copied().collect();
    let pasids: Vec<_> = [NIC, GPU].iter().flat_map(|t| outgoing.pasids(*t).copied()).collect();
    (scene.machine.snapshot(), outgoing.totals(), units, pasids)
}

/// Fails the n-th reservation of `attempt` for every n. Says how many there were.
fn fail_every_reservation(
    scene: &Scene,
    outgoing: &mut Outgoing<'_, '_, Machine>,
    attempt: &mut Attempt<'_>,
) -> u32 {
    for n in 0.. {
        let before = state(scene, outgoing);
        scene.machine.fail_reserve.set(Some(n));
        let done = attempt(outgoing, &mut ctx());
        if scene.machine.fail_reserve.take().is_some() {
            done.unwrap(); // it did not come to the n-th
            return n;
        }
        assert!(matches!(done, Err(PreserveError::Keep(KeepError::NoMemory { .. }))), "{n}: {done:?}");
        assert_eq!(state(scene, outgoing), before, "reservation {n}");
    }
    unreachable!()
}

/// Lesson 3: GPU's bus has an upper half and no lower one.
#[test]
fn lesson_03_whichever_reservation_fails_with_one_half_of_a_bus_alone_everything_is_as_before() {
    let (scene, mut store) = (Scene::new(), Store::of(16));
    assert_eq!(scene.machine.get(scene.machine.root_entry(0, 3)), 0, "no lower half");
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx());
    let mut tried = |attempt: &mut Attempt<'_>| fail_every_reservation(&scene, &mut outgoing, attempt);
    // Root, upper context table, directory of one run, PASID table.
    assert_eq!(tried(&mut |o, c| o.preserve_requester(c, GPU, requester(GPU_SOURCE))), 4);
    // The unit is there: context table, directory, PASID table.
    assert_eq!(tried(&mut |o, c| o.preserve_requester(c, NIC, requester(NIC_SOURCE))), 3);
    // In the table of requests without PASID, and in one of its own.
    assert_eq!(tried(&mut |o, c| o.preserve_pasid(c, NIC, SHARED_PASID)), 0);
    assert_eq!(tried(&mut |o, c| o.preserve_pasid(c, NIC, PROCESS_PASID)), 1);
}

#[test]
fn whichever_domain_reservation_fails_everything_is_as_before() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
    for token in [PROCESS_DOMAIN, SHARED_DOMAIN, GUEST_DOMAIN] {
        outgoing.unpreserve_domain(&mut ctx, token).unwrap();
    }
    let mut tried = |attempt: &mut Attempt<'_>| fail_every_reservation(&scene, &mut outgoing, attempt);
    assert_eq!(tried(&mut |o, c| o.preserve_domain(c, SHARED_DOMAIN, scene.shared.of())), 1);
    assert_eq!(tried(&mut |o, c| o.preserve_domain(c, GUEST_DOMAIN, scene.guest.of())), 1);
    // Its tables lie in the guest's memory, which is preserved.
    assert_eq!(tried(&mut |o, c| o.preserve_domain(c, PROCESS_DOMAIN, scene.process())), 0);
}

#[test]
fn storage_that_is_used_up_is_an_error_that_names_it_and_nothing_stays() {
    /// A kind of storage, and how much of it the whole scene needs.
    type Kind = (&'static str, fn(&mut Store, usize), usize);
    let kinds: [Kind; 5] = [
        ("requesters", |s, n| s.requesters.truncate(n), 2),
        ("PASIDs of requesters", |s, n| s.attachments.truncate(n), 4),
        ("PASID directories and tables", |s, n| s.pasid_runs.truncate(n), 5),
        ("context tables", |s, n| s.contexts.truncate(n), 2),
        ("units", |s, n| s.units.truncate(n), 1),
    ];
    for (what, cut, needed) in kinds {
        for room in 0..=needed {
            let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
            cut(&mut store, room);
            let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
            let steps: [&mut Attempt<'_>; 4] = [
                &mut |o, c| o.preserve_requester(c, NIC, requester(NIC_SOURCE)),
                &mut |o, c| o.preserve_pasid(c, NIC, SHARED_PASID),
                &mut |o, c| o.preserve_pasid(c, NIC, PROCESS_PASID),
                &mut |o, c| o.preserve_requester(c, GPU, requester(GPU_SOURCE)),
            ];
            let mut refused = None;
            for step in steps {
                let before = state(&scene, &outgoing);
                if let Err(e) = step(&mut outgoing, &mut ctx) {
                    assert_eq!(state(&scene, &outgoing), before, "{what}: room for {room}");
                    refused = refused.or(Some(e));
                    break;
                }
            }
            match refused {
                None => assert_eq!(room, needed, "{what}"),
                Some(PreserveError::Full(full)) => assert_eq!((full.what, full.capacity), (what, room)),
                Some(other) => panic!("{what}: {other}"),
            }
        }
    }
}

#[test]
fn an_entry_that_changes_between_look_and_commit_is_refused_and_everything_undone() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
    let who = requester(NIC_SOURCE);
    let context = machine.scalable_entry(0, NIC_SOURCE);
    let without_pasid = machine.pasid_entry_at(scene.nic, 0);
    for (at, bit) in [(context.plus(8), 20), (without_pasid.plus(24), 0)] {
        let old = machine.get(at);
        machine.at_reserve.set(Some((at, old ^ 1 << bit)));
        let before = (machine.snapshot().reservations, outgoing.totals());
        assert_eq!(outgoing.preserve_requester(&mut ctx, NIC, who), Err(PreserveError::Changed(who)));
        assert_eq!((machine.snapshot().reservations, outgoing.totals()), before);
        machine.set(at, old);
    }
    outgoing.preserve_requester(&mut ctx, NIC, who).unwrap();
    // The PASID's own entry, and its requester's context entry.
    let process = machine.pasid_entry_at(scene.nic, PROCESS_PASID);
    for (at, bit) in [(process.plus(24), 0), (context.plus(8), 20)] {
        let old = machine.get(at);
        machine.at_reserve.set(Some((at, old ^ 1 << bit)));
        let before = (machine.snapshot().reservations, outgoing.totals());
        let refused = outgoing.preserve_pasid(&mut ctx, NIC, PROCESS_PASID);
        assert_eq!(refused, Err(PreserveError::Changed(who)));
        assert_eq!((machine.snapshot().reservations, outgoing.totals()), before);
        machine.set(at, old);
    }
    outgoing.preserve_pasid(&mut ctx, NIC, PROCESS_PASID).unwrap();
}

#[test]
fn lesson_02_nothing_is_marked_that_was_not_reserved_and_nothing_sleeps_under_a_lock() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    scene.preserve(&mut store, &mut ctx);
    // The machine panics on either. Two regions, two domains, then what the requesters bring.
    let steps = scene.machine.take_steps();
    let count = |f: fn(&Step) -> bool| steps.iter().filter(|s| f(s)).count();
    assert_eq!(count(|s| matches!(s, Step::Reserve(_))), 2 + 2 + 4 + 1 + 3);
    assert_eq!(count(|s| matches!(s, Step::Commit(_))), 12);
}

#[test]
fn a_freeze_that_gets_no_frames_cannot_mark_them_or_has_no_room_leaves_everything_as_before() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    scene.machine.fail_allocate.set(Some(0));
    let failed = freeze(outgoing, &mut ctx).unwrap_err();
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
    scene.machine.fail_reserve.set(Some(0));
    let failed = freeze(failed.outgoing, &mut ctx).unwrap_err();
    assert!(matches!(failed.why, FreezeError::Keep(KeepError::NoMemory { .. })));
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
    let outgoing = freeze(failed.outgoing, &mut ctx).unwrap().unfreeze(&mut ctx);
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    // Two regions, two domains (the guest's own tables are part of its memory), the root, two context tables, five
    // PASID runs, the container.
    for room in 0..=13 {
        let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
        store.runs.truncate(room);
        let outgoing = scene.preserve(&mut store, &mut ctx);
        let before = (scene.machine.snapshot(), outgoing.totals());
        match freeze(outgoing, &mut ctx) {
            Ok(_) => assert_eq!(room, 13),
            Err(failed) => {
                assert!(room < 13 && matches!(failed.why, FreezeError::Full(_)), "{room}: {:?}", failed.why);
                assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
            }
        }
    }
}
