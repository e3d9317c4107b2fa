//! Configuration space of one function: capabilities, BARs, and the command register.

use super::{Function, Kind, PciError};
use crate::platform::Platform;
use alloc::vec::Vec;
use spec::{PhysAddr, SourceId};

/// Configuration registers (PCI 3.0, 6.1), as offsets of their 32-bit word.
pub(super) mod reg {
    pub(in crate::pci) const ID: u16 = 0x00;
    pub(in crate::pci) const COMMAND: u16 = 0x04;
    pub(in crate::pci) const CLASS: u16 = 0x08;
    pub(in crate::pci) const HEADER: u16 = 0x0c;
    pub(in crate::pci) const BAR0: u16 = 0x10;
    pub(in crate::pci) const BUSES: u16 = 0x18;
    pub(in crate::pci) const CAPABILITIES: u16 = 0x34;
}

const COMMAND_IO: u32 = 1 << 0;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
/// Command is the low half of its word. The high half is status, whose bits a one clears: write zeros there.
const COMMAND_MASK: u32 = 0xffff;
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// Most capabilities that fit between offset 0x40 and 0x100.
const MAX_CAPABILITIES: usize = 48;
/// Where extended capabilities start, and most of them that fit behind.
const FIRST_EXTENDED: u16 = 0x100;
const MAX_EXTENDED: usize = 480;
/// Capability id of PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability id of message signalled interrupts.
const CAP_MSI: u8 = 0x05;
/// Bits of the capability's first word: switched on, number of vectors, addresses of 64 bits.
const MSI_ENABLE: u32 = 1 << 16;
const MSI_VECTORS: u32 = 7 << 20;
const MSI_WIDE: u32 = 1 << 23;

/// Device capabilities and device control (PCI Express 7.5.3.3, 7.5.3.4), from the capability on.
const DEVICE_CAPABILITIES: u16 = 0x04;
const DEVICE_CONTROL: u16 = 0x08;
/// Phantom functions: how many bits of the function number, and whether they are on.
const PHANTOM_BITS: u32 = 3;
const PHANTOM_ENABLE: u32 = 1 << 9;

/// How many upper bits of its function number the requests of `function` may change.
///
/// # Errors
/// [`PciError`] when the capability list cannot be walked.
pub(super) fn phantom_bits<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<u8, PciError> {
    let Some(offset) =
        capability(platform, function, CAP_EXPRESS)?.map(u16::from).filter(|at| at + DEVICE_CONTROL < 0x100)
    else {
        return Ok(0);
    };
    if platform.config_read32(function, offset + DEVICE_CONTROL) & PHANTOM_ENABLE == 0 {
        return Ok(0);
    }
    Ok((platform.config_read32(function, offset + DEVICE_CAPABILITIES) >> 3 & PHANTOM_BITS) as u8)
}

/// Offset of the first capability `id` in configuration space, `None` when there is none.
///
/// # Errors
/// [`PciError`] when the list is cyclic or leaves its room before the capability is found.
pub fn capability<P: Platform + ?Sized>(
    platform: &P,
    function: SourceId,
    id: u8,
) -> Result<Option<u8>, PciError> {
    if platform.config_read32(function, reg::COMMAND) & STATUS_CAPABILITIES == 0 {
        return Ok(None);
    }
    let mut offset = platform.config_read32(function, reg::CAPABILITIES) as u8 & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        match offset {
            0 => return Ok(None),
            1..0x40 => return Err(PciError::CapabilityOutside { function, offset: offset.into() }),
            _ => {}
        }
        let entry = platform.config_read32(function, offset.into());
        if entry as u8 == id {
            return Ok(Some(offset));
        }
        offset = (entry >> 8) as u8 & 0xfc;
    }
    // As many as there is room for, and still no end.
    match offset {
        0 => Ok(None),
        offset => Err(PciError::CapabilityCycle { function, offset: offset.into() }),
    }
}

/// Offset of the first extended capability `id` (PCIe 7.6), `None` when there is none, or where the platform does not reach
/// that far: it then reads ones.
///
/// # Errors
/// [`PciError`] when the list is cyclic or leaves its room before the capability is found.
pub fn extended_capability<P: Platform + ?Sized>(
    platform: &P,
    function: SourceId,
    id: u16,
) -> Result<Option<u16>, PciError> {
    if capability(platform, function, CAP_EXPRESS)?.is_none() {
        return Ok(None);
    }
    let mut offset = FIRST_EXTENDED;
    for _ in 0..MAX_EXTENDED {
        let entry = platform.config_read32(function, offset);
        if entry == 0 || entry == u32::MAX {
            return Ok(None);
        }
        if entry as u16 == id {
            return Ok(Some(offset));
        }
        offset = (entry >> 20) as u16 & 0xffc;
        match offset {
            0 => return Ok(None),
            1..FIRST_EXTENDED => return Err(PciError::CapabilityOutside { function, offset }),
            _ => {}
        }
    }
    Err(PciError::CapabilityCycle { function, offset })
}

/// Has a function send this message for its interrupt (PCI 3.0, 6.8.1), one vector; the function must be a bus master.
///
/// # Errors
/// [`PciError`] when its list of capabilities is broken; `Ok(false)` when it has no MSI.
pub fn set_message<P: Platform + ?Sized>(
    platform: &P,
    function: SourceId,
    address: u32,
    data: u32,
) -> Result<bool, PciError> {
    let Some(at) = capability(platform, function, CAP_MSI)?.map(u16::from) else { return Ok(false) };
    let control = platform.config_read32(function, at);
    let off = control & !(MSI_ENABLE | MSI_VECTORS);
    platform.config_write32(function, at, off);
    platform.config_write32(function, at + 4, address);
    let data_at = if control & MSI_WIDE != 0 { 12 } else { 8 };
    if data_at == 12 {
        platform.config_write32(function, at + 8, 0);
    }
    platform.config_write32(function, at + data_at, data);
    platform.config_write32(function, at, off | MSI_ENABLE);
    Ok(true)
}

