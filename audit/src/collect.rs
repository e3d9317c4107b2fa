//! From records to the index: every record is read once, its references are checked, and duplicates are found.
//!
//! A record that is wrong in itself becomes a finding and is left out; what depends on it is then found missing where it
//! is needed.

use crate::UnitState;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, RecordKind, What};
use crate::handover::{Counts, Handover, Located, Record};
use crate::image::Image;
use crate::index::{
    Attached, Index, Parts, Range, Region, Run, alias_of, known_region, requester_of, run_of,
};
use crate::index::{attachment_key, pasid_slot, use_flags};
use crate::index::{requester_with, source_key, word_offset};
use crate::mode::Mode;
use crate::report::Sink;
use crate::scratch::List;
use spec::handover::{self as wire, pasid_tables_kind};
use spec::regs::{Irta, RootAddr};
use spec::scalable::PasidEntry;
use spec::{Extent, PAGE_SIZE, PhysAddr, Segment, UnitId};

/// PASIDs are numbers of 20 bits.
const PASIDS: u32 = 1 << 20;

/// The unit that a record names.
pub(crate) fn unit_id(unit: &wire::Unit) -> UnitId {
    UnitId { segment: Segment(unit.segment), register_base: unit.register_base }
}

/// First frame and the frame behind the last, of a range in bytes.
fn frames(start: u64, bytes: u64) -> Option<(u64, u64)> {
    let run = Extent::from_bytes(PhysAddr::new(start), bytes)?;
    Some((run.first().number(), run.end().number()))
}

/// Reads all records into `parts` and makes the index of them.
pub(crate) fn collect<'s, I: Image + ?Sized>(
    handover: &Handover<'_, I>,
    counts: &Counts,
    units: &[UnitState],
    parts: Parts<'s>,
    sink: &mut Sink<'_>,
) -> Result<Index<'s>, Unreadable> {
    let mut collector = Collector { start: handover.start(), counts, units, parts, sink, bits: 0 };
    for located in handover.records() {
        collector.take(&located?);
    }
    // What refers to requesters that may come later: a second pass over it alone.
    collector.dependents(handover)?;
    collector.device_tlbs(handover)?;
    collector.tokens(handover)?;
    let index = collector.parts.finish();
    duplicates(&index, handover, sink);
    halves(&index, handover, sink);
    Ok(index)
}

pub(crate) struct Collector<'a, 's, 'f> {
    start: PhysAddr,
    counts: &'a Counts,
    units: &'a [UnitState],
    parts: Parts<'s>,
    sink: &'a mut Sink<'f>,
    /// Bits of the visited bitmap given out.
    bits: u64,
}

