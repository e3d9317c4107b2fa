//! What is preserved: the core's own record, in storage that the host gave.
//!
//! Entries refer to one another by index into their pools; regions and table runs, of which there may be many, lie in
//! lists ordered by extent, and nothing refers to them by index. The outgoing side fills the book by `preserve`, the incoming
//! side out of a handover; freeze, cut-off and adoption only read it.

use crate::list::{List, Located};
use crate::pool::Pool;
use spec::context::ContextEntry;
use spec::regs::Irta;
use spec::{Extent, PhysAddr, Requester, Segment, SourceId, UnitId};

/// The name under which the next kernel finds something. Unique among everything preserved; 64 bits, never cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl core::fmt::Display for Token {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a region is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory, whose frames are kept.
    Memory,
    /// A device's BAR: a legal target, nothing to keep.
    Device,
}

/// A preserved region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its name.
    pub token: Token,
    /// Where it lies.
    pub extent: Extent,
    /// What it is made of.
    pub kind: RegionKind,
    pub(crate) retrieved: bool,
    /// At finish: a retrieved domain maps it.
    pub(crate) mapped: bool,
}

impl Region {
    pub(crate) const fn new(token: Token, extent: Extent, kind: RegionKind) -> Self {
        Self { token, extent, kind, retrieved: false, mapped: false }
    }

    /// Whether it is memory that nobody retrieved.
    pub(crate) fn is_left(&self) -> bool {
        self.kind == RegionKind::Memory && !self.retrieved
    }
}

impl Located for Region {
    fn extent(&self) -> Extent {
        self.extent
    }
}

/// A preserved domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub token: Token,
    /// Its top table.
    pub top_table: PhysAddr,
    /// Levels of its tables: 3, 4 or 5.
    pub levels: u8,
    pub(crate) state: DomainState,
}

/// How a domain of a handover fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DomainState {
    /// Preserved here, or found in a handover and sound so far.
    Kept,
    /// Failed its checks: its requesters are blocked.
    Blocked,
    /// Taken over by the host.
    Retrieved,
}

/// A run of frames that hold a domain's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRun {
    pub(crate) domain: usize,
    /// The frames.
    pub extent: Extent,
}

impl Located for TableRun {
    fn extent(&self) -> Extent {
        self.extent
    }
}

/// A preserved requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub token: Token,
    /// Who it is.
    pub requester: Requester,
    /// Its context entry.
    pub entry: ContextEntry,
    pub(crate) unit: usize,
    pub(crate) domain: usize,
    pub(crate) retrieved: bool,
}

/// Another source-id of a preserved requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AliasOf {
    pub(crate) requester: usize,
    /// The source id, on the requester's segment.
    pub source: SourceId,
}

/// A unit with something preserved behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptUnit {
    /// Which unit.
    pub id: UnitId,
    /// Its root table.
    pub root: PhysAddr,
    /// Its interrupt remapping table; `None` when it remaps no interrupts.
    pub interrupts: Option<Irta>,
    /// How many preserved requesters it has.
    pub requesters: u32,
}

/// A context table with a preserved requester in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextRun {
    pub(crate) unit: usize,
    /// Its bus.
    pub bus: u8,
    /// Where it lies.
    pub table: PhysAddr,
    /// How many source-ids of preserved requesters lie in it.
    pub(crate) users: u32,
}

/// Storage for a book: the host decides how much may be preserved. Any content; it is emptied first.
#[derive(Debug)]
pub struct Storage<'s> {
    /// Regions.
    pub regions: &'s mut [Option<Region>],
    /// Domains.
    pub domains: &'s mut [Option<Domain>],
    /// Runs of table frames: one per arena in use, or one per stretch of frames where a host has no arenas.
    pub tables: &'s mut [Option<TableRun>],
    /// Requesters.
    pub requesters: &'s mut [Option<Kept>],
    /// Aliases of requesters.
    pub aliases: &'s mut [Option<AliasOf>],
    /// Units.
    pub units: &'s mut [Option<KeptUnit>],
    /// Context tables.
    pub contexts: &'s mut [Option<ContextRun>],
    /// Working room to sort all preserved runs: as many as regions, table runs, context tables and units (twice:
    /// interrupt tables) together, and one more.
    pub runs: &'s mut [Option<Extent>],
}

/// The book.
#[derive(Debug)]
pub(crate) struct Book<'s> {
    pub(crate) regions: List<'s, Region>,
    pub(crate) domains: Pool<'s, Domain>,
    pub(crate) tables: List<'s, TableRun>,
    pub(crate) requesters: Pool<'s, Kept>,
    pub(crate) aliases: Pool<'s, AliasOf>,
    pub(crate) units: Pool<'s, KeptUnit>,
    pub(crate) contexts: Pool<'s, ContextRun>,
    pub(crate) runs: &'s mut [Option<Extent>],
}

impl<'s> Book<'s> {
    pub(crate) fn new(storage: Storage<'s>) -> Self {
        Self {
            regions: List::new(storage.regions, "regions"),
            domains: Pool::new(storage.domains, "domains"),
            tables: List::new(storage.tables, "runs of table frames"),
            requesters: Pool::new(storage.requesters, "requesters"),
            aliases: Pool::new(storage.aliases, "aliases"),
            units: Pool::new(storage.units, "units"),
            contexts: Pool::new(storage.contexts, "context tables"),
            runs: storage.runs,
        }
    }

