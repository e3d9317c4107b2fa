//! What can be wrong with a flattened device tree.

use core::fmt;

/// A block of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Nodes and properties.
    Structure,
    /// Names of properties.
    Strings,
    /// Memory reservations.
    Reservations,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Structure => "structure block",
            Self::Strings => "strings block",
            Self::Reservations => "memory reservations",
        })
    }
}

/// Why bytes are not accepted as a flattened device tree. Offsets count from the tree's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdtError {
    /// Fewer bytes than the header, or than the header asks for.
    Short {
        /// Bytes there are.
        have: usize,
        /// Bytes that are needed.
        need: usize,
    },
    /// The first word is another than [`super::MAGIC`].
    Magic {
        /// The word found.
        found: u32,
    },
    /// The tree is older than version 17, or too new for a reader of that version.
    Version {
        /// The tree's version.
        version: u32,
        /// The oldest version whose readers understand it.
        last_compatible: u32,
    },
    /// A block is misaligned, lies in the header or leaves the tree.
    Block {
        /// Which one.
        block: Block,
        /// Where it claims to start.
        start: usize,
        /// How long it claims to be.
        bytes: usize,
        /// Length of the tree.
        total: usize,
    },
    /// The bytes end within the item that starts here.
    Torn {
        /// Where the item starts.
        offset: usize,
    },
    /// An unknown token.
    Token {
        /// Where it lies.
        offset: usize,
        /// The token.
        token: u32,
    },
    /// The name of the node that starts here is no UTF-8 or has no end.
    Name {
        /// Where the node starts.
        offset: usize,
    },
    /// The name of the property that starts here lies outside the strings block, is empty, is no UTF-8 or has no end.
    PropertyName {
        /// Where the property starts.
        offset: usize,
        /// Offset of the name in the strings block.
        string: u32,
    },
    /// The token here breaks the nesting: a second root, an end too many, too many nodes within one another, or a
    /// property where none may be.
    Nesting {
        /// Where the token lies.
        offset: usize,
    },
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Short { have, need } => write!(f, "device tree of {need} bytes, of which {have} are there"),
            Self::Magic { found } => write!(f, "no device tree: it opens with {found:#x}"),
            Self::Version { version, last_compatible } => {
                write!(f, "device tree of version {version} (for readers from {last_compatible} on), not 17")
            }
            Self::Block { block, start, bytes, total } => {
                write!(
                    f,
                    "{block} at {start:#x} of {bytes} bytes does not fit a device tree of {total} bytes"
                )
            }
            Self::Torn { offset } => write!(f, "device tree torn in the item at {offset:#x}"),
            Self::Token { offset, token } => {
                write!(f, "unknown token {token:#x} at {offset:#x} of the device tree")
            }
            Self::Name { offset } => {
                write!(f, "unreadable name of the node at {offset:#x} of the device tree")
            }
            Self::PropertyName { offset, string } => write!(
                f,
                "property at {offset:#x} of the device tree has no readable name at {string:#x} of the strings"
            ),
            Self::Nesting { offset } => {
                write!(f, "token at {offset:#x} of the device tree stands where none of its kind may stand")
            }
        }
    }
}

impl core::error::Error for FdtError {}
