//! How the auditor sees memory: eight-byte words at physical addresses, any of which may be missing.
//!
//! Live memory, a dump in a file and a map of pages in a test all look the same from here. Nothing is assumed of an
//! address: it may come straight out of a damaged table.

use core::fmt;
use spec::PhysAddr;
use zerocopy::{FromBytes, IntoBytes};

/// Words in a frame.
pub(crate) const FRAME_WORDS: usize = 512;

/// Memory that the auditor was asked to read and that the image does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The first address that cannot be read.
    pub at: PhysAddr,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory at {}", self.at)
    }
}
impl core::error::Error for Missing {}

/// A memory image.
///
/// Implementers owe: any address may be asked for, also one past the end of the address space; never panic, never fault,
/// and never have a side effect (device memory is not part of an image).
pub trait Image {
    /// Fills `out` with the words from `at` (a multiple of 8) on, each in the byte order of memory (little-endian).
    ///
    /// # Errors
    /// [`Missing`] when any of them is not there; `out` is then undefined.
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing>;
}

impl<T: Image + ?Sized> Image for &T {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        (**self).read(at, out)
    }
}

/// One word.
pub(crate) fn word<I: Image + ?Sized>(image: &I, at: PhysAddr) -> Result<u64, Missing> {
    let mut out = [0];
    image.read(at, &mut out)?;
    let [word] = out;
    Ok(word)
}

/// A wire structure of at most 96 bytes, a multiple of 8, at `at`.
pub(crate) fn structure<I: Image + ?Sized, T: FromBytes>(image: &I, at: PhysAddr) -> Result<T, Missing> {
    structure_of(image, at, size_of::<T>() as u64)
}

/// The same of which only `length` bytes, a multiple of 8, may be there: the rest is zero.
pub(crate) fn structure_of<I: Image + ?Sized, T: FromBytes>(
    image: &I,
    at: PhysAddr,
    length: u64,
) -> Result<T, Missing> {
    let mut words = [0u64; 12];
    let there = usize::try_from(length).unwrap_or(usize::MAX).min(size_of::<T>());
    image.read(at, words.get_mut(..there.div_ceil(8)).ok_or(Missing { at })?)?;
    let bytes = words.as_bytes().get(..size_of::<T>()).unwrap_or_default();
    T::read_from_bytes(bytes).map_err(|_| Missing { at })
}
