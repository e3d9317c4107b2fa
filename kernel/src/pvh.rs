//! The first kernel's boot protocol: PVH, by which QEMU's `-kernel` enters a 64-bit ELF file.
//!
//! `ebx` holds the physical address of a start-info block, which leads to the command line, the modules, the memory map
//! and the RSDP. [`read`] takes all of it over before anything is overwritten. Everything is read through a function that
//! says where there is memory, and every length is bounded.

use crate::bootparam::{BootParameters, MAX_COMMAND_LINE};
use crate::memory::MAX_RANGES;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use scenario::platform::MemoryRange;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAGIC: u32 = 0x336e_c578;
const USABLE: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_ranges: u32,
    reserved: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
struct Module {
    start: u64,
    bytes: u64,
    command_line: u64,
    reserved: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
struct MapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// Why the machine's start info is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PvhError {
    /// No memory where something should be.
    Unreadable {
        /// What should be there.
        what: &'static str,
        /// Its address.
        at: u64,
    },
    /// No start info.
    Magic(u32),
    /// A version without a memory map.
    Version(u32),
    /// More memory ranges than are kept.
    Ranges(u32),
    /// The command line is too long or no UTF-8.
    CommandLine,
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { what, at } => {
                write!(f, "the boot protocol's {what} at {at:#x} is in no memory")
            }
            Self::Magic(found) => write!(f, "no PVH start info (magic {found:#x}): boot with QEMU's -kernel"),
            Self::Version(found) => write!(f, "PVH start info of version {found} has no memory map"),
            Self::Ranges(count) => {
                write!(f, "the memory map has {count} ranges, at most {MAX_RANGES} are kept")
            }
            Self::CommandLine => {
                write!(f, "the command line is no UTF-8, or longer than {MAX_COMMAND_LINE} bytes")
            }
        }
    }
}
impl core::error::Error for PvhError {}

/// Copies memory from an address on, or says that there is none.
pub type ReadMemory<'a> = &'a dyn Fn(u64, &mut [u8]) -> Option<()>;

/// Takes the start info at `at` over. The first module, if there is one, is the bundle.
///
/// # Errors
/// [`PvhError`] for the first thing that is wrong.
pub fn read(at: u64, memory: ReadMemory<'_>) -> Result<BootParameters, PvhError> {
    let info: StartInfo = structure(memory, at, "start info")?;
    if info.magic != MAGIC {
        return Err(PvhError::Magic(info.magic));
    }
    if info.version < 1 {
        return Err(PvhError::Version(info.version));
    }
    if info.memory_ranges as usize > MAX_RANGES {
        return Err(PvhError::Ranges(info.memory_ranges));
    }
    let mut map = Vec::with_capacity(info.memory_ranges as usize);
    for i in 0..u64::from(info.memory_ranges) {
        let entry: MapEntry = structure(memory, info.memory_map.wrapping_add(24 * i), "memory map")?;
        map.push(MemoryRange { start: entry.start, bytes: entry.bytes, usable: entry.kind == USABLE });
    }
    let bundle = match info.modules {
        0 => None,
        _ => {
            let module: Module = structure(memory, info.module_list, "module list")?;
            Some((module.start, module.bytes))
        }
    };
    Ok(BootParameters {
        update: 0,
        handover: None,
        rsdp: info.rsdp,
        bundle,
        next_image: 0,
        left_at: 0,
        predecessor: String::new(),
        memory: map,
        command_line: command_line(memory, info.command_line)?,
    })
}

fn structure<T: FromBytes + IntoBytes + Default>(
    memory: ReadMemory<'_>,
    at: u64,
    what: &'static str,
) -> Result<T, PvhError> {
    let mut value = T::default();
    memory(at, value.as_mut_bytes()).ok_or(PvhError::Unreadable { what, at })?;
    Ok(value)
}

