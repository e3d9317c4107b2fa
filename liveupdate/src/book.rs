//! What is preserved: the core's own record, in storage that the host gave.
//!
//! Entries refer to one another by index into their pools; regions and table runs, of which there may be many, lie in
//! lists ordered by extent, and nothing refers to them by index. The outgoing side fills the book by `preserve`, the incoming
//! side out of a handover; freeze, cut-off and adoption only read it.

use crate::host::DeviceTlb;
use crate::list::{List, Located};
use crate::mode::{Context, Mode, Place};
use crate::pool::Pool;
use crate::walk::Tree;
use spec::regs::Irta;
use spec::scalable::{PASID_TABLE_ENTRIES, PasidEntry, table_index};
use spec::{DomainId, Extent, PhysAddr, Requester, Segment, SourceId, UnitId};

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

/// Which kind of tables a domain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Second-stage tables (VT-d 9.8), of 3 to 5 levels.
    Second,
    /// First-stage tables (VT-d 9.7), of 4 or 5 levels. Only in scalable mode.
    First,
}

/// A preserved domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub token: Token,
    /// Its top table.
    pub top_table: PhysAddr,
    /// Which kind of tables it has.
    pub stage: Stage,
    /// Levels of its tables: 3, 4 or 5.
    pub levels: u8,
    /// The second stage that its tables lie below (nested): what they point with are addresses of that domain.
    pub(crate) parent: Option<usize>,
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
    /// The frames are part of a preserved region: a guest's own tables, in its memory.
    pub(crate) in_region: bool,
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
    pub entry: Context,
    /// Id of the domain of its requests without PASID.
    pub domain_id: DomainId,
    pub(crate) unit: usize,
    /// The domain of its requests without PASID.
    pub(crate) domain: usize,
    /// What is known of its device, when its entry lets that keep translations.
    pub device_tlb: Option<DeviceTlb>,
    /// Its device asked for pages until the freeze, which stopped that.
    pub page_requests: bool,
    pub(crate) retrieved: bool,
}

impl Kept {
    /// A requester with its `(unit, domain)`, not retrieved.
    pub(crate) const fn new(
        token: Token,
        requester: Requester,
        entry: Context,
        domain_id: DomainId,
        (unit, domain): (usize, usize),
        device_tlb: Option<DeviceTlb>,
    ) -> Self {
        let (page_requests, retrieved) = (false, false);
        Self { token, requester, entry, domain_id, unit, domain, device_tlb, page_requests, retrieved }
    }

    /// The PASID that its requests without PASID take; 0 in legacy mode.
    #[must_use]
    pub const fn rid_pasid(&self) -> u32 {
        match self.entry {
            Context::Legacy(_) => 0,
            Context::Scalable(entry) => entry.rid_pasid() as u32,
        }
    }

    /// Whether it has the same PASID directory as `other`, or is `other` itself.
    pub(crate) fn shares(&self, other: &Self) -> bool {
        let same = self.entry.directory().is_some() && self.entry.directory() == other.entry.directory();
        self.requester == other.requester || (same && self.unit == other.unit)
    }
}

/// One PASID of a preserved requester, and the domain that it leads to. In legacy mode a requester has one, PASID 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The PASID.
    pub pasid: u32,
    /// Its PASID entry; zero in legacy mode.
    pub entry: PasidEntry,
    /// The domain id in the entry.
    pub domain_id: DomainId,
    pub(crate) requester: usize,
    pub(crate) unit: usize,
    /// The domain whose tables the entry leads to; of a nested entry, that of the first stage.
    pub(crate) domain: usize,
    /// Of a nested entry, the domain of the second stage.
    pub(crate) parent: Option<usize>,
    /// At adoption: it failed its checks, or its requester did.
    pub(crate) blocked: bool,
    pub(crate) retrieved: bool,
}

impl Attached {
    /// Whether hardware walks tables of the domain at `domain` for it.
    pub(crate) fn uses(&self, domain: usize) -> bool {
        self.domain == domain || self.parent == Some(domain)
    }
}

