//! The records in an order that can be searched, kept in working memory that the host gives.
//!
//! The records are read once; what must be found again is written down as packed words and sorted. Words hold the
//! record's offset in the blob (in units of 8 bytes: 24 bits are enough), so that the record itself is read from the
//! image when it is needed. Everything is linear in the number of records, up to the sorting.

use crate::handover::{Handover, Located, Record};
use crate::image::Image;
use crate::scratch::List;
use spec::handover::{
    Alias, Attachment, ContextTable, Domain, DomainIdUse, DomainTables, InterruptEntry, InterruptTable,
    PasidTables, RequesterRecord, Unit, pasid_tables_kind, region_kind,
};
use spec::{PAGE_SIZE, PhysAddr, Requester, SourceId};
use zerocopy::{FromBytes, IntoBytes};

macro_rules! row {
    ($(#[$meta:meta])* $name:ident { $($(#[$fm:meta])* $field:ident,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$fm])* pub(crate) $field: u64,)* }
        impl $name {
            pub(crate) const WORDS: u64 = size_of::<$name>() as u64 / 8;
        }
    };
}

row! {
    /// A run of frames.
    Range {
        /// First frame number.
        start,
        /// The frame number after the last.
        end,
    }
}
row! {
    /// A region as recorded.
    Region {
        /// First frame number.
        start,
        /// The frame number after the last.
        end,
        /// Its kind.
        kind,
        /// Its token.
        token,
    }
}
row! {
    /// Where leaves may point: regions of one kind that touch are one target.
    Target {
        /// First byte's address.
        start,
        /// Address behind the last byte.
        end,
        /// The kind of region.
        kind,
    }
}
row! {
    /// A run of frames that hold tables, or the handover itself.
    Run {
        /// First frame number.
        start,
        /// The frame number after the last.
        end,
        /// One of [`run_of`]; for page tables with the domain's ordinal above, for PASID structures the requester's.
        owner,
        /// Number of the first frame's bit in the bitmap of visited tables.
        bit,
    }
}

row! {
    /// What the walk of a unit's tables left to be judged when the entries were looked at.
    Walked {
        /// Digest of the tables as found.
        digest,
        /// 1 when all tables could be read, so that the digest means something.
        complete,
        /// The first requester whose entry is not as it should be, as [`source_key`] plus one; 0 for none.
        suspect,
    }
}

row! {
    /// An attachment.
    Attached {
        /// Requester `<< 20`, PASID.
        key,
        /// Offset of its record.
        offset,
    }
}

row! {
    /// What attachments say about a domain.
    Use {
        /// 0 when no attachment leads to it, 1 when its tables are walked alone, else the ordinal of the second stage's
        /// domain plus two.
        parent,
        /// See [`use_flags`].
        flags,
    }
}

/// [`Use::flags`].
pub(crate) mod use_flags {
    /// Hardware keeps accessed and dirty bits in second-stage entries.
    pub(crate) const DIRTY: u64 = 1;
    /// Execute bits of second-stage entries count.
    pub(crate) const EXECUTE: u64 = 2;
}

/// What a [`Run`] holds, in the low byte of its owner.
pub(crate) mod run_of {
    pub(crate) const ROOT: u64 = 0;
    pub(crate) const CONTEXT: u64 = 1;
    pub(crate) const DOMAIN: u64 = 2;
    pub(crate) const CONTAINER: u64 = 3;
    pub(crate) const PASID_DIRECTORY: u64 = 4;
    pub(crate) const PASID_TABLE: u64 = 5;
    pub(crate) const INTERRUPTS: u64 = 6;
}

impl Run {
    /// The ordinal of the domain whose tables these are.
    pub(crate) fn domain(&self) -> Option<u32> {
        (self.owner & 0xff == run_of::DOMAIN).then(|| u32::try_from(self.owner >> 8).ok()).flatten()
    }
    /// The ordinal of the requester whose PASID structures these are.
    pub(crate) fn requester(&self) -> Option<u32> {
        let pasids = matches!(self.owner & 0xff, run_of::PASID_DIRECTORY | run_of::PASID_TABLE);
        pasids.then(|| u32::try_from(self.owner >> 8).ok()).flatten()
    }
    /// Their role.
    pub(crate) const fn role(&self) -> crate::finding::Role {
        match self.owner & 0xff {
            run_of::ROOT => crate::finding::Role::RootTable,
            run_of::CONTEXT => crate::finding::Role::ContextTable,
            run_of::CONTAINER => crate::finding::Role::Container,
            run_of::PASID_DIRECTORY => crate::finding::Role::PasidDirectory,
            run_of::PASID_TABLE => crate::finding::Role::PasidTable,
            run_of::INTERRUPTS => crate::finding::Role::InterruptTable,
            _ => crate::finding::Role::DomainTable,
        }
    }
}

/// The parts while they are filled.
pub(crate) struct Parts<'s> {
    pub(crate) units: List<'s, u64>,
    pub(crate) states: &'s mut [u64],
    pub(crate) contexts: List<'s, u64>,
    pub(crate) buses: List<'s, u64>,
    pub(crate) domains: List<'s, u64>,
    pub(crate) users: &'s mut [u64],
    pub(crate) uses: &'s mut [Use],
    pub(crate) requesters: List<'s, u64>,
    pub(crate) sources: List<'s, u64>,
    pub(crate) tables: List<'s, u64>,
    pub(crate) ids_by_unit: List<'s, u64>,
    pub(crate) ids_by_domain: List<'s, u64>,
    pub(crate) tokens: List<'s, u64>,
    pub(crate) pasid_runs: List<'s, u64>,
    pub(crate) pasid_slots: List<'s, u64>,
    pub(crate) attachments: List<'s, Attached>,
    pub(crate) interrupt_tables: List<'s, u64>,
    pub(crate) interrupts: List<'s, u64>,
    pub(crate) regions: List<'s, Region>,
    pub(crate) targets: List<'s, Target>,
    pub(crate) scratch: List<'s, Range>,
    pub(crate) runs: List<'s, Run>,
}

