//! Units in scalable mode: brought up, taken over, refused; and how they are made to forget.

use super::{CONFIG, rich, rich_fake, running_in, setup, source};
use crate::config::Capability;
use crate::error::UnitError;
use crate::fake::{Done, Fake, Quirks, Stuck, UNIT};
use crate::{Config, Hal, Invalidation, Iommu, Mode, Origin, Setup, VtdUnit};
use alloc::vec::Vec;
use liveupdate::host::{Forget, MaySleep, TimedOut, Unit};
use spec::regs::{Cap, Ecap, Gsts, Iqa, RootAddr, table_mode};
use spec::{DomainId, Iova, PhysAddr};

const SCALABLE: Config = Config { mode: Mode::SecondStage, ..CONFIG };

const CONTEXTS: Done = Done::Context { g: 1, source: 0, domain: 0 };
const PASIDS: Done = Done::Pasids { g: 3, domain: 0, pasid: 0 };
const TRANSLATIONS: Done = Done::Translations { g: 1, domain: 0, page: 0, order: 0 };

fn fake_with(quirks: Quirks) -> Fake {
    let fake = rich_fake();
    fake.with_unit(|u| u.quirks = quirks);
    fake
}

fn forget(unit: &VtdUnit<'_, Fake>, ctx: &mut MaySleep, what: Forget) -> Result<(), TimedOut> {
    unit.locked(ctx, |atomic| unit.forget(atomic, what)).map(|_| ())
}

/// All that hardware did, waits left out: every step is followed by one, which is checked.
fn steps(fake: &Fake) -> Vec<Done> {
    let done = fake.done();
    for pair in done.windows(2) {
        assert!(pair.iter().any(|d| matches!(d, Done::Wait | Done::RootSet)), "no wait between {pair:?}");
    }
    assert!(done.last().is_none_or(|last| *last == Done::Wait), "the last step was not waited for");
    done.into_iter().filter(|d| *d != Done::Wait).collect()
}

#[test]
fn a_unit_comes_up_in_scalable_mode_with_a_wide_queue() {
    for mode in [Mode::SecondStage, Mode::FirstStage] {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let unit = VtdUnit::set_up(&fake, &mut ctx, UNIT, Config { mode, ..CONFIG }).expect("set up");
        assert_eq!(steps(&fake), [Done::RootSet, PASIDS, CONTEXTS, PASIDS, TRANSLATIONS]);
        assert_eq!(unit.root().ttm(), table_mode::SCALABLE);
        assert!(Iqa::from_raw(fake.with_unit(|u| u.iqa)).dw());
        assert!(!unit.status().tes());
        unit.locked(&mut ctx, |atomic| unit.enable(atomic)).expect("on");
        let blocked = fake.dma(source(0, 2, 0), 0x1000, false);
        assert_eq!(blocked, Err(crate::fake::scalable::NO_CONTEXT), "an empty root table blocks");
        assert_eq!((unit.origin(), unit.config().mode), (Origin::SetUp, mode));
    }
}

#[test]
fn legacy_mode_keeps_to_narrow_descriptors_and_asks_nothing_of_the_pasid_cache() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let unit = VtdUnit::set_up(&fake, &mut ctx, UNIT, CONFIG).expect("set up");
    assert_eq!(steps(&fake), [Done::RootSet, CONTEXTS, TRANSLATIONS]);
    assert_eq!((unit.root().ttm(), unit.invalidation()), (table_mode::LEGACY, Invalidation::Legacy));
    assert!(!Iqa::from_raw(fake.with_unit(|u| u.iqa)).dw());
}

