//! The core's own reading of page tables of either stage: every table, then what is in it, top down, without recursion.
//!
//! Non-leaf tables are read entry by entry; a table of 4 KiB leaves is read once, in chunks. A first stage below a second
//! one (nested) points with addresses of the second stage: each pointer is translated before it is followed.

use crate::book::{Domain, Stage};
use crate::host::{NoMemory, TableMemory};
use spec::first_stage::FirstStageEntry;
use spec::second_stage::{self, ENTRIES, HIGHEST_LEAF_LEVEL, SecondStageEntry};
use spec::{Extent, Frame, Iova, PAGE_SIZE, PhysAddr};

/// Entries read at a time from a table of 4 KiB leaves.
const CHUNK: usize = 64;
/// Most levels that tables have.
const MAX_LEVELS: u8 = 5;
/// As many tables as a tree of [`MAX_LEVELS`] levels can have.
pub(crate) const LARGEST_TREE: u64 = 1 + ENTRIES + ENTRIES.pow(2) + ENTRIES.pow(3) + ENTRIES.pow(4);
/// Fewest levels that tables have.
const MIN_LEVELS: u8 = 3;

impl Stage {
    /// Whether tables of this stage can have so many levels.
    pub(crate) fn has_levels(self, levels: u8) -> bool {
        let least = match self {
            Self::Second => MIN_LEVELS,
            Self::First => MIN_LEVELS + 1,
        };
        (least..=MAX_LEVELS).contains(&levels)
    }

    /// What a present entry at `level` points to, and whether that is a leaf.
    fn entry(self, raw: u64, level: u8) -> Option<(PhysAddr, bool)> {
        let second = SecondStageEntry::from_raw(raw);
        let first = FirstStageEntry::from_raw(raw);
        match self {
            Self::Second => second.is_present().then(|| (second.address(), second.is_leaf(level))),
            Self::First => first.is_present().then(|| (first.address(level), first.is_leaf(level))),
        }
    }
}

/// A tree of tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree {
    pub(crate) top: PhysAddr,
    pub(crate) stage: Stage,
    pub(crate) levels: u8,
    /// Top table and levels of the second stage that the tables lie below.
    pub(crate) parent: Option<(PhysAddr, u8)>,
}

impl Tree {
    /// The tables of a domain that lies below no other.
    pub(crate) fn alone(domain: &Domain) -> Self {
        Self { top: domain.top_table, stage: domain.stage, levels: domain.levels, parent: None }
    }
}

/// What a walk comes upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visit {
    /// A table, before its entries.
    Table(PhysAddr),
    /// A leaf: the first address it maps and the frames it points to. Below a second stage these are addresses of that
    /// stage, which translates the first and the last of them.
    Leaf(Iova, Extent),
}

/// Why a walk goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stray {
    /// More tables than the budget allows, the first of them here.
    OverBudget(PhysAddr),
    /// A pointer that the second stage does not translate.
    BeyondParent(Iova),
}

/// Where second-stage tables lead an address; `None` when they do not translate it.
pub(crate) fn translate<M: TableMemory>(
    memory: &M,
    (top, levels): (PhysAddr, u8),
    address: Iova,
) -> Result<Option<PhysAddr>, NoMemory> {
    if !Stage::Second.has_levels(levels) || address.get() / second_stage::span(levels - 1) >= ENTRIES {
        return Ok(None);
    }
    let mut table = top;
    for level in (0..levels).rev() {
        let raw = memory.read(table.plus(8 * second_stage::index(address.get(), level)))?;
        match Stage::Second.entry(raw, level) {
            None => return Ok(None),
            Some((to, true)) => {
                let within = second_stage::span(level) - 1;
                return Ok(Some(PhysAddr::new(to.get() & !within | address.get() & within)));
            }
            Some((to, false)) => table = to,
        }
    }
    Ok(None)
}

/// Calls `visit` with every table of `tree` and every leaf, until it returns an error. Ends after at most `budget` tables:
/// tables that form a cycle cannot hold it up.
pub(crate) fn walk<M: TableMemory, E: From<NoMemory>>(
    memory: &M,
    tree: Tree,
    budget: u64,
    stray: impl Fn(Stray) -> E,
    visit: &mut dyn FnMut(Visit) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = Path::new(tree.top, tree.levels);
    let mut seen = 1;
    visit(Visit::Table(tree.top))?;
    while let Some((table, level, index)) = path.next() {
        if level == 0 {
            leaves(memory, tree, table, path.iova(), &stray, visit)?;
            path.up();
            continue;
        }
        let Some((to, is_leaf)) = tree.stage.entry(memory.read(table.plus(8 * index))?, level) else {
            continue;
        };
        if is_leaf {
            leaf(memory, tree, level, path.iova(), to, &stray, visit)?;
            continue;
        }
        let below = match tree.parent {
            None => to,
            Some(_) => through(memory, tree, to, &stray)?,
        };
        seen += 1;
        if seen > budget {
            return Err(stray(Stray::OverBudget(below)));
        }
        visit(Visit::Table(below))?;
        path.down(below);
    }
    Ok(())
}

/// Where the second stage above `tree` leads one of its pointers; without one, there itself.
fn through<M: TableMemory, E: From<NoMemory>>(
    memory: &M,
    tree: Tree,
    pointer: PhysAddr,
    stray: &impl Fn(Stray) -> E,
) -> Result<PhysAddr, E> {
    let Some(parent) = tree.parent else { return Ok(pointer) };
    let address = Iova::new(pointer.get());
    translate(memory, parent, address)?.ok_or(stray(Stray::BeyondParent(address)))
}

/// Visits one leaf.
fn leaf<M: TableMemory, E: From<NoMemory>>(
    memory: &M,
    tree: Tree,
    level: u8,
    iova: Iova,
    to: PhysAddr,
    stray: &impl Fn(Stray) -> E,
    visit: &mut dyn FnMut(Visit) -> Result<(), E>,
) -> Result<(), E> {
    let frames = second_stage::span(level) / PAGE_SIZE;
    let Some(extent) = Extent::new(Frame::new(to.frame().number() & !(frames - 1)), frames) else {
        return Ok(());
    };
    if tree.parent.is_some() {
        through(memory, tree, extent.start(), stray)?;
        through(memory, tree, extent.start().plus(extent.bytes() - PAGE_SIZE), stray)?;
    }
    visit(Visit::Leaf(iova, extent))
}

/// Visits the 4 KiB leaves of one table that maps from `base` on.
fn leaves<M: TableMemory, E: From<NoMemory>>(
    memory: &M,
    tree: Tree,
    table: PhysAddr,
    base: Iova,
    stray: &impl Fn(Stray) -> E,
    visit: &mut dyn FnMut(Visit) -> Result<(), E>,
) -> Result<(), E> {
    let mut chunk = [0_u64; CHUNK];
    for first in (0..ENTRIES).step_by(CHUNK) {
        memory.read_words(table.plus(8 * first), &mut chunk)?;
        for (index, raw) in (first..).zip(chunk) {
            if let Some((to, _)) = tree.stage.entry(raw, 0) {
                leaf(memory, tree, 0, base.plus(index * PAGE_SIZE), to, stray, visit)?;
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
