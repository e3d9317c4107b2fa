//! What a host gives the core: the whole surface of a port.
//!
//! A host implements [`TableMemory`] (reading and writing translation tables), [`Unit`] (one remapping unit's registers
//! and invalidation), [`FrameKeeper`] (marking frames preserved, and frames for the handover itself) and [`Host`] (clock,
//! log, domains). All methods take `&self`, so that one process can hold several machines.
//!
//! Two tokens carry the rule of what may happen where. [`MaySleep`] exists once per thread of the host; whatever sleeps or
//! allocates takes it by `&mut`. Taking a unit's lock borrows it for as long as the lock is held and hands out an
//! [`Atomic`] instead, so nothing that sleeps can be reached under the lock: the borrow checker refuses it.
//!
//! ```compile_fail,E0499
//! # use liveupdate::host::*; use spec::*;
//! fn wrong<U: Unit, K: FrameKeeper>(unit: &U, keeper: &K, ctx: &mut MaySleep, run: Extent) {
//!     unit.locked(ctx, |_atomic| {
//!         let _ = keeper.reserve(ctx, run); // sleeps in atomic context: does not compile
//!     });
//! }
//! ```
//! ```
//! # use liveupdate::host::*; use spec::*;
//! fn right<U: Unit, K: FrameKeeper>(unit: &U, keeper: &K, ctx: &mut MaySleep, run: Extent) {
//!     if keeper.reserve(ctx, run).is_ok() {
//!         unit.locked(ctx, |atomic| keeper.commit(atomic, run));
//!     }
//! }
//! ```

mod device_tlb;
mod interrupts;
mod page_requests;

pub use crate::able::{Adoptable, Contradiction, NoSense};
pub use device_tlb::DeviceTlb;
pub use interrupts::{ForgetInterrupts, InterruptRemapping};
pub use page_requests::PageRequests;

use core::fmt;
use spec::regs::{Cap, Ecap, Gsts, RootAddr};
use spec::{DomainId, Extent, Iova, PhysAddr, Requester, SourceId, UnitId};

/// Proof that the caller may sleep and allocate, and holds no unit's lock.
///
/// # Invariants
/// A host makes one per thread of execution, where that thread starts, and passes it down by `&mut`.
#[derive(Debug)]
pub struct MaySleep(());

impl MaySleep {
    /// The token of a thread that may sleep. Call once where a thread starts, never to get around a borrow error: that
    /// error is a sleep in atomic context.
    #[must_use]
    pub const fn at_thread_start() -> Self {
        Self(())
    }
    /// Runs `f` as code that must neither sleep nor allocate. Hosts call this inside [`Unit::locked`], after taking the
    /// lock; the token stays borrowed meanwhile.
    pub fn atomic<R>(&mut self, f: impl FnOnce(&Atomic) -> R) -> R {
        f(&Atomic(()))
    }
}

/// Proof that the caller must neither sleep nor allocate: a lock is held or interrupts are off.
#[derive(Debug)]
pub struct Atomic(());

impl Atomic {
    /// The token for code past the point of no return: one CPU, interrupts off. It consumes the thread's right to sleep.
    #[must_use]
    pub fn for_good(_: MaySleep) -> Self {
        Self(())
    }
}

/// An address at which the host has no memory to read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMemory {
    /// The first address that cannot be reached.
    pub at: PhysAddr,
}

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory at {}", self.at)
    }
}
impl core::error::Error for NoMemory {}

/// Physical memory as tables and records are read from it and written to it.
pub trait TableMemory {
    /// The 64-bit word at `at` (a multiple of 8), in one load.
    ///
    /// # Errors
    /// [`NoMemory`] when the host has no memory there. Addresses out of foreign data come here unchecked: never fault.
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory>;

    /// Stores a 64-bit word at `at` (a multiple of 8) in one store, after all stores before it, and makes it visible to
    /// walks of every unit (on a unit with ECAP.C = 0: flushes the cache line) before it returns.
    ///
    /// # Errors
    /// [`NoMemory`] when the host has no memory there. Never after an earlier read of the same frame succeeded.
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory>;

