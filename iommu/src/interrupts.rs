//! Interrupt remapping of a unit: its table, who has which entry, and hardware kept in step with it (VT-d 5.1, 9.10).
//!
//! A table is made by [`VtdUnit::remap_interrupts`], or taken over as a predecessor left it: in place, while it is in use.
//! Entries are handed out one at a time or in aligned blocks ([`VtdUnit::allocate_interrupts`]), written by
//! [`VtdUnit::set_interrupt`], and named in a device's messages by [`Message`].
//!
//! An entry is 128 bits, and hardware may read it at any moment. When one appears, the word with the present bit is stored
//! last; when one goes, the present bit is cleared first, hardware is made to forget the entry, and only then the rest is
//! wiped. A present entry whose first word alone changes (vector, destination: what re-pointing is) is changed in one
//! store, so that no interrupt falls between; where the second word changes too, it goes and comes back, and a request in
//! between is blocked and recorded.
//!
//! Only a queue can make hardware forget interrupt entries, so units without one are refused.

mod entry;

pub use entry::{Asker, DESCRIPTOR_BYTES, EntryError, InterruptEntry, Message};

use crate::Hal;
use crate::unit::VtdUnit;
use alloc::vec::Vec;
use core::fmt;
use liveupdate::host::{
    Atomic, ForgetInterrupts, Forgotten, InterruptRemapping, MaySleep, NoMemory, TimedOut, Unit,
};
use spec::interrupt::{ENTRY_BYTES, entry_format};
use spec::invalidation::{InterruptInvalidate, interrupt_granularity, kind};
use spec::regs::{Gsts, Irta, offset};
use spec::{Extent, PhysAddr, UnitId};

/// The present bit, in the first word.
const PRESENT: u64 = 1;
/// The bit that tells the formats apart, in the first word.
const POSTED: u64 = 1 << 15;
/// Entries in one word of the map of those handed out.
const WORD: u32 = 64;

/// What a table is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptSetup {
    /// Size as IRTA.S has it: `2^(size + 1)` entries. 0 to 15; larger values count as 15.
    pub size: u8,
    /// Destinations are x2APIC ids of 32 bits (IRTA.EIME); otherwise xAPIC ids of 8 bits.
    pub extended: bool,
    /// Let messages in compatibility format pass (GCMD.CFI). Hardware blocks them in extended mode in any case.
    pub compatibility: bool,
}

impl Default for InterruptSetup {
    /// 256 entries, one frame; xAPIC; nothing passes but what an entry lets pass.
    fn default() -> Self {
        Self { size: 7, extended: false, compatibility: false }
    }
}

/// Something about interrupts that cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptError {
    /// The unit lacks interrupt remapping (ECAP.IR), or a queue to make it forget entries.
    NoRemapping(UnitId),
    /// The unit lacks extended mode (ECAP.EIM).
    NoExtendedMode(UnitId),
    /// The unit lacks posted interrupts (CAP.PI).
    NoPosting(UnitId),
    /// The unit does not remap interrupts yet.
    NotRemapping(UnitId),
    /// The unit's interrupt table is in use already.
    Remapping(UnitId),
    /// No frames for the table.
    OutOfMemory {
        /// The unit.
        unit: UnitId,
        /// Frames asked for.
        frames: u64,
    },
    /// No free block of entries.
    NoEntries {
        /// The unit.
        unit: UnitId,
        /// Entries asked for.
        entries: u32,
    },
    /// The entry is nobody's, somebody else's, or beyond the table.
    NotAllocated {
        /// The unit.
        unit: UnitId,
        /// The index.
        index: u16,
    },
    /// Take-over of an entry that is not present, or that is taken.
    NotFound {
        /// The unit.
        unit: UnitId,
        /// The index.
        index: u16,
    },
    /// The entry cannot be written.
    Entry(EntryError),
    /// The table lies where there is no memory.
    NoMemory(NoMemory),
    /// Hardware did not do a step in time.
    TimedOut(TimedOut),
}

