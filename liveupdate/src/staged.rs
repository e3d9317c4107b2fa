//! What one `preserve` puts into the book: kept as a whole, or taken out again, last first.

use crate::book::{AliasOf, Attached, Book, ContextRun, Kept, KeptUnit, PasidRun};
use crate::error::PreserveError;
use crate::mode::Place;
use crate::mutant::{self, Mutant};
use crate::requester::MAX_ALIASES;
use spec::{Extent, PhysAddr};

/// Entries put into the book for one requester or one of its PASIDs. Dropped before [`Staged::keep`], they are taken out
/// again. Each part undoes exactly what it did: what was there before is counted down, what is new is removed.
pub(crate) struct Staged<'b, 's> {
    book: &'b mut Book<'s>,
    unit: Option<usize>,
    requester: Option<usize>,
    contexts: [Option<usize>; MAX_ALIASES + 1],
    aliases: [Option<usize>; MAX_ALIASES],
    attachment: Option<usize>,
    /// A directory and a table.
    pasid_runs: [Option<usize>; 2],
    kept: bool,
}

impl<'b, 's> Staged<'b, 's> {
    pub(crate) fn new(book: &'b mut Book<'s>) -> Self {
        Self {
            book,
            unit: None,
            requester: None,
            contexts: [None; MAX_ALIASES + 1],
            aliases: [None; MAX_ALIASES],
            attachment: None,
            pasid_runs: [None; 2],
            kept: false,
        }
    }

    /// The unit's entry, counted one higher; says whether it is new.
    pub(crate) fn unit(&mut self, unit: KeptUnit) -> Result<(usize, bool), PreserveError> {
        let known = self.book.units.find(|u| u.id == unit.id).map(|(i, _)| i);
        let index = match known {
            Some(index) => index,
            None => self.book.units.insert(unit)?,
        };
        if let Some(entry) = self.book.units.get_mut(index) {
            entry.requesters += 1;
        }
        self.unit = Some(index);
        Ok((index, known.is_none()))
    }

    pub(crate) fn requester(&mut self, kept: Kept) -> Result<usize, PreserveError> {
        let index = self.book.requesters.insert(kept)?;
        self.requester = Some(index);
        Ok(index)
    }

    /// One more source-id in the context table of `place`; says whether the table is new.
    pub(crate) fn context(
        &mut self,
        unit: usize,
        place: Place,
        table: PhysAddr,
    ) -> Result<bool, PreserveError> {
        let known = self.book.context_of(unit, place).map(|(i, _)| i);
        let Place { bus, half } = place;
        let index = match known {
            Some(index) => index,
            None => self.book.contexts.insert(ContextRun { unit, bus, half, table, users: 0 })?,
        };
        if let Some(run) = self.book.contexts.get_mut(index) {
            run.users += 1;
        }
        note(&mut self.contexts, index);
        Ok(known.is_none())
    }

    pub(crate) fn alias(&mut self, alias: AliasOf) -> Result<(), PreserveError> {
        let index = self.book.aliases.insert(alias)?;
        note(&mut self.aliases, index);
        Ok(())
    }

    pub(crate) fn attachment(&mut self, attached: Attached) -> Result<(), PreserveError> {
        self.attachment = Some(self.book.attachments.insert(attached)?);
        Ok(())
    }

    /// One more user of a PASID directory or table; says whether it is new.
    pub(crate) fn pasid_run(
        &mut self,
        unit: usize,
        directory: PhysAddr,
        first_pasid: Option<u32>,
        extent: Extent,
    ) -> Result<bool, PreserveError> {
        let known = self.book.pasid_run(unit, directory, first_pasid).map(|(i, _)| i);
        let index = match known {
            Some(index) => index,
            None => {
                let run = PasidRun { unit, directory, first_pasid, extent, users: 0 };
                self.book.pasid_runs.insert(run)?
            }
        };
        if let Some(run) = self.book.pasid_runs.get_mut(index) {
            run.users += 1;
        }
        note(&mut self.pasid_runs, index);
        Ok(known.is_none())
    }

    /// Everything stays.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

/// Notes an index in the first free slot. There is one for each that can come.
fn note(slots: &mut [Option<usize>], index: usize) {
    if let Some(slot) = slots.iter_mut().find(|s| s.is_none()) {
        *slot = Some(index);
    }
}

impl Book<'_> {
    /// One user less of a PASID directory or table: its frames, if that was the last.
    pub(crate) fn leave_pasid_run(&mut self, index: usize) -> Option<Extent> {
        let run = self.pasid_runs.get_mut(index)?;
        run.users -= 1;
        if run.users > 0 {
            return None;
        }
        self.pasid_runs.remove(index).map(|r| r.extent)
    }

    /// One source-id less in a context table: its frame, if that was the last.
    pub(crate) fn leave_context(&mut self, index: usize) -> Option<Extent> {
        let run = self.contexts.get_mut(index)?;
        run.users -= 1;
        if run.users > 0 {
            return None;
        }
        self.contexts.remove(index).map(|r| Extent::one(r.table.frame()))
    }

    /// One requester less on a unit: the frame of its root table, if that was the last.
    pub(crate) fn leave_unit(&mut self, index: usize) -> Option<Extent> {
        let unit = self.units.get_mut(index)?;
        unit.requesters -= 1;
        if unit.requesters > 0 || mutant::on(Mutant::LeftBehind) {
            return None;
        }
        self.units.remove(index).map(|u| Extent::one(u.root.frame()))
    }
}

impl Drop for Staged<'_, '_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for index in self.pasid_runs.iter().rev().flatten() {
            self.book.leave_pasid_run(*index);
        }
        if let Some(index) = self.attachment {
            self.book.attachments.remove(index);
        }
        for index in self.aliases.iter().rev().flatten() {
            self.book.aliases.remove(*index);
        }
        for index in self.contexts.iter().rev().flatten() {
            self.book.leave_context(*index);
        }
        if let Some(index) = self.requester {
            self.book.requesters.remove(index);
        }
        if let Some(index) = self.unit {
            self.book.leave_unit(index);
        }
    }
}
