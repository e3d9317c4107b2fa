//! Before anything is adopted, every byte of memory that is neither scratch nor preserved is overwritten: whatever should
//! have been preserved and was not is found out at once.

use super::fault_log::FaultLog;
use super::host::Machine;
use super::plan::POISON;
use super::trouble::Trouble;
use crate::platform::Platform;
use spec::{Extent, Frame, PAGE_SIZE, PhysAddr};

/// Frames overwritten between two looks at the fault records: 4 MiB.
const STRIDE: u64 = 1024;

/// Overwrites all usable memory outside `keep`; says how many bytes it were.
pub(crate) fn poison<P: Platform + ?Sized>(
    machine: &Machine<'_, P>,
    keep: &mut [Extent],
    log: &mut FaultLog,
) -> Result<u64, Trouble> {
    keep.sort_unstable();
    let mut bytes = 0;
    for range in machine.platform.memory_map().iter().filter(|r| r.usable) {
        let mut at = range.start.div_ceil(PAGE_SIZE);
        let end = (range.start + range.bytes) / PAGE_SIZE;
        for kept in keep.iter().chain([&Extent::one(Frame::new(end))]) {
            let stop = kept.first().number().clamp(at, end.max(at));
            bytes += fill(machine, at, stop, log)?;
            at = at.max(kept.end().number()).min(end.max(at));
        }
    }
    Ok(bytes)
}

/// Overwrites the frames from `at` up to `end`.
fn fill<P: Platform + ?Sized>(
    machine: &Machine<'_, P>,
    mut at: u64,
    end: u64,
    log: &mut FaultLog,
) -> Result<u64, Trouble> {
    let first = at;
    while at < end {
        let count = STRIDE.min(end - at);
        if let Some(run) = Extent::new(Frame::new(at), count) {
            machine.platform.fill(run, POISON).map_err(Trouble::at("poison memory"))?;
        }
        log.harvest(machine, true);
        at += count;
    }
    Ok((end - first.min(end)) * PAGE_SIZE)
}

/// Overwrites one page that is preserved: [`super::Mutant::PoisonedPage`].
pub(crate) fn one_page<P: Platform + ?Sized>(platform: &P, at: PhysAddr) -> Result<(), Trouble> {
    platform.fill(Extent::one(at.frame()), POISON).map_err(Trouble::at("poison memory"))
}
