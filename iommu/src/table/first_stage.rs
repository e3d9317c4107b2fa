//! The first stage: the processor's own format, which PASID entries can point at in scalable mode (VT-d 9.7).
//!
//! Every entry has the user bit, tables too: requests of devices are user requests, and one entry without it refuses them.
//! Hardware sets accessed and dirty bits in entries as it goes; nothing here depends on them.

use super::format::{Access, Entry, Format, span};
use spec::first_stage::FirstStageEntry;
use spec::{PAGE_SIZE, PhysAddr};

/// First-stage tables of a certain depth and with certain leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstStage {
    levels: u8,
    /// Highest level that may hold a leaf.
    largest_leaf: u8,
}

impl FirstStage {
    /// Tables of `levels` levels (4 or 5; other values are brought into that range), with the large leaves of `leaves`
    /// (bit 0 2 MiB, which every unit with a first stage walks; bit 1 1 GiB, CAP.FS1GP; 1 GiB without 2 MiB counts as
    /// none).
    #[must_use]
    pub const fn new(levels: u8, leaves: u64) -> Self {
        let largest_leaf = match leaves & 3 {
            0 | 2 => 0,
            1 => 1,
            _ => 2,
        };
        let levels = if levels < 5 { 4 } else { 5 };
        Self { levels, largest_leaf }
    }
}

impl Format for FirstStage {
    fn levels(&self) -> u8 {
        self.levels
    }
    fn can_hold_leaf(&self, level: u8) -> bool {
        level <= self.largest_leaf
    }
    fn can_grant(&self, access: Access) -> bool {
        // What is present can be read.
        access.read
    }
    fn load(&self, raw: u64, level: u8) -> Entry {
        let entry = FirstStageEntry::from_raw(raw);
        if !entry.is_present() {
            Entry::Empty
        } else if entry.is_leaf(level) {
            Entry::Leaf(entry.address(level), Access { read: entry.us(), write: entry.us() && entry.rw() })
        } else {
            Entry::Table(entry.address(level))
        }
    }
    fn leaf(&self, to: PhysAddr, level: u8, access: Access) -> u64 {
        let entry = FirstStageEntry::ZERO.with_present(true).with_us(true).with_rw(access.write);
        entry.with_ps(level > 0).with_addr(to.frame().number()).raw()
    }
    fn split(&self, raw: u64, level: u8, i: u64) -> u64 {
        let entry = FirstStageEntry::from_raw(raw);
        let part = entry.address(level).plus(i * span(level - 1)).get() / PAGE_SIZE;
        // The third bit into the page attribute table lies at bit 12 of a large leaf, at bit 7 of a small one.
        let pat = entry.pat(level);
        if level > 1 {
            entry.with_addr(part | u64::from(pat)).raw()
        } else {
            entry.with_addr(part).with_ps(pat).raw()
        }
    }
    fn table(&self, to: PhysAddr, _level: u8) -> u64 {
        let entry = FirstStageEntry::ZERO.with_present(true).with_us(true).with_rw(true);
        entry.with_addr(to.frame().number()).raw()
    }
}
