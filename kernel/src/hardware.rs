//! Real hardware as the scenario's platform.
#![allow(unsafe_code)]

use crate::boot::Kernel;
use crate::bootparam::BootParameters;
use crate::hw::local_apic::LocalApic;
use crate::hw::serial::{self, Serial};
use crate::hw::{cpu, hpet::Hpet, physical, port};
use crate::paging::{PageTables, PagingError, Rights, TableWords};
use crate::successor::Successor;
use crate::{cmdline, frames::FrameAllocator, memory};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt::{self, Write};
use scenario::event::Event;
use scenario::platform::{Adoptable, LocalInterrupts, Mark, MemoryRange, NoMemory, Platform};
use spec::{Extent, PAGE_SIZE, PhysAddr, SourceId};

/// Everything below is mapped at boot, as RAM or as device registers.
const LOW_MEMORY_END: u64 = 4 << 30;
const LARGE: u64 = 2 << 20;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Fault event data register of q35's remapping unit (VT-d 11.4.7.2). The kernel never unmasks fault events, so the value
/// means nothing to hardware; QEMU's trace shows every write.
const MARK_REGISTER: u64 = 0xfed9_0000 + spec::regs::offset::FEDATA;

/// The words of the kernel's own page tables.
#[derive(Debug)]
pub struct OwnTables;

impl TableWords for OwnTables {
    fn load(&self, at: u64) -> u64 {
        // SAFETY: `PageTables` passes addresses in its arena only: part of the kernel's scratch area, used for nothing
        // else, mapped for writing by the entry code's tables and by every table built since.
        unsafe { physical::load64(at) }
    }
    fn store(&mut self, at: u64, value: u64) {
        // SAFETY: as above.
        unsafe { physical::store64(at, value) }
    }
}

/// The machine that the kernel runs on.
#[derive(Debug)]
pub struct Hardware {
    kernel: &'static Kernel,
    boot: BootParameters,
    map: Vec<MemoryRange>,
    clock: Hpet,
    frames: RefCell<FrameAllocator>,
    tables: RefCell<PageTables<OwnTables>>,
    /// Whether the bundle holds an image that comes next.
    follows: bool,
    successor: RefCell<Option<Successor>>,
}

impl Hardware {
    pub(crate) fn new(
        kernel: &'static Kernel,
        boot: BootParameters,
        map: Vec<MemoryRange>,
        clock: Hpet,
        frames: FrameAllocator,
        tables: PageTables<OwnTables>,
        follows: bool,
    ) -> Self {
        let (frames, tables) = (RefCell::new(frames), RefCell::new(tables));
        Self { kernel, boot, map, clock, frames, tables, follows, successor: RefCell::new(None) }
    }

    /// What the kernel was told at its start.
    #[must_use]
    pub fn boot(&self) -> &BootParameters {
        &self.boot
    }
    /// The running kernel.
    #[must_use]
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Leaves for the successor with the handover whose FDT is at `fdt` (0: none). Returns only when none was loaded.
    pub fn jump(&self, fdt: u64) {
        if let Some(successor) = self.successor.borrow_mut().take() {
            successor.jump(self, fdt);
        }
    }

    /// Changes the rights of pages of the kernel's own map.
    ///
    /// # Errors
    /// [`PagingError`].
    pub(crate) fn set_rights(&self, start: u64, end: u64, rights: Rights) -> Result<(), PagingError> {
        let mut tables = self.tables.borrow_mut();
        tables.set(start, end, rights)?;
        // SAFETY: the same tables as before, with other rights for pages that the caller answers for.
        unsafe { cpu::load_page_tables(tables.root()) };
        Ok(())
    }

    /// RAM that may be read: usable ranges, and what firmware keeps for itself below 4 GiB.
    fn readable(&self, at: PhysAddr, bytes: u64) -> Result<(), NoMemory> {
        let low = at.get().saturating_add(bytes) <= LOW_MEMORY_END;
        if memory::holds(&self.map, at.get(), bytes, !low) { Ok(()) } else { Err(NoMemory { at }) }
    }

