//! Interrupt remapping: the table that hardware reads against its record (I1, I4, I8), every present entry against the
//! preserved requesters (I2), and the descriptors that posted entries have hardware write to (I3).
//!
//! An entry belongs to a preserved requester when whoever may ask by it is that requester: one source-id, or functions that
//! a qualifier lumps together and that are all its own; for a range of buses, the requester that the record names must
//! have source-ids on the first and on the last. An entry by which anybody may ask belongs to nobody.

use crate::audit::{Audit, Stage, UnitState};
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, Item, Role, What};
use crate::image::Image;
use crate::report::add;
use spec::handover::{InterruptEntry, InterruptTable, region_kind};
use spec::interrupt::{ENTRY_BYTES, PostedEntry, RemappedEntry, entry_format, source_check};
use spec::regs::{Irta, offset};
use spec::xxh64::Hasher;
use spec::{PAGE_SIZE, PhysAddr, Requester, SourceId};

/// Entries in one frame.
const PER_FRAME: u32 = (PAGE_SIZE / ENTRY_BYTES) as u32;
/// Source-ids of one bus that are looked at: more than a bus has, so that only a lying handover meets the bound.
const ON_A_BUS: usize = 4096;

/// A table that is walked, and what came of it.
struct Walk<'w> {
    unit: u32,
    state: &'w UnitState,
    irta: Irta,
    hasher: Hasher,
    complete: bool,
    /// The first requester whose entry is not as it should be: that explains another digest.
    suspect: Option<Requester>,
}

