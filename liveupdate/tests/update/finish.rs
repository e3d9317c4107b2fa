//! Finish: what nobody retrieved is cut off first, and only then given away, and only if nothing can reach it.

use crate::common::machine::{Machine, Step};
use crate::common::scene::*;
use crate::common::{Store, requester};
use liveupdate::host::{Forget, MaySleep};
use liveupdate::{Container, CutOffEvent, Incoming, Token};
use spec::Extent;

fn adopt<'h, 's>(scene: &'h Scene, container: &Container, store: &'s mut Store) -> Incoming<'h, 's, Machine> {
    let mut ctx = MaySleep::at_thread_start();
    let checked = check(&scene.machine, container, store);
    let incoming = checked.adopt(&scene.machine, &mut ctx, &mut |_, _| true, &mut |_| ());
    scene.machine.take_steps();
    incoming
}

fn retrieve(incoming: &mut Incoming<'_, '_, Machine>, domain: Token, requester: Token) {
    incoming.retrieve_domain(domain).unwrap();
    incoming.retrieve_requester(requester).unwrap();
}

fn given(steps: &[Step]) -> Vec<Extent> {
    steps.iter().filter_map(|s| if let Step::GiveBack(run) = s { Some(*run) } else { None }).collect()
}

fn finish(incoming: Incoming<'_, '_, Machine>) -> (u32, Vec<CutOffEvent>) {
    let mut events = Vec::new();
    let cut = incoming.finish(&mut MaySleep::at_thread_start(), &mut |e| events.push(e));
    (cut, events)
}

#[test]
fn who_was_not_retrieved_is_cut_off_and_forgotten_before_anything_is_given_back() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let mut incoming = adopt(&scene, &container, &mut store);
    incoming.retrieve_region(SOUND).unwrap();
    retrieve(&mut incoming, AUDIO_DOMAIN, AUDIO);
    scene.machine.dma(DISK_ALIAS, IOVA).unwrap();
    let (cut, events) = finish(incoming);
    assert_eq!(cut, 1);
    let gone = [DISK_SOURCE, DISK_ALIAS].map(requester);
    let cleared = |e: &CutOffEvent| {
        if let CutOffEvent::Cleared { requester, .. } = e { Some(*requester) } else { None }
    };
    assert!(events.iter().filter_map(cleared).eq(gone));
    assert!(gone.iter().all(|r| scene.machine.dma(r.source, IOVA).is_err()));
    scene.machine.dma(AUDIO_SOURCE, IOVA).unwrap();

    let steps = scene.machine.take_steps();
    let first_gift = steps.iter().position(|s| matches!(s, Step::GiveBack(_))).unwrap();
    assert!(steps[first_gift..].iter().all(|s| matches!(s, Step::GiveBack(_))));
    let order: Vec<_> = steps[..first_gift].iter().collect();
    // For each of the two source-ids: the present bit, forget, the two words.
    assert_eq!(order.len(), 8);
    for (chunk, source) in order.chunks(4).zip([DISK_SOURCE, DISK_ALIAS]) {
        assert!(matches!(chunk[0], Step::Write { before, after, .. } if *after == before & !1));
        let domain = spec::DomainId(8);
        assert!(matches!(chunk[1], Step::Forget(_, f) if *f == Forget::Requester { source, domain }));
        assert!(chunk[2..].iter().all(|s| matches!(s, Step::Write { after: 0, .. })));
    }
    let given = given(&steps);
    assert!(given.contains(&disk_memory()) && given.contains(&container.frames));
    assert!(given.iter().any(|r| r.contains(scene.disk.top.frame())));
    for kept in [sound(), Extent::one(scene.audio.top.frame()), bar()] {
        assert!(!given.iter().any(|r| r.overlaps(kept)), "{kept}");
    }
    let unit = &scene.machine.units[0];
    assert!(!given.iter().any(|r| r.contains(unit.root.get().table().frame())), "the driver's now");
}

