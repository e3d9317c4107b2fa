//! The cut-off: whoever and whichever PASID is not preserved is gone, in the right order, and what is preserved notices
//! nothing.

use crate::common::machine::Step;
use crate::common::scalable::*;
use crate::common::scene::{check, freeze};
use crate::common::unit::Blocked;
use crate::common::{Store, requester, source};
use liveupdate::host::{Atomic, Forget, MaySleep};
use liveupdate::{Context, CutOffEvent};
use spec::scalable::ScalableContextEntry;
use spec::{PhysAddr, Requester};
use std::collections::BTreeSet;

/// Preserves, exercises, freezes, lets `late` happen, and cuts off, without the jump; says what was reported and done.
fn cut_off_after(scene: &Scene, late: &dyn Fn()) -> (Vec<CutOffEvent>, Vec<Step>) {
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    scene.exercise();
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    late();
    scene.machine.take_steps();
    let mut events = Vec::new();
    let _ = sealed.cut_off(&Atomic::for_good(ctx), &mut |event| events.push(event));
    (events, scene.machine.take_steps())
}

fn cut_off(scene: &Scene) -> (Vec<CutOffEvent>, Vec<Step>) {
    cut_off_after(scene, &|| ())
}

fn cleared(events: &[CutOffEvent]) -> BTreeSet<Requester> {
    let one = |e: &CutOffEvent| {
        if let CutOffEvent::Cleared { requester, .. } = e { Some(*requester) } else { None }
    };
    events.iter().filter_map(one).collect()
}

fn pasids_cleared(events: &[CutOffEvent]) -> BTreeSet<(Requester, u32)> {
    let one = |e: &CutOffEvent| match e {
        CutOffEvent::PasidCleared { requester, pasid, .. } => Some((*requester, *pasid)),
        _ => None,
    };
    events.iter().filter_map(one).collect()
}

#[test]
fn lesson_01_whoever_hardware_knows_is_cut_off_in_either_half_pasid_by_pasid() {
    let scene = Scene::new();
    let (events, _) = cut_off(&scene);
    assert_eq!(cleared(&events), STRANGERS.map(requester).into());
    let nic = requester(NIC_SOURCE);
    assert_eq!(pasids_cleared(&events), STRAY_PASIDS.map(|pasid| (nic, pasid)).into());
    let stays = |e: &CutOffEvent| if let CutOffEvent::Stays(requester) = e { Some(*requester) } else { None };
    let stays: BTreeSet<_> = events.iter().filter_map(stays).collect();
    assert_eq!(stays, [NIC_SOURCE, GPU_SOURCE].map(requester).into());
    // All of them had cached entries and translations.
    assert_eq!(scene.machine.dma(UPPER, IOVA), Err(Blocked::Root), "its half had nobody else");
    assert_eq!(scene.machine.dma(UNLISTED, IOVA), Err(Blocked::Root));
    for stranger in [OTHER, SHARING] {
        assert_eq!(scene.machine.dma(stranger, IOVA), Err(Blocked::Context));
    }
    for pasid in STRAY_PASIDS {
        assert_eq!(scene.machine.request(NIC_SOURCE, Some(pasid), IOVA), Err(Blocked::Pasid));
    }
    scene.all_is_well();
}

