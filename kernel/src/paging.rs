//! The kernel's page tables: an identity map in which nothing is both writable and executable.
//!
//! One operation does it all: [`PageTables::set`] gives a run of pages its rights, or takes them off the map, with the
//! largest pages that fit, and splits a large page where a run begins or ends inside it. Tables come from the kernel's own
//! scratch area and are never given back.

use core::fmt;

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const UNCACHED: u64 = 1 << 4;
/// Set beforehand, so that the processor never writes to a table.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
const LARGE_PAGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// First address that a 48-bit identity map does not reach in its lower half.
pub const LIMIT: u64 = 1 << 47;

/// What may be done with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Instructions.
    Execute,
    /// Constants.
    Read,
    /// Data.
    ReadWrite,
    /// Device registers: neither cached nor reordered.
    Device,
    /// Not mapped: an access faults.
    None,
}

impl Rights {
    const fn bits(self) -> u64 {
        match self {
            Self::Execute => PRESENT | ACCESSED_DIRTY,
            Self::Read => PRESENT | ACCESSED_DIRTY | NO_EXECUTE,
            Self::ReadWrite => PRESENT | ACCESSED_DIRTY | WRITABLE | NO_EXECUTE,
            Self::Device => PRESENT | ACCESSED_DIRTY | WRITABLE | NO_EXECUTE | WRITE_THROUGH | UNCACHED,
            Self::None => 0,
        }
    }
}

/// The words that tables are made of.
pub trait TableWords {
    /// The word at a physical address, a multiple of 8 in a table.
    fn load(&self, at: u64) -> u64;
    /// Stores a word at such an address.
    fn store(&mut self, at: u64, value: u64);
}

/// Why pages could not be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagingError {
    /// The part of the scratch area for tables is used up.
    TablesExhausted {
        /// The address that was to be mapped.
        at: u64,
    },
    /// A run that is not made of pages, or out of reach.
    Run {
        /// Its first byte.
        start: u64,
        /// The byte after it.
        end: u64,
    },
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TablesExhausted { at } => {
                write!(
                    f,
                    "no page table left to map {at:#x}: the machine has more memory than this kernel maps"
                )
            }
            Self::Run { start, end } => write!(f, "{start:#x}..{end:#x} cannot be mapped"),
        }
    }
}
impl core::error::Error for PagingError {}

/// Four levels of tables.
#[derive(Debug)]
pub struct PageTables<W> {
    words: W,
    root: u64,
    next: u64,
    end: u64,
}

impl<W: TableWords> PageTables<W> {
    /// An empty map, with tables out of `start..end` (multiples of 4096).
    ///
    /// # Errors
    /// [`PagingError::TablesExhausted`] when there is not even room for the root.
    pub fn new(words: W, start: u64, end: u64) -> Result<Self, PagingError> {
        let mut tables = Self { words, root: 0, next: start, end };
        tables.root = tables.take_table(0)?;
        Ok(tables)
    }

    /// Physical address of the root table, for CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Gives all pages of `start..end` (multiples of 4096) these rights. The caller flushes the TLB.
    ///
    /// # Errors
    /// [`PagingError`]; part of the run may have changed.
    pub fn set(&mut self, start: u64, end: u64, rights: Rights) -> Result<(), PagingError> {
        if !start.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) || start > end || end > LIMIT {
            return Err(PagingError::Run { start, end });
        }
        let mut at = start;
        while at < end {
            let directory_entry = self.directory_entry(at)?;
            let whole = at.is_multiple_of(LARGE) && end - at >= LARGE;
            if whole {
                // A table that hung here is forgotten, not reused: this happens a few times, at boot.
                let value = if rights == Rights::None { 0 } else { at | rights.bits() | LARGE_PAGE };
                self.words.store(directory_entry, value);
                at += LARGE;
            } else {
                let table = self.split(directory_entry, at)?;
                let value = if rights == Rights::None { 0 } else { at | rights.bits() };
                self.words.store(entry(table, at, 12), value);
                at += PAGE;
            }
        }
        Ok(())
    }

    /// The page's entry, with the large-page bit where it is one; 0 when it is not mapped.
    pub fn lookup(&self, at: u64) -> u64 {
        let mut table = self.root;
        for shift in [39, 30, 21, 12] {
            let value = self.words.load(entry(table, at, shift));
            if value & PRESENT == 0 || shift == 12 || value & LARGE_PAGE != 0 {
                return value;
            }
            table = value & ADDRESS;
        }
        0
    }

    /// Address of the entry for the 2 MiB around `at`; makes the tables above it.
    fn directory_entry(&mut self, at: u64) -> Result<u64, PagingError> {
        let mut table = self.root;
        for shift in [39, 30] {
            let place = entry(table, at, shift);
            let value = self.words.load(place);
            table = if value & PRESENT != 0 { value & ADDRESS } else { self.hang_table(place, at)? };
        }
        Ok(entry(table, at, 21))
    }

    /// The table of 4 KiB pages behind a directory entry; what the entry mapped as one stays mapped in pieces.
    fn split(&mut self, directory_entry: u64, at: u64) -> Result<u64, PagingError> {
        let value = self.words.load(directory_entry);
        if value & PRESENT != 0 && value & LARGE_PAGE == 0 {
            return Ok(value & ADDRESS);
        }
        let table = self.take_table(at)?;
        if value & PRESENT != 0 {
            for i in 0..512 {
                self.words.store(table + 8 * i, (value & !LARGE_PAGE) + PAGE * i);
            }
        }
        self.words.store(directory_entry, table | PRESENT | WRITABLE | ACCESSED_DIRTY);
        Ok(table)
    }

    fn hang_table(&mut self, place: u64, at: u64) -> Result<u64, PagingError> {
        let table = self.take_table(at)?;
        self.words.store(place, table | PRESENT | WRITABLE | ACCESSED_DIRTY);
        Ok(table)
    }

    fn take_table(&mut self, at: u64) -> Result<u64, PagingError> {
        let table = self.next;
        if self.end.saturating_sub(table) < PAGE {
            return Err(PagingError::TablesExhausted { at });
        }
        self.next += PAGE;
        for i in 0..512 {
            self.words.store(table + 8 * i, 0);
        }
        Ok(table)
    }
}

