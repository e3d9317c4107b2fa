//! The processor's local interrupt controller: which vectors wait, and what a kernel was interrupted with.
//!
//! There is one processor, with xAPIC id 0. A vector that arrives while interrupts are masked waits in the IRR; a second one of
//! the same number meanwhile makes no difference. The controller outlives kernels: what waits at the jump waits after it.

/// Vectors that there are.
const VECTORS: usize = 256;

/// The local controller.
#[derive(Debug, Clone)]
pub struct LocalApic {
    /// The IRR: a bit for each vector that waits.
    pending: [u64; VECTORS / 64],
    /// How often each vector arrived, whether it was waiting already or not.
    arrived: [u64; VECTORS],
}

impl Default for LocalApic {
    fn default() -> Self {
        Self { pending: [0; VECTORS / 64], arrived: [0; VECTORS] }
    }
}

impl LocalApic {
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
        let mut apic = LocalApic::default();
        [0x41, 0x80, 0x41].into_iter().for_each(|vector| apic.raise(vector));
        assert!(apic.is_pending(0x41) && !apic.is_pending(0x42));
        assert_eq!([apic.take(), apic.take(), apic.take()], [Some(0x80), Some(0x41), None]);
        assert_eq!(apic.arrived(0x41), 2);
    }
}
