//! Translations that devices keep (PCIe ATS): handed over with the requesters that go on, forgotten by those that are cut
//! off.
//!
//! A cleared entry blocks whatever a device still keeps. Its device-TLB is invalidated all the same, after the IOTLB (I6), or
//! the next kernel that attaches it would find it in old memory. One that does not answer in the unit's time is reported and
//! its ATS switched off; after a unit that itself says nothing, no device of it is asked any more.
//!
//! No entry blocks what a device keeps of a PASID that went while the requester goes on: translated requests are let pass by
//! the context entry alone (VT-d 4.1). So such a device is made to forget the PASID, and one that does not answer is cut off
//! with all it has.

use crate::book::Kept;
use crate::host::{Atomic, Forget, Host, TimedOut, Unit};
use crate::mode::Context;
use crate::mutant::{self, Mutant};
use crate::prune::{CutOffEvent, Pruning};
use crate::roots;
use spec::Requester;
use spec::context::TranslationType;
use spec::root::RootEntry;

impl Context {
    /// Whether it lets the device keep translations.
    #[must_use]
    pub const fn allows_device_tlb(self) -> bool {
        match self {
            Self::Legacy(entry) => matches!(entry.translation_type(), TranslationType::SecondStageDeviceTlb),
            Self::Scalable(entry) => entry.dte(),
        }
    }

    /// Whether it lets the device ask for pages (VT-d 9.4, PRE).
    #[must_use]
    pub const fn allows_page_requests(self) -> bool {
        matches!(self, Self::Scalable(entry) if entry.pre())
    }

    /// The same entry, with page requests allowed or not.
    pub(crate) const fn with_page_requests(self, on: bool) -> Self {
        match self {
            Self::Legacy(entry) => Self::Legacy(entry),
            Self::Scalable(entry) => Self::Scalable(entry.with_pre(on)),
        }
    }
}

/// Devices of one unit that are asked to forget, one after the other.
pub(crate) struct Devices<'a, H: Host> {
    host: &'a H,
    unit: &'a H::Unit,
    /// The unit says nothing any more.
    lost: bool,
}

impl<'a, H: Host> Devices<'a, H> {
    /// Devices of `unit`, which has forgotten, or has not (`lost`).
    pub(crate) fn new(host: &'a H, unit: &'a H::Unit, lost: bool) -> Self {
        Self { host, unit, lost }
    }

    /// Asks the device of a requester whose entry is cleared, if it keeps translations.
    pub(crate) fn forget(
        &mut self,
        atomic: &Atomic,
        requester: Requester,
        report: &mut dyn FnMut(CutOffEvent),
    ) {
        let Some(tlb) = self.host.device_tlb(requester) else { return };
        if !self.answers(|unit| unit.forget_device(atomic, requester.source, tlb)) {
            self.switch_off(atomic, requester, report);
        }
    }

    /// Asks the device of a requester that goes on to forget PASIDs of its that went. Says whether it did; if not, its ATS is
    /// off, and its entry is for the caller to clear.
    pub(crate) fn forget_pasids(
        &mut self,
        atomic: &Atomic,
        kept: &Kept,
        gone: Gone,
        report: &mut dyn FnMut(CutOffEvent),
    ) -> bool {
        let known = kept.device_tlb.filter(|_| gone != Gone::None && !mutant::on(Mutant::PasidInDevice));
        let Some(tlb) = known else { return true };
        let source = kept.requester.source;
        let answered = self.answers(|unit| match gone {
            Gone::One(pasid) if pasid != kept.rid_pasid() => {
                unit.forget_device_pasid(atomic, source, tlb, pasid)
            }
            // Requests without PASID are among them, or there are too many to be asked for one by one.
            _ => unit.forget_device(atomic, source, tlb),
        });
        if !answered {
            self.switch_off(atomic, kept.requester, report);
        }
        answered
    }

    fn answers(&mut self, ask: impl FnOnce(&H::Unit) -> Result<bool, TimedOut>) -> bool {
        if self.lost {
            return false;
        }
        ask(self.unit).unwrap_or_else(|_| {
            self.lost = true;
            false
        })
    }

    fn switch_off(&self, atomic: &Atomic, requester: Requester, report: &mut dyn FnMut(CutOffEvent)) {
        let off = self.host.device_tlb_off(atomic, requester);
        report(CutOffEvent::DeviceSilent { requester, off });
    }
}

/// Which PASIDs of a directory went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    None,
    One(u32),
    Several,
}

impl Gone {
    pub(crate) fn and(self, pasid: u32) -> Self {
        if self == Self::None { Self::One(pasid) } else { Self::Several }
    }
}

/// Between forgetting and wiping: the devices of requesters that go on forget those of their PASIDs that went. One that does
/// not answer is cut off: its entry is cleared, and the unit made to forget it.
pub(crate) fn forget_pasids<H: Host>(
    pruning: &Pruning<'_, '_, H>,
    devices: &mut Devices<'_, H>,
    atomic: &Atomic,
    report: &mut dyn FnMut(CutOffEvent),
) {
    if !devices.unit.ecap().dt() {
        return;
    }
    let mut cut_off = false;
    for (run, context) in pruning.directories().filter(|(_, context)| context.dte()) {
        let gone = pruning.gone(run, context);
        for (index, requester) in pruning.users(run) {
            let Some(kept) = pruning.book.requesters.get(index) else { continue };
            if !devices.forget_pasids(atomic, kept, gone, report) {
                pruning.clear_contexts_of(index, requester, report);
                cut_off = true;
            }
        }
    }
    if cut_off {
        forget_and_report(devices.unit, atomic, Forget::Everything, report);
    }
}

/// Says whether the unit confirmed.
pub(crate) fn forget_and_report<U: Unit>(
    unit: &U,
    atomic: &Atomic,
    what: Forget,
    report: &mut dyn FnMut(CutOffEvent),
) -> bool {
    let forgotten = unit.forget(atomic, what);
    let confirmed = forgotten.is_ok();
    report(match forgotten {
        Ok(_) => CutOffEvent::Confirmed(unit.id()),
        Err(timed_out) => CutOffEvent::NotConfirmed(timed_out),
    });
    confirmed
}

/// Between forgetting and wiping: asks the devices of all entries that were cleared. What cannot be read has been reported.
pub(crate) fn forget_cleared<H: Host>(
    pruning: &Pruning<'_, '_, H>,
    devices: &mut Devices<'_, H>,
    atomic: &Atomic,
    report: &mut dyn FnMut(CutOffEvent),
) {
    if !devices.unit.ecap().dt() {
        return;
    }
    let host = devices.host;
    for place in pruning.mode.places() {
        let Ok(pointer) = host.read(place.pointer_at(pruning.root)) else { continue };
        let pointer = RootEntry::from_raw([pointer, 0]);
        if pointer.raw()[0] == 0 {
            continue;
        }
        for source in place.sources(pruning.mode) {
            let table = pointer.context_table();
            let Ok(entry) = roots::context_entry(host, pruning.mode, table, source.devfn()) else { break };
            // In a table that went, entries are as they were.
            let cleared = !(pointer.present() && entry.present());
            if cleared && entry.allows_device_tlb() {
                devices.forget(atomic, Requester::new(pruning.unit.segment, source), report);
            }
        }
    }
}