#[test]
fn lesson_15_present_bits_go_first_whatever_the_entry_then_hardware_forgets_then_the_rest_is_wiped() {
    let scene = Scene::new();
    let stray = scene.machine.pasid_entry_at(scene.nic, STRAY_PASIDS[0]);
    let (_, steps) = cut_off(&scene);
    let forgets: Vec<_> = (0..steps.len()).filter(|i| matches!(steps[*i], Step::Forget(..))).collect();
    let [forget] = forgets[..] else { panic!("{forgets:?}") };
    assert_eq!(steps[forget], Step::Forget(scene.machine.units[0].id, Forget::Everything));
    for step in &steps[..forget] {
        let Step::Write { before, after, .. } = step else { panic!("{step:?}") };
        assert_eq!((before & 1, *after), (1, before & !1), "the present bit alone");
    }
    for step in &steps[forget + 1..] {
        let Step::Write { after: 0, .. } = step else { panic!("{step:?}") };
    }
    // Two entries in the table that stays, the upper half of bus 0, bus 1; PASID 6, and the table of PASID 300.
    assert_eq!(forget, 6);
    for at in [OTHER, SHARING].map(|s| scene.machine.scalable_entry(0, s)) {
        assert!((0..4).all(|n| scene.machine.get(at.plus(8 * n)) == 0));
    }
    assert!((0..8).all(|n| scene.machine.get(stray.plus(8 * n)) == 0));
    assert_eq!(scene.machine.get(scene.nic.plus(8 * 4)), 0, "the directory's entry for PASIDs from 256 on");
    assert_eq!(scene.machine.get(scene.machine.root_entry(0, 0).plus(8)), 0, "the upper half");
    assert_eq!(scene.machine.get(scene.machine.root_entry(0, 1)), 0);
}

#[test]
fn lesson_15_no_entry_is_present_any_more_when_hardware_forgets_also_at_the_end_of_a_large_directory() {
    let scene = Scene::with_directories(7, 3);
    let machine = &scene.machine;
    for (who, pasids) in
        [(NIC_SOURCE, [40_000, 700_000, (1 << 20) - 1]), (GPU_SOURCE, [9_000, 50_000, 65_000])]
    {
        let context = machine.scalable_words(0, who);
        pasids.iter().for_each(|pasid| machine.put_pasid(context, *pasid, first(10, scene.other)));
    }
    let root = machine.units[0].root.get().table();
    let (_, steps) = cut_off(&scene);
    let forget = steps.iter().position(|s| matches!(s, Step::Forget(..))).unwrap();
    let directories = |at: u64| {
        [(scene.nic, 32), (scene.gpu, 4), (root, 1)]
            .iter()
            .any(|(start, frames)| (start.get()..start.get() + 4096 * frames).contains(&at))
    };
    let mut cleared = [0, 0];
    for (n, step) in steps.iter().enumerate() {
        // Every word of a root table or directory is an entry's first; of other tables at least every eighth.
        if let Step::Write { at, before, .. } = step {
            if before & 1 == 1 && (directories(*at) || at % 64 == 0) {
                cleared[usize::from(n > forget)] += 1;
            }
        }
    }
    assert_eq!(cleared[1], 0, "present until hardware had forgotten");
    assert!(cleared[0] >= 10, "{cleared:?}");
}

#[test]
fn preserved_entries_and_tables_are_not_even_written_to() {
    let scene = Scene::new();
    let machine = &scene.machine;
    let mut kept: Vec<(PhysAddr, u64)> =
        [NIC_SOURCE, GPU_SOURCE].map(|s| (machine.scalable_entry(0, s), 32)).to_vec();
    for pasid in [0, SHARED_PASID, PROCESS_PASID] {
        kept.push((machine.pasid_entry_at(scene.nic, pasid), 64));
    }
    kept.push((machine.pasid_entry_at(scene.gpu, 1), 64));
    kept.extend([(machine.root_entry(0, 0), 8), (machine.root_entry(0, 3).plus(8), 8)]);
    kept.extend([(scene.nic, 16), (scene.gpu, 8)]);
    kept.extend([scene.guest.top, scene.shared.top].map(|top| (top, 4 * 4096)));
    let (_, steps) = cut_off(&scene);
    let writes =
        || steps.iter().filter_map(|s| if let Step::Write { at, .. } = s { Some(*at) } else { None });
    assert!(writes().count() > 0);
    for at in writes() {
        let hit = kept.iter().find(|(start, bytes)| (start.get()..start.get() + bytes).contains(&at));
        assert_eq!(hit, None, "{at:#x}");
    }
}

