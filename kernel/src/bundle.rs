//! The bundle: kernel images that a kernel may boot next, in one block of bytes.
//!
//! QEMU's `-initrd` hands a PVH kernel one module. The command writes that module with [`build`]; the first kernel finds
//! it by its boot protocol, every later one in the mailbox of its scratch area, where its predecessor copied it.
//! [`Bundle::parse`] trusts none of it. All numbers are little-endian:
//!
//! ```text
//!   offset  bytes
//!        0      8   magic "HLDBNDL1"
//!        8      4   number of entries, 0 to 16
//!       12      4   zero
//!       16      8   length of the whole bundle in bytes
//!       24     48   per entry:
//!                     +0   8   offset of the image from the start of the bundle, a multiple of 16
//!                     +8   8   length of the image in bytes
//!                    +16  32   release string, UTF-8, padded with zero bytes, at least one of them
//! ```
//!
//! The order of the entries is the order of the updates. This file has no dependency on the rest of the crate.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// First bytes of every bundle. The last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"HLDBNDL1";
/// Most images in a bundle.
pub const MAX_IMAGES: usize = 16;
/// Bytes for a release string, of which the last one is zero.
pub const RELEASE_BYTES: usize = 32;

const HEADER_BYTES: usize = 24;
const ENTRY_BYTES: usize = 16 + RELEASE_BYTES;
const ALIGN: usize = 16;

/// Why a block of bytes is no bundle, or why no bundle could be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleError {
    /// Fewer bytes than a header has, or than the header promises.
    Short {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are there.
        present: u64,
    },
    /// Not a bundle, or one of another version.
    Magic([u8; 8]),
    /// More images than [`MAX_IMAGES`].
    Count(u64),
    /// An image lies outside the bundle, or over its header, or is not aligned, or is empty.
    Place {
        /// Which entry, from 0.
        entry: usize,
        /// Its offset.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// A release string that is empty, too long or no UTF-8.
    Release {
        /// Which entry, from 0.
        entry: usize,
    },
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, present } => {
                write!(f, "the bundle is cut short: {needed} bytes are needed and {present} are there")
            }
            Self::Magic(found) => write!(f, "no bundle of this version: it starts with {found:02x?}"),
            Self::Count(count) => {
                write!(f, "the bundle names {count} images, at most {MAX_IMAGES} are allowed")
            }
            Self::Place { entry, offset, bytes } => {
                write!(f, "image {entry} of the bundle lies out of place: offset {offset:#x}, {bytes} bytes")
            }
            Self::Release { entry } => {
                write!(
                    f,
                    "image {entry} of the bundle has no release string of 1 to {} bytes",
                    RELEASE_BYTES - 1
                )
            }
        }
    }
}
impl core::error::Error for BundleError {}

/// One image of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// Release string that the writer of the bundle gave it.
    pub release: &'a str,
    /// The ELF file.
    pub bytes: &'a [u8],
}

/// A checked bundle.
///
/// # Invariants
/// Header and every entry were checked by [`Bundle::parse`]: all images lie within `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct Bundle<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Bundle<'a> {
    /// Checks a bundle that begins at the start of `bytes`; more may follow it.
    ///
    /// # Errors
    /// [`BundleError`] for the first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let present = bytes.len() as u64;
        if bytes.len() < HEADER_BYTES {
            return Err(BundleError::Short { needed: HEADER_BYTES as u64, present });
        }
        let magic: [u8; 8] = core::array::from_fn(|i| bytes[i]);
        if magic != MAGIC {
            return Err(BundleError::Magic(magic));
        }
        let (count, length) = (word(bytes, 8) & 0xffff_ffff, word(bytes, 16));
        if count > MAX_IMAGES as u64 {
            return Err(BundleError::Count(count));
        }
        let count = count as usize;
        let needed = length.max((HEADER_BYTES + count * ENTRY_BYTES) as u64);
        if needed > present || length < needed {
            return Err(BundleError::Short { needed, present: present.min(length) });
        }
        // INVARIANT: the bundle is cut to its own length, and each image is looked up once below.
        let bundle = Self { bytes: &bytes[..length as usize], count };
        for entry in 0..count {
            bundle.entry(entry)?;
        }
        Ok(bundle)
    }

    /// Number of images.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
    /// The bundle's own bytes, from the header to the last image.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// The image with this number, counted from 0.
    #[must_use]
    pub fn image(&self, number: usize) -> Option<Image<'a>> {
        if number < self.count { self.entry(number).ok() } else { None }
    }

    fn entry(&self, entry: usize) -> Result<Image<'a>, BundleError> {
        let at = HEADER_BYTES + entry * ENTRY_BYTES;
        let (offset, bytes) = (word(self.bytes, at), word(self.bytes, at + 8));
        let misplaced = BundleError::Place { entry, offset, bytes };
        let end = offset.checked_add(bytes).ok_or(misplaced)?;
        let first = (HEADER_BYTES + self.count * ENTRY_BYTES) as u64;
        if bytes == 0
            || offset < first
            || !offset.is_multiple_of(ALIGN as u64)
            || end > self.bytes.len() as u64
        {
            return Err(misplaced);
        }
        let name = &self.bytes[at + 16..at + ENTRY_BYTES];
        let length = name.iter().position(|&b| b == 0).unwrap_or(0);
        let release = core::str::from_utf8(&name[..length]).map_err(|_| BundleError::Release { entry })?;
        if release.is_empty() {
            return Err(BundleError::Release { entry });
        }
        Ok(Image { release, bytes: &self.bytes[offset as usize..end as usize] })
    }
}

