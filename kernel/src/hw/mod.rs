//! What touches the processor and the chipset. All `unsafe` of the kernel lies here and in the entry code.
//!
//! One processor runs, and interrupts are off but for the moments in which [`local_apic`] lets them in, to be counted and
//! nothing else; everything is polled. State that has to be global (the serial port's, the heap's, the processor's tables)
//! relies on that.

pub mod cpu;
pub mod crash;
pub mod exit;
pub mod heap;
pub mod hpet;
pub mod interrupts;
pub mod local_apic;
pub mod physical;
pub mod port;
pub mod serial;
pub mod traps;