#[test]
fn lesson_09_a_directory_is_cleared_to_its_end_whatever_its_size() {
    for pdts in 0..=7 {
        let scene = Scene::with_directories(pdts, 7 - pdts);
        let machine = &scene.machine;
        for (who, directory, kept) in [(NIC_SOURCE, scene.nic, vec![0, 1]), (GPU_SOURCE, scene.gpu, vec![0])]
        {
            let context = machine.scalable_words(0, who);
            let entries = context.directory_entries();
            let frames = (8 * entries).div_ceil(4096);
            // Live entries for tables of their own, in every frame: the first and the last that there are.
            let per_frame = entries.min(512);
            let live: Vec<u64> = (0..frames)
                .flat_map(|f| [512 * f + 7, 512 * f + per_frame - 1])
                .filter(|i| !kept.contains(i))
                .collect();
            for index in &live {
                machine.put_pasid(context, (64 * index) as u32 + 3, first(10, scene.other));
                machine.request(who, Some((64 * index) as u32 + 3), IOVA).unwrap();
            }
            // Rubbish that hardware does not read: entries that are not present, and what lies beyond the last.
            let rubbish: Vec<u64> = (0..frames)
                .map(|f| 512 * f + 9)
                .chain(entries..512 * frames)
                .filter(|i| !live.contains(i))
                .collect();
            for index in &rubbish {
                machine.set(directory.plus(8 * index), 0x7777_0000_0000_0ffe);
            }
        }
        let container = scene.update();
        scene.all_is_well();
        for (who, directory, kept) in [(NIC_SOURCE, scene.nic, vec![0, 1]), (GPU_SOURCE, scene.gpu, vec![0])]
        {
            let entries = machine.scalable_words(0, who).directory_entries();
            for index in 0..512 * (8 * entries).div_ceil(4096) {
                let word = machine.get(directory.plus(8 * index));
                assert_eq!(
                    word != 0,
                    kept.contains(&index),
                    "PDTS {pdts}, {who}: entry {index} is {word:#x}"
                );
                let stray = (64 * index) as u32 + 3;
                if index < entries {
                    assert_eq!(machine.request(who, Some(stray), IOVA), Err(Blocked::Pasid), "{stray:#x}");
                }
            }
        }
        let mut store = Store::of(16);
        assert_eq!(check(machine, &container, &mut store).violations, 0, "PDTS {pdts}");
    }
}

#[test]
fn nothing_between_freeze_and_jump_reserves_allocates_or_gives_back() {
    let (_, steps) = cut_off(&Scene::new());
    let allowed = |s: &Step| matches!(s, Step::Write { .. } | Step::Forget(..) | Step::Disable(_));
    assert!(steps.iter().all(allowed), "{steps:?}");
}

#[test]
fn lesson_07_what_appears_after_the_preserve_is_pruned_table_by_table_and_pasid_by_pasid() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    let machine = &scene.machine;
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let context = scene.nic_context();
    // A half that had no table, a function beside a preserved one, PASIDs in a table that was there and in a new one.
    let early = ([source(3, 1, 0), source(3, 0x11, 0)], [9, 640]);
    let late = ([source(2, 0x1f, 7), source(0, 6, 0)], [10, 7000]);
    let appear = |(sources, pasids): ([_; 2], [u32; 2])| {
        sources.iter().for_each(|s| machine.attach_scalable(0, *s, first(10, scene.other)));
        pasids.iter().for_each(|p| machine.put_pasid(context, *p, first(10, scene.other)));
        assert!(sources.iter().all(|s| machine.dma(*s, IOVA).is_ok()));
        assert!(pasids.iter().all(|p| machine.request(NIC_SOURCE, Some(*p), IOVA).is_ok()));
    };
    appear(early);
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    appear(late);
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    for (sources, pasids) in [early, late] {
        assert!(sources.iter().all(|s| machine.dma(*s, IOVA).is_err()));
        for pasid in pasids {
            assert_eq!(machine.request(NIC_SOURCE, Some(pasid), IOVA), Err(Blocked::Pasid), "{pasid}");
        }
    }
    machine.jump(&container);
    let mut store = Store::of(16);
    assert_eq!(check(machine, &container, &mut store).violations, 0);
    scene.all_is_well();
}

