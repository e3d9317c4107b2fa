//! A small machine for this crate's own tests: RAM, a clock that every look at it moves, PCI configuration space and
//! whatever device models a test puts in. It is strict where real hardware forgives, so that a missing step shows: a
//! register that is unknown or accessed in the wrong width is a failed test. There is no translation: I/O addresses are
//! physical ones.

mod edu;
mod hda;
mod pci;

pub(crate) use edu::FakeEdu;
pub(crate) use hda::FakeHda;
pub(crate) use pci::FakeFunction;

use crate::event::Event;
use crate::platform::{Adoptable, Mark, MemoryRange, NoMemory, Platform};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use spec::{Extent, Frame, PhysAddr, SourceId};

/// RAM of the machine as devices see it.
pub(crate) struct Ram(RefCell<Vec<u8>>);

impl Ram {
    pub(crate) fn read(&self, at: u64, out: &mut [u8]) -> Result<(), NoMemory> {
        let ram = self.0.borrow();
        let end = at.checked_add(out.len() as u64).filter(|&end| end <= ram.len() as u64);
        let end = end.ok_or(NoMemory { at: PhysAddr::new(at) })?;
        out.copy_from_slice(&ram[at as usize..end as usize]);
        Ok(())
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), NoMemory> {
        let mut ram = self.0.borrow_mut();
        let end = at.checked_add(bytes.len() as u64).filter(|&end| end <= ram.len() as u64);
        let end = end.ok_or(NoMemory { at: PhysAddr::new(at) })?;
        ram[at as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }
}

/// A device model. `offset` counts from its base, `width` is in bytes, `now` in nanoseconds.
pub(crate) trait Device {
    fn read(&mut self, ram: &Ram, now: u64, offset: u64, width: u32) -> u64;
    fn write(&mut self, ram: &Ram, now: u64, offset: u64, width: u32, value: u64);
}

struct Slot {
    base: u64,
    bytes: u64,
    device: Box<dyn Device>,
}

/// The machine.
pub(crate) struct Machine {
    pub(crate) ram: Ram,
    clock: Cell<u64>,
    /// How far each look at the clock moves it. Zero: a clock that stands still.
    pub(crate) tick: Cell<u64>,
    devices: RefCell<Vec<Slot>>,
    functions: RefCell<BTreeMap<SourceId, FakeFunction>>,
    /// What [`Platform::rsdp`] says.
    pub(crate) rsdp: Cell<u64>,
}

impl Machine {
    /// A machine with this much RAM from 0 on.
    pub(crate) fn new(ram_bytes: usize) -> Self {
        Self {
            ram: Ram(RefCell::new(vec![0; ram_bytes])),
            clock: Cell::new(1_000_000),
            tick: Cell::new(500),
            devices: RefCell::default(),
            functions: RefCell::default(),
            rsdp: Cell::new(0),
        }
    }

    pub(crate) fn with_device(self, base: u64, bytes: u64, device: impl Device + 'static) -> Self {
        self.devices.borrow_mut().push(Slot { base, bytes, device: Box::new(device) });
        self
    }

    pub(crate) fn with_function(self, source: SourceId, function: FakeFunction) -> Self {
        self.functions.borrow_mut().insert(source, function);
        self
    }

    /// Lets time pass.
    pub(crate) fn sleep(&self, ns: u64) {
        self.clock.set(self.clock.get() + ns);
    }

    /// A function, as the test left it and the driver changed it.
    pub(crate) fn function<R>(&self, source: SourceId, look: impl FnOnce(&mut FakeFunction) -> R) -> R {
        look(self.functions.borrow_mut().get_mut(&source).expect("no such function"))
    }

    fn access<R>(&self, at: PhysAddr, width: u32, act: impl FnOnce(&mut dyn Device, u64) -> R) -> R {
        assert!(at.is_aligned(width.into()), "unaligned access to {at}");
        let mut devices = self.devices.borrow_mut();
        let slot = devices.iter_mut().find(|slot| (slot.base..slot.base + slot.bytes).contains(&at.get()));
        let slot = slot.unwrap_or_else(|| panic!("no device at {at}"));
        act(slot.device.as_mut(), at.get() - slot.base)
    }