    /// Fills `out` with the words from `at` (a multiple of 8) on.
    ///
    /// # Errors
    /// [`NoMemory`]; `out` is then undefined.
    fn read_words(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), NoMemory> {
        for (i, word) in out.iter_mut().enumerate() {
            *word = self.read(at.checked_add(8 * i as u64).ok_or(NoMemory { at })?)?;
        }
        Ok(())
    }
}

/// What hardware shall forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    /// Every cached context (and PASID) entry, then every cached translation, in this order (VT-d 6.5.3).
    Everything,
    /// The context entry of one requester, then all translations of the domain that it had.
    Requester {
        /// The requester's source id.
        source: SourceId,
        /// The domain id in the entry before it was cleared.
        domain: DomainId,
    },
    /// All translations of one domain.
    Domain(DomainId),
    /// `2^order` pages of one domain, from an address aligned to that size.
    Pages {
        /// The domain.
        domain: DomainId,
        /// First page.
        start: Iova,
        /// Binary logarithm of the number of pages.
        order: u8,
    },
}

/// Proof that hardware finished forgetting: a wait descriptor was seen completed, or the register read done.
#[derive(Debug)]
#[must_use]
pub struct Forgotten(());

impl Forgotten {
    /// For implementers of [`Unit::forget`], once completion was observed.
    pub const fn observed() -> Self {
        Self(())
    }
}

/// A bounded wait for hardware that ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut {
    /// The unit.
    pub unit: UnitId,
    /// What was waited for, in words.
    pub what: &'static str,
    /// How long, in nanoseconds.
    pub waited: u64,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}: {} not done after {} us", self.unit, self.what, self.waited / 1000)
    }
}
impl core::error::Error for TimedOut {}

/// One remapping unit.
///
/// Implementers owe: registers are read from hardware at each call, never from a copy; every wait is bounded by a clock.
/// Callers owe: nothing more than the tokens.
pub trait Unit {
    /// Which unit this is.
    fn id(&self) -> UnitId;
    /// Capabilities.
    fn cap(&self) -> Cap;
    /// Extended capabilities.
    fn ecap(&self) -> Ecap;
    /// Global status, as hardware has it now.
    fn status(&self) -> Gsts;
    /// The root table address register, as hardware has it now.
    fn root(&self) -> RootAddr;
    /// Makes hardware forget, and waits (bounded) until it has.
    ///
    /// # Errors
    /// [`TimedOut`] when completion was not seen: hardware may still use what it cached.
    fn forget(&self, atomic: &Atomic, what: Forget) -> Result<Forgotten, TimedOut>;
    /// Makes a device forget all translations that it keeps, under every PASID, and waits until it has, bounded. Says whether
    /// the device answered. A host whose units have no device-TLBs need not provide it.
    ///
    /// # Errors
    /// [`TimedOut`] when the unit did not say either: it may say nothing more for long.
    fn forget_device(&self, _atomic: &Atomic, _source: SourceId, _tlb: DeviceTlb) -> Result<bool, TimedOut> {
        Err(TimedOut { unit: self.id(), what: "device-TLB invalidation, which the host lacks", waited: 0 })
    }
    /// Makes a device forget the translations that it keeps of requests with one PASID (VT-d 6.5.2.6), as
    /// [`Self::forget_device`] otherwise: which is what a host does that does not provide it, since forgetting more is no
    /// harm.
    ///
    /// # Errors
    /// As [`Self::forget_device`].
    fn forget_device_pasid(
        &self,
        atomic: &Atomic,
        source: SourceId,
        tlb: DeviceTlb,
        _pasid: u32,
    ) -> Result<bool, TimedOut> {
        self.forget_device(atomic, source, tlb)
    }
    /// Switches translation off and protected memory off: for a unit with nothing preserved, as a normal shutdown does.
    ///
    /// # Errors
    /// [`TimedOut`] when the status bit did not clear.
    fn disable(&self, atomic: &Atomic) -> Result<(), TimedOut>;
    /// The unit's interrupt remapping. `None`, as here: the unit has none, or the host does not use it.
    fn interrupts(&self) -> Option<&dyn InterruptRemapping> {
        None
    }
    /// Runs `f` with the unit's lock held: nobody else changes its root, context and interrupt tables meanwhile.
    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R;
}

