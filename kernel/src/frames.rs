//! Who owns which frame of usable memory.
//!
//! The allocator starts with all usable memory, loses the scratch areas and (in an incoming kernel) every preserved frame,
//! and hands out what is left. Its books are a sorted list of free runs on the heap; a machine without preserved memory
//! has a handful of them.

use alloc::vec::Vec;
use spec::{Extent, Frame, PhysAddr};

/// Free frames, as runs.
///
/// # Invariants
/// `free` is ascending; runs neither overlap nor touch.
#[derive(Debug, Default)]
pub struct FrameAllocator {
    free: Vec<Extent>,
}

impl FrameAllocator {
    /// An allocator of these runs, which must not overlap.
    #[must_use]
    pub fn new(usable: impl IntoIterator<Item = Extent>) -> Self {
        let mut allocator = Self::default();
        for run in usable {
            allocator.free(run);
        }
        allocator
    }

    /// The free runs, ascending.
    #[must_use]
    pub fn free_runs(&self) -> &[Extent] {
        &self.free
    }

    /// Takes whatever of `run` is free, so that it is never handed out.
    pub fn reserve(&mut self, run: Extent) {
        let from = self.free.partition_point(|free| free.end() <= run.first());
        let to = self.free.partition_point(|free| free.first() < run.end());
        if from >= to {
            return;
        }
        let before = between(self.free[from].first(), run.first());
        let after = between(run.end(), self.free[to - 1].end());
        // INVARIANT: what is left of a run on either side is shorter than it was, so order and gaps stay.
        self.free.splice(from..to, before.into_iter().chain(after));
    }

    /// Takes `count` adjacent frames at a multiple of `align` frames (a power of two): the lowest at or above `above`, or
    /// else the lowest of all. `None` when no free run has them.
    pub fn allocate(&mut self, count: u64, align: u64, above: PhysAddr) -> Option<Extent> {
        let lowest = above.get().div_ceil(spec::PAGE_SIZE);
        let run = self.find(count, align, lowest).or_else(|| self.find(count, align, 0))?;
        self.reserve(run);
        Some(run)
    }

    fn find(&self, count: u64, align: u64, lowest: u64) -> Option<Extent> {
        self.free.iter().find_map(|free| {
            let first = free.first().number().max(lowest).checked_next_multiple_of(align)?;
            let run = Extent::new(Frame::new(first), count)?;
            free.covers(run).then_some(run)
        })
    }

    /// Gives frames back. Frames that are free already stay free.
    pub fn free(&mut self, run: Extent) {
        let from = self.free.partition_point(|free| free.end() < run.first());
        let to = self.free.partition_point(|free| free.first() <= run.end());
        let mut merged = run;
        if from < to {
            let first = run.first().min(self.free[from].first());
            let end = run.end().max(self.free[to - 1].end());
            merged = between(first, end).unwrap_or(run);
        }
        // INVARIANT: every run that touched or overlapped is in `merged` now.
        self.free.splice(from..to, [merged]);
    }
}

fn between(first: Frame, end: Frame) -> Option<Extent> {
    Extent::new(first, end.number().checked_sub(first.number())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, end: u64) -> Extent {
        between(Frame::new(first), Frame::new(end)).unwrap()
    }

    fn runs(allocator: &FrameAllocator) -> Vec<(u64, u64)> {
        allocator.free_runs().iter().map(|r| (r.first().number(), r.end().number())).collect()
    }

    #[test]
    fn reserved_frames_are_never_handed_out() {
        let mut frames = FrameAllocator::new([run(0, 10), run(20, 30)]);
        frames.reserve(run(5, 25));
        assert_eq!(runs(&frames), [(0, 5), (25, 30)]);
        let mut seen = Vec::new();
        while let Some(one) = frames.allocate(1, 1, PhysAddr::new(0)) {
            seen.push(one.first().number());
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]);
    }

    #[test]
    fn a_reservation_inside_a_run_splits_it_and_one_outside_changes_nothing() {
        let mut frames = FrameAllocator::new([run(0, 10)]);
        frames.reserve(run(4, 5));
        frames.reserve(run(40, 50));
        frames.reserve(run(4, 5));
        assert_eq!(runs(&frames), [(0, 4), (5, 10)]);
    }

    #[test]
    fn alignment_holds_and_the_skipped_frames_stay_free() {
        let mut frames = FrameAllocator::new([run(3, 40)]);
        let got = frames.allocate(8, 16, PhysAddr::new(0)).unwrap();
        assert_eq!(got, run(16, 24));
        assert_eq!(runs(&frames), [(3, 16), (24, 40)]);
    }

    #[test]
    fn above_is_a_wish_and_not_a_condition() {
        let mut frames = FrameAllocator::new([run(0, 10), run(100, 104)]);
        let above = PhysAddr::new(100 * 4096 - 1);
        assert_eq!(frames.allocate(4, 1, above), Some(run(100, 104)));
        assert_eq!(frames.allocate(4, 1, above), Some(run(0, 4)));
        assert_eq!(frames.allocate(7, 1, above), None);
    }

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut frames = FrameAllocator::new([run(0, 30)]);
        let a = frames.allocate(10, 1, PhysAddr::new(0)).unwrap();
        let b = frames.allocate(10, 1, PhysAddr::new(0)).unwrap();
        frames.free(a);
        assert_eq!(runs(&frames), [(0, 10), (20, 30)]);
        frames.free(b);
        assert_eq!(runs(&frames), [(0, 30)]);
    }

    #[test]
    fn an_empty_allocator_and_absurd_sizes_give_nothing() {
        let mut frames = FrameAllocator::default();
        assert_eq!(frames.allocate(1, 1, PhysAddr::new(0)), None);
        frames.free(run(1, 2));
        assert_eq!(frames.allocate(u64::MAX, 1, PhysAddr::new(0)), None);
        assert_eq!(frames.allocate(1, 1 << 63, PhysAddr::new(u64::MAX)), None);
    }

    #[test]
    fn a_long_random_history_agrees_with_a_bitmap() {
        let mut frames = FrameAllocator::new([run(0, 64)]);
        let mut taken = [false; 64];
        let mut held: Vec<Extent> = Vec::new();
        let mut state = 7u64;
        for _ in 0..4000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let dice = state >> 33;
            if !dice.is_multiple_of(3) {
                if let Some(got) =
                    frames.allocate(1 + dice % 5, 1 << (dice % 3), PhysAddr::new(dice % 64 * 4096))
                {
                    for frame in got.first().number()..got.end().number() {
                        assert!(!taken[frame as usize], "frame {frame} was handed out twice");
                        taken[frame as usize] = true;
                    }
                    held.push(got);
                }
            } else if !held.is_empty() {
                let back = held.swap_remove(dice as usize % held.len());
                frames.free(back);
                taken[back.first().number() as usize..back.end().number() as usize].fill(false);
            }
            let free: u64 = frames.free_runs().iter().map(|r| r.count()).sum();
            assert_eq!(free, taken.iter().filter(|t| !**t).count() as u64);
        }
    }
}
