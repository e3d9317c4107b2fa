//! Page requests (VT-d 7.4 to 7.7, PCIe PRI): a device asks for pages that are not there, the unit queues what it asks, and
//! each group of requests is answered once.
//!
//! Before an update they are switched off ([`Iommu::stop_page_requests`]): the device asks no more, what is on its way is
//! waited for, all of it is answered, and the requester's entry allows it no longer. So nothing is outstanding when the queue
//! changes hands, and the next kernel switches them on again with a queue of its own.

use crate::Hal;
use crate::config::Capability;
use crate::driver::Iommu;
use crate::error::{AttachError, UnitError};
use crate::queue::Descriptor;
use crate::unit::VtdUnit;
use liveupdate::host::{Atomic, Forget, MaySleep, TimedOut, Unit};
use spec::invalidation::{PageGroupResponse, PageRequest, kind, response};
use spec::regs::{Pqa, Prs, offset};
use spec::{PAGE_SIZE, Requester, SourceId};

/// Bytes of a request in the queue.
const ENTRY: u64 = 32;
/// Requests that one frame holds.
const MOST: u64 = PAGE_SIZE / ENTRY;
/// Head and tail are byte offsets in bits 18:5.
const OFFSET_MASK: u64 = 0x7_ffe0;

/// What one reading of the queue brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Requests read.
    pub requests: u32,
    /// Groups answered.
    pub answered: u32,
    /// The queue had overflowed: hardware told devices to ask again. The bit was cleared.
    pub overflow: bool,
}

impl<H: Hal> VtdUnit<'_, H> {
    /// Gives the unit a queue for page requests, empty. Whatever queue it had is not looked at: nothing may be outstanding.
    ///
    /// # Errors
    /// [`UnitError::Lacks`], [`UnitError::OutOfMemory`].
    pub fn start_page_requests(&self, ctx: &mut MaySleep) -> Result<(), UnitError> {
        let unit = self.registers.id;
        if !self.registers.ecap().prs() || !self.config.mode.is_scalable() {
            return Err(UnitError::Lacks { unit, what: Capability::PageRequests });
        }
        if self.pages.get().is_none() {
            let run = self.hal().allocate(ctx, 1, 1).ok_or(UnitError::OutOfMemory { unit, frames: 1 })?;
            self.pages.set(Some(run.start()));
        }
        let Some(base) = self.pages.get() else { return Ok(()) };
        self.registers.write64(offset::PQH, 0);
        self.registers.write64(offset::PQT, 0);
        self.registers.write64(offset::PQA, Pqa::ZERO.with_pqa(base.frame().number()).raw());
        self.registers.write32(offset::PRS, Prs::ZERO.with_ppr(true).with_pro(true).raw());
        Ok(())
    }

    /// Reads what the queue holds, hands each request to `answer`, and answers each group with what that says of its last
    /// request (a code of [`response`]). Bounded by the size of the queue.
    ///
    /// # Errors
    /// [`TimedOut`] when an answer was not seen sent: it counts as given, and is not given again.
    pub fn serve_page_requests(
        &self,
        _atomic: &Atomic,
        answer: &mut dyn FnMut(PageRequest) -> u64,
    ) -> Result<Served, TimedOut> {
        let mut served = Served::default();
        let (Some(base), Some(queue)) = (self.pages.get(), &self.queue) else { return Ok(served) };
        for _ in 0..MOST {
            // The bit first: what comes after the queue was seen empty sets it again.
            self.registers.write32(offset::PRS, Prs::ZERO.with_ppr(true).raw());
            let head = self.registers.read64(offset::PQH) & OFFSET_MASK;
            if head == self.registers.read64(offset::PQT) & OFFSET_MASK {
                break;
            }
            let mut words = [0; 4];
            let gone =
                |_| TimedOut { unit: self.registers.id, what: "memory under the page requests", waited: 0 };
            self.hal().read_words(base.plus(head), &mut words).map_err(gone)?;
            let request = PageRequest::from_raw(words);
            // Read, then given free: the unit may write there at once.
            self.registers.write64(offset::PQH, (head + ENTRY) % PAGE_SIZE);
            served.requests += 1;
            let code = answer(request);
            if request.lpig() {
                queue.submit(&self.registers, "an answer to page requests", &[reply(request, code)])?;
                served.answered += 1;
            }
        }
        // While it is set hardware takes no requests, so that it comes last.
        if Prs::from_raw(self.registers.read32(offset::PRS)).pro() {
            served.overflow = true;
            self.registers.write32(offset::PRS, Prs::ZERO.with_pro(true).raw());
        }
        Ok(served)
    }
}

fn reply(request: PageRequest, code: u64) -> Descriptor {
    PageGroupResponse::ZERO
        .with_kind(kind::PAGE_GROUP_RESPONSE)
        .with_pp(request.pp())
        .with_rc(code)
        .with_rid(request.rid())
        .with_pasid(request.pasid())
        .with_lpig(request.lpig())
        .with_prgi(request.prgi())
        .raw()
}

impl<H: Hal> Iommu<'_, H> {
    /// Lets a requester that keeps translations ask for pages. Its unit has a queue
    /// ([`VtdUnit::start_page_requests`]). The host switches page requests on in the device after this.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn enable_page_requests(&self, ctx: &mut MaySleep, requester: Requester) -> Result<(), AttachError> {
        let unit = self.page_request_unit(requester)?;
        unit.locked(ctx, |atomic| self.switch_page_requests(atomic, unit, requester, true))
    }

    /// Lets it ask no longer. The host has switched page requests off in the device before this; those that are on their way
    /// are waited for, and all of the unit's queue is answered, by `answer` as in [`VtdUnit::serve_page_requests`].
    ///
    /// # Errors
    /// [`AttachError`]; its entry allows page requests still.
    pub fn stop_page_requests(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        answer: &mut dyn FnMut(PageRequest) -> u64,
    ) -> Result<Served, AttachError> {
        let unit = self.page_request_unit(requester)?;
        unit.locked(ctx, |atomic| {
            if let Some(queue) = &unit.queue {
                queue.drain_page_requests(&unit.registers)?;
            }
            let served = unit.serve_page_requests(atomic, answer)?;
            self.switch_page_requests(atomic, unit, requester, false)?;
            Ok(served)
        })
    }

    fn page_request_unit(&self, requester: Requester) -> Result<&VtdUnit<'_, H>, AttachError> {
        let unit = self.unit_of(requester).ok_or(AttachError::NoUnit(requester))?;
        if unit.pages.get().is_none() || self.device_tlb(requester).is_none() {
            return Err(AttachError::Lacks { requester, what: Capability::PageRequests });
        }
        Ok(unit)
    }

    fn switch_page_requests(
        &self,
        atomic: &Atomic,
        unit: &VtdUnit<'_, H>,
        requester: Requester,
        on: bool,
    ) -> Result<(), AttachError> {
        let source: SourceId = requester.source;
        let domain = self.domain_of(requester).and_then(|domain| self.domain_id(domain, unit.id()));
        let forget = Forget::Requester { source, domain: domain.unwrap_or_default() };
        unit.set_page_request_bit(source, on)?;
        let _ = unit.forget(atomic, forget)?;
        Ok(())
    }
}

/// What to answer when the pages cannot be there.
pub const INVALID: u64 = response::INVALID_REQUEST;
/// What to answer when they are there now.
pub const SUCCESS: u64 = response::SUCCESS;
