//! I/O ports.
#![allow(unsafe_code)]

use core::arch::asm;

/// Reads a byte. Reading a port may have effects; the caller knows the device.
#[must_use]
pub fn read8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: port I/O touches no memory of ours; the kernel runs in ring 0.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: as for `read8`. No port that this kernel writes starts DMA into memory of ours.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Reads 32 bits.
#[must_use]
pub fn read32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `read8`.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes 32 bits. It may start a device; memory that the device was told of is the caller's business.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as for `write8`; without `nomem`, so that stores before it are not moved behind it.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}
