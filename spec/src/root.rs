//! Root entries: one per bus (VT-d 9.1, 9.2).

use crate::PhysAddr;

/// Entries in a root table: one per bus.
pub const ENTRIES: u64 = 256;

bitfields! {
    /// A root entry in legacy mode (VT-d 9.1).
    pub struct RootEntry([u64; 2]) {
        /// Present: the context table pointer is valid.
        [0] present, with_present;
        /// Context table pointer, as a frame number.
        [63:12] ctp, with_ctp;
    }
}

impl RootEntry {
    /// Address of the context table. Meaningful when `present`.
    #[must_use]
    pub const fn context_table(self) -> PhysAddr {
        PhysAddr::new(self.ctp() << 12)
    }
}

bitfields! {
    /// A root entry in scalable mode (VT-d 9.2): one context table for functions below 0x80, one for those above.
    pub struct ScalableRootEntry([u64; 2]) {
        /// Lower present: devfn 0x00 to 0x7f.
        [0] lp, with_lp;
        /// Lower context table pointer, as a frame number.
        [63:12] lctp, with_lctp;
        /// Upper present: devfn 0x80 to 0xff.
        [64] up, with_up;
        /// Upper context table pointer, as a frame number.
        [127:76] uctp, with_uctp;
    }
}