/// Writes a bundle of `(release string, ELF file)`, in the order in which they shall be booted.
///
/// # Errors
/// [`BundleError`] when there are too many images, one is empty, or a release string does not fit.
pub fn build(images: &[(&str, &[u8])]) -> Result<Vec<u8>, BundleError> {
    if images.len() > MAX_IMAGES {
        return Err(BundleError::Count(images.len() as u64));
    }
    let mut out = vec![0; HEADER_BYTES + images.len() * ENTRY_BYTES];
    for (entry, (release, bytes)) in images.iter().enumerate() {
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        let offset = out.len() as u64;
        if bytes.is_empty() {
            return Err(BundleError::Place { entry, offset, bytes: 0 });
        }
        if release.is_empty() || release.len() >= RELEASE_BYTES || release.contains('\0') {
            return Err(BundleError::Release { entry });
        }
        let at = HEADER_BYTES + entry * ENTRY_BYTES;
        out[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        out[at + 8..at + 16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        out[at + 16..at + 16 + release.len()].copy_from_slice(release.as_bytes());
        out.extend_from_slice(bytes);
    }
    let length = out.len() as u64;
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&(images.len() as u32).to_le_bytes());
    out[16..24].copy_from_slice(&length.to_le_bytes());
    Ok(out)
}

/// The little-endian word at `at`, which the caller knows to be inside.
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<u8> {
        build(&[("0.1.0-b", &[1, 2, 3]), ("0.1.0-c", &[9; 40])]).unwrap()
    }

    #[test]
    fn what_was_built_is_read_back_in_order() {
        let bytes = two();
        let bundle = Bundle::parse(&bytes).unwrap();
        assert_eq!(bundle.count(), 2);
        assert_eq!(bundle.image(0).unwrap(), Image { release: "0.1.0-b", bytes: &[1, 2, 3] });
        assert_eq!(bundle.image(1).unwrap(), Image { release: "0.1.0-c", bytes: &[9; 40] });
        assert_eq!(bundle.image(2), None);
    }

    #[test]
    fn what_follows_a_bundle_does_not_belong_to_it() {
        let mut bytes = two();
        let length = bytes.len();
        bytes.extend_from_slice(&[0xee; 100]);
        assert_eq!(Bundle::parse(&bytes).unwrap().bytes().len(), length);
    }

    #[test]
    fn a_bundle_cut_at_any_byte_is_refused() {
        let bytes = two();
        for length in 0..bytes.len() {
            assert!(Bundle::parse(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn no_flipped_bit_leads_outside_the_bundle() {
        let bytes = two();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(bundle) = Bundle::parse(&flipped) {
                for number in 0..bundle.count() {
                    assert!(bundle.image(number).is_some());
                }
            }
        }
    }

    #[test]
    fn an_image_over_the_header_or_off_its_alignment_is_refused() {
        for offset in [0u64, 24, 121, u64::MAX - 2] {
            let mut bytes = two();
            bytes[24..32].copy_from_slice(&offset.to_le_bytes());
            assert!(matches!(Bundle::parse(&bytes), Err(BundleError::Place { entry: 0, .. })), "{offset:#x}");
        }
    }

    #[test]
    fn releases_that_do_not_fit_and_empty_images_are_not_built() {
        let long = "x".repeat(RELEASE_BYTES);
        assert_eq!(build(&[(&long, &[1])]), Err(BundleError::Release { entry: 0 }));
        assert_eq!(build(&[("", &[1])]), Err(BundleError::Release { entry: 0 }));
        assert!(matches!(build(&[("b", &[])]), Err(BundleError::Place { .. })));
        assert_eq!(build(&vec![("b", &[1u8][..]); 17]), Err(BundleError::Count(17)));
    }

    #[test]
    fn a_release_without_its_zero_byte_is_refused() {
        let mut bytes = two();
        bytes[40..40 + RELEASE_BYTES].fill(b'x');
        assert_eq!(Bundle::parse(&bytes).map(|b| b.count()), Err(BundleError::Release { entry: 0 }));
    }
}
