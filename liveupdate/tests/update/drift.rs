//! Freeze: what changed since the preserve is found out, what the auditor objects to is refused, and a refusal leaves the
//! outgoing side as it was.

use crate::common::scene::*;
use crate::common::tables::context;
use crate::common::{Store, extent, requester, source};
use audit::{Invariant, What};
use liveupdate::host::{Adoptable, Atomic, MaySleep};
use liveupdate::{
    FreezeError, FreezeInput, MAX_SCRATCH, MAX_UNITS, Outgoing, RegionKind, Token, UnpreserveError,
};
use spec::{Extent, Requester};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

/// Preserves, lets `change` happen, and says why the freeze fails. Nothing else may change; after `repair` it works.
fn fails_after(scene: &Scene, change: &dyn Fn(), repair: &dyn Fn()) -> FreezeError {
    let (mut store, mut ctx) = (Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let undisturbed = scene.machine.snapshot();
    change();
    let before = (scene.machine.snapshot(), outgoing.totals());
    let failed = freeze(outgoing, &mut ctx).unwrap_err();
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
    repair();
    assert_eq!(scene.machine.snapshot(), undisturbed);
    let sealed = freeze(failed.outgoing, &mut ctx).expect("usable again");
    let mut outgoing = sealed.unfreeze(&mut ctx);
    outgoing.unpreserve_requester(&mut ctx, AUDIO).expect("usable again");
    failed.why
}

/// The same with one word of memory.
fn fails_with(scene: &Scene, at: spec::PhysAddr, value: u64) -> FreezeError {
    let old = scene.machine.get(at);
    fails_after(scene, &|| scene.machine.set(at, value), &|| scene.machine.set(at, old))
}

fn drifted(why: &FreezeError) -> (Option<Requester>, &'static str) {
    let FreezeError::Drifted { requester, what, .. } = why else { panic!("{why:?}") };
    (*requester, what)
}

#[test]
fn an_entry_that_changed_is_found_out_with_its_requester() {
    let scene = Scene::new();
    let entry = scene.machine.context_entry(0, AUDIO_SOURCE);
    let old = scene.machine.get(entry.plus(8));
    let why = fails_with(&scene, entry.plus(8), old ^ 1 << 8);
    assert_eq!(drifted(&why), (Some(requester(AUDIO_SOURCE)), "its context entry changed"));
    let why = fails_with(&scene, entry, 0);
    assert_eq!(drifted(&why).0, Some(requester(AUDIO_SOURCE)));
    let alias = scene.machine.context_entry(0, DISK_ALIAS);
    let why = fails_with(&scene, alias, scene.other.top.get() | 1);
    assert_eq!(drifted(&why).0, Some(requester(DISK_SOURCE)));
    let why = fails_with(&scene, scene.machine.root_entry(0, 2), 0);
    assert_eq!(drifted(&why).0, Some(requester(DISK_SOURCE)));
}

#[test]
fn an_alias_that_appeared_or_a_function_that_left_is_found_out() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let who = requester(AUDIO_SOURCE);
    let why =
        fails_after(&scene, &|| drop(machine.aliases.borrow_mut().insert(who, vec![DISK_ALIAS])), &|| {
            drop(machine.aliases.borrow_mut().remove(&who))
        });
    assert_eq!(drifted(&why), (Some(who), "it has an alias that was not preserved"));
    let why = fails_after(&scene, &|| assert!(machine.functions.borrow_mut().remove(&who)), &|| {
        assert!(machine.functions.borrow_mut().insert(who))
    });
    assert_eq!(drifted(&why), (Some(who), "the function is gone"));
}

