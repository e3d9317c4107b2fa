//! Why a request was refused (VT-d 7.1.3, appendix B).

use core::fmt;

/// A fault reason code. Open: values that the manual does not define stay representable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(pub u8);

impl Reason {
    /// LRT: the root entry is not present.
    pub const ROOT_NOT_PRESENT: Self = Self(0x01);
    /// LCT: the context entry is not present.
    pub const CONTEXT_NOT_PRESENT: Self = Self(0x02);
    /// LCT: the context entry is programmed in a way the unit cannot serve.
    pub const CONTEXT_INVALID: Self = Self(0x03);
    /// LGN: the address lies beyond what the table can map.
    pub const ADDRESS_BEYOND_WIDTH: Self = Self(0x04);
    /// LSL: no permission to write.
    pub const WRITE_DENIED: Self = Self(0x05);
    /// LSL: no permission to read.
    pub const READ_DENIED: Self = Self(0x06);
    /// LSL: a paging entry could not be read.
    pub const PAGING_ENTRY_ACCESS: Self = Self(0x07);
    /// LRT: the root table could not be read.
    pub const ROOT_ACCESS: Self = Self(0x08);
    /// LCT: the context table could not be read.
    pub const CONTEXT_ACCESS: Self = Self(0x09);
    /// LRT: reserved bits in a present root entry.
    pub const ROOT_RESERVED: Self = Self(0x0a);
    /// LCT: reserved bits in a present context entry.
    pub const CONTEXT_RESERVED: Self = Self(0x0b);
    /// LSL: reserved bits in a present paging entry.
    pub const PAGING_RESERVED: Self = Self(0x0c);
    /// LCT: the context entry blocks this type of request.
    pub const REQUEST_TYPE_BLOCKED: Self = Self(0x0d);
    /// LGN: the translated address lies in the interrupt range.
    pub const OUTPUT_IN_INTERRUPT_RANGE: Self = Self(0x0e);

    /// The code in words, or `None` for one that this project does not name.
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        Some(match self.0 {
            0x01 => "root entry not present",
            0x02 => "context entry not present",
            0x03 => "context entry invalid",
            0x04 => "address beyond the domain's width",
            0x05 => "write not permitted",
            0x06 => "read not permitted",
            0x07 => "paging entry unreadable",
            0x08 => "root table unreadable",
            0x09 => "context table unreadable",
            0x0a => "reserved bits in the root entry",
            0x0b => "reserved bits in the context entry",
            0x0c => "reserved bits in a paging entry",
            0x0d => "request type blocked",
            0x0e => "output in the interrupt range",
            _ => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => write!(f, "{words} ({:#x})", self.0),
            None => write!(f, "reason {:#x}", self.0),
        }
    }
}
