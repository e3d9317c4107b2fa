//! Root and context entries of both modes: written and cleared in the order that hardware demands (VT-d 6.2.2, 9.1 to
//! 9.4).
//!
//! An entry is several words and hardware may read it at any moment, so the word with the present bit, which is the first,
//! is stored last when an entry appears. When one goes, the present bit is cleared first, hardware is made to forget, and
//! only then the rest is wiped.
//!
//! Legacy mode has one context table of 256 entries per bus, scalable mode two of 128, each known by a word of its own in
//! the root entry: below, a table is named by that word.

use crate::Hal;
use crate::error::AttachError;
use crate::unit::VtdUnit;
use alloc::vec::Vec;
use liveupdate::host::{Atomic, Forget, MaySleep, NoMemory, TableMemory, Unit};
use spec::context::ContextEntry;
use spec::root::RootEntry;
use spec::scalable::{CONTEXT_ENTRIES, ScalableContextEntry};
use spec::{Extent, PhysAddr, Requester, SourceId};

/// Bytes of a root entry, and of a context entry in legacy mode.
const ENTRY: u64 = 16;
/// The present bit, in the first word of all entries.
const PRESENT: u64 = 1;
/// Device-TLB allowed, in the first word of context entries: TT of legacy mode, for the second stage, and DTE.
const DEVICE_TLB: u64 = 1 << 2;
/// PRE, in the first word of context entries of scalable mode.
const PAGE_REQUESTS: u64 = 1 << 4;

/// A context entry of either mode; in legacy mode the last two words are zero and not in memory.
pub(crate) type Context = [u64; 4];

/// An entry that is about to change, and what was in it.
#[derive(Debug)]
struct Slot {
    source: SourceId,
    at: PhysAddr,
    before: Context,
}

/// Context entries about to be written, and new context tables for them.
#[derive(Debug)]
pub(crate) struct ContextPlan {
    /// Words of root entries, and the table that each shall point to.
    tables: Vec<(PhysAddr, PhysAddr)>,
    slots: Vec<Slot>,
}

