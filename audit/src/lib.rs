//! The independent second opinion on a live update.
//!
//! [`audit`] reads a memory image and the units' registers, finds the handover by itself (the KHO tree, the map of
//! preserved memory, our records), walks the tables that hardware reads by itself, and reports what it checked and every
//! violation of the invariants. It shares only `spec` with the code that it judges, so that one mistake does not hide
//! another.
//!
//! Data passes through in this order: [`handover`] locates and verifies the records; they are put into a searchable order
//! in working memory that the host gives ([`Scratch`]); [`kho`] answers which frames are preserved; then memory, units,
//! entries and domains are checked against them. Nothing read is trusted: every address may be missing, every count may
//! lie, every table may lead in circles. There is no allocation, no recursion and no panic; what cannot be searched in
//! bounded memory is refused by name.
//!
//! What memory cannot show is said so: see [`Checked::checkable`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

mod audit;
mod collect;
mod device_tlb;
mod domains;
mod entries;
mod error;
mod finding;
pub mod handover;
mod image;
mod index;
mod interrupts;
pub mod kho;
mod memory;
mod mode;
mod nested;
mod pasids;
mod report;
mod scalable;
mod scratch;
mod units;

pub use audit::{Stage, UnitState, audit};
pub use error::Unreadable;
pub use finding::{Finding, Invariant, Item, RecordKind, Role, What};
pub use image::{Image, Missing};
pub use report::{Checked, Report, Totals};
pub use scratch::{MAX_TABLE_FRAMES, Scratch, UNIT_LIMIT};
