//! Interrupt remapping across an update: the table stays in place, entries of the preserved stay, others go.

use crate::common::interrupts::{msi, posted};
use crate::common::machine::{Machine, Step};
use crate::common::reseal::{records, reseal};
use crate::common::scene::*;
use crate::common::{Store, requester};
use audit::{Invariant, What};
use liveupdate::host::{Atomic, MaySleep};
use liveupdate::{
    AdoptEvent, Container, CutOffEvent, FreezeError, Incoming, OpenError, PreserveError, RetrieveError, open,
};
use spec::handover::{self, kind};
use spec::interrupt::RemappedEntry;
use spec::regs::Irta;
use spec::{Extent, PhysAddr};

const OWN: u32 = 3;
const ALIAS: u32 = 7;
const STRANGER: u32 = 8;
const ANYBODY: u32 = 9;
const POSTED: u32 = 10;
/// In the second frame of the table.
const FAR: u32 = 400;

fn descriptor() -> u64 {
    sound().start().get() + 0x1040
}

/// The usual machine, with interrupts.
fn scene() -> Scene {
    let scene = Scene::new();
    let machine = &scene.machine;
    machine.remap_interrupts(0);
    machine.put_interrupt(0, OWN, msi(AUDIO_SOURCE, 0x41));
    machine.put_interrupt(0, ALIAS, msi(DISK_ALIAS, 0x42));
    machine.put_interrupt(0, FAR, msi(DISK_SOURCE, 0x43));
    machine.put_interrupt(0, STRANGER, msi(OTHER, 0x44));
    let anybody = RemappedEntry::from_raw(msi(AUDIO_SOURCE, 0x45)).with_svt(0).raw();
    machine.put_interrupt(0, ANYBODY, anybody);
    machine.put_interrupt(0, POSTED, posted(AUDIO_SOURCE, descriptor()));
    scene
}

fn table(machine: &Machine) -> Extent {
    machine.units[0].irta.get().and_then(Irta::frames).unwrap()
}

fn adopt<'h, 's>(
    scene: &'h Scene,
    container: &Container,
    store: &'s mut Store,
) -> (Incoming<'h, 's, Machine>, Vec<AdoptEvent>, u32) {
    let checked = check(&scene.machine, container, store);
    let (violations, mut events) = (checked.violations, Vec::new());
    let mut ctx = MaySleep::at_thread_start();
    let incoming = checked.adopt(&scene.machine, &mut ctx, &mut |_, _| true, &mut |e| events.push(e));
    (incoming, events, violations)
}

fn retrieve_all(incoming: &mut Incoming<'_, '_, Machine>) {
    for (domain, who) in [(AUDIO_DOMAIN, AUDIO), (DISK_DOMAIN, DISK)] {
        incoming.retrieve_domain(domain).unwrap();
        incoming.retrieve_requester(who).unwrap();
    }
}

#[test]
fn interrupts_of_the_preserved_pass_in_the_gap_and_after_and_remapping_never_goes_off() {
    let scene = scene();
    let container = scene.update();
    let machine = &scene.machine;
    assert_eq!(machine.interrupt(0, AUDIO_SOURCE, OWN), Some(0x41), "in the gap");
    assert_eq!(machine.interrupt(0, DISK_ALIAS, ALIAS), Some(0x42));
    let mut store = Store::of(16);
    let (mut incoming, _, violations) = adopt(&scene, &container, &mut store);
    assert_eq!(violations, 0);
    assert!(machine.units[0].status.get().ires());
    assert_eq!(machine.interrupt(0, DISK_SOURCE, FAR), Some(0x43), "adopted");
    let not_yet = incoming.retrieve_interrupts(AUDIO, &mut |_, _| ());
    assert_eq!(not_yet, Err(RetrieveError::Unknown(AUDIO)), "the requester comes first");
    retrieve_all(&mut incoming);
    let mut found = Vec::new();
    assert_eq!(incoming.retrieve_interrupts(AUDIO, &mut |index, words| found.push((index, words))), Ok(2));
    let expected = [(3, msi(AUDIO_SOURCE, 0x41)), (10, posted(AUDIO_SOURCE, descriptor()))];
    assert_eq!(found, expected);
    found.clear();
    assert_eq!(incoming.retrieve_interrupts(DISK, &mut |index, words| found.push((index, words))), Ok(2));
    assert_eq!(found, [(7, msi(DISK_ALIAS, 0x42)), (400, msi(DISK_SOURCE, 0x43))], "its alias's too");
    incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ());
    assert_eq!(machine.interrupt(0, DISK_SOURCE, FAR), Some(0x43), "finished");
    assert!(machine.take_steps().iter().all(|s| !matches!(s, Step::InterruptsOff(_))));
}

