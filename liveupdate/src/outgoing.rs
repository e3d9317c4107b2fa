//! The outgoing side while the machine runs normally: preserve and unpreserve, each all or nothing.
//!
//! A region first, then a domain whose leaves all lie in preserved regions, then a requester attached to that domain. A
//! requester brings its unit with it; a unit is preserved once and counted.

use crate::book::{
    Attached, Book, Domain, DomainState, Kept, KeptUnit, Region, RegionKind, Stage, Storage, TableRun, Token,
};
use crate::error::{PreserveError, UnpreserveError};
use crate::host::{Host, MaySleep};
use crate::mutant::{self, Mutant};
use crate::rate::RateLimit;
use crate::walk::{self, Stray, Tree, Visit};
use spec::{Extent, PhysAddr};

/// A domain to preserve, as the host knows it.
#[derive(Debug, Clone, Copy)]
pub struct DomainTablesOf<'a> {
    /// Address of the top table. For a first stage below a second one too: a physical address.
    pub top_table: PhysAddr,
    /// Which kind of tables.
    pub stage: Stage,
    /// Levels: 3, 4 or 5; of a first stage 4 or 5.
    pub levels: u8,
    /// For a first stage below a second one (nested): the preserved domain that is the second. The tables may then be the
    /// guest's own and lie in preserved memory; who keeps them must not change them from the freeze until adoption.
    pub parent: Option<Token>,
    /// The runs of frames that hold its tables, where the host keeps them in arenas: preserving is then a matter of so
    /// many runs. Empty: the core finds the tables by walking.
    pub runs: &'a [Extent],
}

