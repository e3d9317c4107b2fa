//! Extents in fixed storage, dense and kept in order, so that looking one up stays cheap with many scattered runs.

use crate::error::Full;
use core::cmp::Reverse;
use spec::Extent;

/// Something that lies at an extent.
pub(crate) trait Located: Copy {
    fn extent(&self) -> Extent;
}

/// Entries in storage that the host gave: the first `length` slots hold one each, the rest none.
///
/// # Invariants
/// Ascending by extent, except between [`List::push`] and [`List::sort`], and where an owner sorts otherwise.
#[derive(Debug)]
pub(crate) struct List<'s, T> {
    slots: &'s mut [Option<T>],
    length: usize,
    what: &'static str,
}

impl<'s, T: Located> List<'s, T> {
    /// An empty list over `slots`. `what` names the entries in errors.
    pub(crate) fn new(slots: &'s mut [Option<T>], what: &'static str) -> Self {
        slots.fill(None);
        Self { slots, length: 0, what }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.slots[..self.length].iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots[..self.length].iter_mut().flatten()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.slots.get(index)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.slots.get_mut(index)?.as_mut()
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.get_mut(self.length.checked_sub(1)?)
    }

    pub(crate) fn position(&self, test: impl FnMut(&T) -> bool) -> Option<usize> {
        self.iter().position(test)
    }

    /// Appends; the order is up to the caller.
    pub(crate) fn push(&mut self, entry: T) -> Result<(), Full> {
        let full = Full { what: self.what, capacity: self.slots.len() };
        *self.slots.get_mut(self.length).ok_or(full)? = Some(entry);
        self.length += 1;
        Ok(())
    }

    /// Puts `entry` where it belongs by its extent.
    pub(crate) fn insert(&mut self, entry: T) -> Result<(), Full> {
        self.push(entry)?;
        let at =
            self.slots[..self.length - 1].partition_point(|s| start(s) <= entry.extent().first().number());
        self.slots[at..self.length].rotate_right(1);
        Ok(())
    }

    pub(crate) fn remove(&mut self, index: usize) {
        if index < self.length {
            self.slots[index..self.length].rotate_left(1);
            self.length -= 1;
            self.slots[self.length] = None;
        }
    }

    /// Keeps the entries that `keep` holds for, in their order.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut kept = 0;
        for index in 0..self.length {
            if self.slots[index].as_ref().is_some_and(&mut keep) {
                self.slots.swap(kept, index);
                kept += 1;
            }
        }
        self.slots[kept..self.length].fill(None);
        self.length = kept;
    }

    /// Puts everything in order by extent, longer ones first where two start together.
    pub(crate) fn sort(&mut self) {
        self.sort_by_key(|t| (t.extent().first(), Reverse(t.extent().count())));
    }

    /// Puts everything in another order. Lookups by extent do not work until [`List::sort`].
    pub(crate) fn sort_by_key<K: Ord>(&mut self, mut key: impl FnMut(&T) -> K) {
        self.slots[..self.length].sort_unstable_by_key(|s| s.as_ref().map(&mut key));
    }

    /// The index of the first entry that `before` does not hold for, in a list that is partitioned by it.
    pub(crate) fn partition_point(&self, mut before: impl FnMut(&T) -> bool) -> usize {
        self.slots[..self.length].partition_point(|s| s.as_ref().is_some_and(&mut before))
    }

    /// Index of an entry that shares a frame with `extent`. The entries must be in order and disjoint.
    pub(crate) fn overlapping(&self, extent: Extent) -> Option<usize> {
        let index = self.partition_point(|t| t.extent().end() <= extent.first());
        self.get(index).filter(|t| t.extent().overlaps(extent)).map(|_| index)
    }

    /// The first two neighbours that share a frame: their indices are the one given and the next.
    pub(crate) fn first_overlap(&self) -> Option<usize> {
        let pairs = self.slots[..self.length].windows(2);
        let mut overlaps = pairs.map(|pair| match pair {
            [Some(a), Some(b)] => a.extent().overlaps(b.extent()),
            _ => false,
        });
        overlaps.position(|o| o)
    }
}

fn start<T: Located>(slot: &Option<T>) -> u64 {
    slot.as_ref().map_or(u64::MAX, |t| t.extent().first().number())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::Frame;

    impl Located for Extent {
        fn extent(&self) -> Extent {
            *self
        }
    }

    fn run(first: u64, count: u64) -> Extent {
        Extent::new(Frame::new(first), count).expect("a run")
    }

    #[test]
    fn insertion_in_any_order_leaves_the_list_ascending_and_lookups_exact() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut slots = [Some(run(99, 1)); 3];
            let mut list = List::new(&mut slots, "runs");
            for i in order {
                list.insert(run(10 * i, 5)).expect("room");
            }
            assert!(list.iter().zip(list.iter().skip(1)).all(|(a, b)| a < b));
            assert_eq!(list.overlapping(run(14, 1)), Some(1));
            assert_eq!(list.overlapping(run(5, 5)), None);
            assert_eq!(list.overlapping(run(4, 100)), Some(0));
            assert_eq!(list.overlapping(run(25, 1)), None);
            assert!(list.insert(run(50, 1)).is_err());
        }
    }

    #[test]
    fn removal_and_retention_leave_no_gap() {
        let mut slots = [None; 4];
        let mut list = List::new(&mut slots, "runs");
        (0..4).for_each(|i| list.insert(run(10 * i, 1)).expect("room"));
        list.remove(1);
        list.retain(|e| e.first().number() != 20);
        assert!(list.iter().eq(&[run(0, 1), run(30, 1)]));
        assert_eq!((list.len(), list.get(2)), (2, None));
        list.insert(run(20, 1)).expect("freed slots are used again");
    }

    #[test]
    fn an_overlap_shows_after_sorting_wherever_it_was_pushed() {
        let mut slots = [None; 4];
        let mut list = List::new(&mut slots, "runs");
        for e in [run(30, 4), run(0, 4), run(10, 4), run(31, 1)] {
            list.push(e).expect("room");
        }
        list.sort();
        assert_eq!(list.first_overlap(), Some(2));
    }
}
