//! The cut-off below a preserved requester in scalable mode: PASIDs that were not preserved go, out of its PASID tables or
//! with a whole table out of its PASID directory.
//!
//! A directory is walked to the end of the frames that it takes, whatever its size: hardware reads as much of it as the
//! context entry says, and what lies beyond must not look like damage to the next kernel.

use crate::book::{PasidRun, PasidSet};
use crate::device_tlb::Gone;
use crate::host::{Host, NoMemory};
use crate::mutant::{self, Mutant};
use crate::prune::{CutOffEvent, Pruning};
use crate::roots::{self, PASID_BYTES};
use spec::scalable::{PASID_TABLE_ENTRIES, PasidDirectoryEntry, PasidEntry, ScalableContextEntry};
use spec::{PhysAddr, Requester};

impl<H: Host> Pruning<'_, '_, H> {
    /// The directories that stay on this unit, each with its context entry.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (&PasidRun, ScalableContextEntry)> {
        let own = move |r: &&PasidRun| Some(r.unit) == self.index && r.first_pasid.is_none();
        let runs = self.book.pasid_runs.iter().map(|(_, r)| r).filter(own);
        runs.filter(|run| self.users(run).next().is_some())
            .filter_map(|run| Some((run, self.book.context_to(run)?)))
    }

    /// The requesters of a directory that stay.
    pub(crate) fn users<'a>(&'a self, run: &'a PasidRun) -> impl Iterator<Item = (usize, Requester)> + 'a {
        let user = move |(i, k): &(usize, &crate::book::Kept)| {
            k.unit == run.unit && k.entry.directory() == Some(run.directory) && self.requester_stays(*i)
        };
        self.book.requesters.iter().filter(user).map(|(i, k)| (i, k.requester))
    }

    /// Clears present bits of directory entries and PASID entries.
    pub(crate) fn clear_pasids(&self, report: &mut dyn FnMut(CutOffEvent)) {
        for (run, context) in self.directories() {
            if let Err(e) = self.clear_directory(run, context, report) {
                report(CutOffEvent::Unreachable(e));
                self.clear_contexts_to(run, report);
            }
        }
    }

    fn clear_directory(
        &self,
        run: &PasidRun,
        context: ScalableContextEntry,
        report: &mut dyn FnMut(CutOffEvent),
    ) -> Result<(), NoMemory> {
        for index in 0..context.directory_entries() {
            let at = run.directory.plus(8 * index);
            let entry = PasidDirectoryEntry::from_raw(self.host.read(at)?);
            if !entry.present() {
                continue;
            }
            let stay = self.pasids_that_stay(run, index, entry);
            let cleared = self.clear_pasid_entries(run, index, entry.table(), stay, report);
            if stay.is_empty() || cleared.is_err() {
                roots::clear_present(self.host, at)?;
            }
            cleared.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        }
        Ok(())
    }

    fn clear_pasid_entries(
        &self,
        run: &PasidRun,
        index: u64,
        table: PhysAddr,
        stay: PasidSet,
        report: &mut dyn FnMut(CutOffEvent),
    ) -> Result<(), NoMemory> {
        let Some((_, requester)) = self.users(run).next() else { return Ok(()) };
        for pasid in pasids(index) {
            let at = roots::pasid_entry_at(table, pasid);
            let mut words = [0; 8];
            self.host.read_words(at, &mut words)?;
            let entry = PasidEntry::from_raw(words);
            if !entry.present() || stay.contains(pasid) {
                continue;
            }
            if !stay.is_empty() {
                roots::clear_present(self.host, at)?;
            }
            report(CutOffEvent::PasidCleared { requester, pasid, entry });
        }
        Ok(())
    }

    /// Clears the context entries that lead to a directory that cannot be reached: what it holds is not known.
    fn clear_contexts_to(&self, run: &PasidRun, report: &mut dyn FnMut(CutOffEvent)) {
        for (index, requester) in self.users(run) {
            self.clear_contexts_of(index, requester, report);
        }
    }

    /// Clears the context entries of a requester, under all its source-ids.
    pub(crate) fn clear_contexts_of(
        &self,
        index: usize,
        requester: Requester,
        report: &mut dyn FnMut(CutOffEvent),
    ) {
        self.book.for_each_source(index, &mut |source| {
            let cleared = roots::find(self.host, self.mode, self.root, source).and_then(|found| {
                let Some((table, entry)) = found.filter(|(_, e)| e.present()) else { return Ok(()) };
                roots::clear_present(self.host, self.mode.entry_at(table, source.devfn()))?;
                let requester = Requester::new(requester.segment, source);
                report(CutOffEvent::Cleared { requester, entry });
                Ok(())
            });
            cleared.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        });
    }

    /// Which PASIDs of a directory were cleared and are not wiped yet. What cannot be read counts as several.
    pub(crate) fn gone(&self, run: &PasidRun, context: ScalableContextEntry) -> Gone {
        let mut gone = Gone::None;
        for index in 0..context.directory_entries() {
            let Ok(raw) = self.host.read(run.directory.plus(8 * index)) else { return Gone::Several };
            let entry = PasidDirectoryEntry::from_raw(raw);
            if raw == 0 {
                continue;
            }
            for pasid in pasids(index) {
                let mut words = [0; 8];
                if self.host.read_words(roots::pasid_entry_at(entry.table(), pasid), &mut words).is_err() {
                    return Gone::Several;
                }
                // In a table that went, entries are as they were.
                let stays = entry.present() && PasidEntry::from_raw(words).present();
                if !stays && words != [0; 8] {
                    gone = gone.and(pasid);
                }
            }
        }
        gone
    }

    /// Wipes what is left of cleared directory entries and PASID entries.
    pub(crate) fn wipe_pasids(&self, report: &mut dyn FnMut(CutOffEvent)) {
        for (run, context) in self.directories() {
            let bytes = if mutant::on(Mutant::OneFrame) { spec::PAGE_SIZE } else { run.extent.bytes() };
            let wiped = (0..bytes / 8).try_for_each(|index| {
                let at = run.directory.plus(8 * index);
                let entry = PasidDirectoryEntry::from_raw(self.host.read(at)?);
                let within = index < context.directory_entries() && entry.present();
                let stay =
                    if within { self.pasids_that_stay(run, index, entry) } else { PasidSet::default() };
                if stay.is_empty() {
                    return roots::wipe(self.host, at, 8);
                }
                self.wipe_pasid_entries(index, entry.table(), stay)
            });
            wiped.unwrap_or_else(|e| report(CutOffEvent::Unreachable(e)));
        }
    }

    fn wipe_pasid_entries(&self, index: u64, table: PhysAddr, stay: PasidSet) -> Result<(), NoMemory> {
        for pasid in pasids(index) {
            let at = roots::pasid_entry_at(table, pasid);
            let present = self.host.read(at)? & 1 == 1;
            if !(present && stay.contains(pasid)) {
                roots::wipe(self.host, at, PASID_BYTES)?;
            }
        }
        Ok(())
    }

    /// Which PASIDs stay in the table that a directory entry leads to: none when that is not the one that was preserved.
    fn pasids_that_stay(&self, run: &PasidRun, index: u64, entry: PasidDirectoryEntry) -> PasidSet {
        let listed = self.book.pasid_run(run.unit, run.directory, Some(pasids(index).start));
        if listed.is_none_or(|(_, table)| table.extent.start() != entry.table()) {
            return PasidSet::default();
        }
        self.book.pasids_in_table(run.unit, run.directory, index, |a| (self.keep)(a))
    }
}

/// The PASIDs that an entry of a directory stands for.
fn pasids(index: u64) -> core::ops::Range<u32> {
    let first = (index * PASID_TABLE_ENTRIES) as u32;
    first..first + PASID_TABLE_ENTRIES as u32
}
