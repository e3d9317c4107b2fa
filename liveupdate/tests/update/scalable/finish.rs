//! Finish: PASIDs and requesters that nobody retrieved are cut off first, and only then is anything given away.

use super::adoption::{adopt, retrieve, retrieve_domains};
use crate::common::machine::{Machine, Step};
use crate::common::scalable::*;
use crate::common::unit::Blocked;
use crate::common::{Store, requester};
use liveupdate::host::{Forget, MaySleep};
use liveupdate::{CutOffEvent, Incoming};
use spec::{Extent, PhysAddr};

/// Finishes: how many were cut off, what was reported, and what was done.
fn finish(scene: &Scene, incoming: Incoming<'_, '_, Machine>) -> (u32, Vec<CutOffEvent>, Vec<Step>) {
    let mut events = Vec::new();
    scene.machine.take_steps();
    let cut = incoming.finish(&mut MaySleep::at_thread_start(), &mut |e| events.push(e));
    (cut, events, scene.machine.take_steps())
}

fn given(steps: &[Step]) -> Vec<Extent> {
    steps.iter().filter_map(|s| if let Step::GiveBack(run) = s { Some(*run) } else { None }).collect()
}

fn is_given(steps: &[Step], at: PhysAddr) -> bool {
    given(steps).iter().any(|run| run.contains(at.frame()))
}

#[test]
fn a_pasid_that_nobody_retrieved_goes_and_its_requester_goes_on() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, PROCESS_DOMAIN]);
    assert_eq!(retrieve(&mut incoming, NIC).iter().map(|p| p.pasid).collect::<Vec<_>>(), [0, PROCESS_PASID]);
    scene.all_is_well(); // cached
    let entry = scene.machine.pasid_entry_at(scene.nic, SHARED_PASID);
    let (cut, events, steps) = finish(&scene, incoming);
    // The GPU as a whole; of the NIC one PASID.
    assert_eq!(cut, 1);
    let nic = requester(NIC_SOURCE);
    let gone = |e: &CutOffEvent| matches!(e, CutOffEvent::PasidCleared { requester, pasid: SHARED_PASID, .. } if *requester == nic);
    assert_eq!(events.iter().filter(|e| gone(e)).count(), 1);
    assert_eq!(scene.machine.request(NIC_SOURCE, Some(SHARED_PASID), SHARED_IOVA), Err(Blocked::Pasid));
    assert_eq!(scene.machine.dma(GPU_SOURCE, SHARED_IOVA), Err(Blocked::Context));
    scene.machine.dma(NIC_SOURCE, IOVA).unwrap();
    scene.machine.request(NIC_SOURCE, Some(PROCESS_PASID), PROCESS_IOVA).unwrap();
    // The present bit alone, forget, then the rest.
    let of_entry =
        |s: &&Step| matches!(s, Step::Write { at, .. } if (entry.get()..entry.get() + 64).contains(at));
    let writes: Vec<_> = steps.iter().filter(of_entry).collect();
    assert!(matches!(writes[0], Step::Write { before, after, .. } if *after == before & !1));
    let first_gift = steps.iter().position(|s| matches!(s, Step::GiveBack(_))).unwrap();
    let forgets = steps.iter().filter(|s| matches!(s, Step::Forget(_, Forget::Everything))).count();
    assert_eq!(forgets, 2, "one for the PASID, one for the GPU");
    assert!(steps[first_gift..].iter().all(|s| matches!(s, Step::GiveBack(_))));
    // The shared domain and the GPU's structures are free; the NIC's, with all its tables, are the driver's.
    for at in [scene.shared.top, scene.gpu, PhysAddr::new(scene.machine.get(scene.gpu) & !0xfff)] {
        assert!(is_given(&steps, at), "{at}");
    }
    for at in [scene.nic, entry, scene.guest.top, scene.machine.units[0].root.get().table()] {
        assert!(!is_given(&steps, at), "{at}");
    }
    assert!(!is_given(&steps, guest_memory().start()) && is_given(&steps, shared_memory().start()));
}

#[test]
fn when_nobody_retrieves_anything_all_of_it_goes() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    let tables = scene.machine.pasid_entry_at(scene.nic, PROCESS_PASID);
    let (cut, _, steps) = finish(&scene, incoming);
    assert_eq!(cut, 2);
    assert!(
        scene.machine.dma(NIC_SOURCE, IOVA).is_err() && scene.machine.dma(GPU_SOURCE, SHARED_IOVA).is_err()
    );
    assert!(scene.machine.request(NIC_SOURCE, Some(PROCESS_PASID), PROCESS_IOVA).is_err());
    for at in [scene.nic, tables, scene.gpu, scene.guest.top, scene.shared.top, container.fdt] {
        assert!(is_given(&steps, at), "{at}");
    }
    // A guest's own tables are given back with its memory, once.
    let of_guest = given(&steps).into_iter().filter(|run| run.overlaps(guest_memory()));
    assert!(of_guest.eq([guest_memory()]));
}

#[test]
fn a_directory_of_two_frames_is_given_back_whole() {
    let scene = Scene::with_directories(0, 3);
    let container = scene.update();
    let mut store = Store::of(16);
    let (incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    let (.., steps) = finish(&scene, incoming);
    assert!(given(&steps).contains(&Extent::new(scene.gpu.frame(), 2).unwrap()));
}

#[test]
fn an_entry_that_the_driver_made_anew_meanwhile_is_left_alone() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN]);
    retrieve(&mut incoming, NIC);
    let anew = second(7, scene.guest);
    scene.machine.put_pasid(scene.nic_context(), SHARED_PASID, anew);
    let directory = scene.machine.directory(0);
    scene.machine.put_pasid(directory, 0, anew);
    scene.machine.put_scalable(0, GPU_SOURCE, directory);
    liveupdate::host::Unit::locked(&scene.machine.units[0], &mut MaySleep::at_thread_start(), |atomic| {
        let _ = liveupdate::host::Unit::forget(&scene.machine.units[0], atomic, Forget::Everything);
    });
    finish(&scene, incoming);
    assert!(scene.machine.request(NIC_SOURCE, Some(SHARED_PASID), IOVA).is_ok());
    assert!(scene.machine.dma(GPU_SOURCE, IOVA).is_ok());
    assert!(scene.machine.request(NIC_SOURCE, Some(PROCESS_PASID), PROCESS_IOVA).is_err());
}

#[test]
fn nothing_is_given_back_while_hardware_may_still_reach_it() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let (mut incoming, ..) = adopt(&scene, &container, &mut store, &mut |_, _| true);
    retrieve_domains(&mut incoming, &[GUEST_DOMAIN, SHARED_DOMAIN]);
    retrieve(&mut incoming, NIC);
    retrieve(&mut incoming, GPU);
    scene.machine.units[0].hangs.set(true);
    let (cut, events, steps) = finish(&scene, incoming);
    assert_eq!(cut, 0);
    assert!(events.iter().any(|e| matches!(e, CutOffEvent::PasidCleared { pasid: PROCESS_PASID, .. })));
    assert!(events.iter().any(|e| matches!(e, CutOffEvent::NotConfirmed(_))));
    assert_eq!(given(&steps), []);
}
