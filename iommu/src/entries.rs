//! Root and context entries: written and cleared in the order that hardware demands (VT-d 6.2.2, 9.1, 9.3).
//!
//! An entry is 128 bits and hardware may read it at any moment, so the word with the present bit is stored last when an
//! entry appears. When one goes, the present bit is cleared first, hardware is made to forget, and only then the rest is
//! wiped.

use crate::Hal;
use crate::error::AttachError;
use crate::unit::VtdUnit;
use alloc::vec::Vec;
use liveupdate::host::{Atomic, Forget, MaySleep, NoMemory, TableMemory, Unit};
use spec::context::ContextEntry;
use spec::root::RootEntry;
use spec::{PhysAddr, Requester, SourceId};

/// Bytes of a root or context entry.
const ENTRY: u64 = 16;
/// The present bit, in the first word of root and context entries.
const PRESENT: u64 = 1;

/// An entry that is about to change, and what was in it.
struct Slot {
    source: SourceId,
    at: PhysAddr,
    before: ContextEntry,
}

impl<H: Hal> VtdUnit<'_, H> {
    /// The context entry of a source-id as it is in memory; `None` where the bus has no context table.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub fn context_entry(&self, source: SourceId) -> Result<Option<ContextEntry>, NoMemory> {
        match self.context_table(source.bus())? {
            Some(table) => load(self.hal(), slot(table, source)).map(Some),
            None => Ok(None),
        }
    }

    /// Writes the same entry for all `sources`, which have none yet: all or none. Buses without a context table get one.
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
        let mut missing: Vec<u8> = Vec::new();
        for &source in sources {
            match self.context_entry(source)? {
                Some(there) if there.present() => {
                    let requester = Requester::new(self.registers.id.segment, source);
                    return Err(AttachError::Occupied { requester, source });
                }
                None if !missing.contains(&source.bus()) => missing.push(source.bus()),
                _ => {}
            }
        }
        let tables = self.take_tables(ctx, &missing)?;
        let mut slots = Vec::with_capacity(sources.len());
        for &source in sources {
            let new = tables.iter().find(|(bus, _)| *bus == source.bus()).map(|(_, table)| *table);
            // A bus has a table by now, its own or a new one.
            let Some(table) = new.or(self.context_table(source.bus())?) else { continue };
            let at = slot(table, source);
            slots.push(Slot { source, at, before: load(self.hal(), at)? });
        }
        self.locked(ctx, |atomic| {
            self.install(atomic, &tables, &slots, entry).inspect_err(|_| self.withdraw(&tables, &slots))
        })
    }

    /// Clears the entries of `sources` and makes hardware forget them and the translations of their domains.
    ///
    /// # Errors
    /// [`AttachError::TimedOut`]: no entry is present, but hardware did not confirm for all; those keep the rest of their
    /// content, so that calling again tries again. [`AttachError::NoMemory`].
    pub fn detach_entries(&self, ctx: &mut MaySleep, sources: &[SourceId]) -> Result<(), AttachError> {
        let mut slots = Vec::with_capacity(sources.len());
        for &source in sources {
            let Some(table) = self.context_table(source.bus())? else { continue };
            let at = slot(table, source);
            let before = load(self.hal(), at)?;
            if before != ContextEntry::ZERO {
                slots.push(Slot { source, at, before });
            }
        }
        self.locked(ctx, |atomic| {
            for slot in &slots {
                self.hal().write(slot.at, slot.before.with_present(false).raw()[0])?;
            }
            let mut outcome = Ok(());
            for slot in &slots {
                let what = Forget::Requester { source: slot.source, domain: slot.before.domain_id() };
                match self.forget(atomic, what) {
                    Ok(_) => store(self.hal(), slot.at, ContextEntry::ZERO)?,
                    Err(e) => outcome = outcome.and(Err(AttachError::TimedOut(e))),
                }
            }
            outcome
        })
    }

    /// The context table of a bus.
    fn context_table(&self, bus: u8) -> Result<Option<PhysAddr>, NoMemory> {
        let at = self.root_slot(bus);
        let entry = RootEntry::from_raw([self.hal().read(at)?, self.hal().read(at.plus(8))?]);
        Ok(entry.present().then(|| entry.context_table()))
    }

    fn root_slot(&self, bus: u8) -> PhysAddr {
        self.root_table().plus(ENTRY * u64::from(bus))
    }

    /// A zeroed frame for each of `buses`.
    fn take_tables(&self, ctx: &mut MaySleep, buses: &[u8]) -> Result<Vec<(u8, PhysAddr)>, AttachError> {
        let frames = buses.len() as u64;
        let mut arena = self.tables.borrow_mut();
        arena.reserve(self.hal(), ctx, frames).map_err(|e| AttachError::OutOfMemory { frames: e.frames })?;
        let taken: Vec<_> = buses.iter().filter_map(|&bus| Some((bus, arena.take()?))).collect();
        if taken.len() == buses.len() { Ok(taken) } else { Err(AttachError::OutOfMemory { frames }) }
    }

    fn install(
        &self,
        atomic: &Atomic,
        tables: &[(u8, PhysAddr)],
        slots: &[Slot],
        entry: ContextEntry,
    ) -> Result<(), AttachError> {
        for slot in slots {
            store(self.hal(), slot.at, entry)?;
        }
        // New tables get known when they are complete.
        for &(bus, table) in tables {
            let root = RootEntry::ZERO.with_present(true).with_ctp(table.frame().number()).raw();
            self.hal().write(self.root_slot(bus).plus(8), root[1])?;
            self.hal().write(self.root_slot(bus), root[0])?;
        }
        for slot in slots {
            self.announce(atomic, slot.source, entry.domain_id())?;
        }
        Ok(())
    }

    /// Undoes [`Self::install`] however far it came, in reverse. The rest of memory may be gone: nothing stops it.
    fn withdraw(&self, tables: &[(u8, PhysAddr)], slots: &[Slot]) {
        for &(bus, _) in tables.iter().rev() {
            let _ = self.hal().write(self.root_slot(bus), 0);
        }
        for slot in slots.iter().rev() {
            let _ = clear_to(self.hal(), slot.at, slot.before);
        }
    }
}

fn slot(table: PhysAddr, source: SourceId) -> PhysAddr {
    table.plus(ENTRY * u64::from(source.devfn()))
}

fn load<M: TableMemory>(memory: &M, at: PhysAddr) -> Result<ContextEntry, NoMemory> {
    Ok(ContextEntry::from_raw([memory.read(at)?, memory.read(at.plus(8))?]))
}

/// Writes an entry where none is present: the word with the present bit last.
fn store<M: TableMemory>(memory: &M, at: PhysAddr, entry: ContextEntry) -> Result<(), NoMemory> {
    memory.write(at.plus(8), entry.raw()[1])?;
    memory.write(at, entry.raw()[0])
}

/// Brings an entry back to one that is not present: the word with the present bit first.
fn clear_to<M: TableMemory>(memory: &M, at: PhysAddr, before: ContextEntry) -> Result<(), NoMemory> {
    memory.write(at, before.raw()[0] & !PRESENT)?;
    memory.write(at.plus(8), before.raw()[1])
}
