//! Freeze in scalable mode: what changed since it was preserved is found out by name, and everything goes on.

use crate::common::scalable::*;
use crate::common::scene::freeze;
use crate::common::{Store, requester, source};
use audit::{Invariant, What};
use liveupdate::host::MaySleep;
use liveupdate::{FreezeError, FreezeInput, NotFrozen, Outgoing, ReservedMemory};
use spec::{PhysAddr, Requester};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

/// Preserves, stores one word, and says why the freeze fails. Nothing else may change; after repair it works.
fn fails_with(scene: &Scene, at: PhysAddr, value: u64) -> FreezeError {
    let (mut store, mut ctx) = (Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let undisturbed = scene.machine.snapshot();
    let old = scene.machine.get(at);
    scene.machine.set(at, value);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let failed = freeze(outgoing, &mut ctx).unwrap_err();
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
    scene.machine.set(at, old);
    assert_eq!(scene.machine.snapshot(), undisturbed);
    let _outgoing = freeze(failed.outgoing, &mut ctx).expect("usable again").unfreeze(&mut ctx);
    scene.machine.reservations.take();
    scene.machine.holds.take();
    failed.why
}

fn drifted(why: &FreezeError) -> (Option<Requester>, &'static str) {
    let FreezeError::Drifted { requester, what, .. } = why else { panic!("{why:?}") };
    (*requester, what)
}

#[test]
fn an_entry_that_changed_is_found_out_with_its_requester() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let nic = Some(requester(NIC_SOURCE));
    let context = machine.scalable_entry(0, NIC_SOURCE);
    for (word, bit) in [(0, 3), (1, 20), (3, 7)] {
        let at = context.plus(8 * word);
        let why = fails_with(&scene, at, machine.get(at) ^ 1 << bit);
        assert_eq!(drifted(&why), (nic, "its context entry changed"));
    }
    for pasid in [0, SHARED_PASID, PROCESS_PASID] {
        let entry = machine.pasid_entry_at(scene.nic, pasid);
        for at in [entry, entry.plus(8), entry.plus(56)] {
            let why = fails_with(&scene, at, machine.get(at) ^ 1 << 16);
            assert_eq!(drifted(&why), (nic, "a PASID entry of it changed"), "PASID {pasid}");
        }
        assert_eq!(drifted(&fails_with(&scene, entry, 0)).0, nic);
    }
    // The directory's entry leads elsewhere, or nowhere.
    for value in [scene.other.top.get() | 1, 0] {
        let why = fails_with(&scene, scene.nic.plus(8), value);
        assert_eq!(drifted(&why), (nic, "a PASID entry of it changed"));
    }
    let why = fails_with(&scene, machine.root_entry(0, 3).plus(8), 0);
    assert_eq!(drifted(&why), (Some(requester(GPU_SOURCE)), "its context entry changed"));
}

#[test]
fn lesson_14_another_mode_is_found_out_before_the_jump() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let unit = &scene.machine.units[0];
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    for mode in [0, 2, 3] {
        unit.root.set(unit.root.get().with_ttm(mode));
        let failed = freeze(outgoing, &mut ctx).unwrap_err();
        assert_eq!(drifted(&failed.why), (None, "another root table or mode is in use"));
        outgoing = failed.outgoing;
    }
    unit.root.set(unit.root.get().with_ttm(1));
    let _sealed = freeze(outgoing, &mut ctx).unwrap();
}

#[test]
fn a_leaf_turned_outside_behind_the_drivers_back_is_a_violation_with_its_address() {
    let scene = Scene::new();
    // A leaf of the first stage; one of the guest's; one of the process' that the guest's tables do not take up.
    let shared = scene.machine.entry(scene.shared, SHARED_IOVA + 0x3000, 0);
    let why = fails_with(&scene, shared, 0x3000_0000 | 0b111);
    let FreezeError::Violated { count: 1, first } = why else { panic!("{why:?}") };
    assert_eq!((first.invariant, first.domain), (Invariant::I3, Some(SHARED_DOMAIN.0)));
    let iova = SHARED_IOVA + 0x3000;
    assert!(matches!(first.what, What::LeafOutside { iova: at, .. } if at == iova), "{first}");
    let guest = scene.machine.entry(scene.guest, IOVA + 0x3000, 0);
    let why = fails_with(&scene, guest, 0x3000_0000 | 0b11);
    assert!(matches!(why, FreezeError::Violated { first, .. } if first.domain == Some(GUEST_DOMAIN.0)));
    let process = guest_memory().start().plus(0x1000 * (PROCESS_TABLES + 3));
    let process = process.plus(8 * spec::second_stage::index(PROCESS_IOVA, 0));
    let why = fails_with(&scene, process, 0x5555_5000 | 0b111);
    let FreezeError::Violated { first, .. } = why else { panic!("{why:?}") };
    assert_eq!(first.domain, Some(PROCESS_DOMAIN.0));
    assert!(matches!(first.what, What::LeafBeyondParent { output: 0x5555_5000, .. }), "{first}");
}

#[test]
fn lesson_06_tables_that_appear_after_the_preserve_are_not_taken_back_with_it() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let before = machine.snapshot().reservations;
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    // The other half of a bus gets a table, a directory another table, and the preserved directory's second table is
    // gone. The machine panics if anything is released that was not reserved.
    machine.attach_scalable(0, source(3, 0, 0), first(10, scene.other));
    machine.put_pasid(scene.nic_context(), 700, first(10, scene.other));
    machine.set(scene.nic.plus(8), 0);
    for token in [NIC, GPU] {
        outgoing.unpreserve_requester(&mut ctx, token).unwrap();
    }
    for token in [PROCESS_DOMAIN, SHARED_DOMAIN, GUEST_DOMAIN] {
        outgoing.unpreserve_domain(&mut ctx, token).unwrap();
    }
    for token in [SHARED_MEMORY, GUEST_MEMORY] {
        outgoing.unpreserve_region(&mut ctx, token).unwrap();
    }
    assert_eq!(machine.snapshot().reservations, before);
}

/// Freezes with a list of requesters that firmware reserved memory for.
#[allow(clippy::result_large_err)]
fn frozen_with<'h, 's>(
    outgoing: Outgoing<'h, 's, crate::common::machine::Machine>,
    who: spec::SourceId,
) -> Result<(), NotFrozen<'h, 's, crate::common::machine::Machine>> {
    let mut words = vec![0; 1 << 15];
    let list = [(requester(who), shared_memory())];
    let input = FreezeInput {
        release: "r",
        update: 1,
        scratch: &[],
        reserved: ReservedMemory::Reduced(&list),
        successor: liveupdate::host::Adoptable::EVERYTHING,
    };
    outgoing.freeze(&mut ctx(), &input, &mut audit::Scratch::new(&mut words), &mut |_| ()).map(drop)
}

#[test]
fn a_requester_with_reserved_memory_is_found_in_the_upper_half_too() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let failed = frozen_with(scene.preserve(&mut store, &mut ctx), UPPER).unwrap_err();
    assert!(matches!(failed.why, FreezeError::Reserved { requester: r, .. } if r == requester(UPPER)));
    let nobody = source(0, 0x1e, 0);
    frozen_with(failed.outgoing, nobody).unwrap();
}
