//! Devices that keep translations: handed over with those that go on, emptied for those that are cut off, or switched off.

use crate::common::machine::Step;
use crate::common::reseal::{Record, records, reseal};
use crate::common::scene::*;
use crate::common::tables::context;
use crate::common::{Store, requester};
use liveupdate::host::{Atomic, DeviceTlb, Forget, MaySleep};
use liveupdate::{CutOffEvent, OpenError, PreserveError, Token};
use spec::SourceId;
use spec::handover::kind;

/// Everybody whose entry lets the device keep translations, with ATS on.
const ATS: [SourceId; 5] = [AUDIO_SOURCE, SHARING, OTHER, UNLISTED, IOAPIC];

fn tlb(source: SourceId) -> DeviceTlb {
    DeviceTlb { physical_function: source, queue_depth: 9 }
}

/// The scene with ATS on wherever there are no aliases.
fn scene() -> Scene {
    let scene = Scene::new();
    for source in ATS {
        let entry = scene.machine.context_entry(0, source);
        let low = scene.machine.shared.word(entry).unwrap();
        scene.machine.set(entry, low | 1 << 2);
        scene.machine.device_tlbs.borrow_mut().insert(requester(source), tlb(source));
    }
    scene
}

/// Preserves, freezes and cuts off, without the jump.
fn cut_off(scene: &Scene) -> (Vec<CutOffEvent>, Vec<Step>) {
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let sealed = freeze(scene.preserve(&mut store, &mut ctx), &mut ctx).unwrap();
    scene.machine.take_steps();
    let mut events = Vec::new();
    let _ = sealed.cut_off(&Atomic::for_good(ctx), &mut |event| events.push(event));
    (events, scene.machine.take_steps())
}

fn silent(events: &[CutOffEvent]) -> Vec<SourceId> {
    let one = |e: &CutOffEvent| match e {
        CutOffEvent::DeviceSilent { requester, off: true } => Some(requester.source),
        _ => None,
    };
    events.iter().filter_map(one).collect()
}

fn asked(steps: &[Step]) -> Vec<SourceId> {
    let one = |s: &Step| if let Step::ForgetDevice(_, source) = s { Some(*source) } else { None };
    steps.iter().filter_map(one).collect()
}

#[test]
fn what_is_cut_off_forgets_after_the_unit_did_and_before_its_entry_is_wiped() {
    let scene = scene();
    let (events, steps) = cut_off(&scene);
    let strangers = [SHARING, OTHER, UNLISTED, IOAPIC];
    let mut found = asked(&steps);
    found.sort_unstable();
    let mut expected = strangers.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected, "those that are preserved go on with what they have");
    assert_eq!(silent(&events), []);
    let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).expect("a step");
    let unit = at(&|s| matches!(s, Step::Forget(_, Forget::Everything)));
    let first = at(&|s| matches!(s, Step::ForgetDevice(..)));
    let last = steps.iter().rposition(|s| matches!(s, Step::ForgetDevice(..))).unwrap();
    let wiped = at(&|s| matches!(s, Step::Write { before, after: 0, .. } if before & 1 == 0 && *before != 0));
    assert!(unit < first && last < wiped, "{unit} {first} {last} {wiped}");
}

#[test]
fn a_device_that_does_not_answer_is_reported_and_switched_off_and_the_others_are_asked() {
    let scene = scene();
    scene.machine.shared.silent.borrow_mut().insert(OTHER);
    let (events, steps) = cut_off(&scene);
    assert_eq!(silent(&events), [OTHER]);
    assert_eq!(asked(&steps).len(), 4);
    assert!(steps.contains(&Step::DeviceOff(requester(OTHER))));
    assert!(scene.machine.dma(OTHER, IOVA).is_err());
}

#[test]
fn a_unit_that_says_nothing_is_asked_once_and_all_its_devices_are_switched_off() {
    for (whole, questions) in [(false, 1), (true, 0)] {
        let scene = scene();
        let unit = &scene.machine.units[0];
        if whole { &unit.hangs } else { &unit.devices_hang }.set(true);
        let (events, steps) = cut_off(&scene);
        assert_eq!(asked(&steps).len(), questions);
        let mut found = silent(&events);
        found.sort_unstable();
        let mut expected = vec![SHARING, OTHER, UNLISTED, IOAPIC];
        expected.sort_unstable();
        assert_eq!(found, expected);
        let off = steps.iter().filter(|s| matches!(s, Step::DeviceOff(_))).count();
        assert_eq!(off, 4);
    }
}

