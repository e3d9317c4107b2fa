//! The preserved-memory map of KHO: a radix tree whose leaves are bitmaps of naturally aligned blocks of frames.
//!
//! The writer goes through the sorted runs once per block order, highest first: keys then ascend, so that counting the
//! nodes beforehand needs no more than the key before. The reader is bounded by a budget of nodes and trusts no pointer.

use crate::host::{NoMemory, TableMemory};
use crate::mutant::{self, Mutant};
use spec::kho::radix::{self as layout, LEAF_LOG2, NODE_LOG2};
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};

/// Largest block order written: the largest page that Linux's buddy allocator hands out.
const MAX_ORDER: u32 = 10;
/// Levels of the tree: five of tables over one of bitmaps.
const LEVELS: usize = layout::LEVELS as usize;
/// Nodes that one run below 2^15 blocks of the largest order can need at most beyond those of other runs: per order its
/// keys lie in one leaf or in two, each with its own chain of tables below the root.
pub(crate) const NODES_PER_RUN: u64 = (MAX_ORDER as u64 + 1) * 2 * (LEVELS as u64 - 1);

/// Bits below level `level`'s index in a key.
const fn shift(level: usize) -> u32 {
    match level {
        0 => 0,
        l => LEAF_LOG2 + NODE_LOG2 * (l as u32 - 1),
    }
}

