//! Invalidation by registers, for units without a queue (VT-d 6.5.1). While a queue is on these registers are dead: a
//! command would never be seen done.

use crate::Hal;
use crate::registers::Registers;
use liveupdate::host::TimedOut;
use spec::regs::{Ccmd, IotlbCommand, Iva, offset};

fn context_idle<H: Hal>(registers: &Registers<'_, H>) -> bool {
    !Ccmd::from_raw(registers.read64(offset::CCMD)).icc()
}

fn iotlb_idle<H: Hal>(registers: &Registers<'_, H>) -> bool {
    !IotlbCommand::from_raw(registers.read64(registers.ecap().iotlb_offset())).ivt()
}

/// Waits until commands that somebody else gave are done.
///
/// # Errors
/// [`TimedOut`].
pub fn drain<H: Hal>(registers: &Registers<'_, H>) -> Result<(), TimedOut> {
    registers.wait("the predecessor's context command", || context_idle(registers))?;
    registers.wait("the predecessor's IOTLB command", || iotlb_idle(registers))
}

/// Gives a context command and waits until it is done.
///
/// # Errors
/// [`TimedOut`], also when hardware says that it did nothing.
pub fn context<H: Hal>(registers: &Registers<'_, H>, command: Ccmd) -> Result<(), TimedOut> {
    registers.wait("room for a context command", || context_idle(registers))?;
    registers.write64(offset::CCMD, command.with_icc(true).raw());
    registers.wait("context cache invalidation", || context_idle(registers))?;
    match Ccmd::from_raw(registers.read64(offset::CCMD)).caig() {
        0 => Err(TimedOut { unit: registers.id, what: "a context command that hardware accepts", waited: 0 }),
        _ => Ok(()),
    }
}

/// Gives an IOTLB command, for the pages in `pages` if it is page-selective, and waits until it is done.
///
/// # Errors
/// [`TimedOut`], also when hardware says that it did nothing.
pub fn iotlb<H: Hal>(
    registers: &Registers<'_, H>,
    command: IotlbCommand,
    pages: Option<Iva>,
) -> Result<(), TimedOut> {
    let ecap = registers.ecap();
    registers.wait("room for an IOTLB command", || iotlb_idle(registers))?;
    if let Some(pages) = pages {
        registers.write64(ecap.iva_offset(), pages.raw());
    }
    registers.write64(ecap.iotlb_offset(), command.with_ivt(true).raw());
    registers.wait("IOTLB invalidation", || iotlb_idle(registers))?;
    match IotlbCommand::from_raw(registers.read64(ecap.iotlb_offset())).iaig() {
        0 => Err(TimedOut { unit: registers.id, what: "an IOTLB command that hardware accepts", waited: 0 }),
        _ => Ok(()),
    }
}
