//! One remapping unit with memory and nothing around it: set its registers and tables, ask where a request would go.
//!
//! For comparing the hardware model with other hardware, request by request. Registers answer as soon as what they started
//! is done; the caller never waits.

use crate::config::UnitConfig;
use crate::dice::Dice;
use crate::fabric::Fabric;
use crate::faults::Injector;
use crate::memory::{Hole, Memory, StorePath};
use crate::trace::{Invalidation, TraceLine};
use crate::vtd::{Outcome, Unit};
use spec::SourceId;
use spec::fault::Reason;

/// A unit, its memory, and a clock that moves when something is waited for.
pub struct Probe {
    fabric: Fabric,
    unit: Unit,
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Where it went.
    pub outcome: Outcome,
    /// Why it was refused, and whether a fault record shows it.
    pub fault: Option<(Reason, bool)>,
    /// The translation was cached before.
    pub cached: bool,
    /// Domain id, where tables or caches gave one.
    pub domain: Option<u16>,
}

impl Probe {
    /// A unit after reset with memory in `ranges` of (start, bytes), on a host with addresses of `host_width` bits.
    /// Its walks see every store at once, whatever ECAP.C says.
    #[must_use]
    pub fn new(config: UnitConfig, host_width: u8, ranges: &[(u64, u64)]) -> Self {
        let memory = Memory::new(ranges, StorePath::default());
        let fabric = Fabric::new(memory, Dice::new(0), Injector::default());
        Self { fabric, unit: Unit::new(config, host_width) }
    }

    /// The aligned word of memory at `at`.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn load(&self, at: u64) -> Result<u64, Hole> {
        self.fabric.memory.load(at)
    }

    /// Sets the aligned word of memory at `at`.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn store(&mut self, at: u64, value: u64) -> Result<(), Hole> {
        self.fabric.memory.store_snooped(at, value)
    }

    /// Reads a register of 4 or 8 bytes at `at`, an offset within the register page.
    pub fn read(&mut self, at: u64, bytes: u64) -> u64 {
        self.unit.read(at, bytes, &mut self.fabric)
    }

    /// Writes a register, and waits until what that started is done.
    pub fn write(&mut self, at: u64, bytes: u64, value: u64) {
        self.unit.write(at, bytes, value, &mut self.fabric);
        while let Some(due) = self.unit.next_due() {
            self.fabric.now = self.fabric.now.max(due);
            self.unit.run(&mut self.fabric);
        }
    }

    /// Forgets all that is cached, whatever the registers say.
    pub fn forget_everything(&mut self) {
        for what in [Invalidation::Contexts, Invalidation::Pasids, Invalidation::Translations] {
            self.unit.caches.forget(what);
        }
    }

    /// A request of `source` for `bytes` bytes at `iova`, within one page. Nothing is transferred.
    pub fn request(&mut self, source: SourceId, iova: u64, bytes: u64, write: bool) -> Answer {
        self.request_as(source, None, iova, bytes, write)
    }

    /// As [`request`](Self::request), with or without a PASID. What is said of caches and domain is so of requests without.
    pub fn request_as(
        &mut self,
        source: SourceId,
        pasid: Option<u32>,
        iova: u64,
        bytes: u64,
        write: bool,
    ) -> Answer {
        let cached = self.unit.has_cached(source, iova, &self.fabric);
        self.fabric.trace.clear();
        let outcome = self.unit.translate_as(source, pasid, iova, bytes, write, &mut self.fabric);
        let fault = self.fabric.trace.iter().find_map(|line| match line {
            TraceLine::Faulted { reason, recorded, .. } => Some((*reason, *recorded)),
            _ => None,
        });
        let domain = self.unit.domain(source, &self.fabric);
        Answer { outcome, fault, cached, domain }
    }

    /// Rules of the programming interface that software broke since the last request.
    #[must_use]
    pub fn misuses(&self) -> Vec<&'static str> {
        let rule = |line: &TraceLine| match line {
            TraceLine::Misuse { rule, .. } => Some(*rule),
            _ => None,
        };
        self.fabric.trace.iter().filter_map(rule).collect()
    }
}
