//! The map of preserved memory: KHO's radix tree, read as foreign bytes.
//!
//! A key stands for one block of `2^order` frames: a one at bit `52 - order`, and below it the address divided by the
//! block's size. Five levels of pointers (9 bits each) lead to bitmaps of 32768 keys. [`PreservedMap::extents`] lists all
//! runs; [`PreservedMap::first_gap`] asks of a range whether every frame of it is preserved.
//!
//! The tree may lead in circles or name one node twice. A node on the way to itself is refused; for everything else depth is
//! fixed, and the number of steps is bounded by [`MAX_STEPS`].

use crate::error::Unreadable;
use crate::image::{self, Image};
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};

/// Runs and nodes that one pass over the map, or all questions together, may visit.
pub const MAX_STEPS: u64 = 1 << 24;

/// Bits of a key that select within a bitmap.
const LEAF_BITS: u32 = 15;
/// Bits of a key that each level of pointers takes.
const NODE_BITS: u32 = 9;
/// Entries of a node.
const NODE_ENTRIES: u64 = 1 << NODE_BITS;
/// Levels of pointers above the bitmaps.
const LEVELS: u32 = 5;
/// The order bit of single frames: the highest bit that a key has.
const HIGHEST_ORDER_BIT: u32 = 52;
/// First key that cannot be.
const END_OF_KEYS: u64 = 1 << (HIGHEST_ORDER_BIT + 1);
/// The first number beyond the keys that the tree has room for.
const END_OF_TREE: u64 = 1 << (LEAF_BITS + LEVELS * NODE_BITS);

/// The first key of blocks of this order; those of the order below begin at its double.
const fn first_key(order: u32) -> u64 {
    1 << HIGHEST_ORDER_BIT.saturating_sub(order)
}

/// The map of preserved memory of an image.
pub struct PreservedMap<'i, I: ?Sized> {
    walker: Walker<'i, I>,
    /// Bit n: blocks of order n are in the map.
    orders: u64,
    /// The order of the last hit, tried first.
    last: u32,
}

impl<'i, I: Image + ?Sized> PreservedMap<'i, I> {
    /// Opens the map with its root node at `root`, and looks which orders it uses.
    ///
    /// # Errors
    /// [`Unreadable`] when a node on the way is missing or impossible.
    pub fn open(image: &'i I, root: PhysAddr) -> Result<Self, Unreadable> {
        if !root.is_aligned(PAGE_SIZE) || root.get() == 0 {
            return Err(Unreadable::Misplaced { part: "map of preserved memory", at: root });
        }
        let mut walker = Walker::new(image, root);
        let mut orders = 0;
        for order in 0..=HIGHEST_ORDER_BIT {
            let from = first_key(order);
            if walker.next_set(from, from.saturating_mul(2))?.is_some() {
                orders |= 1 << order;
            }
        }
        Ok(Self { walker, orders, last: 0 })
    }

    /// Whether `frame` is preserved.
    ///
    /// # Errors
    /// [`Unreadable`] when the tree is damaged on the way.
    pub fn preserved(&mut self, frame: Frame) -> Result<bool, Unreadable> {
        let end = frame.number().saturating_add(1);
        Ok(self.first_gap(frame, Frame::new(end))?.is_none())
    }

