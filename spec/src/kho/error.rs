//! What can be wrong with the root of a handover.

use core::fmt;

use crate::PhysAddr;
use crate::fdt::FdtError;

/// Foreign text for an error message: its first 32 bytes at most.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShortText {
    bytes: [u8; Self::ROOM],
    length: u8,
}

impl ShortText {
    const ROOM: usize = 32;

    /// Keeps as many whole characters of `text` as there is room for.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let length =
            (0..=text.len().min(Self::ROOM)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let mut bytes = [0; Self::ROOM];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self { bytes, length: length as u8 }
    }

    /// The text that was kept.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Escaped: the text is foreign and the message may go to a terminal.
        self.as_str().escape_debug().fmt(f)
    }
}

/// Why bytes are not accepted as the root of a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KhoError {
    /// They are no device tree.
    Tree(FdtError),
    /// The root is of another version, or does not say.
    Compatible {
        /// What it says.
        found: ShortText,
    },
    /// A property is missing or is no 64-bit number.
    Property {
        /// The node; empty for the root.
        node: ShortText,
        /// The property.
        property: &'static str,
    },
    /// The radix tree cannot be at this address: null, or not on a page's start.
    MemoryMap {
        /// The address.
        address: PhysAddr,
    },
    /// A blob is null, empty or leaves the address space.
    Blob {
        /// The subnode.
        node: ShortText,
        /// Its address.
        data: PhysAddr,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Two subnodes have the same name.
    Twice {
        /// The name.
        node: ShortText,
    },
    /// More subnodes than [`super::MAX_BLOBS`].
    TooManyBlobs {
        /// The limit.
        limit: usize,
    },
}

impl fmt::Display for KhoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => write!(f, "root of the handover: {error}"),
            Self::Compatible { found } => {
                write!(f, "root of the handover is \"{found}\", this release reads \"{}\"", super::COMPATIBLE)
            }
            Self::Property { node, property } => {
                write!(f, "node \"{node}\" of the handover has no 64-bit \"{property}\"")
            }
            Self::MemoryMap { address } => write!(f, "no map of preserved memory can start at {address}"),
            Self::Blob { node, data, bytes } => {
                write!(f, "blob of node \"{node}\" cannot be {bytes} bytes at {data}")
            }
            Self::Twice { node } => write!(f, "two nodes of the handover are named \"{node}\""),
            Self::TooManyBlobs { limit } => write!(f, "handover with more than {limit} nodes"),
        }
    }
}

impl core::error::Error for KhoError {}