#[test]
fn another_root_another_mode_or_translation_off_is_found_out() {
    let scene = Scene::new();
    let unit = &scene.machine.units[0];
    let (root, status) = (unit.root.get(), unit.status.get());
    for changed in [root.with_rta(scene.audio.top.get() >> 12), root.with_ttm(1)] {
        let why = fails_after(&scene, &|| unit.root.set(changed), &|| unit.root.set(root));
        assert_eq!(drifted(&why), (None, "another root table or mode is in use"));
    }
    let why = fails_after(&scene, &|| unit.status.set(status.with_tes(false)), &|| unit.status.set(status));
    assert_eq!(drifted(&why), (None, "translation is off"));
}

#[test]
fn a_leaf_turned_outside_behind_the_drivers_back_is_a_violation_with_its_address() {
    let scene = Scene::new();
    let at = scene.machine.entry(scene.audio, IOVA + 0x3000, 0);
    let why = fails_with(&scene, at, 0x3000_0000 | 3);
    let FreezeError::Violated { count, first } = why else { panic!("{why:?}") };
    assert_eq!((count, first.invariant, first.domain), (1, Invariant::I3, Some(AUDIO_DOMAIN.0)));
    assert!(matches!(first.what, What::LeafOutside { iova, .. } if iova == IOVA + 0x3000), "{first}");
}

#[test]
fn a_table_added_behind_the_drivers_back_is_a_violation() {
    let scene = Scene::new();
    let at = scene.machine.entry(scene.audio, IOVA + 0x20_0000, 1);
    let why = fails_with(&scene, at, scene.other.top.get() | 3);
    let FreezeError::Violated { first, .. } = why else { panic!("{why:?}") };
    assert!(matches!(first.what, What::TableNotDeclared { .. }), "{first}");
}

#[test]
fn every_finding_reaches_the_hosts_sink() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    for page in [1, 3, 5] {
        scene.machine.set(scene.machine.entry(scene.audio, IOVA + 0x1000 * page, 0), 0x3000_0000 | 3);
    }
    let mut words = vec![0; 1 << 15];
    let input = FreezeInput {
        release: "r",
        update: 1,
        scratch: &[],
        reserved: liveupdate::ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    let mut findings = Vec::new();
    let failed = outgoing
        .freeze(&mut ctx, &input, &mut audit::Scratch::new(&mut words), &mut |f| findings.push(f))
        .unwrap_err();
    let FreezeError::Violated { count, first } = failed.why else { panic!("{:?}", failed.why) };
    assert_eq!((findings.len(), findings[0]), (count as usize, first));
    assert_eq!(count, 3);
}

#[test]
fn an_auditor_without_working_memory_is_a_refusal_too() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let input = FreezeInput {
        release: "r",
        update: 1,
        scratch: &[],
        reserved: liveupdate::ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    let failed =
        outgoing.freeze(&mut ctx, &input, &mut audit::Scratch::new(&mut []), &mut |_| ()).unwrap_err();
    assert!(matches!(failed.why, FreezeError::Unreadable(audit::Unreadable::ScratchTooSmall { .. })));
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
}

/// Freezes with this input and gives the refusal.
fn refused_with(input: &FreezeInput<'_>) -> FreezeError {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let mut words = vec![0; 1 << 15];
    let failed =
        outgoing.freeze(&mut ctx, input, &mut audit::Scratch::new(&mut words), &mut |_| ()).unwrap_err();
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
    failed.why
}

#[test]
fn nothing_preserved_may_lie_where_the_next_kernel_boots() {
    let refused_in = |scratch: &[Extent]| {
        refused_with(&FreezeInput {
            release: "r",
            update: 1,
            scratch,
            reserved: liveupdate::ReservedMemory::CutOff(&[]),
            successor: Adoptable::EVERYTHING,
        })
    };
    let last = extent(sound().start().get() + 0x7000, 16);
    let why = refused_in(&[scratch(), last]);
    assert!(matches!(why, FreezeError::InScratch(f) if sound().contains(f)), "{why:?}");
    // The container itself, wherever it was allocated.
    let why = refused_in(&[extent(0x4000_0000, 0x1000)]);
    assert!(matches!(why, FreezeError::InScratch(f) if f.number() == 0x4_0000), "{why:?}");
    // A device range is no memory, but no place to boot either.
    let why = refused_in(&[extent(0xfeb0_1000, 1)]);
    assert!(
        matches!(why, FreezeError::Violated { first, .. } if first.invariant == Invariant::I9),
        "{why:?}"
    );
}

