//! Mode continuity (I10): what the next kernel cannot adopt is refused before the jump, by name; a kernel that finds itself
//! with it all the same fails closed.

use super::adoption::adopt;
use crate::common::machine::Step;
use crate::common::scalable::*;
use crate::common::scene;
use crate::common::{Store, requester};
use audit::Invariant;
use liveupdate::host::{Adoptable, MaySleep};
use liveupdate::{
    AdoptEvent, CheckError, FreezeError, FreezeInput, Mode, NotAdoptable, ReservedMemory, Stage,
};
use std::collections::BTreeSet;

pub(super) fn input(successor: Adoptable) -> FreezeInput<'static> {
    FreezeInput { release: "r", update: 1, scratch: &[], reserved: ReservedMemory::CutOff(&[]), successor }
}

/// What a kernel lacks for the scene, one thing after the other.
fn lacks() -> [(Adoptable, NotAdoptable); 6] {
    let all = Adoptable::EVERYTHING;
    let unit = Scene::new().machine.units[0].id;
    let mode = NotAdoptable::Mode { unit, mode: Mode::Scalable };
    let tables = |domain, stage| NotAdoptable::Tables { domain, stage, levels: 4 };
    [
        (Adoptable::LEGACY, mode),
        (Adoptable { scalable: false, ..all }, mode),
        (Adoptable { second_stage: 0b10_1000, ..all }, tables(GUEST_DOMAIN, Stage::Second)),
        (Adoptable { first_stage: 0b10_0000, ..all }, tables(SHARED_DOMAIN, Stage::First)),
        (Adoptable { nested: false, ..all }, NotAdoptable::Nested(PROCESS_DOMAIN)),
        (
            Adoptable { pasids: false, ..all },
            NotAdoptable::Pasid { requester: requester(NIC_SOURCE), pasid: SHARED_PASID },
        ),
    ]
}

#[test]
fn lesson_14_a_freeze_refuses_what_the_next_kernel_cannot_adopt_and_everything_goes_on() {
    let (scene, mut store) = (Scene::new(), Store::of(16));
    let mut ctx = MaySleep::at_thread_start();
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let mut words = vec![0; 1 << 15];
    for (successor, why) in lacks() {
        let scratch = &mut audit::Scratch::new(&mut words);
        let failed = outgoing.freeze(&mut ctx, &input(successor), scratch, &mut |_| ()).unwrap_err();
        assert_eq!(failed.why, FreezeError::NotAdoptable(why));
        assert!(failed.why.to_string().starts_with("the next kernel says that it cannot "), "{}", failed.why);
        outgoing = failed.outgoing;
        assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    }
    // Just what is needed is enough.
    let enough =
        Adoptable { legacy: false, second_stage: 1 << 4, first_stage: 1 << 4, ..Adoptable::EVERYTHING };
    let scratch = &mut audit::Scratch::new(&mut words);
    let _sealed = outgoing.freeze(&mut ctx, &input(enough), scratch, &mut |_| ()).unwrap();
}

#[test]
fn lesson_14_a_legacy_machine_is_refused_to_a_kernel_of_scalable_mode_too() {
    let (scene, mut store) = (scene::Scene::new(), Store::of(16));
    let mut ctx = MaySleep::at_thread_start();
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let mut words = vec![0; 1 << 15];
    let scalable = Adoptable { legacy: false, ..Adoptable::EVERYTHING };
    let scratch = &mut audit::Scratch::new(&mut words);
    let failed = outgoing.freeze(&mut ctx, &input(scalable), scratch, &mut |_| ()).unwrap_err();
    let why = NotAdoptable::Mode { unit: scene.machine.units[0].id, mode: Mode::Legacy };
    assert_eq!(failed.why, FreezeError::NotAdoptable(why));
    let scratch = &mut audit::Scratch::new(&mut words);
    let _sealed = failed.outgoing.freeze(&mut ctx, &input(Adoptable::LEGACY), scratch, &mut |_| ()).unwrap();
}

#[test]
fn a_kernel_that_cannot_drive_what_it_opened_adopts_nothing_and_fails_closed() {
    for (able, why) in lacks() {
        let scene = Scene::new();
        let container = scene.update();
        scene.machine.adoptable.set(able);
        let mut store = Store::of(16);
        let opened = liveupdate::open(&scene.machine, container.fdt, store.storage()).unwrap();
        let mut words = vec![0; 1 << 15];
        let refused = opened.check(&scene.machine, &mut audit::Scratch::new(&mut words), &mut |_| ());
        assert_eq!(refused.unwrap_err(), CheckError::NotAdoptable(why));
        scene.all_is_well();
        liveupdate::block_all(&scene.machine, &mut MaySleep::at_thread_start(), &mut |_| ());
        assert!(
            scene.machine.dma(NIC_SOURCE, IOVA).is_err()
                && scene.machine.dma(GPU_SOURCE, SHARED_IOVA).is_err()
        );
        assert!(scene.machine.request(NIC_SOURCE, Some(SHARED_PASID), SHARED_IOVA).is_err());
        assert!(scene.machine.units[0].status.get().tes());
        assert!(scene.machine.take_steps().iter().all(|s| !matches!(s, Step::Disable(_))));
    }
}

#[test]
fn lesson_14_a_unit_that_came_back_in_another_mode_is_blocked_and_stays_on() {
    for mode in [0, 2, 3] {
        let scene = Scene::new();
        let container = scene.update();
        let unit = &scene.machine.units[0];
        unit.root.set(unit.root.get().with_ttm(mode));
        let mut store = Store::of(16);
        let opened = liveupdate::open(&scene.machine, container.fdt, store.storage()).unwrap();
        let (mut words, mut invariants) = (vec![0; 1 << 15], BTreeSet::new());
        let scratch = &mut audit::Scratch::new(&mut words);
        let _checked = opened.check(&scene.machine, scratch, &mut |f| _ = invariants.insert(f.invariant));
        assert!(invariants.contains(&Invariant::I10), "mode {mode}: {invariants:?}");
        scene.machine.take_steps();
        let mut store = Store::of(16);
        let (_, events, _) = adopt(&scene, &container, &mut store, &mut |_, _| true);
        for token in [GUEST_DOMAIN, SHARED_DOMAIN, PROCESS_DOMAIN] {
            assert!(events.contains(&AdoptEvent::Blocked(token)), "mode {mode}");
        }
        assert!(scene.machine.take_steps().iter().all(|s| !matches!(s, Step::Disable(_))));
    }
}
