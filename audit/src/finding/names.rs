//! Names of the things that findings speak of: what a frame is for, what was compared, what a record is about.

use core::fmt;

/// What a frame is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// A unit's root table.
    RootTable,
    /// A bus's context table.
    ContextTable,
    /// One of a domain's page tables.
    DomainTable,
    /// A requester's PASID directory.
    PasidDirectory,
    /// A requester's PASID table.
    PasidTable,
    /// A unit's interrupt remapping table.
    InterruptTable,
    /// The KHO tree.
    Fdt,
    /// A node of the map of preserved memory.
    MapNode,
    /// The sealed records.
    Records,
    /// The frames that are set aside for records, map and tree.
    Container,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RootTable => "root table",
            Self::ContextTable => "context table",
            Self::DomainTable => "page table",
            Self::PasidDirectory => "PASID directory",
            Self::PasidTable => "PASID table",
            Self::InterruptTable => "interrupt table",
            Self::Fdt => "KHO tree",
            Self::MapNode => "map of preserved memory",
            Self::Records => "handover's records",
            Self::Container => "handover's container",
        })
    }
}

/// Something that is sealed as a value and found as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// The capability register.
    Cap,
    /// The extended capability register.
    Ecap,
    /// The root table address register.
    RootAddr,
    /// Digest of a unit's root and context tables, and in scalable mode of the PASID structures.
    UnitDigest,
    /// Digest of a domain's page tables.
    DomainDigest,
    /// The context table that a root entry points to.
    ContextTable,
    /// First word of a context entry.
    ContextEntryLow,
    /// Second word of a context entry.
    ContextEntryHigh,
    /// The top table in a context entry, against the one of its domain.
    TopTable,
    /// The number of levels in a context entry, against the one of its domain.
    Levels,
    /// Number of a domain's table frames.
    TableFrames,
    /// A further word of a context entry in scalable mode, from 2.
    ContextEntryWord(u8),
    /// A word of a PASID entry, from 0.
    PasidEntryWord(u8),
    /// The PASID directory that a context entry points to.
    PasidDirectory,
    /// Length of a PASID directory in bytes, against the size in the context entry.
    PasidDirectoryBytes,
    /// The PASID table that a directory entry points to.
    PasidTable,
    /// The format of a domain's tables, against the stage that a PASID entry walks them in.
    Format,
    /// The domain of the PASID for requests without one, against the one of the requester.
    DomainWithoutPasid,
    /// The interrupt remapping table address register.
    Irta,
    /// Digest of a unit's interrupt table.
    InterruptDigest,
    /// Number of interrupt entries that stay.
    InterruptEntries,
    /// First word of an interrupt entry.
    InterruptEntryLow,
    /// Second word of an interrupt entry.
    InterruptEntryHigh,
    /// The requester, by its ordinal, that an interrupt entry belongs to.
    InterruptRequester,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cap => "the capability register",
            Self::Ecap => "the extended capability register",
            Self::RootAddr => "the root table address",
            Self::UnitDigest => "the digest of the root and context tables",
            Self::DomainDigest => "the digest of the page tables",
            Self::ContextTable => "the context table pointer",
            Self::ContextEntryLow => "the context entry's first word",
            Self::ContextEntryHigh => "the context entry's second word",
            Self::TopTable => "the top table",
            Self::Levels => "the number of levels",
            Self::TableFrames => "the number of table frames",
            Self::ContextEntryWord(word) => return write!(f, "word {word} of the context entry"),
            Self::PasidEntryWord(word) => return write!(f, "word {word} of the PASID entry"),
            Self::PasidDirectory => "the PASID directory pointer",
            Self::PasidDirectoryBytes => "the PASID directory's length",
            Self::PasidTable => "the PASID table pointer",
            Self::Format => "the format of the page tables",
            Self::DomainWithoutPasid => "the domain of requests without PASID",
            Self::Irta => "the interrupt table address",
            Self::InterruptDigest => "the digest of the interrupt table",
            Self::InterruptEntries => "the number of interrupt entries",
            Self::InterruptEntryLow => "the interrupt entry's first word",
            Self::InterruptEntryHigh => "the interrupt entry's second word",
            Self::InterruptRequester => "the requester of the interrupt entry",
        })
    }
}

/// Kinds of records that findings speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordKind {
    /// A unit.
    Unit,
    /// A context table.
    ContextTable,
    /// A region.
    Region,
    /// Scratch memory.
    Scratch,
    /// A domain.
    Domain,
    /// A run of a domain's tables.
    DomainTables,
    /// The id of a domain on a unit.
    DomainId,
    /// A requester.
    Requester,
    /// An alias.
    Alias,
    /// The frames of the handover itself.
    Container,
    /// A run of a requester's PASID structures.
    PasidTables,
    /// One PASID of a requester.
    Attachment,
    /// A device that keeps translations.
    DeviceTlb,
    /// A unit's interrupt table.
    InterruptTable,
    /// An entry of an interrupt table.
    InterruptEntry,
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unit => "unit",
            Self::ContextTable => "context table",
            Self::Region => "region",
            Self::Scratch => "scratch",
            Self::Domain => "domain",
            Self::DomainTables => "domain tables",
            Self::DomainId => "domain id",
            Self::Requester => "requester",
            Self::Alias => "alias",
            Self::Container => "container",
            Self::PasidTables => "PASID tables",
            Self::Attachment => "attachment",
            Self::DeviceTlb => "device-TLB",
            Self::InterruptTable => "interrupt table",
            Self::InterruptEntry => "interrupt entry",
        })
    }
}
