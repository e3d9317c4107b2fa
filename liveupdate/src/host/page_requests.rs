//! What a host does about devices that ask for pages (PCIe PRI, VT-d 7.4): off for the time in which nobody could answer.

use super::{MaySleep, TimedOut};
use spec::Requester;

/// Page requests of a host's devices.
///
/// A freeze stops them, so that none is outstanding when the unit's queue changes hands. When the freeze fails, or is taken
/// back, they are on again; otherwise the next kernel, which is told at retrieval, switches them on with a queue of its own.
pub trait PageRequests {
    /// Stops those of a requester: its device asks no more, those on their way are waited for, all of them are answered, and
    /// then its context entry allows them no longer (PRE = 0). Every wait is bounded.
    ///
    /// # Errors
    /// [`TimedOut`] when it is not sure that all were answered. The freeze fails then, after [`Self::resume`].
    fn stop(&self, ctx: &mut MaySleep, requester: Requester) -> Result<(), TimedOut>;
    /// Lets the requester ask again, as before [`Self::stop`] however far that came.
    ///
    /// # Errors
    /// [`TimedOut`]: its context entry allows none still.
    fn resume(&self, ctx: &mut MaySleep, requester: Requester) -> Result<(), TimedOut>;
}
