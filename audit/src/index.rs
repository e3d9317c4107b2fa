//! The records in an order that can be searched, kept in working memory that the host gives.
//!
//! The records are read once; what must be found again is written down as packed words and sorted. Words hold the
//! record's offset in the blob (in units of 8 bytes: 24 bits are enough), so that the record itself is read from the
//! image when it is needed. Everything is linear in the number of records, up to the sorting.

use crate::error::Unreadable;
use crate::handover::{Counts, Handover, Located, Record};
use crate::image::{FRAME_WORDS, Image};
use spec::handover::{
    Alias, ContextTable, Domain, DomainIdUse, DomainTables, RequesterRecord, Unit, region_kind,
};
use spec::{PAGE_SIZE, PhysAddr, Requester, SourceId};
use zerocopy::{FromBytes, IntoBytes};

/// Most table frames that a handover may declare: 1 TiB of tables.
pub const MAX_TABLE_FRAMES: u64 = 1 << 28;
/// Most units that a handover may declare.
pub const UNIT_LIMIT: u64 = 1024;

/// Levels of tables that can be walked.
pub(crate) const MAX_LEVELS: usize = 5;

/// Working memory of an audit.
///
/// How much is needed depends on the records: [`Scratch::words_needed`] tells. One word per three or four records'
/// worth of searching order, a bit per declared table frame, and 24 KiB of buffers.
#[derive(Debug)]
pub struct Scratch<'a> {
    words: &'a mut [u64],
}

impl<'a> Scratch<'a> {
    /// Works in `words`, whatever they hold.
    #[must_use]
    pub fn new(words: &'a mut [u64]) -> Self {
        Self { words }
    }

    /// How many words the audit of this handover needs.
    ///
    /// # Errors
    /// [`Unreadable`], as [`audit`](crate::audit) gives it.
    pub fn words_needed<I: Image + ?Sized>(image: &I, fdt: PhysAddr) -> Result<u64, Unreadable> {
        Ok(Layout::of(&Handover::locate(image, fdt)?.verify()?)?.total())
    }

    /// Divides the memory up. The parts are zero.
    pub(crate) fn carve(&mut self, counts: &Counts) -> Result<(Parts<'_>, Work<'_>), Unreadable> {
        let layout = Layout::of(counts)?;
        let (needed, given) = (layout.total(), self.words.len() as u64);
        let too_small = Unreadable::ScratchTooSmall { needed, given };
        if given < needed {
            return Err(too_small);
        }
        let mut rest = Carver(&mut *self.words);
        let parts = Parts {
            units: List::new(rest.take(layout.units)),
            states: rest.take(layout.units),
            contexts: List::new(rest.take(layout.contexts)),
            buses: List::new(rest.take(layout.contexts)),
            domains: List::new(rest.take(layout.domains)),
            users: rest.take(layout.domains),
            requesters: List::new(rest.take(layout.requesters)),
            sources: List::new(rest.take(layout.sources)),
            tables: List::new(rest.take(layout.tables)),
            ids_by_unit: List::new(rest.take(layout.ids)),
            ids_by_domain: List::new(rest.take(layout.ids)),
            tokens: List::new(rest.take(layout.tokens)),
            regions: List::new(rest.take_rows(layout.regions)),
            targets: List::new(rest.take_rows(layout.regions)),
            scratch: List::new(rest.take_rows(layout.scratch)),
            runs: List::new(rest.take_rows(layout.runs)),
        };
        let visited = rest.take(layout.visited);
        let walked = rest.take_rows(layout.units);
        let buffers = core::array::from_fn(|_| rest.take(FRAME_WORDS as u64).try_into().ok());
        Ok((parts, Work { visited, walked, buffers }))
    }
}

/// Elements of each part.
struct Layout {
    units: u64,
    contexts: u64,
    domains: u64,
    requesters: u64,
    sources: u64,
    tables: u64,
    ids: u64,
    tokens: u64,
    regions: u64,
    scratch: u64,
    runs: u64,
    visited: u64,
}

