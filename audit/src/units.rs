//! Units against their records: registers (I4, I8, I10), and the root and context tables that hardware reads (I1, I2).
//!
//! The tables are walked from the root pointer in the register, not from the one in the record, in either mode: see
//! [`crate::mode`]. What the entries of preserved requesters say is checked in [`crate::entries`]; what lies below them in
//! scalable mode is walked by [`crate::pasids`].

use crate::audit::{Audit, Stage, UnitState};
use crate::collect::unit_id;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, Item, Role, What};
use crate::image::{FRAME_WORDS, Image};
use crate::index::{Walked, requester_with};
use crate::mode::{BEYOND_ADDRESS, Mode};
use crate::report::add;
use spec::handover::Unit;
use spec::regs::{RootAddr, offset};
use spec::root::RootEntry;
use spec::xxh64::Hasher;
use spec::{PhysAddr, Requester, SourceId};

/// Half a bus on a unit: what one context table speaks of. In legacy mode the first half is all of it.
#[derive(Clone, Copy)]
struct Place {
    /// Ordinal of the unit.
    unit: u32,
    bus: u8,
    half: u8,
}

impl Place {
    /// The first function there, which findings name when they speak of no other.
    fn first_function(self, state: &UnitState) -> Requester {
        Requester::new(state.id.segment, SourceId::new(self.bus, self.half << 4, 0))
    }
}

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
        let Some(mode) = Mode::of(state.root) else { return Ok(()) };
        if Mode::of(RootAddr::from_raw(record.root)) != Some(mode) {
            // The records speak of other tables than hardware reads.
            let at = state.id.register_base.saturating_add(offset::RTADDR);
            let what = What::ModeNotWalked { ttm: state.root.ttm() as u8 };
            self.found_on(Invariant::I1, state.id, at, what);
            return Ok(());
        }
        let mut hasher = Hasher::new(0);
        let complete = self.root_table(ordinal, state, mode, &mut hasher)?;
        let complete = self.context_tables(ordinal, state, mode, &mut hasher)? && complete;
        let complete = self.pasid_structures(ordinal, state, &mut hasher)? && complete;
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
        let sealed = RootAddr::from_raw(record.root);
        let mode = state.root.ttm();
        self.sink.checked(Invariant::I8, 2);
        if !state.status.tes() {
            self.found_on(Invariant::I8, state.id, base.saturating_add(offset::GSTS), What::TranslationOff);
        }
        let root_at = base.saturating_add(offset::RTADDR);
        let offered = match Mode::of(state.root) {
            Some(Mode::Legacy) => true,
            Some(Mode::Scalable) => state.ecap.smts() || sealed.ttm() != mode,
            None => false,
        };
        if !offered {
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
    fn root_table(
        &mut self,
        unit: u32,
        state: &UnitState,
        mode: Mode,
        hasher: &mut Hasher,
    ) -> Result<bool, Unreadable> {
        let table = state.root.table();
        self.frame_preserved(state, None, table, Role::RootTable)?;
        let Some(words) = self.work.read(self.image, 0, table) else {
            self.found_on(Invariant::I1, state.id, table.get(), What::Unreadable(Role::RootTable));
            return Ok(false);
        };
        for (bus, (low, high)) in (0u8..=u8::MAX).zip(pairs(words.words)) {
            let at = table.plus(u64::from(bus).saturating_mul(16));
            let place = Place { unit, bus, half: 0 };
            match mode {
                Mode::Legacy => {
                    if RootEntry::from_raw([*low, 0]).present() && *high != 0 {
                        let stranger = self.stranger(place, state);
                        if stranger.is_none() || self.stage == Stage::Arrived {
                            let what = What::ReservedBits { bits: *high };
                            self.entry_finding(Invariant::I1, state, stranger, at.plus(8), what);
                        }
                    }
                    self.root_pointer(place, state, mode, low, at)?;
                    if self.stage == Stage::Sealed && self.index().context_of(unit, bus, 0).is_none() {
                        *high = 0;
                    }
                }
                Mode::Scalable => {
                    self.root_pointer(place, state, mode, low, at)?;
                    self.root_pointer(Place { half: 1, ..place }, state, mode, high, at.plus(8))?;
                }
            }
        }
        self.hash(hasher, words.words);
        self.work.put(words);
        Ok(true)
    }

    /// Whom findings name about a place where nothing was preserved; `None` where something was.
    fn stranger(&self, place: Place, state: &UnitState) -> Option<Requester> {
        let listed = self.index().context_of(place.unit, place.bus, place.half).is_some();
        (!listed).then(|| place.first_function(state))
    }

    /// The word of a root entry that points to the context table of `place`.
    fn root_pointer(
        &mut self,
        place: Place,
        state: &UnitState,
        mode: Mode,
        word: &mut u64,
        at: PhysAddr,
    ) -> Result<(), Unreadable> {
        let entry = RootEntry::from_raw([*word, 0]);
        let listed = self.index().context_of(place.unit, place.bus, place.half);
        if let Some(record) = listed {
            let sealed = self.reader.context_table(record).map_or(0, |(_, record)| record.table);
            let found = if entry.present() { entry.context_table().get() } else { 0 };
            self.sink.checked(Invariant::I4, 1);
            if sealed != found {
                let what = What::Differs { item: Item::ContextTable, sealed, found };
                self.found_on(Invariant::I4, state.id, at.get(), what);
            }
        }
        if entry.present() {
            self.present_pointer(place, state, mode, entry, at)?;
        }
        if listed.is_none() && self.stage == Stage::Sealed {
            *word = 0;
        }
        Ok(())
    }

    fn present_pointer(
        &mut self,
        place: Place,
        state: &UnitState,
        mode: Mode,
        entry: RootEntry,
        at: PhysAddr,
    ) -> Result<(), Unreadable> {
        let table = entry.context_table();
        self.sink.checked(Invariant::I2, 1);
        let stranger = self.stranger(place, state);
        if stranger.is_some() && self.stage == Stage::Sealed {
            add(&mut self.sink.totals.root_entries_to_cut_off, 1);
            self.context_table(place, state, mode, table, None);
            return Ok(());
        }
        // Findings about a stranger's bus name the bus's first function.
        if let Some(stranger) = stranger {
            self.work.suspect(place.unit, stranger);
            let what = What::BusNotListed { bus: place.bus };
            self.entry_finding(Invariant::I2, state, Some(stranger), at, what);
        }
        let [low, _] = entry.raw();
        let [reserved, _] = RootEntry::RESERVED;
        let bits = low & (reserved | BEYOND_ADDRESS);
        if bits != 0 {
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
        mode: Mode,
        hasher: &mut Hasher,
    ) -> Result<bool, Unreadable> {
        let mut complete = true;
        for &word in self.index().contexts_of(unit) {
            let Some((_, record)) = self.reader.context_table(word) else { continue };
            let table = PhysAddr::new(record.table);
            let place = Place { unit, bus: record.bus, half: record.half };
            if place.half >= mode.halves() {
                continue;
            }
            let live = self.live_context_table(state, place.bus, place.half);
            if let Some(live) = live.filter(|live| *live != table) {
                // Reported as a difference; what hardware reads is still checked for strangers.
                self.context_table(place, state, mode, live, None);
            }
            complete &= self.context_table(place, state, mode, table, Some(hasher));
        }
        // Present root entries of other buses were walked or reported with the root table.
        if self.stage == Stage::Arrived {
            for bus in 0u8..=u8::MAX {
                for half in 0..mode.halves() {
                    let listed = self.index().context_of(unit, bus, half).is_some();
                    let live = self.live_context_table(state, bus, half).filter(|_| !listed);
                    if let Some(live) = live {
                        self.context_table(Place { unit, bus, half }, state, mode, live, None);
                    }
                }
            }
        }
        Ok(complete)
    }

    /// The context table that hardware reads for (half) a bus, if the root entry has it.
    pub(crate) fn live_context_table(&self, state: &UnitState, bus: u8, half: u8) -> Option<PhysAddr> {
        let offset = u64::from(bus).saturating_mul(16).saturating_add(u64::from(half).saturating_mul(8));
        let at = state.root.table().checked_add(offset)?;
        let mut word = [0];
        self.image.read(at, &mut word).ok()?;
        let [word] = word;
        let entry = RootEntry::from_raw([word, 0]);
        entry.present().then(|| entry.context_table())
    }

    /// Walks one context table: entries of strangers are counted or reported. With a hasher: hashes it as it will be (or
    /// is) after the cut-off. Says whether it could be read.
    fn context_table(
        &mut self,
        place: Place,
        state: &UnitState,
        mode: Mode,
        table: PhysAddr,
        hasher: Option<&mut Hasher>,
    ) -> bool {
        add(&mut self.sink.totals.context_tables, 1);
        let Some(words) = self.work.read(self.image, 1, table) else {
            let stranger = self.stranger(place, state);
            if self.stage == Stage::Arrived || stranger.is_none() {
                let what = What::Unreadable(Role::ContextTable);
                self.entry_finding(Invariant::I1, state, stranger, table, what);
            }
            return false;
        };
        let first = place.half.saturating_mul(0x80);
        for (devfn, entry) in (first..=u8::MAX).zip(words.words.chunks_exact_mut(mode.entry_words())) {
            let source = SourceId::from_raw(u16::from(place.bus) << 8 | u16::from(devfn));
            let requester = Requester::new(state.id.segment, source);
            let owned = self.owned_by_unit(requester, state);
            // The present bit is the same in both modes.
            if entry.first().is_some_and(|word| word & 1 == 1) {
                let at = mode.entry_at(table, devfn).unwrap_or(table);
                self.present_entry(place.unit, state, requester, owned, at);
            }
            if !owned && self.stage == Stage::Sealed {
                entry.fill(0);
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
