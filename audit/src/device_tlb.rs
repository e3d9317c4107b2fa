//! Devices that keep translations: each requester whose sealed entry lets its device do so has one record that says which
//! device that is, and nobody else has one (I4). Without it the next kernel would unmap under a device that goes on.

use crate::collect::Collector;
use crate::error::Unreadable;
use crate::finding::{Invariant, RecordKind, What};
use crate::handover::{Handover, Record};
use crate::image::Image;
use spec::context::{ContextEntry, TranslationType};
use spec::handover::RequesterRecord;
use spec::regs::{RootAddr, table_mode};
use spec::scalable::ScalableContextEntry;

/// Most invalidations that a device queues.
const DEEPEST: u8 = 32;

impl Collector<'_, '_, '_> {
    /// One pass over the records. The writer lists devices in the order of their requesters, so that a second record of one
    /// is seen.
    pub(crate) fn device_tlbs<I: Image + ?Sized>(
        &mut self,
        handover: &Handover<'_, I>,
    ) -> Result<(), Unreadable> {
        let (mut allowed, mut listed, mut next) = (0_u64, 0_u64, 0);
        for located in handover.records() {
            let located = located?;
            match &located.record {
                Record::Requester(requester) => {
                    allowed = allowed.saturating_add(u64::from(self.allows(handover, requester)));
                }
                Record::DeviceTlb(record) => {
                    let from = RecordKind::DeviceTlb;
                    if !self.refers(located.at, from, RecordKind::Requester, record.requester) {
                        continue;
                    }
                    let owner = self.requester_at(handover, record.requester);
                    let sound = owner.is_some_and(|owner| self.allows(handover, &owner))
                        && record.requester >= next
                        && (1..=DEEPEST).contains(&record.queue_depth);
                    if sound {
                        listed = listed.saturating_add(1);
                    } else {
                        self.found(located.at, What::DeviceTlb);
                    }
                    next = next.max(record.requester.saturating_add(1));
                }
                _ => {}
            }
        }
        self.checked(Invariant::I4, allowed);
        if listed < allowed {
            let missing = allowed.saturating_sub(listed);
            self.found(self.start(), What::NoDeviceTlb { missing });
        }
        Ok(())
    }

    /// Whether a sealed context entry lets its device keep translations.
    fn allows<I: Image + ?Sized>(&self, handover: &Handover<'_, I>, requester: &RequesterRecord) -> bool {
        let Some(unit) = self.unit_at(handover, requester.unit) else { return false };
        let [low, high] = requester.context;
        match RootAddr::from_raw(unit.root).ttm() {
            table_mode::SCALABLE => ScalableContextEntry::from_raw([low, high, 0, 0]).dte(),
            _ => {
                let entry = ContextEntry::from_raw([low, high]);
                entry.translation_type() == TranslationType::SecondStageDeviceTlb
            }
        }
    }
}
