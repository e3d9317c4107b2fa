//! Units against their records: registers (I4, I8, I10), and the root and context tables that hardware reads (I1, I2).
//!
//! The tables are walked from the root pointer in the register, not from the one in the record. What the entries of
//! preserved requesters say is checked in [`crate::entries`].

use crate::audit::{Audit, Stage, UnitState};
use crate::collect::unit_id;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, Item, Role, What};
use crate::image::{FRAME_WORDS, Image};
use crate::index::{Walked, requester_with};
use crate::report::add;
use spec::context::ContextEntry;
use spec::handover::Unit;
use spec::regs::offset;
use spec::root::RootEntry;
use spec::xxh64::Hasher;
use spec::{PhysAddr, Requester, SourceId};

/// Values of the field TTM in the root table address register (VT-d 11.4.5).
mod ttm {
    pub(super) const LEGACY: u64 = 0;
    pub(super) const SCALABLE: u64 = 1;
}

/// Bits of an address that no host has: entries hold 52 at most.
const BEYOND_ADDRESS: u64 = 0xfff << 52;

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// All checks of this module.
    pub(crate) fn units(&mut self) -> Result<(), Unreadable> {
        for ordinal in (0u32..).take(self.index().units.len()) {
            let Some((at, record)) = self.reader.unit(ordinal) else { continue };
            match self.state(ordinal) {
                Some(state) => self.unit(ordinal, &record, &state)?,
                None => self.found_on(Invariant::I4, unit_id(&record), at, What::UnitMissing),
            }
        }
        self.units_without_record();
        Ok(())
    }

    /// A unit on which nothing was preserved is off after the jump.
    fn units_without_record(&mut self) {
        for (position, state) in self.units.iter().enumerate() {
            let recorded = self.index().states.contains(&(position as u64).saturating_add(1));
            if self.stage == Stage::Arrived && !recorded {
                self.sink.checked(Invariant::I1, 1);
                if state.status.tes() {
                    let at = state.id.register_base.saturating_add(offset::GSTS);
                    self.found_on(Invariant::I1, state.id, at, What::UnitNotHandedOver);
                }
            }
        }
    }

    fn unit(&mut self, ordinal: u32, record: &Unit, state: &UnitState) -> Result<(), Unreadable> {
        add(&mut self.sink.totals.units, 1);
        self.registers(record, state);
        let mode = state.root.ttm();
        if mode != ttm::LEGACY {
            if mode == ttm::SCALABLE {
                let at = state.id.register_base.saturating_add(offset::RTADDR);
                self.found_on(Invariant::I1, state.id, at, What::ModeNotWalked { ttm: ttm::SCALABLE as u8 });
            }
            return Ok(());
        }
        let mut hasher = Hasher::new(0);
        let complete = self.root_table(ordinal, state, &mut hasher)?;
        let complete = self.context_tables(ordinal, state, &mut hasher)? && complete;
        if let Some(walked) = self.work.walked(ordinal) {
            (walked.digest, walked.complete) = (hasher.finish(), complete.into());
        }
        Ok(())
    }

    /// I4: the digests of the units' tables. When an entry was found wrong before, that explains the difference, and the
    /// finding names its requester: a stranger's entry does not speak against the whole unit.
    pub(crate) fn unit_digests(&mut self) {
        for ordinal in (0u32..).take(self.index().units.len()) {
            let record = self.reader.unit(ordinal);
            let (Some((_, record)), Some(state)) = (record, self.state(ordinal)) else { continue };
            let Some(&mut Walked { digest, complete: 1, suspect }) = self.work.walked(ordinal) else {
                continue;
            };
            self.sink.checked(Invariant::I4, 1);
            if digest == record.digest {
                continue;
            }
            let requester = suspect.checked_sub(1).map(requester_with);
            let owner = requester.and_then(|requester| self.index().owner(requester));
            let owner = owner.and_then(|owner| self.reader.requester(owner));
            self.sink.found(Finding {
                invariant: Invariant::I4,
                requester,
                domain: owner.map(|(_, owner)| self.reader.token(owner.domain)),
                unit: Some(state.id),
                at: state.root.table().get(),
                what: What::Differs { item: Item::UnitDigest, sealed: record.digest, found: digest },
            });
        }
    }

    fn registers(&mut self, record: &Unit, state: &UnitState) {
        let base = state.id.register_base;
        let sealed = spec::regs::RootAddr::from_raw(record.root);
        let mode = state.root.ttm();
        self.sink.checked(Invariant::I8, 2);
        if !state.status.tes() {
            self.found_on(Invariant::I8, state.id, base.saturating_add(offset::GSTS), What::TranslationOff);
        }
        let root_at = base.saturating_add(offset::RTADDR);
        if !matches!(mode, ttm::LEGACY | ttm::SCALABLE) {
            self.found_on(Invariant::I8, state.id, root_at, What::ModeInvalid { ttm: mode as u8 });
        }
        self.sink.checked(Invariant::I10, 1);
        if mode != sealed.ttm() {
            let what = What::ModeDiffers { sealed: sealed.ttm() as u8, found: mode as u8 };
            self.found_on(Invariant::I10, state.id, root_at, what);
        }
        let pairs = [
            (Item::Cap, offset::CAP, record.cap, state.cap.raw()),
            (Item::Ecap, offset::ECAP, record.ecap, state.ecap.raw()),
            (Item::RootAddr, offset::RTADDR, sealed.with_ttm(0).raw(), state.root.with_ttm(0).raw()),
        ];
        for (item, offset, sealed, found) in pairs {
            self.sink.checked(Invariant::I4, 1);
            if sealed != found {
                let what = What::Differs { item, sealed, found };
                self.found_on(Invariant::I4, state.id, base.saturating_add(offset), what);
            }
        }
    }

    /// I1 for one frame that hardware reads.
    fn frame_preserved(
        &mut self,
        state: &UnitState,
        stranger: Option<Requester>,
        table: PhysAddr,
        role: Role,
    ) -> Result<(), Unreadable> {
        self.sink.checked(Invariant::I1, 1);
        if !self.map.preserved(table.frame())? {
            self.entry_finding(Invariant::I1, state, stranger, table, What::NotPreserved(role));
        }
        Ok(())
    }

    /// Walks the root table and hashes it as it will be (or is) after the cut-off. Says whether it could be read.
    fn root_table(&mut self, unit: u32, state: &UnitState, hasher: &mut Hasher) -> Result<bool, Unreadable> {
        let table = state.root.table();
        self.frame_preserved(state, None, table, Role::RootTable)?;
        let Some(words) = self.work.read(self.image, 0, table) else {
            self.found_on(Invariant::I1, state.id, table.get(), What::Unreadable(Role::RootTable));
            return Ok(false);
        };
        for (bus, (low, high)) in (0u8..=u8::MAX).zip(pairs(words.words)) {
            let entry = RootEntry::from_raw([*low, *high]);
            let at = table.plus(u64::from(bus).saturating_mul(16));
            let listed = self.index().context_of(unit, bus);
            if let Some(word) = listed {
                let sealed = self.reader.context_table(word).map_or(0, |(_, record)| record.table);
                let found = if entry.present() { entry.context_table().get() } else { 0 };
                self.sink.checked(Invariant::I4, 1);
                if sealed != found {
                    let what = What::Differs { item: Item::ContextTable, sealed, found };
                    self.found_on(Invariant::I4, state.id, at.get(), what);
                }
            }
            if entry.present() {
                self.root_entry(unit, state, bus, entry, at)?;
            }
            if listed.is_none() && self.stage == Stage::Sealed {
                (*low, *high) = (0, 0);
            }
        }
        self.hash(hasher, words.words);
        self.work.put(words);
        Ok(true)
    }

    /// A present root entry.
    fn root_entry(
        &mut self,
        unit: u32,
        state: &UnitState,
        bus: u8,
        entry: RootEntry,
        at: PhysAddr,
    ) -> Result<(), Unreadable> {
        let table = entry.context_table();
        let listed = self.index().context_of(unit, bus).is_some();
        self.sink.checked(Invariant::I2, 1);
        if !listed && self.stage == Stage::Sealed {
            add(&mut self.sink.totals.root_entries_to_cut_off, 1);
            self.context_table(unit, state, bus, table, None);
            return Ok(());
        }
        // Findings about a stranger's bus name the bus's first function.
        let stranger = (!listed).then(|| Requester::new(state.id.segment, SourceId::new(bus, 0, 0)));
        if let Some(stranger) = stranger {
            self.work.suspect(unit, stranger);
            self.entry_finding(Invariant::I2, state, Some(stranger), at, What::BusNotListed { bus });
        }
        let [low, high] = entry.raw();
        let [low_reserved, high_reserved] = RootEntry::RESERVED;
        let words = [(at, low & (low_reserved | BEYOND_ADDRESS)), (at.plus(8), high & high_reserved)];
        for (at, bits) in words.into_iter().filter(|(_, bits)| *bits != 0) {
            self.entry_finding(Invariant::I1, state, stranger, at, What::ReservedBits { bits });
        }
        self.frame_preserved(state, stranger, table, Role::ContextTable)
    }

    fn entry_finding(
        &mut self,
        invariant: Invariant,
        state: &UnitState,
        requester: Option<Requester>,
        at: PhysAddr,
        what: What,
    ) {
        let (unit, at) = (Some(state.id), at.get());
        self.sink.found(Finding { invariant, requester, domain: None, unit, at, what });
    }

    /// Hashes the recorded context tables of a unit and walks those that hardware reads. Says whether the recorded ones
    /// could be read.
    fn context_tables(
        &mut self,
        unit: u32,
        state: &UnitState,
        hasher: &mut Hasher,
    ) -> Result<bool, Unreadable> {
        let mut complete = true;
        for &word in self.index().contexts_of(unit) {
            let Some((_, record)) = self.reader.context_table(word) else { continue };
            let table = PhysAddr::new(record.table);
            let live = self.live_context_table(state, record.bus);
            if live.is_some_and(|live| live != table) || record.half != 0 {
                // Reported as a difference; what hardware reads is still checked for strangers.
                if let Some(live) = live {
                    self.context_table(unit, state, record.bus, live, None);
                }
            }
            complete &= self.context_table(unit, state, record.bus, table, Some(hasher));
        }
        // Present root entries of other buses were walked or reported with the root table.
        if self.stage == Stage::Arrived {
            for bus in 0u8..=u8::MAX {
                if self.index().context_of(unit, bus).is_none() {
                    if let Some(live) = self.live_context_table(state, bus) {
                        self.context_table(unit, state, bus, live, None);
                    }
                }
            }
        }
        Ok(complete)
    }

    /// The context table that hardware reads for a bus, if its root entry is present.
    pub(crate) fn live_context_table(&self, state: &UnitState, bus: u8) -> Option<PhysAddr> {
        let at = state.root.table().checked_add(u64::from(bus).saturating_mul(16))?;
        let mut words = [0; 2];
        self.image.read(at, &mut words).ok()?;
        let entry = RootEntry::from_raw(words);
        entry.present().then(|| entry.context_table())
    }

    /// Walks one context table: entries of strangers are counted or reported. With a hasher: hashes it as it will be (or
    /// is) after the cut-off. Says whether it could be read.
    fn context_table(
        &mut self,
        unit: u32,
        state: &UnitState,
        bus: u8,
        table: PhysAddr,
        hasher: Option<&mut Hasher>,
    ) -> bool {
        add(&mut self.sink.totals.context_tables, 1);
        let Some(words) = self.work.read(self.image, 1, table) else {
            let stranger = self.index().context_of(unit, bus).is_none();
            let stranger = stranger.then(|| Requester::new(state.id.segment, SourceId::new(bus, 0, 0)));
            if self.stage == Stage::Arrived || stranger.is_none() {
                let what = What::Unreadable(Role::ContextTable);
                self.entry_finding(Invariant::I1, state, stranger, table, what);
            }
            return false;
        };
        for (devfn, (low, high)) in (0u8..=u8::MAX).zip(pairs(words.words)) {
            let entry = ContextEntry::from_raw([*low, *high]);
            let source = SourceId::from_raw(u16::from(bus) << 8 | u16::from(devfn));
            let requester = Requester::new(state.id.segment, source);
            let owned = self.owned_by_unit(requester, state);
            if entry.present() {
                let at = table.plus(u64::from(devfn).saturating_mul(16));
                self.present_entry(unit, state, requester, owned, at);
            }
            if !owned && self.stage == Stage::Sealed {
                (*low, *high) = (0, 0);
            }
        }
        if let Some(hasher) = hasher {
            self.hash(hasher, words.words);
        }
        self.work.put(words);
        true
    }

    fn present_entry(
        &mut self,
        unit: u32,
        state: &UnitState,
        requester: Requester,
        owned: bool,
        at: PhysAddr,
    ) {
        self.sink.checked(Invariant::I2, 1);
        if owned {
            add(&mut self.sink.totals.kept_entries, 1);
        } else if self.stage == Stage::Sealed {
            add(&mut self.sink.totals.entries_to_cut_off, 1);
        } else {
            self.work.suspect(unit, requester);
            self.entry_finding(Invariant::I2, state, Some(requester), at, What::EntryNotOwned);
        }
    }

    /// Whether the requester is preserved, or an alias of one that is, on this very unit.
    fn owned_by_unit(&self, requester: Requester, state: &UnitState) -> bool {
        let owner = self.index().owner(requester).and_then(|ordinal| self.reader.requester(ordinal));
        let unit = owner.and_then(|(_, owner)| self.reader.unit(owner.unit));
        unit.is_some_and(|(_, unit)| unit_id(&unit) == state.id)
    }

    pub(crate) fn hash(&mut self, hasher: &mut Hasher, words: &[u64]) {
        hasher.update_words(words);
        add(&mut self.sink.totals.bytes_hashed, (words.len() as u64).saturating_mul(8));
    }
}

/// The words of a table of 16-byte entries, two by two.
fn pairs(words: &mut [u64; FRAME_WORDS]) -> impl Iterator<Item = (&mut u64, &mut u64)> {
    words.chunks_exact_mut(2).filter_map(|pair| match pair {
        [low, high] => Some((low, high)),
        _ => None,
    })
}
