//! What can be wrong with a handover as foreign data.

use crate::book::Token;
use crate::error::Full;
use spec::kho::KhoError;
use spec::{Extent, PhysAddr, Requester, handover};

/// Why a handover cannot be opened. Nothing was adopted: the incoming kernel leaves the units as they are and every
/// device where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// A part of it lies where there is no memory, or not where such a part can lie.
    Nowhere(Part, PhysAddr),
    /// The FDT is no KHO container.
    Kho(KhoError),
    /// The container holds no handover of ours.
    NoHandover,
    /// The blob does not open with our magic.
    Magic([u8; 8]),
    /// The blob was written for readers from another version on.
    Version {
        /// Oldest reader that understands it.
        needs: u32,
        /// What this release reads.
        reads: u32,
    },
    /// A length that cannot be.
    Length {
        /// Of what.
        part: Part,
        /// The length in bytes.
        bytes: u64,
    },
    /// The digest over the blob is another one.
    Digest {
        /// In the blob.
        sealed: u64,
        /// Of what lies there.
        found: u64,
    },
    /// A record that cannot be.
    Record {
        /// Which record, from 0.
        ordinal: u32,
        /// Its kind.
        kind: u16,
        /// What is wrong with it, in words.
        what: &'static str,
    },
    /// A requester in scalable mode lacks its PASID directory or the PASID of its requests without PASID, or shares a
    /// directory with another under another context entry.
    Incomplete(Requester),
    /// The requester's entry lets its device keep translations, but no record says which device that is.
    NoDeviceTlb(Requester),
    /// The blob has no release record.
    NoRelease,
    /// Two things of the handover share frames, or a frame lies in two of them.
    Overlap(Extent),
    /// Two things of the handover have the same name.
    TokenTwice(Token),
    /// More of something than this kernel has storage for.
    Full(Full),
}

/// A part of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The FDT.
    Fdt,
    /// The blob.
    Blob,
    /// A record of the blob.
    Record,
}

impl core::fmt::Display for Part {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Fdt => "FDT",
            Self::Blob => "blob",
            Self::Record => "record",
        })
    }
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nowhere(part, at) => write!(f, "the handover's {part} cannot lie at {at}"),
            Self::Kho(e) => write!(f, "no KHO container: {e}"),
            Self::NoHandover => write!(f, "the KHO container has no subnode `{}`", handover::SUBNODE),
            Self::Magic(m) => write!(f, "the handover opens with {m:02x?}"),
            Self::Version { needs, reads } => {
                write!(f, "the handover needs a reader of version {needs}, this release reads {reads}")
            }
            Self::Length { part, bytes } => write!(f, "a {part} of {bytes} bytes cannot be"),
            Self::Digest { sealed, found } => {
                write!(f, "the handover was sealed with digest {sealed:#x}, but has {found:#x}")
            }
            Self::Record { ordinal, kind, what } => write!(f, "record {ordinal} (kind {kind}): {what}"),
            Self::Overlap(e) => write!(f, "the handover uses {e} for two things"),
            Self::TokenTwice(t) => write!(f, "token {t} names two things of the handover"),
            Self::Incomplete(r) => write!(f, "the PASID structures of {r} are not all in the handover"),
            Self::NoDeviceTlb(r) => write!(f, "the handover does not describe the device-TLB of {r}"),
            Self::NoRelease => write!(f, "the handover does not say who wrote it"),
            Self::Full(e) => e.fmt(f),
        }
    }
}
impl core::error::Error for OpenError {}

impl From<Full> for OpenError {
    fn from(e: Full) -> Self {
        Self::Full(e)
    }
}
