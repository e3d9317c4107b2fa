//! The machine's memory map, made fit for use: ascending, without overlap, without the page at address 0.

use alloc::vec::Vec;
use core::fmt;
use scenario::platform::MemoryRange;
use spec::{Extent, PAGE_SIZE, PhysAddr};

/// Most ranges that a kernel takes over from firmware or from its predecessor.
pub const MAX_RANGES: usize = 64;

/// Why a memory map cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// More than [`MAX_RANGES`].
    Ranges(usize),
    /// A range that leaves the address space.
    Wraps(MemoryRange),
    /// Two ranges share a byte.
    Overlap(MemoryRange, MemoryRange),
    /// A scratch area is not all usable memory: the machine is too small, or firmware sits in it.
    Area {
        /// First byte of the area.
        start: u64,
        /// Byte after it.
        end: u64,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ranges(count) => {
                write!(f, "the memory map has {count} ranges, at most {MAX_RANGES} are allowed")
            }
            Self::Wraps(range) => {
                write!(
                    f,
                    "the memory map's range at {:#x} with {:#x} bytes wraps around",
                    range.start, range.bytes
                )
            }
            Self::Overlap(a, b) => {
                write!(f, "the memory map's ranges at {:#x} and {:#x} overlap", a.start, b.start)
            }
            Self::Area { start, end } => {
                write!(
                    f,
                    "scratch area {start:#x}..{end:#x} is not usable memory: give the machine at least 512 MiB"
                )
            }
        }
    }
}
impl core::error::Error for MapError {}

/// Puts a map in order: drops empty ranges and the first page, sorts, checks.
///
/// The first page is left out because it is never mapped: a null pointer must fault.
///
/// # Errors
/// [`MapError`] for a map that contradicts itself.
pub fn normalise(raw: &[MemoryRange]) -> Result<Vec<MemoryRange>, MapError> {
    if raw.len() > MAX_RANGES {
        return Err(MapError::Ranges(raw.len()));
    }
    let mut map = Vec::with_capacity(raw.len());
    for range in raw {
        let end = range.start.checked_add(range.bytes).ok_or(MapError::Wraps(*range))?;
        let start = range.start.max(PAGE_SIZE);
        if start < end {
            map.push(MemoryRange { start, bytes: end - start, usable: range.usable });
        }
    }
    map.sort_unstable_by_key(|range| range.start);
    for pair in map.windows(2) {
        if pair[0].start + pair[0].bytes > pair[1].start {
            return Err(MapError::Overlap(pair[0], pair[1]));
        }
    }
    Ok(map)
}

/// The whole frames of a usable range; `None` for a range that holds none, or is not usable.
#[must_use]
pub fn whole_frames(range: &MemoryRange) -> Option<Extent> {
    if !range.usable {
        return None;
    }
    let first = range.start.checked_next_multiple_of(PAGE_SIZE)?;
    let end = range.start.checked_add(range.bytes)? / PAGE_SIZE * PAGE_SIZE;
    Extent::from_bytes(PhysAddr::new(first), end.checked_sub(first)?)
}

/// Whether all `bytes` bytes from `start` on lie in one range of the map, and that range is usable if it must be.
#[must_use]
pub fn holds(map: &[MemoryRange], start: u64, bytes: u64, must_be_usable: bool) -> bool {
    let Some(end) = start.checked_add(bytes) else { return false };
    let after = map.partition_point(|range| range.start <= start);
    match after.checked_sub(1).map(|i| map[i]) {
        Some(range) => end <= range.start + range.bytes && (range.usable || !must_be_usable),
        None => false,
    }
}

/// Bytes of usable memory.
#[must_use]
pub fn usable_bytes(map: &[MemoryRange]) -> u64 {
    map.iter().filter(|range| range.usable).map(|range| range.bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(start: u64, end: u64, usable: bool) -> MemoryRange {
        MemoryRange { start, bytes: end - start, usable }
    }

    #[test]
    fn the_first_page_and_empty_ranges_are_left_out_and_the_rest_is_sorted() {
        let raw = [
            range(0x10_0000, 0x2000_0000, true),
            range(0xf_0000, 0x10_0000, false),
            range(5, 5, true),
            range(0, 0x9_fc00, true),
        ];
        let map = normalise(&raw).unwrap();
        assert_eq!(
            map,
            [
                range(0x1000, 0x9_fc00, true),
                range(0xf_0000, 0x10_0000, false),
                range(0x10_0000, 0x2000_0000, true)
            ]
        );
    }

    #[test]
    fn ranges_that_overlap_or_wrap_are_refused() {
        let overlap = [range(0x1000, 0x3000, true), range(0x2fff, 0x4000, false)];
        assert!(matches!(normalise(&overlap), Err(MapError::Overlap(..))));
        let wraps = MemoryRange { start: u64::MAX, bytes: 2, usable: true };
        assert_eq!(normalise(&[wraps]), Err(MapError::Wraps(wraps)));
        assert_eq!(normalise(&[wraps; 65]), Err(MapError::Ranges(65)));
    }

    #[test]
    fn only_whole_frames_of_usable_memory_count() {
        let frames = whole_frames(&range(0x1001, 0x4fff, true)).unwrap();
        assert_eq!((frames.start().get(), frames.bytes()), (0x2000, 0x2000));
        assert_eq!(whole_frames(&range(0x1001, 0x1fff, true)), None);
        assert_eq!(whole_frames(&range(0x1000, 0x9000, false)), None);
    }

    #[test]
    fn a_run_must_lie_in_one_range_of_the_right_kind() {
        let map = [range(0x1000, 0x3000, true), range(0x4000, 0x5000, false)];
        assert!(holds(&map, 0x1000, 0x2000, true));
        assert!(!holds(&map, 0x1000, 0x2001, true));
        assert!(!holds(&map, 0xfff, 1, true));
        assert!(!holds(&map, 0x3000, 1, true));
        assert!(!holds(&map, 0x4000, 8, true));
        assert!(holds(&map, 0x4000, 8, false));
        assert!(!holds(&map, u64::MAX, 8, false));
    }
}
