//! Invalidation descriptors (VT-d 6.5.2), responses to page requests, and the page requests themselves (VT-d 7).
//!
//! Descriptors are declared with their 128 bits. The wide form, which scalable mode wants, has the same bits and 128
//! zeroes behind them: [`widen`].

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
    /// IOTLB, by PASID.
    pub const PASID_IOTLB: u64 = 6;
    /// PASID cache.
    pub const PASID_CACHE: u64 = 7;
    /// Device-TLB, by PASID.
    pub const PASID_DEVICE_TLB: u64 = 8;
    /// Answer to a group of page requests.
    pub const PAGE_GROUP_RESPONSE: u64 = 9;
    /// Answer to a stream of page requests. Obsolete: only the code is known.
    pub const PAGE_STREAM_RESPONSE: u64 = 10;
}

/// The 256-bit form of a descriptor.
#[must_use]
pub const fn widen(narrow: [u64; 2]) -> [u64; 4] {
    [narrow[0], narrow[1], 0, 0]
}

bitfields! {
    /// What every descriptor has: look here first, then take the raw bits for what they are.
    pub struct Descriptor([u64; 2]) {
        /// Type, see [`kind`].
        [3:0] kind, with_kind;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
    }
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

/// Granularity of [`PasidIotlbInvalidate`]. Other values are reserved.
pub mod pasid_iotlb_granularity {
    /// All of one PASID.
    pub const PASID: u64 = 2;
    /// A run of pages of one PASID.
    pub const PAGE: u64 = 3;
}

/// Granularity of [`PasidCacheInvalidate`].
pub mod pasid_cache_granularity {
    /// One domain.
    pub const DOMAIN: u64 = 0;
    /// One PASID of a domain.
    pub const PASID: u64 = 1;
    /// Everything.
    pub const GLOBAL: u64 = 3;
}

/// Granularity of [`InterruptInvalidate`].
pub mod interrupt_granularity {
    /// Everything.
    pub const GLOBAL: bool = false;
    /// A run of indices.
    pub const INDEX: bool = true;
}

/// Granularity of [`PasidDeviceTlbInvalidate`].
pub mod pasid_device_tlb_granularity {
    /// One PASID.
    pub const PASID: bool = false;
    /// All PASIDs.
    pub const GLOBAL: bool = true;
}

/// What a [`PageGroupResponse`] says.
pub mod response {
    /// The pages are there now.
    pub const SUCCESS: u64 = 0;
    /// They cannot be there.
    pub const INVALID_REQUEST: u64 = 1;
    /// The requester is not to ask again.
    pub const FAILURE: u64 = 15;
}

/// [`PageRequest`], field `kind`: the only type there is.
pub const PAGE_REQUEST_KIND: u64 = 1;

bitfields! {
    /// PASID-cache invalidate (VT-d 6.5.2.2).
    pub struct PasidCacheInvalidate([u64; 2]) {
        /// Type: [`kind::PASID_CACHE`].
        [3:0] kind, with_kind;
        /// Granularity, see [`pasid_cache_granularity`].
        [5:4] g, with_g;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Domain id.
        [31:16] did, with_did;
        /// PASID.
        [51:32] pasid, with_pasid;
    }
}

bitfields! {
    /// PASID-based IOTLB invalidate (VT-d 6.5.2.4).
    pub struct PasidIotlbInvalidate([u64; 2]) {
        /// Type: [`kind::PASID_IOTLB`].
        [3:0] kind, with_kind;
        /// Granularity, see [`pasid_iotlb_granularity`].
        [5:4] g, with_g;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Domain id.
        [31:16] did, with_did;
        /// PASID.
        [51:32] pasid, with_pasid;
        /// Address mask: `2^am` pages.
        [69:64] am, with_am;
        /// Leaf entries only.
        [70] ih, with_ih;
        /// Page number.
        [127:76] addr, with_addr;
    }
}

bitfields! {
    /// Device-TLB invalidate (VT-d 6.5.2.5).
    pub struct DeviceTlbInvalidate([u64; 2]) {
        /// Type: [`kind::DEVICE_TLB`].
        [3:0] kind, with_kind;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Bits 3:0 of the physical function's source id; reserved without ECAP.DIT.
        [15:12] pfsid_low, with_pfsid_low;
        /// Invalidations that may be outstanding at the device.
        [20:16] mip, with_mip;
        /// Source id.
        [47:32] sid, with_sid;
        /// Bits 15:4 of the physical function's source id; reserved without ECAP.DIT.
        [63:52] pfsid_high, with_pfsid_high;
        /// More than one page: the lowest zero bit of the address says how many.
        [64] s, with_s;
        /// Page number.
        [127:76] addr, with_addr;
    }
}

bitfields! {
    /// PASID-based device-TLB invalidate (VT-d 6.5.2.6). Fields lie elsewhere than in [`DeviceTlbInvalidate`].
    pub struct PasidDeviceTlbInvalidate([u64; 2]) {
        /// Type: [`kind::PASID_DEVICE_TLB`].
        [3:0] kind, with_kind;
        /// Invalidations that may be outstanding at the device.
        [8:4] mip, with_mip;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Bits 3:0 of the physical function's source id; reserved without ECAP.DIT.
        [15:12] pfsid_low, with_pfsid_low;
        /// Source id.
        [31:16] sid, with_sid;
        /// PASID.
        [51:32] pasid, with_pasid;
        /// Bits 15:4 of the physical function's source id; reserved without ECAP.DIT.
        [63:52] pfsid_high, with_pfsid_high;
        /// Granularity, see [`pasid_device_tlb_granularity`].
        [64] g, with_g;
        /// More than one page: the lowest zero bit of the address says how many.
        [75] s, with_s;
        /// Page number.
        [127:76] addr, with_addr;
    }
}

bitfields! {
    /// Interrupt entry cache invalidate (VT-d 6.5.2.7).
    pub struct InterruptInvalidate([u64; 2]) {
        /// Type: [`kind::INTERRUPT`].
        [3:0] kind, with_kind;
        /// Granularity, see [`interrupt_granularity`].
        [4] g, with_g;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// Index mask: `2^im` indices.
        [31:27] im, with_im;
        /// First index.
        [47:32] iidx, with_iidx;
    }
}

bitfields! {
    /// Answer to a group of page requests (VT-d 7.7).
    pub struct PageGroupResponse([u64; 2]) {
        /// Type: [`kind::PAGE_GROUP_RESPONSE`].
        [3:0] kind, with_kind;
        /// `pasid` is meant.
        [4] pp, with_pp;
        /// Upper bits of the type, zero.
        [11:9] kind_hi, with_kind_hi;
        /// See [`response`].
        [15:12] rc, with_rc;
        /// Source id.
        [31:16] rid, with_rid;
        /// PASID.
        [51:32] pasid, with_pasid;
        /// The group's last request.
        [66] lpig, with_lpig;
        /// Which group.
        [75:67] prgi, with_prgi;
    }
}

bitfields! {
    /// A page request, as the unit writes it into the page request queue (VT-d 7.4).
    pub struct PageRequest([u64; 4]) {
        /// Type: [`PAGE_REQUEST_KIND`].
        [7:0] kind, with_kind;
        /// `pasid` is meant.
        [8] pp, with_pp;
        /// The private data are meant.
        [9] pdp, with_pdp;
        /// Source id.
        [31:16] rid, with_rid;
        /// PASID.
        [51:32] pasid, with_pasid;
        /// To execute.
        [52] exr, with_exr;
        /// Privileged.
        [53] pmr, with_pmr;
        /// To read.
        [64] rdr, with_rdr;
        /// To write.
        [65] wrr, with_wrr;
        /// The group's last request.
        [66] lpig, with_lpig;
        /// Which group.
        [75:67] prgi, with_prgi;
        /// Page number.
        [127:76] addr, with_addr;
        /// Private data, first half.
        [191:128] data0, with_data0;
        /// Private data, second half.
        [255:192] data1, with_data1;
    }
}
