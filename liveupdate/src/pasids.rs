//! Preserving PASIDs of a requester in scalable mode, one by one: the entry, the PASID table that it lies in, and the
//! domains that it leads to, which come first.
//!
//! A requester brings the PASID of its requests without PASID with it ([`crate::requester`]); the others are preserved
//! here. A PASID that is not preserved is cut off although its requester stays.

use crate::book::{Attached, Domain, Kept, Stage, Token, first_of_table};
use crate::error::{PreserveError, UnpreserveError};
use crate::guard::Reservations;
use crate::host::{Host, MaySleep, Unit};
use crate::mode::{Context, Mode};
use crate::mutant::{self, Mutant};
use crate::outgoing::Outgoing;
use crate::roots;
use crate::staged::Staged;
use crate::walk;
use spec::scalable::{PasidEntry, PasidTranslation, ScalableContextEntry};
use spec::{DomainId, Extent, Iova, PAGE_SIZE, PhysAddr, Requester, UnitId};

/// A PASID as it was read from hardware's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PasidSlot {
    pub(crate) pasid: u32,
    /// Its PASID table.
    pub(crate) table: PhysAddr,
    pub(crate) entry: PasidEntry,
}

/// Where an entry leads: domains by their indices, and the domain id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) domain: usize,
    pub(crate) parent: Option<usize>,
    pub(crate) id: DomainId,
}

impl<H: Host> Outgoing<'_, '_, H> {
    /// Keeps one more PASID of the preserved requester under `token`: its domain (of a nested one both stages) is preserved
    /// before.
    ///
    /// # Errors
    /// [`PreserveError`]; nothing has changed then.
    pub fn preserve_pasid(
        &mut self,
        ctx: &mut MaySleep,
        token: Token,
        pasid: u32,
    ) -> Result<(), PreserveError> {
        let found = self.book.requesters.find(|k| k.token == token).map(|(i, k)| (i, *k));
        let (index, kept) = found.ok_or(PreserveError::NoRequester(token))?;
        let requester = kept.requester;
        let Context::Scalable(context) = kept.entry else {
            return Err(PreserveError::LegacyMode(requester));
        };
        if self.book.attachments_of(index).any(|(_, a)| a.pasid == pasid) {
            return Err(PreserveError::PasidTaken { requester, pasid });
        }
        let host = self.host;
        let unit = self.book.units.get(kept.unit).and_then(|u| host.unit(u.id));
        let unit = unit.ok_or(PreserveError::NoUnit(requester))?;
        let before = unit.locked(ctx, |_| read_kept(host, unit, &kept, context, pasid))?;
        let target = self.target_of(requester, before)?;
        self.check_domain_id(requester, unit.id(), target)?;
        self.check_pasid_table(kept.unit, context, before)?;
        let mut staged = Staged::new(&mut self.book);
        let mut reserved = Reservations::<H, 1>::new(host, ctx);
        staged.attachment(attached(index, kept.unit, before, target))?;
        let table = Extent::one(before.table.frame());
        if staged.pasid_run(kept.unit, context.directory(), Some(first_of_table(pasid)), table)? {
            reserved.reserve(table)?;
        }
        let check = |_: &crate::host::Atomic| match read_kept(host, unit, &kept, context, pasid) {
            Ok(now) if now == before => Ok(()),
            Ok(_) => Err(PreserveError::Changed(requester)),
            Err(e) => Err(e),
        };
        reserved.commit_under(unit, check, |_| staged.keep())
    }

    /// Takes one PASID of a requester back. That of requests without PASID goes with the requester alone.
    ///
    /// # Errors
    /// [`UnpreserveError::Unknown`], [`UnpreserveError::WithoutPasid`].
    pub fn unpreserve_pasid(
        &mut self,
        ctx: &mut MaySleep,
        token: Token,
        pasid: u32,
    ) -> Result<(), UnpreserveError> {
        let found = self.book.requesters.find(|k| k.token == token).map(|(i, k)| (i, *k));
        let (index, kept) = found.ok_or(UnpreserveError::Unknown(token))?;
        let attached = self.book.attachments_of(index).find(|(_, a)| a.pasid == pasid).map(|(i, _)| i);
        let attached = attached.ok_or(UnpreserveError::Unknown(token))?;
        if pasid == kept.rid_pasid() {
            return Err(UnpreserveError::WithoutPasid { requester: kept.requester, pasid });
        }
        self.drop_attachment(ctx, attached, &kept);
        Ok(())
    }

    /// Forgets a PASID, and its table with the last PASID there.
    pub(crate) fn drop_attachment(&mut self, ctx: &mut MaySleep, index: usize, kept: &Kept) {
        let Some(attached) = self.book.attachments.remove(index) else { return };
        let Some(directory) = kept.entry.directory() else { return };
        let first = Some(first_of_table(attached.pasid));
        let run = self.book.pasid_run(kept.unit, directory, first).map(|(i, _)| i);
        if let Some(frames) = run.and_then(|i| self.book.leave_pasid_run(i)) {
            self.host.release(ctx, frames);
        }
    }

