//! Past the point of no return: one CPU, interrupts off. Nothing here allocates, sleeps or fails.

use crate::freeze::{Container, Sealed};
use crate::host::{Atomic, Host, Unit};
use crate::prune::{CutOffEvent, prune};

/// Every unit is cut off: the machine may jump. There is no other way to get one.
#[derive(Debug)]
#[must_use = "the machine is cut off: jump"]
pub struct CutOff {
    /// Where the handover lies.
    pub container: Container,
}

impl<H: Host> Sealed<'_, '_, H> {
    /// Cuts off every unit. On a unit with nothing preserved, switches translation and protected memory off, as a normal
    /// shutdown does. `report` must neither allocate nor sleep.
    pub fn cut_off(self, atomic: &Atomic, report: &mut dyn FnMut(CutOffEvent)) -> CutOff {
        let outgoing = &self.outgoing;
        outgoing.host.for_each_unit(&mut |unit| match outgoing.book.units.find(|u| u.id == unit.id()) {
            Some((index, _)) => prune(outgoing.host, &outgoing.book, index, unit, atomic, &|_| true, report),
            None => match unit.disable(atomic) {
                Ok(()) => report(CutOffEvent::SwitchedOff(unit.id())),
                Err(timed_out) => report(CutOffEvent::NotConfirmed(timed_out)),
            },
        });
        CutOff { container: self.container }
    }
}