/// One base address register, with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// Memory.
    Memory {
        /// Index of its (first) register.
        index: u8,
        /// Where it is; 0 when firmware assigned nothing.
        at: PhysAddr,
        /// Its size in bytes, a power of two.
        bytes: u64,
        /// Whether it takes two registers.
        wide: bool,
    },
    /// Ports.
    Io {
        /// Index of its register.
        index: u8,
        /// First port.
        port: u32,
        /// How many ports.
        count: u32,
    },
}

/// The BARs of `function` with their sizes. Decoding is off while the sizes are probed: never do this to a device whose
/// registers somebody uses, and read [`bar_address`] where the device runs already. DMA goes on.
pub fn probe_bars<P: Platform + ?Sized>(platform: &P, function: &Function) -> Vec<Bar> {
    let source = function.source;
    let count: u8 = match function.kind {
        Kind::Endpoint => 6,
        Kind::Bridge { .. } => 2,
        Kind::Other { .. } => 0,
    };
    let command = platform.config_read32(source, reg::COMMAND) & COMMAND_MASK;
    platform.config_write32(source, reg::COMMAND, command & !(COMMAND_IO | COMMAND_MEMORY));
    let mut bars = Vec::new();
    let mut index = 0;
    while index < count {
        let (bar, registers) = probe(platform, source, index, count);
        bars.extend(bar);
        index += registers;
    }
    platform.config_write32(source, reg::COMMAND, command);
    bars
}

/// Probes the BAR at `index`; also says how many registers it takes.
fn probe<P: Platform + ?Sized>(platform: &P, source: SourceId, index: u8, count: u8) -> (Option<Bar>, u8) {
    let (low, low_ones) = ones(platform, source, index);
    if low & 1 != 0 {
        let mask = low_ones & !3;
        // Upper bits that are not implemented read 0: a port number has 16.
        let size = (mask | 0xffff_0000).wrapping_neg();
        let bar = Bar::Io { index, port: low & !3, count: size };
        return ((mask != 0).then_some(bar), 1);
    }
    let wide = low >> 1 & 3 == 2 && index + 1 < count;
    let (high, high_ones) = if wide { ones(platform, source, index + 1) } else { (0, u32::MAX) };
    let registers = if wide { 2 } else { 1 };
    let mask = u64::from(high_ones) << 32 | u64::from(low_ones & !0xf);
    if low_ones & !0xf == 0 && (!wide || high_ones == 0) {
        return (None, registers);
    }
    let at = PhysAddr::new(u64::from(high) << 32 | u64::from(low & !0xf));
    (Some(Bar::Memory { index, at, bytes: mask.wrapping_neg(), wide }), registers)
}

/// The content of a BAR, and what it reads after all ones were written. The content is restored.
fn ones<P: Platform + ?Sized>(platform: &P, source: SourceId, index: u8) -> (u32, u32) {
    let offset = bar_offset(index);
    let content = platform.config_read32(source, offset);
    platform.config_write32(source, offset, u32::MAX);
    let ones = platform.config_read32(source, offset);
    platform.config_write32(source, offset, content);
    (content, ones)
}

fn bar_offset(index: u8) -> u16 {
    reg::BAR0 + 4 * u16::from(index)
}

/// Where firmware put memory BAR `index` (0 to 5) of `function`. Only reads: safe on a device that is running.
///
/// # Errors
/// [`PciError::NoMemoryBar`].
pub fn bar_address<P: Platform + ?Sized>(
    platform: &P,
    function: SourceId,
    index: u8,
) -> Result<PhysAddr, PciError> {
    let none = |raw| PciError::NoMemoryBar { function, index, raw };
    if index > 5 {
        return Err(none(0));
    }
    let low = platform.config_read32(function, bar_offset(index));
    let high = match low & 7 {
        0 => 0,
        4 if index < 5 => platform.config_read32(function, bar_offset(index + 1)),
        _ => return Err(none(low)),
    };
    match u64::from(high) << 32 | u64::from(low & !0xf) {
        0 => Err(none(low)),
        at if low == u32::MAX => Err(none(at as u32)),
        at => Ok(PhysAddr::new(at)),
    }
}

/// Switches memory decoding and bus mastering of `function` on. Bits that are on stay on.
///
/// # Errors
/// [`PciError::CommandRefused`] when the register does not take it.
pub fn enable<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<(), PciError> {
    let command = platform.config_read32(function, reg::COMMAND) & COMMAND_MASK;
    set_command(platform, function, command | COMMAND_MEMORY | COMMAND_BUS_MASTER)
}

/// Switches bus mastering of `function` off: it issues no more DMA. Nothing else changes.
///
/// # Errors
/// [`PciError::CommandRefused`] when the register does not take it.
pub fn disable_bus_master<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<(), PciError> {
    let command = platform.config_read32(function, reg::COMMAND) & COMMAND_MASK;
    set_command(platform, function, command & !COMMAND_BUS_MASTER)
}

fn set_command<P: Platform + ?Sized>(platform: &P, function: SourceId, wanted: u32) -> Result<(), PciError> {
    platform.config_write32(function, reg::COMMAND, wanted);
    let found = platform.config_read32(function, reg::COMMAND) & COMMAND_MASK;
    if found & (COMMAND_MEMORY | COMMAND_BUS_MASTER) == wanted & (COMMAND_MEMORY | COMMAND_BUS_MASTER) {
        return Ok(());
    }
    Err(PciError::CommandRefused { function, wanted: wanted as u16, found: found as u16 })
}