#[test]
fn what_is_known_of_a_device_is_handed_over_and_told_at_retrieval() {
    let scene = scene();
    let container = scene.update();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let checked = check(&scene.machine, &container, &mut store);
    assert_eq!(checked.violations, 0);
    let mut incoming = checked.adopt(&scene.machine, &mut ctx, &mut |_, _| true, &mut |_| ());
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    incoming.retrieve_domain(DISK_DOMAIN).unwrap();
    let mut retrieve = |token: Token| incoming.retrieve_requester(token).unwrap().device_tlb;
    assert_eq!(retrieve(AUDIO), Some(tlb(AUDIO_SOURCE)));
    assert_eq!(retrieve(DISK), None, "it has no ATS");
}

#[test]
fn a_device_that_nobody_retrieves_forgets_when_it_is_cut_off_at_last() {
    let scene = scene();
    let container = scene.update();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let checked = check(&scene.machine, &container, &mut store);
    let incoming = checked.adopt(&scene.machine, &mut ctx, &mut |_, _| true, &mut |_| ());
    scene.machine.take_steps();
    scene.machine.shared.silent.borrow_mut().insert(AUDIO_SOURCE);
    let mut events = Vec::new();
    assert_eq!(incoming.finish(&mut ctx, &mut |event| events.push(event)), 2);
    assert_eq!(asked(&scene.machine.take_steps()), [AUDIO_SOURCE]);
    assert_eq!(silent(&events), [AUDIO_SOURCE]);
}

#[test]
fn a_handover_that_says_too_little_too_much_or_nonsense_of_a_device_is_refused() {
    let scene = scene();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    let at = all.iter().position(|(kind, _)| *kind == kind::DEVICE_TLB).unwrap();
    let error = |changed: &[Record]| {
        reseal(&scene.machine, &container, changed, 1, 1);
        liveupdate::open(&scene.machine, container.fdt, Store::of(16).storage()).unwrap_err()
    };
    let mut changed = all.clone();
    changed.remove(at);
    assert_eq!(error(&changed), OpenError::NoDeviceTlb(requester(AUDIO_SOURCE)));
    let mut cases = vec![(all[at].1.clone(), "listed twice")];
    let with = |flip: u64| vec![all[at].1[0] ^ flip, all[at].1[1]];
    cases.push((with(1), "not allowed by the requester's entry"));
    cases.push((with(7), "no such requester"));
    for (words, what) in cases {
        let mut changed = all.clone();
        changed.push((kind::DEVICE_TLB, words));
        assert!(error(&changed).to_string().contains(what), "{what}");
    }
    for flip in [9, 9 ^ 33] {
        let mut changed = all.clone();
        changed[at].1 = with(flip << 48);
        assert!(error(&changed).to_string().contains("a queue of"), "{flip}");
    }
}

#[test]
fn a_device_of_which_the_host_knows_nothing_or_that_has_aliases_is_refused() {
    let scene = scene();
    let refused = |scene: &Scene, who| {
        let (mut store, mut ctx) = (Store::of(32), MaySleep::at_thread_start());
        let mut outgoing = scene.preserve(&mut store, &mut ctx);
        outgoing.preserve_requester(&mut ctx, Token(77), requester(who)).unwrap_err()
    };
    scene.machine.device_tlbs.borrow_mut().remove(&requester(SHARING));
    assert_eq!(refused(&scene, SHARING), PreserveError::DeviceTlb(requester(SHARING)));
    let alias = SourceId::new(2, 0, 1);
    scene.machine.device_tlbs.borrow_mut().insert(requester(SHARING), tlb(SHARING));
    scene.machine.aliases.borrow_mut().insert(requester(SHARING), vec![alias]);
    scene.machine.put_context(0, alias, context(7, scene.audio).with_tt(1));
    assert_eq!(refused(&scene, SHARING), PreserveError::DeviceTlb(requester(SHARING)));
}
