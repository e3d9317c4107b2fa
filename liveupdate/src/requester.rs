//! Preserving a requester: its entry and those of its aliases, the context tables they lie in, and its unit. In scalable
//! mode also its PASID directory, and the PASID that its requests without PASID take; others follow ([`crate::pasids`]).
//!
//! The entries are read under the unit's lock, everything is looked up and reserved without it, and then recorded under
//! the lock again, provided that the entries are what they were.

use crate::book::{AliasOf, Kept, KeptUnit, Stage, Token, first_of_table};
use crate::error::{PreserveError, UnpreserveError};
use crate::guard::Reservations;
use crate::host::{DeviceTlb, Host, Level, MaySleep, RequesterKind, Unit};
use crate::mode::{Context, Mode};
use crate::outgoing::Outgoing;
use crate::pasids::{self, PasidSlot, Target};
use crate::roots;
use crate::staged::Staged;
use spec::context::{ContextEntry, TranslationType};
use spec::scalable::{PasidEntry, ScalableContextEntry};
use spec::{Extent, PhysAddr, Requester, SourceId, UnitId};

/// Most aliases that one requester may have.
pub const MAX_ALIASES: usize = 8;
/// A requester's own context table, one per alias, the root table, a PASID directory and a PASID table.
const MAX_RUNS: usize = MAX_ALIASES + 4;

