//! Page requests: off at the freeze, on again when it fails or is taken back, told of at retrieval otherwise.

use super::adoption::{adopt, retrieve_domains};
use crate::common::machine::Step;
use crate::common::scalable::*;
use crate::common::scene::freeze;
use crate::common::{Store, requester};
use liveupdate::host::{Adoptable, DeviceTlb, MaySleep};
use liveupdate::{FreezeError, FreezeInput, Outgoing, PreserveError, ReservedMemory};

/// The scene with a device that keeps translations and asks for pages.
fn scene() -> Scene {
    let scene = Scene::new();
    let context = scene.nic_context().with_dte(true).with_pre(true);
    scene.machine.put_scalable(0, NIC_SOURCE, context);
    let tlb = DeviceTlb { physical_function: NIC_SOURCE, queue_depth: 4 };
    scene.machine.device_tlbs.borrow_mut().insert(requester(NIC_SOURCE), tlb);
    scene.machine.stops_pages.set(true);
    scene
}

fn allowed(scene: &Scene) -> bool {
    scene.nic_context().pre()
}

fn pages(scene: &Scene) -> Vec<Step> {
    let own = |s: &Step| matches!(s, Step::StopPages(_) | Step::ResumePages(_));
    scene.machine.take_steps().into_iter().filter(own).collect()
}

#[test]
fn they_are_off_at_the_jump_and_the_next_kernel_is_told_that_they_were_on() {
    let scene = scene();
    let container = scene.update();
    assert!(!allowed(&scene));
    let mut store = Store::of(16);
    let (mut incoming, _, violations) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    assert_eq!(violations, 0);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, SHARED_DOMAIN, PROCESS_DOMAIN]);
    assert!(incoming.retrieve_requester(NIC).unwrap().page_requests);
    assert!(!incoming.retrieve_requester(GPU).unwrap().page_requests);
    scene.all_is_well();
}

/// That a freeze of `outgoing` fails, and everything is as before.
fn refused(
    scene: &Scene,
    outgoing: Outgoing<'_, '_, crate::common::machine::Machine>,
    able: Adoptable,
) -> FreezeError {
    let (mut ctx, mut words) = (MaySleep::at_thread_start(), vec![0; 1 << 15]);
    let before = scene.machine.snapshot();
    let input = FreezeInput {
        release: "1.0-test",
        update: 1,
        scratch: &[],
        reserved: ReservedMemory::CutOff(&[]),
        successor: able,
    };
    let scratch = &mut audit::Scratch::new(&mut words);
    let refused = outgoing.freeze(&mut ctx, &input, scratch, &mut |_| ()).unwrap_err();
    assert_eq!(scene.machine.snapshot(), before);
    assert!(allowed(scene));
    refused.why
}

#[test]
fn lesson_03_they_are_on_again_when_the_freeze_fails_after_they_were_stopped() {
    let scene = scene();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    scene.machine.fail_allocate.set(Some(0));
    scene.machine.take_steps();
    refused(&scene, outgoing, Adoptable::EVERYTHING);
    let nic = requester(NIC_SOURCE);
    assert_eq!(pages(&scene), [Step::StopPages(nic), Step::ResumePages(nic)]);
}

#[test]
fn they_are_on_again_when_it_is_not_sure_that_all_were_answered_and_the_freeze_is_refused() {
    let scene = scene();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    scene.machine.pages_hang.set(true);
    let why = refused(&scene, outgoing, Adoptable::EVERYTHING);
    assert!(matches!(why, FreezeError::PageRequests { requester: who, .. } if who == requester(NIC_SOURCE)));
}

#[test]
fn a_freeze_that_is_refused_for_another_reason_does_not_touch_them() {
    let scene = scene();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    scene.machine.take_steps();
    let why = refused(&scene, outgoing, Adoptable::LEGACY);
    assert!(matches!(why, FreezeError::NotAdoptable(_)));
    assert_eq!(pages(&scene), []);
}

#[test]
fn lesson_03_they_are_on_again_when_the_seal_is_taken_back_and_a_later_freeze_stops_them_again() {
    let scene = scene();
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let outgoing = freeze(outgoing, &mut ctx).unwrap().unfreeze(&mut ctx);
    assert!(allowed(&scene));
    scene.machine.take_steps();
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    assert!(!allowed(&scene));
    assert_eq!(pages(&scene), [Step::StopPages(requester(NIC_SOURCE))]);
    let _ = sealed.unfreeze(&mut ctx);
}

#[test]
fn a_host_that_does_not_stop_them_cannot_preserve_who_asks() {
    let scene = scene();
    scene.machine.stops_pages.set(false);
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
    let nic = requester(NIC_SOURCE);
    assert_eq!(outgoing.preserve_requester(&mut ctx, NIC, nic), Err(PreserveError::PageRequests(nic)));
}