/// A PASID directory or PASID table with a preserved PASID in it. Requesters that share an alias share theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasidRun {
    pub(crate) unit: usize,
    /// The directory, also of a table.
    pub(crate) directory: PhysAddr,
    /// The first PASID of a table; none for the directory.
    pub(crate) first_pasid: Option<u32>,
    /// The frames.
    pub extent: Extent,
    /// Outgoing: preserved requesters of the directory, or preserved PASIDs in the table. Incoming: how often it is listed.
    pub(crate) users: u32,
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
    /// The mode that it runs in.
    pub mode: Mode,
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
    /// 0 for the lower half of the bus, and in legacy mode for all of it; 1 for the upper half.
    pub half: u8,
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
    /// PASIDs of requesters: at least one for each requester, also in legacy mode.
    pub attachments: &'s mut [Option<Attached>],
    /// PASID directories and tables; none are needed in legacy mode.
    pub pasid_runs: &'s mut [Option<PasidRun>],
    /// Aliases of requesters.
    pub aliases: &'s mut [Option<AliasOf>],
    /// Units.
    pub units: &'s mut [Option<KeptUnit>],
    /// Context tables.
    pub contexts: &'s mut [Option<ContextRun>],
    /// Working room to sort all preserved runs: as many as regions, table runs, PASID structures, context tables and units
    /// (twice: interrupt tables) together, and one more.
    pub runs: &'s mut [Option<Extent>],
}

/// Some of the PASIDs of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PasidSet(u64);

impl PasidSet {
    /// Whether `pasid`, which is one of the table, is among them.
    pub(crate) const fn contains(self, pasid: u32) -> bool {
        self.0 >> table_index(pasid) & 1 == 1
    }