fn command_line(memory: ReadMemory<'_>, at: u64) -> Result<String, PvhError> {
    let mut line = Vec::new();
    if at == 0 {
        return Ok(String::new());
    }
    for i in 0..=MAX_COMMAND_LINE as u64 {
        let mut byte = [0];
        memory(at.wrapping_add(i), &mut byte).ok_or(PvhError::Unreadable { what: "command line", at })?;
        if byte[0] == 0 {
            return String::from_utf8(line).map_err(|_| PvhError::CommandLine);
        }
        line.push(byte[0]);
    }
    Err(PvhError::CommandLine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const INFO: u64 = 0x1000;

    /// 64 KiB of memory with start info, one module, two ranges and a command line.
    fn machine(change: impl FnOnce(&mut StartInfo, &mut Vec<u8>)) -> Vec<u8> {
        let mut memory = vec![0; 0x1_0000];
        let mut info = StartInfo {
            magic: MAGIC,
            version: 1,
            modules: 1,
            module_list: 0x2000,
            command_line: 0x3000,
            rsdp: 0xf_5230,
            memory_map: 0x4000,
            memory_ranges: 2,
            ..StartInfo::default()
        };
        let module = Module { start: 0x1000_0000, bytes: 0x5000, ..Module::default() };
        memory[0x2000..0x2020].copy_from_slice(module.as_bytes());
        memory[0x3000..0x3008].copy_from_slice(b"width=48");
        let ram = MapEntry { start: 0, bytes: 0x9_fc00, kind: 1, reserved: 0 };
        let rom = MapEntry { start: 0xf_0000, bytes: 0x1_0000, kind: 2, reserved: 0 };
        memory[0x4000..0x4018].copy_from_slice(ram.as_bytes());
        memory[0x4018..0x4030].copy_from_slice(rom.as_bytes());
        change(&mut info, &mut memory);
        memory[INFO as usize..INFO as usize + 56].copy_from_slice(info.as_bytes());
        memory
    }

    fn taken(memory: &[u8]) -> Result<BootParameters, PvhError> {
        read(INFO, &|at, out| {
            let start = usize::try_from(at).ok()?;
            out.copy_from_slice(memory.get(start..start.checked_add(out.len())?)?);
            Some(())
        })
    }

    #[test]
    fn everything_that_the_machine_says_is_taken_over() {
        let boot = taken(&machine(|_, _| {})).unwrap();
        assert_eq!(boot.bundle, Some((0x1000_0000, 0x5000)));
        assert_eq!(boot.rsdp, 0xf_5230);
        assert_eq!(boot.command_line, "width=48");
        assert_eq!(boot.memory.len(), 2);
        assert!(boot.memory[0].usable && !boot.memory[1].usable);
        assert_eq!((boot.update, boot.handover), (0, None));
    }

    #[test]
    fn no_module_and_no_command_line_are_fine() {
        let boot = taken(&machine(|info, _| (info.modules, info.command_line) = (0, 0))).unwrap();
        assert_eq!((boot.bundle, boot.command_line.as_str()), (None, ""));
    }

    #[test]
    fn wrong_magic_old_versions_and_pointers_into_nothing_are_refused() {
        assert_eq!(taken(&machine(|info, _| info.magic = 1)), Err(PvhError::Magic(1)));
        assert_eq!(taken(&machine(|info, _| info.version = 0)), Err(PvhError::Version(0)));
        assert_eq!(taken(&machine(|info, _| info.memory_ranges = 65)), Err(PvhError::Ranges(65)));
        for spoil in [
            (|info: &mut StartInfo, _: &mut Vec<u8>| info.memory_map = u64::MAX) as fn(&mut _, &mut _),
            |info, _| info.module_list = 0xffff_0000,
            |info, _| info.command_line = 0xffff_0000,
        ] {
            assert!(matches!(taken(&machine(spoil)), Err(PvhError::Unreadable { .. })));
        }
    }

    #[test]
    fn a_command_line_without_an_end_or_of_broken_text_is_refused() {
        let endless = machine(|_, memory| memory[0x3000..0x5000].fill(b'x'));
        assert!(taken(&endless).is_err());
        let broken = machine(|_, memory| memory[0x3000] = 0xff);
        assert_eq!(taken(&broken), Err(PvhError::CommandLine));
    }
}
