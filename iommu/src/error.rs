//! What can go wrong, with the facts that someone needs who has to mend it.

use crate::config::{Capability, Mode};
use crate::table::format::Stage;
use core::fmt;
use liveupdate::host::{NoMemory, TimedOut};
use spec::{DomainId, Iova, PhysAddr, Requester, SourceId, UnitId};

/// A unit cannot be brought up or taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitError {
    /// No unit answers at the register base: version or capabilities read as all ones or as nothing.
    NotThere(UnitId),
    /// The unit is of a major version that this driver does not know.
    Version {
        /// The unit.
        unit: UnitId,
        /// Its version register.
        version: u32,
    },
    /// The unit can walk second-stage tables of no width that this driver builds (3 to 5 levels).
    NoWidth {
        /// The unit.
        unit: UnitId,
        /// Its capability register.
        cap: u64,
    },
    /// Take-over of a unit that does not translate, or whose root table was never set.
    NotRunning {
        /// The unit.
        unit: UnitId,
        /// Its status register.
        status: u32,
    },
    /// The unit runs in another translation mode than the configured one (I10). Nothing was changed.
    Mode {
        /// The unit.
        unit: UnitId,
        /// Its root table address register, with the mode that it runs in.
        root: u64,
        /// The mode that the driver was to run it in.
        configured: Mode,
    },
    /// The unit lacks something that the configured mode needs.
    Lacks {
        /// The unit.
        unit: UnitId,
        /// What.
        what: Capability,
    },
    /// No frames for the root table or the queue.
    OutOfMemory {
        /// The unit.
        unit: UnitId,
        /// Frames asked for.
        frames: u64,
    },
    /// A table or queue lies where there is no memory.
    NoMemory(NoMemory),
    /// Hardware did not do a step in time.
    TimedOut(TimedOut),
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere(unit) => write!(f, "unit {unit}: nothing answers there; check the DMAR table"),
            Self::Version { unit, version } => {
                write!(f, "unit {unit}: version register {version:#x} is not known")
            }
            Self::NoWidth { unit, cap } => {
                write!(f, "unit {unit}: capabilities {cap:#x} offer no second-stage tables of 3 to 5 levels")
            }
            Self::NotRunning { unit, status } => {
                write!(
                    f,
                    "unit {unit}: not translating (status {status:#x}), nothing to take over; set it up instead"
                )
            }
            Self::Mode { unit, root, configured } => {
                write!(
                    f,
                    "unit {unit} runs in another mode (root table register {root:#x}) than {configured}; start in the \
                     mode that it runs in"
                )
            }
            Self::Lacks { unit, what } => write!(f, "unit {unit} lacks {what}; choose another mode"),
            Self::OutOfMemory { unit, frames } => write!(f, "unit {unit}: out of memory for {frames} frames"),
            Self::NoMemory(e) => e.fmt(f),
            Self::TimedOut(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for UnitError {}

impl From<TimedOut> for UnitError {
    fn from(e: TimedOut) -> Self {
        Self::TimedOut(e)
    }
}
impl From<NoMemory> for UnitError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}

/// A mapping cannot be made or removed. Unless it says otherwise, nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// There is no such domain.
    NoDomain,
    /// The domain is preserved or adopted: its mappings are held until it is released.
    Frozen,
    /// Address or length is no multiple of 4096, or the length is zero.
    Misaligned {
        /// I/O virtual address asked for.
        iova: Iova,
        /// Length in bytes.
        bytes: u64,
    },
    /// The range leaves what the domain's tables and units can address.
    OutOfRange {
        /// Width in bits that was exceeded.
        bits: u32,
        /// The last byte asked for.
        last: u64,
    },
    /// The range touches 0xfee00000..0xfef00000, where writes are interrupts and are never translated.
    InterruptRange,
    /// Neither read nor write was asked for.
    NoAccess,
    /// Write without read was asked for, which first-stage tables cannot say.
    WriteOnly,
    /// Something is mapped there already.
    AlreadyMapped {
        /// First address that is.
        iova: Iova,
    },
    /// No frames for tables.
    OutOfMemory {
        /// Frames needed.
        frames: u64,
    },
    /// A table of the domain points where there is no memory.
    NoMemory(NoMemory),
    /// Hardware did not confirm the invalidation. The mapping is not there (map) or is gone (unmap), but hardware may go
    /// on using it: neither the target memory nor the table frames may be used again.
    TimedOut(TimedOut),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDomain => write!(f, "no such domain"),
            Self::Frozen => {
                write!(f, "the domain is preserved or adopted: its mappings are held; release it first")
            }
            Self::Misaligned { iova, bytes } => {
                write!(
                    f,
                    "{bytes:#x} bytes at {iova}: address and length must be multiples of 4096, the length not zero"
                )
            }
            Self::OutOfRange { bits, last } => write!(f, "{last:#x} lies beyond {bits} bits"),
            Self::InterruptRange => {
                write!(f, "the range touches 0xfee00000..0xfef00000, which is never translated")
            }
            Self::NoAccess => write!(f, "a mapping needs read or write"),
            Self::WriteOnly => {
                write!(f, "first-stage tables cannot permit to write but not to read; add read")
            }
            Self::AlreadyMapped { iova } => write!(f, "{iova} is mapped already; unmap it first"),
            Self::OutOfMemory { frames } => write!(f, "out of memory for {frames} table frames"),
            Self::NoMemory(e) => write!(f, "page table: {e}"),
            Self::TimedOut(e) => write!(f, "{e}; the memory must not be used again"),
        }
    }
}
impl core::error::Error for MapError {}

