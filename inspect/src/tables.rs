//! Walking page tables of either stage, without trusting them.
//!
//! [`walk`] goes through one tree of tables in the order of addresses, without recursion, and reports tables, leaves and
//! what is wrong with them. Its depth is the number of levels. A table that lies on the way to itself is not followed; one
//! that is reached again from elsewhere (which is legal, and may be a trap) is followed as long as [`Budget::repeats`]
//! lasts; and no walk reads more tables than [`Budget::tables`]. So a walk ends, whatever it reads.
//!
//! Nested translation is walked as hardware does: the addresses of first-stage tables go through the second stage.

use crate::image::{self, Table};
use audit::Image;
use spec::first_stage::{self, FirstStageEntry};
use spec::second_stage::{self, SecondStageEntry, index, span};
use spec::{PAGE_SIZE, PhysAddr};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Levels that a table may have at most.
pub const MAX_LEVELS: usize = 5;

/// Format of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The processor's own format (VT-d 9.7).
    First,
    /// VT-d's own format (VT-d 9.8).
    Second,
}

impl Stage {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::First => "first stage",
            Self::Second => "second stage",
        }
    }
}

/// Which page table: everything that decides what an address becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Top {
    /// Its format.
    pub stage: Stage,
    /// Physical address of the top table (with `through`: the address before that translation).
    pub table: PhysAddr,
    /// Levels.
    pub levels: u8,
    /// Nested: the second stage that addresses of tables and targets go through; top table and levels.
    pub through: Option<(PhysAddr, u8)>,
}

/// What an entry lets pass, together with those above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Access {
    /// Reads.
    pub read: bool,
    /// Writes.
    pub write: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true };

    /// What both let pass.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { read: self.read && other.read, write: self.write && other.write }
    }

    /// As two letters, with dashes for what is missing.
    #[must_use]
    pub const fn letters(self) -> &'static str {
        match (self.read, self.write) {
            (true, true) => "rw",
            (true, false) => "r-",
            (false, true) => "-w",
            (false, false) => "--",
        }
    }
}

/// What an entry means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing: not present.
    Absent,
    /// A table one level below.
    Table(PhysAddr),
    /// A leaf: its first byte.
    Leaf(PhysAddr),
}

/// What must be known of hardware to judge entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Width of a host address in bits.
    pub address_bits: u32,
    /// Snoop control: the snoop bit of a leaf is no reserved bit.
    pub snoop_control: bool,
}

impl Default for Hardware {
    /// The most that any hardware may allow.
    fn default() -> Self {
        Self { address_bits: 52, snoop_control: true }
    }
}

/// What `raw` means in a table at `level` (0 holds 4 KiB leaves).
#[must_use]
pub fn meaning(stage: Stage, raw: u64, level: u8) -> Meaning {
    let (present, leaf, address) = match stage {
        Stage::Second => {
            let entry = SecondStageEntry::from_raw(raw);
            let low = if level > 0 && entry.is_leaf(level) { span(level) - 1 } else { 0 };
            (entry.is_present(), entry.is_leaf(level), PhysAddr::new(entry.address().get() & !low))
        }
        Stage::First => {
            let entry = FirstStageEntry::from_raw(raw);
            (entry.is_present(), entry.is_leaf(level), entry.address(level))
        }
    };
    match (present, leaf) {
        (false, _) => Meaning::Absent,
        (true, true) => Meaning::Leaf(address),
        (true, false) => Meaning::Table(address),
    }
}

/// What `raw` lets pass by itself.
#[must_use]
pub fn access(stage: Stage, raw: u64) -> Access {
    match stage {
        Stage::Second => {
            let entry = SecondStageEntry::from_raw(raw);
            Access { read: entry.r(), write: entry.w() }
        }
        Stage::First => {
            let entry = FirstStageEntry::from_raw(raw);
            Access { read: entry.present(), write: entry.present() && entry.rw() }
        }
    }
}

/// The reserved bits that are set in a present entry.
#[must_use]
pub fn reserved(stage: Stage, raw: u64, level: u8, hardware: Hardware) -> u64 {
    raw & match stage {
        Stage::Second => second_stage::reserved(
            SecondStageEntry::from_raw(raw),
            level,
            hardware.address_bits,
            hardware.snoop_control,
        ),
        Stage::First => first_stage::reserved(FirstStageEntry::from_raw(raw), level, hardware.address_bits),
    }
}

/// One step down: an entry and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Level of the table.
    pub level: u8,
    /// Physical address of the entry.
    pub at: PhysAddr,
    /// The entry.
    pub raw: u64,
}

/// A leaf.
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    /// First address it translates.
    pub iova: u64,
    /// What that address becomes (nested: before the second stage).
    pub target: PhysAddr,
    /// Level of the table that holds it.
    pub level: u8,
    /// What it and the entries above it let pass.
    pub access: Access,
    /// Leaves that it stands for: more than one only in [`walk_merged`].
    pub count: u64,
    /// The entries that lead to it, top first, itself last.
    pub path: &'a [Step],
}