    /// The preserved domains that a PASID entry leads to.
    pub(crate) fn target_of(
        &self,
        requester: Requester,
        PasidSlot { pasid, entry, .. }: PasidSlot,
    ) -> Result<Target, PreserveError> {
        let second = (entry.second_stage_table(), entry.second_stage_levels());
        let (domain, parent) = match entry.translation() {
            PasidTranslation::SecondStage => {
                (self.domain_at(requester, Stage::Second, None, second.0, second.1)?, None)
            }
            PasidTranslation::FirstStage => {
                let (top, levels) = (entry.first_stage_table(), entry.first_stage_levels());
                (self.domain_at(requester, Stage::First, None, top, levels)?, None)
            }
            PasidTranslation::Nested => {
                let parent = self.domain_at(requester, Stage::Second, None, second.0, second.1)?;
                let pointer = Iova::new(entry.first_stage_table().get());
                let top = walk::translate(self.host, second, pointer)?;
                let top = top.ok_or(PreserveError::BeyondParent {
                    address: pointer,
                    top_table: entry.first_stage_table(),
                })?;
                let levels = entry.first_stage_levels();
                (self.domain_at(requester, Stage::First, Some(parent), top, levels)?, Some(parent))
            }
            PasidTranslation::PassThrough => return Err(PreserveError::PassThrough(requester)),
            PasidTranslation::Reserved(translation_type) => {
                return Err(PreserveError::Unsupported { requester, translation_type });
            }
        };
        let first = entry.translation() != PasidTranslation::SecondStage;
        if first && entry.eafe() {
            return Err(PreserveError::ExtendedAccess { requester, pasid });
        }
        Ok(Target { domain, parent, id: entry.domain_id() })
    }

    /// The preserved domain with these tables.
    pub(crate) fn domain_at(
        &self,
        requester: Requester,
        stage: Stage,
        parent: Option<usize>,
        top_table: PhysAddr,
        levels: u8,
    ) -> Result<usize, PreserveError> {
        let same =
            |d: &Domain| (d.top_table, d.stage, d.levels, d.parent) == (top_table, stage, levels, parent);
        let found = self.book.domains.find(same);
        found.map(|(i, _)| i).ok_or(PreserveError::DomainNotPreserved { requester, top_table })
    }

    /// That no other preserved domain has this id on the unit, and this domain no other id (I5).
    pub(crate) fn check_domain_id(
        &self,
        requester: Requester,
        unit: UnitId,
        target: Target,
    ) -> Result<(), PreserveError> {
        let clash = self.book.attachments.find(|a| {
            let same_unit =
                self.book.units.get(a.unit).is_some_and(|u| u.id == unit) || mutant::on(Mutant::IdEverywhere);
            same_unit && ((a.domain_id == target.id) != (a.domain == target.domain))
        });
        match clash {
            Some(_) => Err(PreserveError::DomainIdClash { requester, domain_id: target.id }),
            None => Ok(()),
        }
    }

    /// That a PASID's table is the one known of its place, or nothing else yet.
    pub(crate) fn check_pasid_table(
        &self,
        unit: usize,
        context: ScalableContextEntry,
        slot: PasidSlot,
    ) -> Result<(), PreserveError> {
        let first = Some(first_of_table(slot.pasid));
        match self.book.pasid_run(unit, context.directory(), first) {
            Some((_, known)) if known.extent.start() == slot.table => Ok(()),
            Some(_) => Err(PreserveError::TableShared(slot.table)),
            None => self.check_new_place(Extent::one(slot.table.frame())),
        }
    }

    /// That frames of root, context or PASID tables are nothing else yet.
    pub(crate) fn check_new_place(&self, run: Extent) -> Result<(), PreserveError> {
        match self.book.in_the_way(run) {
            Some(_) if self.book.unit_table_in(run).is_some() => Err(PreserveError::TableShared(run.start())),
            Some(taken) => Err(PreserveError::Overlap(taken)),
            None => Ok(()),
        }
    }
}

/// The entry of the book for a PASID.
pub(crate) fn attached(requester: usize, unit: usize, slot: PasidSlot, target: Target) -> Attached {
    Attached {
        pasid: slot.pasid,
        entry: slot.entry,
        domain_id: target.id,
        requester,
        unit,
        domain: target.domain,
        parent: target.parent,
        blocked: false,
        retrieved: false,
    }
}

/// The frames of a PASID directory.
pub(crate) fn directory_frames(context: ScalableContextEntry) -> Option<Extent> {
    let bytes = (8 * context.directory_entries()).max(PAGE_SIZE);
    Extent::new(context.directory().frame(), bytes / PAGE_SIZE)
}

/// Reads a PASID's entry, which must be present.
pub(crate) fn read_pasid<H: Host>(
    host: &H,
    requester: Requester,
    context: ScalableContextEntry,
    pasid: u32,
) -> Result<PasidSlot, PreserveError> {
    let found = roots::find_pasid(host, context, pasid)?.filter(|(_, entry)| entry.present());
    let (table, entry) = found.ok_or(PreserveError::NoPasid { requester, pasid })?;
    Ok(PasidSlot { pasid, table, entry })
}

/// Reads a PASID of a preserved requester, whose context entry must be what was preserved.
fn read_kept<H: Host>(
    host: &H,
    unit: &H::Unit,
    kept: &Kept,
    context: ScalableContextEntry,
    pasid: u32,
) -> Result<PasidSlot, PreserveError> {
    let root = unit.root();
    if !unit.status().tes() || Mode::of(root) != Some(Mode::Scalable) {
        return Err(PreserveError::UnitNotTranslating(unit.id()));
    }
    match roots::find(host, Mode::Scalable, root.table(), kept.requester.source)? {
        Some((_, entry)) if entry == kept.entry => read_pasid(host, kept.requester, context, pasid),
        _ => Err(PreserveError::Changed(kept.requester)),
    }
}