impl<'s> Parts<'s> {
    /// Sorts what is still unsorted and makes everything read-only.
    pub(crate) fn finish(mut self) -> Index<'s> {
        self.scratch.sort_and_join();
        for region in self.regions.sorted() {
            let start = region.start.saturating_mul(PAGE_SIZE);
            let end = region.end.saturating_mul(PAGE_SIZE);
            match self.targets.last_mut() {
                Some(last) if last.kind == region.kind && start <= last.end => last.end = last.end.max(end),
                _ => self.targets.push(Target { start, end, kind: region.kind }),
            }
        }
        Index {
            units: self.units.into_slice(),
            states: self.states,
            contexts: self.contexts.into_sorted(),
            buses: self.buses.into_sorted(),
            domains: self.domains.into_slice(),
            users: self.users,
            uses: self.uses,
            pasid_runs: self.pasid_runs.into_sorted(),
            pasid_slots: self.pasid_slots.into_sorted(),
            attachments: self.attachments.into_sorted(),
            interrupt_tables: self.interrupt_tables.into_sorted(),
            interrupts: self.interrupts.into_sorted(),
            requesters: self.requesters.into_slice(),
            sources: self.sources.into_sorted(),
            tables: self.tables.into_sorted(),
            ids_by_unit: self.ids_by_unit.into_sorted(),
            ids_by_domain: self.ids_by_domain.into_sorted(),
            regions: self.regions.into_slice(),
            targets: self.targets.into_slice(),
            scratch: self.scratch.into_slice(),
            runs: self.runs.into_sorted(),
        }
    }
}

