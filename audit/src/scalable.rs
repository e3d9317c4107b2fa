//! What preserved requesters have in scalable mode: a context entry that leads to their PASID directory, and attachments
//! whose PASID entries lead to their domains' tables (I1, I3, I4, I5).
//!
//! [`crate::entries`] compares a context entry with its record and hands it on to here; [`crate::pasids`] walks the
//! structures below it and hands on each PASID entry that an attachment was recorded for.

use crate::audit::{Audit, UnitState};
use crate::collect::unit_id;
use crate::entries::Subject;
use crate::finding::{Finding, Invariant, Item, What};
use crate::image::Image;
use crate::index::{requester_of, table_slot};
use crate::mode::{BEYOND_ADDRESS, word_addresses};
use spec::handover::{Attachment, Domain, RequesterRecord, domain_format};
use spec::scalable::{PasidEntry, PasidTranslation, ScalableContextEntry};
use spec::{PhysAddr, UnitId};

/// The sealed context entry of a requester in scalable mode.
pub(crate) fn sealed_context(record: &RequesterRecord) -> ScalableContextEntry {
    let ([a, b], [c, d]) = (record.context, record.context_high);
    ScalableContextEntry::from_raw([a, b, c, d])
}

/// One preserved PASID, as findings speak of it.
pub(crate) struct Preserved {
    pub(crate) record: RequesterRecord,
    pub(crate) attachment: Attachment,
    /// Token of its domain.
    pub(crate) token: u64,
    pub(crate) unit: UnitId,
    /// Where its entry lies.
    pub(crate) at: u64,
}

impl Preserved {
    pub(crate) fn finding(&self, invariant: Invariant, what: What) -> Finding {
        self.finding_at(invariant, self.at, what)
    }
    fn finding_at(&self, invariant: Invariant, at: u64, what: What) -> Finding {
        let (requester, unit) = (Some(requester_of(&self.record)), Some(self.unit));
        Finding { invariant, requester, domain: Some(self.token), unit, at, what }
    }
}

/// `bits` unless the unit offers what they are for.
const fn unless(offered: bool, bits: u64) -> u64 {
    if offered { 0 } else { bits }
}

