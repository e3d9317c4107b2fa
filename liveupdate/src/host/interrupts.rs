//! Interrupt remapping of a unit, as the core sees it: the table that IRTA names, and making hardware forget its entries.
//!
//! A host that remaps no interrupts leaves [`Unit::interrupts`](super::Unit::interrupts) out. Nothing is then preserved,
//! cleared or switched off, and a unit that does remap interrupts in spite of that is refused at freeze: hardware would
//! go on reading a table that nobody keeps (I1).

use super::{Atomic, Forgotten, TimedOut};
use spec::regs::Irta;

/// Which interrupt entries hardware shall forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgetInterrupts {
    /// All of them.
    Everything,
    /// `2^order` entries from an index that is a multiple of that.
    Run {
        /// First index.
        first: u16,
        /// Binary logarithm of their number, at most 15.
        order: u8,
    },
}

/// Interrupt remapping of one unit (VT-d 5.1). Whether it is on is in the unit's status (GSTS.IRES).
///
/// Implementers owe what they owe as a [`Unit`](super::Unit): registers are read from hardware, waits are bounded.
pub trait InterruptRemapping {
    /// The interrupt remapping table address register, as hardware has it now.
    fn interrupt_table(&self) -> Irta;
    /// Makes hardware forget cached entries, and waits (bounded) until it has.
    ///
    /// # Errors
    /// [`TimedOut`] when completion was not seen: hardware may still use what it cached.
    fn forget_interrupts(&self, atomic: &Atomic, what: ForgetInterrupts) -> Result<Forgotten, TimedOut>;
    /// Switches interrupt remapping off: for a unit with nothing preserved, as a normal shutdown does.
    ///
    /// # Errors
    /// [`TimedOut`] when the status bit did not clear.
    fn disable_interrupts(&self, atomic: &Atomic) -> Result<(), TimedOut>;
}
