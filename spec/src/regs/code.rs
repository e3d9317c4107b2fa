//! Values of the registers' coded fields.

/// [`super::RootAddr`], field TTM (VT-d 11.4.5).
pub mod table_mode {
    /// Legacy root and context tables.
    pub const LEGACY: u64 = 0;
    /// Scalable root and context tables.
    pub const SCALABLE: u64 = 1;
    /// Reserved.
    pub const RESERVED: u64 = 2;
    /// Every DMA is aborted.
    pub const ABORT_DMA: u64 = 3;
}

/// [`super::Ccmd`], fields CIRG and CAIG (VT-d 11.4.6.1).
pub mod device_granularity {
    /// The whole context cache.
    pub const GLOBAL: u64 = 1;
    /// One domain.
    pub const DOMAIN: u64 = 2;
    /// One source id, under a function mask.
    pub const DEVICE: u64 = 3;
}

/// [`super::IotlbCommand`], fields IIRG and IAIG (VT-d 11.4.6.3).
pub mod iotlb_granularity {
    /// The whole IOTLB.
    pub const GLOBAL: u64 = 1;
    /// One domain.
    pub const DOMAIN: u64 = 2;
    /// A run of pages of one domain.
    pub const PAGE: u64 = 3;
}

/// [`super::Ccmd`], field FM (VT-d 11.4.6.1): which bits of the function number do not count.
pub mod function_mask {
    /// All bits count.
    pub const NONE: u64 = 0;
    /// Bit 2 does not.
    pub const BIT_2: u64 = 1;
    /// Bits 2 and 1 do not.
    pub const BITS_2_1: u64 = 2;
    /// None counts: all functions of the device.
    pub const ALL: u64 = 3;
}

/// [`super::FaultRecord`], field AT (VT-d 11.4.7.6).
pub mod address_type {
    /// An address to be translated.
    pub const UNTRANSLATED: u64 = 0;
    /// A device-TLB asked for a translation.
    pub const TRANSLATION_REQUEST: u64 = 1;
    /// An address that a device-TLB had translated.
    pub const TRANSLATED: u64 = 2;
}

/// [`super::Iqa`], field DW (VT-d 11.4.9.3), and what follows from it.
pub mod queue_width {
    /// Descriptors of 128 bits.
    pub const BITS_128: bool = false;
    /// Descriptors of 256 bits.
    pub const BITS_256: bool = true;
    /// Head and tail are byte offsets: this shift makes an index of one when descriptors have 128 bits.
    pub const SHIFT_128: u32 = 4;
    /// As [`SHIFT_128`], for 256 bits.
    pub const SHIFT_256: u32 = 5;
}

/// [`super::Iqercd`], field IQEI (VT-d 11.4.9.9): what was wrong with the queue.
pub mod queue_error {
    /// Not said.
    pub const NO_INFO: u64 = 0;
    /// The tail lies outside the queue.
    pub const BAD_TAIL: u64 = 1;
    /// A descriptor could not be read.
    pub const FETCH: u64 = 2;
    /// A descriptor of unknown type.
    pub const BAD_TYPE: u64 = 3;
    /// A reserved field of a descriptor is not zero.
    pub const RESERVED_FIELD: u64 = 4;
    /// Descriptors of this width do not go with the mode.
    pub const BAD_WIDTH: u64 = 5;
    /// The tail is not aligned to a descriptor.
    pub const TAIL_MISALIGNED: u64 = 6;
    /// The queue does not go with the root table's mode.
    pub const BAD_TABLE_MODE: u64 = 7;
}
