//! The context entries of preserved requesters and their aliases, as hardware reads them (I1, I3, I4), and the domain
//! ids in records and entries (I5). What is particular to scalable mode is in [`crate::scalable`].

use crate::audit::{Audit, UnitState};
use crate::collect::unit_id;
use crate::finding::{Finding, Invariant, Item, What};
use crate::image::Image;
use crate::index::requester_of;
use crate::mode::{BEYOND_ADDRESS, Mode, word_addresses};
use spec::context::{ContextEntry, TranslationType};
use spec::handover::{Domain, DomainIdUse, RequesterRecord, Unit};
use spec::regs::RootAddr;
use spec::{Requester, SourceId, UnitId};

/// Everything that is known of one source-id of a preserved requester.
pub(crate) struct Subject {
    /// The source-id whose entry is looked at.
    pub(crate) requester: Requester,
    /// Ordinal of the requester that it belongs to.
    pub(crate) ordinal: u32,
    /// The record of that requester.
    pub(crate) record: RequesterRecord,
    unit: Unit,
    domain: Option<Domain>,
}

impl Subject {
    /// A finding about it.
    pub(crate) fn finding(&self, invariant: Invariant, at: u64, what: What) -> Finding {
        let (requester, unit) = (Some(self.requester), Some(unit_id(&self.unit)));
        Finding { invariant, requester, domain: self.domain.map(|domain| domain.token), unit, at, what }
    }
}

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// I5 for the records: each id in range and used once per unit.
    pub(crate) fn domain_ids(&mut self) {
        let mut previous: Option<(u32, u16, u32)> = None;
        for &word in self.index().ids_by_unit {
            let Some((at, use_)) = self.reader.domain_id(word) else { continue };
            let unit = self.reader.unit(use_.unit).map(|(_, unit)| unit_id(&unit));
            let token = self.reader.token(use_.domain);
            let limit = self.state(use_.unit).map(|state| state.cap.domain_ids());
            self.sink.checked(Invariant::I5, 1);
            if use_.id == 0 {
                self.id_finding(unit, token, at, What::DomainIdZero);
            }
            if let Some(limit) = limit.filter(|limit| u32::from(use_.id) >= *limit) {
                self.id_finding(unit, token, at, What::DomainIdTooLarge { id: use_.id, limit });
            }
            if let Some((_, id, other)) =
                previous.filter(|(unit, id, _)| (*unit, *id) == (use_.unit, use_.id))
            {
                let other = self.reader.token(other);
                self.id_finding(unit, token, at, What::DomainIdTwice { id, other });
            }
            previous = Some((use_.unit, use_.id, use_.domain));
        }
        self.two_ids();
    }

    /// I5: a domain has one id per unit.
    fn two_ids(&mut self) {
        for domain in (0u32..).take(self.index().domains.len()) {
            let ids = self.index().ids_of(domain);
            let token = self.reader.token(domain);
            for (position, &word) in ids.iter().enumerate() {
                let Some((at, use_)) = self.reader.domain_id(word) else { continue };
                let twice = ids.iter().take(position).filter_map(|&word| self.reader.domain_id(word));
                let mut twice = twice.filter(|(_, other)| other.unit == use_.unit && other.id != use_.id);
                if twice.next().is_some() {
                    let unit = self.reader.unit(use_.unit).map(|(_, unit)| unit_id(&unit));
                    self.id_finding(unit, token, at, What::DomainIdTwice { id: use_.id, other: token });
                }
            }
        }
    }

    fn id_finding(&mut self, unit: Option<UnitId>, token: u64, at: u64, what: What) {
        let (invariant, domain) = (Invariant::I5, Some(token));
        self.sink.found(Finding { invariant, requester: None, domain, unit, at, what });
    }

    /// All entries of preserved requesters and aliases.
    pub(crate) fn entries(&mut self) {
        for &word in self.index().sources {
            let Ok(ordinal) = u32::try_from(word & 0xffff_ffff) else { continue };
            let Some((at, record)) = self.reader.requester(ordinal) else { continue };
            let Some((_, unit)) = self.reader.unit(record.unit) else { continue };
            let source = SourceId::from_raw(u16::try_from(word >> 32 & 0xffff).unwrap_or_default());
            let requester = Requester::new(requester_of(&record).segment, source);
            let domain = self.reader.domain(record.domain).map(|(_, domain)| domain);
            let subject = Subject { requester, ordinal, record, unit, domain };
            self.sink.checked(Invariant::I4, 1);
            if record.segment != unit.segment {
                self.sink.found(subject.finding(Invariant::I4, at, What::WrongSegment));
                continue;
            }
            let mode = Mode::of(RootAddr::from_raw(unit.root)).unwrap_or(Mode::Legacy);
            let half = mode.half(source.devfn());
            if self.index().context_of(record.unit, source.bus(), half).is_none() {
                self.sink.found(subject.finding(Invariant::I4, at, What::NoContextTable));
            }
            if let Some(state) = self.state(record.unit) {
                self.live_entry(&subject, &state, mode, at);
            }
        }
    }

    /// The entry that hardware reads for this source-id.
    fn live_entry(&mut self, subject: &Subject, state: &UnitState, mode: Mode, record_at: u64) {
        if Mode::of(state.root) != Some(mode) {
            return;
        }
        let source = subject.requester.source;
        let table = self.live_context_table(state, source.bus(), mode.half(source.devfn()));
        let at = table.and_then(|table| mode.entry_at(table, source.devfn()));
        let mut words = [0; 4];
        let entry = words.get_mut(..mode.entry_words()).unwrap_or_default();
        let read = at.is_some_and(|at| self.image.read(at, entry).is_ok());
        let at = at.map_or(record_at, |at| at.get());
        let [low, high, ..] = words;
        self.sink.checked(Invariant::I4, mode.entry_words() as u64);
        if !read || low & 1 == 0 {
            self.work.suspect(subject.record.unit, subject.requester);
            self.sink.found(subject.finding(Invariant::I4, at, What::EntryNotPresent));
            return;
        }
        let ([first, second], [third, fourth]) = (subject.record.context, subject.record.context_high);
        let items = [
            Item::ContextEntryLow,
            Item::ContextEntryHigh,
            Item::ContextEntryWord(2),
            Item::ContextEntryWord(3),
        ];
        let found = items.into_iter().zip([first, second, third, fourth]).zip(words).take(mode.entry_words());
        for (((item, sealed), found), word_at) in found.zip(word_addresses(at)) {
            if sealed != found {
                self.work.suspect(subject.record.unit, subject.requester);
                let what = What::Differs { item, sealed, found };
                self.sink.found(subject.finding(Invariant::I4, word_at, what));
            }
        }
        if mode == Mode::Scalable {
            self.scalable_entry(subject, state, words, at);
        } else {
            let entry = ContextEntry::from_raw([low, high]);
            self.entry_format(subject, state, entry, at);
            self.entry_domain(subject, entry, at);
        }
    }

    /// Reserved bits, translation type, levels.
    fn entry_format(&mut self, subject: &Subject, state: &UnitState, entry: ContextEntry, at: u64) {
        let [low, high] = entry.raw();
        let [low_reserved, high_reserved] = ContextEntry::RESERVED;
        let words =
            [(at, low & (low_reserved | BEYOND_ADDRESS)), (at.saturating_add(8), high & high_reserved)];
        for (at, bits) in words {
            if bits != 0 {
                self.sink.found(subject.finding(Invariant::I1, at, What::ReservedBits { bits }));
            }
        }
        self.sink.checked(Invariant::I3, 1);
        let supported = match entry.translation_type() {
            TranslationType::SecondStage => true,
            TranslationType::SecondStageDeviceTlb => state.ecap.dt(),
            TranslationType::PassThrough => {
                self.sink.found(subject.finding(Invariant::I3, at, What::PassThrough));
                true
            }
            TranslationType::Reserved => false,
        };
        if !supported {
            let what = What::TranslationTypeUnsupported { tt: entry.tt() as u8 };
            self.sink.found(subject.finding(Invariant::I1, at, what));
        }
        self.sink.checked(Invariant::I1, 1);
        let levels = entry.levels();
        if !(3..=5).contains(&levels) || !state.cap.supports_levels(levels) {
            self.sink.found(subject.finding(Invariant::I1, at, What::LevelsUnsupported { levels }));
        }
    }

    /// The entry leads to the tables of the requester's domain, under the domain's id.
    fn entry_domain(&mut self, subject: &Subject, entry: ContextEntry, at: u64) {
        let Some(domain) = subject.domain else { return };
        if entry.translation_type() != TranslationType::PassThrough {
            let pairs = [
                (Item::TopTable, domain.top_table, entry.top_table().get()),
                (Item::Levels, u64::from(domain.levels), u64::from(entry.levels())),
            ];
            for (item, sealed, found) in pairs {
                self.sink.checked(Invariant::I1, 1);
                if sealed != found {
                    self.sink.found(subject.finding(
                        Invariant::I1,
                        at,
                        What::Differs { item, sealed, found },
                    ));
                }
            }
        }
        self.sink.checked(Invariant::I5, 1);
        let recorded = self.recorded_id(subject.record.domain, subject.record.unit);
        let found = entry.domain_id().0;
        match recorded {
            None => self.sink.found(subject.finding(Invariant::I5, at, What::DomainIdMissing)),
            Some(id) if id.id != found => {
                let what = What::DomainIdDiffers { recorded: id.id, found };
                self.sink.found(subject.finding(Invariant::I5, at, what));
            }
            Some(_) => {}
        }
    }

    /// The id recorded for a domain on a unit.
    pub(crate) fn recorded_id(&self, domain: u32, unit: u32) -> Option<DomainIdUse> {
        let ids = self.index().ids_of(domain).iter().filter_map(|&word| self.reader.domain_id(word));
        ids.map(|(_, id)| id).find(|id| id.unit == unit)
    }
}
