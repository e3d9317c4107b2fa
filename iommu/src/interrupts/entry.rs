//! What an interrupt entry says, and the message that asks for it: numbers in, the words of hardware out.

use core::fmt;
use spec::interrupt::{
    MESSAGE_BASE, PostedEntry, RemappableAddress, RemappableData, RemappedEntry, entry_format,
    request_format, source_check, source_qualifier,
};
use spec::{PhysAddr, SourceId};

/// Bytes that a posted-interrupt descriptor has, and is aligned to (VT-d 9.12).
pub const DESCRIPTOR_BYTES: u64 = 64;

/// Who may ask for an entry (VT-d 5.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// One source-id.
    Exactly(SourceId),
    /// A function and those that differ from it in bits of the function number alone: phantom functions. `ignored`: 1 bit
    /// 2, 2 bits 2 and 1, 3 all.
    Functions {
        /// One of them.
        source: SourceId,
        /// How many bits do not count: 1 to 3.
        ignored: u8,
    },
    /// Everybody on these buses: for what is behind a bridge that puts its own ids on requests.
    Buses {
        /// The first bus.
        first: u8,
        /// The last one.
        last: u8,
    },
    /// Everybody. For tests and for hosts that know what they do: any device may raise the interrupt.
    Anybody,
}

impl Asker {
    /// The fields SID, SQ and SVT.
    const fn fields(self) -> (u64, u64, u64) {
        match self {
            Self::Exactly(source) => (source.raw() as u64, source_qualifier::ALL, source_check::SOURCE_ID),
            Self::Functions { source, ignored } => {
                let ignored = if ignored > 3 { 3 } else { ignored };
                (source.raw() as u64, ignored as u64, source_check::SOURCE_ID)
            }
            Self::Buses { first, last } => ((first as u64) << 8 | last as u64, 0, source_check::BUS_RANGE),
            Self::Anybody => (0, 0, source_check::NONE),
        }
    }
}

/// What comes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptEntry {
    /// An interrupt (VT-d 9.10).
    Remapped {
        /// Vector, at least 16.
        vector: u8,
        /// The processor: its x2APIC id where the table is in extended mode, below 256 otherwise; in logical mode a set of
        /// processors.
        destination: u32,
        /// `destination` is logical.
        logical: bool,
        /// Level-triggered: for I/O APICs.
        level: bool,
        /// Delivery mode, see [`spec::interrupt::delivery`].
        delivery: u8,
        /// Who may ask.
        asker: Asker,
    },
    /// A bit in a posted-interrupt descriptor, and a notification (VT-d 9.11).
    Posted {
        /// Vector that is posted.
        vector: u8,
        /// The descriptor: a multiple of 64. Hardware writes there.
        descriptor: PhysAddr,
        /// Notify even when notifications are suppressed.
        urgent: bool,
        /// Who may ask.
        asker: Asker,
    },
}

/// An entry that a table cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryError {
    /// The destination does not fit into 8 bits, and the table is not in extended mode.
    Destination(u32),
    /// The descriptor is not aligned to its size.
    Descriptor(PhysAddr),
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(id) => {
                write!(f, "processor {id:#x} needs an interrupt table in extended mode (EIM)")
            }
            Self::Descriptor(at) => write!(f, "the posted-interrupt descriptor at {at} is not aligned to 64"),
        }
    }
}
impl core::error::Error for EntryError {}

impl InterruptEntry {
    /// A vector for one processor, fixed, edge-triggered: what a MSI of `source` is.
    #[must_use]
    pub const fn msi(source: SourceId, vector: u8, destination: u32) -> Self {
        let asker = Asker::Exactly(source);
        Self::Remapped { vector, destination, logical: false, level: false, delivery: 0, asker }
    }

    /// The two words of the entry, present.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn words(self, extended: bool) -> Result<[u64; 2], EntryError> {
        match self {
            Self::Remapped { vector, destination, logical, level, delivery, asker } => {
                if !extended && destination > 0xff {
                    return Err(EntryError::Destination(destination));
                }
                let (sid, sq, svt) = asker.fields();
                // In xAPIC mode the id is in the second byte of the field.
                let dst = u64::from(destination) << if extended { 0 } else { 8 };
                let entry = RemappedEntry::ZERO.with_present(true).with_im(entry_format::REMAPPED);
                let entry = entry.with_dm(logical).with_rh(logical).with_tm(level);
                let entry = entry.with_dlm(u64::from(delivery)).with_v(u64::from(vector)).with_dst(dst);
                Ok(entry.with_sid(sid).with_sq(sq).with_svt(svt).raw())
            }
            Self::Posted { vector, descriptor, urgent, asker } => {
                if !descriptor.is_aligned(DESCRIPTOR_BYTES) {
                    return Err(EntryError::Descriptor(descriptor));
                }
                let (sid, sq, svt) = asker.fields();
                let (low, high) = (descriptor.get() >> 6 & 0x3ff_ffff, descriptor.get() >> 32);
                let entry = PostedEntry::ZERO.with_present(true).with_im(entry_format::POSTED);
                let entry = entry.with_urg(urgent).with_vv(u64::from(vector));
                let entry = entry.with_pda_low(low).with_pda_high(high);
                Ok(entry.with_sid(sid).with_sq(sq).with_svt(svt).raw())
            }
        }
    }
}

/// An interrupt message in remappable format, as a device's MSI capability or MSI-X table takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Address; the upper half of a 64-bit address is zero.
    pub address: u32,
    /// Data.
    pub data: u32,
}

impl Message {
    /// The message that asks for one entry.
    #[must_use]
    pub const fn to(index: u16) -> Self {
        Self { address: address(index, false).raw(), data: RemappableData::ZERO.raw() }
    }

    /// The message of the `n`-th vector of a block of entries: the data carries a subhandle, which a device with several
    /// MSI vectors changes by itself.
    #[must_use]
    pub const fn in_block(first: u16, n: u16) -> Self {
        let data = RemappableData::ZERO.with_subhandle(n as u32).raw();
        Self { address: address(first, true).raw(), data }
    }
}

const fn address(handle: u16, shv: bool) -> RemappableAddress {
    RemappableAddress::ZERO
        .with_base(MESSAGE_BASE)
        .with_format(request_format::REMAPPABLE)
        .with_shv(shv)
        .with_handle_low((handle & 0x7fff) as u32)
        .with_handle_high(handle >> 15 == 1)
}
