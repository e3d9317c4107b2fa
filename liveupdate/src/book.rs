//! What is preserved: the core's own record, in storage that the host gave.
//!
//! Entries refer to one another by index into their pools. The outgoing side fills the book by `preserve`, the incoming
//! side out of a handover; freeze, cut-off and adoption only read it.

use crate::pool::Pool;
use spec::context::ContextEntry;
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
    /// Working room to sort all preserved runs: as many as regions, table runs, context tables and units together, and
    /// one more.
    pub runs: &'s mut [Option<Extent>],
}

/// The book.
#[derive(Debug)]
pub(crate) struct Book<'s> {
    pub(crate) regions: Pool<'s, Region>,
    pub(crate) domains: Pool<'s, Domain>,
    pub(crate) tables: Pool<'s, TableRun>,
    pub(crate) requesters: Pool<'s, Kept>,
    pub(crate) aliases: Pool<'s, AliasOf>,
    pub(crate) units: Pool<'s, KeptUnit>,
    pub(crate) contexts: Pool<'s, ContextRun>,
    pub(crate) runs: &'s mut [Option<Extent>],
}

impl<'s> Book<'s> {
    pub(crate) fn new(storage: Storage<'s>) -> Self {
        Self {
            regions: Pool::new(storage.regions, "regions"),
            domains: Pool::new(storage.domains, "domains"),
            tables: Pool::new(storage.tables, "runs of table frames"),
            requesters: Pool::new(storage.requesters, "requesters"),
            aliases: Pool::new(storage.aliases, "aliases"),
            units: Pool::new(storage.units, "units"),
            contexts: Pool::new(storage.contexts, "context tables"),
            runs: storage.runs,
        }
    }

    /// Whether anything preserved has this name.
    pub(crate) fn has_token(&self, token: Token) -> bool {
        self.regions.find(|r| r.token == token).is_some()
            || self.domains.find(|d| d.token == token).is_some()
            || self.requesters.find(|r| r.token == token).is_some()
    }

    /// The preserved requester that owns `source` on `segment`, itself or by an alias.
    pub(crate) fn owner(&self, segment: Segment, source: SourceId) -> Option<&Kept> {
        let direct = self.requesters.find(|k| k.requester == Requester::new(segment, source));
        if let Some((_, kept)) = direct {
            return Some(kept);
        }
        self.aliases
            .iter()
            .filter(|(_, a)| a.source == source)
            .find_map(|(_, a)| self.requesters.get(a.requester).filter(|k| k.requester.segment == segment))
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

    /// The memory region that `extent` lies in entirely, device ranges included.
    pub(crate) fn region_with(&self, extent: Extent) -> Option<&Region> {
        self.regions.find(|r| r.extent.covers(extent)).map(|(_, r)| r)
    }

    /// Collects every preserved run (not the container's) into `runs`, sorted ascending; says how many.
    ///
    /// # Errors
    /// [`crate::error::Full`] when `runs` is too small.
    pub(crate) fn collect_runs(&mut self, more: Option<Extent>) -> Result<usize, crate::error::Full> {
        let room = self.runs.len();
        let full = crate::error::Full { what: "runs of preserved frames", capacity: room };
        let regions =
            self.regions.iter().filter(|(_, r)| r.kind == RegionKind::Memory).map(|(_, r)| r.extent);
        let tables = self.tables.iter().map(|(_, t)| t.extent);
        let roots = self.units.iter().map(|(_, u)| Extent::one(u.root.frame()));
        let contexts = self.contexts.iter().map(|(_, c)| Extent::one(c.table.frame()));
        let mut count = 0;
        for run in regions.chain(tables).chain(roots).chain(contexts).chain(more) {
            *self.runs.get_mut(count).ok_or(full)? = Some(run);
            count += 1;
        }
        self.runs[..count].sort_unstable();
        Ok(count)
    }
}
