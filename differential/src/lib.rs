//! A differential test of two VT-d implementations: QEMU's, and the simulated machine's.
//!
//! Both get the same tables, register writes and requests, made at random from a seed ([`tables`]). QEMU is
//! driven from outside over its test protocol ([`qtest`], [`rig`]): its processor is halted, and edu devices issue the
//! requests. The simulated unit is asked directly ([`machine::Probe`]). [`compare`] judges every request by what each did
//! with it: which byte of memory was reached, or which fault was recorded. Where QEMU is known to depart from the
//! specification, [`known`] says so, one entry each; everything else that differs is a failure.
#![forbid(unsafe_code)]

pub mod chance;
pub mod compare;
pub mod known;
pub mod mode;
pub mod program;
pub mod qtest;
pub mod rig;
mod scalable;
pub mod tables;
pub mod tally;
