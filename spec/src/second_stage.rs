//! Second-stage paging entries (VT-d 9.8): R and W in place of a present bit, leaves at 4 KiB, 2 MiB and 1 GiB.
//!
//! Levels are counted from 0 here: level 0 holds 4 KiB leaves, level 1 2 MiB, level 2 1 GiB; levels 3 and 4 hold tables
//! only.

use crate::PhysAddr;

/// Entries in a table of any level.
pub const ENTRIES: u64 = 512;
/// The highest level that may hold a leaf.
pub const HIGHEST_LEAF_LEVEL: u8 = 2;

bitfields! {
    /// A second-stage entry of any level. Which bits are reserved depends on level and kind: see [`reserved`].
    pub struct SecondStageEntry(u64) {
        /// Read.
        [0] r, with_r;
        /// Write.
        [1] w, with_w;
        /// Execute; honoured only with SSEE in the PASID entry.
        [2] x, with_x;
        /// Extended memory type of a leaf; ignored unless nested.
        [5:3] emt, with_emt;
        /// Ignore PAT, as `emt`.
        [6] ipat, with_ipat;
        /// Page size: the entry is a leaf although not at level 0. Ignored at level 0.
        [7] ps, with_ps;
        /// Accessed; only with SSADE.
        [8] a, with_a;
        /// Dirty; only with SSADE.
        [9] d, with_d;
        /// Ignored.
        [10] _;
        /// Snoop, in a leaf; needs ECAP.SC.
        [11] snp, with_snp;
        /// Frame of the table or leaf (large leaves: low bits reserved).
        [51:12] addr, with_addr;
        /// Ignored.
        [61:52] _;
        /// Ignored.
        [63] _;
    }
}

impl SecondStageEntry {
    /// Whether hardware would follow the entry: any of R, W (VT-d 9.8; X counts only with SSEE).
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.r() || self.w()
    }
    /// Whether a present entry at `level` is a leaf. `PS` above level 2 is a reserved bit, not a leaf.
    #[must_use]
    pub const fn is_leaf(self, level: u8) -> bool {
        level == 0 || (level <= HIGHEST_LEAF_LEVEL && self.ps())
    }
    /// Address of the table, or of the leaf's first byte.
    #[must_use]
    pub const fn address(self) -> PhysAddr {
        PhysAddr::new(self.addr() << 12)
    }
}

/// Bytes that one entry at `level` (0 to 4) spans.
#[must_use]
pub const fn span(level: u8) -> u64 {
    1 << (12 + 9 * level as u32)
}

/// Index of `iova` in a table at `level`.
#[must_use]
pub const fn index(iova: u64, level: u8) -> u64 {
    (iova >> (12 + 9 * level as u32)) & (ENTRIES - 1)
}

/// Bits that must be zero in a present entry at `level`, for hardware with `address_bits` of host address (DMAR.HAW)
/// that offers snoop control or not (ECAP.SC).
#[must_use]
pub const fn reserved(entry: SecondStageEntry, level: u8, address_bits: u32, snoop_control: bool) -> u64 {
    let mut bits = 1 << 62;
    if address_bits < 52 {
        bits |= crate::bits::mask(51, address_bits);
    }
    if entry.is_leaf(level) {
        if !snoop_control {
            bits |= 1 << 11;
        }
        if level > 0 {
            bits |= crate::bits::mask(11 + 9 * level as u32, 12);
        }
    } else {
        bits |= 1 << 11;
        if level > HIGHEST_LEAF_LEVEL {
            bits |= 1 << 7;
        }
    }
    bits
}
