//! The outgoing side while the machine runs normally: preserve and unpreserve, each all or nothing.
//!
//! A region first, then a domain whose leaves all lie in preserved regions, then a requester attached to that domain. A
//! requester brings its unit with it; a unit is preserved once and counted.

use crate::book::{
    AliasOf, Book, ContextRun, Domain, DomainState, Kept, KeptUnit, Region, RegionKind, Storage, TableRun,
    Token,
};
use crate::error::{PreserveError, UnpreserveError};
use crate::guard::Reservations;
use crate::host::{Host, Level, MaySleep, RequesterKind, Unit};
use crate::rate::RateLimit;
use crate::roots;
use crate::walk::{self, MAX_LEVELS, MIN_LEVELS, Visit};
use spec::context::{ContextEntry, TranslationType};
use spec::{Extent, PhysAddr, Requester, SourceId, UnitId};

/// Most aliases that one requester may have.
pub const MAX_ALIASES: usize = 8;
/// A requester's own context table, one per alias, and the root table.
const MAX_FRAMES: usize = MAX_ALIASES + 2;

/// A domain to preserve, as the host knows it.
#[derive(Debug, Clone, Copy)]
pub struct DomainTablesOf<'a> {
    /// Address of the top table.
    pub top_table: PhysAddr,
    /// Levels: 3, 4 or 5.
    pub levels: u8,
    /// The runs of frames that hold its tables, where the host keeps them in arenas: preserving is then a matter of so
    /// many runs. Empty: the core finds the tables by walking.
    pub runs: &'a [Extent],
}

/// What is preserved, in a kernel that runs normally.
#[derive(Debug)]
pub struct Outgoing<'h, 's, H: Host> {
    pub(crate) host: &'h H,
    pub(crate) book: Book<'s>,
    refusals: RateLimit,
}

/// A requester as it was read from hardware's tables under the unit's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Snapshot {
    root: PhysAddr,
    entry: ContextEntry,
    sources: [Option<(SourceId, PhysAddr)>; MAX_ALIASES + 1],
}

impl<'h, 's, H: Host> Outgoing<'h, 's, H> {
    /// Nothing preserved yet; `storage` bounds how much can be.
    #[must_use]
    pub fn new(host: &'h H, storage: Storage<'s>) -> Self {
        Self { host, book: Book::new(storage), refusals: RateLimit::new() }
    }

    /// Keeps the content of memory, or declares a device range as a legal target.
    ///
    /// # Errors
    /// [`PreserveError`]; nothing has changed then.
    pub fn preserve_region(
        &mut self,
        ctx: &mut MaySleep,
        token: Token,
        extent: Extent,
        kind: RegionKind,
    ) -> Result<(), PreserveError> {
        self.check_token(token)?;
        let overlaps = |e: Extent| e.overlaps(extent);
        if self.book.regions.find(|r| overlaps(r.extent)).is_some()
            || self.book.tables.find(|t| overlaps(t.extent)).is_some()
            || self.book.contexts.find(|c| extent.contains(c.table.frame())).is_some()
            || self.book.units.find(|u| extent.contains(u.root.frame())).is_some()
        {
            return Err(PreserveError::Overlap(extent));
        }
        let index = self.book.regions.insert(Region { token, extent, kind, retrieved: false })?;
        if kind == RegionKind::Memory {
            if let Err(e) = self.host.reserve(ctx, extent) {
                self.book.regions.remove(index);
                return Err(e.into());
            }
            ctx.atomic(|atomic| self.host.commit(atomic, extent));
        }
        Ok(())
    }

    /// Takes a region back.
    ///
    /// # Errors
    /// [`UnpreserveError::RegionInUse`] while a preserved domain maps it.
    pub fn unpreserve_region(&mut self, ctx: &mut MaySleep, token: Token) -> Result<(), UnpreserveError> {
        let found = self.book.regions.find(|r| r.token == token).map(|(i, r)| (i, *r));
        let (index, region) = found.ok_or(UnpreserveError::Unknown(token))?;
        for (_, domain) in self.book.domains.iter() {
            self.check_unmapped(domain, region.extent)?;
        }
        self.book.regions.remove(index);
        if region.kind == RegionKind::Memory {
            self.host.release(ctx, region.extent);
        }
        Ok(())
    }