    fn load(&self, at: PhysAddr, width: u32) -> u64 {
        self.access(at, width, |device, offset| device.read(&self.ram, self.clock.get(), offset, width))
    }

    fn store(&self, at: PhysAddr, width: u32, value: u64) {
        self.access(at, width, |device, offset| {
            device.write(&self.ram, self.clock.get(), offset, width, value)
        });
    }
}

impl Platform for Machine {
    fn read64(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    fn write64(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        self.write(at, &value.to_le_bytes())
    }
    fn read(&self, at: PhysAddr, out: &mut [u8]) -> Result<(), NoMemory> {
        self.ram.read(at.get(), out)
    }
    fn write(&self, at: PhysAddr, bytes: &[u8]) -> Result<(), NoMemory> {
        self.ram.write(at.get(), bytes)
    }
    fn fill(&self, run: Extent, pattern: u64) -> Result<(), NoMemory> {
        (0..run.bytes() / 8).try_for_each(|word| self.write64(run.start().plus(8 * word), pattern))
    }
    fn flush_line(&self, _: PhysAddr) {}

    fn mmio_read8(&self, at: PhysAddr) -> u8 {
        self.load(at, 1) as u8
    }
    fn mmio_read16(&self, at: PhysAddr) -> u16 {
        self.load(at, 2) as u16
    }
    fn mmio_read32(&self, at: PhysAddr) -> u32 {
        self.load(at, 4) as u32
    }
    fn mmio_read64(&self, at: PhysAddr) -> u64 {
        self.load(at, 8)
    }
    fn mmio_write8(&self, at: PhysAddr, value: u8) {
        self.store(at, 1, value.into());
    }
    fn mmio_write16(&self, at: PhysAddr, value: u16) {
        self.store(at, 2, value.into());
    }
    fn mmio_write32(&self, at: PhysAddr, value: u32) {
        self.store(at, 4, value.into());
    }
    fn mmio_write64(&self, at: PhysAddr, value: u64) {
        self.store(at, 8, value);
    }
    fn config_read32(&self, function: SourceId, offset: u16) -> u32 {
        assert!(offset % 4 == 0 && offset < 256, "configuration offset {offset:#x}");
        self.functions.borrow().get(&function).map_or(u32::MAX, |function| function.read(offset))
    }
    fn config_write32(&self, function: SourceId, offset: u16, value: u32) {
        assert!(offset % 4 == 0 && offset < 256, "configuration offset {offset:#x}");
        if let Some(function) = self.functions.borrow_mut().get_mut(&function) {
            function.write(offset, value);
        }
    }

    fn now(&self) -> u64 {
        self.sleep(self.tick.get());
        self.clock.get()
    }
    fn relax(&self) {}

    fn memory_map(&self) -> &[MemoryRange] {
        &[]
    }
    fn rsdp(&self) -> PhysAddr {
        PhysAddr::new(self.rsdp.get())
    }
    fn home(&self) -> Extent {
        Extent::one(Frame::new(0))
    }
    fn successor_home(&self) -> Option<Extent> {
        None
    }
    fn successor_adopts(&self) -> Adoptable {
        Adoptable::NOTHING
    }
    fn adopts(&self) -> Adoptable {
        Adoptable::EVERYTHING
    }
    fn allocate(&self, _: u64, _: u64, _: PhysAddr) -> Option<Extent> {
        None
    }
    fn free(&self, _: Extent) {}
    fn reserve(&self, _: Extent) {}
    fn release(&self) -> &str {
        "test"
    }
    fn option(&self, _: &str) -> Option<&str> {
        None
    }
    fn event(&self, _: &Event) {}
    fn log(&self, _: fmt::Arguments<'_>) {}
    fn mark(&self, _: Mark) {}
}
