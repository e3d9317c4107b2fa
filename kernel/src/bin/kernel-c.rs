//! Release c: the third kernel of a chain of updates, at home in scratch area S0.
#![no_std]
#![no_main]

extern crate alloc;

#[path = "../runtime.rs"]
mod runtime;

/// Release string.
const RELEASE: &str = concat!(env!("CARGO_PKG_VERSION"), "-c");
/// The scratch area that this release is linked for.
const HOME: holdover_kernel::layout::Area = holdover_kernel::layout::S0;
/// What this release can adopt: all that its driver knows.
const ADOPTS: scenario::platform::Adoptable = scenario::platform::Adoptable::EVERYTHING;