impl<H: Hal> VtdUnit<'_, H> {
    /// The context entry of a source-id in legacy mode as it is in memory; `None` where the bus has no context table.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub fn context_entry(&self, source: SourceId) -> Result<Option<ContextEntry>, NoMemory> {
        Ok(self.context(source)?.map(|[low, high, ..]| ContextEntry::from_raw([low, high])))
    }

    /// The context entry of a source-id in scalable mode as it is in memory; `None` where its half of the bus has no
    /// context table.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub fn scalable_context_entry(&self, source: SourceId) -> Result<Option<ScalableContextEntry>, NoMemory> {
        Ok(self.context(source)?.map(ScalableContextEntry::from_raw))
    }

    /// Writes the same legacy entry for all `sources`, which have none yet: all or none. Buses without a context table get
    /// one.
    ///
    /// # Errors
    /// [`AttachError`]; entries and tables are as they were (I7). After [`AttachError::TimedOut`] the frames of new
    /// context tables are not used again, as hardware may know them.
    pub fn attach_entries(
        &self,
        ctx: &mut MaySleep,
        sources: &[SourceId],
        entry: ContextEntry,
    ) -> Result<(), AttachError> {
        let missing = self.missing_tables(sources)?;
        self.reserve_frames(ctx, missing.len() as u64)?;
        let plan = self.plan_contexts(sources, &missing)?;
        let [low, high] = entry.raw();
        self.locked(ctx, |atomic| {
            self.install(&plan, [low, high, 0, 0])
                .and_then(|()| {
                    let all = sources.iter();
                    Ok(all.copied().try_for_each(|s| self.announce(atomic, s, entry.domain_id()))?)
                })
                .inspect_err(|_| self.withdraw(&plan))
        })
    }

    /// Clears the entries of `sources` and makes hardware forget them and the translations of their domains.
    ///
    /// # Errors
    /// [`AttachError::TimedOut`]: no entry is present, but hardware did not confirm for all; those keep the rest of their
    /// content, so that calling again tries again. [`AttachError::NoMemory`].
    pub fn detach_entries(&self, ctx: &mut MaySleep, sources: &[SourceId]) -> Result<(), AttachError> {
        let slots = self.used_slots(sources)?;
        self.locked(ctx, |atomic| {
            self.clear_present(&slots)?;
            let mut outcome = Ok(());
            for slot in &slots {
                let [low, high, ..] = slot.before;
                let domain = ContextEntry::from_raw([low, high]).domain_id();
                match self.forget(atomic, Forget::Requester { source: slot.source, domain }) {
                    Ok(_) => self.wipe(slot)?,
                    Err(e) => outcome = outcome.and(Err(AttachError::TimedOut(e))),
                }
            }
            outcome
        })
    }

    /// Scalable mode: clears the entries of `sources`, has `then` done about what they led to, and wipes them if that
    /// succeeded.
    ///
    /// # Errors
    /// As [`Self::detach_entries`].
    pub(crate) fn detach_contexts(
        &self,
        ctx: &mut MaySleep,
        sources: &[SourceId],
        then: impl FnOnce(&Atomic) -> Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let slots = self.used_slots(sources)?;
        self.locked(ctx, |atomic| {
            self.clear_present(&slots)?;
            then(atomic)?;
            slots.iter().try_for_each(|slot| self.wipe(slot))?;
            Ok(())
        })
    }

    /// Words of root entries that must point to a context table before `sources` can have entries, and do not yet. None of
    /// `sources` may have an entry.
    ///
    /// # Errors
    /// [`AttachError::Occupied`], [`AttachError::NoMemory`].
    pub(crate) fn missing_tables(&self, sources: &[SourceId]) -> Result<Vec<PhysAddr>, AttachError> {
        let mut missing: Vec<PhysAddr> = Vec::new();
        for &source in sources {
            let at = self.root_word(source);
            match self.context(source)? {
                Some(there) if there[0] & PRESENT != 0 => {
                    let requester = Requester::new(self.registers.id.segment, source);
                    return Err(AttachError::Occupied { requester, source });
                }
                None if !missing.contains(&at) => missing.push(at),
                _ => {}
            }
        }
        Ok(missing)
    }

    /// Sees to it that `frames` table frames can be taken.
    ///
    /// # Errors
    /// [`AttachError::OutOfMemory`]; nothing has changed.
    pub(crate) fn reserve_frames(&self, ctx: &mut MaySleep, frames: u64) -> Result<(), AttachError> {
        let mut arena = self.tables.borrow_mut();
        arena.reserve(self.hal(), ctx, frames).map_err(|e| AttachError::OutOfMemory { frames: e.frames })
    }

    /// A zeroed frame that was reserved.
    pub(crate) fn take_frame(&self) -> Result<PhysAddr, AttachError> {
        self.tables.borrow_mut().take().ok_or(AttachError::OutOfMemory { frames: 1 })
    }

    /// Gives a zeroed table frame back that hardware has forgotten; one that a predecessor took, to the host.
    pub(crate) fn give_frame(&self, ctx: &mut MaySleep, at: PhysAddr) {
        if !self.tables.borrow_mut().give(at) {
            Extent::new(at.frame(), 1).into_iter().for_each(|run| self.hal().free(ctx, run));
        }
    }

    /// Prepares entries for `sources`, with a new table for each of `missing`; frames were reserved.
    ///
    /// # Errors
    /// [`AttachError::NoMemory`].
    pub(crate) fn plan_contexts(
        &self,
        sources: &[SourceId],
        missing: &[PhysAddr],
    ) -> Result<ContextPlan, AttachError> {
        let mut tables = Vec::with_capacity(missing.len());
        for &word in missing {
            tables.push((word, self.take_frame()?));
        }
        let mut slots = Vec::with_capacity(sources.len());
        for &source in sources {
            let word = self.root_word(source);
            let new = tables.iter().find(|(at, _)| *at == word).map(|(_, table)| *table);
            // There is a table by now, an old or a new one.
            let Some(table) = new.or(self.context_table(word)?) else { continue };
            let at = self.slot(table, source);
            slots.push(Slot { source, at, before: self.load(at)? });
        }
        Ok(ContextPlan { tables, slots })
    }

    /// Writes planned entries, and then makes new tables known, complete as they are.
    pub(crate) fn install(&self, plan: &ContextPlan, entry: Context) -> Result<(), AttachError> {
        for slot in &plan.slots {
            store(self.hal(), slot.at, self.words(&entry))?;
        }
        for &(word, table) in &plan.tables {
            if !self.config.mode.is_scalable() {
                self.hal().write(word.plus(8), 0)?;
            }
            let [low, _] = RootEntry::ZERO.with_present(true).with_ctp(table.frame().number()).raw();
            self.hal().write(word, low)?;
        }
        Ok(())
    }

    /// Undoes [`Self::install`] however far it came, in reverse. The rest of memory may be gone: nothing stops it.
    pub(crate) fn withdraw(&self, plan: &ContextPlan) {
        for &(word, _) in plan.tables.iter().rev() {
            let _ = self.hal().write(word, 0);
        }
        for slot in plan.slots.iter().rev() {
            let _ = clear_to(self.hal(), slot.at, self.words(&slot.before));
        }
    }

    /// Whether the entry of a source-id allows its device to keep translations.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub(crate) fn device_tlb_allowed(&self, source: SourceId) -> Result<bool, NoMemory> {
        Ok(self.context(source)?.is_some_and(|[low, ..]| low & PRESENT != 0 && low & DEVICE_TLB != 0))
    }

    /// Sets or clears the bit that says so, in an entry that is present.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub(crate) fn set_device_tlb_bit(&self, source: SourceId, on: bool) -> Result<(), NoMemory> {
        self.set_bit(source, DEVICE_TLB, on)
    }

    /// Sets or clears the bit of an entry of scalable mode that lets its device ask for pages.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub(crate) fn set_page_request_bit(&self, source: SourceId, on: bool) -> Result<(), NoMemory> {
        self.set_bit(source, PAGE_REQUESTS, on)
    }

    fn set_bit(&self, source: SourceId, bit: u64, on: bool) -> Result<(), NoMemory> {
        let slots = self.used_slots(&[source])?;
        slots.iter().filter(|slot| slot.before[0] & PRESENT != 0).try_for_each(|slot| {
            let cleared = slot.before[0] & !bit;
            self.hal().write(slot.at, if on { cleared | bit } else { cleared })
        })
    }

    fn used_slots(&self, sources: &[SourceId]) -> Result<Vec<Slot>, NoMemory> {
        let mut slots = Vec::with_capacity(sources.len());
        for &source in sources {
            let Some(table) = self.context_table(self.root_word(source))? else { continue };
            let at = self.slot(table, source);
            let before = self.load(at)?;
            if before != [0; 4] {
                slots.push(Slot { source, at, before });
            }
        }
        Ok(slots)
    }

    fn clear_present(&self, slots: &[Slot]) -> Result<(), NoMemory> {
        slots.iter().try_for_each(|slot| self.hal().write(slot.at, slot.before[0] & !PRESENT))
    }

    fn wipe(&self, slot: &Slot) -> Result<(), NoMemory> {
        store(self.hal(), slot.at, self.words(&[0; 4]))
    }

    fn context(&self, source: SourceId) -> Result<Option<Context>, NoMemory> {
        match self.context_table(self.root_word(source))? {
            Some(table) => self.load(self.slot(table, source)).map(Some),
            None => Ok(None),
        }
    }

    /// The context table that the word of a root entry at `word` points to. Both halves of a root entry look alike.
    fn context_table(&self, word: PhysAddr) -> Result<Option<PhysAddr>, NoMemory> {
        let entry = RootEntry::from_raw([self.hal().read(word)?, 0]);
        Ok(entry.present().then(|| entry.context_table()))
    }

    fn root_word(&self, source: SourceId) -> PhysAddr {
        let half =
            if self.config.mode.is_scalable() { u64::from(source.devfn()) / CONTEXT_ENTRIES } else { 0 };
        self.root_table().plus(ENTRY * u64::from(source.bus()) + 8 * half)
    }

    fn slot(&self, table: PhysAddr, source: SourceId) -> PhysAddr {
        let devfn = u64::from(source.devfn());
        table.plus(if self.config.mode.is_scalable() {
            2 * ENTRY * (devfn % CONTEXT_ENTRIES)
        } else {
            ENTRY * devfn
        })
    }

    /// The words of a context entry that are in memory.
    fn words<'e>(&self, entry: &'e Context) -> &'e [u64] {
        if self.config.mode.is_scalable() { entry } else { &entry[..2] }
    }

    fn load(&self, at: PhysAddr) -> Result<Context, NoMemory> {
        let mut entry = [0; 4];
        let words = self.words(&entry).len();
        self.hal().read_words(at, &mut entry[..words])?;
        Ok(entry)
    }
}

/// Writes an entry where none is present: the word with the present bit last.
pub(crate) fn store<M: TableMemory>(memory: &M, at: PhysAddr, entry: &[u64]) -> Result<(), NoMemory> {
    for (i, word) in entry.iter().enumerate().rev() {
        memory.write(at.plus(8 * i as u64), *word)?;
    }
    Ok(())
}

/// Brings an entry back to one that is not present: the word with the present bit first.
pub(crate) fn clear_to<M: TableMemory>(memory: &M, at: PhysAddr, before: &[u64]) -> Result<(), NoMemory> {
    for (i, word) in before.iter().enumerate() {
        memory.write(at.plus(8 * i as u64), if i == 0 { word & !PRESENT } else { *word })?;
    }
    Ok(())
}
