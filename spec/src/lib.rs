//! What the hardware and the wire look like.
//!
//! Layouts only: registers, table entries, descriptors, the DMAR table, KHO and the handover's own records. Each item
//! names its section of the *Intel Virtualization Technology for Directed I/O* specification (cited as "VT-d", revision
//! 4.1 unless said). No behaviour, no `unsafe`, no allocation. Every other room of the project may depend on this one,
//! and two of them that must not share an opinion (the driver and the auditor) share nothing else.
//!
//! Fields are written `[hi:lo]` exactly as the manual prints them, by [`bitfields!`].
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
pub mod bits;
#[macro_use]
pub mod wire;
pub mod addr;
pub mod context;
pub mod dmar;
pub mod fault;
pub mod fdt;
pub mod first_stage;
pub mod handover;
pub mod interrupt;
pub mod invalidation;
pub mod kho;
pub mod regs;
pub mod requester;
pub mod root;
pub mod scalable;
pub mod second_stage;
pub mod xxh64;

pub use addr::{Extent, Frame, Iova, PAGE_SIZE, PhysAddr};
pub use requester::{DomainId, Requester, Segment, SourceId, UnitId};
