//! A kernel on the machine: [`Platform`] as the story of an update needs it, and what each step of it costs in time.

use crate::acpi;
use crate::frames::Frames;
use crate::machine::{Machine, Serial};
use crate::memory::PAGE;
use scenario::event::Event;
use scenario::platform::{Adoptable, LocalInterrupts, Mark, MemoryRange, NoMemory, Platform};
use spec::{Extent, PhysAddr, SourceId};
use std::cell::{Cell, RefCell};
use std::fmt;

/// Big fills proceed in pieces of this size, so that engines run in between.
const PIECE: u64 = 2 << 20;

/// What a kernel is told when it starts.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Its release string.
    pub release: String,
    /// What its image says that it can adopt; `None` when it says nothing.
    pub adopts: Option<[u32; 2]>,
    /// Where it lives.
    pub home: Extent,
    /// Where its successor will boot.
    pub successor_home: Option<Extent>,
    /// What its successor's image says, likewise.
    pub successor_adopts: Option<[u32; 2]>,
    /// Every area that kernels live in, now or later: nothing is allocated there.
    pub areas: Vec<Extent>,
    /// `key=value` on its command line.
    pub options: Vec<(String, String)>,
}

/// One kernel running on a machine. Dropping it leaves memory and devices as they are: that is the jump.
pub struct Kernel<'m> {
    machine: &'m Machine,
    boot: Boot,
    frames: RefCell<Frames>,
    allocated: Cell<bool>,
    /// How often this kernel was interrupted, by vector.
    delivered: RefCell<[u64; 256]>,
}

impl<'m> Kernel<'m> {
    /// A kernel that starts with all usable memory free but the first MiB and the areas that kernels live in.
    #[must_use]
    pub fn new(machine: &'m Machine, boot: Boot) -> Self {
        let mut frames = Frames::default();
        for range in machine.memory_map().iter().filter(|range| range.usable && range.start >= 1 << 20) {
            let start = range.start.next_multiple_of(PAGE);
            let end = (range.start + range.bytes) / PAGE * PAGE;
            if let Some(run) = Extent::from_bytes(PhysAddr::new(start), end.saturating_sub(start)) {
                frames.give(run);
            }
        }
        for area in boot.areas.iter().copied().chain([boot.home]).chain(boot.successor_home) {
            frames.take(area);
        }
        Self {
            machine,
            boot,
            frames: RefCell::new(frames),
            allocated: Cell::new(false),
            delivered: RefCell::new([0; 256]),
        }
    }

    fn mmio_read(&self, at: PhysAddr, bytes: u64) -> u64 {
        self.machine.with(|state| {
            state.step(150, 900);
            state.mmio_read(at.get(), bytes)
        })
    }

    fn mmio_write(&self, at: PhysAddr, bytes: u64, value: u64) {
        self.machine.with(|state| {
            state.step(80, 500);
            state.mmio_write(at.get(), bytes, value);
        });
    }
}

/// What an image's words say; nothing when they make no sense.
fn able(words: Option<[u32; 2]>) -> Adoptable {
    words.and_then(|words| Adoptable::from_words(words).ok()).unwrap_or(Adoptable::NOTHING)
}

fn hole(hole: crate::memory::Hole) -> NoMemory {
    NoMemory { at: PhysAddr::new(hole.0) }
}

impl LocalInterrupts for Kernel<'_> {
    fn id(&self) -> u32 {
        self.machine.with(|state| state.fabric.apic.id())
    }

    fn logical(&self) -> Option<u32> {
        self.machine.with(|state| state.fabric.apic.logical())
    }

    fn take_pending(&self) {
        self.machine.with(|state| state.step(20, 200));
        while let Some(vector) = self.machine.with(|state| state.fabric.apic.take()) {
            self.delivered.borrow_mut()[usize::from(vector)] += 1;
            self.machine.with(|state| state.step(200, 2_000));
        }
    }

    fn delivered(&self, vector: u8) -> u64 {
        self.delivered.borrow()[usize::from(vector)]
    }
}

