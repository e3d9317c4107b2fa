//! One kernel's books of free frames.

use spec::{Extent, Frame};
use std::collections::BTreeMap;

/// Free frames as runs: first frame and count, never adjacent, never overlapping.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    free: BTreeMap<u64, u64>,
}

impl Frames {
    /// Adds a run, joining it to its neighbours. Frames that are free already must not be given.
    pub(crate) fn give(&mut self, run: Extent) {
        let (mut first, mut end) = (run.first().number(), run.end().number());
        if let Some((&f, &n)) = self.free.range(..=first).next_back() {
            assert!(f + n <= first, "frames were given back twice: {run}");
            if f + n == first {
                first = f;
                self.free.remove(&f);
            }
        }
        if let Some((&f, &n)) = self.free.range(first..).next() {
            assert!(end <= f, "frames were given back twice: {run}");
            if f == end {
                end = f + n;
                self.free.remove(&f);
            }
        }
        self.free.insert(first, end - first);
    }

    /// Takes whatever of a run is free.
    pub(crate) fn take(&mut self, run: Extent) {
        let (first, end) = (run.first().number(), run.end().number());
        let before = self.free.range(..first).next_back().map(|(&f, &n)| (f, n));
        let within: Vec<(u64, u64)> = self.free.range(first..end).map(|(&f, &n)| (f, n)).collect();
        for (f, n) in before.into_iter().chain(within) {
            if f + n <= first {
                continue;
            }
            self.free.remove(&f);
            if f < first {
                self.free.insert(f, first - f);
            }
            if end < f + n {
                self.free.insert(end, f + n - end);
            }
        }
    }

    /// Finds and takes `count` frames at a multiple of `align`: the lowest at or above frame `above`, or the lowest there are.
    pub(crate) fn allocate(&mut self, count: u64, align: u64, above: u64) -> Option<Extent> {
        let found = self.find(count, align, above).or_else(|| self.find(count, align, 0))?;
        let run = Extent::new(Frame::new(found), count)?;
        self.take(run);
        Some(run)
    }

    fn find(&self, count: u64, align: u64, above: u64) -> Option<u64> {
        self.free.iter().find_map(|(&first, &n)| {
            let at = first.max(above).checked_next_multiple_of(align)?;
            (at.checked_add(count)? <= first + n).then_some(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> Extent {
        Extent::new(Frame::new(first), count).unwrap()
    }

    #[test]
    fn what_was_taken_is_not_given_out_and_comes_back_joined() {
        let mut frames = Frames::default();
        frames.give(run(10, 20));
        frames.take(run(14, 2));
        assert_eq!(frames.allocate(4, 4, 0), Some(run(16, 4)));
        assert_eq!(frames.allocate(4, 1, 0), Some(run(10, 4)));
        frames.give(run(14, 2));
        frames.give(run(10, 4));
        frames.give(run(16, 4));
        assert_eq!(frames.allocate(20, 1, 0), Some(run(10, 20)));
        assert_eq!(frames.allocate(1, 1, 0), None);
    }

    #[test]
    fn a_wish_for_high_frames_is_met_where_it_can_be() {
        let mut frames = Frames::default();
        frames.give(run(10, 20));
        frames.give(run(100, 4));
        assert_eq!(frames.allocate(4, 1, 50), Some(run(100, 4)));
        assert_eq!(frames.allocate(4, 1, 50), Some(run(10, 4)));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_twice_is_a_mistake() {
        let mut frames = Frames::default();
        frames.give(run(10, 4));
        frames.give(run(12, 1));
    }
}