#[test]
fn what_no_reader_would_take_is_refused_before_the_jump() {
    let many = vec![scratch(); MAX_SCRATCH + 1];
    let input = FreezeInput {
        release: "r",
        update: 1,
        scratch: &many,
        reserved: liveupdate::ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    assert!(matches!(refused_with(&input), FreezeError::TooLarge(_)));
    let input = FreezeInput {
        release: "r",
        update: 0,
        scratch: &[],
        reserved: liveupdate::ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    assert_eq!(refused_with(&input), FreezeError::UpdateZero);
}

#[test]
fn more_units_than_the_auditor_is_shown_are_refused_not_passed_over() {
    let (scene, mut store, mut ctx) = (Scene::with_units(MAX_UNITS as u64 + 1), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let failed = freeze(outgoing, &mut ctx).unwrap_err();
    assert!(matches!(failed.why, FreezeError::Full(f) if f.capacity == MAX_UNITS), "{:?}", failed.why);
    let (scene, mut store) = (Scene::with_units(MAX_UNITS as u64), Store::of(16));
    let _sealed = freeze(scene.preserve(&mut store, &mut ctx), &mut ctx).unwrap();
}

#[test]
fn a_release_string_is_cut_between_characters_not_within_one() {
    for release in ["", "6.1", &"x".repeat(100), &"ä".repeat(40), &format!("x{}", "€".repeat(30))] {
        let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
        let outgoing = scene.preserve(&mut store, &mut ctx);
        let mut words = vec![0; 1 << 15];
        let input = FreezeInput {
            release,
            update: 41,
            scratch: &[scratch()],
            reserved: liveupdate::ReservedMemory::CutOff(&[]),
            successor: Adoptable::EVERYTHING,
        };
        let sealed =
            outgoing.freeze(&mut ctx, &input, &mut audit::Scratch::new(&mut words), &mut |_| ()).unwrap();
        let mut store = Store::of(16);
        let opened = liveupdate::open(&scene.machine, sealed.container.fdt, store.storage()).unwrap();
        let read = opened.release();
        assert!(release.starts_with(read) && read.len() <= 63, "{read}");
        assert!(read.len() + 3 > release.len().min(63), "{read}");
        assert_eq!((opened.update(), opened.scratch().collect::<Vec<_>>()), (41, vec![scratch()]));
        assert!(opened.sealed_at() >= 1_000_000_000);
    }
}

#[test]
fn unfreeze_gives_back_every_frame_and_mark_however_often() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let mut digests = Vec::new();
    for _ in 0..20 {
        scene.machine.clock.set(0);
        let sealed = freeze(outgoing, &mut ctx).unwrap();
        digests.push(sealed.container.digest);
        assert!(scene.machine.marked().contains(&sealed.container.fdt.frame().number()));
        outgoing = sealed.unfreeze(&mut ctx);
        assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    }
    assert!(digests.iter().all(|d| *d == digests[0]));
}

#[test]
fn lesson_06_tables_that_appear_after_the_preserve_are_not_taken_back_with_it() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let before = machine.snapshot().reservations;
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    // A bus gets a context table, and a domain a table, after they were preserved. The machine panics if any of these
    // is released without having been reserved.
    let late = source(0x30, 0, 0);
    machine.attach(0, late, 9, scene.other);
    machine.map(scene.audio, IOVA + 0x20_0000, extent(sound().start().get(), 1));
    for token in [AUDIO, DISK] {
        outgoing.unpreserve_requester(&mut ctx, token).unwrap();
    }
    let refused = outgoing.unpreserve_region(&mut ctx, SOUND).unwrap_err();
    assert!(matches!(refused, UnpreserveError::RegionInUse { .. } | UnpreserveError::TablesChanged(_)));
    for token in [AUDIO_DOMAIN, DISK_DOMAIN] {
        outgoing.unpreserve_domain(&mut ctx, token).unwrap();
    }
    for token in [SOUND, DISK_MEMORY, BAR] {
        outgoing.unpreserve_region(&mut ctx, token).unwrap();
    }
    assert_eq!(machine.snapshot().reservations, before);
}

#[test]
fn tables_that_were_tied_into_a_loop_hold_no_unpreserve_up() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    for n in 0..512 {
        machine.set(scene.disk.top.plus(8 * n), scene.disk.top.get() | 3);
    }
    assert_eq!(outgoing.unpreserve_region(&mut ctx, BAR), Err(UnpreserveError::TablesChanged(DISK_DOMAIN)));
}

