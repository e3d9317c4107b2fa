//! The update that is shown: both kernels' parts, the devices that bear witness, over any [`platform::Platform`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod edu;
pub mod event;
#[cfg(test)]
mod fake;
pub mod hda;
pub mod pci;
pub mod platform;
mod poll;
pub mod story;
pub mod streamer;
pub mod text;
pub mod tune;
