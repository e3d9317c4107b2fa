//! What the walker must know of a page-table format.

use spec::PhysAddr;

/// Levels of the deepest table any format has.
pub const MAX_LEVELS: usize = 5;
/// Entries in a table of every format.
pub const ENTRIES: u64 = 512;

/// What a requester may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// Read.
    pub read: bool,
    /// Write.
    pub write: bool,
}

impl Access {
    /// Read and write.
    pub const READ_WRITE: Self = Self { read: true, write: true };
    /// Read only.
    pub const READ: Self = Self { read: true, write: false };
    /// Write only.
    pub const WRITE: Self = Self { read: false, write: true };
}

/// An entry in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Hardware does not follow it.
    Empty,
    /// A table of the next lower level.
    Table(PhysAddr),
    /// Memory, from this address on.
    Leaf(PhysAddr, Access),
}

/// A page-table format: tables of 512 words of 64 bits, 9 address bits a level, 4 KiB leaves at level 0.
pub trait Format: Copy {
    /// Levels of a whole table, 3 to [`MAX_LEVELS`]. The top table is at level `levels() - 1`.
    fn levels(&self) -> u8;
    /// Whether an entry at `level` may be a leaf. If level 2 may, level 1 may too: leaves are split level by level.
    fn can_hold_leaf(&self, level: u8) -> bool;
    /// What hardware sees in the word `raw` at `level`.
    fn load(&self, raw: u64, level: u8) -> Entry;
    /// The word for a leaf at `level`. `to` is a multiple of [`span`] of the level.
    fn leaf(&self, to: PhysAddr, level: u8, access: Access) -> u64;
    /// The word for part `i` (0 to 511) of the leaf `raw` at `level` (1 or higher), one level down, all else being equal.
    fn split(&self, raw: u64, level: u8, i: u64) -> u64;
    /// The word for the table at `to`, the entry being at `level` (1 or higher).
    fn table(&self, to: PhysAddr, level: u8) -> u64;
}

/// Bytes that one entry at `level` spans.
#[must_use]
pub const fn span(level: u8) -> u64 {
    1 << (12 + 9 * level as u32)
}

/// Index of `iova` in its table at `level`.
#[must_use]
pub const fn index(iova: u64, level: u8) -> u64 {
    (iova >> (12 + 9 * level as u32)) & (ENTRIES - 1)
}
