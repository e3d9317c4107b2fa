//! Driver of a device of our own that streams through several queues, each with a PASID or without one: what no device of
//! QEMU does. The simulated machine has it (`machine::devices::Streamer`); the registers are defined here, for both sides.
//!
//! A queue has a ring of numbers. At each beat it reads the slot that is due, which must hold what it wrote a lap ago, and
//! writes the next number there. So every lost request shows: in the ring until it is a lap old, in [`Streamer::lost`] from
//! then on. The queue never waits for anybody.

use crate::platform::Platform;
use core::fmt;
use spec::{Iova, PhysAddr};

/// Vendor id: a number that QEMU's own devices have.
pub const VENDOR: u16 = 0x1234;
/// Device id.
pub const DEVICE: u16 = 0x57e4;
/// Queues of a device.
pub const QUEUES: usize = 16;
/// What the identification register reads.
pub const IDENTITY: u64 = 0x0100_57e4_57e4_57e4;
/// Bytes of BAR 0.
pub const REGISTER_BYTES: u64 = 1 << 20;

/// In [`reg::PASID`]: requests carry the PASID in the low 20 bits; otherwise none.
pub const CARRIES_PASID: u64 = 1 << 63;
/// In [`reg::CONTROL`]: the queue runs. Setting it begins with beat 0, one period later.
pub const RUN: u64 = 1;

/// Registers, 64 bits wide: the identification, and those of each queue from `STRIDE * (n + 1)` on.
#[allow(missing_docs)] // each line says it
pub mod reg {
    pub const ID: u64 = 0x00;
    pub const STRIDE: u64 = 0x100;
    /// Address of the ring, a multiple of 8.
    pub const RING: u64 = 0x00;
    /// Numbers in the ring.
    pub const SLOTS: u64 = 0x08;
    /// Nanoseconds between two beats.
    pub const PERIOD: u64 = 0x10;
    pub const PASID: u64 = 0x18;
    pub const CONTROL: u64 = 0x20;
    /// Beats since the queue was started.
    pub const SENT: u64 = 0x28;
    /// Beats of these that found something else than was written a lap ago, or nothing.
    pub const LOST: u64 = 0x30;
}

/// What queue `queue` writes at a beat: never zero, and another number than any other queue's.
#[must_use]
pub const fn value(queue: usize, beat: u64) -> u64 {
    (queue as u64 + 1) << 56 | beat & ((1 << 56) - 1)
}

/// How a queue is to stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The ring.
    pub ring: Iova,
    /// Numbers in it.
    pub slots: u64,
    /// Nanoseconds between two beats.
    pub period: u64,
    /// What its requests carry.
    pub pasid: Option<u32>,
}

/// Something else answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStreamer {
    /// Where its registers should be.
    pub base: PhysAddr,
    /// The identification found.
    pub id: u64,
}

impl fmt::Display for NotStreamer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no streaming device at {}: it identifies itself as {:#018x}", self.base, self.id)
    }
}

impl core::error::Error for NotStreamer {}

/// One device.
#[derive(Debug)]
pub struct Streamer<'p, P: ?Sized> {
    platform: &'p P,
    base: PhysAddr,
}

impl<'p, P: Platform + ?Sized> Streamer<'p, P> {
    /// The device whose registers are at `base` (its BAR 0). Disturbs nothing.
    ///
    /// # Errors
    /// [`NotStreamer`].
    pub fn open(platform: &'p P, base: PhysAddr) -> Result<Self, NotStreamer> {
        match platform.mmio_read64(base.plus(reg::ID)) {
            IDENTITY => Ok(Self { platform, base }),
            id => Err(NotStreamer { base, id }),
        }
    }

    /// Stops a queue and starts it anew, at beat 0.
    pub fn start(&self, queue: usize, setup: Setup) {
        self.stop(queue);
        self.write(queue, reg::RING, setup.ring.get());
        self.write(queue, reg::SLOTS, setup.slots);
        self.write(queue, reg::PERIOD, setup.period);
        self.write(queue, reg::PASID, setup.pasid.map_or(0, |pasid| CARRIES_PASID | u64::from(pasid)));
        self.write(queue, reg::CONTROL, RUN);
    }

    /// Stops a queue. What it wrote has landed then.
    pub fn stop(&self, queue: usize) {
        self.write(queue, reg::CONTROL, 0);
        let _ = self.read(queue, reg::CONTROL);
    }

    /// Beats since a queue was started. The writes of all of them have landed, but for those that were refused.
    #[must_use]
    pub fn sent(&self, queue: usize) -> u64 {
        self.read(queue, reg::SENT)
    }

    /// Beats of a queue that found something else than was written a lap ago, or nothing.
    #[must_use]
    pub fn lost(&self, queue: usize) -> u64 {
        self.read(queue, reg::LOST)
    }

    fn at(&self, queue: usize, register: u64) -> PhysAddr {
        self.base.plus(reg::STRIDE * (queue as u64 + 1) + register)
    }

    fn read(&self, queue: usize, register: u64) -> u64 {
        self.platform.mmio_read64(self.at(queue, register))
    }

    fn write(&self, queue: usize, register: u64, value: u64) {
        self.platform.mmio_write64(self.at(queue, register), value);
    }
}
