//! Where page tables lead that is neither preserved nor allowed (I3).
//!
//! What is fine is put together once: preserved runs and the policy's targets, as ranges that ascend and do not touch. Every
//! range of a page table is held against it once, however many requesters use the table, and also when there were too many
//! ranges to keep.

use super::{KEPT, Policy};
use crate::image::Memory;
use crate::kho::Preserved;
use crate::model::{Model, Range, Space};

/// First and last addresses, ascending; no two touch.
pub(super) struct Fine(Vec<(u64, u64)>);

/// A range that leads outside: the first byte there, and how many bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stray {
    pub(super) range: Range,
    pub(super) first: u64,
    pub(super) bytes: u64,
}

/// A page table held against what is fine.
#[derive(Debug, Default)]
pub(super) struct Outside {
    /// Ranges looked at.
    pub(super) ranges: u64,
    /// Ranges that lead outside.
    pub(super) strays: u64,
    /// Bytes there that can be read, and written.
    pub(super) readable: u64,
    pub(super) writable: u64,
    /// The first of them.
    pub(super) listed: Vec<Stray>,
}

impl Fine {
    pub(super) fn new(policy: &Policy, preserved: &[&Preserved]) -> Self {
        let runs = preserved.iter().flat_map(|preserved| &preserved.extents);
        let runs = runs.map(|run| (run.start().get(), run.start().get().saturating_add(run.bytes() - 1)));
        let mut all: Vec<(u64, u64)> = runs.chain(policy.targets.iter().copied()).collect();
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(all.len());
        for (from, to) in all {
            match merged.last_mut() {
                Some((_, last)) if from <= last.saturating_add(1) => *last = to.max(*last),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// The first byte of a range that is not fine, and how many there are.
    fn stray(&self, range: &Range) -> Option<(u64, u64)> {
        let (start, last) = (range.target.get(), range.target.get().saturating_add(range.bytes - 1));
        let (mut at, mut first, mut bytes) = (start, None, 0_u64);
        let next = self.0.partition_point(|(_, to)| *to < start);
        for (from, to) in self.0[next..].iter().take_while(|(from, _)| *from <= last) {
            if *from > at {
                first.get_or_insert(at);
                bytes += from - at;
            }
            match to.checked_add(1) {
                Some(next) => at = next,
                None => return first.map(|first| (first, bytes)),
            }
        }
        if at <= last {
            first.get_or_insert(at);
            bytes += last - at + 1;
        }
        first.map(|first| (first, bytes))
    }

    /// Holds a page table against what is fine.
    pub(super) fn judge(&self, memory: &Memory, model: &Model, space: &Space) -> Outside {
        let mut outside = Outside::default();
        space.for_each_range(memory, model.hardware, &mut |range| {
            outside.ranges += 1;
            let Some((first, bytes)) = self.stray(&range) else { return };
            outside.strays += 1;
            outside.readable = outside.readable.saturating_add(if range.access.read { bytes } else { 0 });
            outside.writable = outside.writable.saturating_add(if range.access.write { bytes } else { 0 });
            if outside.listed.len() < KEPT {
                outside.listed.push(Stray { range, first, bytes });
            }
        });
        outside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Access;
    use spec::PhysAddr;

    fn stray(targets: &[(u64, u64)], start: u64, bytes: u64) -> Option<(u64, u64)> {
        let policy = Policy { targets: targets.to_vec(), ..Policy::default() };
        let range = Range { iova: 0, target: PhysAddr::new(start), bytes, access: Access::ALL, level: 0 };
        Fine::new(&policy, &[]).stray(&range)
    }

    #[test]
    fn what_is_fine_is_merged_and_the_rest_of_a_range_is_counted() {
        let fine = [(0x5000, 0x5fff), (0x1000, 0x1fff), (0x2000, 0x2fff), (0x1800, 0x27ff)];
        assert_eq!(stray(&fine, 0x1000, 0x2000), None);
        assert_eq!(stray(&fine, 0x1000, 0x2001), Some((0x3000, 1)));
        assert_eq!(stray(&fine, 0, 0x1_0000), Some((0, 0x1000 + 0x2000 + 0xa000)));
        assert_eq!(stray(&fine, 0x5800, 0x1000), Some((0x6000, 0x800)));
        assert_eq!(stray(&fine, 0x3000, 0x2000), Some((0x3000, 0x2000)));
        assert_eq!(stray(&[(0x1000, u64::MAX)], 0, u64::MAX), Some((0, 0x1000)));
        assert_eq!(stray(&[], u64::MAX - 0xfff, 0x1000), Some((u64::MAX - 0xfff, 0x1000)));
    }
}
