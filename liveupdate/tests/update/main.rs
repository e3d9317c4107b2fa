//! The live update from outside, over a machine that is honest: see [`common`].
//!
//! Tests named `lesson_NN_...` guard a lesson of the design's list of mistakes that others paid for.

mod adoption;
mod all_or_nothing;
mod bridge;
mod common;
mod cut_off;
mod device_tlb;
mod drift;
mod finish;
mod foreign;
mod interrupts;
mod map;
mod order;
mod refusals;
mod releases;
mod reserved;
mod scalable;
mod scattered;
