//! How a device reaches memory: page by page through the unit that watches its source-id, or straight where none does.

use crate::device_tlb;
use crate::fabric::Fabric;
use crate::memory::PAGE;
use crate::trace::TraceLine;
use crate::vtd::interrupts::{Message, compatible};
use crate::vtd::{Outcome, Unit};
use spec::SourceId;

/// A device's way out: what it may touch of the machine.
pub(crate) struct Port<'a> {
    pub(crate) fabric: &'a mut Fabric,
    pub(crate) units: &'a mut [Unit],
    /// Source-id that the device's requests carry.
    pub(crate) source: SourceId,
    /// What a unit's list may name the requester by: itself, or the bridge that it sits behind.
    pub(crate) listed_as: SourceId,
    /// The function, and the bridges above it, may master the bus.
    pub(crate) master: bool,
    /// The function keeps translations of its own.
    pub(crate) ats: bool,
    /// The function's interrupt message, when it may send any.
    pub(crate) message: Option<Message>,
}

/// Some part of a DMA did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

impl Port<'_> {
    /// Reads `out.len()` bytes at `iova`. What did not get through reads as zero; the rest after the first refused page is not
    /// asked for.
    pub(crate) fn read(&mut self, iova: u64, out: &mut [u8]) -> Result<(), Lost> {
        out.fill(0);
        // A read does not pass the writes sent before it.
        self.fabric.land_all();
        let mut done = 0;
        while done < out.len() {
            let n = piece(iova + done as u64, out.len() - done);
            let address = self.route(iova + done as u64, n as u64, false)?;
            self.fabric.memory.read(address, &mut out[done..done + n]).map_err(|_| Lost)?;
            done += n;
        }
        Ok(())
    }

    /// Writes `bytes` at `iova`, page by page up to the first that is refused.
    pub(crate) fn write(&mut self, iova: u64, bytes: &[u8]) -> Result<(), Lost> {
        let mut done = 0;
        while done < bytes.len() {
            let n = piece(iova + done as u64, bytes.len() - done);
            let address = self.route(iova + done as u64, n as u64, true)?;
            self.fabric.post(address, &bytes[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Sends the function's interrupt message: a write, which mastering is needed for.
    pub(crate) fn interrupt(&mut self) {
        let Some(message) = self.message.filter(|_| self.master) else { return };
        let interrupt = match self.units.iter_mut().find(|unit| unit.covers(self.listed_as)) {
            Some(unit) => unit.interrupt(self.source, message, self.fabric),
            None => Some(compatible(message)),
        };
        // There is one processor, whose id is 0. What is for others is nobody's.
        if let Some(interrupt) = interrupt.filter(|interrupt| interrupt.destination == 0) {
            self.fabric.apic.raise(interrupt.vector);
        }
    }

    /// Where a request within one page goes.
    pub(crate) fn route(&mut self, iova: u64, bytes: u64, write: bool) -> Result<u64, Lost> {
        if !self.master {
            return Err(Lost);
        }
        let Some(unit) = self.units.iter_mut().find(|unit| unit.covers(self.listed_as)) else {
            let (at, source) = (self.fabric.now, self.source);
            self.fabric.trace.push(TraceLine::Untranslated { at, source, address: iova, bytes, write });
            return Ok(iova);
        };
        if self.ats
            && let Some(way) = device_tlb::route(unit, self.source, iova, bytes, write, self.fabric)
        {
            return way.ok_or(Lost);
        }
        match unit.translate(self.source, iova, bytes, write, self.fabric) {
            Outcome::To(address) => Ok(address),
            Outcome::NoMemory | Outcome::Refused => Err(Lost),
        }
    }
}

/// How much of `left` bytes at `address` lies in its page.
fn piece(address: u64, left: usize) -> usize {
    ((PAGE - address % PAGE) as usize).min(left)
}