/// The records in searchable order. Offsets are in words from the start of the records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Index<'s> {
    /// Offset of each unit record, by ordinal.
    pub(crate) units: &'s [u64],
    /// By unit ordinal: position in the host's list of units, plus one; 0 for none.
    pub(crate) states: &'s [u64],
    /// Context tables: unit `<< 40`, offset. In the order recorded within one unit.
    pub(crate) contexts: &'s [u64],
    /// Context tables: unit `<< 40`, bus `<< 32`, half `<< 31`, offset.
    pub(crate) buses: &'s [u64],
    /// Offset of each domain record, by ordinal.
    pub(crate) domains: &'s [u64],
    /// By domain ordinal: ordinal of the first requester that uses it, plus one; 0 for none.
    pub(crate) users: &'s [u64],
    /// By domain ordinal: what attachments say about it.
    pub(crate) uses: &'s [Use],
    /// Runs of PASID structures: unit `<< 40`, offset. In the order recorded within one unit.
    pub(crate) pasid_runs: &'s [u64],
    /// The same by what they hold: requester `<< 40`, [`pasid_slot`] `<< 24`, offset.
    pub(crate) pasid_slots: &'s [u64],
    /// Attachments by requester and PASID.
    pub(crate) attachments: &'s [Attached],
    /// Interrupt tables: unit `<< 40`, offset.
    pub(crate) interrupt_tables: &'s [u64],
    /// Interrupt entries: unit `<< 40`, index `<< 24`, offset.
    pub(crate) interrupts: &'s [u64],
    /// Offset of each requester record, by ordinal.
    pub(crate) requesters: &'s [u64],
    /// Requesters and aliases: segment `<< 48`, source `<< 32`, ordinal of the requester.
    pub(crate) sources: &'s [u64],
    /// Runs of page tables: domain `<< 40`, offset.
    pub(crate) tables: &'s [u64],
    /// Domain ids: unit `<< 40`, id `<< 24`, offset.
    pub(crate) ids_by_unit: &'s [u64],
    /// Domain ids: domain `<< 40`, offset.
    pub(crate) ids_by_domain: &'s [u64],
    /// Regions by start.
    pub(crate) regions: &'s [Region],
    /// Targets by start.
    pub(crate) targets: &'s [Target],
    /// Scratch memory by start; disjoint.
    pub(crate) scratch: &'s [Range],
    /// Runs of tables by start.
    pub(crate) runs: &'s [Run],
}

/// The low 24 bits of a packed word: an offset.
pub(crate) const fn offset(word: u64) -> u64 {
    word & 0xff_ffff
}

/// The words of `list` whose bits from `shift` on equal `key`.
fn group(list: &[u64], key: u64, shift: u32) -> &[u64] {
    let from = list.partition_point(|word| word >> shift < key);
    let to = list.partition_point(|word| word >> shift <= key);
    list.get(from..to).unwrap_or_default()
}

fn nth(list: &[u64], ordinal: u32) -> Option<u64> {
    list.get(usize::try_from(ordinal).ok()?).copied()
}

