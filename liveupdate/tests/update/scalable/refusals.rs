//! What cannot be preserved in scalable mode is refused by name, and changes nothing.

use crate::common::scalable::*;
use crate::common::tables::Tables;
use crate::common::{Store, extent, requester};
use liveupdate::host::MaySleep;
use liveupdate::{DomainTablesOf, PreserveError, RegionKind, Stage, Token};
use spec::scalable::{PasidEntry, ScalableContextEntry, pasid_type};
use spec::{DomainId, Iova, SourceId};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

/// Why `who` cannot be preserved.
fn refused(scene: &Scene, who: SourceId) -> PreserveError {
    let mut store = Store::of(16);
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx());
    let before = (scene.machine.snapshot(), outgoing.totals());
    let error = outgoing.preserve_requester(&mut ctx(), Token(77), requester(who)).unwrap_err();
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    assert!(!error.to_string().is_empty());
    scene.machine.reservations.take();
    scene.machine.holds.take();
    error
}

/// Why a PASID of the preserved NIC cannot be preserved, once its entry is this.
fn pasid_refused(scene: &Scene, pasid: u32, entry: Option<PasidEntry>) -> PreserveError {
    let mut store = Store::of(16);
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx());
    outgoing.preserve_requester(&mut ctx(), NIC, requester(NIC_SOURCE)).unwrap();
    if let Some(entry) = entry {
        scene.machine.put_pasid(scene.nic_context(), pasid, entry);
    }
    let before = (scene.machine.snapshot(), outgoing.totals());
    let error = outgoing.preserve_pasid(&mut ctx(), NIC, pasid).unwrap_err();
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    scene.machine.reservations.take();
    scene.machine.holds.take();
    error
}

#[test]
fn pass_through_reaches_all_of_memory_with_a_pasid_or_without() {
    let scene = Scene::new();
    let nic = requester(NIC_SOURCE);
    let through = PasidEntry::ZERO.with_present(true).with_pgtt(pasid_type::PASS_THROUGH).with_did(30);
    assert_eq!(pasid_refused(&scene, 40, Some(through)), PreserveError::PassThrough(nic));
    let context = scene.nic_context();
    scene.machine.put_pasid(context, 0, through);
    assert_eq!(refused(&scene, NIC_SOURCE), PreserveError::PassThrough(nic));
    let reserved = through.with_pgtt(6);
    scene.machine.put_pasid(context, 0, reserved);
    let unsupported = PreserveError::Unsupported { requester: nic, translation_type: 6 };
    assert_eq!(refused(&scene, NIC_SOURCE), unsupported);
}

#[test]
fn a_device_tlb_that_nobody_knows_page_requests_and_extended_accessed_bits_are_refused() {
    let scene = Scene::new();
    let nic = requester(NIC_SOURCE);
    let context = scene.nic_context();
    let cases = [
        (context.with_dte(true), PreserveError::DeviceTlb(nic)),
        (context.with_pre(true), PreserveError::PageRequests(nic)),
    ];
    for (entry, error) in cases {
        scene.machine.put_scalable(0, NIC_SOURCE, entry);
        assert_eq!(refused(&scene, NIC_SOURCE), error);
    }
    scene.machine.put_scalable(0, NIC_SOURCE, context);
    let extended = first(8, scene.shared).with_eafe(true);
    let error = PreserveError::ExtendedAccess { requester: nic, pasid: 40 };
    assert_eq!(pasid_refused(&scene, 40, Some(extended)), error);
}

#[test]
fn a_pasid_without_an_entry_or_beyond_the_directory_is_named() {
    let scene = Scene::new();
    let nic = requester(NIC_SOURCE);
    // Not present; no table; the directory ends at 8192; hardware knows no such PASID.
    for pasid in [7, 1000, 8192, 1 << 20, u32::MAX] {
        assert_eq!(pasid_refused(&scene, pasid, None), PreserveError::NoPasid { requester: nic, pasid });
    }
    let context = scene.nic_context().with_rid_pasid(7);
    scene.machine.put_scalable(0, NIC_SOURCE, context);
    assert_eq!(refused(&scene, NIC_SOURCE), PreserveError::NoPasid { requester: nic, pasid: 7 });
    scene.machine.put_scalable(0, NIC_SOURCE, ScalableContextEntry::ZERO);
    assert_eq!(refused(&scene, NIC_SOURCE), PreserveError::NoDomain(nic));
}