/// What is preserved, in a kernel that runs normally.
#[derive(Debug)]
pub struct Outgoing<'h, 's, H: Host> {
    pub(crate) host: &'h H,
    pub(crate) book: Book<'s>,
    pub(crate) refusals: RateLimit,
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
        if let Some(taken) = self.book.in_the_way(extent) {
            return Err(PreserveError::Overlap(taken));
        }
        self.book.regions.insert(Region::new(token, extent, kind))?;
        if kind == RegionKind::Memory {
            if let Err(e) = self.host.reserve(ctx, extent) {
                self.book.regions.retain(|r| r.token != token);
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
        let index = self.book.regions.position(|r| r.token == token);
        let region = index.and_then(|i| self.book.regions.get(i)).copied();
        let (index, region) = index.zip(region).ok_or(UnpreserveError::Unknown(token))?;
        for (i, domain) in self.book.domains.iter() {
            self.check_unmapped(i, domain, region.extent)?;
        }
        self.book.regions.remove(index);
        if region.kind == RegionKind::Memory {
            self.host.release(ctx, region.extent);
        }
        Ok(())
    }

    /// That no leaf of the domain at `index` points into `extent`.
    fn check_unmapped(&self, index: usize, domain: &Domain, extent: Extent) -> Result<(), UnpreserveError> {
        let used = |iova| UnpreserveError::RegionInUse { domain: domain.token, iova };
        let over = |_| UnpreserveError::TablesChanged(domain.token);
        if domain.parent.is_some() {
            return Ok(()); // what it reaches, its parent maps
        }
        let own = self.book.tables.iter().filter(|t| t.domain == index);
        let budget = own.map(|t| t.extent.count()).sum();
        walk::walk(self.host, self.book.tree(domain), budget, over, &mut |visit| match visit {
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
        if !of.stage.has_levels(of.levels) {
            return Err(PreserveError::Levels(of.levels));
        }
        let parent = of.parent.map(|parent| self.parent_of(of.stage, parent)).transpose()?;
        if self.book.domains.find(|d| d.top_table == of.top_table).is_some() {
            return Err(PreserveError::DomainTaken(of.top_table));
        }
        let DomainTablesOf { top_table, stage, levels, runs, .. } = of;
        let domain = Domain { token, top_table, stage, levels, parent, state: DomainState::Kept };
        let index = self.book.domains.insert(domain)?;
        // Held first: what is checked below stays true.
        self.host.hold_mappings(ctx, of.top_table, true);
        let kept = self.find_tables(index, &domain, runs).and_then(|()| self.keep_tables(ctx, index));
        if kept.is_err() {
            self.drop_domain(index);
            self.host.hold_mappings(ctx, of.top_table, false);
        }
        kept
    }

    /// The preserved domain that a first stage shall lie below.
    fn parent_of(&self, stage: Stage, token: Token) -> Result<usize, PreserveError> {
        let second = |d: &Domain| d.token == token && d.stage == Stage::Second && stage == Stage::First;
        self.book.domains.find(second).map(|(i, _)| i).ok_or(PreserveError::NoParent(token))
    }

    /// Records the runs of frames that hold the tables of the domain at `index`, and checks every leaf. Nothing is
    /// reserved yet.
    fn find_tables(&mut self, index: usize, of: &Domain, runs: &[Extent]) -> Result<(), PreserveError> {
        let before = self.book.tables.len();
        for run in runs {
            self.book.tables.push(TableRun { domain: index, extent: *run, in_region: false })?;
        }
        if runs.is_empty() {
            let found = self.walk_domain(of, walk::LARGEST_TREE, &mut |book, at| push_table(book, index, at));
            // A table that is reached twice used up the storage, perhaps: it is the better answer then.
            self.check_tables(index, before)?;
            return found;
        }
        self.check_tables(index, before)?;
        let listed = runs.iter().map(|r| r.count()).fold(0, u64::saturating_add);
        self.walk_domain(of, listed, &mut |book, at| {
            let run = book.tables.overlapping(Extent::one(at.frame())).and_then(|i| book.tables.get(i));
            let known = run.is_some_and(|run| run.domain == index);
            if known { Ok(()) } else { Err(PreserveError::TableNotListed(at)) }
        })
    }

    /// Walks a domain's tables: `table` is called for each, and leaves must lie in declared regions; those of a first stage
    /// below a second one, in what that maps.
    fn walk_domain(
        &mut self,
        of: &Domain,
        budget: u64,
        table: &mut dyn FnMut(&mut Book<'s>, PhysAddr) -> Result<(), PreserveError>,
    ) -> Result<(), PreserveError> {
        let (host, book) = (self.host, &mut self.book);
        let tree: Tree = book.tree(of);
        let mut last = None;
        let stray = |stray| match stray {
            Stray::OverBudget(at) => PreserveError::TableShared(at),
            Stray::BeyondParent(address) => PreserveError::BeyondParent { address, top_table: of.top_table },
        };
        walk::walk(host, tree, budget, stray, &mut |visit| match visit {
            Visit::Table(at) => table(book, at),
            Visit::Leaf(..) if of.parent.is_some() => Ok(()),
            Visit::Leaf(_, target) if last.is_some_and(|e: Extent| e.covers(target)) => Ok(()),
            Visit::Leaf(iova, target) => {
                let range = book.declared_around(target);
                last = Some(range.ok_or(PreserveError::LeafOutside { iova, target })?);
                Ok(())
            }
        })
    }

    /// Puts the runs of the domain at `index`, recorded from position `before` on, in order among the others. None may
    /// lie on anything else, but for a guest's own tables, which lie in its memory.
    fn check_tables(&mut self, index: usize, before: usize) -> Result<(), PreserveError> {
        let nested = self.book.domains.get(index).is_some_and(|d| d.parent.is_some());
        let apart = (before..self.book.tables.len()).try_for_each(|i| {
            let Some(extent) = self.book.tables.get(i).map(|t| t.extent) else { return Ok(()) };
            let in_region = nested && self.book.in_memory_region(extent);
            let region = self.book.regions.overlapping(extent).and_then(|i| self.book.regions.get(i));
            let region = region.map(|r| r.extent).filter(|_| !in_region);
            if let Some(taken) = region.or_else(|| self.book.unit_table_in(extent)) {
                return Err(PreserveError::Overlap(taken));
            }
            self.book.tables.get_mut(i).into_iter().for_each(|t| t.in_region = in_region);
            Ok(())
        });
        self.book.tables.sort();
        apart?;
        let Some(first) = self.book.tables.first_overlap() else { return Ok(()) };
        let (a, b) = (self.book.tables.get(first).copied(), self.book.tables.get(first + 1).copied());
        let Some((a, b)) = a.zip(b) else { return Ok(()) };
        Err(match (a.domain == index, b.domain == index) {
            (true, true) => PreserveError::TableShared(b.extent.start()),
            (true, false) => PreserveError::Overlap(b.extent),
            _ => PreserveError::Overlap(a.extent),
        })
    }

    /// Marks the runs recorded for the domain at `index`: all of them, or none.
    fn keep_tables(&mut self, ctx: &mut MaySleep, index: usize) -> Result<(), PreserveError> {
        let host = self.host;
        let mine = |t: &&TableRun| t.domain == index && !t.in_region;
        let own = || self.book.tables.iter().filter(mine).map(|t| t.extent);
        for (n, run) in own().enumerate() {
            if let Err(e) = host.reserve(ctx, run) {
                let left = own().count() - n;
                own().rev().skip(left).for_each(|run| host.release(ctx, run));
                return Err(e.into());
            }
        }
        ctx.atomic(|atomic| own().for_each(|run| host.commit(atomic, run)));
        Ok(())
    }

    /// Takes a domain back: it can be mapped again.
    ///
    /// # Errors
    /// [`UnpreserveError::DomainInUse`] while a preserved requester is attached to it, [`UnpreserveError::ParentInUse`] while
    /// another preserved domain lies below it.
    pub fn unpreserve_domain(&mut self, ctx: &mut MaySleep, token: Token) -> Result<(), UnpreserveError> {
        let found = self.book.domains.find(|d| d.token == token).map(|(i, _)| i);
        let index = found.ok_or(UnpreserveError::Unknown(token))?;
        let user = self.book.attachments.find(|a| a.uses(index));
        if let Some(kept) = user.and_then(|(_, a)| self.book.requesters.get(a.requester)) {
            return Err(UnpreserveError::DomainInUse(kept.requester));
        }
        if let Some((_, below)) = self.book.domains.find(|d| d.parent == Some(index)) {
            return Err(UnpreserveError::ParentInUse(below.token));
        }
        let host = self.host;
        if mutant::on(Mutant::UndoToday) {
            mutant::release_todays_tables(host, ctx, &mut self.book, index);
        }
        for run in self.book.tables.iter().filter(|t| t.domain == index && !t.in_region) {
            host.release(ctx, run.extent);
        }
        if let Some(domain) = self.drop_domain(index) {
            host.hold_mappings(ctx, domain.top_table, false);
        }
        Ok(())
    }

    /// Forgets the domain at `index`: exactly the runs that were recorded, whatever its tables look like today.
    fn drop_domain(&mut self, index: usize) -> Option<Domain> {
        self.book.tables.retain(|t| t.domain != index);
        self.book.domains.remove(index)
    }

    pub(crate) fn check_token(&self, token: Token) -> Result<(), PreserveError> {
        if token.0 == 0 || self.book.has_token(token) {
            return Err(PreserveError::TokenTaken(token));
        }
        Ok(())
    }

    /// What is preserved, counted.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            regions: self.book.regions.len(),
            domains: self.book.domains.len(),
            requesters: self.book.requesters.len(),
            units: self.book.units.len(),
            aliases: self.book.aliases.len(),
            pasids: self.book.attachments.len(),
            pasid_runs: self.book.pasid_runs.len(),
            context_tables: self.book.contexts.len(),
            table_runs: self.book.tables.len(),
        }
    }

    /// Every preserved region.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.book.regions.iter()
    }

    /// Every preserved domain.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.book.domains.iter().map(|(_, d)| d)
    }

