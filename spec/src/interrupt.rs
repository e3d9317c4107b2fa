//! Interrupt remapping: table entries, the requests that index them, posted interrupts (VT-d 5, 9.10 to 9.12).
//!
//! A device's message (or an I/O APIC's entry) in remappable format carries an index into the table that IRTA names. The
//! entry there says which interrupt comes of it, or where it is posted, and who may ask.

use crate::{PhysAddr, SourceId};

/// What the upper twelve bits of every interrupt message's address are.
pub const MESSAGE_BASE: u32 = 0xfee;
/// Bytes of a table entry of either format.
pub const ENTRY_BYTES: u64 = 16;

bitfields! {
    /// An interrupt remapping table entry in remapped format (VT-d 9.10).
    pub struct RemappedEntry([u64; 2]) {
        /// Present.
        [0] present, with_present;
        /// Fault processing disable.
        [1] fpd, with_fpd;
        /// Destination mode: logical.
        [2] dm, with_dm;
        /// Redirection hint.
        [3] rh, with_rh;
        /// Trigger mode: level.
        [4] tm, with_tm;
        /// Delivery mode, see [`delivery`].
        [7:5] dlm, with_dlm;
        /// Free for software.
        [11:8] avail, with_avail;
        /// [`entry_format::REMAPPED`].
        [15] im, with_im;
        /// Vector.
        [23:16] v, with_v;
        /// Destination: 32 bits of x2APIC id, or see [`xapic_destination`](Self::xapic_destination).
        [63:32] dst, with_dst;
        /// Source id that may ask, or a range of buses.
        [79:64] sid, with_sid;
        /// Which bits of the function number do not count, see [`source_qualifier`].
        [81:80] sq, with_sq;
        /// What is compared, see [`source_check`].
        [83:82] svt, with_svt;
    }
}

impl RemappedEntry {
    /// The destination when IRTA.EIME is 0: an xAPIC id, in the second byte of the field.
    #[must_use]
    pub const fn xapic_destination(self) -> u8 {
        (self.dst() >> 8) as u8
    }
    /// First and last bus that may ask, when `svt` is [`source_check::BUS_RANGE`].
    #[must_use]
    pub const fn buses(self) -> (u8, u8) {
        ((self.sid() >> 8) as u8, self.sid() as u8)
    }
    /// The source id that may ask, when `svt` is [`source_check::SOURCE_ID`].
    #[must_use]
    pub const fn source(self) -> SourceId {
        SourceId::from_raw(self.sid() as u16)
    }
}

bitfields! {
    /// An interrupt remapping table entry in posted format (VT-d 9.11).
    pub struct PostedEntry([u64; 2]) {
        /// Present.
        [0] present, with_present;
        /// Fault processing disable.
        [1] fpd, with_fpd;
        /// Free for software.
        [11:8] avail, with_avail;
        /// Urgent: notify even when notifications are suppressed.
        [14] urg, with_urg;
        /// [`entry_format::POSTED`].
        [15] im, with_im;
        /// Vector to post.
        [23:16] vv, with_vv;
        /// Address of the descriptor divided by 64, its low part.
        [63:38] pda_low, with_pda_low;
        /// Source id that may ask, or a range of buses.
        [79:64] sid, with_sid;
        /// Which bits of the function number do not count, see [`source_qualifier`].
        [81:80] sq, with_sq;
        /// What is compared, see [`source_check`].
        [83:82] svt, with_svt;
        /// Address of the descriptor, its high part.
        [127:96] pda_high, with_pda_high;
    }
}

impl PostedEntry {
    /// Address of the [`PostedDescriptor`].
    #[must_use]
    pub const fn descriptor(self) -> PhysAddr {
        PhysAddr::new(self.pda_high() << 32 | self.pda_low() << 6)
    }
}

/// Format of a table entry (field IM of [`RemappedEntry`] and [`PostedEntry`]).
pub mod entry_format {
    /// [`super::RemappedEntry`].
    pub const REMAPPED: bool = false;
    /// [`super::PostedEntry`].
    pub const POSTED: bool = true;
}

/// Format of a request (field FORMAT of messages and of [`IoApicEntry`]).
pub mod request_format {
    /// The request says itself which interrupt it is.
    pub const COMPATIBILITY: bool = false;
    /// The request carries an index.
    pub const REMAPPABLE: bool = true;
}

/// Delivery mode of an interrupt (VT-d 9.10, field DLM).
pub mod delivery {
    /// To the destination.
    pub const FIXED: u64 = 0;
    /// To the least busy of the destinations.
    pub const LOWEST_PRIORITY: u64 = 1;
    /// System management interrupt.
    pub const SMI: u64 = 2;
    /// Non-maskable interrupt.
    pub const NMI: u64 = 4;
    /// Initialisation.
    pub const INIT: u64 = 5;
    /// As if from the old interrupt controller.
    pub const EXTINT: u64 = 7;
}

/// What is compared with the source id of a request (VT-d 9.10, field SVT).
pub mod source_check {
    /// Nothing: anyone may ask.
    pub const NONE: u64 = 0;
    /// The source id, under the qualifier.
    pub const SOURCE_ID: u64 = 1;
    /// The bus, with a range.
    pub const BUS_RANGE: u64 = 2;
}