#[test]
fn nothing_is_preserved_twice() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let nic = requester(NIC_SOURCE);
    for pasid in [0, SHARED_PASID, PROCESS_PASID] {
        let taken = PreserveError::PasidTaken { requester: nic, pasid };
        assert_eq!(outgoing.preserve_pasid(&mut ctx, NIC, pasid), Err(taken));
    }
    let again = outgoing.preserve_requester(&mut ctx, Token(77), nic);
    assert_eq!(again, Err(PreserveError::AlreadyPreserved(nic)));
}

#[test]
fn a_domain_id_has_one_domain_and_a_domain_one_id_whatever_the_pasid() {
    let scene = Scene::new();
    let nic = requester(NIC_SOURCE);
    let clash = |id| PreserveError::DomainIdClash { requester: nic, domain_id: DomainId(id) };
    // The guest's id for the shared domain; another id for the guest's domain; the same for tables below it.
    assert_eq!(pasid_refused(&scene, 40, Some(first(7, scene.shared))), clash(7));
    assert_eq!(pasid_refused(&scene, 40, Some(second(33, scene.guest))), clash(33));
    let below = nested(7, IOVA + 0x1000 * PROCESS_TABLES, scene.guest);
    assert_eq!(pasid_refused(&scene, 40, Some(below)), clash(7));
}

#[test]
fn a_domain_of_the_wrong_stage_or_depth_is_not_the_entrys_domain() {
    let scene = Scene::new();
    let nic = requester(NIC_SOURCE);
    let missing = |top_table| PreserveError::DomainNotPreserved { requester: nic, top_table };
    let as_second = Tables { stage: Stage::Second, ..scene.shared };
    assert_eq!(pasid_refused(&scene, 40, Some(second(8, as_second))), missing(scene.shared.top));
    let deeper = Tables { levels: 5, ..scene.shared };
    assert_eq!(pasid_refused(&scene, 40, Some(first(8, deeper))), missing(scene.shared.top));
    // The process' tables, walked alone.
    assert_eq!(pasid_refused(&scene, 40, Some(first(9, scene.process))), missing(scene.process.top));
    // The guest does not map where this one points to.
    let beyond = nested(9, 0x5000, scene.guest);
    let error = pasid_refused(&scene, 40, Some(beyond));
    assert!(matches!(error, PreserveError::BeyondParent { address, .. } if address == Iova::new(0x5000)));
}

#[test]
fn a_nested_domain_that_points_beyond_its_parent_is_refused_with_the_address() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
    outgoing.unpreserve_domain(&mut ctx, PROCESS_DOMAIN).unwrap();
    let before = (scene.machine.snapshot(), outgoing.totals());
    for (level, table) in (0..4).rev().zip(PROCESS_TABLES..) {
        let at = guest_memory().start().plus(0x1000 * table);
        let at = at.plus(8 * spec::second_stage::index(PROCESS_IOVA, level));
        let old = scene.machine.get(at);
        scene.machine.set(at, 0x7777_7000 | 0b111);
        let refused = outgoing.preserve_domain(&mut ctx, PROCESS_DOMAIN, scene.process());
        let error =
            PreserveError::BeyondParent { address: Iova::new(0x7777_7000), top_table: scene.process.top };
        assert_eq!(refused, Err(error), "level {level}");
        scene.machine.set(at, old);
    }
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    // A table that points to itself.
    let at = guest_memory().start().plus(0x1000 * PROCESS_TABLES);
    let at = at.plus(8 * spec::second_stage::index(PROCESS_IOVA, 3));
    let old = scene.machine.get(at);
    scene.machine.set(at, (IOVA + 0x1000 * PROCESS_TABLES) | 0b111);
    let refused = outgoing.preserve_domain(&mut ctx, PROCESS_DOMAIN, scene.process());
    assert_eq!(refused, Err(PreserveError::TableShared(scene.process.top)));
    scene.machine.set(at, old);
    // As many levels as there are none; a parent that is no second stage, or none.
    for (levels, parent) in [(3, GUEST_DOMAIN), (6, GUEST_DOMAIN)] {
        let of = DomainTablesOf { levels, parent: Some(parent), ..scene.process() };
        assert_eq!(
            outgoing.preserve_domain(&mut ctx, PROCESS_DOMAIN, of),
            Err(PreserveError::Levels(levels))
        );
    }
    for parent in [SHARED_DOMAIN, GUEST_MEMORY, Token(99)] {
        let of = DomainTablesOf { parent: Some(parent), ..scene.process() };
        assert_eq!(
            outgoing.preserve_domain(&mut ctx, PROCESS_DOMAIN, of),
            Err(PreserveError::NoParent(parent))
        );
    }
    let of = DomainTablesOf { parent: Some(GUEST_DOMAIN), ..scene.other.of() };
    let of = DomainTablesOf { stage: Stage::Second, ..of };
    let second = outgoing.preserve_domain(&mut ctx, Token(98), of);
    assert_eq!(second, Err(PreserveError::NoParent(GUEST_DOMAIN)), "a second stage lies below nothing");
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
}