impl<I: Image + ?Sized> Audit<'_, '_, '_, I> {
    /// A context entry in scalable mode, of a requester or an alias: reserved bits, the directory, and the PASID of
    /// requests that carry none.
    pub(crate) fn scalable_entry(&mut self, subject: &Subject, state: &UnitState, words: [u64; 4], at: u64) {
        let entry = ScalableContextEntry::from_raw(words);
        let ecap = state.ecap;
        let [mut reserved, mut reserved_high, third, fourth] = ScalableContextEntry::RESERVED;
        reserved |= BEYOND_ADDRESS | unless(ecap.dt(), 1 << 2);
        reserved |= unless(ecap.pasid(), 1 << 3) | unless(ecap.prs(), 1 << 4);
        reserved_high |= unless(ecap.rps(), 0xf_ffff);
        let masks = [reserved, reserved_high, third, fourth];
        for ((word, mask), word_at) in words.into_iter().zip(masks).zip(word_addresses(at)) {
            let bits = word & mask;
            if bits != 0 {
                self.sink.found(subject.finding(Invariant::I1, word_at, What::ReservedBits { bits }));
            }
        }
        self.sink.checked(Invariant::I1, 1);
        match self.index().pasid_run(subject.ordinal, 0).and_then(|word| self.reader.pasid_tables(word)) {
            None => self.sink.found(subject.finding(Invariant::I4, at, What::NoPasidDirectory)),
            Some((_, run)) if run.start != entry.directory().get() => {
                let (sealed, found) = (run.start, entry.directory().get());
                let what = What::Differs { item: Item::PasidDirectory, sealed, found };
                self.sink.found(subject.finding(Invariant::I1, at, what));
            }
            Some(_) => {}
        }
        self.sink.checked(Invariant::I4, 1);
        let pasid = u32::try_from(entry.rid_pasid()).unwrap_or_default();
        let attachment = self.index().attachment(subject.ordinal, pasid);
        match attachment.and_then(|offset| self.reader.attachment(offset)) {
            None => self.sink.found(subject.finding(Invariant::I4, at, What::NoAttachment { pasid })),
            Some((_, attachment)) if attachment.domain != subject.record.domain => {
                let (sealed, found) = (subject.record.domain.into(), attachment.domain.into());
                let what = What::Differs { item: Item::DomainWithoutPasid, sealed, found };
                self.sink.found(subject.finding(Invariant::I4, at, what));
            }
            Some(_) => {}
        }
    }

    /// I4: the table of each attachment is in the handover, and within the directory.
    pub(crate) fn attachments(&mut self) {
        for attached in self.index().attachments {
            let Some((at, attachment)) = self.reader.attachment(attached.offset) else { continue };
            let Some((_, record)) = self.reader.requester(attachment.requester) else { continue };
            let Some((_, unit)) = self.reader.unit(record.unit) else { continue };
            let slot = table_slot(attachment.pasid);
            let listed = self.index().pasid_run(attachment.requester, slot).is_some();
            self.sink.checked(Invariant::I4, 1);
            if !listed || slot > sealed_context(&record).directory_entries() {
                let token = self.reader.token(attachment.domain);
                let preserved = Preserved { record, attachment, token, unit: unit_id(&unit), at };
                let what = What::NoPasidTable { pasid: attachment.pasid };
                self.sink.found(preserved.finding(Invariant::I4, what));
            }
        }
    }

    /// The present PASID entry of an attachment.
    pub(crate) fn pasid_entry(&mut self, preserved: &Preserved, state: &UnitState, entry: PasidEntry) {
        self.pasid_reserved(preserved, state, entry);
        let (nested, offered) = match entry.translation() {
            PasidTranslation::FirstStage => (false, state.ecap.fsts()),
            PasidTranslation::SecondStage => (false, state.ecap.ssts()),
            PasidTranslation::Nested => (true, state.ecap.nest()),
            PasidTranslation::PassThrough => (false, state.ecap.pt()),
            PasidTranslation::Reserved(_) => (false, false),
        };
        self.sink.checked(Invariant::I1, 1);
        if !offered {
            let what = What::TranslationTypeUnsupported { tt: entry.pgtt() as u8 };
            self.sink.found(preserved.finding(Invariant::I1, what));
        }
        self.sink.checked(Invariant::I4, 1);
        let parent = preserved.attachment.parent.checked_sub(1);
        if nested != parent.is_some() {
            let what = What::ParentWrong { pasid: preserved.attachment.pasid };
            self.sink.found(preserved.finding(Invariant::I4, what));
        }
        self.sink.checked(Invariant::I3, 1);
        let domain = preserved.attachment.domain;
        match entry.translation() {
            PasidTranslation::FirstStage => self.first_stage(preserved, state, entry, None),
            PasidTranslation::SecondStage => self.second_stage(preserved, state, entry, domain),
            PasidTranslation::Nested => {
                if let Some(parent) = parent {
                    self.first_stage(preserved, state, entry, Some(parent));
                    self.second_stage(preserved, state, entry, parent);
                }
            }
            PasidTranslation::PassThrough => {
                self.sink.found(preserved.finding(Invariant::I3, What::PassThrough));
            }
            PasidTranslation::Reserved(_) => {}
        }
        self.pasid_domain_id(preserved, entry);
    }

    fn pasid_reserved(&mut self, preserved: &Preserved, state: &UnitState, entry: PasidEntry) {
        let (words, ecap) = (entry.raw(), state.ecap);
        let kind = entry.translation();
        let first = matches!(kind, PasidTranslation::FirstStage | PasidTranslation::Nested);
        let second = matches!(kind, PasidTranslation::SecondStage | PasidTranslation::Nested);
        let mut masks = PasidEntry::RESERVED;
        let [zero, one, two, ..] = &mut masks;
        *zero |= unless(!second, BEYOND_ADDRESS) | unless(ecap.ssads(), 1 << 9);
        *one |= unless(ecap.smpwcs(), 1 << 23) | unless(ecap.sc(), 1 << 24);
        *two |= unless(!first, BEYOND_ADDRESS) | unless(ecap.srs(), 1) | unless(ecap.ers(), 1 << 1);
        for ((word, mask), at) in words.into_iter().zip(masks).zip(word_addresses(preserved.at)) {
            let bits = word & mask;
            if bits != 0 {
                let what = What::ReservedBits { bits };
                self.sink.found(preserved.finding_at(Invariant::I1, at, what));
            }
        }
        if first && entry.eafe() {
            self.sink.found(preserved.finding(Invariant::I4, What::ExtendedAccess));
        }
    }

    /// The first stage of an entry leads to the tables of its domain. Below a second stage, through that.
    fn first_stage(
        &mut self,
        preserved: &Preserved,
        state: &UnitState,
        entry: PasidEntry,
        parent: Option<u32>,
    ) {
        let levels = entry.first_stage_levels();
        self.sink.checked(Invariant::I1, 1);
        if !(4..=5).contains(&levels) || (levels == 5 && !state.cap.fs5lp()) {
            self.sink.found(preserved.finding(Invariant::I1, What::LevelsUnsupported { levels }));
        }
        let pointer = entry.first_stage_table();
        let top = match parent {
            None => pointer,
            Some(parent) => match self.through(parent, pointer.get()) {
                Some(top) => PhysAddr::new(top),
                None => {
                    let (table, level) = (pointer.get(), levels.saturating_sub(1));
                    let what = What::TableBeyondParent { table, level };
                    self.sink.found(preserved.finding(Invariant::I1, what));
                    return;
                }
            },
        };
        let domain = self.reader.domain(preserved.attachment.domain).map(|(_, domain)| domain);
        self.stage_domain(preserved, domain, domain_format::FIRST_STAGE, top, levels);
    }

    /// The second stage of an entry leads to the tables of `domain`.
    fn second_stage(&mut self, preserved: &Preserved, state: &UnitState, entry: PasidEntry, domain: u32) {
        let levels = entry.second_stage_levels();
        self.sink.checked(Invariant::I1, 1);
        if !(3..=5).contains(&levels) || !state.cap.supports_levels(levels) {
            self.sink.found(preserved.finding(Invariant::I1, What::LevelsUnsupported { levels }));
        }
        let domain = self.reader.domain(domain).map(|(_, domain)| domain);
        let top = entry.second_stage_table();
        self.stage_domain(preserved, domain, domain_format::SECOND_STAGE, top, levels);
    }

    fn stage_domain(
        &mut self,
        preserved: &Preserved,
        domain: Option<Domain>,
        format: u8,
        top: PhysAddr,
        levels: u8,
    ) {
        let Some(domain) = domain else { return };
        let items = [
            (Item::Format, u64::from(domain.format), u64::from(format)),
            (Item::TopTable, domain.top_table, top.get()),
            (Item::Levels, u64::from(domain.levels), u64::from(levels)),
        ];
        for (item, sealed, found) in items {
            self.sink.checked(Invariant::I1, 1);
            if sealed != found {
                let what = What::Differs { item, sealed, found };
                self.sink.found(preserved.finding(Invariant::I1, what));
            }
        }
    }

    /// I5: the id in the entry is the one recorded for the domain on this unit.
    fn pasid_domain_id(&mut self, preserved: &Preserved, entry: PasidEntry) {
        self.sink.checked(Invariant::I5, 1);
        let recorded = self.recorded_id(preserved.attachment.domain, preserved.record.unit);
        let found = entry.domain_id().0;
        match recorded {
            None => self.sink.found(preserved.finding(Invariant::I5, What::DomainIdMissing)),
            Some(id) if id.id != found => {
                let what = What::DomainIdDiffers { recorded: id.id, found };
                self.sink.found(preserved.finding(Invariant::I5, what));
            }
            Some(_) => {}
        }
    }
}