/// One entry.
struct Seen {
    index: u32,
    at: PhysAddr,
    words: [u64; 2],
}

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// All checks of this module.
    pub(crate) fn interrupts(&mut self) -> Result<(), Unreadable> {
        for unit in (0u32..).take(self.index().units.len()) {
            let Some(state) = self.state(unit) else { continue };
            match self.reader.interrupt_table(unit) {
                Some((at, record)) => self.interrupt_table(unit, at, &record, &state)?,
                None => self.no_interrupt_table(&state),
            }
        }
        for (position, state) in self.units.iter().enumerate() {
            let recorded = self.index().states.contains(&(position as u64).saturating_add(1));
            if self.stage == Stage::Arrived && !recorded {
                self.no_interrupt_table(state);
            }
        }
        Ok(())
    }

    /// I1: a unit whose table was not handed over reads none.
    fn no_interrupt_table(&mut self, state: &UnitState) {
        self.sink.checked(Invariant::I1, 1);
        if state.status.ires() {
            let at = state.id.register_base.saturating_add(offset::GSTS);
            self.found_on(Invariant::I1, state.id, at, What::InterruptsNotHandedOver);
        }
    }

    fn interrupt_table(
        &mut self,
        unit: u32,
        at: u64,
        record: &InterruptTable,
        state: &UnitState,
    ) -> Result<(), Unreadable> {
        let base = state.id.register_base;
        self.sink.checked(Invariant::I8, 1);
        if !state.status.ires() {
            let what = What::InterruptRemappingOff;
            self.found_on(Invariant::I8, state.id, base.saturating_add(offset::GSTS), what);
        }
        let found = state.interrupts.unwrap_or(Irta::ZERO).raw();
        self.sink.checked(Invariant::I4, 1);
        if found != record.irta {
            // The record speaks of another table than hardware reads.
            let what = What::Differs { item: Item::Irta, sealed: record.irta, found };
            self.found_on(Invariant::I4, state.id, base.saturating_add(offset::IRTA), what);
            return Ok(());
        }
        let irta = Irta::from_raw(record.irta);
        let Some(frames) = irta.frames() else {
            self.found_on(Invariant::I4, state.id, at, What::BadRange(crate::RecordKind::InterruptTable));
            return Ok(());
        };
        self.sink.checked(Invariant::I1, frames.count());
        if let Some(gap) = self.map.first_gap(frames.first(), frames.end())? {
            let what = What::NotPreserved(Role::InterruptTable);
            self.found_on(Invariant::I1, state.id, gap.start().get(), what);
        }
        let hasher = Hasher::new(0);
        let mut walk = Walk { unit, state, irta, hasher, complete: true, suspect: None };
        let kept = self.interrupt_entries(&mut walk);
        self.interrupt_records(&mut walk);
        self.interrupt_totals(walk, record, kept);
        Ok(())
    }

    /// Walks the table and hashes it as it will be (or is) after the cut-off. Says how many entries stay.
    fn interrupt_entries(&mut self, walk: &mut Walk<'_>) -> u32 {
        let mut kept = 0u32;
        let mut first = 0u32;
        while first < walk.irta.entries() {
            let at = entry_at(walk.irta, first);
            let entries = walk.irta.entries().saturating_sub(first).min(PER_FRAME);
            let Some(table) = self.work.read(self.image, 0, at) else {
                let what = What::Unreadable(Role::InterruptTable);
                self.found_on(Invariant::I1, walk.state.id, at.get(), what);
                walk.complete = false;
                return kept;
            };
            let words = table.words.get_mut(..(entries as usize).saturating_mul(2)).unwrap_or_default();
            for (index, pair) in (first..).zip(words.chunks_exact_mut(2)) {
                let &mut [low, high] = pair else { continue };
                let seen = Seen { index, at: entry_at(walk.irta, index), words: [low, high] };
                let stays = low & 1 == 1 && self.present_interrupt(walk, &seen);
                kept = kept.saturating_add(u32::from(stays));
                if !stays && self.stage == Stage::Sealed {
                    pair.fill(0);
                }
            }
            self.hash(&mut walk.hasher, words);
            self.work.put(table);
            first = first.saturating_add(PER_FRAME);
        }
        kept
    }

    /// I2, I3 and I4 for one present entry. Says whether it stays.
    fn present_interrupt(&mut self, walk: &mut Walk<'_>, seen: &Seen) -> bool {
        self.sink.checked(Invariant::I2, 1);
        let asker = asker(walk.state, seen);
        let record = self.reader.interrupt_entry(walk.unit, seen.index);
        let Some(owner) = self.interrupt_owner(walk, seen, record.as_ref()) else {
            if self.stage == Stage::Sealed {
                add(&mut self.sink.totals.interrupts_to_cut_off, 1);
            } else {
                walk.suspect.get_or_insert(asker);
                let what = What::InterruptNotOwned { index: seen.index };
                self.interrupt_finding(Invariant::I2, walk, asker, seen.at.get(), what);
            }
            return false;
        };
        add(&mut self.sink.totals.kept_interrupts, 1);
        self.sink.checked(Invariant::I4, 1);
        match record {
            None => {
                let what = What::InterruptNotListed { index: seen.index };
                self.interrupt_finding(Invariant::I4, walk, asker, seen.at.get(), what);
            }
            Some((at, record)) if record.requester != owner => {
                let (sealed, found) = (record.requester.into(), owner.into());
                let what = What::Differs { item: Item::InterruptRequester, sealed, found };
                self.interrupt_finding(Invariant::I4, walk, asker, at, what);
            }
            Some(_) => {}
        }
        self.interrupt_format(walk, asker, seen);
        true
    }

    /// The requester, by its ordinal, that an entry belongs to.
    fn interrupt_owner(
        &self,
        walk: &Walk<'_>,
        seen: &Seen,
        record: Option<&(u64, InterruptEntry)>,
    ) -> Option<u32> {
        let entry = RemappedEntry::from_raw(seen.words);
        let segment = walk.state.id.segment;
        match entry.svt() {
            source_check::SOURCE_ID => {
                // Bits of the function number that do not count: bit 2, then 1, then 0.
                let ignored = [0u16, 0b100, 0b110, 0b111].get(entry.sq() as usize).copied()?;
                let own = entry.source().raw();
                let first = self.index().owner(Requester::new(segment, entry.source()))?;
                let all = (0u16..8).filter(|bits| bits & !ignored == 0).all(|bits| {
                    let source = SourceId::from_raw(own & !ignored | bits);
                    self.index().owner(Requester::new(segment, source)) == Some(first)
                });
                all.then_some(first)
            }
            source_check::BUS_RANGE => {
                let ((first, last), owner) = (entry.buses(), record?.1.requester);
                let on = |bus: u8| {
                    let sources = self.index().sources_on(segment, bus).iter().take(ON_A_BUS);
                    sources.into_iter().any(|word| word & 0xffff_ffff == u64::from(owner))
                };
                (first <= last && on(first) && on(last)).then_some(owner)
            }
            _ => None,
        }
        .filter(|owner| self.reader.requester(*owner).is_some_and(|(_, owner)| owner.unit == walk.unit))
    }

    /// Reserved bits (I1), and where a posted entry has hardware write (I3).
    fn interrupt_format(&mut self, walk: &Walk<'_>, asker: Requester, seen: &Seen) {
        let [low, high] = seen.words;
        let posted = RemappedEntry::from_raw(seen.words).im() == entry_format::POSTED;
        let reserved = if posted { PostedEntry::RESERVED } else { RemappedEntry::RESERVED };
        self.sink.checked(Invariant::I1, 1);
        for (at, bits) in [(seen.at, low & reserved[0]), (seen.at.plus(8), high & reserved[1])] {
            if bits != 0 {
                self.interrupt_finding(Invariant::I1, walk, asker, at.get(), What::ReservedBits { bits });
            }
        }
        if posted {
            self.sink.checked(Invariant::I3, 1);
            let descriptor = PostedEntry::from_raw(seen.words).descriptor();
            let frame = descriptor.frame().number();
            let region = self.index().region_overlapping(frame, frame.saturating_add(1));
            if region.is_none_or(|region| region.kind != u64::from(region_kind::MEMORY)) {
                let what = What::PostedOutside { descriptor: descriptor.get() };
                self.interrupt_finding(Invariant::I3, walk, asker, seen.at.get(), what);
            }
        }
    }

    /// I4: every entry that was sealed is there, as it was sealed.
    fn interrupt_records(&mut self, walk: &mut Walk<'_>) {
        for &word in self.index().interrupts_of(walk.unit) {
            let Some((at, record)) = self.reader.interrupt_record(word) else { continue };
            self.sink.checked(Invariant::I4, 2);
            let owner = self.reader.requester(record.requester);
            let requester = owner.map(|(_, owner)| crate::index::requester_of(&owner)).unwrap_or_default();
            let mut words = [0; 2];
            let entry = entry_at(walk.irta, record.index);
            let there = record.index < walk.irta.entries() && self.image.read(entry, &mut words).is_ok();
            if !there || words[0] & 1 == 0 {
                walk.suspect.get_or_insert(requester);
                let what = What::InterruptNotPresent { index: record.index };
                self.interrupt_finding(Invariant::I4, walk, requester, at, what);
                continue;
            }
            let items = [Item::InterruptEntryLow, Item::InterruptEntryHigh];
            for ((item, sealed), (found, at)) in
                items.into_iter().zip(record.entry).zip(words.into_iter().zip([entry, entry.plus(8)]))
            {
                if sealed != found {
                    walk.suspect.get_or_insert(requester);
                    let what = What::Differs { item, sealed, found };
                    self.interrupt_finding(Invariant::I4, walk, requester, at.get(), what);
                }
            }
        }
    }

    /// I4: number of entries, and the digest unless an entry explains the difference.
    fn interrupt_totals(&mut self, walk: Walk<'_>, record: &InterruptTable, kept: u32) {
        if !walk.complete {
            return;
        }
        let at = walk.irta.table().get();
        let digest = walk.hasher.finish();
        let items = [
            (Item::InterruptEntries, u64::from(record.entries), u64::from(kept)),
            (Item::InterruptDigest, record.digest, digest),
        ];
        for (item, sealed, found) in items {
            self.sink.checked(Invariant::I4, 1);
            if sealed != found {
                let what = What::Differs { item, sealed, found };
                let owner = walk.suspect.and_then(|requester| self.index().owner(requester));
                let owner = owner.and_then(|owner| self.reader.requester(owner));
                let domain = owner.map(|(_, owner)| self.reader.token(owner.domain));
                let (requester, unit) = (walk.suspect, Some(walk.state.id));
                self.sink.found(Finding { invariant: Invariant::I4, requester, domain, unit, at, what });
            }
        }
    }

    fn interrupt_finding(
        &mut self,
        invariant: Invariant,
        walk: &Walk<'_>,
        requester: Requester,
        at: u64,
        what: What,
    ) {
        let owner = self.index().owner(requester).and_then(|owner| self.reader.requester(owner));
        let domain = owner.map(|(_, owner)| self.reader.token(owner.domain));
        let (requester, unit) = (Some(requester), Some(walk.state.id));
        self.sink.found(Finding { invariant, requester, domain, unit, at, what });
    }
}

/// Whom a finding about an entry names: the source-id in it, whatever of it counts.
fn asker(state: &UnitState, seen: &Seen) -> Requester {
    Requester::new(state.id.segment, RemappedEntry::from_raw(seen.words).source())
}

fn entry_at(irta: Irta, index: u32) -> PhysAddr {
    irta.table().plus(u64::from(index).saturating_mul(ENTRY_BYTES))
}