    /// The first frame from `first` up to (not including) `end` that is not preserved; `None` when all are.
    ///
    /// # Errors
    /// [`Unreadable`] when the tree is damaged on the way.
    pub fn first_gap(&mut self, first: Frame, end: Frame) -> Result<Option<Frame>, Unreadable> {
        let mut frame = first.number();
        'covered: while frame < end.number() {
            if let Some(next) = self.covered_until(frame, self.last)? {
                frame = next;
                continue 'covered;
            }
            for order in 0..=HIGHEST_ORDER_BIT {
                if order == self.last {
                    continue;
                }
                if let Some(next) = self.covered_until(frame, order)? {
                    self.last = order;
                    frame = next;
                    continue 'covered;
                }
            }
            return Ok(Some(Frame::new(frame)));
        }
        Ok(None)
    }

    /// The first preserved frame from `first` up to (not including) `end`, if any.
    ///
    /// # Errors
    /// [`Unreadable`] when the tree is damaged on the way.
    pub fn first_preserved(&mut self, first: Frame, end: Frame) -> Result<Option<Frame>, Unreadable> {
        let mut found: Option<u64> = None;
        for order in 0..=HIGHEST_ORDER_BIT {
            let from = first_key(order);
            let block = first.number() >> order;
            if self.orders & (1 << order) == 0 || block >= from || end <= first {
                continue;
            }
            let last = (end.number().saturating_sub(1) >> order).min(from.saturating_sub(1));
            if let Some(key) = self.walker.next_set(from | block, (from | last).saturating_add(1))? {
                let start = ((key ^ from) << order).max(first.number());
                found = Some(found.map_or(start, |other| other.min(start)));
            }
        }
        Ok(found.map(Frame::new))
    }

    /// When a block of this order holds `frame`: the end of the run of such blocks.
    fn covered_until(&mut self, frame: u64, order: u32) -> Result<Option<u64>, Unreadable> {
        let from = first_key(order);
        let block = frame >> order;
        if self.orders & (1 << order) == 0 || block >= from {
            return Ok(None);
        }
        let key = from | block;
        if self.walker.next_set(key, key.saturating_add(1))?.is_none() {
            return Ok(None);
        }
        let blocks = self.walker.run(key)?.min(from.saturating_mul(2).saturating_sub(key));
        // At most 2^52 frames: `block + blocks <= from = 2^(52 - order)`.
        Ok(Some(block.saturating_add(blocks) << order))
    }

    /// All preserved runs: larger blocks first, ascending within one order. Runs of one order that touch may come apart
    /// at multiples of 32768 blocks.
    #[must_use]
    pub fn extents(&self) -> Extents<'i, I> {
        Extents { walker: Walker::new(self.walker.image, self.walker.root), key: 0 }
    }

    /// Calls `f` with the address of every node of the tree, bitmaps included; one used twice comes twice.
    ///
    /// # Errors
    /// [`Unreadable`] when the tree is damaged or too large.
    pub fn nodes(&self, f: &mut dyn FnMut(PhysAddr)) -> Result<(), Unreadable> {
        let mut walker = Walker::new(self.walker.image, self.walker.root);
        f(walker.root);
        let mut key = 0;
        while let Some(next) = walker.next_leaf(key, END_OF_TREE, f)? {
            key = next.saturating_add(1 << LEAF_BITS);
        }
        Ok(())
    }
}

/// Iterator over the preserved runs.
pub struct Extents<'i, I: ?Sized> {
    walker: Walker<'i, I>,
    key: u64,
}

impl<I: Image + ?Sized> Iterator for Extents<'_, I> {
    type Item = Result<Extent, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.read_one();
        if found.is_err() {
            self.key = END_OF_TREE;
        }
        found.transpose()
    }
}

impl<I: Image + ?Sized> Extents<'_, I> {
    fn read_one(&mut self) -> Result<Option<Extent>, Unreadable> {
        let Some(key) = self.walker.next_set(self.key, END_OF_TREE)? else {
            self.key = END_OF_TREE;
            return Ok(None);
        };
        let impossible = Unreadable::Map { at: self.walker.root, value: key };
        if key == 0 || key >= END_OF_KEYS {
            return Err(impossible);
        }
        let order_bit = key.ilog2();
        let order = HIGHEST_ORDER_BIT.saturating_sub(order_bit);
        // A bitmap may hold the keys of several orders when blocks are huge.
        let next_order = 1u64 << order_bit.saturating_add(1);
        let blocks = self.walker.run(key)?.min(next_order.saturating_sub(key));
        self.key = key.saturating_add(blocks);
        let first = (key ^ (1 << order_bit)) << order;
        Extent::new(Frame::new(first), blocks << order).map(Some).ok_or(impossible)
    }
}

/// Finds keys in the tree, remembering the last bitmap.
struct Walker<'i, I: ?Sized> {
    image: &'i I,
    root: PhysAddr,
    /// The bitmap used last: its first key and its address.
    leaf: Option<(u64, PhysAddr)>,
    steps: u64,
}

impl<'i, I: Image + ?Sized> Walker<'i, I> {
    const fn new(image: &'i I, root: PhysAddr) -> Self {
        Self { image, root, leaf: None, steps: 0 }
    }