#[test]
fn interrupts_of_whoever_was_cut_off_are_blocked_whatever_hardware_had_cached() {
    let scene = scene();
    let machine = &scene.machine;
    assert_eq!(machine.interrupt(0, OTHER, STRANGER), Some(0x44));
    assert_eq!(machine.interrupt(0, OTHER, ANYBODY), Some(0x45));
    let mut cleared = Vec::new();
    scene.update_with(&mut |e| {
        if let CutOffEvent::InterruptCleared { index, entry, .. } = e {
            cleared.push((u32::from(index), entry[0] >> 16 & 0xff));
        }
    });
    assert_eq!(cleared, [(STRANGER, 0x44), (ANYBODY, 0x45)]);
    assert_eq!(machine.interrupt(0, OTHER, STRANGER), None);
    assert_eq!(machine.interrupt(0, OTHER, ANYBODY), None);
    assert_eq!(machine.interrupt_words(0, STRANGER), [0, 0], "nothing is left behind");
}

#[test]
fn lesson_15_present_bits_go_first_then_hardware_forgets_then_entries_are_wiped() {
    let scene = scene();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let sealed = freeze(scene.preserve(&mut store, &mut ctx), &mut ctx).unwrap();
    scene.machine.take_steps();
    let _ = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ());
    let steps = scene.machine.take_steps();
    let at = table(&scene.machine).start().get() + 16 * u64::from(STRANGER);
    let mine = |s: &&Step| match s {
        Step::Write { at: to, .. } => (at..at + 16).contains(to),
        other => matches!(other, Step::ForgetInterrupts(_)),
    };
    let [low, high] = msi(OTHER, 0x44);
    let expected = [
        Step::Write { at, before: low, after: low & !1 },
        Step::ForgetInterrupts(scene.machine.units[0].id),
        Step::Write { at, before: low & !1, after: 0 },
        Step::Write { at: at + 8, before: high, after: 0 },
    ];
    assert!(steps.iter().filter(mine).eq(&expected), "{steps:?}");
}