impl<'s> Index<'s> {
    /// Position in the host's list of the unit with this ordinal.
    pub(crate) fn state(&self, unit: u32) -> Option<usize> {
        usize::try_from(nth(self.states, unit)?.checked_sub(1)?).ok()
    }
    /// Context tables of a unit in the order recorded.
    pub(crate) fn contexts_of(&self, unit: u32) -> &'s [u64] {
        group(self.contexts, u64::from(unit), 40)
    }
    /// The first context table record of a bus, or of half a bus.
    pub(crate) fn context_of(&self, unit: u32, bus: u8, half: u8) -> Option<u64> {
        let key = u64::from(unit) << 9 | u64::from(bus) << 1 | u64::from(half);
        group(self.buses, key, 31).first().copied()
    }
    /// PASID structures of a unit's requesters in the order recorded.
    pub(crate) fn pasid_runs_of(&self, unit: u32) -> &'s [u64] {
        group(self.pasid_runs, u64::from(unit), 40)
    }
    /// The first record of a requester's PASID directory, or of one of its PASID tables.
    pub(crate) fn pasid_run(&self, requester: u32, slot: u64) -> Option<u64> {
        group(self.pasid_slots, u64::from(requester) << 16 | slot, 24).first().copied()
    }
    /// The first attachment of a PASID, as a word to be read.
    pub(crate) fn attachment(&self, requester: u32, pasid: u32) -> Option<u64> {
        let key = attachment_key(requester, pasid);
        let first = self.attachments.partition_point(|attached| attached.key < key);
        self.attachments.get(first).filter(|attached| attached.key == key).map(|attached| attached.offset)
    }
    /// What attachments say about a domain.
    pub(crate) fn use_of(&self, domain: u32) -> Use {
        let none = Use { parent: 0, flags: 0 };
        usize::try_from(domain).ok().and_then(|at| self.uses.get(at)).copied().unwrap_or(none)
    }
    /// Every source-id on a bus: packed words that end with the ordinal of a requester.
    pub(crate) fn sources_on(&self, segment: spec::Segment, bus: u8) -> &'s [u64] {
        group(self.sources, u64::from(segment.0) << 8 | u64::from(bus), 40)
    }
    /// Interrupt entries of a unit, by index.
    pub(crate) fn interrupts_of(&self, unit: u32) -> &'s [u64] {
        group(self.interrupts, u64::from(unit), 40)
    }
    /// Ordinal of the requester to which this source-id belongs.
    pub(crate) fn owner(&self, requester: Requester) -> Option<u32> {
        let word = group(self.sources, source_key(requester), 32).first()?;
        u32::try_from(word & 0xffff_ffff).ok()
    }
    /// Ordinal of the first requester of a domain.
    pub(crate) fn user(&self, domain: u32) -> Option<u32> {
        u32::try_from(nth(self.users, domain)?.checked_sub(1)?).ok()
    }
    /// Runs of a domain's tables in the order recorded.
    pub(crate) fn tables_of(&self, domain: u32) -> &'s [u64] {
        group(self.tables, u64::from(domain), 40)
    }
    /// Ids of a domain.
    pub(crate) fn ids_of(&self, domain: u32) -> &'s [u64] {
        group(self.ids_by_domain, u64::from(domain), 40)
    }
    /// The run of tables that holds this frame.
    pub(crate) fn run_holding(&self, frame: u64) -> Option<&'s Run> {
        let next = self.runs.partition_point(|run| run.start <= frame);
        self.runs.get(next.checked_sub(1)?).filter(|run| frame < run.end)
    }
    /// A region that shares a frame with `start..end`.
    pub(crate) fn region_overlapping(&self, start: u64, end: u64) -> Option<&'s Region> {
        let next = self.regions.partition_point(|region| region.start < end);
        self.regions.get(next.checked_sub(1)?).filter(|region| start < region.end)
    }
    /// Whether scratch memory shares a frame with `start..end`.
    pub(crate) fn in_scratch(&self, start: u64, end: u64) -> bool {
        let next = self.scratch.partition_point(|range| range.start < end);
        next.checked_sub(1).and_then(|last| self.scratch.get(last)).is_some_and(|range| start < range.end)
    }
}

impl Use {
    /// The ordinal of the domain whose second stage the tables are walked below.
    pub(crate) fn parent(&self) -> Option<u32> {
        u32::try_from(self.parent.checked_sub(2)?).ok()
    }
}

/// What a run of PASID structures holds: 0 the directory, `n + 1` the table of its `n`-th entry.
pub(crate) fn pasid_slot(run: &PasidTables) -> u64 {
    if run.kind == pasid_tables_kind::DIRECTORY { 0 } else { table_slot(run.first_pasid) }
}

/// The slot of the table that holds this PASID.
pub(crate) fn table_slot(pasid: u32) -> u64 {
    u64::from(pasid >> 6).saturating_add(1)
}

/// Key of an [`Attached`].
pub(crate) fn attachment_key(requester: u32, pasid: u32) -> u64 {
    u64::from(requester) << 20 | u64::from(pasid)
}

/// Segment and source of a requester as the upper half of a packed word.
pub(crate) fn source_key(requester: Requester) -> u64 {
    u64::from(requester.segment.0) << 16 | u64::from(requester.source.raw())
}

/// The requester with this [`source_key`].
pub(crate) fn requester_with(key: u64) -> Requester {
    let segment = spec::Segment(u16::try_from(key >> 16 & 0xffff).unwrap_or_default());
    Requester::new(segment, SourceId::from_raw(u16::try_from(key & 0xffff).unwrap_or_default()))
}

/// Reads records back that the index knows.
pub(crate) struct Reader<'a, 's, I: ?Sized> {
    pub(crate) handover: Handover<'a, I>,
    pub(crate) index: Index<'s>,
}