/// The host cannot mark or give frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepError {
    /// Out of memory (the host's own books, or frames asked for).
    NoMemory {
        /// Frames asked for or to be marked.
        frames: u64,
    },
    /// The frames lie where nothing can be preserved: scratch memory, or no memory at all.
    NotKeepable(Extent),
}

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { frames } => write!(f, "out of memory for {frames} frames"),
            Self::NotKeepable(e) => write!(f, "{e} is scratch or no memory and cannot be preserved"),
        }
    }
}
impl core::error::Error for KeepError {}

/// Marks frames preserved, in two steps: reserve may sleep and fail; commit does neither.
pub trait FrameKeeper {
    /// Makes room in the host's books for marking `run`, and checks that it may be marked. Nothing is marked yet.
    ///
    /// # Errors
    /// [`KeepError`]; nothing has changed then.
    fn reserve(&self, ctx: &mut MaySleep, run: Extent) -> Result<(), KeepError>;
    /// Marks a run that was reserved. Infallible.
    fn commit(&self, atomic: &Atomic, run: Extent);
    /// Takes back a reservation, committed or not: the books are as they were before it.
    fn release(&self, ctx: &mut MaySleep, run: Extent);
    /// `count` adjacent frames, zeroed, outside scratch memory, for the handover itself. Not marked.
    ///
    /// # Errors
    /// [`KeepError::NoMemory`].
    fn allocate(&self, ctx: &mut MaySleep, count: u64) -> Result<Extent, KeepError>;
    /// Gives frames of [`Self::allocate`] back.
    fn free(&self, ctx: &mut MaySleep, run: Extent);
}

/// How urgent a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something was refused or is broken.
    Error,
    /// Worth knowing.
    Info,
}

/// The host as a whole.
pub trait Host: TableMemory + FrameKeeper {
    /// Its kind of unit.
    type Unit: Unit;
    /// The unit with this id, if the machine has it.
    fn unit(&self, id: UnitId) -> Option<&Self::Unit>;
    /// Calls `f` with every unit of the machine.
    fn for_each_unit(&self, f: &mut dyn FnMut(&Self::Unit));
    /// The unit that translates for `requester`, if there is one.
    fn unit_for(&self, requester: Requester) -> Option<&Self::Unit>;
    /// Incoming kernel, at finish: frames of the handover that nobody retrieved (or that held the handover itself) are
    /// the host's to use as it likes.
    fn give_back(&self, ctx: &mut MaySleep, run: Extent);
    /// What is known of a requester whose device has ATS on; `None`: it keeps no translations. Neither allocates nor sleeps.
    fn device_tlb(&self, _requester: Requester) -> Option<DeviceTlb> {
        None
    }
    /// Switches ATS of a function off: its device did not answer, and its entry is cleared. Says whether it is off now: a host
    /// that does not reach the function says no, and the cleared entry alone blocks the device.
    fn device_tlb_off(&self, _atomic: &Atomic, _requester: Requester) -> bool {
        false
    }
    /// Page requests of its devices. `None`, as here: the host has none on, and a requester whose entry allows them cannot be
    /// preserved.
    fn page_requests(&self) -> Option<&dyn PageRequests> {
        None
    }
    /// What this kernel can take over.
    fn adoptable(&self) -> Adoptable;
    /// Monotonic time in nanoseconds.
    fn now(&self) -> u64;
    /// A message for people.
    fn log(&self, level: Level, message: fmt::Arguments<'_>);
    /// From now on the driver refuses map and unmap in the domain with this top table; or no longer.
    fn hold_mappings(&self, ctx: &mut MaySleep, top_table: PhysAddr, held: bool);
    /// Calls `f` with every other source-id under which DMA of `requester` arrives (bridges, phantom functions); says
    /// whether the requester is a PCI function that the host knows. A requester that is none cannot be preserved.
    fn aliases(&self, requester: Requester, f: &mut dyn FnMut(SourceId)) -> RequesterKind;
}

/// What a host knows of a requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequesterKind {
    /// A PCI function.
    PciFunction,
    /// Something else that issues DMA: named in ANDD, an IOAPIC, a HPET, an alias, or nothing known.
    Other,
}