impl Collector<'_, '_, '_> {
    pub(crate) fn found(&mut self, at: PhysAddr, what: What) {
        self.sink.found(about(at, what));
    }

    /// Counts checks of an invariant.
    pub(crate) fn checked(&mut self, invariant: Invariant, items: u64) {
        self.sink.checked(invariant, items);
    }

    /// Where the records start.
    pub(crate) fn start(&self) -> PhysAddr {
        self.start
    }

    /// The record of the requester with this ordinal.
    pub(crate) fn requester_at<I: Image + ?Sized>(
        &self,
        handover: &Handover<'_, I>,
        ordinal: u32,
    ) -> Option<wire::RequesterRecord> {
        let offset = usize::try_from(ordinal).ok().and_then(|at| self.parts.requesters.get(at))?;
        match handover.record_at(self.start.plus(offset.saturating_mul(8)))? {
            Record::Requester(requester) => Some(requester),
            _ => None,
        }
    }

    /// The record of the unit with this ordinal.
    pub(crate) fn unit_at<I: Image + ?Sized>(
        &self,
        handover: &Handover<'_, I>,
        ordinal: u32,
    ) -> Option<wire::Unit> {
        let offset = usize::try_from(ordinal).ok().and_then(|at| self.parts.units.get(at))?;
        match handover.record_at(self.start.plus(offset.saturating_mul(8)))? {
            Record::Unit(unit) => Some(unit),
            _ => None,
        }
    }

    /// Whether `ordinal` is below `count`; a finding otherwise.
    pub(crate) fn refers(&mut self, at: PhysAddr, from: RecordKind, to: RecordKind, ordinal: u32) -> bool {
        let count = match to {
            RecordKind::Unit => self.counts.units,
            RecordKind::Domain => self.counts.domains,
            _ => self.counts.requesters,
        };
        let there = u64::from(ordinal) < count;
        if !there {
            self.found(at, What::Dangling { from, to, ordinal });
        }
        there
    }

    fn take(&mut self, located: &Located) {
        let at = located.at;
        let offset = word_offset(self.start, located);
        self.sink.checked(Invariant::I4, 1);
        match &located.record {
            Record::Unit(unit) => self.unit(offset, unit),
            Record::ContextTable(table) => self.context_table(at, offset, table),
            Record::Scratch(scratch) => match frames(scratch.start, scratch.bytes) {
                Some((start, end)) => self.parts.scratch.push(Range { start, end }),
                None => self.found(at, What::BadRange(RecordKind::Scratch)),
            },
            Record::Region(region) => self.region(at, region),
            Record::Domain(_) => self.parts.domains.push(offset),
            Record::DomainTables(run) => self.domain_tables(at, offset, run),
            Record::DomainId(id) => {
                let domain = self.refers(at, RecordKind::DomainId, RecordKind::Domain, id.domain);
                let unit = self.refers(at, RecordKind::DomainId, RecordKind::Unit, id.unit);
                if domain && unit {
                    self.parts.ids_by_unit.push(u64::from(id.unit) << 40 | u64::from(id.id) << 24 | offset);
                    self.parts.ids_by_domain.push(u64::from(id.domain) << 40 | offset);
                }
            }
            Record::Requester(requester) => self.requester(at, offset, requester),
            Record::Container(container) => match frames(container.start, container.bytes) {
                Some((start, end)) => {
                    self.parts.runs.push(Run { start, end, owner: run_of::CONTAINER, bit: 0 });
                }
                None => self.found(at, What::BadRange(RecordKind::Container)),
            },
            Record::InterruptTable(table) => self.interrupt_table(at, offset, table),
            Record::InterruptEntry(entry) => self.interrupt_entry(at, offset, entry),
            Record::Release(_)
            | Record::Alias(_)
            | Record::PasidTables(_)
            | Record::Attachment(_)
            | Record::DeviceTlb(_)
            | Record::Unknown { .. } => {}
        }
    }

    fn unit(&mut self, offset: u64, unit: &wire::Unit) {
        let id = unit_id(unit);
        let state = self.units.iter().position(|state| state.id == id);
        let ordinal = self.parts.units.len();
        if let (Some(slot), Some(position)) = (self.parts.states.get_mut(ordinal), state) {
            *slot = (position as u64).saturating_add(1);
        }
        self.parts.units.push(offset);
        let start = RootAddr::from_raw(unit.root).table().frame().number();
        self.parts.runs.push(Run { start, end: start.saturating_add(1), owner: run_of::ROOT, bit: 0 });
    }

    fn context_table(&mut self, at: PhysAddr, offset: u64, table: &wire::ContextTable) {
        if !self.refers(at, RecordKind::ContextTable, RecordKind::Unit, table.unit) {
            return;
        }
        let Some((start, end)) = frames(table.table, PAGE_SIZE) else {
            self.found(at, What::BadRange(RecordKind::ContextTable));
            return;
        };
        let unit = u64::from(table.unit) << 40;
        self.parts.contexts.push(unit | offset);
        // Other halves are reported when the unit's mode is known.
        if table.half <= 1 {
            let half = u64::from(table.half) << 31;
            self.parts.buses.push(unit | u64::from(table.bus) << 32 | half | offset);
        }
        self.parts.runs.push(Run { start, end, owner: run_of::CONTEXT, bit: 0 });
    }

    fn interrupt_table(&mut self, at: PhysAddr, offset: u64, table: &wire::InterruptTable) {
        if !self.refers(at, RecordKind::InterruptTable, RecordKind::Unit, table.unit) {
            return;
        }
        let Some(frames) = Irta::from_raw(table.irta).frames() else {
            self.found(at, What::BadRange(RecordKind::InterruptTable));
            return;
        };
        self.parts.interrupt_tables.push(u64::from(table.unit) << 40 | offset);
        let (start, end) = (frames.first().number(), frames.end().number());
        self.parts.runs.push(Run { start, end, owner: run_of::INTERRUPTS, bit: 0 });
    }

    fn interrupt_entry(&mut self, at: PhysAddr, offset: u64, entry: &wire::InterruptEntry) {
        let from = RecordKind::InterruptEntry;
        let unit = self.refers(at, from, RecordKind::Unit, entry.unit);
        let requester = self.refers(at, from, RecordKind::Requester, entry.requester);
        if entry.index > u32::from(u16::MAX) {
            self.found(at, What::BadRange(from));
        } else if unit && requester {
            let index = u64::from(entry.index) << 24;
            self.parts.interrupts.push(u64::from(entry.unit) << 40 | index | offset);
        }
    }

    fn region(&mut self, at: PhysAddr, region: &wire::Region) {
        if !known_region(region.kind) {
            self.found(at, What::RegionKindUnknown { kind: region.kind });
            return;
        }
        match frames(region.start, region.bytes) {
            Some((start, end)) => {
                let kind = u64::from(region.kind);
                self.parts.regions.push(Region { start, end, kind, token: region.token });
            }
            None => self.found(at, What::BadRange(RecordKind::Region)),
        }
    }

    fn domain_tables(&mut self, at: PhysAddr, offset: u64, run: &wire::DomainTables) {
        if !self.refers(at, RecordKind::DomainTables, RecordKind::Domain, run.domain) {
            return;
        }
        let Some((start, end)) = frames(run.start, run.bytes) else {
            self.found(at, What::BadRange(RecordKind::DomainTables));
            return;
        };
        let domain = u64::from(run.domain);
        self.parts.tables.push(domain << 40 | offset);
        self.parts.runs.push(Run { start, end, owner: domain << 8 | run_of::DOMAIN, bit: self.bits });
        self.bits = self.bits.saturating_add(end.saturating_sub(start));
    }

    fn requester(&mut self, at: PhysAddr, offset: u64, requester: &wire::RequesterRecord) {
        let ordinal = self.parts.requesters.len() as u64;
        self.parts.requesters.push(offset);
        let unit = self.refers(at, RecordKind::Requester, RecordKind::Unit, requester.unit);
        if self.refers(at, RecordKind::Requester, RecordKind::Domain, requester.domain) {
            self.used(requester.domain, ordinal);
        }
        if unit {
            self.parts.sources.push(source_key(requester_of(requester)) << 32 | ordinal);
        }
    }

    /// Notes the first requester that uses a domain.
    fn used(&mut self, domain: u32, requester: u64) {
        let user = usize::try_from(domain).ok().and_then(|at| self.parts.users.get_mut(at));
        if let Some(user) = user.filter(|user| **user == 0) {
            *user = requester.saturating_add(1);
        }
    }

    /// Aliases, PASID structures and attachments.
    fn dependents<I: Image + ?Sized>(&mut self, handover: &Handover<'_, I>) -> Result<(), Unreadable> {
        for located in handover.records() {
            let located = located?;
            let (from, requester) = match &located.record {
                Record::Alias(alias) => (RecordKind::Alias, alias.requester),
                Record::PasidTables(run) => (RecordKind::PasidTables, run.requester),
                Record::Attachment(attachment) => (RecordKind::Attachment, attachment.requester),
                _ => continue,
            };
            if !self.refers(located.at, from, RecordKind::Requester, requester) {
                continue;
            }
            let record = |list: &List<'_, u64>, ordinal: u32| {
                let offset = usize::try_from(ordinal).ok().and_then(|at| list.get(at))?;
                handover.record_at(self.start.plus(offset.saturating_mul(8)))
            };
            let Some(Record::Requester(owner)) = record(&self.parts.requesters, requester) else { continue };
            // What belongs to a requester whose own references are bad is left out with it.
            let Some(Record::Unit(unit)) = record(&self.parts.units, owner.unit) else { continue };
            if let Record::Alias(alias) = &located.record {
                let key = source_key(alias_of(alias, &owner));
                self.parts.sources.push(key << 32 | u64::from(requester));
                continue;
            }
            if Mode::of(RootAddr::from_raw(unit.root)) != Some(Mode::Scalable) {
                self.found(located.at, What::PasidInLegacyMode);
                continue;
            }
            let offset = word_offset(self.start, &located);
            match &located.record {
                Record::PasidTables(run) => self.pasid_tables(located.at, offset, run, owner.unit),
                Record::Attachment(attachment) => self.attachment(located.at, offset, attachment),
                _ => {}
            }
        }
        Ok(())
    }

    fn pasid_tables(&mut self, at: PhysAddr, offset: u64, run: &wire::PasidTables, unit: u32) {
        let directory = run.kind == pasid_tables_kind::DIRECTORY;
        let known = directory || run.kind == pasid_tables_kind::TABLE;
        let fits = if directory {
            run.first_pasid == 0
        } else {
            run.bytes == PAGE_SIZE && run.first_pasid % 64 == 0 && run.first_pasid < PASIDS
        };
        let Some((start, end)) = frames(run.start, run.bytes).filter(|_| known && fits) else {
            self.found(at, What::BadRange(RecordKind::PasidTables));
            return;
        };
        let requester = u64::from(run.requester);
        self.parts.pasid_runs.push(u64::from(unit) << 40 | offset);
        self.parts.pasid_slots.push(requester << 40 | pasid_slot(run) << 24 | offset);
        let of = if directory { run_of::PASID_DIRECTORY } else { run_of::PASID_TABLE };
        self.parts.runs.push(Run { start, end, owner: requester << 8 | of, bit: 0 });
    }

    fn attachment(&mut self, at: PhysAddr, offset: u64, attachment: &wire::Attachment) {
        if attachment.pasid >= PASIDS {
            self.found(at, What::NoPasidTable { pasid: attachment.pasid });
            return;
        }
        let key = attachment_key(attachment.requester, attachment.pasid);
        self.parts.attachments.push(Attached { key, offset });
        let entry = PasidEntry::from_raw(attachment.entry);
        let mut flags = 0;
        if entry.ssade() {
            flags |= use_flags::DIRTY;
        }
        if entry.ssee() {
            flags |= use_flags::EXECUTE;
        }
        if self.refers(at, RecordKind::Attachment, RecordKind::Domain, attachment.domain) {
            let below = u64::from(attachment.parent).saturating_add(1);
            self.used(attachment.domain, attachment.requester.into());
            self.uses(at, attachment.domain, below, flags);
        }
        let Some(parent) = attachment.parent.checked_sub(1) else { return };
        if self.refers(at, RecordKind::Attachment, RecordKind::Domain, parent) {
            self.used(parent, attachment.requester.into());
            self.uses(at, parent, 0, flags);
        }
    }

    /// Notes what an attachment says about a domain; `below` as in [`crate::index::Use::parent`], 0 for nothing.
    fn uses(&mut self, at: PhysAddr, domain: u32, below: u64, flags: u64) {
        let place = usize::try_from(domain).ok().and_then(|at| self.parts.uses.get_mut(at));
        let Some(noted) = place else { return };
        noted.flags |= flags;
        if noted.parent == 0 {
            noted.parent = below;
        } else if below != 0 && noted.parent != below {
            self.found(at, What::ParentsDiffer);
        }
    }

    /// Tokens that name two things of one kind.
    fn tokens<I: Image + ?Sized>(&mut self, handover: &Handover<'_, I>) -> Result<(), Unreadable> {
        for kind in [RecordKind::Region, RecordKind::Domain, RecordKind::Requester] {
            let tokens: &mut List<'_, u64> = &mut self.parts.tokens;
            tokens.clear();
            for located in handover.records() {
                match (kind, located?.record) {
                    (RecordKind::Region, Record::Region(region)) => tokens.push(region.token),
                    (RecordKind::Domain, Record::Domain(domain)) => tokens.push(domain.token),
                    (RecordKind::Requester, Record::Requester(requester)) => tokens.push(requester.token),
                    _ => {}
                }
            }
            let mut previous = None;
            let mut reported = None;
            for &token in tokens.sorted() {
                if previous == Some(token) && reported != Some(token) {
                    self.sink.found(about(handover.start(), What::TokenTwice { kind, token }));
                    reported = Some(token);
                }
                previous = Some(token);
            }
        }
        Ok(())
    }
}