impl Leaf<'_> {
    /// Bytes that it translates, together with those it stands for.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        span(self.level) * self.count
    }
    /// The leaf's own entry.
    #[must_use]
    pub fn raw(&self) -> u64 {
        self.path.last().map_or(0, |step| step.raw)
    }
}

/// What is wrong within a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The image does not hold the table.
    Missing,
    /// Reserved bits are set in a present entry: the bits. The entry is taken as absent.
    Reserved(u64),
    /// The table lies on the way to itself. Not followed.
    Cycle,
    /// The table is reached too often; not followed any more.
    Repeats,
    /// The walk read as many tables as it may; the rest is not shown.
    TooLarge,
    /// Nested: the second stage does not translate the table's address.
    NotTranslated,
    /// A page table of this many levels cannot be.
    Levels(u8),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("the image does not hold this table"),
            Self::Reserved(bits) => write!(f, "reserved bits {bits:#x} are set: hardware faults here"),
            Self::Cycle => f.write_str("this table lies on the way to itself"),
            Self::Repeats => f.write_str("tables are reached again and again: not followed any more"),
            Self::TooLarge => f.write_str("more tables than are read at once: the rest is left off"),
            Self::NotTranslated => f.write_str("the second stage does not translate this table's address"),
            Self::Levels(levels) => write!(f, "no page table has {levels} levels"),
        }
    }
}

/// What a walk reports.
#[derive(Debug)]
pub enum Visit<'a> {
    /// A table is entered.
    Table {
        /// Where it is.
        at: PhysAddr,
        /// Its level.
        level: u8,
        /// First address it translates.
        iova: u64,
        /// Whether this walk was in it before.
        again: bool,
        /// The entries that lead to it, top first.
        path: &'a [Step],
    },
    /// A leaf.
    Leaf(Leaf<'a>),
    /// Something wrong.
    Problem {
        /// The table or the entry that is wrong.
        at: PhysAddr,
        /// Level of the table.
        level: u8,
        /// First address that it concerns.
        iova: u64,
        /// What is wrong.
        fault: Fault,
    },
}

/// How much a walk may do. Shared by walks, so that all of them together are bounded.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Tables that may be read.
    pub tables: u64,
    /// Tables that may be entered again.
    pub repeats: u64,
}

impl Default for Budget {
    /// Enough for 8 TiB in 4 KiB leaves.
    fn default() -> Self {
        Self { tables: 1 << 22, repeats: 1 << 12 }
    }
}

/// A table that is being gone through.
struct Open {
    at: PhysAddr,
    level: u8,
    iova: u64,
    access: Access,
    next: usize,
    words: Box<Table>,
}