    /// That no leaf of `domain` points into `extent`.
    fn check_unmapped(&self, domain: &Domain, extent: Extent) -> Result<(), UnpreserveError> {
        let used = |iova| UnpreserveError::RegionInUse { domain: domain.token, iova };
        let over = |_| UnpreserveError::Unknown(domain.token);
        walk::walk(self.host, domain.top_table, domain.levels, u64::MAX, over, &mut |visit| match visit {
            Visit::Leaf(iova, target) if target.overlaps(extent) => Err(used(iova)),
            _ => Ok(()),
        })
    }

    /// Keeps a domain: its tables stay, and from now on it refuses map and unmap.
    ///
    /// # Errors
    /// [`PreserveError`]; nothing has changed then, and the domain can be mapped as before.
    pub fn preserve_domain(
        &mut self,
        ctx: &mut MaySleep,
        token: Token,
        of: DomainTablesOf<'_>,
    ) -> Result<(), PreserveError> {
        self.check_token(token)?;
        if !(MIN_LEVELS..=MAX_LEVELS).contains(&of.levels) {
            return Err(PreserveError::Levels(of.levels));
        }
        if self.book.domains.find(|d| d.top_table == of.top_table).is_some() {
            return Err(PreserveError::DomainTaken(of.top_table));
        }
        let state = DomainState::Kept;
        let index =
            self.book.domains.insert(Domain { token, top_table: of.top_table, levels: of.levels, state })?;
        // Held first: what is checked below stays true.
        self.host.hold_mappings(ctx, of.top_table, true);
        let kept = self.keep_tables(ctx, index, of);
        if kept.is_err() {
            self.drop_domain(ctx, index);
        }
        kept
    }

    /// Records and marks the tables of the domain at `index`, and checks every leaf.
    fn keep_tables(
        &mut self,
        ctx: &mut MaySleep,
        index: usize,
        of: DomainTablesOf<'_>,
    ) -> Result<(), PreserveError> {
        for run in of.runs {
            self.keep_run(ctx, index, *run)?;
        }
        let listed: u64 = of.runs.iter().map(|r| r.count()).sum();
        let budget = if of.runs.is_empty() { u64::MAX } else { listed };
        let host = self.host;
        let mut last = None;
        walk::walk(
            host,
            of.top_table,
            of.levels,
            budget,
            PreserveError::TableShared,
            &mut |visit| match visit {
                Visit::Table(at) if of.runs.is_empty() => self.keep_found(ctx, index, at),
                Visit::Table(at) if of.runs.iter().any(|r| r.contains(at.frame())) => Ok(()),
                Visit::Table(at) => Err(PreserveError::TableNotListed(at)),
                Visit::Leaf(_, target) if last.is_some_and(|e: Extent| e.covers(target)) => Ok(()),
                Visit::Leaf(iova, target) => {
                    let region = self.book.region_with(target);
                    last = Some(region.ok_or(PreserveError::LeafOutside { iova, target })?.extent);
                    Ok(())
                }
            },
        )
    }

    /// Marks a table that a walk came upon.
    fn keep_found(&mut self, ctx: &mut MaySleep, domain: usize, at: PhysAddr) -> Result<(), PreserveError> {
        let shared = self.book.tables.find(|t| t.domain == domain && t.extent.contains(at.frame())).is_some();
        if shared {
            return Err(PreserveError::TableShared(at));
        }
        self.keep_run(ctx, domain, Extent::one(at.frame()))
    }

    /// Reserves, records and commits one run of table frames.
    fn keep_run(&mut self, ctx: &mut MaySleep, domain: usize, run: Extent) -> Result<(), PreserveError> {
        let taken = self.book.tables.find(|t| t.extent.overlaps(run)).is_some()
            || self.book.regions.find(|r| r.extent.overlaps(run)).is_some();
        if taken {
            return Err(PreserveError::Overlap(run));
        }
        let index = self.book.tables.insert(TableRun { domain, extent: run })?;
        if let Err(e) = self.host.reserve(ctx, run) {
            self.book.tables.remove(index);
            return Err(e.into());
        }
        ctx.atomic(|atomic| self.host.commit(atomic, run));
        Ok(())
    }