#[test]
fn a_pasid_table_in_no_memory_is_cut_off_at_its_directory_entry() {
    let scene = Scene::new();
    let at = scene.nic.plus(8 * 100);
    let (events, _) = cut_off_after(&scene, &|| scene.machine.set(at, 0x7_ffff_f000 | 1));
    let unreachable =
        |e: &CutOffEvent| matches!(e, CutOffEvent::Unreachable(n) if n.at.get() == 0x7_ffff_f000);
    assert!(events.iter().any(unreachable));
    assert_eq!(scene.machine.get(at), 0);
    scene.all_is_well();
}

#[test]
fn a_directory_that_cannot_be_read_any_more_takes_its_requester_with_it() {
    let scene = Scene::new();
    let (events, _) = cut_off_after(&scene, &|| {
        scene.machine.shared.frames.borrow_mut().remove(&scene.gpu.frame().number()).unwrap();
    });
    assert!(cleared(&events).contains(&requester(GPU_SOURCE)));
    assert_eq!(scene.machine.dma(GPU_SOURCE, SHARED_IOVA), Err(Blocked::Context));
    scene.machine.dma(NIC_SOURCE, IOVA).unwrap();
}

#[test]
fn a_context_entry_that_leads_elsewhere_since_the_seal_is_not_the_preserved_one() {
    for change in [
        (|entry, scene| entry.with_pasiddirptr(scene.gpu.get() >> 12))
            as fn(ScalableContextEntry, &Scene) -> _,
        |entry, _| entry.with_pdts(7),
    ] {
        let scene = Scene::new();
        let entry = scene.nic_context();
        let (events, _) =
            cut_off_after(&scene, &|| scene.machine.put_scalable(0, NIC_SOURCE, change(entry, &scene)));
        let entry = Context::Scalable(change(entry, &scene));
        assert!(events.contains(&CutOffEvent::Cleared { requester: requester(NIC_SOURCE), entry }));
        assert_eq!(scene.machine.dma(NIC_SOURCE, IOVA), Err(Blocked::Context));
        scene.machine.dma(GPU_SOURCE, SHARED_IOVA).unwrap();
    }
}

#[test]
fn lesson_01_when_nothing_can_be_opened_everybody_in_either_half_is_blocked_and_translation_stays_on() {
    let scene = Scene::new();
    scene.exercise();
    let mut events = Vec::new();
    let mut ctx = MaySleep::at_thread_start();
    liveupdate::block_all(&scene.machine, &mut ctx, &mut |e| events.push(e));
    let everybody = STRANGERS.into_iter().chain([NIC_SOURCE, GPU_SOURCE]);
    assert_eq!(cleared(&events), everybody.clone().map(requester).collect());
    assert!(everybody.into_iter().all(|s| scene.machine.dma(s, IOVA) == Err(Blocked::Root)));
    assert!(scene.machine.units[0].status.get().tes());
    let root = scene.machine.units[0].root.get().table();
    assert!((0..512).all(|n| scene.machine.get(root.plus(8 * n)) == 0));
    // In a mode without tables there is nothing to clear, and nothing to fear.
    for mode in [2, 3] {
        let scene = Scene::new();
        let unit = &scene.machine.units[0];
        unit.root.set(unit.root.get().with_ttm(mode));
        let before = scene.machine.snapshot();
        liveupdate::block_all(&scene.machine, &mut ctx, &mut |_| ());
        assert_eq!(scene.machine.snapshot(), before);
    }
}
