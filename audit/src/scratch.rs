//! Working memory that the host gives, and how it is divided.
//!
//! One slice of words becomes the lists of the index, a bit per declared table frame, what is noted of each unit, and a
//! frame of buffer per level of tables. How long each part must be follows from the number of records; nothing grows.

use crate::error::Unreadable;
use crate::handover::{Counts, Handover};
use crate::image::{FRAME_WORDS, Image};
use crate::index::{Attached, Parts, Range, Region, Run, Target, Use, Walked, source_key};
use spec::{PAGE_SIZE, PhysAddr, Requester};
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
            uses: rest.take_rows(layout.domains),
            pasid_runs: List::new(rest.take(layout.pasids)),
            pasid_slots: List::new(rest.take(layout.pasids)),
            attachments: List::new(rest.take_rows(layout.attachments)),
            interrupt_tables: List::new(rest.take(layout.interrupt_tables)),
            interrupts: List::new(rest.take(layout.interrupts)),
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
    pasids: u64,
    attachments: u64,
    interrupt_tables: u64,
    interrupts: u64,
    regions: u64,
    scratch: u64,
    runs: u64,
    visited: u64,
}

impl Layout {
    fn of(counts: &Counts) -> Result<Self, Unreadable> {
        let frames = counts.table_frames;
        let limits = [
            ("table frames", frames, MAX_TABLE_FRAMES),
            ("frames of PASID structures", counts.pasid_frames, MAX_TABLE_FRAMES),
            ("units", counts.units, UNIT_LIMIT),
        ];
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
            pasids: counts.pasid_tables,
            attachments: counts.attachments,
            interrupt_tables: counts.interrupt_tables,
            interrupts: counts.interrupt_entries,
            regions: counts.regions,
            scratch: counts.scratch,
            runs: [
                counts.units,
                counts.context_tables,
                counts.domain_tables,
                counts.containers,
                counts.pasid_tables,
                counts.interrupt_tables,
            ]
            .iter()
            .fold(0, |sum: u64, count| sum.saturating_add(*count)),
            visited: frames.div_ceil(64),
        })
    }

    fn total(&self) -> u64 {
        let words = [
            (self.units, Walked::WORDS.saturating_add(2)),
            (self.contexts, 2),
            (self.domains, Use::WORDS.saturating_add(2)),
            (self.pasids, 2),
            (self.attachments, Attached::WORDS),
            (self.interrupt_tables, 1),
            (self.interrupts, 1),
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
    pub(crate) fn into_sorted(self) -> &'s [T] {
        let filled = self.slots.get_mut(..self.length).unwrap_or_default();
        filled.sort_unstable();
        filled
    }
    pub(crate) fn into_slice(self) -> &'s [T] {
        self.slots.get(..self.length).unwrap_or_default()
    }
}

impl List<'_, Range> {
    /// Ranges in ascending order, those that touch joined, so that a lookup needs to look at one.
    pub(crate) fn sort_and_join(&mut self) {
        self.sorted();
        let mut joined = 0usize;
        for next in 0..self.length {
            let Some(range) = self.slots.get(next).copied() else { break };
            match joined.checked_sub(1).and_then(|last| self.slots.get_mut(last)) {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => {
                    if let Some(slot) = self.slots.get_mut(joined) {
                        *slot = range;
                    }
                    joined = joined.saturating_add(1);
                }
            }
        }
        self.length = joined;
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
