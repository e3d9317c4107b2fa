//! PASID structures and PASIDs of requesters, out of their records into the book.
//!
//! Requesters that share an alias share a directory, and list all of it each: the book has it once.

use super::records::Body;
use super::{OpenError, Opened};
use crate::book::{Attached, Domain, Kept, PasidRun, Stage, first_of_table};
use crate::mode::Context;
use crate::pasids::directory_frames;
use spec::handover::{self, pasid_tables_kind};
use spec::scalable::{PASIDS, PasidEntry, PasidTranslation, ScalableContextEntry, directory_index};
use spec::{PAGE_SIZE, PhysAddr};

impl Opened<'_> {
    /// The requester at `ordinal`, which must be in scalable mode.
    fn scalable(&self, body: &Body, ordinal: u32) -> Result<(usize, Kept, ScalableContextEntry), OpenError> {
        let index = self.book.requesters.at_ordinal(ordinal).ok_or(body.wrong("no such requester"))?;
        match self.book.requesters.get(index) {
            Some(kept @ Kept { entry: Context::Scalable(context), .. }) => Ok((index, *kept, *context)),
            _ => Err(body.wrong("its requester is not in scalable mode")),
        }
    }

    pub(super) fn take_pasid_tables(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::PasidTables = body.parse()?;
        let (_, kept, context) = self.scalable(body, record.requester)?;
        let extent = body.extent(record.start, record.bytes)?;
        let first_pasid = match record.kind {
            pasid_tables_kind::DIRECTORY => {
                if Some(extent) != directory_frames(context) || record.first_pasid != 0 {
                    return Err(body.wrong("not the directory that its requester's context entry leads to"));
                }
                None
            }
            pasid_tables_kind::TABLE => {
                let first = record.first_pasid;
                if extent.bytes() != PAGE_SIZE || first_of_table(first) != first || !has_room(context, first)
                {
                    return Err(body.wrong("not a table of its requester's directory"));
                }
                Some(first)
            }
            _ => return Err(body.wrong("PASID structures of unknown kind")),
        };
        let (unit, directory) = (kept.unit, context.directory());
        let index = match self.book.pasid_run(unit, directory, first_pasid).map(|(i, r)| (i, r.extent)) {
            Some((index, known)) if known == extent => index,
            Some(_) => return Err(body.wrong("it is listed elsewhere for the same directory")),
            None => {
                let run = PasidRun { unit, directory, first_pasid, extent, users: 0 };
                self.book.pasid_runs.insert(run)?
            }
        };
        if let Some(run) = self.book.pasid_runs.get_mut(index) {
            run.users += 1;
        }
        Ok(())
    }

    pub(super) fn take_attachment(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Attachment = body.parse()?;
        let (requester, kept, context) = self.scalable(body, record.requester)?;
        let (pasid, entry) = (record.pasid, PasidEntry::from_raw(record.entry));
        let table = has_room(context, pasid)
            .then(|| self.book.pasid_run(kept.unit, context.directory(), Some(first_of_table(pasid))));
        if table.flatten().is_none() {
            return Err(body.wrong("the PASID has no table in the handover"));
        }
        if self.book.attachments_of(requester).any(|(_, a)| a.pasid == pasid) {
            return Err(body.wrong("the PASID is listed twice"));
        }
        let domain = self.book.domains.at_ordinal(record.domain).ok_or(body.wrong("no such domain"))?;
        let parent = record
            .parent
            .checked_sub(1)
            .map(|ordinal| self.book.domains.at_ordinal(ordinal).ok_or(body.wrong("no such parent domain")));
        let parent = parent.transpose()?;
        self.check_entry(body, entry, domain, parent)?;
        if pasid == kept.rid_pasid() {
            if domain != kept.domain {
                return Err(body.wrong("requests without PASID do not lead to the requester's domain"));
            }
            self.book.requesters.get_mut(requester).into_iter().for_each(|k| k.domain_id = entry.domain_id());
        }
        self.book.attachments.insert(Attached {
            pasid,
            entry,
            domain_id: entry.domain_id(),
            requester,
            unit: kept.unit,
            domain,
            parent,
            blocked: false,
            retrieved: false,
        })?;
        Ok(())
    }

    /// That a PASID entry leads to its domains, as far as it can be said without reading tables. Notes which domain lies
    /// below which.
    fn check_entry(
        &mut self,
        body: &Body,
        entry: PasidEntry,
        domain: usize,
        parent: Option<usize>,
    ) -> Result<(), OpenError> {
        let leads = |index: usize, stage: Stage, top: Option<PhysAddr>, levels: u8| {
            let same = |d: &Domain| {
                (d.stage, d.levels) == (stage, levels) && top.is_none_or(|top| d.top_table == top)
            };
            self.book.domains.get(index).is_some_and(same)
        };
        let (second, second_levels) = (entry.second_stage_table(), entry.second_stage_levels());
        let (first, first_levels) = (entry.first_stage_table(), entry.first_stage_levels());
        let agrees = entry.present()
            && match (entry.translation(), parent) {
                (PasidTranslation::SecondStage, None) => {
                    leads(domain, Stage::Second, Some(second), second_levels)
                }
                (PasidTranslation::FirstStage, None) => {
                    leads(domain, Stage::First, Some(first), first_levels)
                }
                (PasidTranslation::Nested, Some(parent)) => {
                    leads(parent, Stage::Second, Some(second), second_levels)
                        && leads(domain, Stage::First, None, first_levels)
                }
                _ => false,
            };
        if !agrees {
            return Err(body.wrong("the PASID entry does not lead to its domain"));
        }
        let other = self.book.attachments.find(|a| a.domain == domain && a.parent != parent);
        if other.is_some() {
            return Err(body.wrong("the domain lies below another one elsewhere"));
        }
        self.book.domains.get_mut(domain).into_iter().for_each(|d| d.parent = parent);
        Ok(())
    }

    /// That every requester in scalable mode has its directory and the PASID of its requests without PASID, and that
    /// whoever shares a directory lists all of it, once.
    pub(super) fn check_pasids(&self) -> Result<(), OpenError> {
        let book = &self.book;
        for (index, kept) in book.requesters.iter() {
            let Some(directory) = kept.entry.directory() else { continue };
            let without = book.attachments_of(index).any(|(_, a)| a.pasid == kept.rid_pasid());
            if !without || book.pasid_run(kept.unit, directory, None).is_none() {
                return Err(OpenError::Incomplete(kept.requester));
            }
        }
        for (_, run) in book.pasid_runs.iter() {
            let sharing = |k: &&Kept| k.unit == run.unit && k.entry.directory() == Some(run.directory);
            let users = || book.requesters.iter().map(|(_, k)| k).filter(sharing);
            let differs = users().zip(users().skip(1)).find(|(a, b)| a.entry != b.entry);
            if let Some((_, other)) = differs {
                return Err(OpenError::Incomplete(other.requester));
            }
            if users().count() != run.users as usize {
                return Err(OpenError::Overlap(run.extent));
            }
        }
        Ok(())
    }
}

/// Whether a directory has room for a PASID.
fn has_room(context: ScalableContextEntry, pasid: u32) -> bool {
    pasid < PASIDS && directory_index(pasid) < context.directory_entries()
}
