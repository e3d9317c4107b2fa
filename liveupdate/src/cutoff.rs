//! Past the point of no return: one CPU, interrupts off. Nothing here allocates, sleeps or fails.

use crate::freeze::{Container, Sealed};
use crate::host::{Atomic, Host, Unit};
use crate::interrupts;
use crate::prune::{CutOffEvent, prune};

/// Every unit is cut off: the machine may jump. There is no other way to get one, so that a host whose jump takes one
/// cannot jump without.
///
/// ```compile_fail,E0451
/// # use liveupdate::{Container, CutOff};
/// # fn jump(_: CutOff) {}
/// fn wrong(container: Container) {
///     jump(CutOff { container, _cut_off: () }); // nothing was cut off: does not compile
/// }
/// ```
/// ```
/// # use liveupdate::{CutOff, Sealed, host::{Atomic, Host}};
/// # fn jump(_: CutOff) {}
/// fn right<H: Host>(sealed: Sealed<'_, '_, H>, atomic: &Atomic) {
///     jump(sealed.cut_off(atomic, &mut |_| ()));
/// }
/// ```
#[derive(Debug)]
#[must_use = "the machine is cut off: jump"]
#[allow(clippy::manual_non_exhaustive)] // this crate must not make one in passing either
pub struct CutOff {
    /// Where the handover lies.
    pub container: Container,
    /// Keeps everybody else from making one.
    _cut_off: (),
}

impl<H: Host> Sealed<'_, '_, H> {
    /// Cuts off every unit. On a unit with nothing preserved, switches interrupt remapping, translation and protected
    /// memory off, as a normal shutdown does. `report` must neither allocate nor sleep.
    pub fn cut_off(self, atomic: &Atomic, report: &mut dyn FnMut(CutOffEvent)) -> CutOff {
        let outgoing = &self.outgoing;
        outgoing.host.for_each_unit(&mut |unit| match outgoing.book.units.find(|u| u.id == unit.id()) {
            Some((index, _)) => {
                let (host, book) = (outgoing.host, &outgoing.book);
                prune(host, book, Some(index), unit, atomic, &|_| true, report);
                interrupts::prune(host, book, Some(index), unit, atomic, &|_, _| true, report);
            }
            None => {
                interrupts::switch_off(unit, atomic, report);
                match unit.disable(atomic) {
                    Ok(()) => report(CutOffEvent::SwitchedOff(unit.id())),
                    Err(timed_out) => report(CutOffEvent::NotConfirmed(timed_out)),
                }
            }
        });
        CutOff { container: self.container, _cut_off: () }
    }
}
