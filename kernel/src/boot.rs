//! From the first Rust instruction to a [`Hardware`] that the scenario can run on.
#![allow(unsafe_code)]

use crate::bootparam::{self, BootParameters, ParameterError};
use crate::cmdline;
use crate::frames::FrameAllocator;
use crate::hardware::{Hardware, OwnTables};
use crate::hw::exit::{Exit, exit};
use crate::hw::hpet::{Hpet, NoClock};
use crate::hw::serial::{self, Serial};
use crate::hw::traps::{self, Origin};
use crate::hw::{cpu, interrupts, local_apic, physical};
use crate::layout::{self, Area};
use crate::memory::{self, MapError};
use crate::paging::{PageTables, PagingError, Rights};
use crate::pvh::{self, PvhError};
use crate::successor::Successor;
use alloc::format;
use alloc::string::ToString;
use core::fmt;
use scenario::event::Event;
use scenario::platform::{Adoptable, MemoryRange};
use spec::{Extent, PAGE_SIZE, PhysAddr};

/// The entry code's tables map this much, and a PVH start info lies within it.
const LOW_MEMORY_END: u64 = 4 << 30;

/// Memory below 1 MiB is never handed out: firmware and idle processors may still look at it.
const LEGACY: Area = Area { start: 0, end: 1 << 20 };

/// What the running image knows of itself, from its linker script.
#[derive(Debug)]
pub struct Kernel {
    /// Release string.
    pub release: &'static str,
    /// The scratch area that it is linked for.
    pub home: Area,
    /// What it can adopt, as its image says.
    pub adopts: Adoptable,
    /// First byte of the image: constants up to the text.
    pub image_start: u64,
    /// Byte after the image.
    pub image_end: u64,
    /// The page below the stack, which stays unmapped.
    pub stack_guard: u64,
    /// Text and stack, for a dump.
    pub origin: Origin,
}

/// How the kernel was entered; the number is what the entry code left in a register.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// By QEMU, with the address of the PVH start info.
    Pvh(u64),
    /// By a predecessor, with the address of the boot parameters.
    Successor(u64),
}

/// Why the kernel cannot start.
#[derive(Debug)]
enum BootError {
    Pvh(PvhError),
    Parameters(ParameterError),
    Map(MapError),
    Paging(PagingError),
    Clock(NoClock),
    Bundle { address: u64, bytes: u64 },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pvh(error) => error.fmt(f),
            Self::Parameters(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Paging(error) => error.fmt(f),
            Self::Clock(error) => error.fmt(f),
            Self::Bundle { address, bytes } => write!(
                f,
                "the module at {address:#x} with {bytes:#x} bytes lies in no usable memory, or in a scratch area"
            ),
        }
    }
}

