//! The cyclic buffer of a stream, and positions in it counted over all laps. Nothing here touches a register.

use super::error::HdaError;
use crate::platform::Platform;
use spec::{Iova, PhysAddr};

/// Frames a second of both streams.
pub const RATE: u64 = 48_000;
/// Bytes in a frame: two samples of 16 bits.
pub const FRAME_BYTES: u32 = 4;
/// Bytes in one entry of the list of buffer descriptors (HDA 3.6.3).
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Fewest and most entries of the list (HDA 3.3.39: the last valid index is at least 1).
pub const ENTRIES: core::ops::RangeInclusive<u16> = 2..=256;
/// Alignment of list, buffers and position buffer (HDA 3.6.3).
pub const ALIGNMENT: u64 = 128;

/// A cyclic buffer as the controller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Where the list of buffer descriptors is, in the controller's I/O address space.
    pub descriptors: Iova,
    /// Entries in the list.
    pub entries: u16,
    /// Length of the whole ring in bytes.
    pub bytes: u32,
}

impl Ring {
    /// A ring of `bytes` bytes in `entries` equal parts. `list` is where the list of descriptors is to be.
    ///
    /// # Errors
    /// [`HdaError::BadRing`] or [`HdaError::BadAddress`].
    pub fn new(descriptors: Iova, entries: u16, bytes: u32) -> Result<Self, HdaError> {
        let part = bytes.checked_div(entries.into()).unwrap_or(0);
        let whole = part != 0 && part * u32::from(entries) == bytes && u64::from(part) % ALIGNMENT == 0;
        if !ENTRIES.contains(&entries) || !whole {
            return Err(HdaError::BadRing { entries, bytes });
        }
        if descriptors.get() % ALIGNMENT != 0 {
            return Err(HdaError::BadAddress { address: descriptors });
        }
        Ok(Self { descriptors, entries, bytes })
    }

    /// Frames in one lap. Never 0.
    #[must_use]
    pub fn frames(&self) -> u64 {
        u64::from(self.bytes / FRAME_BYTES).max(1)
    }

    /// Writes the list of descriptors to RAM at `list`, which must be mapped at [`Ring::descriptors`]. `buffer` is where
    /// the ring's bytes are, adjacent, in the controller's I/O address space.
    ///
    /// # Errors
    /// [`HdaError::BadAddress`] for an unaligned buffer, [`HdaError::NoMemory`] when there is no RAM at `list`.
    pub fn write<P: Platform + ?Sized>(
        &self,
        platform: &P,
        list: PhysAddr,
        buffer: Iova,
    ) -> Result<(), HdaError> {
        if buffer.get() % ALIGNMENT != 0 || buffer.get().checked_add(self.bytes.into()).is_none() {
            return Err(HdaError::BadAddress { address: buffer });
        }
        let part = self.bytes / u32::from(self.entries);
        for index in 0..u64::from(self.entries) {
            let mut entry = [0; DESCRIPTOR_BYTES as usize];
            entry[..8].copy_from_slice(&buffer.plus(index * u64::from(part)).get().to_le_bytes());
            entry[8..12].copy_from_slice(&part.to_le_bytes());
            platform.write(list.plus(index * DESCRIPTOR_BYTES), &entry)?;
        }
        Ok(())
    }
}

/// A position of a stream, counted in frames from its start over all laps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Frames since the stream was started.
    pub frames: u64,
    /// When it was so, on the machine's clock, in nanoseconds.
    pub at: u64,
}

impl Position {
    /// The position at time `now`, when the hardware says that the stream is `offset` frames into a lap of `lap` frames:
    /// of all positions with this offset, the one nearest to what the clock makes of `self`. Right as long as the
    /// device's clock and ours differ by less than half a lap since `self`. Never before `self`.
    #[must_use]
    pub fn advanced(self, offset: u64, lap: u64, now: u64) -> Self {
        let elapsed = u128::from(now.saturating_sub(self.at)) * u128::from(RATE) / 1_000_000_000;
        let expected = self.frames.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX / 2));
        let lap = lap.max(1);
        let here = (expected - expected % lap).saturating_add(offset % lap);
        let candidates = [here.checked_sub(lap), Some(here), here.checked_add(lap)];
        let nearest = candidates.into_iter().flatten().min_by_key(|frames| frames.abs_diff(expected));
        Self { frames: nearest.unwrap_or(here).max(self.frames), at: now }
    }
}