/// A finding about a record as such.
fn about(at: PhysAddr, what: What) -> Finding {
    Finding { invariant: Invariant::I4, requester: None, domain: None, unit: None, at: at.get(), what }
}

/// Adjacent words whose bits from `shift` on are equal.
fn twins(list: &[u64], shift: u32) -> impl Iterator<Item = (u64, u64)> + '_ {
    let pairs = list.iter().zip(list.iter().skip(1)).map(|(a, b)| (*a, *b));
    pairs.filter(move |(a, b)| a >> shift == b >> shift)
}

/// Whether two requesters may share a source-id. Several requesters behind one bridge share its id as an alias,
/// and then their domain too; the same requester twice, or in two domains, is a contradiction.
fn may_share(a: &wire::RequesterRecord, b: &wire::RequesterRecord) -> bool {
    (a.source, a.segment) != (b.source, b.segment) && (a.unit, a.domain) == (b.unit, b.domain)
}

/// Records that speak of the same thing, found as neighbours in the sorted lists.
fn duplicates<I: Image + ?Sized>(index: &Index<'_>, handover: &Handover<'_, I>, sink: &mut Sink<'_>) {
    let reader = crate::index::Reader { handover: *handover, index: *index };
    for (_, word) in twins(index.buses, 31) {
        let Some((at, table)) = reader.context_table(word) else { continue };
        let unit = reader.unit(table.unit).map(|(_, unit)| unit_id(&unit));
        let what = What::RecordTwice(RecordKind::ContextTable);
        sink.found(Finding { unit, ..about(PhysAddr::new(at), what) });
    }
    for (first, second) in twins(index.sources, 32) {
        let requester = requester_with(second >> 32);
        let owner = |word: u64| reader.requester(u32::try_from(word & 0xffff_ffff).ok()?);
        let (Some((_, a)), Some((at, b))) = (owner(first), owner(second)) else { continue };
        if !may_share(&a, &b) {
            let what = What::RecordTwice(RecordKind::Requester);
            sink.found(Finding { requester: Some(requester), ..about(PhysAddr::new(at), what) });
        }
    }
    for (_, word) in twins(index.pasid_slots, 24) {
        let Some((at, _)) = reader.pasid_tables(word) else { continue };
        sink.found(about(PhysAddr::new(at), What::RecordTwice(RecordKind::PasidTables)));
    }
    for (first, second) in index.attachments.iter().zip(index.attachments.iter().skip(1)) {
        let Some((at, _)) = reader.attachment(second.offset).filter(|_| first.key == second.key) else {
            continue;
        };
        sink.found(about(PhysAddr::new(at), What::RecordTwice(RecordKind::Attachment)));
    }
    for (_, word) in twins(index.interrupts, 24) {
        let Some((at, _)) = reader.interrupt_record(word) else { continue };
        sink.found(about(PhysAddr::new(at), What::RecordTwice(RecordKind::InterruptEntry)));
    }
    for (_, word) in twins(index.interrupt_tables, 40) {
        let Some((at, _)) = reader.interrupt_table_record(word) else { continue };
        sink.found(about(PhysAddr::new(at), What::RecordTwice(RecordKind::InterruptTable)));
    }
    // Few units: each with those before it.
    let units = || (0u32..).take(index.units.len()).filter_map(|ordinal| reader.unit(ordinal));
    for (n, (at, unit)) in units().enumerate() {
        if units().take(n).any(|(_, other)| unit_id(&other) == unit_id(&unit)) {
            let what = What::RecordTwice(RecordKind::Unit);
            sink.found(Finding { unit: Some(unit_id(&unit)), ..about(PhysAddr::new(at), what) });
        }
    }
}

/// Context tables of a half that their unit's mode does not have.
fn halves<I: Image + ?Sized>(index: &Index<'_>, handover: &Handover<'_, I>, sink: &mut Sink<'_>) {
    let reader = crate::index::Reader { handover: *handover, index: *index };
    for &word in index.contexts {
        let Some((at, table)) = reader.context_table(word) else { continue };
        let mode = reader.unit(table.unit).and_then(|(_, unit)| Mode::of(RootAddr::from_raw(unit.root)));
        if table.half >= mode.map_or(2, Mode::halves) {
            sink.found(about(PhysAddr::new(at), What::HalfUnsupported { half: table.half }));
        }
    }
}
