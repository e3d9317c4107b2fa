//! Why a handover cannot be audited at all: the container itself is broken.
//!
//! Everything else that is wrong is a [`Finding`](crate::Finding) and leaves the audit running.

use crate::image::Missing;
use core::fmt;
use spec::kho::KhoError;
use spec::{PhysAddr, handover};

/// The container cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreadable {
    /// The image has no memory where a part of the container should be.
    Missing {
        /// The part, in words.
        part: &'static str,
        /// The first address that cannot be read.
        at: PhysAddr,
    },
    /// The address of a part is not aligned, or the part would leave the address space.
    Misplaced {
        /// The part, in words.
        part: &'static str,
        /// Its address.
        at: PhysAddr,
    },
    /// The KHO tree is damaged, of another version, or none.
    Kho {
        /// Its address.
        at: PhysAddr,
        /// What is wrong with it.
        error: KhoError,
    },
    /// The KHO tree says of itself that it is longer than a frame.
    FdtTooLong {
        /// Its address.
        at: PhysAddr,
        /// Its length in bytes, as its header says.
        bytes: u64,
    },
    /// The KHO tree has no node of ours.
    NoRecords {
        /// Address of the tree.
        at: PhysAddr,
    },
    /// The records do not open with the magic bytes.
    Magic {
        /// Address of the records.
        at: PhysAddr,
    },
    /// The records are of a version that this reader does not read.
    Version {
        /// Address of the records.
        at: PhysAddr,
        /// The writer's version.
        version: u32,
        /// The oldest reader that may read them.
        oldest_reader: u32,
    },
    /// A length is too small, too large, or not a multiple of eight.
    Length {
        /// Address of the header with the length.
        at: PhysAddr,
        /// The length in bytes.
        bytes: u64,
        /// The most that would fit.
        room: u64,
    },
    /// The number of records is not the one in the header.
    Count {
        /// Address of the records.
        at: PhysAddr,
        /// As the header says.
        claimed: u64,
        /// As counted.
        found: u64,
    },
    /// A record that must be there exactly once is not.
    Release {
        /// Address of the records.
        at: PhysAddr,
        /// How often it is there.
        found: u64,
    },
    /// The records were changed after they were sealed.
    Digest {
        /// Address of the records.
        at: PhysAddr,
        /// As sealed.
        sealed: u64,
        /// As computed.
        found: u64,
    },
    /// The map of preserved memory has a pointer or a key that cannot be.
    Map {
        /// Address of the word.
        at: PhysAddr,
        /// The word.
        value: u64,
    },
    /// The map of preserved memory has more runs than [`crate::kho::MAX_STEPS`] allows, or leads in circles.
    MapTooLarge {
        /// Address of the map's root.
        root: PhysAddr,
    },
    /// The records declare more of something than this reader accepts.
    TooMany {
        /// Of what, in words.
        what: &'static str,
        /// As declared.
        declared: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The working memory given is too small.
    ScratchTooSmall {
        /// Words needed.
        needed: u64,
        /// Words given.
        given: u64,
    },
}

impl Unreadable {
    pub(crate) const fn missing(part: &'static str) -> impl Fn(Missing) -> Self + Copy {
        move |missing| Self::Missing { part, at: missing.at }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { part, at } => write!(f, "{part}: no memory at {at}"),
            Self::Misplaced { part, at } => write!(f, "{part}: {at} is not aligned or out of range"),
            Self::Kho { at, error } => write!(f, "KHO tree at {at}: {error}"),
            Self::FdtTooLong { at, bytes } => {
                write!(f, "KHO tree at {at}: {bytes} bytes are more than a frame")
            }
            Self::NoRecords { at } => write!(f, "KHO tree at {at}: no node {:?}", handover::SUBNODE),
            Self::Magic { at } => write!(f, "records at {at} do not open with the magic bytes"),
            Self::Version { at, version, oldest_reader } => write!(
                f,
                "records at {at} are of version {version} (readers from {oldest_reader} on); this reader knows {} to {}",
                handover::OLDEST_READABLE,
                handover::VERSION
            ),
            Self::Length { at, bytes, room } => {
                write!(
                    f,
                    "length at {at}: {bytes} bytes are too few, too many (room for {room}), or no multiple of 8"
                )
            }
            Self::Count { at, claimed, found } => {
                write!(f, "records at {at}: header says {claimed}, {found} are there")
            }
            Self::Release { at, found } => {
                write!(f, "records at {at}: {found} release records instead of one")
            }
            Self::Digest { at, sealed, found } => {
                write!(f, "records at {at}: sealed with digest {sealed:#018x}, found {found:#018x}")
            }
            Self::Map { at, value } => {
                write!(f, "map of preserved memory: impossible word {value:#x} at {at}")
            }
            Self::MapTooLarge { root } => {
                write!(f, "map of preserved memory at {root}: too many runs, or it leads in circles")
            }
            Self::TooMany { what, declared, limit } => {
                write!(f, "{declared} {what} are declared; at most {limit} are accepted")
            }
            Self::ScratchTooSmall { needed, given } => {
                write!(f, "working memory of {given} words is too small: give {needed}")
            }
        }
    }
}
impl core::error::Error for Unreadable {}
