//! Devices that keep translations of PASIDs: what they keep of one that goes while they go on is forgotten too, or they go.

use super::adoption::{adopt, retrieve, retrieve_domains};
use crate::common::machine::Step;
use crate::common::scalable::*;
use crate::common::scene::freeze;
use crate::common::unit::Blocked;
use crate::common::{Store, requester};
use liveupdate::host::{Atomic, DeviceTlb, Forget, MaySleep};
use liveupdate::{AdoptEvent, CutOffEvent, RetrieveError};
use spec::SourceId;
use spec::scalable::PasidEntry;

/// The scene with ATS on in the requester of many PASIDs.
fn scene() -> Scene {
    let scene = Scene::new();
    let context = scene.nic_context().with_dte(true);
    scene.machine.put_scalable(0, NIC_SOURCE, context);
    let tlb = DeviceTlb { physical_function: NIC_SOURCE, queue_depth: 4 };
    scene.machine.device_tlbs.borrow_mut().insert(requester(NIC_SOURCE), tlb);
    scene
}

/// Preserves, exercises, freezes and cuts off, without the jump.
fn cut_off(scene: &Scene) -> (Vec<CutOffEvent>, Vec<Step>) {
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let sealed = freeze(scene.preserve(&mut store, &mut ctx), &mut ctx).unwrap();
    scene.machine.take_steps();
    let mut events = Vec::new();
    let _ = sealed.cut_off(&Atomic::for_good(ctx), &mut |event| events.push(event));
    (events, scene.machine.take_steps())
}

/// Everything that devices were asked, with the PASID where one was named.
fn asked(steps: &[Step]) -> Vec<(SourceId, Option<u32>)> {
    let one = |s: &Step| match s {
        Step::ForgetDevice(_, source) => Some((*source, None)),
        Step::ForgetDevicePasid(_, source, pasid) => Some((*source, Some(*pasid))),
        _ => None,
    };
    steps.iter().filter_map(one).collect()
}

fn is_silent(event: &CutOffEvent) -> bool {
    matches!(event, CutOffEvent::DeviceSilent { requester: who, off: true } if *who == requester(NIC_SOURCE))
}

#[test]
fn lesson_15_a_device_forgets_the_pasids_that_go_after_the_unit_did_and_before_their_entries_are_wiped() {
    let scene = scene();
    let (events, steps) = cut_off(&scene);
    assert_eq!(asked(&steps), [(NIC_SOURCE, None)], "several went: all that it keeps");
    assert!(!events.iter().any(is_silent));
    let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).expect("a step");
    let unit = at(&|s| matches!(s, Step::Forget(_, Forget::Everything)));
    let device = at(&|s| matches!(s, Step::ForgetDevice(..)));
    let wiped = unit + steps[unit..].iter().position(|s| matches!(s, Step::Write { after: 0, .. })).unwrap();
    assert!(unit < device && device < wiped, "{unit} {device} {wiped}");
    scene.all_is_well();
}

#[test]
fn lesson_15_one_pasid_that_goes_is_named_to_the_device() {
    let scene = scene();
    let [first, second] = STRAY_PASIDS;
    scene.machine.put_pasid(scene.nic_context(), second, PasidEntry::ZERO);
    let (_, steps) = cut_off(&scene);
    assert_eq!(asked(&steps), [(NIC_SOURCE, Some(first))]);
    scene.all_is_well();
}

#[test]
fn a_device_that_loses_no_pasid_is_not_asked() {
    let scene = scene();
    for pasid in STRAY_PASIDS {
        scene.machine.put_pasid(scene.nic_context(), pasid, PasidEntry::ZERO);
    }
    assert_eq!(asked(&cut_off(&scene).1), []);
}

#[test]
fn a_device_that_does_not_answer_for_a_pasid_is_cut_off_with_all_it_has_and_the_next_kernel_knows() {
    let scene = scene();
    scene.machine.shared.silent.borrow_mut().insert(NIC_SOURCE);
    let (mut silent, mut cleared) = (0, 0);
    let container = scene.update_with(&mut |event| {
        silent += u32::from(is_silent(&event));
        let own = |e: &CutOffEvent| matches!(e, CutOffEvent::Cleared { requester: who, .. } if *who == requester(NIC_SOURCE));
        cleared += u32::from(own(&event));
    });
    assert_eq!((silent, cleared), (1, 1));
    assert_eq!(scene.machine.dma(NIC_SOURCE, IOVA), Err(Blocked::Context));
    assert_eq!(scene.machine.request(NIC_SOURCE, Some(SHARED_PASID), SHARED_IOVA), Err(Blocked::Context));
    scene.machine.dma(GPU_SOURCE, SHARED_IOVA).unwrap();

    let mut store = Store::of(16);
    let (mut incoming, events, _) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    let blocked = events.iter().filter(|e| matches!(e, AdoptEvent::RequesterBlocked(NIC)));
    assert_eq!(blocked.count(), 1);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, SHARED_DOMAIN, PROCESS_DOMAIN]);
    assert!(matches!(incoming.retrieve_requester(NIC), Err(RetrieveError::Blocked(NIC))));
    assert_eq!(retrieve(&mut incoming, GPU).len(), 1);
    scene.machine.dma(GPU_SOURCE, SHARED_IOVA).unwrap();
}

#[test]
fn lesson_15_a_device_forgets_a_pasid_that_nobody_retrieved() {
    let scene = scene();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, PROCESS_DOMAIN]);
    retrieve(&mut incoming, NIC);
    scene.machine.take_steps();
    incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ());
    let steps = scene.machine.take_steps();
    assert_eq!(asked(&steps), [(NIC_SOURCE, Some(SHARED_PASID))]);
    scene.machine.dma(NIC_SOURCE, IOVA).unwrap();
}
