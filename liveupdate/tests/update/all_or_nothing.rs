//! I7: a step that fails at any point leaves memory, marks, holds and book as they were.

use crate::common::machine::{Machine, Step};
use crate::common::scene::*;
use crate::common::{Store, extent, requester, source};
use liveupdate::host::{KeepError, MaySleep};
use liveupdate::{FreezeError, Outgoing, PreserveError, RegionKind, Token};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

/// One step that may fail.
type Attempt<'a> = dyn FnMut(&mut Outgoing<'_, '_, Machine>, &mut MaySleep) -> Result<(), PreserveError> + 'a;

/// Fails the n-th reservation of `attempt` for every n. Says how many there were.
fn fail_every_reservation(
    machine: &Machine,
    outgoing: &mut Outgoing<'_, '_, Machine>,
    attempt: &mut Attempt<'_>,
) -> u32 {
    let mut ctx = ctx();
    for n in 0.. {
        let units = |o: &Outgoing<'_, '_, Machine>| o.units().copied().collect::<Vec<_>>();
        let before = (machine.snapshot(), outgoing.totals(), units(outgoing));
        machine.fail_reserve.set(Some(n));
        let done = attempt(outgoing, &mut ctx);
        if machine.fail_reserve.take().is_some() {
            done.unwrap(); // it did not come to the n-th
            return n;
        }
        assert!(matches!(done, Err(PreserveError::Keep(KeepError::NoMemory { .. }))), "{n}: {done:?}");
        let after = (machine.snapshot(), outgoing.totals(), units(outgoing));
        assert_eq!(after, before, "reservation {n}");
    }
    unreachable!()
}

#[test]
fn lesson_03_whichever_reservation_fails_everything_is_as_before() {
    let (scene, mut store) = (Scene::new(), Store::of(16));
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    let mut tried =
        |attempt: &mut Attempt<'_>| fail_every_reservation(&scene.machine, &mut outgoing, attempt);
    let memory = |o: &mut Outgoing<'_, '_, _>, c: &mut _, token, at| {
        o.preserve_region(c, token, at, RegionKind::Memory)
    };
    assert_eq!(tried(&mut |o, c| memory(o, c, SOUND, sound())), 1);
    assert_eq!(tried(&mut |o, c| memory(o, c, DISK_MEMORY, disk_memory())), 1);
    assert_eq!(tried(&mut |o, c| o.preserve_region(c, BAR, bar(), RegionKind::Device)), 0);
    assert_eq!(tried(&mut |o, c| o.preserve_domain(c, AUDIO_DOMAIN, scene.audio.of())), 1);
    assert_eq!(tried(&mut |o, c| o.preserve_domain(c, DISK_DOMAIN, scene.disk.of())), 1);
    // Root table, own context table, the alias' context table.
    assert_eq!(tried(&mut |o, c| o.preserve_requester(c, DISK, requester(DISK_SOURCE))), 3);
    // Unit and context table are preserved already.
    assert_eq!(tried(&mut |o, c| o.preserve_requester(c, AUDIO, requester(AUDIO_SOURCE))), 0);
    // The unit is preserved already, and counts another requester.
    outgoing.unpreserve_requester(&mut ctx(), DISK).unwrap();
    let mut tried =
        |attempt: &mut Attempt<'_>| fail_every_reservation(&scene.machine, &mut outgoing, attempt);
    assert_eq!(tried(&mut |o, c| o.preserve_requester(c, DISK, requester(DISK_SOURCE))), 1);
    assert_eq!(outgoing.units().next().unwrap().requesters, 2);
}

#[test]
fn a_domain_of_scattered_tables_is_undone_run_by_run_in_reverse() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(64), ctx());
    let machine = &scene.machine;
    let scattered = machine.domain(3);
    for n in 0..6 {
        machine.skip_table();
        machine.map(scattered, n << 30, extent(sound().start().get(), 1));
    }
    let mut outgoing = Outgoing::new(machine, store.storage());
    outgoing.preserve_region(&mut ctx, SOUND, sound(), RegionKind::Memory).unwrap();
    let reservations = fail_every_reservation(machine, &mut outgoing, &mut |o, c| {
        machine.take_steps();
        o.preserve_domain(c, Token(5), scattered.of())
    });
    assert_eq!(reservations, 7);
    outgoing.unpreserve_domain(&mut ctx, Token(5)).unwrap();
    machine.take_steps();
    machine.fail_reserve.set(Some(4));
    outgoing.preserve_domain(&mut ctx, Token(5), scattered.of()).unwrap_err();
    let steps = machine.take_steps();
    let reserved: Vec<_> =
        steps.iter().filter_map(|s| if let Step::Reserve(e) = s { Some(*e) } else { None }).collect();
    let released = steps.iter().filter_map(|s| if let Step::Release(e) = s { Some(*e) } else { None });
    assert_eq!(reserved.len(), 4);
    assert!(released.eq(reserved.into_iter().rev()));
}