    /// Every unit with something preserved behind it.
    pub fn units(&self) -> impl Iterator<Item = &KeptUnit> {
        self.book.units.iter().map(|(_, u)| u)
    }

    /// Every preserved requester with its token and its domain's id.
    pub fn requesters(&self) -> impl Iterator<Item = &Kept> {
        self.book.requesters.iter().map(|(_, k)| k)
    }

    /// Every preserved PASID of the requester under `token`; in legacy mode there is one, 0.
    pub fn pasids(&self, token: Token) -> impl Iterator<Item = &Attached> {
        let index = self.book.requesters.find(|k| k.token == token).map(|(i, _)| i);
        self.book.attachments.iter().map(|(_, a)| a).filter(move |a| Some(a.requester) == index)
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
    /// Aliases of the requesters.
    pub aliases: usize,
    /// PASIDs of the requesters; one for each requester in legacy mode.
    pub pasids: usize,
    /// PASID directories and tables.
    pub pasid_runs: usize,
    /// Context tables.
    pub context_tables: usize,
    /// Runs of frames that hold the domains' tables.
    pub table_runs: usize,
}

/// Records a table that a walk came upon, in one run with the table before it where the two touch.
fn push_table(book: &mut Book<'_>, domain: usize, at: PhysAddr) -> Result<(), PreserveError> {
    let extent = Extent::one(at.frame());
    let grown =
        book.tables.last_mut().filter(|last| last.domain == domain && last.extent.end() == at.frame());
    match grown.and_then(|last| Some((Extent::new(last.extent.first(), last.extent.count() + 1)?, last))) {
        Some((longer, last)) => last.extent = longer,
        None => book.tables.push(TableRun { domain, extent, in_region: false })?,
    }
    Ok(())
}