macro_rules! from {
    ($($error:ty => $variant:ident),*) => {$(
        impl From<$error> for BootError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
from!(PvhError => Pvh, ParameterError => Parameters, MapError => Map, PagingError => Paging, NoClock => Clock);

/// Runs the kernel: the heap is up, everything else is still to be done.
pub fn run(kernel: &'static Kernel, entry: Entry) -> ! {
    Serial::initialise();
    traps::install(&kernel.origin);
    match prepare(kernel, entry) {
        Ok(machine) => exit(crate::story::run(&machine)),
        Err(error) => {
            let step = format!("start of kernel {}", kernel.release);
            serial::event(&Event::Failed { step, why: error.to_string() });
            exit(Exit::Failure)
        }
    }
}

fn prepare(kernel: &'static Kernel, entry: Entry) -> Result<Hardware, BootError> {
    let boot = take_over(kernel, entry)?;
    let map = memory::normalise(&boot.memory)?;
    for area in layout::AREAS {
        if !memory::holds(&map, area.start, area.bytes(), true) {
            return Err(MapError::Area { start: area.start, end: area.end }.into());
        }
    }
    let tables = map_memory(kernel, &map)?;
    // SAFETY: the image has its rights, all RAM and the devices below 4 GiB are mapped.
    unsafe { cpu::load_page_tables(tables.root()) };
    local_apic::choose_mode(cmdline::option(&boot.command_line, "x2apic").is_some());
    interrupts::mask_all();
    local_apic::install();
    let clock = Hpet::start()?;
    let mut frames = FrameAllocator::new(map.iter().filter_map(memory::whole_frames));
    for area in layout::AREAS.into_iter().chain([LEGACY]) {
        frames.reserve(area.extent());
    }
    if let Some(module) = module(kernel, &boot, &map)? {
        frames.reserve(module);
    }
    let follows = Successor::present(&boot);
    Ok(Hardware::new(kernel, boot, map, clock, frames, tables, follows))
}

/// Copies everything that whoever came before us left, before any of it can be overwritten.
fn take_over(kernel: &Kernel, entry: Entry) -> Result<BootParameters, BootError> {
    match entry {
        Entry::Pvh(at) => Ok(pvh::read(at, &|at, out| {
            let end = at.checked_add(out.len() as u64)?;
            if at == 0 || end > LOW_MEMORY_END {
                return None;
            }
            // SAFETY: the entry code's tables map the first 4 GiB. Where there is no memory, all ones are read.
            unsafe { physical::copy_out(at, out) };
            Some(())
        })?),
        Entry::Successor(found) => {
            let place = kernel.home.parameters();
            if found != place.start {
                return Err(ParameterError::Address { found, expected: place.start }.into());
            }
            // SAFETY: the mailbox is part of this kernel's own area, and the predecessor is gone.
            let block = unsafe { physical::slice(place.start, place.bytes()) };
            Ok(bootparam::read(block, kernel.home)?)
        }
    }
}

/// The frames of a module that the boot protocol left in ordinary memory; a mailbox needs no keeping.
fn module(kernel: &Kernel, boot: &BootParameters, map: &[MemoryRange]) -> Result<Option<Extent>, BootError> {
    let Some((address, bytes)) = boot.bundle else { return Ok(None) };
    if kernel.home.bundle().holds(address, bytes) {
        return Ok(None);
    }
    let wrong = BootError::Bundle { address, bytes };
    if bytes == 0 || !memory::holds(map, address, bytes, true) {
        return Err(wrong);
    }
    let start = address / PAGE_SIZE * PAGE_SIZE;
    let end = (address + bytes).next_multiple_of(PAGE_SIZE);
    match Extent::from_bytes(PhysAddr::new(start), end - start) {
        Some(frames) if !layout::AREAS.iter().any(|area| area.extent().overlaps(frames)) => Ok(Some(frames)),
        _ => Err(wrong),
    }
}

/// An identity map: devices below 4 GiB, RAM wherever it is, and the image with the rights of its parts.
fn map_memory(kernel: &Kernel, map: &[MemoryRange]) -> Result<PageTables<OwnTables>, PagingError> {
    let arena = kernel.home.tables();
    let mut tables = PageTables::new(OwnTables, arena.start, arena.end)?;
    tables.set(PAGE_SIZE, LOW_MEMORY_END, Rights::Device)?;
    for range in map {
        // Firmware's own ranges above 4 GiB are holes in the address space, not RAM.
        if range.usable || range.start < LOW_MEMORY_END {
            let end = (range.start + range.bytes).next_multiple_of(PAGE_SIZE);
            tables.set(range.start / PAGE_SIZE * PAGE_SIZE, end, Rights::ReadWrite)?;
        }
    }
    let origin = &kernel.origin;
    tables.set(kernel.image_start, origin.text_start, Rights::Read)?;
    tables.set(origin.text_start, origin.text_end, Rights::Execute)?;
    tables.set(kernel.stack_guard, kernel.stack_guard + PAGE_SIZE, Rights::None)?;
    Ok(tables)
}