impl From<NoMemory> for MapError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}
impl From<TimedOut> for MapError {
    fn from(e: TimedOut) -> Self {
        Self::TimedOut(e)
    }
}

/// A domain cannot be made, imported or destroyed. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainError {
    /// There is no such domain.
    NoDomain,
    /// There is no such unit.
    NoUnit(UnitId),
    /// A unit cannot walk tables of that many levels.
    Levels {
        /// The unit.
        unit: UnitId,
        /// Levels asked for.
        levels: u8,
    },
    /// A unit, in the mode that it runs in, walks no tables of that stage.
    Stage {
        /// The unit.
        unit: UnitId,
        /// The stage asked for.
        stage: Stage,
    },
    /// The units have no table width in common.
    NoCommonLevels,
    /// No frames for tables.
    OutOfMemory {
        /// Frames asked for.
        frames: u64,
    },
    /// The id is zero, beyond what the unit tells apart, or has an owner on this unit (I5).
    DomainIdTaken {
        /// The unit.
        unit: UnitId,
        /// The id.
        id: DomainId,
    },
    /// All ids of the unit have owners.
    NoDomainId(UnitId),
    /// The top table is not among the table frames that came with it, or belongs to a domain already.
    TopTable(PhysAddr),
    /// A requester is attached still.
    InUse(Requester),
    /// The domain is preserved or adopted: release it first.
    Frozen,
    /// A table of the domain lies where there is no memory.
    NoMemory(NoMemory),
    /// Hardware did not confirm that it forgot the domain. It stays, with its tables and ids.
    TimedOut(TimedOut),
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDomain => write!(f, "no such domain"),
            Self::NoUnit(unit) => write!(f, "no unit {unit}"),
            Self::Levels { unit, levels } => write!(f, "unit {unit} cannot walk tables of {levels} levels"),
            Self::Stage { unit, stage } => {
                write!(f, "unit {unit} walks no {stage}-stage tables in the mode that it runs in")
            }
            Self::NoCommonLevels => {
                write!(f, "the units have no table width in common; make a domain for each")
            }
            Self::OutOfMemory { frames } => write!(f, "out of memory for {frames} table frames"),
            Self::DomainIdTaken { unit, id } => write!(f, "unit {unit}: domain id {id} cannot be taken"),
            Self::NoDomainId(unit) => write!(f, "unit {unit}: no domain id left; destroy a domain first"),
            Self::TopTable(at) => {
                write!(f, "top table {at} is not among the domain's table frames, or has a domain already")
            }
            Self::InUse(requester) => write!(f, "{requester} is attached still; detach it first"),
            Self::Frozen => write!(f, "the domain is preserved or adopted; release it first"),
            Self::NoMemory(e) => write!(f, "page table: {e}"),
            Self::TimedOut(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for DomainError {}

impl From<TimedOut> for DomainError {
    fn from(e: TimedOut) -> Self {
        Self::TimedOut(e)
    }
}
impl From<NoMemory> for DomainError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}