#[test]
fn the_table_is_preserved_with_the_first_requester_and_released_with_the_last() {
    let scene = scene();
    let machine = &scene.machine;
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let before = machine.snapshot();
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let frames = table(machine);
    let marked = |machine: &Machine| machine.marked().contains(&(frames.end().number() - 1));
    assert!(marked(machine));
    outgoing.unpreserve_requester(&mut ctx, AUDIO).unwrap();
    assert!(marked(machine), "the other requester of the unit keeps it");
    outgoing.unpreserve_requester(&mut ctx, DISK).unwrap();
    assert!(!marked(machine));
    for token in [AUDIO_DOMAIN, DISK_DOMAIN] {
        outgoing.unpreserve_domain(&mut ctx, token).unwrap();
    }
    for token in [SOUND, DISK_MEMORY, BAR] {
        outgoing.unpreserve_region(&mut ctx, token).unwrap();
    }
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn i7_whatever_reservation_fails_the_table_is_marked_with_a_requester_or_not_at_all() {
    for fails_at in 0..8 {
        let scene = scene();
        let machine = &scene.machine;
        let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
        let mut outgoing = scene.preserve(&mut store, &mut ctx);
        outgoing.unpreserve_requester(&mut ctx, AUDIO).unwrap();
        outgoing.unpreserve_requester(&mut ctx, DISK).unwrap();
        let before = machine.snapshot();
        machine.fail_reserve.set(Some(fails_at));
        let refused = outgoing.preserve_requester(&mut ctx, AUDIO, requester(AUDIO_SOURCE)).is_err();
        machine.fail_reserve.set(None);
        assert_eq!(refused, fails_at < 3, "root, context and interrupt tables");
        assert_eq!(machine.snapshot() == before, refused);
    }
}

#[test]
fn entries_may_change_until_the_freeze_and_what_is_sealed_is_what_is_there_then() {
    let scene = scene();
    let machine = &scene.machine;
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    machine.put_interrupt(0, OWN, [0; 2]);
    machine.put_interrupt(0, 20, msi(AUDIO_SOURCE, 0x51));
    let container =
        freeze(outgoing, &mut ctx).unwrap().cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    machine.jump(&container);
    let mut store = Store::of(16);
    let (mut incoming, _, violations) = adopt(&scene, &container, &mut store);
    assert_eq!(violations, 0);
    retrieve_all(&mut incoming);
    let mut found = Vec::new();
    incoming.retrieve_interrupts(AUDIO, &mut |index, _| found.push(index)).unwrap();
    assert_eq!(found, [10, 20]);
}

#[test]
fn a_freeze_is_refused_when_the_table_moved_or_remapping_was_switched() {
    let changes: [&dyn Fn(&Machine); 2] =
        [&|machine| assert_ne!(machine.remap_interrupts(0), PhysAddr::new(0)), &|machine| {
            machine.units[0].status.set(machine.units[0].status.get().with_ires(false))
        }];
    for change in changes {
        let scene = scene();
        let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
        let outgoing = scene.preserve(&mut store, &mut ctx);
        change(&scene.machine);
        let refused = freeze(outgoing, &mut ctx).unwrap_err();
        assert!(matches!(refused.why, FreezeError::Drifted { requester: None, .. }), "{}", refused.why);
    }
    let scene = Scene::new();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    scene.machine.remap_interrupts(0);
    outgoing.unpreserve_requester(&mut ctx, DISK).unwrap();
    let refused = outgoing.preserve_requester(&mut ctx, DISK, requester(DISK_SOURCE)).unwrap_err();
    assert_eq!(refused, PreserveError::InterruptsChanged(scene.machine.units[0].id));
    assert!(matches!(freeze(outgoing, &mut ctx).unwrap_err().why, FreezeError::Drifted { .. }));
}

#[test]
fn i3_a_posted_entry_that_writes_outside_of_preserved_memory_refuses_the_freeze() {
    for outside in [0x3000_0040, bar().start().get(), 0x12_3456_7840] {
        let scene = scene();
        let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
        let outgoing = scene.preserve(&mut store, &mut ctx);
        scene.machine.put_interrupt(0, POSTED, posted(AUDIO_SOURCE, outside));
        let refused = freeze(outgoing, &mut ctx).unwrap_err();
        let descriptor = PhysAddr::new(outside & !0xfff);
        let expected =
            FreezeError::PostedOutside { requester: requester(AUDIO_SOURCE), index: POSTED, descriptor };
        assert_eq!(refused.why, expected);
        // A stranger's may: it goes with the cut-off.
        scene.machine.put_interrupt(0, POSTED, posted(OTHER, outside));
        assert!(freeze(refused.outgoing, &mut ctx).is_ok());
    }
}

#[test]
fn lesson_05_a_host_that_leaves_interrupts_out_is_refused_only_where_hardware_remaps_them() {
    let scene = scene();
    scene.machine.units[0].irta.set(None);
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let mut outgoing = liveupdate::Outgoing::new(&scene.machine, store.storage());
    for (token, region) in [(SOUND, sound()), (DISK_MEMORY, disk_memory())] {
        outgoing.preserve_region(&mut ctx, token, region, liveupdate::RegionKind::Memory).unwrap();
    }
    outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, scene.audio.of()).unwrap();
    let refused = outgoing.preserve_requester(&mut ctx, AUDIO, requester(AUDIO_SOURCE)).unwrap_err();
    assert_eq!(refused, PreserveError::InterruptsUnknown(scene.machine.units[0].id));
    let unit = &scene.machine.units[0];
    unit.status.set(unit.status.get().with_ires(false));
    outgoing.preserve_requester(&mut ctx, AUDIO, requester(AUDIO_SOURCE)).unwrap();
}

