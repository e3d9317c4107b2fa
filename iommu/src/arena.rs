//! Frames for tables, out of contiguous chunks: preserving a domain's tables is then a matter of a few extents.
//!
//! Frames are taken in two steps. [`Arena::reserve`] may sleep and fail, and fails without a trace; [`Arena::take`] then
//! cannot. Within a chunk frames are taken from the bottom up and reused lowest first, so what is in use is a prefix.

use crate::Hal;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use spec::{Extent, Frame, PhysAddr};

/// Frames in a chunk of a domain's arena: 2 MiB.
pub const DOMAIN_CHUNK: u64 = 512;
/// Frames in a chunk of a unit's arena. A unit has one root table and as many context tables as buses with requesters.
pub const UNIT_CHUNK: u64 = 32;

#[derive(Debug)]
struct Chunk {
    run: Extent,
    /// Frames below this offset have been taken; those in `free` were given back since.
    bump: u64,
    /// Offsets below `bump` that are free. Never holds `bump - 1`.
    free: BTreeSet<u64>,
}

impl Chunk {
    fn available(&self) -> u64 {
        self.run.count() - self.bump + self.free.len() as u64
    }
    fn take(&mut self) -> Option<Frame> {
        let offset = match self.free.pop_first() {
            Some(offset) => offset,
            None if self.bump < self.run.count() => {
                self.bump += 1;
                self.bump - 1
            }
            None => return None,
        };
        Some(Frame::new(self.run.first().number() + offset))
    }
    fn give(&mut self, frame: Frame) -> bool {
        let offset = frame.number() - self.run.first().number();
        if offset >= self.bump || !self.free.insert(offset) {
            return false;
        }
        while self.bump > 0 && self.free.remove(&(self.bump - 1)) {
            self.bump -= 1;
        }
        true
    }
}

/// No frames to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfFrames {
    /// How many were asked for.
    pub frames: u64,
}

/// Table frames of one domain or unit.
///
/// # Invariants
/// Every frame that can be taken is zero: chunks come zeroed from the host, and whoever gives a frame back has zeroed it.
/// Chunks are in ascending order.
#[derive(Debug)]
pub struct Arena {
    chunks: Vec<Chunk>,
    chunk_frames: u64,
    available: u64,
    /// No chunk before this one has a frame to take.
    hint: usize,
}

impl Arena {
    /// An arena that grows by chunks of `chunk_frames`, a power of two.
    #[must_use]
    pub const fn new(chunk_frames: u64) -> Self {
        Self { chunks: Vec::new(), chunk_frames, available: 0, hint: 0 }
    }

    /// An arena around frames that are all in use, such as the tables of an adopted domain.
    #[must_use]
    pub fn around(runs: &[Extent], chunk_frames: u64) -> Self {
        let mut arena = Self::new(chunk_frames);
        for &run in runs {
            arena.insert(Chunk { run, bump: run.count(), free: BTreeSet::new() });
        }
        arena
    }

    fn insert(&mut self, chunk: Chunk) {
        let at = self.chunks.partition_point(|c| c.run < chunk.run);
        self.available += chunk.available();
        self.chunks.insert(at, chunk);
        self.hint = 0;
    }

    /// Sees to it that `frames` frames can be taken. Where the host has no whole chunk, smaller ones do.
    ///
    /// # Errors
    /// [`OutOfFrames`]; what was asked of the host meanwhile is given back.
    pub fn reserve<H: Hal>(&mut self, hal: &H, ctx: &mut MaySleep, frames: u64) -> Result<(), OutOfFrames> {
        let mut added = Vec::new();
        let mut size = self.chunk_frames;
        while self.available < frames {
            if let Some(run) = hal.allocate(ctx, size, size) {
                added.push(run);
                self.insert(Chunk { run, bump: 0, free: BTreeSet::new() });
            } else if size > 1 {
                size = (size / 8).max(1);
            } else {
                self.available -= added.iter().map(|run| run.count()).sum::<u64>();
                self.chunks.retain(|chunk| !added.contains(&chunk.run));
                self.hint = 0;
                added.into_iter().for_each(|run| hal.free(ctx, run));
                return Err(OutOfFrames { frames });
            }
        }
        Ok(())
    }

    /// A zeroed frame; `None` when more are taken than were reserved.
    pub fn take(&mut self) -> Option<PhysAddr> {
        while let Some(chunk) = self.chunks.get_mut(self.hint) {
            if let Some(frame) = chunk.take() {
                self.available -= 1;
                return Some(frame.start());
            }
            self.hint += 1;
        }
        None
    }

    /// Takes a frame back that is zero again and that hardware has forgotten. Whether it is one of the arena's.
    pub fn give(&mut self, at: PhysAddr) -> bool {
        let after = self.chunks.partition_point(|c| c.run.start() <= at);
        let Some(i) = after.checked_sub(1) else { return false };
        let chunk = &mut self.chunks[i];
        if !chunk.run.contains(at.frame()) || !chunk.give(at.frame()) {
            return false;
        }
        self.available += 1;
        self.hint = self.hint.min(i);
        true
    }

    /// Gives chunks that nothing is taken from back to the host, all but one.
    pub fn trim<H: Hal>(&mut self, hal: &H, ctx: &mut MaySleep) {
        let mut kept = false;
        let mut i = 0;
        while i < self.chunks.len() {
            if self.chunks[i].bump > 0 || !core::mem::replace(&mut kept, true) {
                i += 1;
                continue;
            }
            let chunk = self.chunks.remove(i);
            self.available -= chunk.available();
            hal.free(ctx, chunk.run);
        }
        self.hint = 0;
    }

    /// Whether `frame` lies in a chunk and is or was taken.
    #[must_use]
    pub fn holds(&self, frame: Frame) -> bool {
        self.chunks.iter().any(|c| c.run.contains(frame) && frame.number() - c.run.first().number() < c.bump)
    }

    /// Calls `f` with runs that hold every taken frame: the used prefix of each chunk, adjacent ones joined.
    pub fn extents(&self, f: &mut dyn FnMut(Extent)) {
        let mut last: Option<Extent> = None;
        for chunk in &self.chunks {
            let Some(used) = Extent::new(chunk.run.first(), chunk.bump) else { continue };
            last = match last {
                Some(run) if run.end() == used.first() => {
                    Extent::new(run.first(), run.count() + used.count())
                }
                Some(run) => {
                    f(run);
                    Some(used)
                }
                None => Some(used),
            };
        }
        if let Some(run) = last {
            f(run);
        }
    }

    /// Frames taken and not given back.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.chunks.iter().map(|c| c.run.count()).sum::<u64>() - self.available
    }

    /// Gives every chunk back to the host. Hardware must have forgotten all of them.
    pub fn dissolve<H: Hal>(self, hal: &H, ctx: &mut MaySleep) {
        self.chunks.into_iter().for_each(|chunk| hal.free(ctx, chunk.run));
    }
}
