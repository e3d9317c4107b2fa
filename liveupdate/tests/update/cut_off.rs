//! The cut-off: whoever is not preserved is gone, in the right order, and whoever is preserved notices nothing.

use crate::common::machine::{Machine, Step};
use crate::common::scene::*;
use crate::common::unit::Blocked;
use crate::common::{Store, requester};
use liveupdate::host::{Atomic, Forget, MaySleep};
use liveupdate::{Context, CutOffEvent, Outgoing};
use spec::{Requester, UnitId};
use std::collections::BTreeSet;

/// Preserves, exercises, freezes and cuts off, without the jump; says what was reported and done.
fn cut_off(scene: &Scene) -> (Vec<CutOffEvent>, Vec<Step>) {
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    scene.exercise();
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    scene.machine.take_steps();
    let mut events = Vec::new();
    let cut = sealed.cut_off(&Atomic::for_good(ctx), &mut |event| events.push(event));
    assert_eq!(cut.container.fdt.get() % 4096, 0);
    (events, scene.machine.take_steps())
}

fn cleared(events: &[CutOffEvent]) -> BTreeSet<Requester> {
    let one = |e: &CutOffEvent| {
        if let CutOffEvent::Cleared { requester, .. } = e { Some(*requester) } else { None }
    };
    events.iter().filter_map(one).collect()
}

#[test]
fn lesson_01_whoever_hardware_knows_is_cut_off_on_a_list_or_not() {
    let scene = Scene::new();
    let (events, _) = cut_off(&scene);
    assert_eq!(cleared(&events), STRANGERS.map(requester).into());
    let stays = |e: &CutOffEvent| if let CutOffEvent::Stays(requester) = e { Some(*requester) } else { None };
    let stays: BTreeSet<_> = events.iter().filter_map(stays).collect();
    assert_eq!(stays, [AUDIO_SOURCE, DISK_SOURCE, DISK_ALIAS].map(requester).into());
    // All of them had cached translations.
    for stranger in STRANGERS {
        assert!(scene.machine.dma(stranger, IOVA).is_err(), "{stranger}");
    }
    assert_eq!(scene.machine.dma(UNLISTED, IOVA), Err(Blocked::Root), "its bus had nobody else");
    assert_eq!(scene.machine.dma(OTHER, IOVA), Err(Blocked::Context));
    for kept in [AUDIO_SOURCE, DISK_SOURCE, DISK_ALIAS] {
        scene.machine.dma(kept, IOVA).unwrap();
    }
}

#[test]
fn preserved_entries_and_tables_are_not_even_written_to() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let kept = [AUDIO_SOURCE, DISK_SOURCE, DISK_ALIAS].map(|s| machine.context_entry(0, s).get());
    let roots = [0, 2].map(|bus| machine.root_entry(0, bus).get());
    let top = scene.audio.top.get();
    let (_, steps) = cut_off(&scene);
    let writes =
        || steps.iter().filter_map(|s| if let Step::Write { at, .. } = s { Some(*at) } else { None });
    assert!(writes().count() > 0);
    for at in writes() {
        assert!(!kept.iter().chain(&roots).any(|e| (*e..e + 16).contains(&at)), "{at:#x}");
        assert!(!(top..top + 3 * 4096).contains(&at), "{at:#x}: a shared domain's table");
    }
}

#[test]
fn lesson_15_present_bits_go_first_then_hardware_forgets_then_the_rest_is_wiped() {
    let scene = Scene::new();
    let (_, steps) = cut_off(&scene);
    let forgets: Vec<_> = (0..steps.len()).filter(|i| matches!(steps[*i], Step::Forget(..))).collect();
    let [forget] = forgets[..] else { panic!("{forgets:?}") };
    assert_eq!(steps[forget], Step::Forget(scene.machine.units[0].id, Forget::Everything));
    for step in &steps[..forget] {
        let Step::Write { before, after, at } = step else { panic!("{step:?}") };
        assert!(at % 16 == 0 && before & 1 == 1, "{step:?}");
        assert_eq!(*after, before & !1, "the present bit alone");
    }
    for step in &steps[forget + 1..] {
        let Step::Write { before, after, at } = step else { panic!("{step:?}") };
        assert!(*after == 0 && (at % 16 == 8 || before & 1 == 0), "{step:?}");
    }
    // Two entries in tables that stay, two buses that go.
    assert_eq!(forget, 4);
    for stranger in [OTHER, SHARING] {
        let at = scene.machine.context_entry(0, stranger);
        assert_eq!((scene.machine.get(at), scene.machine.get(at.plus(8))), (0, 0));
    }
    for bus in [1, 0xf0] {
        assert_eq!(scene.machine.get(scene.machine.root_entry(0, bus)), 0);
    }
}

