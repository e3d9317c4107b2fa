//! What everything in the machine shares: clock, memory, chance, trace, and the writes under way.
//!
//! A device's write is translated when it is sent and lands in memory a little later; it is seen to have landed by whoever
//! drains ([`Fabric::land_all`]): a read of the device's registers, a draining invalidation, or time.

use crate::apic::LocalApic;
use crate::device_tlb::DeviceTlb;
use crate::dice::Dice;
use crate::faults::Injector;
use crate::memory::Memory;
use crate::trace::TraceLine;
use spec::UnitId;
use std::collections::VecDeque;

struct Posted {
    lands_at: u64,
    address: u64,
    bytes: Vec<u8>,
}

/// The shared part of the machine.
pub(crate) struct Fabric {
    /// Nanoseconds since the machine was made.
    pub(crate) now: u64,
    pub(crate) memory: Memory,
    pub(crate) dice: Dice,
    pub(crate) trace: Vec<TraceLine>,
    pub(crate) injector: Injector,
    pub(crate) device_tlbs: Vec<DeviceTlb>,
    pub(crate) apic: LocalApic,
    posted: VecDeque<Posted>,
}

impl Fabric {
    pub(crate) fn new(memory: Memory, dice: Dice, injector: Injector) -> Self {
        let (trace, device_tlbs, posted) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { now: 0, memory, dice, trace, injector, device_tlbs, apic: LocalApic::new(None), posted }
    }

    /// A device's write sets out for physical memory. Writes land in the order in which they were sent.
    pub(crate) fn post(&mut self, address: u64, bytes: &[u8]) {
        let earliest = self.posted.back().map_or(0, |p| p.lands_at);
        let lands_at = (self.now + self.dice.between(50, 1_500)).max(earliest);
        self.posted.push_back(Posted { lands_at, address, bytes: bytes.to_vec() });
    }

    /// When the next write under way lands.
    pub(crate) fn next_landing(&self) -> Option<u64> {
        self.posted.front().map(|p| p.lands_at)
    }

    /// Lands what is due by now.
    pub(crate) fn land_due(&mut self) {
        while self.posted.front().is_some_and(|p| p.lands_at <= self.now) {
            self.land_one();
        }
    }

    /// Lands everything under way.
    pub(crate) fn land_all(&mut self) {
        while !self.posted.is_empty() {
            self.land_one();
        }
    }

    fn land_one(&mut self) {
        if let Some(write) = self.posted.pop_front() {
            // A write to where there is no memory is lost, as on a bus where nobody answers.
            let _ = self.memory.write_snooped(write.address, &write.bytes);
        }
    }

    pub(crate) fn misuse(&mut self, unit: UnitId, rule: &'static str) {
        self.trace.push(TraceLine::Misuse { at: self.now, unit, rule });
    }
}