/// A requester cannot be attached, imported or detached. Unless it says otherwise, nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachError {
    /// No unit watches the requester.
    NoUnit(Requester),
    /// There is no such domain.
    NoDomain(Requester),
    /// The requester is attached to a domain already.
    Attached(Requester),
    /// The requester is attached to no domain.
    NotAttached(Requester),
    /// The entry of a source-id is in use for something else: another domain, or nothing that this driver knows.
    Occupied {
        /// The requester that was to be attached.
        requester: Requester,
        /// The source-id (its own or an alias) whose entry is in use.
        source: SourceId,
    },
    /// Import of a requester whose entry in hardware's tables does not name the domain.
    Mismatch {
        /// The requester.
        requester: Requester,
        /// The source-id whose entry differs.
        source: SourceId,
    },
    /// Legacy mode knows no PASIDs.
    LegacyMode(Requester),
    /// The requester's unit lacks something that the attachment needs.
    Lacks {
        /// The requester.
        requester: Requester,
        /// What.
        what: Capability,
    },
    /// The PASID is wider than the unit serves, or beyond the requester's PASID directory.
    PasidRange {
        /// The requester.
        requester: Requester,
        /// The PASID.
        pasid: u32,
        /// PASIDs of this requester are below this.
        limit: u32,
    },
    /// The requester's PASID leads somewhere already.
    PasidInUse {
        /// The requester.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// The requester's PASID leads nowhere.
    PasidNotAttached {
        /// The requester.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// The requester is attached with other aliases than these.
    Aliases(Requester),
    /// Import of a requester whose PASID entry in hardware's tables is not what was named, or was not named at all.
    PasidMismatch {
        /// The requester.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// The device does not answer invalidations of its device-TLB: it is cut off.
    DeviceSilent(Requester),
    /// A requester with aliases is to keep translations: which of them it keeps them under cannot be told.
    DeviceTlbAliases(Requester),
    /// The unit cannot walk the domain's tables, or has no domain id for it.
    Domain(DomainError),
    /// No frames for a context table.
    OutOfMemory {
        /// Frames asked for.
        frames: u64,
    },
    /// A root or context table lies where there is no memory.
    NoMemory(NoMemory),
    /// Hardware did not confirm. Attach: the entries are cleared again; detach: the entries are cleared. Hardware may go
    /// on using what it cached.
    TimedOut(TimedOut),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit(r) => write!(f, "{r}: no unit watches it; check the DMAR scopes"),
            Self::NoDomain(r) => write!(f, "{r}: no such domain"),
            Self::Attached(r) => write!(f, "{r} is attached already; detach it first"),
            Self::NotAttached(r) => write!(f, "{r} is not attached"),
            Self::Occupied { requester, source } => {
                write!(f, "{requester}: the entry of {source} is in use for something else")
            }
            Self::Mismatch { requester, source } => {
                write!(f, "{requester}: the entry of {source} does not name this domain")
            }
            Self::LegacyMode(r) => write!(f, "{r}: legacy mode knows no PASIDs; attach the requester itself"),
            Self::Lacks { requester, what } => write!(f, "{requester}: its unit lacks {what}"),
            Self::PasidRange { requester, pasid, limit } => {
                write!(f, "{requester}: PASID {pasid:#x} is not below {limit:#x}, where its PASIDs end")
            }
            Self::PasidInUse { requester, pasid } => {
                write!(f, "{requester}: PASID {pasid:#x} is attached already; detach it first")
            }
            Self::PasidNotAttached { requester, pasid } => {
                write!(f, "{requester}: PASID {pasid:#x} is not attached")
            }
            Self::Aliases(r) => {
                write!(f, "{r} is attached with other aliases; name those, or detach it first")
            }
            Self::PasidMismatch { requester, pasid } => {
                write!(f, "{requester}: the entry of PASID {pasid:#x} is not the one that was named for it")
            }
            Self::DeviceSilent(r) => {
                write!(f, "{r} does not answer an invalidation of its device-TLB and is cut off")
            }
            Self::DeviceTlbAliases(r) => {
                write!(f, "{r} has aliases: leave its device-TLB off")
            }
            Self::Domain(e) => e.fmt(f),
            Self::OutOfMemory { frames } => {
                write!(f, "out of memory for {frames} context or PASID table frames")
            }
            Self::NoMemory(e) => write!(f, "root, context or PASID table: {e}"),
            Self::TimedOut(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for AttachError {}

impl From<DomainError> for AttachError {
    fn from(e: DomainError) -> Self {
        Self::Domain(e)
    }
}
impl From<NoMemory> for AttachError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}
impl From<TimedOut> for AttachError {
    fn from(e: TimedOut) -> Self {
        Self::TimedOut(e)
    }
}