#[test]
fn lesson_02_nothing_is_marked_that_was_not_reserved_and_nothing_sleeps_under_a_lock() {
    // The machine panics on either; here it is seen that it would have noticed.
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    scene.preserve(&mut store, &mut ctx);
    let steps = scene.machine.take_steps();
    let count = |f: fn(&Step) -> bool| steps.iter().filter(|s| f(s)).count();
    assert_eq!(count(|s| matches!(s, Step::Reserve(_))), count(|s| matches!(s, Step::Commit(_))));
    assert!(count(|s| matches!(s, Step::Commit(_))) >= 7);
    let slept = std::panic::catch_unwind(|| {
        let machine = Machine::new(1);
        machine.shared.depth.set(1);
        let keeper: &dyn liveupdate::host::FrameKeeper = &machine;
        keeper.reserve(&mut MaySleep::at_thread_start(), sound())
    });
    assert!(slept.is_err());
}

#[test]
fn lesson_03_failure_at_an_alias_on_a_bus_without_a_table_undoes_just_what_was_done() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let mut outgoing = Outgoing::new(machine, store.storage());
    outgoing.preserve_region(&mut ctx, SOUND, sound(), RegionKind::Memory).unwrap();
    outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, scene.audio.of()).unwrap();
    let bare = source(0x77, 0, 0);
    machine.aliases.borrow_mut().insert(requester(AUDIO_SOURCE), vec![bare]);
    let before = (machine.snapshot(), outgoing.totals());
    let refused = outgoing.preserve_requester(&mut ctx, AUDIO, requester(AUDIO_SOURCE));
    let differs = PreserveError::AliasDiffers { requester: requester(AUDIO_SOURCE), alias: bare };
    assert_eq!(refused, Err(differs));
    assert_eq!((machine.snapshot(), outgoing.totals()), before);
    // The same with the unit already preserved: its count stays.
    machine.aliases.borrow_mut().remove(&requester(AUDIO_SOURCE));
    outgoing.preserve_requester(&mut ctx, AUDIO, requester(AUDIO_SOURCE)).unwrap();
    machine.aliases.borrow_mut().insert(requester(SHARING), vec![bare]);
    let before = (machine.snapshot(), outgoing.totals(), *outgoing.units().next().unwrap());
    outgoing.preserve_requester(&mut ctx, Token(50), requester(SHARING)).unwrap_err();
    assert_eq!((machine.snapshot(), outgoing.totals(), *outgoing.units().next().unwrap()), before);
}

#[test]
fn a_context_entry_that_changes_between_look_and_commit_is_refused_and_everything_undone() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let (machine, who) = (&scene.machine, requester(AUDIO_SOURCE));
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    outgoing.preserve_region(&mut ctx, SOUND, sound(), RegionKind::Memory).unwrap();
    outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, scene.audio.of()).unwrap();
    let at = machine.context_entry(0, who.source).plus(8);
    let (old, new) = (machine.get(at), machine.get(at) ^ 1 << 8);
    machine.at_reserve.set(Some((at, new)));
    let before = (machine.snapshot().reservations, outgoing.totals());
    let refused = outgoing.preserve_requester(&mut ctx, AUDIO, who);
    assert_eq!(refused, Err(PreserveError::Changed(who)));
    assert_eq!((machine.snapshot().reservations, outgoing.totals()), before);
    machine.set(at, old);
    outgoing.preserve_requester(&mut ctx, AUDIO, who).unwrap();
}

#[test]
fn a_freeze_that_gets_no_frames_or_cannot_mark_them_leaves_everything_as_before() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (machine.snapshot(), outgoing.totals());
    machine.fail_allocate.set(Some(0));
    let failed = freeze(outgoing, &mut ctx).unwrap_err();
    assert!(matches!(failed.why, FreezeError::Keep(KeepError::NoMemory { .. })));
    assert_eq!((machine.snapshot(), failed.outgoing.totals()), before);
    machine.fail_reserve.set(Some(0));
    let failed = freeze(failed.outgoing, &mut ctx).unwrap_err();
    assert!(matches!(failed.why, FreezeError::Keep(KeepError::NoMemory { .. })));
    assert_eq!((machine.snapshot(), failed.outgoing.totals()), before);
    // One of each is all that a freeze needs.
    machine.fail_allocate.set(Some(1));
    machine.fail_reserve.set(Some(1));
    let sealed = freeze(failed.outgoing, &mut ctx).unwrap();
    let outgoing = sealed.unfreeze(&mut ctx);
    assert_eq!((machine.snapshot(), outgoing.totals()), before);
}

#[test]
fn a_freeze_without_room_to_sort_the_runs_is_refused_and_leaves_everything_as_before() {
    for room in 0..=8 {
        let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
        store.runs.truncate(room);
        let outgoing = scene.preserve(&mut store, &mut ctx);
        let before = (scene.machine.snapshot(), outgoing.totals());
        // Two regions, two domains, the root, two context tables, the container.
        match freeze(outgoing, &mut ctx) {
            Ok(_) => assert_eq!(room, 8),
            Err(failed) => {
                assert!(room < 8 && matches!(failed.why, FreezeError::Full(_)), "{room}: {:?}", failed.why);
                assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
            }
        }
    }
}