impl Layout {
    fn of(counts: &Counts) -> Result<Self, Unreadable> {
        let frames = counts.table_frames;
        let limits = [("table frames", frames, MAX_TABLE_FRAMES), ("units", counts.units, UNIT_LIMIT)];
        for (what, declared, limit) in limits {
            if declared > limit {
                return Err(Unreadable::TooMany { what, declared, limit });
            }
        }
        Ok(Self {
            units: counts.units,
            contexts: counts.context_tables,
            domains: counts.domains,
            requesters: counts.requesters,
            sources: counts.requesters.saturating_add(counts.aliases),
            tables: counts.domain_tables,
            ids: counts.domain_ids,
            tokens: counts.domains.max(counts.requesters).max(counts.regions),
            regions: counts.regions,
            scratch: counts.scratch,
            runs: counts.units.saturating_add(counts.context_tables).saturating_add(counts.domain_tables),
            visited: frames.div_ceil(64),
        })
    }

    fn total(&self) -> u64 {
        let words = [
            (self.units, Walked::WORDS.saturating_add(2)),
            (self.contexts, 2),
            (self.domains, 2),
            (self.requesters, 1),
            (self.sources, 1),
            (self.tables, 1),
            (self.ids, 2),
            (self.tokens, 1),
            (self.regions, Region::WORDS.saturating_add(Target::WORDS)),
            (self.scratch, Range::WORDS),
            (self.runs, Run::WORDS),
            (self.visited, 1),
            (MAX_LEVELS as u64, FRAME_WORDS as u64),
        ];
        words.iter().fold(0, |sum: u64, (count, size)| sum.saturating_add(count.saturating_mul(*size)))
    }
}

/// Takes slices off the front of the working memory.
struct Carver<'s>(&'s mut [u64]);

impl<'s> Carver<'s> {
    fn take(&mut self, words: u64) -> &'s mut [u64] {
        let words = usize::try_from(words).unwrap_or(usize::MAX);
        let all = core::mem::take(&mut self.0);
        let (part, rest) = all.split_at_mut_checked(words).unwrap_or_default();
        self.0 = rest;
        part.fill(0);
        part
    }

    fn take_rows<T: FromBytes + IntoBytes>(&mut self, rows: u64) -> &'s mut [T] {
        let words = self.take(rows.saturating_mul(size_of::<T>() as u64 / 8));
        <[T]>::mut_from_bytes(words.as_mut_bytes()).unwrap_or_default()
    }
}

/// A slice that fills up from the front.
pub(crate) struct List<'s, T> {
    slots: &'s mut [T],
    length: usize,
}

impl<'s, T: Ord> List<'s, T> {
    fn new(slots: &'s mut [T]) -> Self {
        Self { slots, length: 0 }
    }
    /// Appends; what does not fit is dropped (the slots were counted before, from the same records).
    pub(crate) fn push(&mut self, item: T) {
        if let Some(slot) = self.slots.get_mut(self.length) {
            *slot = item;
            self.length = self.length.saturating_add(1);
        }
    }
    pub(crate) fn len(&self) -> usize {
        self.length
    }
    pub(crate) fn get(&self, position: usize) -> Option<&T> {
        self.slots.get(..self.length)?.get(position)
    }
    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.slots.get_mut(self.length.checked_sub(1)?)
    }
    /// What was pushed, in ascending order.
    pub(crate) fn sorted(&mut self) -> &[T] {
        let filled = self.slots.get_mut(..self.length).unwrap_or_default();
        filled.sort_unstable();
        filled
    }
    fn into_sorted(self) -> &'s [T] {
        let filled = self.slots.get_mut(..self.length).unwrap_or_default();
        filled.sort_unstable();
        filled
    }
    fn into_slice(self) -> &'s [T] {
        self.slots.get(..self.length).unwrap_or_default()
    }
}

