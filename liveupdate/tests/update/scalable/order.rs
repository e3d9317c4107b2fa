//! Preserve and unpreserve: the right order works, the wrong ones are refused by name, nothing is left behind.

use crate::common::scalable::*;
use crate::common::{Store, requester};
use liveupdate::host::MaySleep;
use liveupdate::{Mode, Outgoing, PreserveError, RegionKind};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

#[test]
fn the_right_order_works_and_the_book_counts_it() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let totals = outgoing.totals();
    assert_eq!((totals.regions, totals.domains, totals.requesters, totals.units), (2, 3, 2, 1));
    // Both halves of bus 0 would be two; only the lower one has a preserved requester.
    assert_eq!((totals.context_tables, totals.pasids, totals.pasid_runs), (2, 4, 5));
    assert!(outgoing.units().all(|u| u.mode == Mode::Scalable && u.requesters == 2));
    let marked = scene.machine.marked();
    for run in [scene.nic, scene.gpu, scene.guest.top, scene.shared.top, scene.process.top] {
        assert!(marked.contains(&run.frame().number()), "{run}");
    }
    assert!(!marked.contains(&scene.other.top.frame().number()));
}

#[test]
fn a_requester_before_its_domain_and_a_pasid_before_its_own_are_refused_by_name() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let before = scene.machine.snapshot();
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    let who = requester(NIC_SOURCE);
    let missing = |top_table| Err(PreserveError::DomainNotPreserved { requester: who, top_table });
    assert_eq!(outgoing.preserve_requester(&mut ctx, NIC, who), missing(scene.guest.top));
    assert_eq!(outgoing.preserve_pasid(&mut ctx, NIC, 5), Err(PreserveError::NoRequester(NIC)));
    assert_eq!(scene.machine.snapshot(), before);
    outgoing.preserve_region(&mut ctx, GUEST_MEMORY, guest_memory(), RegionKind::Memory).unwrap();
    let early = outgoing.preserve_domain(&mut ctx, PROCESS_DOMAIN, scene.process());
    assert_eq!(early, Err(PreserveError::NoParent(GUEST_DOMAIN)));
    outgoing.preserve_domain(&mut ctx, GUEST_DOMAIN, scene.guest.of()).unwrap();
    outgoing.preserve_requester(&mut ctx, NIC, who).unwrap();
    assert_eq!(outgoing.preserve_pasid(&mut ctx, NIC, SHARED_PASID), missing(scene.shared.top));
    assert_eq!(outgoing.preserve_pasid(&mut ctx, NIC, PROCESS_PASID), missing(scene.process.top));
}
