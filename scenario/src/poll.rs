//! The one polling loop of the device drivers: bounded by the machine's clock and, should that stand still, by a count.

use crate::platform::Platform;

/// A pass through the loop is taken to last at least this long, which turns a time limit into a limit on passes.
const SHORTEST_PASS_NS: u64 = 10;
/// Passes that are always granted, so that a very short limit still looks more than once.
const LEAST_PASSES: u64 = 1000;

/// What was waited for did not come within the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimedOut;

/// Polls until `done` holds, for at most `limit_ns` nanoseconds of the machine's clock. The condition is looked at once
/// more after the limit has passed, so that a long pause of this CPU is not taken for a slow device.
pub(crate) fn until<P: Platform + ?Sized>(
    platform: &P,
    limit_ns: u64,
    mut done: impl FnMut() -> bool,
) -> Result<(), TimedOut> {
    let start = platform.now();
    let passes = (limit_ns / SHORTEST_PASS_NS).saturating_add(LEAST_PASSES);
    for _ in 0..passes {
        if done() {
            return Ok(());
        }
        if platform.now().saturating_sub(start) > limit_ns {
            break;
        }
        platform.relax();
    }
    if done() { Ok(()) } else { Err(TimedOut) }
}