#[test]
fn a_unit_with_nothing_preserved_remaps_no_interrupts_after_the_cut_off() {
    let scene = Scene::with_units(2);
    scene.machine.remap_interrupts(1);
    let mut events = Vec::new();
    scene.update_with(&mut |e| events.push(e));
    let id = scene.machine.units[1].id;
    assert!(
        events.contains(&CutOffEvent::InterruptsOff(id)) && events.contains(&CutOffEvent::SwitchedOff(id))
    );
    assert!(!scene.machine.units[1].status.get().ires());
}

#[test]
fn finish_clears_the_entries_of_whoever_was_not_retrieved() {
    let scene = scene();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store);
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    incoming.retrieve_requester(AUDIO).unwrap();
    assert_eq!(scene.machine.interrupt(0, DISK_SOURCE, FAR), Some(0x43));
    incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ());
    assert_eq!(scene.machine.interrupt(0, DISK_SOURCE, FAR), None, "forgotten, too");
    assert_eq!(scene.machine.interrupt_words(0, ALIAS), [0, 0]);
    assert_eq!(scene.machine.interrupt(0, AUDIO_SOURCE, OWN), Some(0x41));
}

#[test]
fn an_entry_that_came_in_the_gap_is_cleared_and_nobody_is_blocked_for_it() {
    let scene = scene();
    let container = scene.update();
    scene.machine.put_interrupt(0, STRANGER, msi(OTHER, 0x44));
    let mut store = Store::of(16);
    let (mut incoming, events, violations) = adopt(&scene, &container, &mut store);
    assert!(violations > 0);
    assert!(events.iter().any(|e| matches!(e, AdoptEvent::Entry(CutOffEvent::InterruptCleared { .. }))));
    assert!(events.iter().all(|e| !matches!(e, AdoptEvent::Blocked(_))));
    assert_eq!(scene.machine.interrupt(0, OTHER, STRANGER), None);
    retrieve_all(&mut incoming);
}

#[test]
fn an_entry_that_changed_in_the_gap_blocks_its_requesters_domain_alone_and_goes() {
    let scene = scene();
    let container = scene.update();
    scene.machine.put_interrupt(0, OWN, msi(AUDIO_SOURCE, 0x99));
    let mut store = Store::of(16);
    let (mut incoming, events, _) = adopt(&scene, &container, &mut store);
    let blocked: Vec<_> = events.iter().filter(|e| matches!(e, AdoptEvent::Blocked(_))).collect();
    assert_eq!(blocked, [&AdoptEvent::Blocked(AUDIO_DOMAIN)]);
    assert_eq!(scene.machine.interrupt(0, AUDIO_SOURCE, OWN), None);
    assert_eq!(scene.machine.interrupt(0, DISK_SOURCE, FAR), Some(0x43));
    incoming.retrieve_domain(DISK_DOMAIN).unwrap();
    incoming.retrieve_requester(DISK).unwrap();
}

#[test]
fn when_nothing_can_be_opened_every_interrupt_is_blocked() {
    let scene = scene();
    scene.update();
    let mut ctx = MaySleep::at_thread_start();
    liveupdate::block_all(&scene.machine, &mut ctx, &mut |_| ());
    for (source, index) in [(AUDIO_SOURCE, OWN), (DISK_ALIAS, ALIAS), (DISK_SOURCE, FAR)] {
        assert_eq!(scene.machine.interrupt(0, source, index), None);
    }
    assert!(scene.machine.units[0].status.get().ires(), "off would let them pass");
}

#[test]
fn a_unit_that_does_not_confirm_keeps_frames_from_being_given_back() {
    let scene = scene();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store);
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    incoming.retrieve_requester(AUDIO).unwrap();
    scene.machine.units[0].hangs.set(true);
    scene.machine.take_steps();
    let mut late = 0;
    incoming.finish(&mut MaySleep::at_thread_start(), &mut |e| {
        late += u32::from(matches!(e, CutOffEvent::NotConfirmed(_)));
    });
    assert!(late >= 2, "translations and interrupts");
    assert!(scene.machine.take_steps().iter().all(|s| !matches!(s, Step::GiveBack(_))));
}

