//! One record after the other into the book. Every reference must point backwards, every name be new; what a record says
//! about hardware is checked by the audit.

use super::{OpenError, Opened};
use crate::book::{
    AliasOf, Attached, ContextRun, Domain, DomainState, Kept, KeptUnit, Region, RegionKind, Stage, TableRun,
    Token,
};
use crate::host::DeviceTlb;
use crate::mode::{Context, Mode, Place};
use crate::mutant::{self, Mutant};
use spec::context::ContextEntry;
use spec::handover::{self, domain_format, kind};
use spec::scalable::PasidEntry;
use spec::{DomainId, Extent, PAGE_SIZE, PhysAddr, Requester, Segment, SourceId, UnitId};
use zerocopy::{FromBytes, IntoBytes};

/// Words of the largest record body that this release knows.
pub(super) const BODY_WORDS: usize = 11;

/// The body of one record, zero-extended or cut to what this release knows.
pub(super) struct Body {
    pub(super) ordinal: u32,
    pub(super) kind: u16,
    pub(super) words: [u64; BODY_WORDS],
}

impl Body {
    pub(super) fn parse<T: FromBytes>(&self) -> Result<T, OpenError> {
        T::read_from_prefix(self.words.as_bytes()).map(|(t, _)| t).map_err(|_| self.wrong("too short"))
    }

    pub(super) fn wrong(&self, what: &'static str) -> OpenError {
        OpenError::Record { ordinal: self.ordinal, kind: self.kind, what }
    }

    pub(super) fn extent(&self, start: u64, bytes: u64) -> Result<Extent, OpenError> {
        Extent::from_bytes(PhysAddr::new(start), bytes).ok_or(self.wrong("not a run of whole frames"))
    }

    fn table(&self, at: u64) -> Result<PhysAddr, OpenError> {
        self.extent(at, PAGE_SIZE).map(Extent::start)
    }
}

