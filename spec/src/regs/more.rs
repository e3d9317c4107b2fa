//! Registers that a driver seldom meets: queue pointers, page requests, memory types, performance, commands.

bitfields! {
    /// Invalidation queue head (VT-d 11.4.9.1): where the unit reads next.
    pub struct Iqh(u64) {
        /// Byte offset into the queue divided by 16.
        [18:4] qh, with_qh;
    }
}

bitfields! {
    /// Invalidation queue tail (VT-d 11.4.9.2): where software writes next.
    pub struct Iqt(u64) {
        /// Byte offset into the queue divided by 16.
        [18:4] qt, with_qt;
    }
}

bitfields! {
    /// Invalidation completion status (VT-d 11.4.9.4).
    pub struct Ics(u32) {
        /// A wait descriptor with its interrupt flag was completed; write 1 to clear.
        [0] iwc, with_iwc;
    }
}

bitfields! {
    /// Advanced fault log (VT-d 11.4.7.7).
    pub struct AdvancedFaultLog(u64) {
        /// Size: `2^fls` frames.
        [11:9] fls, with_fls;
        /// Frame of the log.
        [63:12] fla, with_fla;
    }
}

bitfields! {
    /// Page request queue head (VT-d 11.4.11): where software reads next.
    pub struct Pqh(u64) {
        /// Byte offset into the queue divided by 32.
        [18:5] pqh, with_pqh;
    }
}

bitfields! {
    /// Page request queue tail (VT-d 11.4.11): where the unit writes next.
    pub struct Pqt(u64) {
        /// Byte offset into the queue divided by 32.
        [18:5] pqt, with_pqt;
    }
}

bitfields! {
    /// Page request queue address (VT-d 11.4.11).
    pub struct Pqa(u64) {
        /// Size: `2^pqs` frames.
        [2:0] pqs, with_pqs;
        /// Frame of the queue.
        [63:12] pqa, with_pqa;
    }
}

bitfields! {
    /// Page request status (VT-d 11.4.11). Both bits are cleared by writing 1.
    pub struct Prs(u32) {
        /// The queue holds a page request that raised no interrupt yet.
        [0] ppr, with_ppr;
        /// The queue overflowed.
        [1] pro, with_pro;
    }
}

bitfields! {
    /// Memory type range capability (VT-d 11.4.12).
    pub struct MtrrCap(u64) {
        /// Variable ranges.
        [7:0] vcnt, with_vcnt;
        /// Fixed ranges.
        [8] fix, with_fix;
        /// Write combining.
        [10] wc, with_wc;
    }
}

bitfields! {
    /// Default memory type (VT-d 11.4.12).
    pub struct MtrrDefault(u64) {
        /// The type, as the processor numbers them.
        [7:0] kind, with_kind;
        /// Fixed ranges count.
        [10] fe, with_fe;
        /// Ranges count at all.
        [11] e, with_e;
    }
}

bitfields! {
    /// Performance monitoring capability (VT-d 11.4.13). Bits without a field here are not settled.
    pub struct PerfCap(u64) {
        /// Counters.
        [15:0] num_cntr, with_num_cntr;
        /// Width of a counter in bits.
        [22:16] cntr_width, with_cntr_width;
        /// Groups of events.
        [28:24] num_event_groups, with_num_event_groups;
        /// Filters.
        [36:32] filters, with_filters;
        /// Interrupt on overflow.
        [50] intr, with_intr;
        /// Distance of the counters' registers: `2^(10 + this)` bytes.
        [54:52] stride_log2_m10, with_stride_log2_m10;
    }
}

bitfields! {
    /// Performance event capability of one group (VT-d 11.4.13). Bits without a field here are not settled.
    pub struct PerfEventCap(u64) {
        /// A bit for each event of the group.
        [27:0] es, with_es;
    }
}

bitfields! {
    /// Performance interrupt status (VT-d 11.4.13). Bits without a field here are not settled.
    pub struct PerfInterruptStatus(u32) {
        /// A counter overflowed; write 1 to clear.
        [0] pis, with_pis;
    }
}

bitfields! {
    /// Enhanced command (VT-d 11.4.14). Bits without a field here are not settled.
    pub struct EnhancedCommand(u64) {
        /// See [`enhanced_command`].
        [7:0] cmd, with_cmd;
        /// First operand; its width is not settled.
        [63:16] oa, with_oa;
    }
}

/// Commands for [`EnhancedCommand`].
pub mod enhanced_command {
    /// All counters count.
    pub const ENABLE_COUNTERS: u64 = 0xf0;
    /// No counter counts.
    pub const DISABLE_COUNTERS: u64 = 0xf1;
    /// All counters stand still.
    pub const FREEZE_COUNTERS: u64 = 0xf4;
    /// All counters go on.
    pub const UNFREEZE_COUNTERS: u64 = 0xf5;
}

bitfields! {
    /// Response to an enhanced command (VT-d 11.4.14). Bits without a field here are not settled.
    pub struct EnhancedResponse(u64) {
        /// The command is being carried out.
        [0] ip, with_ip;
    }
}

bitfields! {
    /// Fourth enhanced command capability (VT-d 11.4.14). Bits without a field here are not settled.
    pub struct EnhancedCommandCap3(u64) {
        /// [`enhanced_command::ENABLE_COUNTERS`].
        [48] ecnts, with_ecnts;
        /// [`enhanced_command::DISABLE_COUNTERS`].
        [49] dcnts, with_dcnts;
        /// [`enhanced_command::FREEZE_COUNTERS`].
        [52] fcnts, with_fcnts;
        /// [`enhanced_command::UNFREEZE_COUNTERS`].
        [53] ufcnts, with_ufcnts;
    }
}
