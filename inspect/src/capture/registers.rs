//! Registers straight from hardware: the only place of this crate that touches memory it was not given.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of the window that are read: one page, which every unit has.
const WINDOW: usize = 4096;
/// Reads past caches: what `O_SYNC` means for `/dev/mem`.
const UNCACHED: i32 = 0o4_010_000;

/// The registers of the unit at `base`, word by word.
///
/// # Errors
/// When the address cannot be mapped: not root, or the kernel keeps it from everybody.
pub(super) fn window(devices: &Path, base: u64) -> io::Result<Vec<u8>> {
    if !base.is_multiple_of(WINDOW as u64) {
        return Err(io::Error::other("the register base is not aligned"));
    }
    let file = OpenOptions::new().read(true).custom_flags(UNCACHED).open(devices)?;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    #[allow(unsafe_code)]
    let map = unsafe { mmap(std::ptr::null_mut(), WINDOW, ProtFlags::READ, MapFlags::SHARED, &file, base)? };
    let words = map.cast::<u32>();
    let mut bytes = Vec::with_capacity(WINDOW);
    for word in 0..WINDOW / 4 {
        // SAFETY: within the mapping, aligned; hardware may change it at any time, hence volatile. Reading these
        // registers has no side effect (VT-d 11.4).
        #[allow(unsafe_code)]
        let value = unsafe { words.wrapping_add(word).read_volatile() };
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    // SAFETY: the mapping made above, whole; nothing points into it any more.
    #[allow(unsafe_code)]
    unsafe {
        munmap(map, WINDOW)?;
    }
    Ok(bytes)
}
