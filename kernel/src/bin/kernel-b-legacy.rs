//! Release b of a build that drives units in legacy mode only: what it says of itself is all that differs. It is there to be
//! refused, before the jump, by a kernel with units in scalable mode.
#![no_std]
#![no_main]

extern crate alloc;

#[path = "../runtime.rs"]
mod runtime;

/// Release string.
const RELEASE: &str = concat!(env!("CARGO_PKG_VERSION"), "-b-legacy");
/// The scratch area that this release is linked for.
const HOME: holdover_kernel::layout::Area = holdover_kernel::layout::S1;
/// What this release can adopt.
const ADOPTS: scenario::platform::Adoptable = scenario::platform::Adoptable::LEGACY;