impl fmt::Display for InterruptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRemapping(unit) => {
                write!(f, "unit {unit} has no interrupt remapping (ECAP.IR), or no queue in use")
            }
            Self::NoExtendedMode(unit) => {
                write!(f, "unit {unit} has no extended interrupt mode (ECAP.EIM); keep to xAPIC ids")
            }
            Self::NoPosting(unit) => write!(f, "unit {unit} has no posted interrupts (CAP.PI)"),
            Self::NotRemapping(unit) => write!(f, "unit {unit} remaps no interrupts; switch it on first"),
            Self::Remapping(unit) => write!(f, "unit {unit} remaps interrupts already"),
            Self::OutOfMemory { unit, frames } => {
                write!(f, "unit {unit}: out of memory for {frames} frames of interrupt table")
            }
            Self::NoEntries { unit, entries } => {
                write!(f, "unit {unit}: no free block of {entries} interrupt entries; make the table larger")
            }
            Self::NotAllocated { unit, index } => {
                write!(f, "unit {unit}: interrupt entry {index:#x} was not handed out")
            }
            Self::NotFound { unit, index } => {
                write!(f, "unit {unit}: interrupt entry {index:#x} is not there to be taken over")
            }
            Self::Entry(e) => e.fmt(f),
            Self::NoMemory(e) => e.fmt(f),
            Self::TimedOut(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for InterruptError {}
impl From<EntryError> for InterruptError {
    fn from(e: EntryError) -> Self {
        Self::Entry(e)
    }
}
impl From<NoMemory> for InterruptError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}
impl From<TimedOut> for InterruptError {
    fn from(e: TimedOut) -> Self {
        Self::TimedOut(e)
    }
}

/// A unit's interrupt table, as the driver knows it.
#[derive(Debug)]
pub(crate) struct InterruptTable {
    irta: Irta,
    /// A bit for each entry that was handed out or claimed.
    used: Vec<u64>,
}

impl InterruptTable {
    pub(crate) fn new(irta: Irta) -> Self {
        Self { irta, used: alloc::vec![0; irta.entries().div_ceil(WORD) as usize] }
    }
    fn is_used(&self, index: u32) -> bool {
        self.used.get((index / WORD) as usize).is_none_or(|word| word >> (index % WORD) & 1 == 1)
    }
    fn mark(&mut self, index: u32, used: bool) {
        let bit = 1 << (index % WORD);
        if let Some(word) = self.used.get_mut((index / WORD) as usize) {
            *word = if used { *word | bit } else { *word & !bit };
        }
    }
    fn at(&self, index: u32) -> PhysAddr {
        self.irta.table().plus(u64::from(index) * ENTRY_BYTES)
    }
}

