//! The auditor as a tool: what a kernel's remapping tables and its handover hold, read from an image of its memory.
//!
//! Data passes through in this order: [`image`] opens a file as memory, [`registers`] says where the tables start,
//! [`model`] follows them (page tables by [`tables`], handovers by [`kho`]), and [`format`](mod@format) shows the result.
//! Questions about one address have modules of their own: [`translate`] and [`reach`]. The DMAR table of ACPI is apart:
//! [`dmar`].
//!
//! Nothing that is read is trusted: every chain is bounded, every count is believed only as far as bytes are there for
//! it. This crate reads the tables by itself; it shares only `spec` with the code that wrote them, and the auditor's
//! reader for the records of our own handovers.
#![deny(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod diff;
pub mod dmar;
pub mod extract;
pub mod format;
pub mod image;
pub mod kho;
pub mod model;
pub mod reach;
pub mod registers;
pub mod tables;
pub mod translate;
pub mod verify;
