//! First-stage paging entries (VT-d 9.7): the processor's own format, in scalable mode only.
//!
//! Levels are counted from 0, as in [`crate::second_stage`]: level 0 holds 4 KiB leaves, level 1 2 MiB, level 2 1 GiB.
//! [`span`] and [`index`] are those of the second stage: both cut an address the same way.

use crate::PhysAddr;
pub use crate::second_stage::{ENTRIES, HIGHEST_LEAF_LEVEL, index, span};

bitfields! {
    /// A first-stage entry of any level. Which bits are reserved depends on level and kind: see [`reserved`].
    pub struct FirstStageEntry(u64) {
        /// Present.
        [0] present, with_present;
        /// Writable.
        [1] rw, with_rw;
        /// User requests may pass.
        [2] us, with_us;
        /// Write-through.
        [3] pwt, with_pwt;
        /// No caching.
        [4] pcd, with_pcd;
        /// Accessed.
        [5] a, with_a;
        /// Dirty, in a leaf; ignored in a table.
        [6] d, with_d;
        /// Page size: the entry is a leaf although not at level 0. At level 0 the third bit into the page attribute table.
        [7] ps, with_ps;
        /// Global, in a leaf; ignored in a table.
        [8] g, with_g;
        /// Ignored.
        [9] _;
        /// Extended accessed; only with EAFE in the PASID entry.
        [10] ea, with_ea;
        /// Ignored.
        [11] _;
        /// Frame of the table or leaf (large leaves: bit 12 is the third bit into the page attribute table, the other low
        /// bits are reserved).
        [51:12] addr, with_addr;
        /// Ignored.
        [62:52] _;
        /// Execute disable.
        [63] xd, with_xd;
    }
}

impl FirstStageEntry {
    /// Whether hardware would follow the entry.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.present()
    }
    /// Whether a present entry at `level` is a leaf. `PS` above level 2 is a reserved bit, not a leaf.
    #[must_use]
    pub const fn is_leaf(self, level: u8) -> bool {
        level == 0 || (level <= HIGHEST_LEAF_LEVEL && self.ps())
    }
    /// The third bit into the page attribute table, of a leaf at `level`.
    #[must_use]
    pub const fn pat(self, level: u8) -> bool {
        if level == 0 { self.ps() } else { self.raw() >> 12 & 1 == 1 }
    }
    /// Address of the table, or of the first byte of the leaf, for an entry at `level`.
    #[must_use]
    pub const fn address(self, level: u8) -> PhysAddr {
        let low = if level > 0 && self.is_leaf(level) { span(level) - 1 } else { 0 };
        PhysAddr::new(self.addr() << 12 & !low)
    }
}

/// Bits that must be zero in a present entry at `level`, for hardware with `address_bits` of host address.
#[must_use]
pub const fn reserved(entry: FirstStageEntry, level: u8, address_bits: u32) -> u64 {
    let mut bits = 0;
    if address_bits < 52 {
        bits |= crate::bits::mask(51, address_bits);
    }
    if level > HIGHEST_LEAF_LEVEL {
        bits |= 1 << 7;
    } else if level > 0 && entry.is_leaf(level) {
        bits |= crate::bits::mask(11 + 9 * level as u32, 13);
    }
    bits
}