impl<H: Hal> VtdUnit<'_, H> {
    /// Whether the unit can remap interrupts under this driver.
    #[must_use]
    pub fn can_remap_interrupts(&self) -> bool {
        self.ecap().ir() && self.has_queue()
    }

    /// Switches interrupt remapping on with an empty table: from now on every interrupt that is asked for by a message in
    /// remappable format is blocked until it has an entry. A table that firmware left is replaced.
    ///
    /// # Errors
    /// [`InterruptError`]; remapping is as it was. After [`InterruptError::TimedOut`] the table's frames are not used
    /// again, as hardware may know them.
    pub fn remap_interrupts(&self, ctx: &mut MaySleep, setup: InterruptSetup) -> Result<(), InterruptError> {
        let unit = self.id();
        if !self.can_remap_interrupts() {
            return Err(InterruptError::NoRemapping(unit));
        }
        if setup.extended && !self.ecap().eim() {
            return Err(InterruptError::NoExtendedMode(unit));
        }
        if self.interrupt_books.borrow().is_some() {
            return Err(InterruptError::Remapping(unit));
        }
        let irta = Irta::ZERO.with_s(u64::from(setup.size.min(15))).with_eime(setup.extended);
        let frames = irta.frames().map_or(1, Extent::count);
        let table = self.hal().allocate(ctx, frames, frames.next_power_of_two());
        let table = table.ok_or(InterruptError::OutOfMemory { unit, frames })?;
        let irta = irta.with_irta(table.first().number());
        self.locked(ctx, |atomic| {
            self.registers.write64(offset::IRTA, irta.raw());
            self.registers.command("setting the interrupt table", |c| c.with_sirtp(true), Gsts::irtps)?;
            if !self.cap().esirtps() {
                let _ = self.forget_interrupts(atomic, ForgetInterrupts::Everything)?;
            }
            let cfi = setup.compatibility;
            let what = "letting compatibility interrupts pass or not";
            self.registers.command(what, |c| c.with_cfi(cfi), |s| s.cfis() == cfi)?;
            let what = "switching interrupt remapping on";
            self.registers.command(what, |c| c.with_ire(true), Gsts::ires)
        })?;
        *self.interrupt_books.borrow_mut() = Some(InterruptTable::new(irta));
        Ok(())
    }

    /// The interrupt table in use: the register, and so address, size and mode.
    #[must_use]
    pub fn interrupt_table_in_use(&self) -> Option<Irta> {
        self.interrupt_books.borrow().as_ref().map(|table| table.irta)
    }

    /// The two words of an entry as they are in memory.
    ///
    /// # Errors
    /// [`InterruptError::NotRemapping`], [`InterruptError::NotAllocated`] beyond the table, [`InterruptError::NoMemory`].
    pub fn interrupt_entry(&self, index: u16) -> Result<[u64; 2], InterruptError> {
        let books = self.interrupt_books.borrow();
        let table = books.as_ref().ok_or(InterruptError::NotRemapping(self.id()))?;
        if u32::from(index) >= table.irta.entries() {
            return Err(InterruptError::NotAllocated { unit: self.id(), index });
        }
        Ok(self.load_interrupt(table.at(u32::from(index)))?)
    }

    /// Hands out `2^order` entries from an index that is a multiple of that: what a device with several MSI vectors needs.
    /// They are not present. Entries that a predecessor left present are not handed out.
    ///
    /// # Errors
    /// [`InterruptError::NoEntries`], [`InterruptError::NotRemapping`], [`InterruptError::NoMemory`].
    pub fn allocate_interrupts(&self, order: u8) -> Result<u16, InterruptError> {
        let unit = self.id();
        let mut books = self.interrupt_books.borrow_mut();
        let table = books.as_mut().ok_or(InterruptError::NotRemapping(unit))?;
        let (all, size) = (table.irta.entries(), 1u32 << order.min(16));
        'blocks: for first in (0..all).step_by(size as usize).filter(|first| first + size <= all) {
            for index in first..first + size {
                let taken = table.is_used(index) || self.load_interrupt(table.at(index))?[0] & PRESENT != 0;
                if taken {
                    continue 'blocks;
                }
            }
            (first..first + size).for_each(|index| table.mark(index, true));
            return Ok(first as u16);
        }
        Err(InterruptError::NoEntries { unit, entries: size })
    }

    /// Takes back `2^order` entries that were handed out or claimed: they are cleared, hardware forgets them.
    ///
    /// # Errors
    /// [`InterruptError`]. After a time-out the entries are not present and stay taken.
    pub fn free_interrupts(&self, ctx: &mut MaySleep, first: u16, order: u8) -> Result<(), InterruptError> {
        let run = u32::from(first)..u32::from(first) + (1 << order.min(16));
        run.clone().try_for_each(|index| self.owned_interrupt(index).map(|_| ()))?;
        self.locked(ctx, |atomic| {
            for index in run.clone() {
                self.drop_present(self.owned_interrupt(index)?)?;
            }
            let _ = self.forget_interrupts(atomic, ForgetInterrupts::Run { first, order })?;
            run.clone().try_for_each(|index| self.wipe_interrupt(self.owned_interrupt(index)?))
        })?;
        if let Some(table) = self.interrupt_books.borrow_mut().as_mut() {
            run.for_each(|index| table.mark(index, false));
        }
        Ok(())
    }

    /// Writes an entry that was handed out or claimed, present or not before.
    ///
    /// # Errors
    /// [`InterruptError`]. After a time-out hardware may go on using what the entry was.
    pub fn set_interrupt(
        &self,
        ctx: &mut MaySleep,
        index: u16,
        entry: InterruptEntry,
    ) -> Result<(), InterruptError> {
        let at = self.owned_interrupt(u32::from(index))?;
        let extended = self.interrupt_table_in_use().is_some_and(Irta::eime);
        let [low, high] = entry.words(extended)?;
        if low & POSTED != 0 && !self.cap().pi() {
            return Err(InterruptError::NoPosting(self.id()));
        }
        let one = ForgetInterrupts::Run { first: index, order: 0 };
        self.locked(ctx, |atomic| {
            let before = self.load_interrupt(at)?;
            let present = before[0] & PRESENT != 0;
            if present && before[1] != high {
                self.drop_present(at)?;
                let _ = self.forget_interrupts(atomic, one)?;
            }
            if before[1] != high {
                self.hal().write(at.plus(8), high)?;
            }
            self.hal().write(at, low)?;
            // Without caching mode, hardware keeps nothing about an entry that was not present.
            if present || self.cap().cm() {
                let _ = self.forget_interrupts(atomic, one)?;
            } else {
                self.flush_write_buffer()?;
            }
            Ok(())
        })
    }

    /// Clears an entry that was handed out or claimed; it stays so.
    ///
    /// # Errors
    /// [`InterruptError`]. After a time-out the entry is not present, but hardware may go on using what it was.
    pub fn clear_interrupt(&self, ctx: &mut MaySleep, index: u16) -> Result<(), InterruptError> {
        let at = self.owned_interrupt(u32::from(index))?;
        self.locked(ctx, |atomic| {
            self.drop_present(at)?;
            let _ = self.forget_interrupts(atomic, ForgetInterrupts::Run { first: index, order: 0 })?;
            self.wipe_interrupt(at)
        })
    }

    /// Takes over a present entry of a predecessor's table: from now on it is as if handed out. Says what is in it.
    ///
    /// # Errors
    /// [`InterruptError::NotFound`], [`InterruptError::NotRemapping`], [`InterruptError::NoMemory`].
    pub fn claim_interrupt(&self, index: u16) -> Result<[u64; 2], InterruptError> {
        let unit = self.id();
        let words = self.interrupt_entry(index)?;
        let mut books = self.interrupt_books.borrow_mut();
        let table = books.as_mut().ok_or(InterruptError::NotRemapping(unit))?;
        if words[0] & PRESENT == 0 || table.is_used(u32::from(index)) {
            return Err(InterruptError::NotFound { unit, index });
        }
        table.mark(u32::from(index), true);
        Ok(words)
    }

    /// Where an entry lies that was handed out.
    fn owned_interrupt(&self, index: u32) -> Result<PhysAddr, InterruptError> {
        let unit = self.id();
        let books = self.interrupt_books.borrow();
        let table = books.as_ref().ok_or(InterruptError::NotRemapping(unit))?;
        if index >= table.irta.entries() || !table.is_used(index) {
            return Err(InterruptError::NotAllocated { unit, index: index as u16 });
        }
        Ok(table.at(index))
    }

    fn load_interrupt(&self, at: PhysAddr) -> Result<[u64; 2], NoMemory> {
        Ok([self.hal().read(at)?, self.hal().read(at.plus(8))?])
    }

    fn drop_present(&self, at: PhysAddr) -> Result<(), NoMemory> {
        let low = self.hal().read(at)?;
        if low & PRESENT != 0 { self.hal().write(at, low & !PRESENT) } else { Ok(()) }
    }

    fn wipe_interrupt(&self, at: PhysAddr) -> Result<(), InterruptError> {
        self.hal().write(at, 0)?;
        Ok(self.hal().write(at.plus(8), 0)?)
    }
}

