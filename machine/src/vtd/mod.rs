//! The remapping unit as hardware: registers, caches that go stale, a queue that takes time, fault records.
//!
//! Written from the specification alone; with the driver it shares the layouts in `spec` and no line of behaviour. A DMA comes
//! in through `Unit::translate`, software through `Unit::read` and `Unit::write` (in `registers`), time through
//! `Unit::run`.

#[cfg(test)]
mod agreement;
pub mod cache;
pub mod faultlog;
pub mod first;
#[cfg(test)]
mod interrupt_tests;
pub mod interrupts;
mod lookup;
mod page_requests;
pub mod queue;
mod registers;
#[cfg(test)]
mod scalable_tests;
#[cfg(test)]
mod tests;
mod translate;
pub mod unit;
pub mod walk;

pub use unit::{Outcome, Unit};
