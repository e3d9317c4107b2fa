//! Records of interrupt tables, as foreign data.

use super::records::Body;
use super::{OpenError, Opened};
use crate::interrupts;
use spec::handover;
use spec::regs::Irta;

impl Opened<'_> {
    pub(super) fn take_interrupt_table(&mut self, body: &Body) -> Result<(), OpenError> {
        let record: handover::InterruptTable = body.parse()?;
        let irta = Irta::from_raw(record.irta);
        if irta.frames().is_none() || irta.irta() == 0 {
            return Err(body.wrong("an interrupt table that leaves the address space"));
        }
        let unit = self.book.units.at_ordinal(record.unit).ok_or(body.wrong("no such unit"))?;
        let known = self.book.units.get_mut(unit).ok_or(body.wrong("no such unit"))?;
        if known.interrupts.is_some() {
            return Err(body.wrong("the unit has two interrupt tables"));
        }
        // That its frames are nothing else's shows when all frames are in order.
        known.interrupts = Some(irta);
        Ok(())
    }

    /// Entries stand in the table, and are read there once the audit has compared them; here only what the record says of
    /// other records is checked.
    pub(super) fn check_interrupt_entry(&self, body: &Body) -> Result<(), OpenError> {
        let record: handover::InterruptEntry = body.parse()?;
        let unit = self.book.units.at_ordinal(record.unit).ok_or(body.wrong("no such unit"))?;
        let table = self.book.units.get(unit).and_then(|u| u.interrupts);
        let table = table.ok_or(body.wrong("an entry of no interrupt table"))?;
        let requester = self.book.requesters.at_ordinal(record.requester);
        let requester = requester.ok_or(body.wrong("no such requester"))?;
        if record.index >= table.entries() || record.entry[0] & 1 == 0 {
            return Err(body.wrong("the interrupt entry is beyond the table, or not present"));
        }
        if interrupts::owner(&self.book, unit, record.entry) != Some(requester) {
            return Err(body.wrong("the interrupt entry is not the requester's"));
        }
        Ok(())
    }
}
