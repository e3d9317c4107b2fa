//! The radix tree of preserved frames: index arithmetic.
//!
//! A preserved block of `2^order` frames has one key: its number among blocks of that size, with one more bit above that
//! says the size, at position `52 - order`. The key is cut into six slices. The lowest 15 bits pick a bit of a leaf, a
//! page of 32768 bits at level 0; each 9 bits above pick one of the 512 entries of a node at levels 1 to 5, an entry
//! being the physical address of a page of the level below, or zero.

use crate::{Extent, Frame, PAGE_SIZE};

/// Levels of the tree: leaves at 0, the root at 5.
pub const LEVELS: u8 = 6;
/// Bits of a key that may be set.
pub const KEY_BITS: u32 = 53;
/// Number of entries in a node, as a power of two.
pub const NODE_LOG2: u32 = 9;
/// Entries in a node.
pub const NODE_ENTRIES: usize = 1 << NODE_LOG2;
/// Number of bits in a leaf, as a power of two.
pub const LEAF_LOG2: u32 = 15;
/// Bits in a leaf.
pub const LEAF_ENTRIES: usize = 1 << LEAF_LOG2;
/// Position of the size bit for blocks of one frame; one lower for each doubling.
pub const ORDER_0_BIT: u32 = 52;

bitfields! {
    /// A key, cut into the index at each level.
    pub struct Key(u64) {
        /// Bit within the leaf.
        [14:0] level0, with_level0;
        /// Entry of the node at level 1.
        [23:15] level1, with_level1;
        /// Entry of the node at level 2.
        [32:24] level2, with_level2;
        /// Entry of the node at level 3.
        [41:33] level3, with_level3;
        /// Entry of the node at level 4.
        [50:42] level4, with_level4;
        /// Entry of the root; below 4 in any key that means something.
        [59:51] level5, with_level5;
    }
}

wire! {
    /// A node: physical addresses of pages one level below; zero where there is none.
    pub struct Node (4096) {
        /// The entries.
        table: [u64; NODE_ENTRIES],
    }
}

wire! {
    /// A leaf: bit `i` is bit `i % 64` of word `i / 64`.
    pub struct Leaf (4096) {
        /// The bits.
        bitmap: [u64; LEAF_ENTRIES / 64],
    }
}

/// The key of `2^order` frames from `frame` on; `None` when `frame` is no multiple of the size or out of range.
#[must_use]
pub const fn key(frame: Frame, order: u32) -> Option<u64> {
    if order > ORDER_0_BIT || frame.number() >> ORDER_0_BIT != 0 {
        return None;
    }
    let block = frame.number() >> order;
    if block << order != frame.number() {
        return None;
    }
    Some(1 << (ORDER_0_BIT - order) | block)
}

/// First frame and order of the block that `key` stands for; `None` for a number that is no key.
#[must_use]
pub const fn decode(key: u64) -> Option<(Frame, u32)> {
    if key == 0 || key >> KEY_BITS != 0 {
        return None;
    }
    let size_bit = 63 - key.leading_zeros();
    let order = ORDER_0_BIT - size_bit;
    Some((Frame::new((key & !(1 << size_bit)) << order), order))
}

/// The frames that `key` stands for; `None` for a number that is no key.
#[must_use]
pub const fn extent(key: u64) -> Option<Extent> {
    match decode(key) {
        Some((frame, order)) => Extent::new(frame, 1 << order),
        None => None,
    }
}

/// The index that `key` has at `level` (0 to 5): a bit at level 0, an entry above.
#[must_use]
pub const fn index(key: u64, level: u8) -> usize {
    let mask = if level == 0 { LEAF_ENTRIES as u64 - 1 } else { NODE_ENTRIES as u64 - 1 };
    (key >> shift(level) & mask) as usize
}

/// The part of a key that following entry `index` at `level` adds: sum the parts of all levels to get the key.
#[must_use]
pub const fn part(index: usize, level: u8) -> u64 {
    (index as u64) << shift(level)
}

/// The order of the largest block (2^order frames) that starts at `frame` and is no longer than `frames`, which is not 0.
/// `limit` is the largest order wanted. Cutting a run this way gives the fewest keys.
#[must_use]
pub const fn largest_order(frame: Frame, frames: u64, limit: u32) -> u32 {
    let by_alignment = frame.number().trailing_zeros();
    let by_length = if frames == 0 { 0 } else { 63 - frames.leading_zeros() };
    let order = if by_alignment < by_length { by_alignment } else { by_length };
    if order < limit { order } else { limit }
}

/// Position of the lowest bit of a key's slice at `level`.
const fn shift(level: u8) -> u32 {
    if level == 0 { 0 } else { LEAF_LOG2 + NODE_LOG2 * (level as u32 - 1) }
}

const _: () = assert!(size_of::<Node>() as u64 == PAGE_SIZE && size_of::<Leaf>() as u64 == PAGE_SIZE);
