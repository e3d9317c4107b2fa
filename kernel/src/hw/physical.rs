//! Physical memory and device registers, which the identity map puts at their own addresses.
//!
//! These functions check nothing: whoever calls them has checked the address against the memory map.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr;

macro_rules! accessors {
    ($($load:ident $store:ident $type:ty, $width:literal;)*) => {$(
        #[doc = concat!("One load of ", $width, " bits, never torn or left out.")]
        ///
        /// # Safety
        /// `at` is aligned to the width and mapped, and holds no memory of the Rust program.
        #[must_use]
        pub unsafe fn $load(at: u64) -> $type {
            // SAFETY: the caller says so.
            unsafe { ptr::read_volatile(at as *const $type) }
        }
        #[doc = concat!("One store of ", $width, " bits, never torn or left out.")]
        ///
        /// # Safety
        /// `at` is aligned to the width and mapped writable, and holds no memory of the Rust program.
        pub unsafe fn $store(at: u64, value: $type) {
            // SAFETY: the caller says so.
            unsafe { ptr::write_volatile(at as *mut $type, value) }
        }
    )*};
}

accessors! {
    load8 store8 u8, "8";
    load16 store16 u16, "16";
    load32 store32 u32, "32";
    load64 store64 u64, "64";
}

/// Copies memory out.
///
/// # Safety
/// All of the source is mapped.
pub unsafe fn copy_out(at: u64, out: &mut [u8]) {
    // SAFETY: the caller vouches for the source; the destination is a slice of ours, and if the two overlap the copy is
    // still defined, because `memmove` is used.
    unsafe { ptr::copy(at as *const u8, out.as_mut_ptr(), out.len()) }
}

/// Copies memory in.
///
/// # Safety
/// All of the destination is mapped writable and holds no memory of the Rust program.
pub unsafe fn copy_in(at: u64, bytes: &[u8]) {
    // SAFETY: the caller says so.
    unsafe { ptr::copy(bytes.as_ptr(), at as *mut u8, bytes.len()) }
}

/// Memory as a slice.
///
/// # Safety
/// All of it is mapped and nobody, device or code, changes it for as long as the slice lives.
#[must_use]
pub unsafe fn slice<'a>(at: u64, bytes: u64) -> &'a [u8] {
    // SAFETY: the caller says so.
    unsafe { core::slice::from_raw_parts(at as *const u8, bytes as usize) }
}

/// Memory as a slice to write to.
///
/// # Safety
/// All of it is mapped writable, and nobody else reads or writes it for as long as the slice lives.
#[must_use]
pub unsafe fn slice_mut<'a>(at: u64, bytes: u64) -> &'a mut [u8] {
    // SAFETY: the caller says so.
    unsafe { core::slice::from_raw_parts_mut(at as *mut u8, bytes as usize) }
}

/// Fills memory with a repeated 64-bit pattern, 16 bytes a store.
///
/// # Safety
/// `at` and `bytes` are multiples of 128; all of it is mapped writable and holds no memory of the Rust program.
pub unsafe fn fill(at: u64, bytes: u64, pattern: u64) {
    if bytes == 0 {
        return;
    }
    // SAFETY: the loop stores to `at..at + bytes` and nowhere else; the caller vouches for that range.
    unsafe {
        asm!(
            "movq {x}, {pattern}",
            "punpcklqdq {x}, {x}",
            "2:",
            "movaps [{at}], {x}",
            "movaps [{at} + 16], {x}",
            "movaps [{at} + 32], {x}",
            "movaps [{at} + 48], {x}",
            "movaps [{at} + 64], {x}",
            "movaps [{at} + 80], {x}",
            "movaps [{at} + 96], {x}",
            "movaps [{at} + 112], {x}",
            "sub {at}, -128",
            "cmp {at}, {end}",
            "jne 2b",
            x = out(xmm_reg) _,
            pattern = in(reg) pattern,
            at = inout(reg) at => _,
            end = in(reg) at + bytes,
            options(nostack),
        );
    }
}

/// Writes the cache line at `at` back to memory.
///
/// # Safety
/// `at` is mapped.
pub unsafe fn flush_line(at: u64) {
    // SAFETY: the instruction changes no data.
    unsafe { asm!("clflush [{}]", in(reg) at, options(nostack, preserves_flags)) };
}
