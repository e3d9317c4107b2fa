//! What the auditor found: one [`Finding`] per violation, with the facts in it and in plain words.

mod names;

pub use names::{Item, RecordKind, Role};

use core::fmt;
use spec::{Requester, UnitId};

/// The invariants of a live update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Invariant {
    /// Closure: every frame that hardware can read as a table is preserved.
    I1 = 1,
    /// Isolation: every present entry belongs to a preserved requester.
    I2,
    /// Targets: every leaf points into memory that the handover declares.
    I3,
    /// Identity: what is found is what was sealed.
    I4,
    /// Domain ids: unique per unit.
    I5,
    /// No stale entry: hardware forgot what was cut off.
    I6,
    /// All or nothing: a failed step leaves everything as it was.
    I7,
    /// Fail closed: translation stays on.
    I8,
    /// Scratch: nothing preserved lies where the incoming kernel boots.
    I9,
    /// Mode: the incoming kernel keeps the translation mode.
    I10,
}

impl Invariant {
    /// All of them, in order.
    pub const ALL: [Self; 10] =
        [Self::I1, Self::I2, Self::I3, Self::I4, Self::I5, Self::I6, Self::I7, Self::I8, Self::I9, Self::I10];
    /// The number: 1 to 10.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
    /// Position in an array with one element per invariant: 0 to 9.
    pub(crate) const fn position(self) -> usize {
        (self as usize).saturating_sub(1)
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{}", self.number())
    }
}