/// Opens a handover in which the first record of a kind has been changed.
fn with_record(of: u16, change: impl FnOnce(&mut Vec<u64>)) -> Result<(), OpenError> {
    let scene = scene();
    let container = scene.update();
    let mut all = records(&scene.machine, &container);
    change(&mut all.iter_mut().find(|(kind, _)| *kind == of).unwrap().1);
    reseal(&scene.machine, &container, &all, handover::VERSION, handover::OLDEST_READABLE);
    let mut store = Store::of(16);
    open(&scene.machine, container.fdt, store.storage()).map(|_| ())
}

#[test]
fn foreign_interrupt_records_that_hold_nothing_together_are_refused() {
    assert_eq!(with_record(kind::INTERRUPT_TABLE, |_| ()), Ok(()));
    let refused = |of, word: usize, value: u64| {
        let found = with_record(of, |body| body[word] = value);
        assert!(matches!(found, Err(OpenError::Record { kind, .. }) if kind == of), "{found:?}");
    };
    refused(kind::INTERRUPT_TABLE, 0, 8);
    refused(kind::INTERRUPT_TABLE, 0, 0xffff_ffff_ffff_f00f);
    refused(kind::INTERRUPT_TABLE, 2, 7);
    // Not present; another source; anybody; no such unit or requester; another requester; beyond the table.
    refused(kind::INTERRUPT_ENTRY, 0, msi(AUDIO_SOURCE, 0x41)[0] & !1);
    refused(kind::INTERRUPT_ENTRY, 1, msi(OTHER, 0x41)[1]);
    refused(kind::INTERRUPT_ENTRY, 1, u64::from(AUDIO_SOURCE.raw()));
    refused(kind::INTERRUPT_ENTRY, 2, 5);
    refused(kind::INTERRUPT_ENTRY, 2, 9 << 32);
    refused(kind::INTERRUPT_ENTRY, 2, 1 << 32);
    refused(kind::INTERRUPT_ENTRY, 3, 512);
    let on_another = with_record(kind::INTERRUPT_TABLE, |body| body[0] = sound().start().get() | 8);
    assert!(matches!(on_another, Err(OpenError::Overlap(_))), "{on_another:?}");
}

#[test]
fn a_handover_of_the_release_before_has_no_interrupt_records_and_a_unit_that_remaps_none_is_adopted() {
    let scene = Scene::new();
    let container = scene.update();
    let none = |kind: &u16| ![kind::INTERRUPT_TABLE, kind::INTERRUPT_ENTRY].contains(kind);
    assert!(records(&scene.machine, &container).iter().all(|(kind, _)| none(kind)));
    let mut store = Store::of(16);
    assert_eq!(adopt(&scene, &container, &mut store).2, 0);
}

#[test]
fn a_release_that_skips_interrupt_records_still_adopts_and_this_one_reports_the_table() {
    // The release before knows kinds up to 13: for it the rest is as these are here, unknown.
    let scene = scene();
    let container = scene.update();
    let mut all = records(&scene.machine, &container);
    for (kind, _) in all.iter_mut().filter(|(kind, _)| *kind >= kind::INTERRUPT_TABLE) {
        *kind += 1000;
    }
    reseal(&scene.machine, &container, &all, handover::VERSION, handover::OLDEST_READABLE);
    let mut store = Store::of(16);
    let opened = open(&scene.machine, container.fdt, store.storage()).unwrap();
    assert_eq!(opened.skipped(), 5);
    let (mut words, mut found) = (vec![0; 1 << 15], Vec::new());
    let machine = &scene.machine;
    opened.check(machine, &mut audit::Scratch::new(&mut words), &mut |f| found.push(f)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].invariant, found[0].what), (Invariant::I1, What::InterruptsNotHandedOver));
}