#[test]
fn lesson_07_tables_that_appear_after_the_preserve_are_pruned_at_the_cut_off() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let machine = &scene.machine;
    let outgoing = scene.preserve(&mut store, &mut ctx);
    // Hot-plug between preserve and freeze, and between freeze and cut-off: one bus that had a table, one that had none.
    let early = [source(0x30, 0, 0), source(2, 7, 0)];
    early.iter().for_each(|s| machine.attach(0, *s, 9, scene.other));
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    let late = [source(0x31, 0, 0), source(0, 0x1e, 0)];
    late.iter().for_each(|s| machine.attach(0, *s, 9, scene.other));
    let all = || early.iter().chain(&late);
    assert!(all().all(|s| machine.dma(*s, IOVA).is_ok()));
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    assert!(all().all(|s| machine.dma(*s, IOVA).is_err()));
    machine.jump(&container);
    let mut store = Store::of(16);
    let checked = check(machine, &container, &mut store);
    assert_eq!(checked.violations, 0, "closure and isolation hold without what appeared late");
}

#[test]
fn lesson_16_what_was_tried_and_taken_back_leaves_no_trace_in_the_handover() {
    let (scene, mut ctx) = (Scene::with_units(2), ctx());
    let machine = &scene.machine;
    // Alone behind its unit.
    let alone = source(0x40, 0, 0);
    machine.attach(1, alone, 7, scene.audio);
    machine.functions.borrow_mut().insert(requester(alone));
    let blob = |outgoing: Outgoing<'_, '_, _>, ctx: &mut MaySleep| {
        machine.clock.set(0);
        let sealed = freeze(outgoing, ctx).unwrap();
        let words = sealed.container.blob_bytes / 8;
        let read: Vec<u64> = (0..words).map(|n| machine.get(sealed.container.blob.plus(8 * n))).collect();
        drop(sealed.unfreeze(ctx));
        machine.reservations.take();
        machine.holds.take();
        read
    };
    let mut store = Store::of(16);
    let straight = blob(scene.preserve(&mut store, &mut ctx), &mut ctx);
    let mut store = Store::of(16);
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let extra = Extent::new(spec::Frame::new(0x70000), 3).unwrap();
    outgoing.preserve_region(&mut ctx, Token(500), extra, RegionKind::Device).unwrap();
    outgoing.preserve_requester(&mut ctx, Token(501), requester(SHARING)).unwrap();
    machine.put_context(0, OTHER, context(9, scene.audio));
    outgoing.preserve_requester(&mut ctx, Token(502), requester(OTHER)).unwrap_err();
    outgoing.preserve_requester(&mut ctx, Token(503), requester(alone)).unwrap();
    assert_eq!(outgoing.totals().units, 2);
    outgoing.unpreserve_requester(&mut ctx, Token(501)).unwrap();
    outgoing.unpreserve_requester(&mut ctx, Token(503)).unwrap();
    outgoing.unpreserve_region(&mut ctx, Token(500)).unwrap();
    assert_eq!(blob(outgoing, &mut ctx), straight);
}
