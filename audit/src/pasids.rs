//! PASID directories and tables of preserved requesters (scalable mode): every frame preserved (I1), every present entry
//! listed (I2), every listed entry as sealed (I4), and their share of the unit's digest.
//!
//! The runs are walked as recorded; that hardware is led to them is checked entry by entry: the context entry to the
//! directory in [`crate::scalable`], each directory entry to its table here. A table that no record lists is counted or
//! reported with its directory entry and not entered.

use crate::audit::{Audit, Stage, UnitState};
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, Item, Role, What};
use crate::image::{FRAME_WORDS, Image};
use crate::index::{requester_of, table_slot};
use crate::mode::{BEYOND_ADDRESS, word_addresses};
use crate::report::add;
use crate::scalable::{Preserved, sealed_context};
use spec::handover::{PasidTables, RequesterRecord, pasid_tables_kind};
use spec::scalable::{PasidDirectoryEntry, PasidEntry};
use spec::xxh64::Hasher;
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};

/// PASIDs that an entry of a directory stands for.
const PER_TABLE: u64 = spec::scalable::PASID_TABLE_ENTRIES;

/// A requester whose structures are walked.
struct Owner<'a> {
    ordinal: u32,
    record: RequesterRecord,
    state: &'a UnitState,
    /// Entries of its directory.
    entries: u64,
}