#[test]
fn tables_of_a_first_stage_that_is_not_nested_may_not_lie_in_preserved_memory() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx);
    outgoing.unpreserve_domain(&mut ctx, SHARED_DOMAIN).unwrap();
    outgoing.unpreserve_region(&mut ctx, SHARED_MEMORY).unwrap();
    let around = extent(scene.shared.top.get(), 1);
    outgoing.preserve_region(&mut ctx, Token(60), around, RegionKind::Memory).unwrap();
    let refused = outgoing.preserve_domain(&mut ctx, SHARED_DOMAIN, scene.shared.of());
    assert!(
        matches!(refused, Err(PreserveError::LeafOutside { .. } | PreserveError::Overlap(_))),
        "{refused:?}"
    );
}

#[test]
fn pasid_structures_that_are_something_else_already_are_refused() {
    // A directory, or a table, in the guest's memory.
    let scene = Scene::new();
    let page = |n: u64| guest_memory().start().plus(0x1000 * n);
    for n in [12, 13] {
        (0..512).for_each(|word| scene.machine.set(page(n).plus(8 * word), 0));
    }
    let context = scene.nic_context();
    let table = scene.machine.get(scene.nic);
    scene.machine.set(page(12), table);
    scene.machine.put_scalable(0, NIC_SOURCE, context.with_pasiddirptr(page(12).get() >> 12));
    assert_eq!(refused(&scene, NIC_SOURCE), PreserveError::Overlap(guest_memory()));
    scene.machine.put_scalable(0, NIC_SOURCE, context);
    scene.machine.set(scene.nic, page(13).get() | 1);
    scene.machine.put_pasid(context, 0, second(7, scene.guest));
    assert_eq!(refused(&scene, NIC_SOURCE), PreserveError::Overlap(guest_memory()));
    scene.machine.set(scene.nic, table);
    // The entry of PASIDs from 64 on leads to the table of those from 0 on.
    let process = scene.machine.get(scene.nic.plus(8));
    scene.machine.set(scene.nic.plus(8), table);
    let mut store = Store::of(16);
    let mut outgoing = scene.preserve_domains(&mut store, &mut ctx());
    outgoing.preserve_requester(&mut ctx(), NIC, requester(NIC_SOURCE)).unwrap();
    let table = spec::PhysAddr::new(scene.machine.get(scene.nic) & !0xfff);
    // PASID 69 finds the entry of PASID 5 there.
    let shared = outgoing.preserve_pasid(&mut ctx(), NIC, 64 + SHARED_PASID);
    assert_eq!(shared, Err(PreserveError::TableShared(table)));
    scene.machine.set(scene.nic.plus(8), process);
    // Another requester whose directory has the first one's table.
    let other = scene.machine.directory(0);
    scene.machine.set(other.directory(), table.get() | 1);
    scene.machine.put_scalable(0, OTHER, other);
    let shared = outgoing.preserve_requester(&mut ctx(), Token(77), requester(OTHER));
    assert_eq!(shared, Err(PreserveError::TableShared(table)));
    // Another that has the directory itself, by another context entry.
    scene.machine.put_scalable(0, OTHER, scene.nic_context().with_pdts(1));
    let shared = outgoing.preserve_requester(&mut ctx(), Token(77), requester(OTHER));
    assert_eq!(shared, Err(PreserveError::TableShared(scene.nic)));
}
