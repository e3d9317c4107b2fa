//! The walker: a cursor over tables of any format, and look-up, map and unmap by it.
//!
//! Changes come in two parts, each a pass over the range. `plan_*` reads only, finds every reason to refuse, and counts the
//! frames that will be needed; the caller sets them aside; `map` and `unmap` then write and cannot run out.
//! Ranges have been checked before: multiples of 4096, not empty, within the format's width.

use super::format::{Access, ENTRIES, Entry, Format, MAX_LEVELS, index, span};
use crate::error::MapError;
use alloc::vec::Vec;
use liveupdate::host::{NoMemory, TableMemory};
use spec::{Iova, PhysAddr};

/// A place in a page table: the entry for one address, at the lowest level that tables reach down to.
#[derive(Debug)]
pub struct Cursor<'m, M: ?Sized, F> {
    memory: &'m M,
    format: F,
    /// The table at each level from `level` upwards, on the way to `iova`.
    tables: [PhysAddr; MAX_LEVELS],
    level: u8,
    iova: u64,
}

impl<'m, M: TableMemory + ?Sized, F: Format> Cursor<'m, M, F> {
    /// A cursor at the top of the table at `top`.
    #[must_use]
    pub fn new(memory: &'m M, format: F, top: PhysAddr) -> Self {
        let level = format.levels() - 1;
        let mut tables = [PhysAddr::default(); MAX_LEVELS];
        tables[level as usize] = top;
        Self { memory, format, tables, level, iova: 0 }
    }

