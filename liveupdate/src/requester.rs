//! Preserving a requester: its entry and those of its aliases, the context tables they lie in, and its unit.
//!
//! The entries are read under the unit's lock, everything is looked up and reserved without it, and then recorded under
//! the lock again, provided that the entries are what they were.

use crate::book::{AliasOf, Book, ContextRun, Kept, KeptUnit, Token};
use crate::error::{PreserveError, UnpreserveError};
use crate::guard::Reservations;
use crate::host::{Host, Level, MaySleep, RequesterKind, Unit};
use crate::outgoing::Outgoing;
use crate::roots;
use spec::context::{ContextEntry, TranslationType};
use spec::{Extent, PhysAddr, Requester, SourceId, UnitId};

/// Most aliases that one requester may have.
pub const MAX_ALIASES: usize = 8;
/// A requester's own context table, one per alias, and the root table.
const MAX_FRAMES: usize = MAX_ALIASES + 2;

/// A requester as it was read from hardware's tables under the unit's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Snapshot {
    root: PhysAddr,
    entry: ContextEntry,
    sources: [Option<(SourceId, PhysAddr)>; MAX_ALIASES + 1],
}

impl<H: Host> Outgoing<'_, '_, H> {
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
        if self.book.is_kept(requester) {
            return Err(PreserveError::AlreadyPreserved(requester));
        }
        let host = self.host;
        let sources = self.sources_of(requester)?;
        let unit = host.unit_for(requester).ok_or(PreserveError::NoUnit(requester))?;
        let before = unit.locked(ctx, |_| read(host, unit, requester, &sources))?;
        let domain = self.check_domain(requester, before.entry)?;
        let taken = |s: &SourceId| self.book.owners(requester.segment, *s).any(|k| k.domain != domain);
        if let Some(alias) = sources.iter().find(taken) {
            return Err(PreserveError::AliasTaken { requester, alias });
        }
        self.check_places(unit.id(), requester, &before)?;
        self.check_domain_id(requester, unit.id(), domain, before.entry)?;
        let interrupts = self.keep_interrupts(ctx, unit)?;
        let done = self.commit_requester(ctx, token, requester, unit, &sources, before, domain);
        match done {
            Ok(()) => self.note_interrupts(unit.id(), interrupts),
            Err(_) => self.drop_interrupts(ctx, interrupts),
        }
        done
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

    /// That root and context tables are those known of the unit, lie in no preserved region or domain, and are nobody
    /// else's.
    fn check_places(
        &self,
        unit: UnitId,
        requester: Requester,
        before: &Snapshot,
    ) -> Result<(), PreserveError> {
        let index = match self.book.units.find(|u| u.id == unit) {
            Some((_, known)) if known.root != before.root => return Err(PreserveError::Changed(requester)),
            Some((index, _)) => Some(index),
            None => {
                self.check_new_place(before.root)?;
                None
            }
        };
        for (n, (source, table)) in before.sources.iter().flatten().enumerate() {
            let mut earlier = before.sources.iter().flatten().take(n);
            if *table == before.root || earlier.any(|(s, t)| t == table && s.bus() != source.bus()) {
                return Err(PreserveError::TableShared(*table));
            }
            match index.and_then(|i| self.book.context_of(i, source.bus())) {
                Some((_, known)) if known.table != *table => return Err(PreserveError::Changed(requester)),
                Some(_) => {}
                None => self.check_new_place(*table)?,
            }
        }
        Ok(())
    }

    /// That the frame of a root or context table is nothing else yet.
    fn check_new_place(&self, table: PhysAddr) -> Result<(), PreserveError> {
        let run = Extent::one(table.frame());
        match self.book.in_the_way(run) {
            Some(_) if self.book.single_table_in(run).is_some() => Err(PreserveError::TableShared(table)),
            Some(taken) => Err(PreserveError::Overlap(taken)),
            None => Ok(()),
        }
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
        let (unit_index, new) =
            staged.unit(KeptUnit { id: unit.id(), root: before.root, interrupts: None, requesters: 0 })?;
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
                let (root, interrupts) = (unit.root, unit.interrupts);
                self.book.units.remove(kept.unit);
                self.host.release(ctx, Extent::one(root.frame()));
                self.drop_interrupts(ctx, interrupts);
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