    /// Takes a domain back: it can be mapped again.
    ///
    /// # Errors
    /// [`UnpreserveError::DomainInUse`] while a preserved requester is attached to it.
    pub fn unpreserve_domain(&mut self, ctx: &mut MaySleep, token: Token) -> Result<(), UnpreserveError> {
        let found = self.book.domains.find(|d| d.token == token).map(|(i, _)| i);
        let index = found.ok_or(UnpreserveError::Unknown(token))?;
        if let Some((_, kept)) = self.book.requesters.find(|k| k.domain == index) {
            return Err(UnpreserveError::DomainInUse(kept.requester));
        }
        self.drop_domain(ctx, index);
        Ok(())
    }

    /// Forgets the domain at `index`: exactly the runs that were recorded, whatever its tables look like today.
    fn drop_domain(&mut self, ctx: &mut MaySleep, index: usize) {
        while let Some((run_index, run)) = self.book.tables.find(|t| t.domain == index).map(|(i, t)| (i, *t))
        {
            self.book.tables.remove(run_index);
            self.host.release(ctx, run.extent);
        }
        if let Some(domain) = self.book.domains.remove(index) {
            self.host.hold_mappings(ctx, domain.top_table, false);
        }
    }

    fn check_token(&self, token: Token) -> Result<(), PreserveError> {
        if token.0 == 0 || self.book.has_token(token) {
            return Err(PreserveError::TokenTaken(token));
        }
        Ok(())
    }

    /// Keeps a requester, with all its aliases, and its unit with it.
    ///
    /// # Errors
    /// [`PreserveError`]; nothing has changed then. A requester that is no PCI function is refused with an error of its
    /// own and a message, limited in rate.
    pub fn preserve_requester(
        &mut self,
        ctx: &mut MaySleep,
        token: Token,
        requester: Requester,
    ) -> Result<(), PreserveError> {
        self.check_token(token)?;
        if self.book.owner(requester.segment, requester.source).is_some() {
            return Err(PreserveError::AlreadyPreserved(requester));
        }
        let host = self.host;
        let sources = self.sources_of(requester)?;
        let unit = host.unit_for(requester).ok_or(PreserveError::NoUnit(requester))?;
        let before = unit.locked(ctx, |_| read(host, unit, requester, &sources))?;
        let domain = self.check_domain(requester, before.entry)?;
        self.check_domain_id(requester, unit.id(), domain, before.entry)?;
        self.commit_requester(ctx, token, requester, unit, &sources, before, domain)
    }

    /// The source-ids of a requester: its own, then its aliases.
    fn sources_of(&mut self, requester: Requester) -> Result<Sources, PreserveError> {
        let mut sources = Sources::new(requester.source);
        let kind = self.host.aliases(requester, &mut |alias| sources.add(alias));
        if kind == RequesterKind::Other {
            let refused = PreserveError::NotPciFunction(requester);
            if self.refusals.allows(self.host.now()) {
                self.host.log(Level::Error, format_args!("preserve: {refused}"));
            }
            return Err(refused);
        }
        if sources.too_many {
            return Err(PreserveError::TooManyAliases { requester, limit: MAX_ALIASES });
        }
        Ok(sources)
    }

    /// The preserved domain that `entry` attaches to.
    fn check_domain(&self, requester: Requester, entry: ContextEntry) -> Result<usize, PreserveError> {
        let (top_table, levels) = (entry.top_table(), entry.levels());
        let found = self.book.domains.find(|d| d.top_table == top_table && d.levels == levels);
        found.map(|(i, _)| i).ok_or(PreserveError::DomainNotPreserved { requester, top_table })
    }

    /// That no other preserved domain has this id on the unit, and this domain no other id (I5).
    fn check_domain_id(
        &self,
        requester: Requester,
        unit: UnitId,
        domain: usize,
        entry: ContextEntry,
    ) -> Result<(), PreserveError> {
        let clash = self.book.requesters.find(|k| {
            let same_unit = self.book.units.get(k.unit).is_some_and(|u| u.id == unit);
            same_unit && ((k.entry.did() == entry.did()) != (k.domain == domain))
        });
        match clash {
            Some(_) => Err(PreserveError::DomainIdClash { requester, domain_id: entry.domain_id() }),
            None => Ok(()),
        }
    }