    /// Whether none is.
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The book.
#[derive(Debug)]
pub(crate) struct Book<'s> {
    pub(crate) regions: List<'s, Region>,
    pub(crate) domains: Pool<'s, Domain>,
    pub(crate) tables: List<'s, TableRun>,
    pub(crate) requesters: Pool<'s, Kept>,
    pub(crate) attachments: Pool<'s, Attached>,
    pub(crate) pasid_runs: Pool<'s, PasidRun>,
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
            attachments: Pool::new(storage.attachments, "PASIDs of requesters"),
            pasid_runs: Pool::new(storage.pasid_runs, "PASID directories and tables"),
            aliases: Pool::new(storage.aliases, "aliases"),
            units: Pool::new(storage.units, "units"),
            contexts: Pool::new(storage.contexts, "context tables"),
            runs: storage.runs,
        }
    }

    /// The tables of a domain, for a walk.
    pub(crate) fn tree(&self, domain: &Domain) -> Tree {
        let parent = domain.parent.and_then(|i| self.domains.get(i)).map(|p| (p.top_table, p.levels));
        Tree { parent, ..Tree::alone(domain) }
    }

    /// Whether `extent` lies in preserved memory entirely.
    pub(crate) fn in_memory_region(&self, extent: Extent) -> bool {
        let first = self.regions.overlapping(extent).and_then(|i| self.regions.get(i));
        first.is_some_and(|r| r.kind == RegionKind::Memory) && self.declared_around(extent).is_some()
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

    /// The preserved requesters that own `source` on `segment`, itself or by an alias, with their indices. Several may share
    /// an alias: those behind one bridge, whose entry is one too.
    pub(crate) fn owners(&self, segment: Segment, source: SourceId) -> impl Iterator<Item = (usize, &Kept)> {
        let own = self.requesters.iter().filter(move |(_, k)| k.requester.source == source);
        let aliases = self.aliases.iter().filter(move |(_, a)| a.source == source);
        let by_alias = aliases.filter_map(|(_, a)| Some((a.requester, self.requesters.get(a.requester)?)));
        own.chain(by_alias).filter(move |(_, k)| k.requester.segment == segment)
    }

    /// Whether anybody preserved owns `source` on `segment`.
    pub(crate) fn is_owned(&self, segment: Segment, source: SourceId) -> bool {
        self.owners(segment, source).next().is_some()
    }

    /// Whether this very requester is preserved.
    pub(crate) fn is_kept(&self, requester: Requester) -> bool {
        self.requesters.find(|k| k.requester == requester).is_some()
    }

    /// Whether hardware walks tables of the domain at `domain` for a requester of the unit at `unit`.
    pub(crate) fn uses(&self, unit: usize, domain: usize) -> bool {
        self.attachments.find(|a| a.unit == unit && a.uses(domain)).is_some()
    }

    /// The preserved context table of `place` on the unit at `unit`.
    pub(crate) fn context_of(&self, unit: usize, place: Place) -> Option<(usize, &ContextRun)> {
        self.contexts.find(|c| c.unit == unit && (c.bus, c.half) == (place.bus, place.half))
    }

    /// The preserved context table that a source-id's entry lies in, on the unit at `unit`.
    pub(crate) fn context_for(&self, unit: usize, source: SourceId) -> Option<(usize, &ContextRun)> {
        let mode = self.units.get(unit)?.mode;
        self.context_of(unit, mode.place(source))
    }

    /// The PASIDs of the requester at `index`.
    pub(crate) fn attachments_of(&self, index: usize) -> impl Iterator<Item = (usize, &Attached)> {
        self.attachments.iter().filter(move |(_, a)| a.requester == index)
    }

    /// The PASIDs that are preserved in the directory at `directory` on the unit at `unit`, of whichever requester.
    pub(crate) fn attachments_in(&self, unit: usize, directory: PhysAddr) -> impl Iterator<Item = &Attached> {
        let owner = move |a: &Attached| self.requesters.get(a.requester).and_then(|k| k.entry.directory());
        let own = self.attachments.iter().map(|(_, a)| a).filter(move |a| a.unit == unit);
        own.filter(move |a| owner(a) == Some(directory))
    }

    /// The preserved PASIDs of the table at `index` of a directory that `keep` takes, a bit each.
    pub(crate) fn pasids_in_table(
        &self,
        unit: usize,
        directory: PhysAddr,
        index: u64,
        keep: impl Fn(&Attached) -> bool,
    ) -> PasidSet {
        let here = |a: &&Attached| u64::from(a.pasid) / PASID_TABLE_ENTRIES == index && keep(a);
        let kept = self.attachments_in(unit, directory).filter(here);
        PasidSet(kept.fold(0, |bits, a| bits | 1 << table_index(a.pasid)))
    }

    /// The preserved PASID directory (`first_pasid` none) or PASID table, on the unit at `unit`.
    pub(crate) fn pasid_run(
        &self,
        unit: usize,
        directory: PhysAddr,
        first_pasid: Option<u32>,
    ) -> Option<(usize, &PasidRun)> {
        let same = |r: &PasidRun| (r.unit, r.directory, r.first_pasid) == (unit, directory, first_pasid);
        self.pasid_runs.find(same)
    }

    /// The context entry that leads to a preserved PASID directory: that of its requesters.
    pub(crate) fn context_to(&self, run: &PasidRun) -> Option<spec::scalable::ScalableContextEntry> {
        let user = |k: &Kept| k.unit == run.unit && k.entry.directory() == Some(run.directory);
        match self.requesters.find(user)?.1.entry {
            Context::Scalable(entry) => Some(entry),
            Context::Legacy(_) => None,
        }
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
        let interrupts = || self.units.iter().filter_map(|(_, u)| crate::interrupts::frames(u));
        let interrupts = || interrupts().find(|frames| frames.overlaps(extent));
        region.or_else(table).or_else(|| self.unit_table_in(extent)).or_else(interrupts)
    }

    /// A root, context or PASID table or PASID directory that shares a frame with `extent`.
    pub(crate) fn unit_table_in(&self, extent: Extent) -> Option<Extent> {
        let context = self.contexts.find(|c| extent.contains(c.table.frame())).map(|(_, c)| c.table);
        let single =
            context.or_else(|| self.units.find(|u| extent.contains(u.root.frame())).map(|(_, u)| u.root));
        let pasids = || self.pasid_runs.find(|r| r.extent.overlaps(extent)).map(|(_, r)| r.extent);
        single.map(|at| Extent::one(at.frame())).or_else(pasids)
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
        let tables = self.tables.iter().filter(|t| !t.in_region).map(|t| t.extent);
        let pasids = self.pasid_runs.iter().map(|(_, r)| r.extent);
        let roots = self.units.iter().map(|(_, u)| Extent::one(u.root.frame()));
        let contexts = self.contexts.iter().map(|(_, c)| Extent::one(c.table.frame()));
        let interrupts = self.units.iter().filter_map(|(_, u)| crate::interrupts::frames(u));
        let mut count = 0;
        let of_units = roots.chain(contexts).chain(pasids).chain(interrupts);
        for run in regions.chain(tables).chain(of_units).chain(more) {
            *self.runs.get_mut(count).ok_or(full)? = Some(run);
            count += 1;
        }
        self.runs[..count].sort_unstable();
        Ok(count)
    }
}

/// The first PASID of the PASID table that holds `pasid`.
pub(crate) const fn first_of_table(pasid: u32) -> u32 {
    pasid - pasid % PASID_TABLE_ENTRIES as u32
}
