//! How a device reaches memory: page by page through the unit that watches its source-id, or straight where none does.

use crate::device_tlb;
use crate::fabric::Fabric;
use crate::memory::PAGE;
use crate::trace::TraceLine;
use crate::vtd::interrupts::{Message, compatible};
use crate::vtd::{Outcome, Unit};
use spec::{Segment, SourceId};

/// A device's way out: what it may touch of the machine.
pub(crate) struct Port<'a> {
    pub(crate) fabric: &'a mut Fabric,
    pub(crate) units: &'a mut [Unit],
    /// Segment that the device is on.
    pub(crate) segment: Segment,
    /// Source-ids that the device's requests carry, by turns: at least one.
    pub(crate) sources: &'a [SourceId],
    /// What a unit's list may name the requester by: itself, or a bridge above it.
    pub(crate) listed_as: &'a [SourceId],
    /// The PASID that the next requests carry, if any.
    pub(crate) pasid: Option<u32>,
    /// The function, and the bridges above it, may master the bus.
    pub(crate) master: bool,
    /// The function keeps translations of its own.
    pub(crate) ats: bool,
    /// The function asks for pages.
    pub(crate) pri: bool,
    /// The function's interrupt message, when it may send any.
    pub(crate) message: Option<Message>,
}

/// Page requests that a device has open at once, at most.
const OPEN_MAX: u64 = 32;

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
            let n = self.piece(iova + done as u64, out.len() - done);
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
            let n = self.piece(iova + done as u64, bytes.len() - done);
            let address = self.route(iova + done as u64, n as u64, true)?;
            self.fabric.post(address, &bytes[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Sends the function's interrupt message: a write, which mastering is needed for.
    pub(crate) fn interrupt(&mut self) {
        let Some(message) = self.message.filter(|_| self.master) else { return };
        let (segment, source) = (self.segment, self.source(0));
        let interrupt = match self.units.iter_mut().find(|unit| unit.covers(segment, self.listed_as)) {
            Some(unit) => unit.interrupt(source, message, self.fabric),
            None => Some(compatible(message)),
        };
        // There is one processor. What is for others is nobody's.
        if let Some(interrupt) = interrupt {
            self.fabric.apic.offer(interrupt);
        }
    }

    /// How much of `left` bytes at `address` one request asks for: not beyond its page.
    fn piece(&self, address: u64, left: usize) -> usize {
        let room = if self.sources.len() > 1 { SHORT } else { PAGE };
        ((room - address % room) as usize).min(left)
    }

    /// The source-id of the request for `address`.
    pub(crate) fn source(&self, address: u64) -> SourceId {
        self.sources[(address / SHORT) as usize % self.sources.len()]
    }

    /// Asks for the page of `iova`, with page requests on and not too many open.
    pub(crate) fn ask_page(&mut self, iova: u64) {
        let source = self.source(iova);
        if !self.pri || self.fabric.page_answers(source).open >= OPEN_MAX {
            return;
        }
        let (segment, names) = (self.segment, self.listed_as);
        let unit = self.units.iter_mut().find(|unit| unit.covers(segment, names));
        let Some(group) = unit.is_some().then(|| self.fabric.new_page_group(source)).flatten() else {
            return;
        };
        unit.into_iter().for_each(|unit| unit.ask_page(source, group, iova / PAGE, self.fabric));
    }

    /// Where a request within one page goes.
    pub(crate) fn route(&mut self, iova: u64, bytes: u64, write: bool) -> Result<u64, Lost> {
        if !self.master {
            return Err(Lost);
        }
        let (segment, source) = (self.segment, self.source(iova));
        let Some(unit) = self.units.iter_mut().find(|unit| unit.covers(segment, self.listed_as)) else {
            let at = self.fabric.now;
            self.fabric.trace.push(TraceLine::Untranslated {
                at,
                segment,
                source,
                address: iova,
                bytes,
                write,
            });
            return Ok(iova);
        };
        if self.ats
            && let Some(way) = device_tlb::route(unit, (source, self.pasid), iova, bytes, write, self.fabric)
        {
            return way.ok_or(Lost);
        }
        match unit.translate_as(source, self.pasid, iova, bytes, write, self.fabric) {
            Outcome::To(address) => Ok(address),
            Outcome::NoMemory | Outcome::Refused => Err(Lost),
        }
    }
}

/// Bytes of one request of a device whose requests carry several source-ids.
const SHORT: u64 = 256;
