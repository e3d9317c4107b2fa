//! What touches the processor and the chipset. All `unsafe` of the kernel lies here and in the entry code.
//!
//! One processor runs, interrupts stay off from the first instruction to the last, and everything is polled. State that
//! has to be global (the serial port's, the heap's, the processor's tables) relies on that.

pub mod cpu;
pub mod crash;
pub mod exit;
pub mod heap;
pub mod hpet;
pub mod interrupts;
pub mod physical;
pub mod port;
pub mod serial;
pub mod traps;