/// A requester as it was read from hardware's tables under the unit's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Snapshot {
    root: PhysAddr,
    mode: Mode,
    entry: Context,
    sources: [Option<(SourceId, PhysAddr)>; MAX_ALIASES + 1],
    /// What is known of its device, when its entry lets that keep translations.
    device_tlb: Option<DeviceTlb>,
    /// In scalable mode, where its requests without PASID go.
    pasid: Option<(ScalableContextEntry, PasidSlot)>,
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
        let target = self.check_domain(requester, &before)?;
        let taken =
            |s: &SourceId| self.book.owners(requester.segment, *s).any(|(_, k)| k.domain != target.domain);
        if let Some(alias) = sources.iter().find(taken) {
            return Err(PreserveError::AliasTaken { requester, alias });
        }
        self.check_places(unit.id(), requester, &before)?;
        self.check_domain_id(requester, unit.id(), target)?;
        let interrupts = self.keep_interrupts(ctx, unit)?;
        let done = self.commit_requester(ctx, token, requester, unit, &sources, before, target);
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

    /// The preserved domain that requests without PASID lead to.
    fn check_domain(&self, requester: Requester, before: &Snapshot) -> Result<Target, PreserveError> {
        match (before.entry, before.pasid) {
            (_, Some((_, slot))) => self.target_of(requester, slot),
            (Context::Legacy(entry), None) => {
                let (top_table, levels) = (entry.top_table(), entry.levels());
                let domain = self.domain_at(requester, Stage::Second, None, top_table, levels)?;
                Ok(Target { domain, parent: None, id: entry.domain_id() })
            }
            (Context::Scalable(_), None) => Err(PreserveError::NoDomain(requester)),
        }
    }

    /// That root, context and PASID tables are those known of the unit, lie in no preserved region or domain, and are
    /// nobody else's.
    fn check_places(
        &self,
        unit: UnitId,
        requester: Requester,
        before: &Snapshot,
    ) -> Result<(), PreserveError> {
        let index = match self.book.units.find(|u| u.id == unit) {
            Some((_, known)) if (known.root, known.mode) != (before.root, before.mode) => {
                return Err(PreserveError::Changed(requester));
            }
            Some((index, _)) => Some(index),
            None => {
                self.check_new_place(Extent::one(before.root.frame()))?;
                None
            }
        };
        let place = |source| before.mode.place(source);
        for (n, (source, table)) in before.sources.iter().flatten().enumerate() {
            let mut earlier = before.sources.iter().flatten().take(n);
            if *table == before.root || earlier.any(|(s, t)| t == table && place(*s) != place(*source)) {
                return Err(PreserveError::TableShared(*table));
            }
            match index.and_then(|i| self.book.context_of(i, place(*source))) {
                Some((_, known)) if known.table != *table => return Err(PreserveError::Changed(requester)),
                Some(_) => {}
                None => self.check_new_place(Extent::one(table.frame()))?,
            }
        }
        match before.pasid {
            Some((context, slot)) => self.check_pasid_places(index, before, context, slot),
            None => Ok(()),
        }
    }

    /// The same for the PASID directory and the table of requests without PASID. A directory has several requesters only
    /// where their context entries are the same.
    fn check_pasid_places(
        &self,
        unit: Option<usize>,
        before: &Snapshot,
        context: ScalableContextEntry,
        slot: PasidSlot,
    ) -> Result<(), PreserveError> {
        let frames = directory_frames(context)?;
        let tables = || before.sources.iter().flatten().map(|(_, table)| *table);
        let mut own = tables().chain([before.root]);
        if let Some(at) = own.find(|at| frames.contains(at.frame()) || *at == slot.table) {
            return Err(PreserveError::TableShared(at));
        }
        if frames.contains(slot.table.frame()) {
            return Err(PreserveError::TableShared(slot.table));
        }
        let known = unit.and_then(|u| Some((u, self.book.pasid_run(u, context.directory(), None)?.1)));
        match known {
            Some((unit, run)) if self.book.context_to(run) == Some(context) => {
                self.check_pasid_table(unit, context, slot)
            }
            Some(_) => Err(PreserveError::TableShared(context.directory())),
            None => {
                self.check_new_place(frames)?;
                self.check_new_place(Extent::one(slot.table.frame()))
            }
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
        target: Target,
    ) -> Result<(), PreserveError> {
        let host = self.host;
        let mut staged = Staged::new(&mut self.book);
        let mut reserved = Reservations::<H, MAX_RUNS>::new(host, ctx);
        let Snapshot { root, mode, entry, .. } = before;
        let kept = KeptUnit { id: unit.id(), root, mode, interrupts: None, requesters: 0 };
        let (unit_index, new) = staged.unit(kept)?;
        if new {
            reserved.reserve(Extent::one(root.frame()))?;
        }
        let (domain, domain_id) = (target.domain, target.id);
        let unit_and_domain = (unit_index, domain);
        let kept = Kept::new(token, requester, entry, domain_id, unit_and_domain, before.device_tlb);
        let index = staged.requester(kept)?;
        let without_pasid = PasidSlot { pasid: 0, table: PhysAddr::new(0), entry: PasidEntry::ZERO };
        let slot = before.pasid.map_or(without_pasid, |(_, slot)| slot);
        staged.attachment(pasids::attached(index, unit_index, slot, target))?;
        for (source, table) in before.sources.iter().flatten() {
            if staged.context(unit_index, mode.place(*source), *table)? {
                reserved.reserve(Extent::one(table.frame()))?;
            }
            if *source != requester.source {
                staged.alias(AliasOf { requester: index, source: *source })?;
            }
        }
        if let Some((context, slot)) = before.pasid {
            let table = Extent::one(slot.table.frame());
            let runs = [(None, directory_frames(context)?), (Some(first_of_table(slot.pasid)), table)];
            for (first_pasid, run) in runs {
                if staged.pasid_run(unit_index, context.directory(), first_pasid, run)? {
                    reserved.reserve(run)?;
                }
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
        let mut sources = Sources::new(kept.requester.source);
        self.book.for_each_source(index, &mut |s| sources.add(s));
        while let Some((i, _)) = self.book.attachments.find(|a| a.requester == index) {
            self.drop_attachment(ctx, i, &kept);
        }
        while let Some((i, _)) = self.book.aliases.find(|a| a.requester == index) {
            self.book.aliases.remove(i);
        }
        self.book.requesters.remove(index);
        let directory = kept.entry.directory().and_then(|at| self.book.pasid_run(kept.unit, at, None));
        if let Some(frames) = directory.map(|(i, _)| i).and_then(|i| self.book.leave_pasid_run(i)) {
            self.host.release(ctx, frames);
        }
        for source in sources.iter() {
            let table = self.book.context_for(kept.unit, source).map(|(i, _)| i);
            if let Some(frame) = table.and_then(|i| self.book.leave_context(i)) {
                self.host.release(ctx, frame);
            }
        }
        let interrupts = self.book.units.get(kept.unit).and_then(|u| u.interrupts);
        if let Some(frame) = self.book.leave_unit(kept.unit) {
            self.host.release(ctx, frame);
            self.drop_interrupts(ctx, interrupts);
        }
        Ok(())
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
    let mode = Mode::of(unit.root()).filter(|_| unit.status().tes());
    let mode = mode.ok_or(PreserveError::UnitNotTranslating(unit.id()))?;
    let root = unit.root().table();
    let entry = Context::from_raw(mode, [0; 4]);
    let mut snapshot =
        Snapshot { root, mode, entry, sources: [None; MAX_ALIASES + 1], device_tlb: None, pasid: None };
    for (slot, source) in snapshot.sources.iter_mut().zip(sources.iter()) {
        let found = roots::find(host, mode, root, source)?.filter(|(_, e)| e.present());
        if source == requester.source {
            let (_, entry) = found.ok_or(PreserveError::NoDomain(requester))?;
            snapshot.pasid = match entry {
                Context::Legacy(entry) => check_legacy(requester, entry).map(|()| None)?,
                Context::Scalable(entry) => Some((entry, without_pasid(host, requester, entry)?)),
            };
            snapshot.entry = entry;
            if entry.allows_device_tlb() {
                let known = host.device_tlb(requester).filter(|_| sources.iter().count() == 1);
                snapshot.device_tlb = Some(known.ok_or(PreserveError::DeviceTlb(requester))?);
            }
        }
        match found {
            Some((table, entry)) if entry == snapshot.entry => *slot = Some((source, table)),
            _ => return Err(PreserveError::AliasDiffers { requester, alias: source }),
        }
    }
    Ok(snapshot)
}

/// That a legacy context entry is one that can be preserved.
fn check_legacy(requester: Requester, entry: ContextEntry) -> Result<(), PreserveError> {
    match entry.translation_type() {
        TranslationType::SecondStage | TranslationType::SecondStageDeviceTlb => Ok(()),
        TranslationType::PassThrough => Err(PreserveError::PassThrough(requester)),
        TranslationType::Reserved => {
            Err(PreserveError::Unsupported { requester, translation_type: entry.tt() as u8 })
        }
    }
}

/// Where requests without PASID go, if the context entry is one that can be preserved.
fn without_pasid<H: Host>(
    host: &H,
    requester: Requester,
    entry: ScalableContextEntry,
) -> Result<PasidSlot, PreserveError> {
    if entry.pre() && host.page_requests().is_none() {
        return Err(PreserveError::PageRequests(requester));
    }
    pasids::read_pasid(host, requester, entry, entry.rid_pasid() as u32)
}

/// The frames of a PASID directory.
fn directory_frames(context: ScalableContextEntry) -> Result<Extent, PreserveError> {
    pasids::directory_frames(context).ok_or(PreserveError::TableShared(context.directory()))
}
