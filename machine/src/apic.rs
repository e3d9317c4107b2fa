//! The processor's local interrupt controller: which vectors wait, and what a kernel was interrupted with.
//!
//! There is one processor, with xAPIC id 0 unless the machine's configuration gives it an x2APIC id. A vector that arrives
//! while interrupts are masked waits in the IRR; a second one of the same number meanwhile makes no difference. The
//! controller outlives kernels: what waits at the jump waits after it.

use crate::vtd::interrupts::Interrupt;

/// Vectors that there are.
const VECTORS: usize = 256;

/// The local controller.
#[derive(Debug, Clone)]
pub struct LocalApic {
    /// The IRR: a bit for each vector that waits.
    pending: [u64; VECTORS / 64],
    /// How often each vector arrived, whether it was waiting already or not.
    arrived: [u64; VECTORS],
    /// The processor's id, in x2APIC mode.
    x2apic_id: Option<u32>,
}

impl LocalApic {
    /// The controller of a processor in x2APIC mode, or of one with xAPIC id 0.
    pub(crate) fn new(x2apic_id: Option<u32>) -> Self {
        Self { pending: [0; VECTORS / 64], arrived: [0; VECTORS], x2apic_id }
    }

    /// The processor's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.x2apic_id.unwrap_or_default()
    }

    /// The processor as a set in logical mode, in x2APIC mode: its cluster, and a bit within.
    #[must_use]
    pub fn logical(&self) -> Option<u32> {
        self.x2apic_id.map(|id| id >> 4 << 16 | 1 << (id & 15))
    }

    /// An interrupt comes by; the controller takes it if it is for this processor.
    pub(crate) fn offer(&mut self, interrupt: Interrupt) {
        let set = self.logical().filter(|_| interrupt.logical);
        let is_in =
            |set: u32| set >> 16 == interrupt.destination >> 16 && set & interrupt.destination & 0xffff != 0;
        let meant = set.map_or(!interrupt.logical && interrupt.destination == self.id(), is_in);
        if meant {
            self.raise(interrupt.vector);
        }
    }

    /// A vector for this processor arrives.
    pub(crate) fn raise(&mut self, vector: u8) {
        self.pending[usize::from(vector) / 64] |= 1 << (vector % 64);
        self.arrived[usize::from(vector)] += 1;
    }

    /// Whether a vector waits.
    #[must_use]
    pub fn is_pending(&self, vector: u8) -> bool {
        self.pending[usize::from(vector) / 64] >> (vector % 64) & 1 == 1
    }

    /// How often a vector arrived.
    #[must_use]
    pub fn arrived(&self, vector: u8) -> u64 {
        self.arrived[usize::from(vector)]
    }

    /// The processor takes the highest vector that waits.
    pub(crate) fn take(&mut self) -> Option<u8> {
        let vector = (0..=u8::MAX).rev().find(|vector| self.is_pending(*vector))?;
        self.pending[usize::from(vector) / 64] &= !(1 << (vector % 64));
        Some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_waits_once_however_often_it_arrives_and_the_highest_goes_first() {
        let mut apic = LocalApic::new(None);
        [0x41, 0x80, 0x41].into_iter().for_each(|vector| apic.raise(vector));
        assert!(apic.is_pending(0x41) && !apic.is_pending(0x42));
        assert_eq!([apic.take(), apic.take(), apic.take()], [Some(0x80), Some(0x41), None]);
        assert_eq!(apic.arrived(0x41), 2);
    }

    #[test]
    fn a_processor_takes_what_names_all_of_its_id_or_its_bit_in_its_cluster_and_nothing_else() {
        let mut apic = LocalApic::new(Some(0x1_0203));
        assert_eq!((apic.id(), apic.logical()), (0x1_0203, Some(0x1020_0008)));
        let mut is_taken = |destination, logical| {
            apic.offer(Interrupt { vector: 0x41, destination, logical });
            apic.take().is_some()
        };
        for (destination, logical, taken) in [
            (0x1_0203, false, true),
            (0x03, false, false),
            (0x1020_0008, true, true),
            (0x1020_000c, true, true),
            (0x1020_0004, true, false),
            (0x1021_0008, true, false),
            (0x1_0203, true, false),
        ] {
            assert_eq!(is_taken(destination, logical), taken, "{destination:#x}, logical: {logical}");
        }
        let mut apic = LocalApic::new(None);
        apic.offer(Interrupt { vector: 0x41, destination: 0, logical: true });
        assert_eq!(apic.take(), None, "no logical id was set in xAPIC mode");
    }
}
