//! The preserved-memory map and the KHO tree, as others read them.

use crate::common::machine::Machine;
use crate::common::scene::*;
use crate::common::{Store, extent};
use audit::kho::PreservedMap;
use liveupdate::host::{MaySleep, TableMemory};
use liveupdate::{MapError, Outgoing, RegionKind, Token, for_each_preserved};
use proptest::prelude::*;
use spec::{Extent, Frame, PhysAddr};

/// Ascending runs, those that touch joined.
fn joined(mut runs: Vec<Extent>) -> Vec<Extent> {
    runs.sort_unstable();
    let mut all: Vec<Extent> = Vec::new();
    for run in runs {
        match all.last_mut() {
            Some(last) if last.end() == run.first() => {
                *last = Extent::new(last.first(), last.count() + run.count()).unwrap();
            }
            Some(last) => {
                assert!(last.end() < run.first(), "no frame is in the map twice");
                all.push(run);
            }
            None => all.push(run),
        }
    }
    all
}

/// Freezes these regions; the map is then read by the core and by the auditor, and must say just this.
fn round_trip(regions: &[Extent], container_at: u64) -> Result<(), TestCaseError> {
    let (machine, mut ctx) = (Machine::new(0), MaySleep::at_thread_start());
    machine.next_allocation.set(container_at);
    let mut store = Store::of(regions.len());
    let mut outgoing = Outgoing::new(&machine, store.storage());
    for (n, run) in (1..).zip(regions) {
        outgoing.preserve_region(&mut ctx, Token(n), *run, RegionKind::Memory).unwrap();
    }
    let container = freeze(outgoing, &mut ctx).unwrap().container;
    let expected = joined(regions.iter().copied().chain([container.frames]).collect());
    let map = machine.map_of(&container);
    let mut read = Vec::new();
    for_each_preserved(&machine, map, 1 << 20, &mut |run| read.push(run)).unwrap();
    prop_assert_eq!(&joined(read), &expected);
    let auditor = PreservedMap::open(&machine, map).unwrap();
    let read = auditor.extents().map(Result::unwrap).collect();
    prop_assert_eq!(&joined(read), &expected);
    prop_assert_eq!(container.preserved_frames, expected.iter().map(|r| r.count()).sum::<u64>());
    // Every node lies in the container, behind the tree; none is used twice.
    let mut nodes = Vec::new();
    auditor.nodes(&mut |node| nodes.push(node.frame())).unwrap();
    nodes.sort_unstable();
    prop_assert!(nodes.windows(2).all(|w| w[0] != w[1]));
    prop_assert!(nodes.iter().all(|n| container.frames.contains(*n) && *n > container.fdt.frame()));
    let room = container.frames.end().number() - container.fdt.frame().number() - 1;
    prop_assert!(nodes.len() as u64 <= room && room <= nodes.len() as u64 + 110, "{} of {room}", nodes.len());
    Ok(())
}

/// Disjoint runs from somewhere on, some of them touching.
fn runs() -> impl Strategy<Value = Vec<Extent>> {
    let lengths = prop_oneof![1_u64..4, 1_u64..3000, Just(1024), Just(1 << 15), Just(1 << 20)];
    let steps =
        prop::collection::vec((prop_oneof![Just(0_u64), 1_u64..5000, 1_u64..(1 << 26)], lengths), 1..20);
    let start = prop_oneof![0x100_0000_u64..0x200_0000, Just((1 << 33) - 700), Just((1 << 38) - 3)];
    (start, steps).prop_map(|(start, steps)| {
        let mut at = start;
        let one = |(gap, count)| {
            let first = at + gap;
            at = first + count;
            Extent::new(Frame::new(first), count).unwrap()
        };
        steps.into_iter().map(one).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_is_preserved_is_what_both_readers_find(runs in runs()) {
        round_trip(&runs, 0x4_0000)?;
    }
}

#[test]
fn a_container_across_any_power_of_two_has_nodes_enough() {
    for boundary in 10..40 {
        for before in [1, 3, 64, 127] {
            round_trip(&[extent(0x7000, 1)], (1 << boundary) - before).unwrap();
        }
    }
}

#[test]
fn the_tree_is_a_kho_tree_with_our_subnode() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    let container = freeze(scene.preserve(&mut store, &mut ctx), &mut ctx).unwrap().container;
    let mut page = [0; 512];
    scene.machine.read_words(container.fdt, &mut page).unwrap();
    let bytes: Vec<u8> = page.iter().flat_map(|w| w.to_le_bytes()).collect();
    let tree = spec::fdt::Fdt::parse(&bytes).unwrap();
    assert_eq!(tree.root().property("compatible").unwrap().as_str(), Some("kho-v4"));
    let root = spec::kho::Root::parse(&bytes).unwrap();
    let blob = root.blob("holdover").unwrap();
    assert_eq!((blob.data, blob.bytes), (container.blob, container.blob_bytes));
    assert_eq!(root.blobs().count(), 1);
    assert!(container.frames.contains(root.memory_map().frame()));
}

#[test]
fn lesson_12_a_map_that_leads_in_circles_is_left_at_its_bound() {
    let machine = Machine::new(0);
    let [root, leaf] = [machine.table(), machine.table()];
    let read = |budget| for_each_preserved(&machine, root, budget, &mut |_| ());
    assert_eq!(read(10), Ok(()), "an empty map");
    for index in 2..512 {
        machine.set(root.plus(8 * index), root.get());
    }
    assert_eq!(read(1000), Err(MapError::TooManyNodes(1000)));
    for wrong in [leaf.get() + 8, leaf.get() | 1, 0x7777_0000_0000, u64::MAX] {
        machine.set(root, wrong);
        assert!(matches!(read(1000), Err(MapError::Node(_))), "{wrong:#x}");
    }
    assert!(matches!(
        for_each_preserved(&machine, PhysAddr::new(12), 10, &mut |_| ()),
        Err(MapError::Node(_))
    ));
}

#[test]
fn keys_that_stand_for_no_frame_are_refused() {
    let machine = Machine::new(0);
    // One table per level, one leaf with every bit set.
    let path: Vec<PhysAddr> = (0..6).map(|_| machine.table()).collect();
    (0..512).for_each(|n| machine.set(path[5].plus(8 * n), u64::MAX));
    for (indices, possible) in [
        ([0, 0, 0, 0, 0], false), // blocks of a pebibyte, several sizes in one leaf
        ([0, 0, 0, 0, 1], true),
        ([2, 0, 0, 0, 0], true),         // single frames
        ([3, 511, 511, 511, 511], true), // the very last ones
        ([4, 0, 0, 0, 0], false),
        ([511, 511, 511, 511, 511], false),
    ] {
        for (level, index) in indices.iter().enumerate() {
            (0..512).for_each(|n| machine.set(path[level].plus(8 * n), 0));
            machine.set(path[level].plus(8 * index), path[level + 1].get());
        }
        let mut runs = Vec::new();
        let read = for_each_preserved(&machine, path[0], 100, &mut |run| runs.push(run));
        assert_eq!(read.is_ok(), possible, "{indices:?}: {read:?}");
        assert_eq!(runs.len(), usize::from(possible), "{indices:?}");
        if !possible {
            assert!(matches!(read, Err(MapError::Key(_))), "{read:?}");
        }
    }
}
