//! Preserve and unpreserve in every order: the right one works, the wrong ones are refused by name, and what was taken
//! back leaves nothing behind.

use crate::common::scalable::*;
use crate::common::scene::freeze;
use crate::common::{Store, requester};
use liveupdate::host::MaySleep;
use liveupdate::{FreezeError, Mode, Outgoing, PreserveError, RegionKind, Stage, UnpreserveError};
use std::collections::BTreeSet;

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
    assert!(outgoing.domains().any(|d| d.token == SHARED_DOMAIN && d.stage == Stage::First));
    let pasids: BTreeSet<_> = outgoing.pasids(NIC).map(|a| (a.pasid, a.domain_id.0)).collect();
    assert_eq!(pasids, [(0, 7), (SHARED_PASID, 8), (PROCESS_PASID, 9)].into());
    let gpu = outgoing.requesters().find(|k| k.token == GPU).unwrap();
    assert_eq!((gpu.rid_pasid(), gpu.domain_id.0), (1, 8));

    let marked = scene.machine.marked();
    let root = scene.machine.units[0].root.get().table();
    let tables = [NIC_SOURCE, GPU_SOURCE].map(|s| scene.machine.scalable_entry(0, s));
    for at in [scene.nic, scene.gpu, scene.guest.top, scene.shared.top, scene.process.top, root]
        .into_iter()
        .chain(tables)
    {
        assert!(marked.contains(&at.frame().number()), "{at}");
    }
    let upper = scene.machine.scalable_entry(0, UPPER);
    for at in [scene.other.top, upper] {
        assert!(!marked.contains(&at.frame().number()), "{at}");
    }
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
    let early = outgoing.preserve_domain(&mut ctx, SHARED_DOMAIN, scene.shared.of());
    assert!(
        matches!(early, Err(PreserveError::LeafOutside { target, .. }) if target.start() == shared_memory().start())
    );
    outgoing.preserve_domain(&mut ctx, GUEST_DOMAIN, scene.guest.of()).unwrap();
    outgoing.preserve_requester(&mut ctx, NIC, who).unwrap();
    assert_eq!(outgoing.preserve_pasid(&mut ctx, NIC, SHARED_PASID), missing(scene.shared.top));
    assert_eq!(outgoing.preserve_pasid(&mut ctx, NIC, PROCESS_PASID), missing(scene.process.top));
}

#[test]
fn what_is_still_used_is_not_taken_back_and_the_error_says_by_whom() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let nic = requester(NIC_SOURCE);
    let in_use = |who| Err(UnpreserveError::DomainInUse(requester(who)));
    assert_eq!(outgoing.unpreserve_domain(&mut ctx, GUEST_DOMAIN), in_use(NIC_SOURCE));
    assert_eq!(outgoing.unpreserve_domain(&mut ctx, PROCESS_DOMAIN), in_use(NIC_SOURCE));
    assert_eq!(outgoing.unpreserve_domain(&mut ctx, SHARED_DOMAIN), in_use(NIC_SOURCE));
    let without = outgoing.unpreserve_pasid(&mut ctx, NIC, 0);
    assert_eq!(without, Err(UnpreserveError::WithoutPasid { requester: nic, pasid: 0 }));
    assert_eq!(outgoing.unpreserve_pasid(&mut ctx, NIC, 6), Err(UnpreserveError::Unknown(NIC)));
    outgoing.unpreserve_pasid(&mut ctx, NIC, SHARED_PASID).unwrap();
    assert_eq!(outgoing.unpreserve_domain(&mut ctx, SHARED_DOMAIN), in_use(GPU_SOURCE));
    outgoing.unpreserve_requester(&mut ctx, NIC).unwrap();
    let below = outgoing.unpreserve_domain(&mut ctx, GUEST_DOMAIN);
    assert_eq!(below, Err(UnpreserveError::ParentInUse(PROCESS_DOMAIN)));
    outgoing.unpreserve_domain(&mut ctx, PROCESS_DOMAIN).unwrap();
    let mapped = outgoing.unpreserve_region(&mut ctx, GUEST_MEMORY);
    assert!(matches!(mapped, Err(UnpreserveError::RegionInUse { domain: GUEST_DOMAIN, .. })));
    outgoing.unpreserve_domain(&mut ctx, GUEST_DOMAIN).unwrap();
    outgoing.unpreserve_region(&mut ctx, GUEST_MEMORY).unwrap();
}

#[test]
fn everything_taken_back_in_any_legal_order_leaves_nothing_behind() {
    for order in 0..6 {
        let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
        let before = scene.machine.snapshot();
        let mut outgoing = scene.preserve(&mut store, &mut ctx);
        let both = if order % 2 == 0 { [NIC, GPU] } else { [GPU, NIC] };
        for token in both {
            for pasid in [SHARED_PASID, PROCESS_PASID].into_iter().take(order / 2).filter(|_| token == NIC) {
                outgoing.unpreserve_pasid(&mut ctx, NIC, pasid).unwrap();
            }
            outgoing.unpreserve_requester(&mut ctx, token).unwrap();
        }
        for token in [PROCESS_DOMAIN, SHARED_DOMAIN, GUEST_DOMAIN] {
            outgoing.unpreserve_domain(&mut ctx, token).unwrap();
        }
        for token in [SHARED_MEMORY, GUEST_MEMORY] {
            outgoing.unpreserve_region(&mut ctx, token).unwrap();
        }
        let totals = outgoing.totals();
        assert_eq!((totals.pasids, totals.pasid_runs, totals.context_tables, totals.units), (0, 0, 0, 0));
        assert_eq!(scene.machine.snapshot(), before, "order {order}");
    }
}

#[test]
fn lesson_17_preserving_and_taking_back_for_ever_needs_no_more_room_than_once() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(0), ctx());
    // Just enough of each.
    (store.regions, store.domains, store.tables) = (vec![None; 2], vec![None; 3], vec![None; 8]);
    (store.requesters, store.attachments, store.pasid_runs) = (vec![None; 2], vec![None; 4], vec![None; 5]);
    (store.units, store.contexts, store.runs) = (vec![None; 1], vec![None; 2], vec![None; 24]);
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    for _ in 0..100 {
        outgoing.unpreserve_pasid(&mut ctx, NIC, PROCESS_PASID).unwrap();
        outgoing.unpreserve_requester(&mut ctx, GPU).unwrap();
        outgoing.preserve_requester(&mut ctx, GPU, requester(GPU_SOURCE)).unwrap();
        outgoing.preserve_pasid(&mut ctx, NIC, PROCESS_PASID).unwrap();
        assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    }
}

#[test]
fn a_nested_domain_without_a_pasid_refuses_the_freeze_by_name_and_without_it_the_freeze_succeeds() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    outgoing.unpreserve_pasid(&mut ctx, NIC, PROCESS_PASID).unwrap();
    let before = (scene.machine.snapshot(), outgoing.totals());
    let failed = freeze(outgoing, &mut ctx).unwrap_err();
    assert_eq!(failed.why, FreezeError::NestedUnused(PROCESS_DOMAIN));
    let mut outgoing = failed.outgoing;
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    outgoing.unpreserve_domain(&mut ctx, PROCESS_DOMAIN).unwrap();
    let _sealed = freeze(outgoing, &mut ctx).unwrap();
}
