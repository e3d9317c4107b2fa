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
    pub(super) const RAISE: u64 = 0x60;
    pub(super) const ACKNOWLEDGE: u64 = 0x64;
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

    /// Has the device raise its interrupt. Each call sends one message.
    pub fn raise(&self) {
        self.platform.mmio_write32(self.base.plus(reg::RAISE), 1);
    }

    /// Tells the device that its interrupt was seen.
    pub fn acknowledge(&self) {
        self.platform.mmio_write32(self.base.plus(reg::ACKNOWLEDGE), u32::MAX);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeEdu, Machine};

    const BASE: PhysAddr = PhysAddr::new(0xfea0_0000);

    fn machine() -> Machine {
        Machine::new(0x1_0000).with_device(BASE.get(), 1 << 20, FakeEdu::new())
    }

    fn transfer(direction: Direction, memory: u64, offset: u64, count: u64) -> Transfer {
        Transfer { direction, memory: Iova::new(memory), offset, count }
    }

    #[test]
    fn bytes_go_into_the_device_and_come_back_elsewhere() {
        let machine = machine();
        let edu = Edu::open(&machine, BASE).unwrap();
        machine.write(PhysAddr::new(0x1000), b"something to remember").unwrap();
        edu.start(transfer(Direction::ToDevice, 0x1000, 64, 21)).unwrap();
        edu.wait(2 * TRANSFER_NS).unwrap();
        edu.start(transfer(Direction::ToMemory, 0x2001, 64, 21)).unwrap();
        edu.wait(2 * TRANSFER_NS).unwrap();
        let mut back = [0; 23];
        machine.read(PhysAddr::new(0x2000), &mut back).unwrap();
        assert_eq!(&back, b"\0something to remember\0");
    }

    #[test]
    fn a_transfer_is_in_flight_until_its_time_and_shows_itself_to_who_opens_the_device_meanwhile() {
        let machine = machine();
        let started = transfer(Direction::ToMemory, 0x3000, 8, 4087);
        Edu::open(&machine, BASE).unwrap().start(started).unwrap();
        machine.sleep(TRANSFER_NS / 2);
        let edu = Edu::open(&machine, BASE).unwrap();
        assert!(edu.busy());
        assert_eq!(edu.last_transfer(), started);
        assert_eq!(edu.start(started), Err(EduError::Busy));
        assert_eq!(edu.wait(TRANSFER_NS / 10), Err(EduError::TooSlow { limit_ns: TRANSFER_NS / 10 }));
        edu.wait(TRANSFER_NS).unwrap();
        assert_eq!(edu.last_transfer(), started);
    }

    #[test]
    fn transfers_that_would_bring_qemu_down_or_go_astray_are_refused() {
        let machine = machine();
        let edu = Edu::open(&machine, BASE).unwrap();
        for (offset, count) in [(0, 0), (0, 4096), (8, 4088), (4096, 1), (u64::MAX, 2)] {
            let refused = edu.start(transfer(Direction::ToDevice, 0, offset, count));
            assert_eq!(refused, Err(EduError::OutsideBuffer { offset, count }));
        }
        for memory in [ADDRESS_LIMIT - 7, ADDRESS_LIMIT, u64::MAX - 3] {
            let refused = edu.start(transfer(Direction::ToMemory, memory, 0, 8));
            assert_eq!(refused, Err(EduError::AddressTooHigh { memory: Iova::new(memory) }));
        }
        assert!(!edu.busy());
        edu.start(transfer(Direction::ToMemory, ADDRESS_LIMIT - 8, 0, 8)).unwrap();
    }

    #[test]
    fn a_wait_ends_also_when_the_clock_stands_still() {
        let machine = machine();
        let edu = Edu::open(&machine, BASE).unwrap();
        edu.start(transfer(Direction::ToMemory, 0x3000, 0, 8)).unwrap();
        machine.tick.set(0);
        assert_eq!(edu.wait(1_000_000), Err(EduError::TooSlow { limit_ns: 1_000_000 }));
    }

    #[test]
    fn another_device_is_not_taken_for_an_edu() {
        for id in [0x0100_00ee, u64::from(u32::MAX)] {
            let machine = Machine::new(0).with_device(BASE.get(), 1 << 20, FakeEdu::with_id(id));
            let refused = Edu::open(&machine, BASE).map(drop);
            assert_eq!(refused, Err(EduError::NotEdu { base: BASE, id: id as u32 }));
        }
    }
}
