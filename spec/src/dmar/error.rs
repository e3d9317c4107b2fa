//! What can be wrong with a DMAR table.

use core::fmt;

/// Why a DMAR table is not accepted, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmarError {
    /// Offset in the table of the item that is wrong.
    pub offset: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with an item of a DMAR table. Lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The table has another signature.
    Signature {
        /// The signature found.
        found: [u8; 4],
    },
    /// The item claims to be shorter than any of its kind.
    Length {
        /// What it claims.
        length: usize,
        /// What it needs.
        least: usize,
    },
    /// What encloses the item ends within it.
    Torn {
        /// Length of the item.
        need: usize,
        /// What is left for it.
        have: usize,
    },
    /// The device scope's path is empty or ends within a hop.
    Path {
        /// Length of the scope.
        length: usize,
    },
    /// The name of an ACPI device has no end or is no text.
    Name,
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DMAR table at {:#x}: ", self.offset)?;
        match self.reason {
            Reason::Signature { found } => write!(f, "signature \"{}\"", found.escape_ascii()),
            Reason::Length { length, least } => {
                write!(f, "length of {length} bytes where {least} are the least")
            }
            Reason::Torn { need, have } => write!(f, "{need} bytes where {have} are left"),
            Reason::Path { length } => write!(f, "device scope of {length} bytes without a whole path"),
            Reason::Name => f.write_str("device name without an end, or no text"),
        }
    }
}

impl core::error::Error for DmarError {}