macro_rules! read_back {
    ($($(#[$doc:meta])* $name:ident -> $variant:ident($ty:ty) in $list:ident;)*) => {
        $($(#[$doc])*
        pub(crate) fn $name(&self, ordinal: u32) -> Option<(u64, $ty)> {
            let at = self.address(nth(self.index.$list, ordinal)?);
            match self.handover.record_at(at)? { Record::$variant(record) => Some((at.get(), record)), _ => None }
        })*
    };
    (words: $($(#[$doc:meta])* $name:ident -> $variant:ident($ty:ty);)*) => {
        $($(#[$doc])*
        pub(crate) fn $name(&self, word: u64) -> Option<(u64, $ty)> {
            let at = self.address(offset(word));
            match self.handover.record_at(at)? { Record::$variant(record) => Some((at.get(), record)), _ => None }
        })*
    };
}

impl<I: Image + ?Sized> Reader<'_, '_, I> {
    fn address(&self, offset: u64) -> PhysAddr {
        self.handover.start().plus(offset.saturating_mul(8))
    }
    read_back! {
        /// The unit with this ordinal, and its record's address.
        unit -> Unit(Unit) in units;
        /// The domain with this ordinal, and its record's address.
        domain -> Domain(Domain) in domains;
        /// The requester with this ordinal, and its record's address.
        requester -> Requester(RequesterRecord) in requesters;
    }
    read_back! { words:
        /// The context table of a packed word, and its record's address.
        context_table -> ContextTable(ContextTable);
        /// The run of tables of a packed word, and its record's address.
        tables -> DomainTables(DomainTables);
        /// The domain id of a packed word, and its record's address.
        domain_id -> DomainId(DomainIdUse);
        /// The PASID structures of a packed word, and their record's address.
        pasid_tables -> PasidTables(PasidTables);
        /// The attachment at an offset, and its record's address.
        attachment -> Attachment(Attachment);
        /// The interrupt entry of a packed word, and its record's address.
        interrupt_record -> InterruptEntry(InterruptEntry);
        /// The interrupt table of a packed word, and its record's address.
        interrupt_table_record -> InterruptTable(InterruptTable);
    }
    /// A unit's interrupt table, and its record's address.
    pub(crate) fn interrupt_table(&self, unit: u32) -> Option<(u64, InterruptTable)> {
        self.interrupt_table_record(*group(self.index.interrupt_tables, u64::from(unit), 40).first()?)
    }
    /// What was recorded of an interrupt entry, and the record's address.
    pub(crate) fn interrupt_entry(&self, unit: u32, index: u32) -> Option<(u64, InterruptEntry)> {
        let key = u64::from(unit) << 16 | u64::from(index);
        self.interrupt_record(*group(self.index.interrupts, key, 24).first()?)
    }
    /// Token of a domain; 0 when its record cannot be read.
    pub(crate) fn token(&self, domain: u32) -> u64 {
        self.domain(domain).map_or(0, |(_, domain)| domain.token)
    }
    /// The first requester that uses a domain.
    pub(crate) fn user(&self, domain: u32) -> Option<(Requester, RequesterRecord)> {
        let (_, record) = self.requester(self.index.user(domain)?)?;
        Some((requester_of(&record), record))
    }
}

/// The requester that a record names.
pub(crate) fn requester_of(record: &RequesterRecord) -> Requester {
    Requester::new(spec::Segment(record.segment), SourceId::from_raw(record.source))
}

/// The requester that an alias record names, on the segment of the requester that it belongs to.
pub(crate) fn alias_of(alias: &Alias, requester: &RequesterRecord) -> Requester {
    Requester::new(spec::Segment(requester.segment), SourceId::from_raw(alias.source))
}

/// Offset of a located record in words from the start of the records.
pub(crate) fn word_offset(start: PhysAddr, located: &Located) -> u64 {
    located.at.get().saturating_sub(start.get()) / 8
}

/// Whether a region's kind is one that this reader knows.
pub(crate) const fn known_region(kind: u32) -> bool {
    matches!(kind, region_kind::MEMORY | region_kind::DEVICE)
}