impl Owner<'_> {
    fn finding(&self, invariant: Invariant, at: u64, what: What) -> Finding {
        let (requester, unit) = (Some(requester_of(&self.record)), Some(self.state.id));
        Finding { invariant, requester, domain: None, unit, at, what }
    }
}

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// All PASID structures of a unit's requesters, in the order recorded. Says whether all of them could be read.
    pub(crate) fn pasid_structures(
        &mut self,
        unit: u32,
        state: &UnitState,
        hasher: &mut Hasher,
    ) -> Result<bool, Unreadable> {
        let mut complete = true;
        for &word in self.index().pasid_runs_of(unit) {
            let Some((at, run)) = self.reader.pasid_tables(word) else { continue };
            let Some((_, record)) = self.reader.requester(run.requester) else { continue };
            let entries = sealed_context(&record).directory_entries();
            let owner = Owner { ordinal: run.requester, record, state, entries };
            complete &= self.pasid_run(&owner, &run, at, hasher)?;
        }
        Ok(complete)
    }

    fn pasid_run(
        &mut self,
        owner: &Owner<'_>,
        run: &PasidTables,
        record_at: u64,
        hasher: &mut Hasher,
    ) -> Result<bool, Unreadable> {
        let directory = run.kind == pasid_tables_kind::DIRECTORY;
        let role = if directory { Role::PasidDirectory } else { Role::PasidTable };
        let Some(frames) = Extent::from_bytes(PhysAddr::new(run.start), run.bytes) else { return Ok(false) };
        self.sink.checked(Invariant::I1, frames.count());
        if let Some(gap) = self.map.first_gap(frames.first(), frames.end())? {
            self.sink.found(owner.finding(Invariant::I1, gap.start().get(), What::NotPreserved(role)));
        }
        self.sink.checked(Invariant::I4, 1);
        let whole = owner.entries.saturating_mul(8).max(PAGE_SIZE);
        if directory && run.bytes != whole {
            let what = What::Differs { item: Item::PasidDirectoryBytes, sealed: run.bytes, found: whole };
            self.sink.found(owner.finding(Invariant::I4, record_at, what));
        }
        if !directory && table_slot(run.first_pasid) > owner.entries {
            let what = What::NoPasidTable { pasid: run.first_pasid };
            self.sink.found(owner.finding(Invariant::I4, record_at, what));
        }
        add(&mut self.sink.totals.pasid_tables, 1);
        let mut first_entry = 0u64;
        for frame in frames.first().number()..frames.end().number() {
            let at = Frame::new(frame).start();
            let Some(table) = self.work.read(self.image, 0, at) else {
                self.sink.found(owner.finding(Invariant::I1, at.get(), What::Unreadable(role)));
                return Ok(false);
            };
            if directory {
                self.pasid_directory(owner, at, first_entry, table.words);
            } else {
                self.pasid_table(owner, at, run.first_pasid, table.words);
            }
            self.hash(hasher, table.words);
            self.work.put(table);
            first_entry = first_entry.saturating_add(FRAME_WORDS as u64);
        }
        Ok(true)
    }

    /// A frame of a directory whose first entry is `first_entry`. Before the cut-off, clears what that will clear.
    fn pasid_directory(
        &mut self,
        owner: &Owner<'_>,
        at: PhysAddr,
        first_entry: u64,
        words: &mut [u64; FRAME_WORDS],
    ) {
        for (index, word) in (first_entry..).zip(words.iter_mut()) {
            let at = at.get().saturating_add(index.saturating_sub(first_entry).saturating_mul(8));
            let entry = PasidDirectoryEntry::from_raw(*word);
            // Hardware does not read beyond the size in the context entry.
            let first_pasid = u32::try_from(index.saturating_mul(PER_TABLE)).unwrap_or_default();
            let within = index < owner.entries;
            let listed = within.then(|| self.index().pasid_run(owner.ordinal, table_slot(first_pasid)));
            let listed = listed.flatten().and_then(|word| self.reader.pasid_tables(word));
            if entry.present() && within {
                self.sink.checked(Invariant::I2, 1);
            }
            match listed {
                Some((_, run)) => self.listed_table(owner, &run, entry, at),
                None => {
                    if entry.present() && within {
                        self.unlisted_table(owner, first_pasid, at);
                    }
                    if self.stage == Stage::Sealed {
                        *word = 0;
                    }
                }
            }
        }
    }

    /// The directory's entry for a table that is in the handover.
    fn listed_table(&mut self, owner: &Owner<'_>, run: &PasidTables, entry: PasidDirectoryEntry, at: u64) {
        self.sink.checked(Invariant::I4, 1);
        let found = if entry.present() { entry.table().get() } else { 0 };
        if found != run.start {
            self.work.suspect(owner.record.unit, requester_of(&owner.record));
            let what = What::Differs { item: Item::PasidTable, sealed: run.start, found };
            self.sink.found(owner.finding(Invariant::I4, at, what));
        }
        let bits = entry.raw() & (PasidDirectoryEntry::RESERVED | BEYOND_ADDRESS);
        if entry.present() && bits != 0 {
            self.sink.found(owner.finding(Invariant::I1, at, What::ReservedBits { bits }));
        }
    }

    fn unlisted_table(&mut self, owner: &Owner<'_>, first_pasid: u32, at: u64) {
        if self.stage == Stage::Sealed {
            add(&mut self.sink.totals.pasid_tables_to_cut_off, 1);
        } else {
            self.work.suspect(owner.record.unit, requester_of(&owner.record));
            self.sink.found(owner.finding(Invariant::I2, at, What::PasidTableNotListed { first_pasid }));
        }
    }

    /// A table. Before the cut-off, clears what that will clear.
    fn pasid_table(
        &mut self,
        owner: &Owner<'_>,
        at: PhysAddr,
        first_pasid: u32,
        words: &mut [u64; FRAME_WORDS],
    ) {
        for (words, index) in words.chunks_exact_mut(8).zip(0u32..) {
            let Ok(entry) = <&mut [u64; 8]>::try_from(words) else { continue };
            let pasid = first_pasid.saturating_add(index);
            let at = at.get().saturating_add(u64::from(index).saturating_mul(64));
            let found = PasidEntry::from_raw(*entry);
            if found.present() {
                self.sink.checked(Invariant::I2, 1);
            }
            let attachment = self.index().attachment(owner.ordinal, pasid);
            if let Some((_, attachment)) = attachment.and_then(|offset| self.reader.attachment(offset)) {
                let (record, unit) = (owner.record, owner.state.id);
                let token = self.reader.token(attachment.domain);
                self.attached(&Preserved { record, attachment, token, unit, at }, owner.state, found);
                continue;
            }
            if found.present() {
                self.stranger_pasid(owner, pasid, at);
            }
            if self.stage == Stage::Sealed {
                *entry = [0; 8];
            }
        }
    }

    /// The entry of a PASID that was preserved.
    fn attached(&mut self, preserved: &Preserved, state: &UnitState, entry: PasidEntry) {
        let requester = requester_of(&preserved.record);
        self.sink.checked(Invariant::I4, 8);
        if !entry.present() {
            self.work.suspect(preserved.record.unit, requester);
            let what = What::PasidNotPresent { pasid: preserved.attachment.pasid };
            self.sink.found(preserved.finding(Invariant::I4, what));
            return;
        }
        add(&mut self.sink.totals.kept_pasids, 1);
        let words = preserved.attachment.entry.into_iter().zip(entry.raw());
        for (((sealed, found), at), word) in words.zip(word_addresses(preserved.at)).zip(0u8..) {
            if sealed != found {
                self.work.suspect(preserved.record.unit, requester);
                let what = What::Differs { item: Item::PasidEntryWord(word), sealed, found };
                self.sink.found(Finding { at, ..preserved.finding(Invariant::I4, what) });
            }
        }
        self.pasid_entry(preserved, state, entry);
    }

    fn stranger_pasid(&mut self, owner: &Owner<'_>, pasid: u32, at: u64) {
        if self.stage == Stage::Sealed {
            add(&mut self.sink.totals.pasids_to_cut_off, 1);
        } else {
            self.work.suspect(owner.record.unit, requester_of(&owner.record));
            self.sink.found(owner.finding(Invariant::I2, at, What::PasidNotListed { pasid }));
        }
    }
}