#[test]
fn what_a_unit_takes_decides_how_it_is_made_to_forget() {
    let whole = |pasid_cache| Invalidation::Whole { pasid_cache };
    let cases = [
        (Quirks::None, false, Invalidation::ByPasid),
        (Quirks::None, true, whole(true)),
        (Quirks::Ignores, false, whole(true)),
        (Quirks::Ignores, true, whole(true)),
        (Quirks::Refuses, false, whole(false)),
        (Quirks::Refuses, true, whole(false)),
    ];
    for (quirks, narrow_queue, expected) in cases {
        let case = (quirks, narrow_queue);
        let (fake, mut ctx) = (fake_with(quirks), MaySleep::at_thread_start());
        let unit =
            VtdUnit::set_up(&fake, &mut ctx, UNIT, Config { narrow_queue, ..SCALABLE }).expect("set up");
        assert_eq!(unit.invalidation(), expected, "{case:?}");
        let wide = quirks != Quirks::Ignores && !narrow_queue;
        assert_eq!(Iqa::from_raw(fake.with_unit(|u| u.iqa)).dw(), wide, "{case:?}");
        assert_eq!(fake.with_unit(|u| u.fsts & 0x10), 0, "{case:?}: the queue is not left stuck");
        steps(&fake);
        // Whole caches, in the order of the specification, whatever is asked for; of the PASID cache where it is taken.
        let mut all = Vec::from([CONTEXTS, PASIDS, TRANSLATIONS]);
        all.retain(|d| *d != PASIDS || quirks == Quirks::None);
        forget(&unit, &mut ctx, Forget::Everything).expect("forget");
        assert_eq!(steps(&fake), all, "{case:?}");
        let domain = DomainId(9);
        let asked = Forget::Requester { source: source(1, 2, 3), domain };
        forget(&unit, &mut ctx, asked).expect("forget");
        let by_name = [
            Done::Context { g: 3, source: 0x113, domain: 0 },
            PASIDS,
            Done::Translations { g: 2, domain: 9, page: 0, order: 0 },
        ];
        let by_pasid = expected == Invalidation::ByPasid;
        assert_eq!(steps(&fake), if by_pasid { by_name.to_vec() } else { all.clone() }, "{case:?}");
        for asked in [Forget::Domain(domain), Forget::Pages { domain, start: Iova::new(0x5000), order: 0 }] {
            forget(&unit, &mut ctx, asked).expect("forget");
            assert_eq!(steps(&fake), if by_pasid { by_name[2..].to_vec() } else { all.clone() }, "{case:?}");
        }
    }
}

#[test]
fn a_wide_queue_runs_round_and_is_waited_for() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let unit = VtdUnit::set_up(&fake, &mut ctx, UNIT, SCALABLE).expect("set up");
    fake.with_unit(|u| u.latency = 20);
    steps(&fake);
    for round in 0..150 {
        forget(&unit, &mut ctx, Forget::Everything).expect("forget");
        assert_eq!(steps(&fake), [CONTEXTS, PASIDS, TRANSLATIONS], "round {round}");
    }
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    let e = forget(&unit, &mut ctx, Forget::Everything).expect_err("stuck");
    assert_eq!(e.what, "context cache invalidation");
}

#[test]
fn a_unit_that_lacks_what_a_mode_needs_is_refused_by_name() {
    let ecap = Ecap::from_raw(rich().1);
    let without = |what| match what {
        Capability::ScalableMode => ecap.with_smts(false),
        Capability::SecondStage => ecap.with_ssts(false),
        Capability::FirstStage => ecap.with_fsts(false),
        _ => ecap.with_qi(false),
    };
    let (second, first) = (Capability::SecondStage, Capability::FirstStage);
    let cases = [
        (Mode::SecondStage, Capability::ScalableMode, true),
        (Mode::FirstStage, Capability::ScalableMode, true),
        (Mode::SecondStage, second, true),
        (Mode::FirstStage, second, false),
        (Mode::SecondStage, first, false),
        (Mode::FirstStage, first, true),
        (Mode::SecondStage, Capability::Queue, true),
        (Mode::FirstStage, Capability::Queue, true),
        (Mode::Legacy, Capability::ScalableMode, false),
        (Mode::Legacy, Capability::Queue, false),
    ];
    for (mode, what, refused) in cases {
        let (fake, mut ctx) = (Fake::new(rich().0, without(what).raw()), MaySleep::at_thread_start());
        let result = VtdUnit::set_up(&fake, &mut ctx, UNIT, Config { mode, ..CONFIG });
        if refused {
            assert_eq!(result.expect_err("lacking"), UnitError::Lacks { unit: UNIT, what }, "{mode}");
            assert!(fake.frames_given().is_empty() && fake.done().is_empty());
        } else {
            result.expect("set up");
        }
    }
    // A host that keeps the driver from the queue keeps it from scalable mode; widths count for the second stage alone.
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    let e = VtdUnit::set_up(&fake, &mut ctx, UNIT, Config { registers_only: true, ..SCALABLE });
    assert_eq!(e.expect_err("no queue"), UnitError::Lacks { unit: UNIT, what: Capability::Queue });
    let cap = Cap::from_raw(rich().0).with_sagaw(0);
    fake.with_unit(|u| u.cap = cap);
    let e = VtdUnit::set_up(&fake, &mut ctx, UNIT, SCALABLE).expect_err("no width");
    assert_eq!(e, UnitError::NoWidth { unit: UNIT, cap: cap.raw() });
    VtdUnit::set_up(&fake, &mut ctx, UNIT, Config { mode: Mode::FirstStage, ..CONFIG }).expect("set up");
}