/// Goes through the page table `top`. `visit` is told everything, in the order of addresses; when it breaks, so does the
/// walk. Without `hardware` reserved bits are not looked at.
pub fn walk(
    image: &dyn Image,
    top: Top,
    hardware: Option<Hardware>,
    budget: &mut Budget,
    visit: &mut dyn FnMut(Visit<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    walk_either(image, top, hardware, budget, false, visit)
}

/// The same, but leaves of 4 KiB in one table that differ in nothing but adjacent targets come as one: [`Leaf::count`]. Large
/// domains are mostly that, and then the walk costs little more than reading the tables.
pub fn walk_merged(
    image: &dyn Image,
    top: Top,
    hardware: Option<Hardware>,
    budget: &mut Budget,
    visit: &mut dyn FnMut(Visit<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    walk_either(image, top, hardware, budget, true, visit)
}

fn walk_either(
    image: &dyn Image,
    top: Top,
    hardware: Option<Hardware>,
    budget: &mut Budget,
    merge: bool,
    visit: &mut dyn FnMut(Visit<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if !(2..=MAX_LEVELS).contains(&usize::from(top.levels)) {
        return visit(Visit::Problem { at: top.table, level: 0, iova: 0, fault: Fault::Levels(top.levels) });
    }
    let mut walker = Walker { image, top, budget, seen: HashSet::new(), open: Vec::new(), path: Vec::new() };
    let root = walker.enter(top.table, top.levels - 1, 0, Access::ALL, visit);
    walker.push(root?);
    while let Some(open) = walker.open.last_mut() {
        let Some(&raw) = open.words.get(open.next) else {
            walker.open.pop();
            walker.path.pop();
            continue;
        };
        let (level, slot) = (open.level, open.next as u64);
        open.next += 1;
        let found = meaning(top.stage, raw, level);
        if found == Meaning::Absent {
            continue;
        }
        let iova = sign_extend(top, open.iova | slot << (12 + 9 * u32::from(level)));
        let at = open.at.plus(8 * slot);
        let access = open.access.and(access(top.stage, raw));
        let bits = hardware.map_or(0, |hardware| reserved(top.stage, raw, level, hardware));
        if bits != 0 {
            visit(Visit::Problem { at, level, iova, fault: Fault::Reserved(bits) })?;
            continue;
        }
        let mut count = 1;
        if merge && level == 0 {
            let run = adjacent(&open.words[slot as usize..]);
            // Targets ascend: when the last has no reserved bit set, none has.
            let last = open.words[slot as usize + run - 1];
            if hardware.is_none_or(|hardware| reserved(top.stage, last, level, hardware) == 0) {
                open.next += run - 1;
                count = run as u64;
            }
        }
        walker.path.push(Step { level, at, raw });
        match found {
            Meaning::Table(table) => {
                let entered = walker.enter(table, level.saturating_sub(1), iova, access, visit);
                walker.push(entered?);
            }
            Meaning::Leaf(target) => {
                let leaf = Leaf { iova, target, level, access, count, path: &walker.path };
                visit(Visit::Leaf(leaf))?;
                walker.path.pop();
            }
            Meaning::Absent => {}
        }
    }
    ControlFlow::Continue(())
}

/// How many of these leaves, from the first on, are the same but for targets that follow one another.
fn adjacent(words: &[u64]) -> usize {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let Some(&first) = words.first() else { return 0 };
    // Up to the last target there is: behind it the address field would run over.
    let most = usize::try_from((ADDRESS - (first & ADDRESS)) >> 12).unwrap_or(usize::MAX).saturating_add(1);
    let runs = words.windows(2).take(most - 1).take_while(|two| two[1] == two[0].wrapping_add(PAGE_SIZE));
    1 + runs.count()
}

struct Walker<'a> {
    image: &'a dyn Image,
    top: Top,
    budget: &'a mut Budget,
    seen: HashSet<u64>,
    /// One for each level that is open.
    open: Vec<Open>,
    /// The entries that lead to the innermost open table.
    path: Vec<Step>,
}

impl Walker<'_> {
    /// Reads the table at `at`, if it may and can.
    fn enter(
        &mut self,
        at: PhysAddr,
        level: u8,
        iova: u64,
        access: Access,
        visit: &mut dyn FnMut(Visit<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<(), Option<Open>> {
        let mut problem = |at, fault| {
            visit(Visit::Problem { at, level, iova, fault })?;
            ControlFlow::Continue(None)
        };
        let Some(at) = self.locate(at) else { return problem(at, Fault::NotTranslated) };
        if self.open.iter().any(|open| open.at == at) {
            return problem(at, Fault::Cycle);
        }
        let again = !self.seen.insert(at.get());
        if again && self.budget.repeats == 0 {
            return problem(at, Fault::Repeats);
        }
        if self.budget.tables == 0 {
            return problem(at, Fault::TooLarge);
        }
        self.budget.tables -= 1;
        self.budget.repeats -= u64::from(again);
        let Ok(words) = image::table(self.image, at) else { return problem(at, Fault::Missing) };
        visit(Visit::Table { at, level, iova, again, path: &self.path })?;
        ControlFlow::Continue(Some(Open { at, level, iova, access, next: 0, words }))
    }

    /// Opens what was entered. What was not takes its entry off the path again.
    fn push(&mut self, entered: Option<Open>) {
        match entered {
            Some(open) => self.open.push(open),
            None => {
                self.path.pop();
            }
        }
    }

    /// Where a table really lies: nested translation moves it.
    fn locate(&self, at: PhysAddr) -> Option<PhysAddr> {
        match self.top.through {
            None => Some(at),
            Some((table, levels)) => {
                look_up(self.image, table, levels, at.get()).map(|(target, _, _)| target)
            }
        }
    }
}

/// What the second stage makes of `address`: where it leads, what it lets pass, and how many bytes from there on stay
/// adjacent. `None` when it is not translated or the image does not hold a table on the way.
pub fn look_up(
    image: &dyn Image,
    top: PhysAddr,
    levels: u8,
    address: u64,
) -> Option<(PhysAddr, Access, u64)> {
    if !(2..=MAX_LEVELS).contains(&usize::from(levels)) || address >> (12 + 9 * u32::from(levels)) != 0 {
        return None;
    }
    let (mut table, mut passes) = (top, Access::ALL);
    for level in (0..levels).rev() {
        let raw = image::word(image, table.plus(8 * index(address, level))).ok()?;
        passes = passes.and(access(Stage::Second, raw));
        match meaning(Stage::Second, raw, level) {
            Meaning::Absent => return None,
            Meaning::Table(next) => table = next,
            Meaning::Leaf(target) => {
                let within = address & (span(level) - 1);
                return Some((target.plus(within), passes, span(level) - within));
            }
        }
    }
    None
}

/// First-stage addresses are canonical: the highest bit that the table translates fills the rest.
fn sign_extend(top: Top, iova: u64) -> u64 {
    let width = 12 + 9 * u32::from(top.levels);
    match top.stage {
        Stage::First if iova >> (width - 1) & 1 == 1 => iova | u64::MAX << width,
        _ => iova,
    }
}