    /// Goes to the entry for `iova`: up as far as needed, then down as far as there are tables. Never a table.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub fn seek(&mut self, iova: u64) -> Result<Entry, NoMemory> {
        while self.level + 1 < self.format.levels() && (self.iova ^ iova) / span(self.level + 1) != 0 {
            self.level += 1;
        }
        self.iova = iova;
        loop {
            match self.format.load(self.memory.read(self.slot())?, self.level) {
                Entry::Table(table) if self.level > 0 => self.enter(table),
                entry => return Ok(entry),
            }
        }
    }

    /// Level of the entry that the cursor is at.
    #[must_use]
    pub const fn level(&self) -> u8 {
        self.level
    }

    /// First address after the entry that the cursor is at.
    #[must_use]
    pub const fn next(&self) -> u64 {
        (self.iova | (span(self.level) - 1)) + 1
    }

    fn slot(&self) -> PhysAddr {
        self.tables[self.level as usize].plus(8 * index(self.iova, self.level))
    }

    fn enter(&mut self, table: PhysAddr) {
        self.level -= 1;
        self.tables[self.level as usize] = table;
    }

    /// Puts an empty table into the entry and goes into it.
    fn install(&mut self, table: PhysAddr) -> Result<(), NoMemory> {
        self.memory.write(self.slot(), self.format.table(table, self.level))?;
        self.enter(table);
        Ok(())
    }

    /// Replaces the large leaf by the table `table` that translates the same, and goes into it. Hardware sees either.
    fn split(&mut self, table: PhysAddr) -> Result<(), NoMemory> {
        let leaf = self.memory.read(self.slot())?;
        for i in 0..ENTRIES {
            self.memory.write(table.plus(8 * i), self.format.split(leaf, self.level, i))?;
        }
        self.install(table)
    }

    /// Whether every entry of the present table at `level` is empty.
    fn is_vacant(&self, level: u8) -> Result<bool, NoMemory> {
        let table = self.tables[level as usize];
        for i in 0..ENTRIES {
            if self.format.load(self.memory.read(table.plus(8 * i))?, level) != Entry::Empty {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the vacant table at `level` out of its parent, wipes what hardware ignored in it, and stands at the parent's
    /// entry then.
    fn remove(&mut self, level: u8) -> Result<PhysAddr, NoMemory> {
        let table = self.tables[level as usize];
        self.level = level + 1;
        self.memory.write(self.slot(), 0)?;
        for i in 0..ENTRIES {
            if self.memory.read(table.plus(8 * i))? != 0 {
                self.memory.write(table.plus(8 * i), 0)?;
            }
        }
        Ok(table)
    }
}

/// Where `iova` leads, if anywhere.
///
/// # Errors
/// [`NoMemory`] when a table lies where there is none.
pub fn translate<M: TableMemory + ?Sized, F: Format>(
    memory: &M,
    format: F,
    top: PhysAddr,
    iova: Iova,
) -> Result<Option<(PhysAddr, Access)>, NoMemory> {
    let mut cursor = Cursor::new(memory, format, top);
    Ok(match cursor.seek(iova.get())? {
        Entry::Leaf(to, access) => Some((to.plus(iova.get() % span(cursor.level())), access)),
        _ => None,
    })
}

/// What is to be mapped. Checked: not empty, all three multiples of 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub iova: u64,
    /// Where it leads.
    pub phys: PhysAddr,
    /// Length.
    pub bytes: u64,
    /// What may be done.
    pub access: Access,
}

impl Mapping {
    const fn end(&self) -> u64 {
        self.iova + self.bytes
    }
    const fn target(&self, at: u64) -> PhysAddr {
        self.phys.plus(at - self.iova)
    }

    /// The largest leaf for `at` that an entry at `highest` or below can be, and how many of that size follow one another
    /// in one table, up to `end`.
    fn leaves<F: Format>(&self, format: F, at: u64, end: u64, highest: u8) -> (u8, u64) {
        let aligned = at | self.target(at).get();
        let fits =
            |level| format.can_hold_leaf(level) && aligned % span(level) == 0 && end - at >= span(level);
        let mut level = highest;
        while level > 0 && !fits(level) {
            level -= 1;
        }
        let table_end = (at | (span(level + 1) - 1)) + 1;
        (level, (end.min(table_end) - at) / span(level))
    }

    /// Tables that the part `at..end` of the mapping needs below an empty entry at `level`.
    fn tables_below<F: Format>(&self, format: F, mut at: u64, end: u64, level: u8) -> u64 {
        let mut counted = [u64::MAX; MAX_LEVELS];
        let mut tables = 0;
        while at < end {
            let (leaf, count) = self.leaves(format, at, end, level);
            for l in leaf + 1..=level {
                let entry = at / span(l);
                if core::mem::replace(&mut counted[l as usize], entry) != entry {
                    tables += 1;
                }
            }
            at += count * span(leaf);
        }
        tables
    }
}

/// How many tables a mapping needs.
///
/// # Errors
/// [`MapError::AlreadyMapped`] with the first address that is mapped already, [`MapError::NoMemory`].
pub fn plan_map<M: TableMemory + ?Sized, F: Format>(
    memory: &M,
    format: F,
    top: PhysAddr,
    mapping: &Mapping,
) -> Result<u64, MapError> {
    let mut cursor = Cursor::new(memory, format, top);
    let mut tables = 0;
    let mut at = mapping.iova;
    while at < mapping.end() {
        if cursor.seek(at)? != Entry::Empty {
            return Err(MapError::AlreadyMapped { iova: Iova::new(at) });
        }
        let stop = cursor.next().min(mapping.end());
        tables += mapping.tables_below(format, at, stop, cursor.level());
        at = stop;
    }
    Ok(tables)
}

/// Writes a mapping that was planned. `take` gives zeroed frames, as many as planned.
///
/// # Errors
/// [`NoMemory`] when the host lost memory since the plan; part of the mapping may be there.
pub fn map<M: TableMemory + ?Sized, F: Format>(
    memory: &M,
    format: F,
    top: PhysAddr,
    mapping: &Mapping,
    take: &mut dyn FnMut() -> PhysAddr,
) -> Result<(), NoMemory> {
    let mut cursor = Cursor::new(memory, format, top);
    let mut at = mapping.iova;
    while at < mapping.end() {
        cursor.seek(at)?;
        let (leaf, count) = mapping.leaves(format, at, mapping.end(), cursor.level());
        while cursor.level() > leaf {
            cursor.install(take())?;
        }
        // Above level 0 the next entry may hold a (vacant) table: look at each.
        let count = if leaf == 0 { count } else { 1 };
        for i in 0..count {
            let to = mapping.target(at + i * span(leaf));
            memory.write(cursor.slot().plus(8 * i), format.leaf(to, leaf, mapping.access))?;
        }
        at += count * span(leaf);
    }
    Ok(())
}

/// How many tables unmapping `start..end` needs, for large leaves that reach out of the range and are split.
///
/// # Errors
/// [`NoMemory`].
pub fn plan_unmap<M: TableMemory + ?Sized, F: Format>(
    memory: &M,
    format: F,
    top: PhysAddr,
    start: u64,
    end: u64,
) -> Result<u64, NoMemory> {
    let mut cursor = Cursor::new(memory, format, top);
    let mut tables = 0;
    let mut at = start;
    while at < end {
        let entry = cursor.seek(at)?;
        let stop = cursor.next().min(end);
        if matches!(entry, Entry::Leaf(..)) {
            for level in 1..=cursor.level() {
                // Entries at this level that the range covers in part: the one with its start, the one with its end.
                let first = at % span(level) != 0;
                let last = stop % span(level) != 0;
                let same = at / span(level) == stop / span(level);
                tables += if first && last && same { 1 } else { u64::from(first) + u64::from(last) };
            }
        }
        at = stop;
    }
    Ok(tables)
}

/// Clears all leaves in `start..end` and takes out tables that are vacant then. `take` gives zeroed frames, as many as
/// planned. Tables taken out go to `removed`: hardware may walk them until it was made to forget. Returns bytes unmapped.
///
/// # Errors
/// [`NoMemory`] when the host lost memory since the plan; part of the range may be unmapped.
pub fn unmap<M: TableMemory + ?Sized, F: Format>(
    memory: &M,
    format: F,
    top: PhysAddr,
    (start, end): (u64, u64),
    take: &mut dyn FnMut() -> PhysAddr,
    removed: &mut Vec<PhysAddr>,
) -> Result<u64, NoMemory> {
    let mut cursor = Cursor::new(memory, format, top);
    let mut dirty = [false; MAX_LEVELS];
    let mut unmapped = 0;
    let mut at = start;
    while at < end {
        let entry = cursor.seek(at)?;
        let level = cursor.level();
        if matches!(entry, Entry::Leaf(..)) {
            if at % span(level) != 0 || end - at < span(level) {
                cursor.split(take())?;
                continue;
            }
            memory.write(cursor.slot(), 0)?;
            unmapped += span(level);
            dirty[level as usize] = true;
        }
        let next = cursor.next();
        // Tables that the walk leaves here, from below, while each turns out vacant. The top table stays.
        for l in level..format.levels() - 1 {
            let leaving = next >= end || (at ^ next) / span(l + 1) != 0;
            if !leaving {
                break;
            }
            if core::mem::take(&mut dirty[l as usize]) && cursor.is_vacant(l)? {
                removed.push(cursor.remove(l)?);
                dirty[l as usize + 1] = true;
            }
        }
        at = next;
    }
    Ok(unmapped)
}
