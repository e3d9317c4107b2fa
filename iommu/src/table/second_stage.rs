//! The second stage: what legacy context entries point at (VT-d 9.8).

use super::format::{Access, Entry, Format, span};
use spec::second_stage::SecondStageEntry;
use spec::{PAGE_SIZE, PhysAddr};

/// Second-stage tables of a certain width and with certain leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondStage {
    levels: u8,
    /// Highest level that may hold a leaf.
    largest_leaf: u8,
}

impl SecondStage {
    /// Tables of `levels` levels (3, 4 or 5; other values are brought into that range), with the large leaves of
    /// `sslps` (CAP.SSLPS: bit 0 2 MiB, bit 1 1 GiB; 1 GiB without 2 MiB counts as none).
    #[must_use]
    pub const fn new(levels: u8, sslps: u64) -> Self {
        let largest_leaf = match sslps & 3 {
            0 | 2 => 0,
            1 => 1,
            _ => 2,
        };
        let levels = if levels < 3 {
            3
        } else if levels > 5 {
            5
        } else {
            levels
        };
        Self { levels, largest_leaf }
    }
}

impl Format for SecondStage {
    fn levels(&self) -> u8 {
        self.levels
    }
    fn can_hold_leaf(&self, level: u8) -> bool {
        level <= self.largest_leaf
    }
    fn can_grant(&self, access: Access) -> bool {
        access.read || access.write
    }
    fn load(&self, raw: u64, level: u8) -> Entry {
        let entry = SecondStageEntry::from_raw(raw);
        if !entry.is_present() {
            Entry::Empty
        } else if entry.is_leaf(level) {
            Entry::Leaf(entry.address(), Access { read: entry.r(), write: entry.w() })
        } else {
            Entry::Table(entry.address())
        }
    }
    fn leaf(&self, to: PhysAddr, level: u8, access: Access) -> u64 {
        let entry = SecondStageEntry::ZERO.with_r(access.read).with_w(access.write).with_ps(level > 0);
        entry.with_addr(to.frame().number()).raw()
    }
    fn split(&self, raw: u64, level: u8, i: u64) -> u64 {
        let entry = SecondStageEntry::from_raw(raw);
        entry.with_ps(level > 1).with_addr(entry.addr() + i * span(level - 1) / PAGE_SIZE).raw()
    }
    fn table(&self, to: PhysAddr, _level: u8) -> u64 {
        // R and W of a table entry limit everything below it: permit all, leaves decide.
        SecondStageEntry::ZERO.with_r(true).with_w(true).with_addr(to.frame().number()).raw()
    }
}
