//! The two formats of root and context tables, as far as they differ in nothing but numbers (VT-d 9.1 to 9.4).
//!
//! A root entry has one pointer in legacy mode and two in scalable mode, one for each half of the bus; both pointers look
//! alike. A context entry has two words or four; its present bit is the same.

use spec::PhysAddr;
use spec::regs::RootAddr;

/// Bits of an address that no host has: entries hold 52 at most.
pub(crate) const BEYOND_ADDRESS: u64 = 0xfff << 52;

/// Addresses of the words from `at` on.
pub(crate) fn word_addresses(at: u64) -> impl Iterator<Item = u64> {
    (0u64..).map(move |word| at.saturating_add(word.saturating_mul(8)))
}

/// A translation mode whose tables can be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Legacy,
    Scalable,
}

impl Mode {
    /// The mode that a root table address register says (field TTM, VT-d 11.4.5).
    pub(crate) const fn of(root: RootAddr) -> Option<Self> {
        match root.ttm() {
            0 => Some(Self::Legacy),
            1 => Some(Self::Scalable),
            _ => None,
        }
    }
    /// Context tables of a bus.
    pub(crate) const fn halves(self) -> u8 {
        match self {
            Self::Legacy => 1,
            Self::Scalable => 2,
        }
    }
    /// Words of a context entry.
    pub(crate) const fn entry_words(self) -> usize {
        match self {
            Self::Legacy => 2,
            Self::Scalable => 4,
        }
    }
    /// The half whose context table holds the entry of this function.
    pub(crate) const fn half(self, devfn: u8) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::Scalable => devfn >> 7,
        }
    }
    /// Where in the context table at `table` the entry of this function lies.
    pub(crate) fn entry_at(self, table: PhysAddr, devfn: u8) -> Option<PhysAddr> {
        let offset = match self {
            Self::Legacy => u64::from(devfn).saturating_mul(16),
            Self::Scalable => u64::from(devfn & 0x7f).saturating_mul(32),
        };
        table.checked_add(offset)
    }
}