    /// Reserves the tables that hold the requester's entries, then records everything under the unit's lock, provided
    /// that hardware's tables still say what they said.
    #[allow(clippy::too_many_arguments)] // the parts of one transaction
    fn commit_requester(
        &mut self,
        ctx: &mut MaySleep,
        token: Token,
        requester: Requester,
        unit: &H::Unit,
        sources: &Sources,
        before: Snapshot,
        domain: usize,
    ) -> Result<(), PreserveError> {
        let host = self.host;
        let mut staged = Staged::new(&mut self.book);
        let mut reserved = Reservations::<H, MAX_FRAMES>::new(host, ctx);
        let (unit_index, new) = staged.unit(KeptUnit { id: unit.id(), root: before.root, requesters: 0 })?;
        if new {
            reserved.reserve(Extent::one(before.root.frame()))?;
        }
        let kept = Kept { token, requester, entry: before.entry, unit: unit_index, domain, retrieved: false };
        let index = staged.requester(kept)?;
        for (source, table) in before.sources.iter().flatten() {
            if staged.context(unit_index, source.bus(), *table)? {
                reserved.reserve(Extent::one(table.frame()))?;
            }
            if *source != requester.source {
                staged.alias(AliasOf { requester: index, source: *source })?;
            }
        }
        let check = |_: &crate::host::Atomic| match read(host, unit, requester, sources) {
            Ok(now) if now == before => Ok(()),
            Ok(_) => Err(PreserveError::Changed(requester)),
            Err(e) => Err(e),
        };
        reserved.commit_under(unit, check, |_| staged.keep())
    }

    /// Takes a requester back; the last one of a unit takes the unit back.
    ///
    /// # Errors
    /// [`UnpreserveError::Unknown`].
    pub fn unpreserve_requester(&mut self, ctx: &mut MaySleep, token: Token) -> Result<(), UnpreserveError> {
        let found = self.book.requesters.find(|k| k.token == token).map(|(i, k)| (i, *k));
        let (index, kept) = found.ok_or(UnpreserveError::Unknown(token))?;
        let mut buses = Sources::new(kept.requester.source);
        self.book.for_each_source(index, &mut |s| buses.add(s));
        while let Some((i, _)) = self.book.aliases.find(|a| a.requester == index) {
            self.book.aliases.remove(i);
        }
        self.book.requesters.remove(index);
        for source in buses.iter() {
            self.release_context(ctx, kept.unit, source.bus());
        }
        if let Some(unit) = self.book.units.get_mut(kept.unit) {
            unit.requesters -= 1;
            if unit.requesters == 0 {
                let root = unit.root;
                self.book.units.remove(kept.unit);
                self.host.release(ctx, Extent::one(root.frame()));
            }
        }
        Ok(())
    }

    /// One source-id less in the context table of `bus`.
    fn release_context(&mut self, ctx: &mut MaySleep, unit: usize, bus: u8) {
        let Some(index) = self.book.context_of(unit, bus).map(|(i, _)| i) else { return };
        let Some(run) = self.book.contexts.get_mut(index) else { return };
        run.users -= 1;
        if run.users == 0 {
            let table = run.table;
            self.book.contexts.remove(index);
            self.host.release(ctx, Extent::one(table.frame()));
        }
    }

    /// What is preserved, counted.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            regions: self.book.regions.len(),
            domains: self.book.domains.len(),
            requesters: self.book.requesters.len(),
            units: self.book.units.len(),
        }
    }

    /// Every preserved requester with its token and its domain's id.
    pub fn requesters(&self) -> impl Iterator<Item = &Kept> {
        self.book.requesters.iter().map(|(_, k)| k)
    }
}

/// Counts of what is preserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Regions.
    pub regions: usize,
    /// Domains.
    pub domains: usize,
    /// Requesters.
    pub requesters: usize,
    /// Units with something preserved.
    pub units: usize,
}

/// The source-ids of one requester, its own first, none twice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources {
    list: [Option<SourceId>; MAX_ALIASES + 1],
    pub(crate) too_many: bool,
}

impl Sources {
    pub(crate) fn new(own: SourceId) -> Self {
        let mut list = [None; MAX_ALIASES + 1];
        list[0] = Some(own);
        Self { list, too_many: false }
    }

