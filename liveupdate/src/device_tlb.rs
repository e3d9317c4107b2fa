//! Translations that devices keep (PCIe ATS): handed over with the requesters that go on, forgotten by those that are cut
//! off.
//!
//! A cleared entry blocks whatever a device still keeps. Its device-TLB is invalidated all the same, after the IOTLB (I6), or
//! the next kernel that attaches it would find it in old memory. One that does not answer in the unit's time is reported and
//! its ATS switched off; after a unit that itself says nothing, no device of it is asked any more.

use crate::host::{Atomic, Host, Unit};
use crate::mode::Context;
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
        if !self.lost {
            match self.unit.forget_device(atomic, requester.source, tlb) {
                Ok(true) => return,
                Ok(false) => {}
                Err(_) => self.lost = true,
            }
        }
        let off = self.host.device_tlb_off(atomic, requester);
        report(CutOffEvent::DeviceSilent { requester, off });
    }
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