impl Opened<'_> {
    /// Takes one record into the book.
    pub(super) fn take(&mut self, body: &Body) -> Result<(), OpenError> {
        match body.kind {
            kind::RELEASE => {
                let record: handover::Release = body.parse()?;
                if self.update != 0 || record.update == 0 {
                    return Err(body.wrong("a second release, or update 0"));
                }
                (self.release, self.update, self.sealed_at) =
                    (record.release, record.update, record.sealed_at);
                Ok(())
            }
            kind::SCRATCH => {
                let record: handover::Scratch = body.parse()?;
                let slot = self.scratch.iter_mut().find(|s| s.is_none());
                *slot.ok_or(body.wrong("too many scratch areas"))? =
                    Some(body.extent(record.start, record.bytes)?);
                Ok(())
            }
            kind::CONTAINER => self.take_container(body),
            kind::UNIT => self.take_unit(body),
            kind::CONTEXT_TABLE => self.take_context(body),
            kind::REGION => self.take_region(body),
            kind::DOMAIN => self.take_domain(body),
            kind::DOMAIN_TABLES => self.take_tables(body),
            kind::DOMAIN_ID => self.check_domain_id(body),
            kind::REQUESTER => self.take_requester(body),
            kind::PASID_TABLES => self.take_pasid_tables(body),
            kind::ATTACHMENT => self.take_attachment(body),
            kind::ALIAS => self.take_alias(body),
            kind::DEVICE_TLB => self.take_device_tlb(body),
            kind::INTERRUPT_TABLE => self.take_interrupt_table(body),
            kind::INTERRUPT_ENTRY => self.check_interrupt_entry(body),
            _ => {
                self.skipped += 1;
                Ok(())
            }
        }
    }

    fn take_container(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Container = body.parse()?;
        let frames = body.extent(record.start, record.bytes)?;
        if self.container.is_some() || !frames.covers(self.blob) || !frames.contains(self.fdt.frame()) {
            return Err(body.wrong("listed twice, or not where the handover lies"));
        }
        self.container = Some(frames);
        Ok(())
    }

    fn take_unit(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Unit = body.parse()?;
        let id = UnitId { segment: Segment(record.segment), register_base: record.register_base };
        let root = spec::regs::RootAddr::from_raw(record.root);
        if self.book.units.find(|u| u.id == id).is_some() {
            return Err(body.wrong("the unit is listed twice"));
        }
        let mode = Mode::of(root);
        let mode = mode.ok_or(body.wrong("the unit is in a mode that this release does not adopt"))?;
        let root = body.table(root.table().get())?;
        self.book.units.insert(KeptUnit { id, root, mode, interrupts: None, requesters: 0 })?;
        Ok(())
    }

    fn take_context(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::ContextTable = body.parse()?;
        let unit = self.book.units.at_ordinal(record.unit).ok_or(body.wrong("no such unit"))?;
        let handover::ContextTable { bus, half, .. } = record;
        let halves = self.book.units.get(unit).map_or(0, |u| u.mode.halves());
        if half >= halves || self.book.context_of(unit, Place { bus, half }).is_some() {
            return Err(body.wrong("the bus is listed twice, or in halves that its mode does not have"));
        }
        let table = body.table(record.table)?;
        self.book.contexts.insert(ContextRun { unit, bus, half, table, users: 0 })?;
        Ok(())
    }

    fn take_region(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Region = body.parse()?;
        let extent = body.extent(record.start, record.bytes)?;
        let kind = match record.kind {
            handover::region_kind::MEMORY => RegionKind::Memory,
            handover::region_kind::DEVICE => RegionKind::Device,
            _ => return Err(body.wrong("a region of unknown kind")),
        };
        if record.token == 0 {
            return Err(body.wrong("a token that is zero"));
        }
        // Overlaps and tokens used twice show when all regions are in order.
        self.book.regions.push(Region::new(Token(record.token), extent, kind))?;
        Ok(())
    }

    fn take_domain(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Domain = body.parse()?;
        let token = self.token(body, record.token)?;
        let stage = match record.format {
            domain_format::SECOND_STAGE => Some(Stage::Second),
            domain_format::FIRST_STAGE => Some(Stage::First),
            _ => None,
        };
        let stage = stage.filter(|stage| stage.has_levels(record.levels));
        let stage = stage.ok_or(body.wrong("tables of a format or depth that this release does not know"))?;
        let top_table = body.table(record.top_table)?;
        if self.book.domains.find(|d| d.top_table == top_table).is_some() {
            return Err(body.wrong("the top table is another domain's"));
        }
        // Which domains lie below others, attachments say.
        let (levels, parent, state) = (record.levels, None, DomainState::Kept);
        self.book.domains.insert(Domain { token, top_table, stage, levels, parent, state })?;
        Ok(())
    }

    fn take_tables(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::DomainTables = body.parse()?;
        let domain = self.book.domains.at_ordinal(record.domain).ok_or(body.wrong("no such domain"))?;
        let extent = body.extent(record.start, record.bytes)?;
        self.book.tables.push(TableRun { domain, extent, in_region: false })?;
        Ok(())
    }

    /// Domain ids stand in the context entries too; here only the references are checked.
    fn check_domain_id(&self, body: &Body) -> Result<(), OpenError> {
        let record: handover::DomainIdUse = body.parse()?;
        let known = self.book.domains.at_ordinal(record.domain).is_some()
            && self.book.units.at_ordinal(record.unit).is_some();
        if known { Ok(()) } else { Err(body.wrong("no such domain or unit")) }
    }

    fn take_requester(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::RequesterRecord = body.parse()?;
        let token = self.token(body, record.token)?;
        let unit = self.book.units.at_ordinal(record.unit).ok_or(body.wrong("no such unit"))?;
        let domain = self.book.domains.at_ordinal(record.domain).ok_or(body.wrong("no such domain"))?;
        let requester = Requester::new(Segment(record.segment), SourceId::from_raw(record.source));
        if self.book.units.get(unit).is_none_or(|u| u.id.segment != requester.segment) {
            return Err(body.wrong("the requester's segment is not its unit's"));
        }
        if self.book.is_kept(requester) {
            return Err(body.wrong("the requester is listed twice"));
        }
        let mode = self.book.units.get(unit).map_or(Mode::Legacy, |u| u.mode);
        let ([a, b], [c, d]) = (record.context, record.context_high);
        let entry = Context::from_raw(mode, [a, b, c, d]);
        let domain_id = match entry {
            Context::Legacy(entry) => entry.domain_id(),
            Context::Scalable(entry) if !entry.present() => {
                return Err(body.wrong("the context entry is not present"));
            }
            // Known with the attachment.
            Context::Scalable(_) => DomainId::default(),
        };
        let kept = Kept::new(token, requester, entry, domain_id, (unit, domain), None);
        self.check_shared(body, &kept, requester.source)?;
        let index = self.book.requesters.insert(kept)?;
        if let Context::Legacy(entry) = entry {
            self.attach_legacy(body, index, &kept, entry)?;
        }
        if let Some(unit) = self.book.units.get_mut(unit) {
            unit.requesters += 1;
        }
        self.count_context(body, unit, requester.source)
    }

    /// In legacy mode the context entry is the attachment.
    fn attach_legacy(
        &mut self,
        body: &Body,
        requester: usize,
        kept: &Kept,
        entry: ContextEntry,
    ) -> Result<(), OpenError> {
        let attached = self.book.domains.get(kept.domain);
        let same = |d: &Domain| d.stage == Stage::Second && d.top_table == entry.top_table();
        if !entry.present() || !attached.is_some_and(same) {
            return Err(body.wrong("the context entry does not lead to the requester's domain"));
        }
        self.book.attachments.insert(Attached {
            pasid: 0,
            entry: PasidEntry::ZERO,
            domain_id: entry.domain_id(),
            requester,
            unit: kept.unit,
            domain: kept.domain,
            parent: None,
            blocked: false,
            retrieved: false,
        })?;
        Ok(())
    }

    fn take_alias(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::Alias = body.parse()?;
        let requester = self.book.requesters.at_ordinal(record.requester);
        let requester = requester.ok_or(body.wrong("no such requester"))?;
        let source = SourceId::from_raw(record.source);
        let Some(kept) = self.book.requesters.get(requester).copied() else { return Ok(()) };
        let twice = self.book.aliases.find(|a| a.requester == requester && a.source == source).is_some();
        if twice || source == kept.requester.source {
            return Err(body.wrong("the alias is listed twice"));
        }
        self.check_shared(body, &kept, source)?;
        self.book.aliases.insert(AliasOf { requester, source })?;
        self.count_context(body, kept.unit, source)
    }

    fn take_device_tlb(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::DeviceTlb = body.parse()?;
        let requester = self.book.requesters.at_ordinal(record.requester);
        let kept = requester.and_then(|i| self.book.requesters.get_mut(i));
        let kept = kept.ok_or(body.wrong("no such requester"))?;
        if kept.device_tlb.is_some() || !kept.entry.allows_device_tlb() {
            return Err(body.wrong("listed twice, or not allowed by the requester's entry"));
        }
        if !(1..=32).contains(&record.queue_depth) {
            return Err(body.wrong("a queue of more than 32 invalidations, or of none"));
        }
        let physical_function = SourceId::from_raw(record.physical_function);
        kept.device_tlb = Some(DeviceTlb { physical_function, queue_depth: record.queue_depth });
        kept.page_requests = record.page_requests & 1 == 1;
        Ok(())
    }

    /// Requesters that share a source-id share its entry: unit, domain and all.
    fn check_shared(&self, body: &Body, kept: &Kept, source: SourceId) -> Result<(), OpenError> {
        let same = |k: &Kept| (k.unit, k.domain, k.entry) == (kept.unit, kept.domain, kept.entry);
        match self.book.owners(kept.requester.segment, source).all(|(_, k)| same(k)) {
            true => Ok(()),
            false => Err(body.wrong("it shares a source-id with a requester of another domain")),
        }
    }

    /// A source-id needs the context table of its bus.
    fn count_context(&mut self, body: &Body, unit: usize, source: SourceId) -> Result<(), OpenError> {
        let index = self.book.context_for(unit, source).map(|(i, _)| i);
        let run = index.and_then(|i| self.book.contexts.get_mut(i));
        run.ok_or(body.wrong("the bus has no context table in the handover"))?.users += 1;
        Ok(())
    }

    fn token(&self, body: &Body, raw: u64) -> Result<Token, OpenError> {
        let token = Token(if mutant::on(Mutant::TokenCut) { raw & 0xffff_ffff } else { raw });
        if raw == 0 || self.book.names_user(token) {
            return Err(body.wrong("a token that is zero or used twice"));
        }
        Ok(token)
    }
}