const fn entry(table: u64, at: u64, shift: u32) -> u64 {
    table + 8 * (at >> shift & 511)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    const ARENA: u64 = 0x50_0000;

    #[derive(Default)]
    struct Words(BTreeMap<u64, u64>);

    impl TableWords for Words {
        fn load(&self, at: u64) -> u64 {
            *self.0.get(&at).expect("a table is cleared before it is read")
        }
        fn store(&mut self, at: u64, value: u64) {
            assert!(at.is_multiple_of(8) && (ARENA..ARENA + 64 * PAGE).contains(&at));
            self.0.insert(at, value);
        }
    }

    fn tables() -> PageTables<Words> {
        PageTables::new(Words::default(), ARENA, ARENA + 64 * PAGE).unwrap()
    }

    #[test]
    fn every_mapped_page_maps_to_itself_and_the_first_one_is_absent() {
        let mut tables = tables();
        tables.set(PAGE, 4 * LARGE, Rights::ReadWrite).unwrap();
        assert_eq!(tables.lookup(0), 0);
        for at in (PAGE..4 * LARGE).step_by(PAGE as usize) {
            let value = tables.lookup(at);
            let base = if value & LARGE_PAGE != 0 { at & !(LARGE - 1) } else { at };
            assert_eq!(value & ADDRESS & !(LARGE_PAGE), base, "{at:#x}");
        }
        assert_eq!(tables.lookup(4 * LARGE), 0);
    }

    #[test]
    fn splitting_a_large_page_changes_only_the_pages_asked_for() {
        let mut tables = tables();
        tables.set(0, 2 * LARGE, Rights::ReadWrite).unwrap();
        tables.set(LARGE + PAGE, LARGE + 3 * PAGE, Rights::Execute).unwrap();
        let kind = |at| tables.lookup(at) & (PRESENT | WRITABLE | NO_EXECUTE);
        let data = PRESENT | WRITABLE | NO_EXECUTE;
        assert_eq!(kind(LARGE), data);
        assert_eq!(kind(LARGE + PAGE), PRESENT);
        assert_eq!(kind(LARGE + 2 * PAGE), PRESENT);
        assert_eq!(kind(LARGE + 3 * PAGE), data);
        assert_eq!(tables.lookup(LARGE + 5 * PAGE) & ADDRESS, LARGE + 5 * PAGE);
        assert_eq!(tables.lookup(LARGE - PAGE) & LARGE_PAGE, LARGE_PAGE);
    }

    #[test]
    fn no_rights_are_both_write_and_execute() {
        for rights in [Rights::Execute, Rights::Read, Rights::ReadWrite, Rights::Device] {
            let bits = rights.bits();
            assert!(bits & WRITABLE == 0 || bits & NO_EXECUTE != 0, "{rights:?}");
        }
    }

    #[test]
    fn device_pages_are_uncached_and_pages_taken_off_are_absent() {
        let mut tables = tables();
        tables.set(0xfec0_0000, 0xff00_0000, Rights::Device).unwrap();
        assert_ne!(tables.lookup(0xfed9_0000) & UNCACHED, 0);
        tables.set(0xfed9_0000, 0xfed9_1000, Rights::None).unwrap();
        assert_eq!(tables.lookup(0xfed9_0000), 0);
        assert_ne!(tables.lookup(0xfed9_1000), 0);
    }

    #[test]
    fn runs_that_are_no_pages_or_out_of_reach_and_an_empty_arena_are_errors() {
        let mut tables = tables();
        for (start, end) in [(1, PAGE), (0, 1), (PAGE, 0), (0, LIMIT + PAGE)] {
            assert_eq!(tables.set(start, end, Rights::Read), Err(PagingError::Run { start, end }));
        }
        let mut small = PageTables::new(Words::default(), ARENA, ARENA + 3 * PAGE).unwrap();
        assert_eq!(small.set(0, LARGE, Rights::Read), Ok(()));
        assert_eq!(small.set(0, PAGE, Rights::Read), Err(PagingError::TablesExhausted { at: 0 }));
    }
}
