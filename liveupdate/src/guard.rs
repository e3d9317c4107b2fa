//! Reserve first, commit later, undo by itself.
//!
//! A [`Reservations`] holds frames that were reserved and the right to sleep. Dropped before it is committed, it takes
//! the reservations back, last first: a step that fails half way leaves the host's books as they were.

use crate::host::{Atomic, FrameKeeper, KeepError, MaySleep, Unit};
use crate::mutant::{self, Mutant};
use spec::Extent;

/// Up to `N` reserved runs that are not committed yet.
pub(crate) struct Reservations<'h, 'c, K: FrameKeeper, const N: usize> {
    keeper: &'h K,
    ctx: &'c mut MaySleep,
    list: List<N>,
}

struct List<const N: usize> {
    runs: [Option<Extent>; N],
    used: usize,
}

impl<'h, 'c, K: FrameKeeper, const N: usize> Reservations<'h, 'c, K, N> {
    pub(crate) fn new(keeper: &'h K, ctx: &'c mut MaySleep) -> Self {
        Self { keeper, ctx, list: List { runs: [None; N], used: 0 } }
    }

    /// Reserves one more run; a run that is reserved here already counts once.
    pub(crate) fn reserve(&mut self, run: Extent) -> Result<(), KeepError> {
        if self.list.runs.contains(&Some(run)) {
            return Ok(());
        }
        let slot =
            self.list.runs.get_mut(self.list.used).ok_or(KeepError::NoMemory { frames: run.count() })?;
        let reserved = match mutant::on(Mutant::NoReserve) {
            true => Ok(()),
            false => self.keeper.reserve(self.ctx, run),
        };
        if reserved.is_ok() || mutant::on(Mutant::UndoTooMuch) {
            *slot = Some(run);
            self.list.used += 1;
        }
        reserved
    }

    /// Takes the unit's lock, runs `check` and `record` under it, and commits every run if `check` agrees. When it does
    /// not, everything reserved is taken back.
    pub(crate) fn commit_under<U: Unit, E>(
        mut self,
        unit: &U,
        check: impl FnOnce(&Atomic) -> Result<(), E>,
        record: impl FnOnce(&Atomic),
    ) -> Result<(), E> {
        let (keeper, list) = (self.keeper, &mut self.list);
        unit.locked(self.ctx, |atomic| {
            check(atomic)?;
            for run in list.runs.iter_mut().filter_map(Option::take) {
                keeper.commit(atomic, run);
            }
            record(atomic);
            Ok(())
        })
    }
}

impl<K: FrameKeeper, const N: usize> Drop for Reservations<'_, '_, K, N> {
    fn drop(&mut self) {
        for run in self.list.runs.iter_mut().rev().filter_map(Option::take) {
            self.keeper.release(self.ctx, run);
        }
    }
}
