//! The radix tree of preserved frames, read whole.

use crate::image::{self, Memory};
use crate::model::Problem;
use spec::kho::radix::{self, LEVELS, NODE_ENTRIES};
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};
use std::collections::{BTreeMap, HashSet};

/// Runs that are kept at most.
const MAX_RUNS: usize = 1 << 22;
/// Problems that are kept at most.
const MAX_PROBLEMS: usize = 256;

/// The preserved frames.
#[derive(Debug, Clone, Default)]
pub struct Preserved {
    /// Preserved runs, merged, ascending.
    pub extents: Vec<Extent>,
    /// How many blocks of each order (2^order frames) the tree names.
    pub by_order: BTreeMap<u32, u64>,
    /// Frames of the tree itself.
    pub nodes: Vec<PhysAddr>,
    /// The tree was not read to its end.
    pub left_off: bool,
}

impl Preserved {
    /// Preserved frames.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.extents.iter().map(|extent| extent.count()).sum()
    }

    /// Whether all frames from `first` up to (not including) `end` are preserved.
    #[must_use]
    pub fn covers(&self, first: Frame, end: Frame) -> bool {
        let next = self.extents.partition_point(|extent| extent.first() <= first);
        let within = next.checked_sub(1).and_then(|index| self.extents.get(index));
        within.is_some_and(|extent| extent.contains(first) && end <= extent.end())
    }

    /// Whether the frame at `at` is preserved.
    #[must_use]
    pub fn holds(&self, at: PhysAddr) -> bool {
        self.covers(at.frame(), Frame::new(at.frame().number() + 1))
    }
}

/// Reads the tree with its root at `root`. Each node is read once: depth is fixed, and a node named twice is a mistake.
pub(super) fn read(memory: &Memory, root: PhysAddr, problems: &mut Vec<Problem>) -> Preserved {
    let mut found = Preserved::default();
    let mut runs: Vec<Extent> = Vec::new();
    let mut seen = HashSet::new();
    // Nodes to be read: address, level, and the part of the key that led there. Last in, first out keeps it short.
    let mut waiting = vec![(root, LEVELS - 1, 0_u64)];
    while let Some((at, level, key)) = waiting.pop() {
        let mut say = |what: String| {
            if problems.len() < MAX_PROBLEMS {
                problems.push(Problem { at, subject: "map of preserved memory".into(), what });
            }
        };
        if !at.is_aligned(PAGE_SIZE) {
            say("a node lies at an address that is not aligned".into());
            continue;
        }
        if !seen.insert(at.get()) {
            say("a node is named twice".into());
            continue;
        }
        let Ok(words) = image::table(memory, at) else {
            say("the image does not hold this node".into());
            continue;
        };
        found.nodes.push(at);
        if level > 0 {
            let children = words.iter().enumerate().rev().filter(|(_, child)| **child != 0);
            waiting.extend(children.map(|(index, &child)| {
                (PhysAddr::new(child), level - 1, key | radix::part(index % NODE_ENTRIES, level))
            }));
            continue;
        }
        for (index, &word) in words.iter().enumerate() {
            let mut bits = word;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let key = key | (64 * index as u64 + u64::from(bit));
                let Some((block, (_, order))) = radix::extent(key).zip(radix::decode(key)) else {
                    say(format!("{key:#x} is no key"));
                    continue;
                };
                *found.by_order.entry(order).or_default() += 1;
                join(&mut runs, block, &mut found.left_off);
            }
        }
    }
    runs.sort_unstable();
    for run in runs {
        join(&mut found.extents, run, &mut found.left_off);
    }
    found
}

/// Adds a run, to the last one when they touch or overlap.
fn join(runs: &mut Vec<Extent>, run: Extent, left_off: &mut bool) {
    if let Some(last) = runs.last_mut()
        && last.first() <= run.first()
        && run.first() <= last.end()
    {
        let end = last.end().max(run.end());
        if let Some(joined) = Extent::new(last.first(), end.number() - last.first().number()) {
            *last = joined;
            return;
        }
    }
    if runs.len() < MAX_RUNS { runs.push(run) } else { *left_off = true }
}