/// Calls `f` with (first key, number of keys) for every stretch of keys that lies within one leaf, keys ascending.
fn for_each_stretch<E>(
    runs: &[Option<Extent>],
    f: &mut dyn FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), E> {
    for order in (0..=MAX_ORDER).rev() {
        for run in runs.iter().flatten() {
            for_each_block(*run, order, &mut |first, blocks| {
                // Every frame of an extent has a key: only addresses past 2^64 have none.
                let mut key = layout::key(first, order).unwrap_or(0);
                let end = key + blocks;
                while key < end {
                    let leaf_end = ((key >> LEAF_LOG2) + 1) << LEAF_LOG2;
                    f(key, end.min(leaf_end) - key)?;
                    key = end.min(leaf_end);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Calls `f` with the stretches of blocks of just this order in the natural decomposition of `run`.
fn for_each_block<E>(
    run: Extent,
    order: u32,
    f: &mut dyn FnMut(Frame, u64) -> Result<(), E>,
) -> Result<(), E> {
    let (mut at, end) = (run.first().number(), run.end().number());
    while at < end {
        let own = layout::largest_order(Frame::new(at), end - at, MAX_ORDER);
        let blocks = if own == MAX_ORDER { (end - at) >> own } else { 1 };
        if own == order {
            f(Frame::new(at), blocks)?;
        }
        at += blocks << own;
    }
    Ok(())
}

/// How many nodes the tree over `runs` (sorted, disjoint) has.
pub(crate) fn count_nodes(runs: &[Option<Extent>]) -> u64 {
    let mut last = None;
    let mut nodes = 1;
    let counted: Result<(), core::convert::Infallible> = for_each_stretch(runs, &mut |key, _| {
        nodes += (0..LEVELS - 1).filter(|l| differs(last, key, *l)).count() as u64;
        last = Some(key);
        Ok(())
    });
    match counted {
        Ok(()) => nodes,
    }
}

/// Whether `key` needs another node at `level` than the key before it.
fn differs(last: Option<u64>, key: u64, level: usize) -> bool {
    last.is_none_or(|last| last >> shift(level + 1) != key >> shift(level + 1))
}

/// Writes the tree over `runs` (sorted, disjoint) into the zeroed frames of `nodes`; its root is the first of them.
///
/// # Errors
/// [`NoMemory`], also when `nodes` has too few frames.
pub(crate) fn write<M: TableMemory>(
    memory: &M,
    runs: &[Option<Extent>],
    nodes: Extent,
) -> Result<(), NoMemory> {
    let mut free = (nodes.first().number()..nodes.end().number()).map(|n| Frame::new(n).start());
    let full = NoMemory { at: nodes.end().start() };
    let mut path = [PhysAddr::new(0); LEVELS];
    path[LEVELS - 1] = free.next().ok_or(full)?;
    let mut last = None;
    for_each_stretch(runs, &mut |key, keys| {
        for level in (0..LEVELS - 1).rev() {
            if differs(last, key, level) {
                path[level] = free.next().ok_or(full)?;
                let index = (key >> shift(level + 1)) & ((1 << NODE_LOG2) - 1);
                memory.write(path[level + 1].plus(8 * index), path[level].get())?;
            }
        }
        last = Some(key);
        set_bits(memory, path[0], key & ((1 << LEAF_LOG2) - 1), keys)
    })
}

/// Sets `count` bits from `first` on in a leaf.
fn set_bits<M: TableMemory>(memory: &M, leaf: PhysAddr, first: u64, count: u64) -> Result<(), NoMemory> {
    let end = first + count;
    for word in first / 64..end.div_ceil(64) {
        let low = first.saturating_sub(64 * word).min(63) as u32;
        let high = (end - 64 * word).min(64) as u32 - 1;
        let at = leaf.plus(8 * word);
        memory.write(at, memory.read(at)? | spec::bits::mask(high, low))?;
    }
    Ok(())
}

/// Why a preserved-memory map cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// A node lies where there is no memory, or not on a frame.
    Node(PhysAddr),
    /// More nodes than a tree can have that was written by a kernel: it refers to itself.
    TooManyNodes(u64),
    /// A key that stands for no frame.
    Key(u64),
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Node(at) => write!(f, "node {at} of the preserved-memory map is no frame of memory"),
            Self::TooManyNodes(n) => write!(f, "the preserved-memory map has more than {n} nodes"),
            Self::Key(k) => write!(f, "key {k:#x} of the preserved-memory map stands for no frame"),
        }
    }
}
impl core::error::Error for MapError {}

/// Calls `f` with every preserved run in the tree at `root`, in the order of keys. Reads at most `budget` nodes.
///
/// # Errors
/// [`MapError`]; `f` may have been called for a part.
pub fn for_each_preserved<M: TableMemory>(
    memory: &M,
    root: PhysAddr,
    budget: u64,
    f: &mut dyn FnMut(Extent),
) -> Result<(), MapError> {
    let mut tables = [root; LEVELS];
    let mut next = [0_u64; LEVELS];
    let mut level = LEVELS - 1;
    let mut nodes = 1;
    check_node(root)?;
    loop {
        if next[level] == 1 << NODE_LOG2 {
            if level == LEVELS - 1 {
                return Ok(());
            }
            level += 1;
            continue;
        }
        let index = next[level];
        next[level] += 1;
        let at = tables[level].plus(8 * index);
        let child = PhysAddr::new(memory.read(at).map_err(|e| MapError::Node(e.at))?);
        if child.get() == 0 {
            continue;
        }
        check_node(child)?;
        nodes += 1;
        if nodes > budget && !mutant::on(Mutant::NoBound) {
            return Err(MapError::TooManyNodes(budget));
        }
        if level == 1 {
            let prefix = (1..LEVELS).map(|l| (next[l] - 1) << shift(l)).sum();
            // Blocks with keys this low would be of a pebibyte and more, and of several sizes in one leaf.
            if prefix == 0 {
                return Err(MapError::Key(prefix));
            }
            leaf(memory, child, prefix, f)?;
        } else {
            level -= 1;
            tables[level] = child;
            next[level] = 0;
        }
    }
}

fn check_node(at: PhysAddr) -> Result<(), MapError> {
    if at.is_aligned(PAGE_SIZE) { Ok(()) } else { Err(MapError::Node(at)) }
}

/// Reports the runs of set bits in one leaf, whose keys begin at `prefix`.
fn leaf<M: TableMemory>(
    memory: &M,
    at: PhysAddr,
    prefix: u64,
    f: &mut dyn FnMut(Extent),
) -> Result<(), MapError> {
    let mut run: Option<(u64, u64)> = None;
    for word in 0..PAGE_SIZE / 8 {
        let bits = memory.read(at.plus(8 * word)).map_err(|e| MapError::Node(e.at))?;
        if bits == u64::MAX {
            run = Some(run.map_or((64 * word, 64), |(first, n)| (first, n + 64)));
            continue;
        }
        if bits == 0 && run.is_none() {
            continue;
        }
        for bit in 0..64 {
            if bits >> bit & 1 == 1 {
                run = Some(run.map_or((64 * word + bit, 1), |(first, n)| (first, n + 1)));
            } else if let Some((first, n)) = run.take() {
                f(extent(prefix + first, n)?);
            }
        }
    }
    match run {
        Some((first, n)) => {
            f(extent(prefix + first, n)?);
            Ok(())
        }
        None => Ok(()),
    }
}

/// The frames that `count` keys from `key` on stand for.
fn extent(key: u64, count: u64) -> Result<Extent, MapError> {
    let (first, order) = layout::decode(key).ok_or(MapError::Key(key))?;
    Extent::new(first, count << order).ok_or(MapError::Key(key))
}