    /// RAM that may be written: usable, and not the running kernel's own home.
    fn writable(&self, at: PhysAddr, bytes: u64) -> Result<(), NoMemory> {
        let home = self.kernel.home;
        let apart = at.get() >= home.end || at.get().saturating_add(bytes) <= home.start;
        if apart && memory::holds(&self.map, at.get(), bytes, true) { Ok(()) } else { Err(NoMemory { at }) }
    }

    /// Makes sure that a register is mapped: a device above 4 GiB is mapped when it is first used.
    fn device(&self, at: PhysAddr) -> u64 {
        let address = at.get();
        if address >= LOW_MEMORY_END && self.tables.borrow().lookup(address) == 0 {
            let page = address & !(LARGE - 1);
            let mapped = self.set_rights(page, page + LARGE, Rights::Device);
            assert!(mapped.is_ok(), "device registers at {address:#x}: {mapped:?}");
        }
        address
    }

    fn config_select(function: SourceId, offset: u16) {
        let address = 1 << 31 | u32::from(function.raw()) << 8 | u32::from(offset & 0xfc);
        port::write32(CONFIG_ADDRESS, address);
    }
}

impl Platform for Hardware {
    fn read64(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        if !at.is_aligned(8) {
            return Err(NoMemory { at });
        }
        self.readable(at, 8)?;
        // SAFETY: aligned, RAM, mapped; volatile, because devices write there too.
        Ok(unsafe { physical::load64(at.get()) })
    }

    fn write64(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        if !at.is_aligned(8) {
            return Err(NoMemory { at });
        }
        self.writable(at, 8)?;
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        // SAFETY: aligned, RAM, mapped, outside everything that the Rust program lives in.
        unsafe { physical::store64(at.get(), value) };
        Ok(())
    }

    fn read(&self, at: PhysAddr, out: &mut [u8]) -> Result<(), NoMemory> {
        self.readable(at, out.len() as u64)?;
        // SAFETY: RAM, mapped.
        unsafe { physical::copy_out(at.get(), out) };
        Ok(())
    }

    fn write(&self, at: PhysAddr, bytes: &[u8]) -> Result<(), NoMemory> {
        self.writable(at, bytes.len() as u64)?;
        // SAFETY: RAM, mapped, outside everything that the Rust program lives in.
        unsafe { physical::copy_in(at.get(), bytes) };
        Ok(())
    }

    fn fill(&self, run: Extent, pattern: u64) -> Result<(), NoMemory> {
        self.writable(run.start(), run.bytes())?;
        // SAFETY: as for `write`; frames are multiples of 4096.
        unsafe { physical::fill(run.start().get(), run.bytes(), pattern) };
        Ok(())
    }

    fn flush_line(&self, at: PhysAddr) {
        if self.readable(at, 1).is_ok() {
            // SAFETY: RAM, mapped.
            unsafe { physical::flush_line(at.get()) };
        }
    }

    fn mmio_read8(&self, at: PhysAddr) -> u8 {
        // SAFETY: mapped as a device, or RAM that is not ours alone; devices' registers are naturally aligned.
        unsafe { physical::load8(self.device(at)) }
    }
    fn mmio_read16(&self, at: PhysAddr) -> u16 {
        // SAFETY: as for `mmio_read8`.
        unsafe { physical::load16(self.device(at)) }
    }
    fn mmio_read32(&self, at: PhysAddr) -> u32 {
        // SAFETY: as for `mmio_read8`.
        unsafe { physical::load32(self.device(at)) }
    }
    fn mmio_read64(&self, at: PhysAddr) -> u64 {
        // SAFETY: as for `mmio_read8`.
        unsafe { physical::load64(self.device(at)) }
    }
    fn mmio_write8(&self, at: PhysAddr, value: u8) {
        // SAFETY: as for `mmio_read8`; a driver writes to its own device.
        unsafe { physical::store8(self.device(at), value) }
    }
    fn mmio_write16(&self, at: PhysAddr, value: u16) {
        // SAFETY: as for `mmio_write8`.
        unsafe { physical::store16(self.device(at), value) }
    }
    fn mmio_write32(&self, at: PhysAddr, value: u32) {
        // SAFETY: as for `mmio_write8`.
        unsafe { physical::store32(self.device(at), value) }
    }
    fn mmio_write64(&self, at: PhysAddr, value: u64) {
        // SAFETY: as for `mmio_write8`.
        unsafe { physical::store64(self.device(at), value) }
    }

