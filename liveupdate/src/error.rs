//! What can go wrong before the point of no return, each with the facts that name it.

use crate::adoptable::NotAdoptable;
use crate::book::Token;
use crate::host::{KeepError, NoMemory, TimedOut};
use core::fmt;
use spec::{DomainId, Extent, Frame, Iova, PhysAddr, Requester, SourceId, UnitId};

/// The storage that the host gave is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Entries of which kind.
    pub what: &'static str,
    /// How many there is room for.
    pub capacity: usize,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no room for more {}: the host gave storage for {}", self.what, self.capacity)
    }
}

/// Why a `preserve` was refused. Nothing has changed then (I7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PreserveError {
    /// The token is zero or names something else already.
    TokenTaken(Token),
    /// It would share these frames with something preserved.
    Overlap(Extent),
    /// A leaf of the domain points outside every preserved region: preserve the region first.
    LeafOutside {
        /// Where the leaf maps.
        iova: Iova,
        /// Where it points.
        target: Extent,
    },
    /// The domain's tables are deeper or shallower than tables of its stage can be.
    Levels(u8),
    /// No domain is preserved under the token that was named as parent, or none that a first stage can lie below.
    NoParent(Token),
    /// The domain points with an address that its parent does not translate.
    BeyondParent {
        /// The address.
        address: Iova,
        /// Top table of the domain.
        top_table: PhysAddr,
    },
    /// A table of the domain lies outside the runs that the host listed.
    TableNotListed(PhysAddr),
    /// The same table is reached twice: the tables are no tree, or two buses or units share one.
    TableShared(PhysAddr),
    /// Another preserved domain has this top table.
    DomainTaken(PhysAddr),
    /// The requester is no PCI function: its DMA cannot be handed to a driver of the next kernel.
    NotPciFunction(Requester),
    /// No unit translates for the requester.
    NoUnit(Requester),
    /// The unit does not translate: TES is 0, or its mode is one without tables.
    UnitNotTranslating(UnitId),
    /// The requester's entry lets its device keep translations, but the host knows of no ATS that is on, or the requester has
    /// aliases.
    DeviceTlb(Requester),
    /// The requester has page requests enabled, which cannot be preserved yet.
    PageRequests(Requester),
    /// The PASID has no entry that is present, or the requester's PASID directory has no room for it.
    NoPasid {
        /// Who.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// Hardware keeps extended accessed bits for the PASID (EAFE), which no digest provides for.
    ExtendedAccess {
        /// Who.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// The requester is in legacy mode and has no PASIDs.
    LegacyMode(Requester),
    /// The PASID is preserved already.
    PasidTaken {
        /// Who.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// No requester is preserved under this token: preserve it before its PASIDs.
    NoRequester(Token),
    /// The requester has no domain: its context entry is not present.
    NoDomain(Requester),
    /// The requester passes untranslated and reaches all of memory (I3).
    PassThrough(Requester),
    /// The context or PASID entry asks for something that cannot be preserved yet (device-TLB, reserved type).
    Unsupported {
        /// Who.
        requester: Requester,
        /// The entry's translation type.
        translation_type: u8,
    },
    /// The requester's domain is not preserved: preserve it first.
    DomainNotPreserved {
        /// Who.
        requester: Requester,
        /// Top table of the domain that it is attached to.
        top_table: PhysAddr,
    },
    /// The domain id is another preserved domain's on this unit, or the domain has another id there (I5).
    DomainIdClash {
        /// Who.
        requester: Requester,
        /// The id in its entry.
        domain_id: DomainId,
    },
    /// An alias of the requester has another context entry, or none.
    AliasDiffers {
        /// Who.
        requester: Requester,
        /// The alias.
        alias: SourceId,
    },
    /// The requester has more aliases than the core handles.
    TooManyAliases {
        /// Who.
        requester: Requester,
        /// The limit.
        limit: usize,
    },
    /// The requester is preserved already.
    AlreadyPreserved(Requester),
    /// The requester shares a source-id with another preserved requester, but not its domain.
    AliasTaken {
        /// Who.
        requester: Requester,
        /// The source-id.
        alias: SourceId,
    },
    /// The tables changed while they were being preserved: try again.
    Changed(Requester),
    /// The unit remaps interrupts, and the host does not say through which table
    /// ([`Unit::interrupts`](crate::host::Unit::interrupts)): hardware would go on reading it (I1).
    InterruptsUnknown(UnitId),
    /// The unit's interrupt table is another one than when its first requester was preserved.
    InterruptsChanged(UnitId),
    /// The core's storage is used up.
    Full(Full),
    /// The host could not mark frames.
    Keep(KeepError),
    /// A table lies where the host has no memory.
    NoMemory(NoMemory),
}

impl fmt::Display for PreserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenTaken(t) => write!(f, "token {t} is zero or in use"),
            Self::Overlap(e) => write!(f, "{e} is preserved already as something else: choose other frames"),
            Self::LeafOutside { iova, target } => {
                write!(
                    f,
                    "IOVA {iova} maps {target}, outside every preserved region: preserve the region first"
                )
            }
            Self::Levels(n) => write!(f, "a domain of {n} levels cannot be"),
            Self::TableNotListed(at) => write!(f, "table {at} lies outside the runs listed for the domain"),
            Self::TableShared(at) => write!(f, "table {at} is reached twice"),
            Self::DomainTaken(at) => write!(f, "the domain with top table {at} is preserved already"),
            Self::NotPciFunction(r) => write!(f, "{r} is no PCI function and cannot be preserved"),
            Self::NoUnit(r) => write!(f, "no unit translates for {r}"),
            Self::NoParent(t) => {
                write!(f, "no second-stage domain is preserved under {t}: preserve the parent first")
            }
            Self::BeyondParent { address, top_table } => {
                write!(
                    f,
                    "the domain with top table {top_table} points with {address}, which its parent does not translate"
                )
            }
            Self::UnitNotTranslating(u) => write!(f, "unit {u} does not translate"),
            Self::DeviceTlb(r) => {
                write!(f, "the entry of {r} allows a device-TLB that the host cannot describe: switch it off")
            }
            Self::PageRequests(r) => write!(f, "{r} has page requests enabled: disable them"),
            Self::NoPasid { requester, pasid } => {
                write!(f, "{requester} has no domain for PASID {pasid:#x}: attach it first")
            }
            Self::ExtendedAccess { requester, pasid } => {
                write!(f, "extended accessed bits are kept for PASID {pasid:#x} of {requester}: clear EAFE")
            }
            Self::LegacyMode(r) => write!(f, "{r} is in legacy mode and has no PASIDs"),
            Self::PasidTaken { requester, pasid } => {
                write!(f, "PASID {pasid:#x} of {requester} is preserved already")
            }
            Self::NoRequester(t) => {
                write!(f, "no requester is preserved under {t}: preserve it before its PASIDs")
            }
            Self::NoDomain(r) => write!(f, "{r} has no domain: attach it first"),
            Self::PassThrough(r) => write!(f, "{r} is in pass-through and reaches all of memory"),
            Self::Unsupported { requester, translation_type } => {
                write!(f, "{requester} has translation type {translation_type}, which cannot be preserved")
            }
            Self::DomainNotPreserved { requester, top_table } => {
                write!(
                    f,
                    "the domain of {requester} (top table {top_table}) is not preserved: preserve it first"
                )
            }
            Self::DomainIdClash { requester, domain_id } => {
                write!(
                    f,
                    "domain id {domain_id} of {requester} clashes with another preserved domain on its unit"
                )
            }
            Self::AliasDiffers { requester, alias } => {
                write!(f, "alias {alias} of {requester} has another context entry")
            }
            Self::TooManyAliases { requester, limit } => {
                write!(f, "{requester} has more than {limit} aliases")
            }
            Self::AliasTaken { requester, alias } => {
                write!(f, "{alias} of {requester} is preserved with another requester, in another domain")
            }
            Self::AlreadyPreserved(r) => write!(f, "{r} is preserved already"),
            Self::Changed(r) => write!(f, "the context entry of {r} changed meanwhile: try again"),
            Self::InterruptsUnknown(u) => {
                write!(f, "unit {u} remaps interrupts, and the host does not say through which table")
            }
            Self::InterruptsChanged(u) => {
                write!(f, "unit {u} uses another interrupt table than when it was preserved")
            }
            Self::Full(e) => e.fmt(f),
            Self::Keep(e) => e.fmt(f),
            Self::NoMemory(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for PreserveError {}

impl From<Full> for PreserveError {
    fn from(e: Full) -> Self {
        Self::Full(e)
    }
}
impl From<KeepError> for PreserveError {
    fn from(e: KeepError) -> Self {
        Self::Keep(e)
    }
}
impl From<NoMemory> for PreserveError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}

/// Why an `unpreserve` was refused. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpreserveError {
    /// Nothing of this kind has that token.
    Unknown(Token),
    /// A preserved domain maps the region: unpreserve the domain first.
    RegionInUse {
        /// The domain.
        domain: Token,
        /// Where it maps the region.
        iova: Iova,
    },
    /// A preserved requester is attached to the domain, with a PASID or without: unpreserve that first.
    DomainInUse(Requester),
    /// The tables of a preserved domain lie below this one: unpreserve that first.
    ParentInUse(Token),
    /// Requests without PASID take this PASID: it goes with the requester.
    WithoutPasid {
        /// Who.
        requester: Requester,
        /// The PASID.
        pasid: u32,
    },
    /// The tables of a preserved domain are no longer those that were preserved: unpreserve the domain first.
    TablesChanged(Token),
    /// A table of a preserved domain cannot be read.
    NoMemory(NoMemory),
}

impl fmt::Display for UnpreserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(t) => write!(f, "nothing of this kind is preserved under token {t}"),
            Self::RegionInUse { domain, iova } => {
                write!(f, "domain {domain} maps the region at IOVA {iova}: unpreserve the domain first")
            }
            Self::TablesChanged(domain) => {
                write!(f, "the tables of domain {domain} changed: unpreserve the domain first")
            }
            Self::DomainInUse(r) => write!(f, "{r} is attached to the domain: unpreserve it first"),
            Self::ParentInUse(t) => write!(f, "domain {t} lies below the domain: unpreserve it first"),
            Self::WithoutPasid { requester, pasid } => {
                write!(f, "requests of {requester} without PASID take {pasid:#x}: unpreserve the requester")
            }
            Self::NoMemory(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for UnpreserveError {}

impl From<NoMemory> for UnpreserveError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}

/// Why a freeze did not happen. Everything is unfrozen and as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreezeError {
    /// Hardware no longer does what was preserved.
    Drifted {
        /// The requester whose entry, alias or table changed; `None` for the unit as a whole.
        requester: Option<Requester>,
        /// The unit.
        unit: UnitId,
        /// What changed, in words.
        what: &'static str,
    },
    /// The audit found violations; the first is here, all went to the host's sink.
    Violated {
        /// How many.
        count: u32,
        /// The first.
        first: audit::Finding,
    },
    /// The auditor could not read the handover.
    Unreadable(audit::Unreadable),
    /// Firmware reserved memory for the requester; it has a domain and is not preserved. Reduce it to its reserved memory
    /// and preserve it so, or choose to cut it off.
    Reserved {
        /// Who.
        requester: Requester,
        /// The first of its reserved regions.
        region: Extent,
    },
    /// Firmware reserved memory for the requester, and its preserved domain does not map all of it to itself: map it
    /// before the domain is preserved.
    ReservedNotMapped {
        /// Who.
        requester: Requester,
        /// The reserved region.
        region: Extent,
    },
    /// A posted interrupt entry of a preserved requester has hardware write outside of preserved memory (I3): preserve the
    /// region of its descriptor.
    PostedOutside {
        /// Whose entry it is.
        requester: Requester,
        /// The entry's index.
        index: u32,
        /// The frame of the descriptor.
        descriptor: PhysAddr,
    },
    /// The domain is preserved to lie below another one, and no preserved PASID leads to it so: unpreserve it, or preserve
    /// the PASID.
    NestedUnused(Token),
    /// It is not sure that all page requests of a requester's device were answered. They are on again.
    PageRequests {
        /// Who.
        requester: Requester,
        /// What was waited for.
        why: TimedOut,
    },
    /// A preserved frame lies in the memory that the next kernel boots in (I9).
    InScratch(Frame),
    /// The next kernel cannot adopt what is preserved (I10): preserve less, or load another one.
    NotAdoptable(NotAdoptable),
    /// No room.
    Full(Full),
    /// The host could not give or mark frames.
    Keep(KeepError),
    /// A table lies where the host has no memory.
    NoMemory(NoMemory),
    /// Something is longer, or more, than a handover can hold.
    TooLarge(&'static str),
    /// Updates count from 1.
    UpdateZero,
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drifted { requester: Some(r), what, .. } => write!(f, "{r}: {what}"),
            Self::Drifted { requester: None, unit, what } => write!(f, "unit {unit}: {what}"),
            Self::Violated { count, first } => {
                write!(f, "the audit found {count} violations, first: {first}")
            }
            Self::Unreadable(e) => write!(f, "the handover cannot be read back: {e}"),
            Self::Reserved { requester, region } => write!(
                f,
                "{requester} has reserved memory {region} and is not preserved: reduce it to that, or choose to cut it off"
            ),
            Self::ReservedNotMapped { requester, region } => write!(
                f,
                "{requester} has reserved memory {region} and its domain does not map that to itself: map it before the domain is preserved"
            ),
            Self::PostedOutside { requester, index, descriptor } => write!(
                f,
                "interrupt entry {index:#x} of {requester} posts to {descriptor}, outside of preserved memory: preserve that"
            ),
            Self::NotAdoptable(e) => write!(f, "the next kernel says that {e}"),
            Self::NestedUnused(t) => {
                write!(
                    f,
                    "no preserved PASID leads to the nested domain {t}: preserve one, or unpreserve the domain"
                )
            }
            Self::PageRequests { requester, why } => {
                write!(f, "page requests of {requester} could not be stopped: {why}")
            }
            Self::InScratch(frame) => write!(f, "preserved frame {} lies in scratch memory", frame.start()),
            Self::Full(e) => e.fmt(f),
            Self::Keep(e) => e.fmt(f),
            Self::NoMemory(e) => e.fmt(f),
            Self::UpdateZero => write!(f, "update 0 cannot be: updates count from 1"),
            Self::TooLarge(what) => write!(f, "{what} is too large for the handover"),
        }
    }
}
impl core::error::Error for FreezeError {}

impl From<NotAdoptable> for FreezeError {
    fn from(e: NotAdoptable) -> Self {
        Self::NotAdoptable(e)
    }
}
impl From<Full> for FreezeError {
    fn from(e: Full) -> Self {
        Self::Full(e)
    }
}
impl From<KeepError> for FreezeError {
    fn from(e: KeepError) -> Self {
        Self::Keep(e)
    }
}
impl From<NoMemory> for FreezeError {
    fn from(e: NoMemory) -> Self {
        Self::NoMemory(e)
    }
}
