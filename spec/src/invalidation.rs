//! Invalidation descriptors of 128 bits (VT-d 6.5.2). The wide form has the same bits and 128 zeroes behind them.

/// Descriptor type, bits 3:0 of every descriptor (VT-d 6.5.2).
pub mod kind {
    /// Context cache.
    pub const CONTEXT: u64 = 1;
    /// IOTLB.
    pub const IOTLB: u64 = 2;
    /// Device-TLB.
    pub const DEVICE_TLB: u64 = 3;
    /// Interrupt entry cache.
    pub const INTERRUPT: u64 = 4;
    /// Wait.
    pub const WAIT: u64 = 5;
}

/// Granularity of context and IOTLB invalidations. Not the codes of other descriptors: those differ.
pub mod granularity {
    /// Everything.
    pub const GLOBAL: u64 = 1;
    /// One domain.
    pub const DOMAIN: u64 = 2;
    /// One requester (context cache) or a run of pages (IOTLB).
    pub const SELECTIVE: u64 = 3;
}

bitfields! {
    /// Context-cache invalidate (VT-d 6.5.2.1).
    pub struct ContextInvalidate([u64; 2]) {
        /// Type: [`kind::CONTEXT`].
        [3:0] kind, with_kind;
        /// Granularity.
        [5:4] g, with_g;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Domain id.
        [31:16] did, with_did;
        /// Source id.
        [47:32] sid, with_sid;
        /// Function mask.
        [49:48] fm, with_fm;
    }
}

bitfields! {
    /// IOTLB invalidate (VT-d 6.5.2.3).
    pub struct IotlbInvalidate([u64; 2]) {
        /// Type: [`kind::IOTLB`].
        [3:0] kind, with_kind;
        /// Granularity.
        [5:4] g, with_g;
        /// Drain writes.
        [6] dw, with_dw;
        /// Drain reads.
        [7] dr, with_dr;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Domain id.
        [31:16] did, with_did;
        /// Address mask: `2^am` pages.
        [69:64] am, with_am;
        /// Leaf entries only.
        [70] ih, with_ih;
        /// Page number.
        [127:76] addr, with_addr;
    }
}

bitfields! {
    /// Invalidation wait (VT-d 6.5.2.8).
    pub struct Wait([u64; 2]) {
        /// Type: [`kind::WAIT`].
        [3:0] kind, with_kind;
        /// Raise an interrupt on completion.
        [4] interrupt, with_interrupt;
        /// Write the status on completion.
        [5] sw, with_sw;
        /// Fence: later descriptors wait.
        [6] fence, with_fence;
        /// Page-request drain.
        [7] pd, with_pd;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// The status word to write.
        [63:32] stdata, with_stdata;
        /// Where to write it, divided by four.
        [127:66] staddr, with_staddr;
    }
}
