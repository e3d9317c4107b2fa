//! The core's own reading of second-stage tables: every table, then what is in it, top down, without recursion.
//!
//! Non-leaf tables are read entry by entry; a table of 4 KiB leaves is read once, in chunks.

use crate::host::{NoMemory, TableMemory};
use spec::second_stage::{self, ENTRIES, HIGHEST_LEAF_LEVEL, SecondStageEntry};
use spec::{Extent, Frame, Iova, PhysAddr};

/// Entries read at a time from a table of 4 KiB leaves.
const CHUNK: usize = 64;
/// Most levels that second-stage tables have.
pub(crate) const MAX_LEVELS: u8 = 5;
/// As many tables as a tree of [`MAX_LEVELS`] levels can have.
pub(crate) const LARGEST_TREE: u64 = 1 + ENTRIES + ENTRIES.pow(2) + ENTRIES.pow(3) + ENTRIES.pow(4);
/// Fewest levels that second-stage tables have.
pub(crate) const MIN_LEVELS: u8 = 3;

/// What a walk comes upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visit {
    /// A table, before its entries.
    Table(PhysAddr),
    /// A leaf: the first address it maps and the frames it points to.
    Leaf(Iova, Extent),
}

/// Calls `visit` with every table below `top` and every leaf, until it returns an error. Ends after at most `budget`
/// tables, with `over_budget`: tables that form a cycle cannot hold it up.
pub(crate) fn walk<M: TableMemory, E: From<NoMemory>>(
    memory: &M,
    top: PhysAddr,
    levels: u8,
    budget: u64,
    over_budget: impl Fn(PhysAddr) -> E,
    visit: &mut dyn FnMut(Visit) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = Path::new(top, levels);
    let mut seen = 1;
    visit(Visit::Table(top))?;
    while let Some((table, level, index)) = path.next() {
        if level == 0 {
            leaves(memory, table, path.iova(), visit)?;
            path.up();
            continue;
        }
        let entry = SecondStageEntry::from_raw(memory.read(table.plus(8 * index))?);
        if !entry.is_present() {
            continue;
        }
        if entry.is_leaf(level) {
            let frames = second_stage::span(level) / spec::PAGE_SIZE;
            let first = Frame::new(entry.addr() & !(frames - 1));
            if let Some(extent) = Extent::new(first, frames) {
                visit(Visit::Leaf(path.iova(), extent))?;
            }
            continue;
        }
        seen += 1;
        if seen > budget {
            return Err(over_budget(entry.address()));
        }
        visit(Visit::Table(entry.address()))?;
        path.down(entry.address());
    }
    Ok(())
}

/// Visits the 4 KiB leaves of one table that maps from `base` on.
fn leaves<M: TableMemory, E: From<NoMemory>>(
    memory: &M,
    table: PhysAddr,
    base: Iova,
    visit: &mut dyn FnMut(Visit) -> Result<(), E>,
) -> Result<(), E> {
    let mut chunk = [0_u64; CHUNK];
    for first in (0..ENTRIES).step_by(CHUNK) {
        memory.read_words(table.plus(8 * first), &mut chunk)?;
        for (index, raw) in (first..).zip(chunk) {
            let entry = SecondStageEntry::from_raw(raw);
            if entry.is_present() {
                let iova = base.plus(index * spec::PAGE_SIZE);
                visit(Visit::Leaf(iova, Extent::one(Frame::new(entry.addr()))))?;
            }
        }
    }
    Ok(())
}

/// Where a walk stands: one table and the next index per level.
struct Path {
    tables: [PhysAddr; MAX_LEVELS as usize],
    next: [u64; MAX_LEVELS as usize],
    level: u8,
    top: u8,
    done: bool,
}

impl Path {
    fn new(top: PhysAddr, levels: u8) -> Self {
        debug_assert!((MIN_LEVELS..=MAX_LEVELS).contains(&levels));
        const { assert!(HIGHEST_LEAF_LEVEL < MIN_LEVELS) };
        let level = levels - 1;
        let mut tables = [PhysAddr::new(0); MAX_LEVELS as usize];
        tables[level as usize] = top;
        Self { tables, next: [0; MAX_LEVELS as usize], level, top: level, done: false }
    }

    /// The next entry to look at: table, level, index. Climbs out of tables that are done.
    fn next(&mut self) -> Option<(PhysAddr, u8, u64)> {
        while !self.done {
            let level = self.level as usize;
            let index = self.next[level];
            if index < ENTRIES {
                self.next[level] += 1;
                return Some((self.tables[level], self.level, index));
            }
            self.up();
        }
        None
    }

    /// Leaves the current table.
    fn up(&mut self) {
        if self.level == self.top {
            self.done = true;
        } else {
            self.level += 1;
        }
    }

    /// Enters `table` below the entry last returned.
    fn down(&mut self, table: PhysAddr) {
        self.level -= 1;
        self.tables[self.level as usize] = table;
        self.next[self.level as usize] = 0;
    }

    /// The first address that the entry last returned maps.
    fn iova(&self) -> Iova {
        let mut iova = 0;
        for level in self.level..=self.top {
            iova |= (self.next[level as usize] - 1) * second_stage::span(level);
        }
        Iova::new(iova)
    }
}