macro_rules! row {
    ($(#[$meta:meta])* $name:ident { $($(#[$fm:meta])* $field:ident,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$fm])* pub(crate) $field: u64,)* }
        impl $name {
            const WORDS: u64 = size_of::<$name>() as u64 / 8;
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
    /// A run of frames that hold tables.
    Run {
        /// First frame number.
        start,
        /// The frame number after the last.
        end,
        /// One of [`run_of`]; for page tables with the domain's ordinal above.
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

/// What a [`Run`] holds, in the low byte of its owner.
pub(crate) mod run_of {
    pub(crate) const ROOT: u64 = 0;
    pub(crate) const CONTEXT: u64 = 1;
    pub(crate) const DOMAIN: u64 = 2;
}

impl Run {
    /// The ordinal of the domain whose tables these are.
    pub(crate) fn domain(&self) -> Option<u32> {
        (self.owner & 0xff == run_of::DOMAIN).then(|| u32::try_from(self.owner >> 8).ok()).flatten()
    }
    /// Their role.
    pub(crate) const fn role(&self) -> crate::finding::Role {
        match self.owner & 0xff {
            run_of::ROOT => crate::finding::Role::RootTable,
            run_of::CONTEXT => crate::finding::Role::ContextTable,
            _ => crate::finding::Role::DomainTable,
        }
    }
}

/// Memory that the walks write to.
pub(crate) struct Work<'s> {
    /// A bit per declared table frame.
    visited: &'s mut [u64],
    /// By unit ordinal.
    walked: &'s mut [Walked],
    /// One frame per level; those in use are taken out.
    buffers: [Option<&'s mut [u64; FRAME_WORDS]>; MAX_LEVELS],
}

/// A table that was read into one of the buffers.
pub(crate) struct Table<'s> {
    slot: usize,
    pub(crate) words: &'s mut [u64; FRAME_WORDS],
}

impl<'s> Work<'s> {
    /// Reads the frame at `at` into buffer `slot`; `None` when it cannot be read (or the buffer is in use).
    pub(crate) fn read<I: Image + ?Sized>(
        &mut self,
        image: &I,
        slot: usize,
        at: PhysAddr,
    ) -> Option<Table<'s>> {
        at.checked_add(PAGE_SIZE - 1)?;
        let place = self.buffers.get_mut(slot)?;
        let words = place.take()?;
        if image.read(at, words).is_err() {
            *place = Some(words);
            return None;
        }
        Some(Table { slot, words })
    }

    /// Gives the buffer back.
    pub(crate) fn put(&mut self, table: Table<'s>) {
        if let Some(place) = self.buffers.get_mut(table.slot) {
            *place = Some(table.words);
        }
    }

    /// What is noted of the unit with this ordinal.
    pub(crate) fn walked(&mut self, unit: u32) -> Option<&mut Walked> {
        self.walked.get_mut(usize::try_from(unit).ok()?)
    }

    /// Notes that an entry of this requester is not as it should be.
    pub(crate) fn suspect(&mut self, unit: u32, requester: Requester) {
        if let Some(walked) = self.walked(unit).filter(|walked| walked.suspect == 0) {
            walked.suspect = source_key(requester).saturating_add(1);
        }
    }

    /// Marks a table visited; whether it was before. A bit that is not there counts as visited.
    pub(crate) fn visit(&mut self, bit: u64) -> bool {
        let mask = 1u64 << (bit % 64);
        let Some(word) = usize::try_from(bit / 64).ok().and_then(|index| self.visited.get_mut(index)) else {
            return true;
        };
        let before = *word & mask != 0;
        *word |= mask;
        before
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
    pub(crate) requesters: List<'s, u64>,
    pub(crate) sources: List<'s, u64>,
    pub(crate) tables: List<'s, u64>,
    pub(crate) ids_by_unit: List<'s, u64>,
    pub(crate) ids_by_domain: List<'s, u64>,
    pub(crate) tokens: List<'s, u64>,
    pub(crate) regions: List<'s, Region>,
    pub(crate) targets: List<'s, Target>,
    pub(crate) scratch: List<'s, Range>,
    pub(crate) runs: List<'s, Run>,
}

impl<'s> Parts<'s> {
    /// Sorts what is still unsorted and makes everything read-only.
    pub(crate) fn finish(mut self) -> Index<'s> {
        // Scratch records that touch become one, so that the lookups below are exact.
        self.scratch.sorted();
        let mut merged = 0usize;
        for next in 0..self.scratch.length {
            let Some(range) = self.scratch.slots.get(next).copied() else { break };
            match merged.checked_sub(1).and_then(|last| self.scratch.slots.get_mut(last)) {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => {
                    if let Some(slot) = self.scratch.slots.get_mut(merged) {
                        *slot = range;
                    }
                    merged = merged.saturating_add(1);
                }
            }
        }
        self.scratch.length = merged;
        self.regions.sorted();
        for region in self.regions.slots.get(..self.regions.length).unwrap_or_default() {
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
    /// Context tables: unit `<< 40`, bus `<< 32`, offset.
    pub(crate) buses: &'s [u64],
    /// Offset of each domain record, by ordinal.
    pub(crate) domains: &'s [u64],
    /// By domain ordinal: ordinal of the first requester that uses it, plus one; 0 for none.
    pub(crate) users: &'s [u64],
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
    /// The first context table record of a bus.
    pub(crate) fn context_of(&self, unit: u32, bus: u8) -> Option<u64> {
        group(self.buses, u64::from(unit) << 8 | u64::from(bus), 32).first().copied()
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