    pub(crate) fn add(&mut self, source: SourceId) {
        if self.list.contains(&Some(source)) {
            return;
        }
        match self.list.iter_mut().find(|s| s.is_none()) {
            Some(slot) => *slot = Some(source),
            None => self.too_many = true,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SourceId> + '_ {
        self.list.iter().flatten().copied()
    }
}

/// Reads the entries of a requester and its aliases from hardware's tables, and refuses what cannot be preserved.
fn read<H: Host>(
    host: &H,
    unit: &H::Unit,
    requester: Requester,
    sources: &Sources,
) -> Result<Snapshot, PreserveError> {
    let root = unit.root();
    if !unit.status().tes() || root.ttm() != 0 {
        return Err(PreserveError::UnitNotTranslating(unit.id()));
    }
    let mut snapshot =
        Snapshot { root: root.table(), entry: ContextEntry::ZERO, sources: [None; MAX_ALIASES + 1] };
    for (slot, source) in snapshot.sources.iter_mut().zip(sources.iter()) {
        let found = roots::find(host, root.table(), source)?.filter(|(_, e)| e.present());
        if source == requester.source {
            let (_, entry) = found.ok_or(PreserveError::NoDomain(requester))?;
            match entry.translation_type() {
                TranslationType::SecondStage => {}
                TranslationType::PassThrough => return Err(PreserveError::PassThrough(requester)),
                _ => {
                    let translation_type = entry.tt() as u8;
                    return Err(PreserveError::Unsupported { requester, translation_type });
                }
            }
            snapshot.entry = entry;
        }
        match found {
            Some((table, entry)) if entry == snapshot.entry => *slot = Some((source, table)),
            _ => return Err(PreserveError::AliasDiffers { requester, alias: source }),
        }
    }
    Ok(snapshot)
}

/// Entries put into the book for one requester. Dropped before [`Staged::keep`], they are taken out again, last first.
struct Staged<'b, 's> {
    book: &'b mut Book<'s>,
    unit: Option<(usize, bool)>,
    requester: Option<usize>,
    contexts: [Option<usize>; MAX_ALIASES + 1],
    kept: bool,
}

impl<'b, 's> Staged<'b, 's> {
    fn new(book: &'b mut Book<'s>) -> Self {
        Self { book, unit: None, requester: None, contexts: [None; MAX_ALIASES + 1], kept: false }
    }

    /// The unit's entry, counted one higher; says whether it is new.
    fn unit(&mut self, unit: KeptUnit) -> Result<(usize, bool), PreserveError> {
        let known = self.book.units.find(|u| u.id == unit.id).map(|(i, _)| i);
        let index = match known {
            Some(index) => index,
            None => self.book.units.insert(unit)?,
        };
        if let Some(entry) = self.book.units.get_mut(index) {
            entry.requesters += 1;
        }
        self.unit = Some((index, known.is_none()));
        Ok((index, known.is_none()))
    }

    fn requester(&mut self, kept: Kept) -> Result<usize, PreserveError> {
        let index = self.book.requesters.insert(kept)?;
        self.requester = Some(index);
        Ok(index)
    }

    /// One more source-id in the context table of `bus`; says whether the table is new.
    fn context(&mut self, unit: usize, bus: u8, table: PhysAddr) -> Result<bool, PreserveError> {
        let known = self.book.context_of(unit, bus).map(|(i, _)| i);
        let index = match known {
            Some(index) => index,
            None => self.book.contexts.insert(ContextRun { unit, bus, table, users: 0 })?,
        };
        if let Some(run) = self.book.contexts.get_mut(index) {
            run.users += 1;
        }
        if let Some(slot) = self.contexts.iter_mut().find(|s| s.is_none()) {
            *slot = Some(index);
        }
        Ok(known.is_none())
    }

    fn alias(&mut self, alias: AliasOf) -> Result<(), PreserveError> {
        self.book.aliases.insert(alias)?;
        Ok(())
    }

    /// Everything stays.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Staged<'_, '_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for index in self.contexts.iter().rev().flatten() {
            let users = self.book.contexts.get_mut(*index).map(|run| {
                run.users -= 1;
                run.users
            });
            if users == Some(0) {
                self.book.contexts.remove(*index);
            }
        }
        if let Some(index) = self.requester {
            while let Some((i, _)) = self.book.aliases.find(|a| a.requester == index) {
                self.book.aliases.remove(i);
            }
            self.book.requesters.remove(index);
        }
        if let Some((index, new)) = self.unit {
            if let Some(unit) = self.book.units.get_mut(index) {
                unit.requesters -= 1;
            }
            if new {
                self.book.units.remove(index);
            }
        }
    }
}
