//! What a kernel needs from the machine it runs on: one documented trait, implemented by real hardware (`kernel`) and by
//! the simulated machine (`machine`). The story of an update is written once over it.
//!
//! All methods take `&self`. Nothing here knows of remapping: the driver reaches a unit's registers through
//! [`Platform::mmio_read32`] and its siblings like any other device's.

use crate::event::Event;
use alloc::string::String;
use core::fmt;
use spec::{Extent, PhysAddr, SourceId};

/// One range of the machine's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Usable RAM; otherwise reserved by firmware.
    pub usable: bool,
}

/// No memory where memory was expected.
pub use liveupdate::host::NoMemory;
/// What a kernel can take over, as its image says.
pub use liveupdate::host::{Adoptable, NoSense};

/// The machine under a kernel.
pub trait Platform {
    /// One aligned 64-bit load from RAM.
    ///
    /// # Errors
    /// [`NoMemory`] where there is no RAM. Never faults.
    fn read64(&self, at: PhysAddr) -> Result<u64, NoMemory>;
    /// One aligned 64-bit store to RAM, ordered after all stores before it.
    ///
    /// # Errors
    /// [`NoMemory`] where there is no RAM.
    fn write64(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory>;
    /// Copies RAM from `at` on into `out`. No alignment needed.
    ///
    /// # Errors
    /// [`NoMemory`] when a byte of it is no RAM.
    fn read(&self, at: PhysAddr, out: &mut [u8]) -> Result<(), NoMemory>;
    /// Copies `bytes` to RAM from `at` on. No alignment needed.
    ///
    /// # Errors
    /// [`NoMemory`] when a byte of it is no RAM.
    fn write(&self, at: PhysAddr, bytes: &[u8]) -> Result<(), NoMemory>;
    /// Fills whole frames with a repeated 64-bit pattern, as fast as the machine can.
    ///
    /// # Errors
    /// [`NoMemory`] when a byte of it is no RAM.
    fn fill(&self, run: Extent, pattern: u64) -> Result<(), NoMemory>;
    /// Writes the cache line at `at` back, for walks that do not snoop.
    fn flush_line(&self, at: PhysAddr);

    /// A device register, 8 bits wide.
    fn mmio_read8(&self, at: PhysAddr) -> u8;
    /// A device register, 16 bits wide.
    fn mmio_read16(&self, at: PhysAddr) -> u16;
    /// A device register, 32 bits wide.
    fn mmio_read32(&self, at: PhysAddr) -> u32;
    /// A device register, 64 bits wide.
    fn mmio_read64(&self, at: PhysAddr) -> u64;
    /// Writes a device register, 8 bits wide.
    fn mmio_write8(&self, at: PhysAddr, value: u8);
    /// Writes a device register, 16 bits wide.
    fn mmio_write16(&self, at: PhysAddr, value: u16);
    /// Writes a device register, 32 bits wide.
    fn mmio_write32(&self, at: PhysAddr, value: u32);
    /// Writes a device register, 64 bits wide.
    fn mmio_write64(&self, at: PhysAddr, value: u64);
    /// PCI configuration space of segment 0; `offset` is a multiple of 4 below 4096. All ones where there is no
    /// function, and from 256 on where the platform reaches no further.
    fn config_read32(&self, function: SourceId, offset: u16) -> u32;
    /// Writes PCI configuration space of segment 0.
    fn config_write32(&self, function: SourceId, offset: u16, value: u32);

    /// Monotonic time in nanoseconds, on a clock that goes on across the jump.
    fn now(&self) -> u64;
    /// Lets a little time pass in a polling loop.
    fn relax(&self);

    /// The processor's interrupt controller. `None`, as here: the kernel of this platform only polls, and the units' interrupt
    /// remapping is left alone.
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        None
    }