#[test]
fn a_region_that_a_retrieved_domain_maps_is_kept_though_nobody_retrieved_it() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let mut incoming = adopt(&scene, &container, &mut store);
    retrieve(&mut incoming, DISK_DOMAIN, DISK);
    finish(incoming);
    let given = given(&scene.machine.take_steps());
    assert!(!given.iter().any(|r| r.overlaps(disk_memory())), "mapped by a large leaf");
    assert!(given.contains(&sound()), "mapped by nobody any more");
}

#[test]
fn a_retrieved_domain_whose_tables_cannot_be_read_keeps_every_region() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let mut incoming = adopt(&scene, &container, &mut store);
    retrieve(&mut incoming, DISK_DOMAIN, DISK);
    let lost = scene.machine.get(scene.machine.entry(scene.disk, 0x40_0000_0000, 1)) >> 12;
    scene.machine.shared.frames.borrow_mut().remove(&(lost & 0xff_ffff_ffff)).unwrap();
    finish(incoming);
    let given = given(&scene.machine.take_steps());
    assert!(!given.iter().any(|r| r.overlaps(sound()) || r.overlaps(disk_memory())));
}

#[test]
fn a_requester_left_behind_in_a_retrieved_domain_goes_and_the_domain_stays() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let mut incoming = adopt(&scene, &container, &mut store);
    incoming.retrieve_domain(AUDIO_DOMAIN).unwrap();
    let (cut, _) = finish(incoming);
    assert_eq!(cut, 2);
    assert!(scene.machine.dma(AUDIO_SOURCE, IOVA).is_err());
    let given = given(&scene.machine.take_steps());
    assert!(!given.iter().any(|r| r.contains(scene.audio.top.frame()) || r.overlaps(sound())));
}

#[test]
fn an_entry_that_the_driver_made_anew_meanwhile_is_left_alone() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let mut incoming = adopt(&scene, &container, &mut store);
    retrieve(&mut incoming, AUDIO_DOMAIN, AUDIO);
    scene.machine.attach(0, DISK_SOURCE, 20, scene.audio);
    finish(incoming);
    assert_eq!(scene.machine.get(scene.machine.context_entry(0, DISK_SOURCE)) & 1, 1);
    assert_eq!(scene.machine.get(scene.machine.context_entry(0, DISK_ALIAS)) & 1, 0);
}

#[test]
fn nothing_is_given_back_while_hardware_did_not_confirm_that_it_forgot() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let incoming = adopt(&scene, &container, &mut store);
    scene.machine.units[0].hangs.set(true);
    let (cut, events) = finish(incoming);
    assert_eq!(cut, 2);
    assert!(events.iter().any(|e| matches!(e, CutOffEvent::NotConfirmed(_))));
    assert!(given(&scene.machine.take_steps()).is_empty());
}

#[test]
fn what_was_not_forgotten_at_adoption_is_asked_for_again_before_anything_is_given_back() {
    for recovers in [true, false] {
        let scene = Scene::new();
        let container = scene.update();
        scene.machine.set(scene.machine.entry(scene.disk, 0x40_0000_0000, 0), 0x3000_0000 | 3);
        scene.machine.dma(DISK_SOURCE, IOVA).unwrap();
        scene.machine.units[0].hangs.set(true);
        let mut store = Store::of(16);
        let mut incoming = adopt(&scene, &container, &mut store);
        retrieve(&mut incoming, AUDIO_DOMAIN, AUDIO);
        scene.machine.dma(DISK_SOURCE, IOVA).expect("blocked, but hardware did not forget");
        scene.machine.units[0].hangs.set(!recovers);
        let (_, events) = finish(incoming);
        let given = given(&scene.machine.take_steps());
        assert_eq!(given.contains(&disk_memory()), recovers, "{events:?}");
        assert_eq!(scene.machine.dma(DISK_SOURCE, IOVA).is_err(), recovers);
    }
}