    /// Whether anything preserved has this name.
    pub(crate) fn has_token(&self, token: Token) -> bool {
        self.regions.position(|r| r.token == token).is_some() || self.names_user(token)
    }

    /// Whether a domain or requester has this name.
    pub(crate) fn names_user(&self, token: Token) -> bool {
        self.domains.find(|d| d.token == token).is_some()
            || self.requesters.find(|r| r.token == token).is_some()
    }

    /// Index of the region with this name, where regions are ordered by token (incoming side).
    pub(crate) fn region_named(&self, token: Token) -> Option<usize> {
        let index = self.regions.partition_point(|r| r.token < token);
        self.regions.get(index).filter(|r| r.token == token).map(|_| index)
    }

    /// The preserved requesters that own `source` on `segment`, itself or by an alias. Several may share an alias: those
    /// behind one bridge, whose domain is one too.
    pub(crate) fn owners(&self, segment: Segment, source: SourceId) -> impl Iterator<Item = &Kept> {
        let own = self.requesters.iter().map(|(_, k)| k).filter(move |k| k.requester.source == source);
        let aliases = self.aliases.iter().filter(move |(_, a)| a.source == source);
        let by_alias = aliases.filter_map(|(_, a)| self.requesters.get(a.requester));
        own.chain(by_alias).filter(move |k| k.requester.segment == segment)
    }

    /// Whether anybody preserved owns `source` on `segment`.
    pub(crate) fn is_owned(&self, segment: Segment, source: SourceId) -> bool {
        self.owners(segment, source).next().is_some()
    }

    /// Whether this very requester is preserved.
    pub(crate) fn is_kept(&self, requester: Requester) -> bool {
        self.requesters.find(|k| k.requester == requester).is_some()
    }

    /// Whether a requester of the domain at `domain` lives on the unit at `unit`.
    pub(crate) fn uses(&self, unit: usize, domain: usize) -> bool {
        self.requesters.find(|k| k.unit == unit && k.domain == domain).is_some()
    }

    /// The preserved context table of `bus` on the unit at `unit`.
    pub(crate) fn context_of(&self, unit: usize, bus: u8) -> Option<(usize, &ContextRun)> {
        self.contexts.find(|c| c.unit == unit && c.bus == bus)
    }

    /// Calls `f` with every source-id under which the requester at `index` is known: its own first.
    pub(crate) fn for_each_source(&self, index: usize, f: &mut dyn FnMut(SourceId)) {
        if let Some(kept) = self.requesters.get(index) {
            f(kept.requester.source);
        }
        for (_, alias) in self.aliases.iter().filter(|(_, a)| a.requester == index) {
            f(alias.source);
        }
    }

    /// What hardware reads or devices write and that shares a frame with `extent`.
    pub(crate) fn in_the_way(&self, extent: Extent) -> Option<Extent> {
        let region = self.regions.overlapping(extent).and_then(|i| self.regions.get(i)).map(|r| r.extent);
        let table = || self.tables.overlapping(extent).and_then(|i| self.tables.get(i)).map(|t| t.extent);
        let single = |at: PhysAddr| Extent::one(at.frame());
        let interrupts = || self.units.iter().filter_map(|(_, u)| crate::interrupts::frames(u));
        let interrupts = || interrupts().find(|frames| frames.overlaps(extent));
        region.or_else(table).or_else(|| self.single_table_in(extent).map(single)).or_else(interrupts)
    }

    /// A root or context table that lies in `extent`.
    pub(crate) fn single_table_in(&self, extent: Extent) -> Option<PhysAddr> {
        let context = self.contexts.find(|c| extent.contains(c.table.frame())).map(|(_, c)| c.table);
        context.or_else(|| self.units.find(|u| extent.contains(u.root.frame())).map(|(_, u)| u.root))
    }

    /// The declared range that `extent` lies in entirely: one region, or several of one kind that touch.
    pub(crate) fn declared_around(&self, extent: Extent) -> Option<Extent> {
        let index = self.regions.overlapping(extent)?;
        let first = *self.regions.get(index)?;
        let mut range = first.extent;
        // Each round takes in one more of the regions that `extent` itself spans.
        for next in (index + 1..).map_while(|i| self.regions.get(i)) {
            if range.end() >= extent.end() || next.extent.first() != range.end() || next.kind != first.kind {
                break;
            }
            range = Extent::new(range.first(), range.count() + next.extent.count())?;
        }
        range.covers(extent).then_some(range)
    }

    /// Collects every preserved run, and `more`, into `runs`, ascending; says how many.
    ///
    /// # Errors
    /// [`crate::error::Full`] when `runs` is too small.
    pub(crate) fn collect_runs(&mut self, more: Option<Extent>) -> Result<usize, crate::error::Full> {
        let room = self.runs.len();
        let full = crate::error::Full { what: "runs of preserved frames", capacity: room };
        let regions = self.regions.iter().filter(|r| r.kind == RegionKind::Memory).map(|r| r.extent);
        let tables = self.tables.iter().map(|t| t.extent);
        let roots = self.units.iter().map(|(_, u)| Extent::one(u.root.frame()));
        let contexts = self.contexts.iter().map(|(_, c)| Extent::one(c.table.frame()));
        let interrupts = self.units.iter().filter_map(|(_, u)| crate::interrupts::frames(u));
        let mut count = 0;
        for run in regions.chain(tables).chain(roots).chain(contexts).chain(interrupts).chain(more) {
            *self.runs.get_mut(count).ok_or(full)? = Some(run);
            count += 1;
        }
        self.runs[..count].sort_unstable();
        Ok(count)
    }
}