#[test]
fn nothing_between_freeze_and_jump_reserves_allocates_or_gives_back() {
    let (_, steps) = cut_off(&Scene::with_units(3));
    let allowed = |s: &Step| matches!(s, Step::Write { .. } | Step::Forget(..) | Step::Disable(_));
    assert!(steps.iter().all(allowed), "{steps:?}");
}

#[test]
fn a_shared_domain_stays_while_the_entry_of_its_unpreserved_user_goes() {
    let scene = Scene::new();
    let (events, _) = cut_off(&scene);
    assert!(cleared(&events).contains(&requester(SHARING)));
    assert_eq!(scene.machine.dma(SHARING, IOVA), Err(Blocked::Context));
    assert_eq!(scene.machine.dma(AUDIO_SOURCE, IOVA + 5), Ok(sound().start().get() + 5));
}

#[test]
fn a_requester_in_pass_through_that_is_not_preserved_is_cut_off_too() {
    let scene = Scene::new();
    let through = crate::common::tables::context(9, scene.other).with_tt(2);
    scene.machine.put_context(0, OTHER, through);
    let (events, _) = cut_off(&scene);
    assert!(
        events
            .contains(&CutOffEvent::Cleared { requester: requester(OTHER), entry: Context::Legacy(through) })
    );
    assert_eq!(scene.machine.dma(OTHER, 0x1234_5000), Err(Blocked::Context));
}

#[test]
fn a_unit_with_nothing_preserved_is_switched_off_as_at_a_normal_shutdown() {
    let scene = Scene::with_units(2);
    let (events, steps) = cut_off(&scene);
    let [first, second] = [0, 1].map(|i| scene.machine.units[i].id);
    assert!(events.contains(&CutOffEvent::SwitchedOff(second)));
    assert!(steps.contains(&Step::Disable(second)) && !steps.contains(&Step::Disable(first)));
    assert!(scene.machine.units[0].status.get().tes() && !scene.machine.units[1].status.get().tes());
}

#[test]
fn with_nothing_preserved_every_unit_is_switched_off() {
    let scene = Scene::with_units(2);
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing: Outgoing<'_, '_, Machine> = Outgoing::new(&scene.machine, store.storage());
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    let mut events = Vec::new();
    let _ = sealed.cut_off(&Atomic::for_good(ctx), &mut |event| events.push(event));
    assert!(events.iter().all(|e| matches!(e, CutOffEvent::SwitchedOff(_))) && events.len() == 2);
}

#[test]
fn a_unit_that_does_not_answer_is_reported_and_the_others_are_cut_off_all_the_same() {
    let scene = Scene::with_units(3);
    scene.machine.attach(1, OTHER, 9, scene.other);
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let shared = crate::common::source(0, 8, 0);
    scene.machine.functions.borrow_mut().insert(requester(shared));
    scene.machine.attach(1, shared, 4, scene.audio);
    outgoing.preserve_requester(&mut ctx, liveupdate::Token(77), requester(shared)).unwrap();
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    scene.machine.units[0].hangs.set(true);
    scene.machine.units[2].hangs.set(true);
    let mut events = Vec::new();
    let _ = sealed.cut_off(&Atomic::for_good(ctx), &mut |event| events.push(event));
    let ids: Vec<UnitId> = scene.machine.units.iter().map(|u| u.id).collect();
    let late = |e: &CutOffEvent| if let CutOffEvent::NotConfirmed(t) = e { Some(t.unit) } else { None };
    assert_eq!(events.iter().filter_map(late).collect::<Vec<_>>(), [ids[0], ids[2]]);
    assert!(events.contains(&CutOffEvent::Confirmed(ids[1])));
    assert!(!events.contains(&CutOffEvent::Confirmed(ids[0])));
    assert_eq!(scene.machine.dma(OTHER, IOVA), Err(Blocked::Context), "unit 1 was cut off");
    assert!(cleared(&events).contains(&requester(UNLISTED)), "unit 0 too, as far as memory goes");
}

#[test]
fn a_context_table_in_no_memory_is_cut_off_at_its_root_entry() {
    let scene = Scene::new();
    scene.machine.set(scene.machine.root_entry(0, 0x44), 0x7_ffff_f000 | 1);
    let (events, _) = cut_off(&scene);
    assert!(events.iter().any(|e| matches!(e, CutOffEvent::Unreachable(n) if n.at.get() == 0x7_ffff_f000)));
    assert_eq!(scene.machine.get(scene.machine.root_entry(0, 0x44)), 0);
    scene.machine.dma(AUDIO_SOURCE, IOVA).unwrap();
}