    fn step(&mut self) -> Result<(), Unreadable> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > MAX_STEPS { Err(Unreadable::MapTooLarge { root: self.root }) } else { Ok(()) }
    }

    fn word(&self, at: PhysAddr) -> Result<u64, Unreadable> {
        image::word(self.image, at).map_err(Unreadable::missing("map of preserved memory"))
    }

    /// The first key in the tree from `from` up to (not including) `end`.
    fn next_set(&mut self, from: u64, end: u64) -> Result<Option<u64>, Unreadable> {
        let mut key = from;
        // Each round but the first takes a step in `next_leaf`.
        while key < end {
            let leaf = match self.leaf {
                Some((first, leaf)) if first == key & !bitmap_mask() => leaf,
                _ => match self.next_leaf(key, end, &mut |_| ())? {
                    Some(first) => {
                        key = key.max(first);
                        match self.leaf {
                            Some((_, leaf)) => leaf,
                            None => return Ok(None),
                        }
                    }
                    None => return Ok(None),
                },
            };
            let last = (key | bitmap_mask()).min(end.saturating_sub(1)) & bitmap_mask();
            if let Some(bit) = self.next_bit(leaf, key & bitmap_mask(), last)? {
                let found = key & !bitmap_mask() | bit;
                return Ok(Some(found).filter(|found| *found < end));
            }
            key = (key | bitmap_mask()).saturating_add(1);
        }
        Ok(None)
    }

    /// The first key of the first bitmap that holds keys from `key` on, before `end`; it becomes `self.leaf`. `seen` is
    /// told every node that is newly entered on the way.
    fn next_leaf(
        &mut self,
        mut key: u64,
        end: u64,
        seen: &mut dyn FnMut(PhysAddr),
    ) -> Result<Option<u64>, Unreadable> {
        'descend: while key < end {
            self.step()?;
            let mut node = self.root;
            // Every node on the way, the root at first.
            let mut way = [self.root; LEVELS as usize];
            for level in (1..=LEVELS).rev() {
                let shift = LEAF_BITS.saturating_add(NODE_BITS.saturating_mul(level.saturating_sub(1)));
                let index = key >> shift & (NODE_ENTRIES - 1);
                let above = shift.saturating_add(NODE_BITS);
                // No further than `end`, so that a question about one key reads one entry per level.
                let last_key = (key | !(u64::MAX << above)).min(end.saturating_sub(1));
                let last = last_key >> shift & (NODE_ENTRIES - 1);
                let Some((found, child)) = self.next_child(node, index, last)? else {
                    // Nothing more under this node: on to its right neighbour.
                    key = (key >> above).saturating_add(1) << above;
                    continue 'descend;
                };
                if way.contains(&child) {
                    let at = node.plus(found.saturating_mul(8));
                    return Err(Unreadable::Map { at, value: child.get() });
                }
                if let Some(place) = way.get_mut(level.saturating_sub(1) as usize) {
                    *place = child;
                }
                if found != index {
                    key = key >> above << above | found << shift;
                }
                if key & !(u64::MAX << shift) == 0 {
                    seen(child);
                }
                node = child;
            }
            key &= !bitmap_mask();
            if key >= end {
                break;
            }
            self.leaf = Some((key, node));
            return Ok(Some(key));
        }
        Ok(None)
    }

    /// The first entry of `node` from `index` to `last` that is not zero, with its index.
    fn next_child(
        &self,
        node: PhysAddr,
        index: u64,
        last: u64,
    ) -> Result<Option<(u64, PhysAddr)>, Unreadable> {
        for index in index..=last {
            let at = node.plus(index.saturating_mul(8));
            let value = self.word(at)?;
            if value == 0 {
                continue;
            }
            let child = PhysAddr::new(value);
            if !child.is_aligned(PAGE_SIZE) {
                return Err(Unreadable::Map { at, value });
            }
            return Ok(Some((index, child)));
        }
        Ok(None)
    }

    /// The first set bit of the bitmap at `leaf` from `bit` on, looking no further than the word that holds `last`.
    fn next_bit(&self, leaf: PhysAddr, bit: u64, last: u64) -> Result<Option<u64>, Unreadable> {
        let mut keep = u64::MAX << (bit % 64);
        for index in bit / 64..=last / 64 {
            let word = self.word(leaf.plus(index.saturating_mul(8)))? & keep;
            if word != 0 {
                return Ok(Some(index.saturating_mul(64).saturating_add(u64::from(word.trailing_zeros()))));
            }
            keep = u64::MAX;
        }
        Ok(None)
    }

    /// How many adjacent keys are set from `key` on, within the bitmap that was used last and holds `key`.
    fn run(&mut self, key: u64) -> Result<u64, Unreadable> {
        self.step()?;
        let Some((_, leaf)) = self.leaf else { return Ok(1) };
        let first = key & bitmap_mask();
        let mut bit = first;
        while bit < 1 << LEAF_BITS {
            let word = self.word(leaf.plus((bit / 64).saturating_mul(8)))?;
            let ones = u64::from((word >> (bit % 64)).trailing_ones());
            bit = bit.saturating_add(ones);
            if bit % 64 != 0 || ones == 0 {
                break;
            }
        }
        Ok(bit.saturating_sub(first).max(1))
    }
}

/// The bits of a key that select within a bitmap.
const fn bitmap_mask() -> u64 {
    (1 << LEAF_BITS) - 1
}