/// A unit that translates in the table mode given, as a predecessor left it.
fn left_in(fake: &Fake, ctx: &mut MaySleep, ttm: u64) -> u64 {
    let root = fake.allocate(ctx, 1, 1).expect("frame");
    let root = RootAddr::ZERO.with_ttm(ttm).with_rta(root.first().number()).raw();
    fake.with_unit(|u| {
        u.rtaddr = root;
        u.status = Gsts::ZERO.with_tes(true).with_rtps(true);
    });
    fake.write32(PhysAddr::new(UNIT.register_base + 0x18), 1 << 31 | 1 << 30);
    fake.done();
    root
}

#[test]
fn a_unit_that_runs_in_another_mode_is_neither_taken_over_nor_set_up_and_goes_on_translating() {
    let modes = [Mode::Legacy, Mode::SecondStage, Mode::FirstStage];
    for (mode, ttm) in modes.into_iter().flat_map(|mode| [0, 1, 2, 3].map(|ttm| (mode, ttm))) {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let root = left_in(&fake, &mut ctx, ttm);
        let frames = fake.frames_given();
        let config = Config { mode, ..CONFIG };
        let taken = VtdUnit::take_over(&fake, &mut ctx, UNIT, config);
        if ttm == mode.table_mode() {
            assert_eq!(taken.expect("take over").origin(), Origin::TakenOver);
        } else {
            let expected = UnitError::Mode { unit: UNIT, root, configured: mode };
            assert_eq!(taken.expect_err("another mode"), expected);
            assert_eq!(VtdUnit::set_up(&fake, &mut ctx, UNIT, config).expect_err("on"), expected);
            assert_eq!(fake.frames_given(), frames);
            assert_eq!(fake.done(), []);
        }
        assert!(fake.with_unit(|u| u.status.tes() && !u.translation_went_off && u.rtaddr == root));
    }
}

#[test]
fn a_whole_machine_in_another_mode_is_refused_and_no_unit_is_set_up_in_place_of_it() {
    let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
    running_in(&fake, &mut ctx, Mode::SecondStage);
    let before = fake.memory();
    let e = Iommu::take_over(&fake, &mut ctx, setup()).err().expect("legacy");
    assert!(matches!(e, UnitError::Mode { configured: Mode::Legacy, .. }), "{e}");
    assert_eq!(fake.memory(), before);
    let config = Config { mode: Mode::SecondStage, ..CONFIG };
    Iommu::take_over(&fake, &mut ctx, Setup { config, ..setup() }).expect("the mode that it runs in");
    assert!(!fake.with_unit(|u| u.translation_went_off));
}

#[test]
fn a_queue_of_either_width_is_replaced_by_one_of_the_width_that_is_asked_for() {
    for (old, new) in [(false, true), (true, false), (true, true), (false, false)] {
        let (fake, mut ctx) = (rich_fake(), MaySleep::at_thread_start());
        let config = |narrow_queue| Config { narrow_queue, ..SCALABLE };
        let before = VtdUnit::set_up(&fake, &mut ctx, UNIT, config(old)).expect("set up");
        before.locked(&mut ctx, |atomic| before.enable(atomic)).expect("on");
        let root = fake.with_unit(|u| u.rtaddr);
        fake.done();
        let unit = VtdUnit::take_over(&fake, &mut ctx, UNIT, config(new)).expect("take over");
        assert_eq!(Iqa::from_raw(fake.with_unit(|u| u.iqa)).dw(), !new);
        assert_eq!(steps(&fake), [PASIDS], "{old} {new}");
        assert_eq!(fake.with_unit(|u| (u.rtaddr, u.translation_went_off)), (root, false));
        forget(&unit, &mut ctx, Forget::Everything).expect("the new queue works");
    }
}
