//! Driver of QEMU's `edu` device (1234:11e8): one transfer at a time between memory and a small buffer in the device,
//! each taking about 100 ms. Long enough to be in flight across a jump.
//!
//! [`Edu::open`] looks at the identification register only, so it serves a device that another kernel started as well.

use crate::platform::Platform;
use crate::poll;
use core::fmt;
use spec::{Iova, PhysAddr};

/// Vendor id.
pub const VENDOR: u16 = 0x1234;
/// Device id.
pub const DEVICE: u16 = 0x11e8;
/// Transfers must count less than this: QEMU 7.2 aborts when one touches the end of the device's buffer.
pub const BUFFER_BYTES: u64 = 4096;
/// The device drives 28 address bits unless it was told otherwise, and silently masks the rest off.
pub const ADDRESS_LIMIT: u64 = 1 << 28;
/// About how long a transfer takes, in nanoseconds.
pub const TRANSFER_NS: u64 = 100_000_000;

/// Register offsets in BAR 0.
mod reg {
    pub(super) const ID: u64 = 0x00;
    pub(super) const SOURCE: u64 = 0x80;
    pub(super) const DESTINATION: u64 = 0x88;
    pub(super) const COUNT: u64 = 0x90;
    pub(super) const COMMAND: u64 = 0x98;
}

/// Where the device sees its own buffer.
const BUFFER: u64 = 0x4_0000;
const COMMAND_START: u64 = 1 << 0;
const COMMAND_TO_MEMORY: u64 = 1 << 1;
/// Low byte of the identification register.
const ID_LOW: u32 = 0xed;

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From memory into the device's buffer.
    ToDevice,
    /// From the device's buffer to memory.
    ToMemory,
}

/// One transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// Address in the device's I/O address space; all of the transfer below [`ADDRESS_LIMIT`].
    pub memory: Iova,
    /// Offset in the device's buffer.
    pub offset: u64,
    /// Bytes; `offset + count` below [`BUFFER_BYTES`].
    pub count: u64,
}

/// Why the device could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EduError {
    /// Something else answers.
    NotEdu {
        /// Where its registers should be.
        base: PhysAddr,
        /// The identification found.
        id: u32,
    },
    /// The transfer does not lie within the device's buffer, or is empty.
    OutsideBuffer {
        /// Its offset.
        offset: u64,
        /// Its length.
        count: u64,
    },
    /// The transfer does not lie within what the device can address.
    AddressTooHigh {
        /// Its address.
        memory: Iova,
    },
    /// A transfer is under way.
    Busy,
    /// A transfer did not end in time.
    TooSlow {
        /// How long it was waited for, in nanoseconds.
        limit_ns: u64,
    },
}

impl fmt::Display for EduError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotEdu { base, id } => {
                write!(f, "no edu device at {base}: it identifies itself as {id:#010x}")
            }
            Self::OutsideBuffer { offset, count } => {
                write!(
                    f,
                    "a transfer of {count} bytes at {offset} does not fit edu's buffer of {BUFFER_BYTES} bytes"
                )
            }
            Self::AddressTooHigh { memory } => {
                write!(f, "edu cannot address {memory}: map its memory below {ADDRESS_LIMIT:#x}")
            }
            Self::Busy => write!(f, "edu has a transfer under way: wait for it first"),
            Self::TooSlow { limit_ns } => write!(f, "edu's transfer did not end within {limit_ns} ns"),
        }
    }
}

impl core::error::Error for EduError {}

/// One edu device.
#[derive(Debug)]
pub struct Edu<'p, P: ?Sized> {
    platform: &'p P,
    base: PhysAddr,
}

impl<'p, P: Platform + ?Sized> Edu<'p, P> {
    /// The device whose registers are at `base` (its BAR 0). Does not disturb a transfer.
    ///
    /// # Errors
    /// [`EduError::NotEdu`].
    pub fn open(platform: &'p P, base: PhysAddr) -> Result<Self, EduError> {
        let id = platform.mmio_read32(base.plus(reg::ID));
        if id & 0xff != ID_LOW || id == u32::MAX {
            return Err(EduError::NotEdu { base, id });
        }
        Ok(Self { platform, base })
    }

    /// Starts a transfer and returns at once.
    ///
    /// # Errors
    /// [`EduError`] when the transfer is not possible; nothing was started then.
    pub fn start(&self, transfer: Transfer) -> Result<(), EduError> {
        let Transfer { direction, memory, offset, count } = transfer;
        if count == 0 || offset.checked_add(count).is_none_or(|end| end >= BUFFER_BYTES) {
            return Err(EduError::OutsideBuffer { offset, count });
        }
        if memory.get().checked_add(count).is_none_or(|end| end > ADDRESS_LIMIT) {
            return Err(EduError::AddressTooHigh { memory });
        }
        if self.busy() {
            return Err(EduError::Busy);
        }
        let inside = BUFFER + offset;
        let (source, destination, command) = match direction {
            Direction::ToDevice => (memory.get(), inside, COMMAND_START),
            Direction::ToMemory => (inside, memory.get(), COMMAND_START | COMMAND_TO_MEMORY),
        };
        self.write(reg::SOURCE, source);
        self.write(reg::DESTINATION, destination);
        self.write(reg::COUNT, count);
        self.write(reg::COMMAND, command);
        Ok(())
    }

    /// Whether a transfer is under way.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.platform.mmio_read64(self.base.plus(reg::COMMAND)) & COMMAND_START != 0
    }

    /// Waits until no transfer is under way. The device does not say whether the last one went through.
    ///
    /// # Errors
    /// [`EduError::TooSlow`] after `limit_ns` nanoseconds.
    pub fn wait(&self, limit_ns: u64) -> Result<(), EduError> {
        poll::until(self.platform, limit_ns, || !self.busy()).map_err(|_| EduError::TooSlow { limit_ns })
    }

    /// The transfer that was started last, read back from the device: what an incoming kernel finds.
    #[must_use]
    pub fn last_transfer(&self) -> Transfer {
        let read = |offset| self.platform.mmio_read64(self.base.plus(offset));
        let (source, destination, count) = (read(reg::SOURCE), read(reg::DESTINATION), read(reg::COUNT));
        let (direction, memory, inside) = if read(reg::COMMAND) & COMMAND_TO_MEMORY != 0 {
            (Direction::ToMemory, destination, source)
        } else {
            (Direction::ToDevice, source, destination)
        };
        Transfer { direction, memory: Iova::new(memory), offset: inside.wrapping_sub(BUFFER), count }
    }

    fn write(&self, offset: u64, value: u64) {
        self.platform.mmio_write64(self.base.plus(offset), value);
    }
}
