//! From records to the index: every record is read once, its references are checked, and duplicates are found.
//!
//! A record that is wrong in itself becomes a finding and is left out; what depends on it is then found missing where it
//! is needed.

use crate::UnitState;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, RecordKind, What};
use crate::handover::{Counts, Handover, Located, Record};
use crate::image::Image;
use crate::index::{Index, Parts, Range, Region, Run, alias_of, known_region, requester_of, run_of};
use crate::index::{requester_with, source_key, word_offset};
use crate::report::Sink;
use crate::scratch::List;
use spec::handover::{self as wire};
use spec::regs::RootAddr;
use spec::{Extent, PAGE_SIZE, PhysAddr, Segment, UnitId};

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
    // Aliases refer to requesters that may come later: a second pass over them alone.
    collector.aliases(handover)?;
    collector.tokens(handover)?;
    let index = collector.parts.finish();
    duplicates(&index, handover, sink);
    Ok(index)
}

struct Collector<'a, 's, 'f> {
    start: PhysAddr,
    counts: &'a Counts,
    units: &'a [UnitState],
    parts: Parts<'s>,
    sink: &'a mut Sink<'f>,
    /// Bits of the visited bitmap given out.
    bits: u64,
}

impl Collector<'_, '_, '_> {
    fn found(&mut self, at: PhysAddr, what: What) {
        self.sink.found(about(at, what));
    }

    /// Whether `ordinal` is below `count`; a finding otherwise.
    fn refers(&mut self, at: PhysAddr, from: RecordKind, to: RecordKind, ordinal: u32) -> bool {
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
            Record::Release(_) | Record::Alias(_) | Record::Unknown { .. } => {}
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
        if table.half == 0 {
            self.parts.buses.push(unit | u64::from(table.bus) << 32 | offset);
        } else {
            self.found(at, What::HalfUnsupported { half: table.half });
        }
        self.parts.runs.push(Run { start, end, owner: run_of::CONTEXT, bit: 0 });
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
            let user = usize::try_from(requester.domain).ok().and_then(|at| self.parts.users.get_mut(at));
            if let Some(user) = user.filter(|user| **user == 0) {
                *user = ordinal.saturating_add(1);
            }
        }
        if unit {
            self.parts.sources.push(source_key(requester_of(requester)) << 32 | ordinal);
        }
    }

    fn aliases<I: Image + ?Sized>(&mut self, handover: &Handover<'_, I>) -> Result<(), Unreadable> {
        for located in handover.records() {
            let located = located?;
            let Record::Alias(alias) = located.record else { continue };
            if !self.refers(located.at, RecordKind::Alias, RecordKind::Requester, alias.requester) {
                continue;
            }
            let offset = usize::try_from(alias.requester).ok().and_then(|at| self.parts.requesters.get(at));
            let at = offset.map(|offset| self.start.plus(offset.saturating_mul(8)));
            let Some(Record::Requester(owner)) = at.and_then(|at| handover.record_at(at)) else { continue };
            // An alias of a requester whose own references are bad is left out with it.
            if u64::from(owner.unit) < self.counts.units {
                let key = source_key(alias_of(&alias, &owner));
                self.parts.sources.push(key << 32 | u64::from(alias.requester));
            }
        }
        Ok(())
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
    for (_, word) in twins(index.buses, 32) {
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
    // Few units: each with those before it.
    let units = || (0u32..).take(index.units.len()).filter_map(|ordinal| reader.unit(ordinal));
    for (n, (at, unit)) in units().enumerate() {
        if units().take(n).any(|(_, other)| unit_id(&other) == unit_id(&unit)) {
            let what = What::RecordTwice(RecordKind::Unit);
            sink.found(Finding { unit: Some(unit_id(&unit)), ..about(PhysAddr::new(at), what) });
        }
    }
}
