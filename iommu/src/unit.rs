//! One unit: brought up from reset or firmware's state, or taken over while it runs.

use crate::Hal;
use crate::error::{AttachError, UnitError};
use crate::faults::{Fault, FaultSummary};
use crate::registers::Patience;
use liveupdate::host::{Atomic, Forget, Forgotten, MaySleep, NoMemory, TimedOut, Unit};
use spec::context::ContextEntry;
use spec::regs::{Cap, Ecap, Gsts, RootAddr};
use spec::{PhysAddr, SourceId, UnitId};

/// How a unit is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// Bound of every wait for hardware.
    pub patience: Patience,
    /// Leave the invalidation queue alone and invalidate by registers, as on hardware without a queue.
    pub registers_only: bool,
}

/// How the driver came by a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Set up anew: an empty root table.
    SetUp,
    /// Taken over while it ran, with the predecessor's tables.
    TakenOver,
}

/// One remapping unit in legacy mode.
#[derive(Debug)]
pub struct VtdUnit<'h, H> {
    hal: &'h H,
    id: UnitId,
}

impl<'h, H: Hal> VtdUnit<'h, H> {
    /// Brings a unit up with an empty root table, from reset or from whatever firmware left. Translation is not switched
    /// on, nor off.
    ///
    /// # Errors
    /// [`UnitError`].
    pub fn set_up(_hal: &'h H, _ctx: &mut MaySleep, _id: UnitId, _config: Config) -> Result<Self, UnitError> {
        todo!()
    }
    /// Takes over a unit that a predecessor left running. Translation and the root table are not touched; the
    /// invalidation queue is replaced by a new one.
    ///
    /// # Errors
    /// [`UnitError`]; the unit goes on translating.
    pub fn take_over(
        _hal: &'h H,
        _ctx: &mut MaySleep,
        _id: UnitId,
        _config: Config,
    ) -> Result<Self, UnitError> {
        todo!()
    }
    /// How the driver came by the unit.
    #[must_use]
    pub fn origin(&self) -> Origin {
        todo!()
    }
    /// Switches translation on, and firmware's protected memory regions off.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn enable(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        todo!()
    }
    /// Reads, attributes and clears recorded faults.
    pub fn faults(&self, _f: &mut dyn FnMut(Fault)) -> FaultSummary {
        todo!()
    }
    /// The context entry of a source-id; `None` where the bus has no context table.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub fn context_entry(&self, _source: SourceId) -> Result<Option<ContextEntry>, NoMemory> {
        todo!()
    }
    /// Writes the same entry for all `sources`, all or none.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_entries(
        &self,
        _ctx: &mut MaySleep,
        _sources: &[SourceId],
        _entry: ContextEntry,
    ) -> Result<(), AttachError> {
        todo!()
    }
    /// Clears the entries of `sources` and makes hardware forget them.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn detach_entries(&self, _ctx: &mut MaySleep, _sources: &[SourceId]) -> Result<(), AttachError> {
        todo!()
    }
    /// Address of the host's machine (for callers that hold a unit alone).
    #[must_use]
    pub fn hal(&self) -> &'h H {
        self.hal
    }
    /// Where the root table is, as hardware has it.
    #[must_use]
    pub fn root_table(&self) -> PhysAddr {
        self.root().table()
    }
}

impl<H: Hal> Unit for VtdUnit<'_, H> {
    fn id(&self) -> UnitId {
        self.id
    }
    fn cap(&self) -> Cap {
        todo!()
    }
    fn ecap(&self) -> Ecap {
        todo!()
    }
    fn status(&self) -> Gsts {
        todo!()
    }
    fn root(&self) -> RootAddr {
        todo!()
    }
    fn forget(&self, _atomic: &Atomic, _what: Forget) -> Result<Forgotten, TimedOut> {
        todo!()
    }
    fn disable(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        todo!()
    }
    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R {
        ctx.atomic(f)
    }
}
