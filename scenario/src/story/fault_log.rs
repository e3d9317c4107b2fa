//! Faults as the units record them: read early, attributed, reported one by one.
//!
//! A unit may have a single record, and drops what comes while it is full. So the log is read between any two longer
//! steps, also in the gap before anything is adopted: reading and clearing fault records changes nothing else.

use super::host::Machine;
use super::units::Units;
use crate::event::Event;
use crate::platform::Platform;
use crate::text;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use iommu::Fault;
use iommu::faults::harvest;
use iommu::registers::{Patience, Registers};
use spec::UnitId;

/// Most faults kept: a requester that faults for ever must not fill memory.
const MOST: usize = 256;

/// The faults of one kernel's life.
pub(crate) struct FaultLog {
    units: Vec<UnitId>,
    seen: Vec<(Fault, bool)>,
    overflows: Vec<u64>,
    reported: usize,
}

impl FaultLog {
    pub(crate) fn new(units: &Units) -> Self {
        let units: Vec<_> = units.ids().collect();
        let overflows = units.iter().map(|_| 0).collect();
        Self { units, seen: Vec::new(), overflows, reported: 0 }
    }

    /// Reads and clears what the units have recorded. Bounded.
    pub(crate) fn harvest<P: Platform + ?Sized>(&mut self, machine: &Machine<'_, P>, in_gap: bool) {
        for (index, id) in self.units.iter().enumerate() {
            let registers = Registers { hal: machine, id: *id, patience: Patience::default() };
            let summary = harvest(&registers, &mut |fault| {
                if self.seen.len() < MOST {
                    self.seen.push((fault, in_gap));
                }
            });
            self.overflows[index] += u64::from(summary.overflow);
        }
    }

    /// Reports what was not reported yet. `who` says whose a fault is.
    pub(crate) fn report<P: Platform + ?Sized>(
        &mut self,
        platform: &P,
        who: &dyn Fn(&Fault) -> &'static str,
    ) {
        for (fault, in_gap) in &self.seen[self.reported..] {
            platform.event(&Event::Fault {
                unit: fault.unit.to_string(),
                requester: text::requester(fault.requester),
                pasid: fault.pasid,
                address: fault.address,
                reason: fault.reason.0,
                words: words(fault),
                write: fault.write,
                who: who(fault).to_string(),
                in_gap: *in_gap,
            });
        }
        self.reported = self.seen.len();
        for (unit, times) in self.units.iter().zip(&mut self.overflows) {
            if *times > 0 {
                platform.event(&Event::FaultOverflow { unit: unit.to_string(), times: *times });
                *times = 0;
            }
        }
    }
}

fn words(fault: &Fault) -> String {
    fault.reason.words().map_or_else(|| format!("{}", fault.reason), ToString::to_string)
}
