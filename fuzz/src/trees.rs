//! Flattened device trees, and the radix tree of preserved frames.

use crate::sparse::{FIRST, PATIENCE, Sparse};
use audit::kho::PreservedMap;
use spec::fdt::Fdt;
use spec::kho::{Root, write_root};
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};
use zerocopy::IntoBytes;

pub(crate) fn fdt(data: &[u8]) {
    if let Ok(root) = Root::parse(data) {
        // What is read can be written and read again.
        let blobs: Vec<_> = root.blobs().collect();
        let mut page = [0; 2 * PAGE_SIZE as usize];
        let Ok(bytes) = write_root(&mut page, root.memory_map(), &blobs) else { return };
        let again = Root::parse(bytes).expect("a tree of ours");
        assert_eq!(again.memory_map(), root.memory_map());
        assert!(again.blobs().eq(blobs.iter().copied()));
    }
    let Ok(tree) = Fdt::parse(data) else { return };
    assert!(tree.total_bytes() <= data.len());
    let mut steps = tree.root().properties().count();
    for node in tree.nodes() {
        steps += 1;
        assert!(tree.node(node.name()).is_some());
        for property in node.properties() {
            steps += 1;
            let _ = (property.native_u64(), property.as_str());
            assert!(node.property(property.name()).is_some());
        }
        assert!(steps <= data.len(), "more nodes and properties than bytes");
    }
}

/// Pages that a tree may have.
const PAGES: u8 = 12;
/// Where the root of the KHO tree lies: none of the pages of the radix tree.
const FDT: u64 = FIRST + PAGE_SIZE * PAGES as u64;

pub(crate) fn radix(data: &[u8]) {
    let mut memory = Sparse::new(data, PAGES);
    let mut bytes = [0; PAGE_SIZE as usize];
    let root = PhysAddr::new(FIRST);
    write_root(&mut bytes, root, &[]).expect("a small tree");
    memory.page(FDT).as_mut_bytes().copy_from_slice(&bytes);

    let kho = inspect::kho::read(&memory.image(), PhysAddr::new(FDT)).expect("a tree of ours");
    let _ = memory.reads();
    let theirs = theirs(&memory, root);
    if memory.reads() > PATIENCE {
        return;
    }
    // Two readers; ours notes what it does not follow, and then may know less.
    let sound = kho.problems.iter().all(|problem| problem.subject != "map of preserved memory");
    if sound && !kho.preserved.left_off {
        let theirs = theirs.expect("one reader takes it, the other does not");
        assert_eq!(kho.preserved.extents, merged(theirs));
    }
}

/// Runs that the auditor's reader finds; `None` when it refuses the tree.
fn theirs(memory: &Sparse, root: PhysAddr) -> Option<Vec<Extent>> {
    let mut map = PreservedMap::open(memory, root).ok()?;
    let runs: Vec<Extent> = map.extents().take(1 << 20).collect::<Result<_, _>>().ok()?;
    map.nodes(&mut |_| {}).ok()?;
    for run in runs.iter().take(8) {
        assert!(map.preserved(run.first()).ok()?, "a run's first frame");
        assert_eq!(map.first_preserved(run.first(), run.end()).ok()?, Some(run.first()));
        let _ = map.first_gap(run.first(), Frame::new(run.first().number() + run.count().min(1 << 16)));
    }
    Some(runs)
}

/// Runs in order, those that touch or overlap as one.
fn merged(mut runs: Vec<Extent>) -> Vec<Extent> {
    runs.sort_unstable();
    let mut merged: Vec<Extent> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.first() <= last.end() => {
                let end = last.end().max(run.end());
                *last = Extent::new(last.first(), end.number() - last.first().number()).expect("not empty");
            }
            _ => merged.push(run),
        }
    }
    merged
}