/// Which bits of the source id do not count (VT-d 9.10, field SQ).
pub mod source_qualifier {
    /// All 16 count.
    pub const ALL: u64 = 0;
    /// Bit 2 does not.
    pub const NOT_BIT_2: u64 = 1;
    /// Bits 2 and 1 do not.
    pub const NOT_BITS_2_1: u64 = 2;
    /// Bits 2 to 0 do not.
    pub const NOT_BITS_2_0: u64 = 3;
}

bitfields! {
    /// Address of an interrupt message in remappable format (VT-d 5.1.2.2).
    pub struct RemappableAddress(u32) {
        /// Ignored.
        [1:0] _;
        /// Bit 15 of the handle.
        [2] handle_high, with_handle_high;
        /// The data carries a subhandle to be added.
        [3] shv, with_shv;
        /// [`request_format::REMAPPABLE`].
        [4] format, with_format;
        /// Bits 14:0 of the handle.
        [19:5] handle_low, with_handle_low;
        /// [`MESSAGE_BASE`].
        [31:20] base, with_base;
    }
}

impl RemappableAddress {
    /// The handle.
    #[must_use]
    pub const fn handle(self) -> u16 {
        (self.handle_high() as u16) << 15 | self.handle_low() as u16
    }
    /// The index that this address and `data` together ask for. It may lie past 16 bits, and so past any table.
    #[must_use]
    pub const fn index(self, data: RemappableData) -> u32 {
        self.handle() as u32 + if self.shv() { data.subhandle() } else { 0 }
    }
}

bitfields! {
    /// Data of an interrupt message in remappable format (VT-d 5.1.2.2).
    pub struct RemappableData(u32) {
        /// Subhandle, when the address says so.
        [15:0] subhandle, with_subhandle;
    }
}

bitfields! {
    /// Address of an interrupt message in compatibility format (VT-d 5.1.2.1).
    pub struct CompatibilityAddress(u32) {
        /// Ignored.
        [1:0] _;
        /// Destination mode: logical.
        [2] dm, with_dm;
        /// Redirection hint.
        [3] rh, with_rh;
        /// [`request_format::COMPATIBILITY`].
        [4] format, with_format;
        /// Bits 14:8 of the destination, where a platform extends it.
        [11:5] destid_ext, with_destid_ext;
        /// Destination.
        [19:12] destid, with_destid;
        /// [`MESSAGE_BASE`].
        [31:20] base, with_base;
    }
}

bitfields! {
    /// Data of an interrupt message in compatibility format (VT-d 5.1.2.1).
    pub struct CompatibilityData(u32) {
        /// Vector.
        [7:0] vector, with_vector;
        /// Delivery mode, see [`delivery`].
        [10:8] dlm, with_dlm;
        /// Destination mode again, where a platform wants it here.
        [11] dm_copy, with_dm_copy;
        /// Level: asserted.
        [14] level, with_level;
        /// Trigger mode: level.
        [15] tm, with_tm;
    }
}

bitfields! {
    /// A redirection entry of an I/O APIC in remappable format (VT-d 5.1.5.1). Bits 10:8, the delivery mode of the other
    /// format, are zero.
    pub struct IoApicEntry(u64) {
        /// Vector: for the end of interrupt; must match the table's entry.
        [7:0] vector, with_vector;
        /// Bit 15 of the index.
        [11] index_high, with_index_high;
        /// An interrupt is on its way (read only).
        [12] delivery_status, with_delivery_status;
        /// Active low.
        [13] polarity, with_polarity;
        /// Waits for the end of interrupt (read only).
        [14] remote_irr, with_remote_irr;
        /// Trigger mode: level.
        [15] tm, with_tm;
        /// Masked.
        [16] mask, with_mask;
        /// [`request_format::REMAPPABLE`].
        [48] format, with_format;
        /// Bits 14:0 of the index.
        [63:49] index_low, with_index_low;
    }
}

impl IoApicEntry {
    /// The index that the entry asks for.
    #[must_use]
    pub const fn index(self) -> u16 {
        (self.index_high() as u16) << 15 | self.index_low() as u16
    }
}

bitfields! {
    /// A posted-interrupt descriptor (VT-d 9.12): 64 bytes, aligned to their size.
    pub struct PostedDescriptor([u64; 8]) {
        /// Requests for vectors 0 to 63.
        [63:0] pir0, with_pir0;
        /// Requests for vectors 64 to 127.
        [127:64] pir1, with_pir1;
        /// Requests for vectors 128 to 191.
        [191:128] pir2, with_pir2;
        /// Requests for vectors 192 to 255.
        [255:192] pir3, with_pir3;
        /// A notification is outstanding.
        [256] on, with_on;
        /// Notifications are suppressed.
        [257] sn, with_sn;
        /// Vector of the notification.
        [279:272] nv, with_nv;
        /// Destination of the notification.
        [319:288] ndst, with_ndst;
    }
}