    /// The memory map that firmware gave, ascending, without overlap.
    fn memory_map(&self) -> &[MemoryRange];
    /// Physical address of the RSDP.
    fn rsdp(&self) -> PhysAddr;
    /// The area that this kernel lives in: image, stacks, page tables, heap.
    fn home(&self) -> Extent;
    /// The area that the successor will boot in, `None` when there is no successor.
    fn successor_home(&self) -> Option<Extent>;
    /// The scratch area that this kernel does not live in: memory where nothing preserved can lie, whatever the handover
    /// says. Free as long as no successor was loaded.
    fn spare(&self) -> Option<Extent> {
        self.successor_home()
    }
    /// Checks the successor and loads it into its area, so that nothing about it can fail after the freeze. Called once,
    /// before anything is preserved. A platform whose successor needs no loading keeps this.
    ///
    /// # Errors
    /// Why the successor is not taken, in words; the kernel goes on without an update.
    fn load_successor(&self) -> Result<(), String> {
        Ok(())
    }
    /// What the image of the successor that was loaded says that it can adopt; [`Adoptable::NOTHING`] where none was. The
    /// update is refused at its freeze when that does not hold what is about to be handed over.
    fn successor_adopts(&self) -> Adoptable;
    /// What this kernel's own image says that it can adopt.
    fn adopts(&self) -> Adoptable;
    /// `count` adjacent zeroed frames of RAM outside both areas, at a multiple of `align` frames (a power of two).
    /// `above` asks for frames at or above that address when there are some.
    fn allocate(&self, count: u64, align: u64, above: PhysAddr) -> Option<Extent>;
    /// Gives frames back.
    fn free(&self, run: Extent);
    /// An incoming kernel: these frames are taken and must not be handed out. Called before the first `allocate`.
    fn reserve(&self, run: Extent);

    /// Release string of this kernel.
    fn release(&self) -> &str;
    /// Value of `key=value` on the command line; a bare `key` has the value "".
    fn option(&self, key: &str) -> Option<&str>;
    /// Reports an event: one line `@{json}` on the serial port.
    fn event(&self, event: &Event);
    /// A line for people.
    fn log(&self, message: fmt::Arguments<'_>);
    /// Leaves a mark in the machine's own trace, where it has one (on QEMU: a write to a harmless register of the unit).
    fn mark(&self, mark: Mark);
}

/// The processor's own interrupt controller, and the kernel's handlers of its vectors.
///
/// Interrupts are masked but for the moments in which [`LocalInterrupts::take_pending`] lets them in: what arrives in between
/// waits, once for each vector, also while one kernel gives way to the next.
pub trait LocalInterrupts {
    /// The processor's id, as the destination of an interrupt: an xAPIC id below 256, or an x2APIC id.
    fn id(&self) -> u32;
    /// The processor as a set in logical mode, where the controller is in x2APIC mode: then interrupt tables must be in
    /// extended mode (VT-d 5.1.5). `None`, as here: it is in xAPIC mode.
    fn logical(&self) -> Option<u32> {
        None
    }
    /// Lets every vector that waits interrupt the processor, then masks interrupts again.
    fn take_pending(&self);
    /// How often this kernel was interrupted with a vector.
    fn delivered(&self, vector: u8) -> u64;
}

/// Moments that are marked in the machine's own trace. The value is what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Mark {
    /// Translation is on and every requester has been seen working.
    Running = 0x1001,
    /// The cut-off begins.
    CutOffBegin = 0x1002,
    /// The cut-off is complete: from here on nothing that was cut off may be translated.
    CutOffDone = 0x1003,
    /// Last instruction of the outgoing kernel.
    Jump = 0x1004,
    /// First instructions of the incoming kernel.
    Arrived = 0x1005,
    /// All units are adopted.
    Adopted = 0x1006,
    /// The update is finished.
    Finished = 0x1007,
    /// The witnesses are judged; from here on devices are stopped and translation may go off.
    Over = 0x1008,
    /// An incoming kernel has judged its update: from here on it sets up anew what was cut off, for the next update.
    Rearm = 0x1009,
}
