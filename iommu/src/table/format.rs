//! What the walker must know of a page-table format.

use super::first_stage::FirstStage;
use super::second_stage::SecondStage;
use core::fmt;
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

/// Which of the two kinds of tables that hardware walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Stage {
    /// Second stage (VT-d 9.8): what legacy context entries point at; scalable mode has it too.
    #[default]
    Second,
    /// First stage (VT-d 9.7): the processor's format; scalable mode only.
    First,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Second => "second",
            Self::First => "first",
        })
    }
}

/// A page-table format: tables of 512 words of 64 bits, 9 address bits a level, 4 KiB leaves at level 0.
pub trait Format: Copy {
    /// Levels of a whole table, 3 to [`MAX_LEVELS`]. The top table is at level `levels() - 1`.
    fn levels(&self) -> u8;
    /// Whether an entry at `level` may be a leaf. If level 2 may, level 1 may too: leaves are split level by level.
    fn can_hold_leaf(&self, level: u8) -> bool;
    /// Whether an entry can say just this access (which is not none at all).
    fn can_grant(&self, access: Access) -> bool;
    /// What hardware sees in the word `raw` at `level`.
    fn load(&self, raw: u64, level: u8) -> Entry;
    /// The word for a leaf at `level`. `to` is a multiple of [`span`] of the level.
    fn leaf(&self, to: PhysAddr, level: u8, access: Access) -> u64;
    /// The word for part `i` (0 to 511) of the leaf `raw` at `level` (1 or higher), one level down, all else being equal.
    fn split(&self, raw: u64, level: u8, i: u64) -> u64;
    /// The word for the table at `to`, the entry being at `level` (1 or higher).
    fn table(&self, to: PhysAddr, level: u8) -> u64;
}

/// Tables of either stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    /// Second stage.
    Second(SecondStage),
    /// First stage.
    First(FirstStage),
}

impl Staged {
    /// Tables of `levels` levels with the large leaves of `leaves`: see [`SecondStage::new`], [`FirstStage::new`].
    #[must_use]
    pub const fn new(stage: Stage, levels: u8, leaves: u64) -> Self {
        match stage {
            Stage::Second => Self::Second(SecondStage::new(levels, leaves)),
            Stage::First => Self::First(FirstStage::new(levels, leaves)),
        }
    }
}

impl Format for Staged {
    fn levels(&self) -> u8 {
        match self {
            Self::Second(f) => f.levels(),
            Self::First(f) => f.levels(),
        }
    }
    fn can_hold_leaf(&self, level: u8) -> bool {
        match self {
            Self::Second(f) => f.can_hold_leaf(level),
            Self::First(f) => f.can_hold_leaf(level),
        }
    }
    fn can_grant(&self, access: Access) -> bool {
        match self {
            Self::Second(f) => f.can_grant(access),
            Self::First(f) => f.can_grant(access),
        }
    }
    fn load(&self, raw: u64, level: u8) -> Entry {
        match self {
            Self::Second(f) => f.load(raw, level),
            Self::First(f) => f.load(raw, level),
        }
    }
    fn leaf(&self, to: PhysAddr, level: u8, access: Access) -> u64 {
        match self {
            Self::Second(f) => f.leaf(to, level, access),
            Self::First(f) => f.leaf(to, level, access),
        }
    }
    fn split(&self, raw: u64, level: u8, i: u64) -> u64 {
        match self {
            Self::Second(f) => f.split(raw, level, i),
            Self::First(f) => f.split(raw, level, i),
        }
    }
    fn table(&self, to: PhysAddr, level: u8) -> u64 {
        match self {
            Self::Second(f) => f.table(to, level),
            Self::First(f) => f.table(to, level),
        }
    }
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
