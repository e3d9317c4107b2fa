//! The update that is shown: both kernels' parts, the devices that bear witness, over any [`platform::Platform`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod event;
pub mod platform;
