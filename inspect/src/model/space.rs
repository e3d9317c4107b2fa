//! One page table, summed up.

use super::Limits;
use crate::tables::{self, Access, Budget, Fault, Hardware, Leaf, MAX_LEVELS, Stage, Top, Visit};
use audit::Image;
use spec::PhysAddr;
use std::ops::ControlFlow;

/// A page table: what an I/O address space translates.
#[derive(Debug)]
pub struct Space {
    /// Which.
    pub top: Top,
    /// How many attachments use it.
    pub users: u64,
    /// Leaves at each level.
    pub leaves: [u64; MAX_LEVELS],
    /// Tables at each level.
    pub tables: [u64; MAX_LEVELS],
    /// Bytes of I/O addresses that are translated.
    pub mapped: u64,
    /// What is translated, adjacent leaves merged, ascending.
    pub ranges: Vec<Range>,
    /// Ranges that were not kept.
    pub ranges_left_off: u64,
    /// The frames of its tables, with their levels, in the order met.
    pub frames: Vec<(PhysAddr, u8)>,
    /// What is wrong with it.
    pub troubles: Vec<Trouble>,
    /// Troubles that were not kept.
    pub troubles_left_off: u64,
}

/// Adjacent addresses that become adjacent addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First I/O address.
    pub iova: u64,
    /// What it becomes.
    pub target: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
    /// What may be done there.
    pub access: Access,
    /// Level of the leaves.
    pub level: u8,
}

/// Something wrong within the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// The table or the entry.
    pub at: PhysAddr,
    /// Level of the table.
    pub level: u8,
    /// First address that it concerns.
    pub iova: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// Joins a leaf to the ranges: to the last one, when it goes on where that one ends.
pub(crate) fn join(ranges: &mut [Range], range: Range) -> bool {
    let Some(last) = ranges.last_mut() else { return false };
    let adjacent = last.iova.checked_add(last.bytes) == Some(range.iova)
        && last.target.checked_add(last.bytes) == Some(range.target);
    if !adjacent || last.access != range.access || last.level != range.level {
        return false;
    }
    last.bytes = last.bytes.saturating_add(range.bytes);
    true
}

/// Walks a page table and sums it up.
pub(crate) fn sum_up(
    image: &dyn Image,
    top: Top,
    users: u64,
    hardware: Hardware,
    budget: &mut Budget,
    limits: Limits,
) -> Space {
    let mut space = Space {
        top,
        users,
        leaves: [0; MAX_LEVELS],
        tables: [0; MAX_LEVELS],
        mapped: 0,
        ranges: Vec::new(),
        ranges_left_off: 0,
        frames: Vec::new(),
        troubles: Vec::new(),
        troubles_left_off: 0,
    };
    // A walk that never breaks has nothing to tell by its end.
    let _ = tables::walk_merged(image, top, Some(hardware), budget, &mut |visit| {
        space.take(image, &visit, limits);
        ControlFlow::Continue(())
    });
    space
}

/// Leaves as ranges; those of a nested table as what the second stage makes of them.
fn pieces(image: &dyn Image, top: Top, leaf: &Leaf<'_>, f: &mut dyn FnMut(Range)) {
    let (bytes, level) = (leaf.bytes(), leaf.level);
    let Some((second, levels)) = top.through else {
        return f(Range { iova: leaf.iova, target: leaf.target, bytes, access: leaf.access, level });
    };
    let mut done = 0;
    while done < bytes {
        let address = leaf.target.get().wrapping_add(done);
        let piece = tables::look_up(image, second, levels, address);
        let here = piece.map_or(spec::PAGE_SIZE, |(_, _, bytes)| bytes).min(bytes - done);
        if let Some((target, access, _)) = piece {
            let (iova, access) = (leaf.iova.wrapping_add(done), leaf.access.and(access));
            f(Range { iova, target, bytes: here, access, level });
        }
        done += here;
    }
}

impl Space {
    fn take(&mut self, image: &dyn Image, visit: &Visit<'_>, limits: Limits) {
        match *visit {
            Visit::Table { at, level, again, .. } => {
                if !again {
                    self.tables[usize::from(level)] += 1;
                    self.frames.push((at, level));
                }
            }
            Visit::Leaf(ref leaf) => {
                self.leaves[usize::from(leaf.level)] += leaf.count;
                self.mapped = self.mapped.saturating_add(leaf.bytes());
                pieces(image, self.top, leaf, &mut |range| self.push(range, limits));
            }
            Visit::Problem { at, level, iova, fault } => {
                if self.troubles.len() < limits.problems {
                    self.troubles.push(Trouble { at, level, iova, fault });
                } else {
                    self.troubles_left_off += 1;
                }
            }
        }
    }

    /// Passes on every range: those that were kept, or where some were not, all of them by another walk, where of two that
    /// adjoin only leaves of one table are merged.
    pub(crate) fn for_each_range(&self, image: &dyn Image, hardware: Hardware, f: &mut dyn FnMut(Range)) {
        if self.ranges_left_off == 0 {
            return self.ranges.iter().copied().for_each(f);
        }
        let mut budget = Budget { tables: self.table_count(), ..Budget::default() };
        let _ = tables::walk_merged(image, self.top, Some(hardware), &mut budget, &mut |visit| {
            if let Visit::Leaf(ref leaf) = visit {
                pieces(image, self.top, leaf, f);
            }
            ControlFlow::Continue(())
        });
    }

    fn push(&mut self, range: Range, limits: Limits) {
        if self.ranges_left_off == 0 && join(&mut self.ranges, range) {
            return;
        }
        if self.ranges.len() < limits.ranges {
            self.ranges.push(range);
        } else {
            self.ranges_left_off += 1;
        }
    }

    /// The number of leaves.
    #[must_use]
    pub fn leaf_count(&self) -> u64 {
        self.leaves.iter().sum()
    }

    /// The number of tables.
    #[must_use]
    pub fn table_count(&self) -> u64 {
        self.tables.iter().sum()
    }

    /// Its format in words: `second stage, 4 levels`.
    #[must_use]
    pub fn format(&self) -> String {
        let nested = if self.top.through.is_some() { ", nested" } else { "" };
        debug_assert!(self.top.through.is_none() || self.top.stage == Stage::First);
        format!("{}, {} levels{nested}", self.top.stage.words(), self.top.levels)
    }
}