impl Platform for Kernel<'_> {
    fn read64(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.machine.with(|state| {
            state.step(1, 30);
            state.fabric.memory.load(at.get()).map_err(hole)
        })
    }

    fn write64(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        self.machine.with(|state| {
            state.step(1, 30);
            let fabric = &mut state.fabric;
            if fabric.injector.store_is_lost() {
                return fabric.memory.check(at.get() & !7, 8).map_err(hole);
            }
            fabric.memory.store(at.get(), value, fabric.now, &mut fabric.dice).map_err(hole)
        })
    }

    fn read(&self, at: PhysAddr, out: &mut [u8]) -> Result<(), NoMemory> {
        self.machine.with(|state| {
            state.step(5, 40 + out.len() as u64 / 8);
            state.fabric.memory.read(at.get(), out).map_err(hole)
        })
    }

    fn write(&self, at: PhysAddr, bytes: &[u8]) -> Result<(), NoMemory> {
        self.machine.with(|state| {
            state.step(5, 40 + bytes.len() as u64 / 8);
            let fabric = &mut state.fabric;
            fabric.memory.write(at.get(), bytes, fabric.now, &mut fabric.dice).map_err(hole)
        })
    }

    fn fill(&self, run: Extent, pattern: u64) -> Result<(), NoMemory> {
        let (start, bytes) = (run.start().get(), run.bytes());
        self.machine.with(|state| state.fabric.memory.check(start, bytes).map_err(hole))?;
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(PIECE - (start + done) % PIECE);
            self.machine.with(|state| {
                // About two bytes a nanosecond: overwriting a machine takes longer than a transfer that is under way.
                state.step(20 + piece * 7 / 16, 60 + piece * 9 / 16);
                let fabric = &mut state.fabric;
                let whole = bytes;
                fabric
                    .memory
                    .fill(start + done, piece, pattern, whole, fabric.now, &mut fabric.dice)
                    .map_err(hole)
            })?;
            done += piece;
        }
        Ok(())
    }

    fn flush_line(&self, at: PhysAddr) {
        self.machine.with(|state| {
            state.step(10, 80);
            let fabric = &mut state.fabric;
            fabric.memory.flush_line(at.get(), fabric.now, &mut fabric.dice);
        });
    }

    fn mmio_read8(&self, at: PhysAddr) -> u8 {
        self.mmio_read(at, 1) as u8
    }
    fn mmio_read16(&self, at: PhysAddr) -> u16 {
        self.mmio_read(at, 2) as u16
    }
    fn mmio_read32(&self, at: PhysAddr) -> u32 {
        self.mmio_read(at, 4) as u32
    }
    fn mmio_read64(&self, at: PhysAddr) -> u64 {
        self.mmio_read(at, 8)
    }
    fn mmio_write8(&self, at: PhysAddr, value: u8) {
        self.mmio_write(at, 1, value.into());
    }
    fn mmio_write16(&self, at: PhysAddr, value: u16) {
        self.mmio_write(at, 2, value.into());
    }
    fn mmio_write32(&self, at: PhysAddr, value: u32) {
        self.mmio_write(at, 4, value.into());
    }
    fn mmio_write64(&self, at: PhysAddr, value: u64) {
        self.mmio_write(at, 8, value);
    }

    fn config_read32(&self, function: SourceId, offset: u16) -> u32 {
        self.machine.with(|state| {
            state.step(300, 1_500);
            state.pci.read(function, offset)
        })
    }

    fn config_write32(&self, function: SourceId, offset: u16, value: u32) {
        self.machine.with(|state| {
            state.step(300, 1_500);
            state.pci.write(function, offset, value);
        });
    }

    fn now(&self) -> u64 {
        self.machine.with(|state| {
            state.step(5, 30);
            state.fabric.now
        })
    }

    fn relax(&self) {
        self.machine.with(|state| state.step(500, 12_000));
    }

    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        Some(self)
    }

    fn memory_map(&self) -> &[MemoryRange] {
        self.machine.memory_map()
    }

    fn rsdp(&self) -> PhysAddr {
        PhysAddr::new(acpi::RSDP)
    }

    fn home(&self) -> Extent {
        self.boot.home
    }

    fn successor_home(&self) -> Option<Extent> {
        self.boot.successor_home
    }

    fn load_successor(&self) -> Result<(), String> {
        let words = self.boot.successor_adopts.ok_or("the image does not say what it can adopt")?;
        Adoptable::from_words(words)
            .map(|_| ())
            .map_err(|error| format!("the image is not understood: {error}"))
    }

    fn successor_adopts(&self) -> Adoptable {
        able(self.boot.successor_adopts)
    }

    fn adopts(&self) -> Adoptable {
        able(self.boot.adopts)
    }

    fn spare(&self) -> Option<Extent> {
        self.boot.areas.iter().copied().find(|area| *area != self.boot.home)
    }

    fn allocate(&self, count: u64, align: u64, above: PhysAddr) -> Option<Extent> {
        self.allocated.set(true);
        if self.machine.with(|state| state.fabric.injector.allocation_fails()) {
            return None;
        }
        let run = self.frames.borrow_mut().allocate(count, align, above.get().div_ceil(PAGE))?;
        // Frames of usable memory can be filled.
        self.fill(run, 0).ok()?;
        Some(run)
    }

    fn free(&self, run: Extent) {
        self.frames.borrow_mut().give(run);
    }

    fn reserve(&self, run: Extent) {
        assert!(!self.allocated.get(), "frames were reserved after others had been allocated: {run}");
        self.frames.borrow_mut().take(run);
    }

    fn release(&self) -> &str {
        &self.boot.release
    }

    fn option(&self, key: &str) -> Option<&str> {
        self.boot.options.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    fn event(&self, event: &Event) {
        // A serial line is slow.
        self.machine.with(|state| {
            state.step(5_000, 20_000);
            state.report(Serial::Event(event.clone()));
        });
    }

    fn log(&self, message: fmt::Arguments<'_>) {
        self.machine.with(|state| {
            state.step(5_000, 20_000);
            state.report(Serial::Log(message.to_string()));
        });
    }

    fn mark(&self, mark: Mark) {
        self.machine.with(|state| {
            state.step(80, 500);
            state.mark(mark);
        });
    }
}
