//! A VT-d driver for hosts that have none: units, domains, requesters, page tables, invalidation, faults.
//!
//! From the hardware upwards: [`registers`] is the typed window on a unit's registers with the one bounded wait; [`queue`]
//! and [`command`] carry invalidations, by the queue (its mishaps are [`queue_errors`]) or by registers, and [`forget`]
//! says which and in what order; [`mod@unit`] brings a unit up or takes a running one over, [`entries`] writes its root and
//! context tables, [`pasid`] its PASID tables; [`faults`] reads what it recorded. Beside that, [`table`] holds one walker
//! over page-table formats, [`arena`] the frames that tables are made of, [`domain`] an address space. [`driver`] puts all
//! units and domains of a machine together, [`requesters`] attaches to them, by the units' [`scope`]s and with [`ids`]
//! unique per unit; [`attachments`] and [`import`] do that for PASIDs, [`device_tlb`] is about translations that devices
//! keep, [`page_requests`] about pages that they ask for. [`interrupts`] has a unit's interrupt remapping table. [`config`]
//! has the modes, and what capabilities leave of them.
//!
//! The driver reaches the machine through [`Hal`] alone, and implements the host traits of `liveupdate`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

pub mod arena;
pub mod attachments;
pub mod command;
pub mod config;
pub mod device_tlb;
pub mod domain;
pub mod driver;
pub mod entries;
pub mod error;
pub mod faults;
pub mod forget;
pub mod ids;
pub mod import;
pub mod interrupts;
pub mod page_requests;
pub mod pasid;
mod places;
pub mod queue;
pub mod queue_errors;
pub mod reduce;
pub mod registers;
pub mod requesters;
pub mod scope;
pub mod table;
pub mod unit;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use config::{Capability, Choices, Config, Mode, Modes, Origin};
pub use device_tlb::DeviceTlb;
pub use domain::DomainHandle;
pub use driver::{Iommu, Setup};
pub use error::{AttachError, DomainError, MapError, UnitError};
pub use faults::{Fault, FaultSummary};
pub use forget::Invalidation;
pub use interrupts::{Asker, InterruptEntry, InterruptError, InterruptSetup, Message};
pub use pasid::{Attachment, GuestTables};
pub use queue_errors::QueueError;
pub use reduce::ReduceError;
pub use scope::{Topology, UnitDescription};
pub use table::format::{Access, Stage};
pub use unit::VtdUnit;

use liveupdate::host::{MaySleep, TableMemory};
use spec::{Extent, PhysAddr, Requester};

/// What the driver needs from a host.
///
/// Implementers owe: register accesses happen in program order, each as one access of the width named, ordered after all
/// stores to memory before it ([`TableMemory::write`]) and before all loads after it.
///
/// In scalable mode page tables are walked without regard to the processor's caches where ECAP.SMPWCS is clear, whatever
/// ECAP.C says of other tables (VT-d 11.4.3): there too [`TableMemory::write`] flushes.
pub trait Hal: TableMemory {
    /// A unit register, 32 bits wide.
    fn read32(&self, at: PhysAddr) -> u32;
    /// A unit register, 64 bits wide.
    fn read64(&self, at: PhysAddr) -> u64;
    /// Writes a unit register, 32 bits wide.
    fn write32(&self, at: PhysAddr, value: u32);
    /// Writes a unit register, 64 bits wide.
    fn write64(&self, at: PhysAddr, value: u64);
    /// Monotonic time in nanoseconds.
    fn now(&self) -> u64;
    /// Lets a little time pass in a polling loop.
    fn relax(&self);
    /// `count` adjacent zeroed frames for tables and queues, at a multiple of `align` frames (a power of two). They may
    /// be preserved across an update: outside scratch memory. Walks of every unit see the zeroes when this returns (on a
    /// unit with ECAP.C = 0: every line is flushed); what a walk finds instead, it takes for entries.
    fn allocate(&self, ctx: &mut MaySleep, count: u64, align: u64) -> Option<Extent>;
    /// Switches ATS of a function off: its device did not answer an invalidation, and its entry is cleared. Called with the
    /// right to sleep, also for a requester that was detached before. Says whether it is off now: a host that does not reach
    /// the function's configuration says no, and the cleared entry alone blocks the device.
    fn device_tlb_off(&self, _requester: Requester) -> bool {
        false
    }
    /// Gives frames of [`Self::allocate`] back, or frames that came with an adopted domain.
    fn free(&self, ctx: &mut MaySleep, run: Extent);
}
