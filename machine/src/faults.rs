//! Faults on demand: what a campaign can make go wrong in an otherwise correct machine.

use scenario::platform::Mark;
use spec::SourceId;

/// What goes wrong, and when. Counts start at zero; nothing goes wrong by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// The allocation with this number (over all kernels) fails, once.
    pub fail_allocation: Option<u64>,
    /// The 64-bit store with this number (over all kernels) is lost.
    pub lose_store: Option<u64>,
    /// The invalidation with this number (over all units; waits not counted) is reported done and not done.
    pub swallow_invalidation: Option<u64>,
    /// Invalidation queues go wrong.
    pub queues: Vec<QueueFault>,
    /// A byte of memory changes when a kernel leaves the mark.
    pub corrupt: Vec<Corruption>,
}

/// An error of an invalidation queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFault {
    /// When it strikes.
    pub when: Strike,
    /// What happens.
    pub kind: QueueFaultKind,
}

/// When an error strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// At the fetch of a descriptor: the one with this number, over all units.
    Fetch(u64),
    /// When a kernel leaves this mark, in the first unit.
    Mark(Mark),
}

/// What happens to an invalidation queue (VT-d 6.5.2.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFaultKind {
    /// IQE: the descriptor is refused, and again as long as it stands there. At a mark: the queue stops for no reason.
    Refused,
    /// ITE: the unit takes it that this device did not answer. Waits that were fetched are dropped.
    Unanswered(SourceId),
    /// ICE: an answer comes from this device that nobody waits for.
    Unexpected(SourceId),
}

/// One byte of memory that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corruption {
    /// At this mark, before anything else happens.
    pub moment: Mark,
    /// Physical address.
    pub address: u64,
    /// What the byte is xored with.
    pub flip: u8,
}

/// The wanted faults and how far each count has come.
#[derive(Debug, Default)]
pub(crate) struct Injector {
    pub(crate) wanted: Faults,
    allocations: u64,
    stores: u64,
    invalidations: u64,
    fetches: u64,
}

impl Injector {
    pub(crate) fn new(wanted: Faults) -> Self {
        Self { wanted, ..Self::default() }
    }
    pub(crate) fn allocation_fails(&mut self) -> bool {
        hit(&mut self.allocations, self.wanted.fail_allocation)
    }
    pub(crate) fn store_is_lost(&mut self) -> bool {
        hit(&mut self.stores, self.wanted.lose_store)
    }
    pub(crate) fn invalidation_is_swallowed(&mut self) -> bool {
        hit(&mut self.invalidations, self.wanted.swallow_invalidation)
    }
    /// What happens to a queue at such a time.
    pub(crate) fn queue_fault_at(&self, when: Strike) -> Option<QueueFaultKind> {
        self.wanted.queues.iter().find(|fault| fault.when == when).map(|fault| fault.kind)
    }
    /// What happens to the queue whose descriptor is fetched now.
    pub(crate) fn queue_fault(&mut self) -> Option<QueueFaultKind> {
        let number = self.fetches;
        self.fetches += 1;
        self.queue_fault_at(Strike::Fetch(number))
    }
}

fn hit(count: &mut u64, wanted: Option<u64>) -> bool {
    let number = *count;
    *count += 1;
    wanted == Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbered_event_is_hit() {
        let mut injector = Injector::new(Faults { lose_store: Some(2), ..Faults::default() });
        assert_eq!([0; 4].map(|_| injector.store_is_lost()), [false, false, true, false]);
        assert!(!injector.allocation_fails() && !injector.invalidation_is_swallowed());
    }
}