impl<H: Hal> InterruptRemapping for VtdUnit<'_, H> {
    fn interrupt_table(&self) -> Irta {
        Irta::from_raw(self.registers.read64(offset::IRTA))
    }

    fn forget_interrupts(&self, _atomic: &Atomic, what: ForgetInterrupts) -> Result<Forgotten, TimedOut> {
        let what_for = "interrupt entry cache invalidation";
        let no_queue = TimedOut { unit: self.id(), what: what_for, waited: 0 };
        let descriptor = InterruptInvalidate::ZERO.with_kind(kind::INTERRUPT);
        let descriptor = match what {
            // More than the unit can name at once: all of them.
            ForgetInterrupts::Run { first, order } if u64::from(order) <= self.ecap().mhmv() => descriptor
                .with_g(interrupt_granularity::INDEX)
                .with_im(u64::from(order))
                .with_iidx(u64::from(first)),
            _ => descriptor.with_g(interrupt_granularity::GLOBAL),
        };
        let queue = self.queue.as_ref().ok_or(no_queue)?;
        queue.submit(&self.registers, what_for, &[descriptor.raw()])?;
        Ok(Forgotten::observed())
    }

    fn disable_interrupts(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        let what = "switching interrupt remapping off";
        self.registers.command(what, |c| c.with_ire(false), |s| !s.ires())
    }
}

const _: () = assert!(entry_format::POSTED && POSTED == 1 << 15 && PRESENT == 1);
