//! Preserve, freeze, cut off, jump, open, adopt: IOMMU state across a change of kernel.
//!
//! The core works on the hardware's own tables through the host traits of [`host`]; it has no idea of any driver's
//! structures, owns no global, never allocates, and keeps what it knows in storage that the host gives it.
#![no_std]
#![forbid(unsafe_code)]

pub mod host;