/// One violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// The invariant that does not hold.
    pub invariant: Invariant,
    /// The requester concerned, where one is. For a domain's tables: the first requester that uses the domain. For the
    /// root entry or context table of a bus on which nothing was preserved: function 00.0 of that bus.
    pub requester: Option<Requester>,
    /// Token of the domain concerned, where one is.
    pub domain: Option<u64>,
    /// The unit concerned, where one is.
    pub unit: Option<UnitId>,
    /// Where: the physical address of the entry, table, frame, record or register set that `what` speaks of.
    pub at: u64,
    /// What is wrong there.
    pub what: What,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}: {}", self.invariant, self.at, self.what)?;
        let mut open = " (";
        if let Some(requester) = self.requester {
            write!(f, "{open}requester {requester}")?;
            open = ", ";
        }
        if let Some(token) = self.domain {
            write!(f, "{open}domain {token:#x}")?;
            open = ", ";
        }
        if let Some(unit) = self.unit {
            write!(f, "{open}unit {unit}")?;
            open = ", ";
        }
        if open == ", " { f.write_str(")") } else { Ok(()) }
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// A frame that hardware reads as a table is not in the preserved set.
    NotPreserved(Role),
    /// Memory that should hold a table cannot be read.
    Unreadable(Role),
    /// An entry leads to a table that the domain did not declare.
    TableNotDeclared {
        /// The table it leads to.
        table: u64,
        /// Level of that table, from 0.
        level: u8,
    },
    /// An entry leads to a table that another domain declared.
    TableOfAnotherDomain {
        /// The table it leads to.
        table: u64,
        /// Token of the domain that declared it.
        owner: u64,
    },
    /// An entry leads to a table that was reached before: a cycle, or a table used twice.
    TableReachedTwice {
        /// The table it leads to.
        table: u64,
        /// Level at which it is reached now, from 0.
        level: u8,
    },
    /// Two declared tables share a frame.
    TablesOverlap {
        /// The role of the one at `at`.
        role: Role,
        /// The role of the other.
        other: Role,
    },
    /// A declared region, where devices may write, contains a frame that hardware or the next kernel reads as a table.
    TableInRegion {
        /// What the frame is used for.
        role: Role,
        /// Token of the region.
        region: u64,
    },
    /// Bits that must be zero are set.
    ReservedBits {
        /// Those that are set, in the word at `at`.
        bits: u64,
    },
    /// The number of levels is none that the record format or the unit knows.
    LevelsUnsupported {
        /// The number of levels.
        levels: u8,
    },
    /// The format of a domain's tables is none that this checker can walk.
    FormatUnsupported {
        /// The format in the record.
        format: u8,
    },
    /// The unit translates but no record speaks of it.
    UnitNotHandedOver,
    /// A root entry is present for a bus on which nothing was preserved.
    BusNotListed {
        /// The bus.
        bus: u8,
    },
    /// A present entry belongs to no preserved requester.
    EntryNotOwned,
    /// A preserved requester passes untranslated: it reaches all of memory.
    PassThrough,
    /// The translation type is reserved, or the unit does not offer it.
    TranslationTypeUnsupported {
        /// The field TT.
        tt: u8,
    },
    /// Leaves point outside of everything declared.
    LeafOutside {
        /// First address that the device would use.
        iova: u64,
        /// First address that it would reach.
        output: u64,
        /// Adjacent leaves of one table that do so.
        leaves: u64,
        /// Bytes that they span together.
        bytes: u64,
    },
    /// A leaf of a size that the unit does not offer.
    LeafSizeUnsupported {
        /// Its level, from 0.
        level: u8,
    },
    /// A region of memory has a frame that is not preserved: the next kernel may give it to somebody else.
    RegionNotPreserved {
        /// The first such frame's address.
        missing: u64,
    },
    /// A device range contains frames of the preserved set.
    DeviceRangePreserved,
    /// Two regions share a frame.
    RegionsOverlap {
        /// Token of the other one.
        other: u64,
    },
    /// The kind of a region is unknown.
    RegionKindUnknown {
        /// The kind in the record.
        kind: u32,
    },
    /// What is found differs from what was sealed.
    Differs {
        /// What was compared.
        item: Item,
        /// As sealed.
        sealed: u64,
        /// As found.
        found: u64,
    },
    /// A preserved requester has no present entry.
    EntryNotPresent,
    /// A preserved requester lives on a bus whose context table is not in the handover.
    NoContextTable,
    /// A preserved unit is not on this machine.
    UnitMissing,
    /// A record's range is empty, not whole frames, or leaves the address space.
    BadRange(RecordKind),
    /// A record describes a device-TLB that its requester's entry does not allow, a second one, or one with a queue that
    /// cannot be.
    DeviceTlb,
    /// Requesters whose entries let their devices keep translations, but no record says which devices.
    NoDeviceTlb {
        /// How many.
        missing: u64,
    },
    /// A record refers to another that is not there.
    Dangling {
        /// The record that refers.
        from: RecordKind,
        /// What it refers to.
        to: RecordKind,
        /// The ordinal that it names.
        ordinal: u32,
    },
    /// A requester's segment is not the one of its unit.
    WrongSegment,
    /// A token names two things of one kind.
    TokenTwice {
        /// The kind.
        kind: RecordKind,
        /// The token.
        token: u64,
    },
    /// Two records speak of the same unit, requester or alias, or of the same bus of a unit.
    RecordTwice(RecordKind),
    /// A context table half that the unit's mode does not have.
    HalfUnsupported {
        /// The half.
        half: u8,
    },
    /// Domain id zero.
    DomainIdZero,
    /// A domain id that the unit cannot tell apart from another.
    DomainIdTooLarge {
        /// The id.
        id: u16,
        /// The number of ids that the unit has.
        limit: u32,
    },
    /// One id on one unit for two domains, or two ids for one domain.
    DomainIdTwice {
        /// The id.
        id: u16,
        /// Token of the other domain.
        other: u64,
    },
    /// No id is recorded for the domain on the requester's unit.
    DomainIdMissing,
    /// The id in a context entry is not the one recorded for the domain.
    DomainIdDiffers {
        /// As recorded.
        recorded: u16,
        /// As found.
        found: u16,
    },
    /// Translation is off.
    TranslationOff,
    /// The translation mode is reserved or blocks all.
    ModeInvalid {
        /// The field TTM.
        ttm: u8,
    },
    /// The translation mode is valid but this checker cannot walk its tables.
    ModeNotWalked {
        /// The field TTM.
        ttm: u8,
    },
    /// The translation mode is not the sealed one.
    ModeDiffers {
        /// TTM as sealed.
        sealed: u8,
        /// TTM as found.
        found: u8,
    },
    /// A preserved run, from `at` on, reaches into scratch memory.
    PreservedInScratch {
        /// Frames of the run.
        frames: u64,
    },
    /// A declared region reaches into scratch memory.
    RegionInScratch {
        /// Token of the region.
        region: u64,
    },
    /// A part of the container lies in scratch memory.
    ContainerInScratch(Role),
    /// An entry of a PASID directory is present, but the handover has no table for it.
    PasidTableNotListed {
        /// The first PASID that the entry stands for.
        first_pasid: u32,
    },
    /// A PASID entry is present, but the handover has no attachment for it.
    PasidNotListed {
        /// The PASID.
        pasid: u32,
    },
    /// A preserved PASID has no present entry.
    PasidNotPresent {
        /// The PASID.
        pasid: u32,
    },
    /// A preserved PASID whose table is not in the handover, or that the directory has no room for.
    NoPasidTable {
        /// The PASID; of a table the first one.
        pasid: u32,
    },
    /// A requester in scalable mode without a PASID directory in the handover.
    NoPasidDirectory,
    /// A PASID that requests without PASID take, without an attachment.
    NoAttachment {
        /// The PASID.
        pasid: u32,
    },
    /// PASID structures of a requester whose unit is in legacy mode.
    PasidInLegacyMode,
    /// A nested entry without a second-stage domain, or another one with it.
    ParentWrong {
        /// The PASID.
        pasid: u32,
    },
    /// A domain's tables are walked below different second stages, or with and without one.
    ParentsDiffer,
    /// The entry lets hardware write extended accessed bits, which no digest provides for.
    ExtendedAccess,
    /// A pointer to a first-stage table that the second stage does not translate.
    TableBeyondParent {
        /// The pointer.
        table: u64,
        /// Level of the table, from 0.
        level: u8,
    },
    /// A first-stage leaf whose first or last page the second stage does not translate.
    LeafBeyondParent {
        /// First address that the device would use.
        iova: u64,
        /// What the leaf gives to the second stage.
        output: u64,
    },
    /// The unit remaps interrupts but no record speaks of its table.
    InterruptsNotHandedOver,
    /// Interrupt remapping is off, though the table was handed over.
    InterruptRemappingOff,
    /// A present interrupt entry belongs to no preserved requester.
    InterruptNotOwned {
        /// Its index.
        index: u32,
    },
    /// A present interrupt entry of a preserved requester is not in the handover.
    InterruptNotListed {
        /// Its index.
        index: u32,
    },
    /// An interrupt entry of the handover is not present.
    InterruptNotPresent {
        /// Its index.
        index: u32,
    },
    /// A posted interrupt's descriptor, which hardware writes to, lies in no preserved memory.
    PostedOutside {
        /// Address of the descriptor.
        descriptor: u64,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotPreserved(role) => write!(f, "the {role} is not in the preserved set"),
            Self::Unreadable(role) => write!(f, "the {role} cannot be read"),
            Self::TableNotDeclared { table, level } => {
                write!(
                    f,
                    "the entry leads to a level-{level} table at {table:#x} that the domain did not declare"
                )
            }
            Self::TableOfAnotherDomain { table, owner } => {
                write!(f, "the entry leads to the table at {table:#x} of domain {owner:#x}")
            }
            Self::TableReachedTwice { table, level } => {
                write!(
                    f,
                    "the entry leads, as level {level}, to the table at {table:#x} that was reached before"
                )
            }
            Self::TablesOverlap { role, other } => write!(f, "the {role} shares a frame with a {other}"),
            Self::TableInRegion { role, region } => {
                write!(f, "the {role} lies in region {region:#x}, where devices may write")
            }
            Self::ReservedBits { bits } => write!(f, "reserved bits {bits:#x} are set"),
            Self::LevelsUnsupported { levels } => write!(f, "{levels} levels are not supported"),
            Self::FormatUnsupported { format } => write!(f, "table format {format} cannot be checked"),
            Self::UnitNotHandedOver => f.write_str("the unit translates but was not handed over"),
            Self::BusNotListed { bus } => {
                write!(
                    f,
                    "the root entry of bus {bus:#04x} is present, but nothing on that bus was preserved"
                )
            }
            Self::EntryNotOwned => f.write_str("the present entry belongs to no preserved requester"),
            Self::PassThrough => {
                f.write_str("the preserved requester passes untranslated: it reaches all of memory")
            }
            Self::TranslationTypeUnsupported { tt } => write!(f, "translation type {tt} is not supported"),
            Self::LeafOutside { iova, output, leaves, bytes } => write!(
                f,
                "{leaves} leaves from IOVA {iova:#x} on ({bytes:#x} bytes) reach {output:#x}, outside of every declared region"
            ),
            Self::LeafSizeUnsupported { level } => write!(f, "leaves at level {level} are not supported"),
            Self::RegionNotPreserved { missing } => {
                write!(f, "the region's frame at {missing:#x} is not in the preserved set")
            }
            Self::DeviceRangePreserved => f.write_str("the device range has frames in the preserved set"),
            Self::RegionsOverlap { other } => write!(f, "the region overlaps region {other:#x}"),
            Self::RegionKindUnknown { kind } => write!(f, "region kind {kind} is unknown"),
            Self::Differs { item, sealed, found } => {
                write!(f, "{item} was sealed as {sealed:#x} and is found as {found:#x}")
            }
            Self::EntryNotPresent => f.write_str("the preserved requester's entry is not present"),
            Self::NoContextTable => {
                f.write_str("the context table of the requester's bus was not handed over")
            }
            Self::UnitMissing => f.write_str("the preserved unit is not on this machine"),
            Self::BadRange(kind) => {
                write!(f, "the {kind} record's range is empty, not whole frames, or leaves the address space")
            }
            Self::Dangling { from, to, ordinal } => {
                write!(f, "the {from} record refers to {to} record {ordinal}, which is not there")
            }
            Self::DeviceTlb => f.write_str(
                "the device-TLB is not allowed by its requester's entry, described twice, or queues what none can",
            ),
            Self::NoDeviceTlb { missing } => {
                write!(f, "{missing} device-TLBs that requesters' entries allow are not described")
            }
            Self::WrongSegment => f.write_str("the requester's segment is not its unit's"),
            Self::TokenTwice { kind, token } => write!(f, "token {token:#x} names two {kind} records"),
            Self::RecordTwice(kind) => write!(f, "two {kind} records speak of the same thing"),
            Self::HalfUnsupported { half } => {
                write!(f, "context table half {half} does not exist in the unit's mode")
            }
            Self::DomainIdZero => f.write_str("domain id 0 must not be used"),
            Self::DomainIdTooLarge { id, limit } => write!(f, "domain id {id} is not below {limit}"),
            Self::DomainIdTwice { id, other } => {
                write!(f, "domain id {id} clashes with the one of domain {other:#x} on the same unit")
            }
            Self::DomainIdMissing => f.write_str("no domain id is recorded for the domain on this unit"),
            Self::DomainIdDiffers { recorded, found } => {
                write!(f, "the entry has domain id {found}, the record {recorded}")
            }
            Self::TranslationOff => f.write_str("translation is off"),
            Self::ModeInvalid { ttm } => write!(f, "translation mode {ttm} is not one that translates"),
            Self::ModeNotWalked { ttm } => write!(f, "tables of translation mode {ttm} cannot be checked"),
            Self::ModeDiffers { sealed, found } => {
                write!(f, "translation mode was sealed as {sealed} and is found as {found}")
            }
            Self::PreservedInScratch { frames } => {
                write!(f, "a preserved run of {frames} frames reaches into scratch memory")
            }
            Self::RegionInScratch { region } => write!(f, "region {region:#x} reaches into scratch memory"),
            Self::ContainerInScratch(role) => write!(f, "the {role} lies in scratch memory"),
            Self::PasidTableNotListed { first_pasid } => write!(
                f,
                "the entry for PASIDs from {first_pasid:#x} on is present, but their table was not handed over"
            ),
            Self::PasidNotListed { pasid } => {
                write!(f, "the entry of PASID {pasid:#x} is present, but that PASID was not preserved")
            }
            Self::PasidNotPresent { pasid } => {
                write!(f, "the entry of the preserved PASID {pasid:#x} is not present")
            }
            Self::NoPasidTable { pasid } => write!(
                f,
                "the table of PASID {pasid:#x} was not handed over, or the directory has no room for it"
            ),
            Self::NoPasidDirectory => f.write_str("the requester's PASID directory was not handed over"),
            Self::NoAttachment { pasid } => {
                write!(f, "requests without PASID take PASID {pasid:#x}, which was not preserved")
            }
            Self::PasidInLegacyMode => {
                f.write_str("the requester's unit is in legacy mode and has no PASIDs")
            }
            Self::ParentWrong { pasid } => write!(
                f,
                "the second-stage domain recorded for PASID {pasid:#x} does not fit the entry's translation type"
            ),
            Self::ParentsDiffer => {
                f.write_str("the domain is attached below different second stages, or with and without one")
            }
            Self::ExtendedAccess => {
                f.write_str("hardware would write extended accessed bits: clear EAFE before preserving")
            }
            Self::TableBeyondParent { table, level } => write!(
                f,
                "the entry leads to a level-{level} table at {table:#x} that the second stage does not translate"
            ),
            Self::LeafBeyondParent { iova, output } => write!(
                f,
                "the leaf at IOVA {iova:#x} gives {output:#x}, which the second stage does not translate"
            ),
            Self::InterruptsNotHandedOver => {
                f.write_str("the unit remaps interrupts, but its interrupt table was not handed over")
            }
            Self::InterruptRemappingOff => f.write_str("interrupt remapping is off"),
            Self::InterruptNotOwned { index } => {
                write!(f, "interrupt entry {index:#x} is present and belongs to no preserved requester")
            }
            Self::InterruptNotListed { index } => {
                write!(f, "interrupt entry {index:#x} of a preserved requester was not handed over")
            }
            Self::InterruptNotPresent { index } => {
                write!(f, "interrupt entry {index:#x} was handed over and is not present")
            }
            Self::PostedOutside { descriptor } => {
                write!(f, "the posted-interrupt descriptor at {descriptor:#x} lies in no preserved memory")
            }
        }
    }
}