    fn config_read32(&self, function: SourceId, offset: u16) -> u32 {
        // The ports reach no further.
        if offset >= 256 {
            return u32::MAX;
        }
        Self::config_select(function, offset);
        port::read32(CONFIG_DATA)
    }
    fn config_write32(&self, function: SourceId, offset: u16, value: u32) {
        if offset >= 256 {
            return;
        }
        Self::config_select(function, offset);
        port::write32(CONFIG_DATA, value);
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }
    fn relax(&self) {
        cpu::relax();
    }

    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        Some(&LocalApic)
    }

    fn memory_map(&self) -> &[MemoryRange] {
        &self.map
    }
    fn rsdp(&self) -> PhysAddr {
        PhysAddr::new(self.boot.rsdp)
    }
    fn home(&self) -> Extent {
        self.kernel.home.extent()
    }
    fn successor_home(&self) -> Option<Extent> {
        self.follows.then(|| self.kernel.home.other().extent())
    }
    fn spare(&self) -> Option<Extent> {
        Some(self.kernel.home.other().extent())
    }
    fn load_successor(&self) -> Result<(), String> {
        let loaded = Successor::load(self).map_err(|error| error.to_string())?;
        if let Some(successor) = &loaded {
            self.log(format_args!("release {} is loaded", successor.release()));
        }
        self.successor.replace(loaded);
        Ok(())
    }
    fn successor_adopts(&self) -> Adoptable {
        self.successor.borrow().as_ref().map_or(Adoptable::NOTHING, Successor::adopts)
    }
    fn adopts(&self) -> Adoptable {
        self.kernel.adopts
    }
    fn allocate(&self, count: u64, align: u64, above: PhysAddr) -> Option<Extent> {
        let run = self.frames.borrow_mut().allocate(count, align, above)?;
        let zeroed = self.fill(run, 0);
        assert!(zeroed.is_ok(), "free frames {run} are no memory");
        Some(run)
    }
    fn free(&self, run: Extent) {
        self.frames.borrow_mut().free(run);
    }
    fn reserve(&self, run: Extent) {
        self.frames.borrow_mut().reserve(run);
    }

    fn release(&self) -> &str {
        self.kernel.release
    }
    fn option(&self, key: &str) -> Option<&str> {
        cmdline::option(&self.boot.command_line, key)
    }
    fn event(&self, event: &Event) {
        serial::event(event);
    }
    fn log(&self, message: fmt::Arguments<'_>) {
        let now = self.now() / 1000;
        let _ = writeln!(
            Serial,
            "[{:5}.{:06}] {}: {message}",
            now / 1_000_000,
            now % 1_000_000,
            self.kernel.release
        );
    }
    fn mark(&self, mark: Mark) {
        self.mmio_write32(PhysAddr::new(MARK_REGISTER), mark as u32);
    }
}

impl crate::layout::Area {
    /// The area as a run of frames.
    #[must_use]
    pub fn extent(self) -> Extent {
        match Extent::from_bytes(PhysAddr::new(self.start), self.bytes()) {
            Some(extent) => extent,
            None => unreachable!("areas are whole mebibytes: {PAGE_SIZE}"),
        }
    }
}
