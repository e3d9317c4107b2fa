//! The two formats of root and context tables, as far as the core reads and clears them (VT-d 9.1 to 9.4).
//!
//! A root entry holds one pointer in legacy mode and two in scalable mode, one for each half of the bus; both look alike.
//! A context entry has two words or four; its present bit is the same. Everything that differs besides is here, so that
//! walking, pruning and digests are written once.

use spec::context::ContextEntry;
use spec::regs::{RootAddr, table_mode};
use spec::scalable::ScalableContextEntry;
use spec::{PhysAddr, SourceId};

/// A translation mode whose tables the core can walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Legacy mode: context entries lead to second-stage tables.
    Legacy,
    /// Scalable mode: context entries lead to PASID directories.
    Scalable,
}

impl core::fmt::Display for Mode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy mode",
            Self::Scalable => "scalable mode",
        })
    }
}

impl Mode {
    /// The mode that a root table address register says (RTADDR.TTM, VT-d 11.4.5); `None` for those without tables.
    #[must_use]
    pub const fn of(root: RootAddr) -> Option<Self> {
        match root.ttm() {
            table_mode::LEGACY => Some(Self::Legacy),
            table_mode::SCALABLE => Some(Self::Scalable),
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
    /// Bytes of a context entry.
    pub(crate) const fn entry_bytes(self) -> u64 {
        match self {
            Self::Legacy => 16,
            Self::Scalable => 32,
        }
    }
    /// Bytes of a root entry that belong to one context table.
    pub(crate) const fn pointer_bytes(self) -> u64 {
        16 / self.halves() as u64
    }
    /// Where in the context table at `table` the entry of a function lies.
    pub(crate) fn entry_at(self, table: PhysAddr, devfn: u8) -> PhysAddr {
        let index = match self {
            Self::Legacy => devfn,
            Self::Scalable => devfn & 0x7f,
        };
        table.plus(self.entry_bytes() * u64::from(index))
    }
    /// The place of a source-id's context table.
    pub(crate) const fn place(self, source: SourceId) -> Place {
        let half = match self {
            Self::Legacy => 0,
            Self::Scalable => source.devfn() >> 7,
        };
        Place { bus: source.bus(), half }
    }
    /// Every place of a root table, ascending.
    pub(crate) fn places(self) -> impl Iterator<Item = Place> {
        (0..=u8::MAX).flat_map(move |bus| (0..self.halves()).map(move |half| Place { bus, half }))
    }
}

/// What one context table stands for: a bus in legacy mode, half a bus in scalable mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bus: u8,
    /// 0 for functions below 0x80, and in legacy mode for all.
    pub(crate) half: u8,
}

impl Place {
    /// Where in the root table at `root` the pointer to its context table lies.
    pub(crate) fn pointer_at(self, root: PhysAddr) -> PhysAddr {
        root.plus(16 * u64::from(self.bus) + 8 * u64::from(self.half))
    }
    /// The source-ids there, ascending.
    pub(crate) fn sources(self, mode: Mode) -> impl Iterator<Item = SourceId> {
        let last = if mode.halves() == 1 { u8::MAX } else { 0x80 * self.half + 0x7f };
        let bus = u16::from(self.bus) << 8;
        (0x80 * self.half..=last).map(move |devfn| SourceId::from_raw(bus | u16::from(devfn)))
    }
}

/// A context entry, as its unit's mode has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Of legacy mode.
    Legacy(ContextEntry),
    /// Of scalable mode.
    Scalable(ScalableContextEntry),
}

impl Context {
    /// The entry that these words are; in legacy mode the first two of them.
    pub(crate) const fn from_raw(mode: Mode, [a, b, c, d]: [u64; 4]) -> Self {
        match mode {
            Mode::Legacy => Self::Legacy(ContextEntry::from_raw([a, b])),
            Mode::Scalable => Self::Scalable(ScalableContextEntry::from_raw([a, b, c, d])),
        }
    }
    /// Its words; in legacy mode the last two are zero.
    #[must_use]
    pub const fn raw(self) -> [u64; 4] {
        match self {
            Self::Legacy(entry) => {
                let [a, b] = entry.raw();
                [a, b, 0, 0]
            }
            Self::Scalable(entry) => entry.raw(),
        }
    }
    /// Whether hardware follows it.
    #[must_use]
    pub const fn present(self) -> bool {
        self.raw()[0] & 1 == 1
    }
    /// In scalable mode, where its PASID directory lies.
    #[must_use]
    pub const fn directory(self) -> Option<PhysAddr> {
        match self {
            Self::Legacy(_) => None,
            Self::Scalable(entry) => Some(entry.directory()),
        }
    }
}
