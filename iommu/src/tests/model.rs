//! What a page table means, as a map of intervals: nothing here knows of levels or entries.

use crate::table::format::Access;
use alloc::collections::BTreeMap;

/// Mapped intervals by their first address: length, target, access. They do not overlap.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model(pub(crate) BTreeMap<u64, (u64, u64, Access)>);

impl Model {
    /// Whether anything in the range is mapped.
    pub(crate) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.0.range(..end).next_back().is_some_and(|(at, (bytes, ..))| at + bytes > start)
    }

    pub(crate) fn map(&mut self, start: u64, bytes: u64, phys: u64, access: Access) -> bool {
        if self.overlaps(start, start + bytes) {
            return false;
        }
        self.0.insert(start, (bytes, phys, access));
        true
    }

    /// Removes everything in the range; says how many bytes that was.
    pub(crate) fn unmap(&mut self, start: u64, end: u64) -> u64 {
        self.cut(start);
        self.cut(end);
        let gone: alloc::vec::Vec<u64> = self.0.range(start..end).map(|(at, _)| *at).collect();
        gone.into_iter().filter_map(|at| self.0.remove(&at)).map(|(bytes, ..)| bytes).sum()
    }

    /// Makes `at` a border between intervals.
    fn cut(&mut self, at: u64) {
        let Some((&start, &(bytes, phys, access))) = self.0.range(..at).next_back() else { return };
        if start + bytes > at {
            self.0.insert(start, (at - start, phys, access));
            self.0.insert(at, (start + bytes - at, phys + (at - start), access));
        }
    }

    pub(crate) fn translate(&self, iova: u64) -> Option<(u64, Access)> {
        let (start, (bytes, phys, access)) = self.0.range(..=iova).next_back()?;
        (iova - start < *bytes).then(|| (phys + (iova - start), *access))
    }

    /// The same with touching intervals joined, so that two ways of saying the same compare equal.
    pub(crate) fn joined(&self) -> BTreeMap<u64, (u64, u64, Access)> {
        let mut joined: BTreeMap<u64, (u64, u64, Access)> = BTreeMap::new();
        for (&start, &(bytes, phys, access)) in &self.0 {
            if let Some(mut last) = joined.last_entry() {
                let (before, (length, to, same)) = (*last.key(), *last.get());
                if before + length == start && to + length == phys && same == access {
                    last.get_mut().0 += bytes;
                    continue;
                }
            }
            joined.insert(start, (bytes, phys, access));
        }
        joined
    }
}
