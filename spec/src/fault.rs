//! Why a request was refused (VT-d 7.1.3, appendix B).

use core::fmt;

/// A fault reason code. Open: values that the manual does not define stay representable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(pub u8);

/// Declares the codes: a constant each, its words, and its line in the list of all.
macro_rules! reasons {
    ($($(#[$doc:meta])* $code:literal $name:ident: $words:literal;)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// Every code that has a name, with its name.
            pub const ALL: &'static [(&'static str, Self)] = &[$((stringify!($name), Self::$name),)*];

            /// The code in words, or `None` for one that this project does not name.
            #[must_use]
            pub const fn words(self) -> Option<&'static str> {
                Some(match self.0 {
                    $($code => $words,)*
                    _ => return None,
                })
            }
        }
    };
}

// The letters before the colon are the manual's name of the group: L legacy, S scalable mode.
reasons! {
    /// No fault: reserved.
    0x00 NONE: "no fault";
    /// LRT: the root entry is not present.
    0x01 ROOT_NOT_PRESENT: "root entry not present";
    /// LCT: the context entry is not present.
    0x02 CONTEXT_NOT_PRESENT: "context entry not present";
    /// LCT: the context entry is programmed in a way the unit cannot serve.
    0x03 CONTEXT_INVALID: "context entry invalid";
    /// LGN: the address lies beyond what the table can map.
    0x04 ADDRESS_BEYOND_WIDTH: "address beyond the domain's width";
    /// LSL: no permission to write.
    0x05 WRITE_DENIED: "write not permitted";
    /// LSL: no permission to read.
    0x06 READ_DENIED: "read not permitted";
    /// LSL: a paging entry could not be read.
    0x07 PAGING_ENTRY_ACCESS: "paging entry unreadable";
    /// LRT: the root table could not be read.
    0x08 ROOT_ACCESS: "root table unreadable";
    /// LCT: the context table could not be read.
    0x09 CONTEXT_ACCESS: "context table unreadable";
    /// LRT: reserved bits in a present root entry.
    0x0a ROOT_RESERVED: "reserved bits in the root entry";
    /// LCT: reserved bits in a present context entry.
    0x0b CONTEXT_RESERVED: "reserved bits in the context entry";
    /// LSL: reserved bits in a present paging entry.
    0x0c PAGING_RESERVED: "reserved bits in a paging entry";
    /// LCT: the context entry blocks this type of request.
    0x0d REQUEST_TYPE_BLOCKED: "request type blocked";
    /// LGN: the translated address lies in the interrupt range.
    0x0e OUTPUT_IN_INTERRUPT_RANGE: "output in the interrupt range";
    /// Interrupt: reserved bits in the request.
    0x20 INTERRUPT_RESERVED: "reserved bits in the interrupt request";
    /// Interrupt: the index lies beyond the table.
    0x21 INTERRUPT_INDEX: "interrupt index beyond the table";
    /// Interrupt: the entry is not present.
    0x22 INTERRUPT_NOT_PRESENT: "interrupt entry not present";
    /// Interrupt: the entry could not be read.
    0x23 INTERRUPT_ACCESS: "interrupt entry unreadable";
    /// Interrupt: reserved bits in a present entry.
    0x24 INTERRUPT_ENTRY_RESERVED: "reserved bits in the interrupt entry";
    /// Interrupt: compatibility format is blocked. The record has no index.
    0x25 COMPATIBILITY_BLOCKED: "compatibility format interrupt blocked";
    /// Interrupt: the source id may not use the entry.
    0x26 INTERRUPT_SOURCE: "interrupt entry not for this source";
    /// Interrupt: the posted-interrupt descriptor could not be read or written.
    0x27 POSTED_ACCESS: "posted-interrupt descriptor unreadable";
    /// Interrupt: reserved bits in the posted-interrupt descriptor.
    0x28 POSTED_RESERVED: "reserved bits in the posted-interrupt descriptor";
    /// Interrupt: a request of a type that cannot be one.
    0x29 INTERRUPT_REQUEST_TYPE: "invalid interrupt request";
    /// RTA: the root table could not be read in scalable mode.
    0x30 SCALABLE_ROOT_POINTER: "root table pointer invalid";
    /// RTA: a request with PASID, and the mode is legacy.
    0x31 MODE_PASID_REQUEST: "request with PASID in legacy mode";
    /// RTA: a page group request, and the mode is legacy.
    0x32 MODE_PAGE_RESPONSE: "page request in legacy mode";
    /// RTA: the fourth fault of the root pointer; which condition it stands for is not settled.
    0x33 ROOT_POINTER_4: "root pointer fault 4";
    /// SRT: the root table could not be read.
    0x38 SCALABLE_ROOT_ACCESS: "root table unreadable";
    /// SRT: the half of the root entry is not present.
    0x39 SCALABLE_ROOT_NOT_PRESENT: "root entry not present";
    /// SRT: reserved bits in a present root entry.
    0x3a SCALABLE_ROOT_RESERVED: "reserved bits in the root entry";
    /// SCT: the context table could not be read.
    0x40 SCALABLE_CONTEXT_ACCESS: "context table unreadable";
    /// SCT: the context entry is not present.
    0x41 SCALABLE_CONTEXT_NOT_PRESENT: "context entry not present";
    /// SCT: reserved bits in a present context entry.
    0x42 SCALABLE_CONTEXT_RESERVED: "reserved bits in the context entry";
    /// SCT: the context entry is programmed in a way the unit cannot serve.
    0x43 SCALABLE_CONTEXT_INVALID: "context entry invalid";
    /// SCT: a translation request or translated request, and DTE is 0.
    0x44 DEVICE_TLB_DISABLED: "device-TLB request not enabled";
    /// SCT: a request with PASID, and PASIDE is 0.
    0x45 PASID_DISABLED: "request with PASID not enabled";
    /// SCT: the PASID lies beyond the directory.
    0x46 PASID_TOO_LARGE: "PASID beyond the directory";
    /// SCT: a page request, and PRE is 0.
    0x47 PAGE_REQUEST_DISABLED: "page request not enabled";
    /// SCT: RID_PASID lies beyond the directory.
    0x48 RID_PASID: "RID_PASID beyond the directory";
    /// SPD: the PASID directory could not be read.
    0x50 PASID_DIRECTORY_ACCESS: "PASID directory unreadable";
    /// SPD: the directory entry is not present.
    0x51 PASID_DIRECTORY_NOT_PRESENT: "PASID directory entry not present";
    /// SPD: reserved bits in a present directory entry.
    0x52 PASID_DIRECTORY_RESERVED: "reserved bits in the PASID directory entry";
    /// SPT: the PASID table could not be read.
    0x58 PASID_ACCESS: "PASID table unreadable";
    /// SPT: the PASID entry is not present.
    0x59 PASID_NOT_PRESENT: "PASID entry not present";
    /// SPT: reserved bits in a present PASID entry.
    0x5a PASID_RESERVED: "reserved bits in the PASID entry";
    /// SPT: the PASID entry is programmed in a way the unit cannot serve.
    0x5b PASID_INVALID: "PASID entry invalid";
    /// SPT: an execute request, and ERE is 0.
    0x5c EXECUTE_DISABLED: "execute request not enabled";
    /// SPT: a supervisor request, and SRE is 0.
    0x5d SUPERVISOR_DISABLED: "supervisor request not enabled";
    /// SFS: a first-stage entry could not be read.
    0x70 FIRST_STAGE_ACCESS: "first-stage entry unreadable";
    /// SFS: a first-stage entry is not present.
    0x71 FIRST_STAGE_NOT_PRESENT: "first-stage entry not present";
    /// SFS: reserved bits in a present first-stage entry.
    0x72 FIRST_STAGE_RESERVED: "reserved bits in a first-stage entry";
    /// SFS: the first-stage top table could not be read.
    0x73 FIRST_STAGE_TOP: "first-stage top table unreadable";
    /// SFS: a first-stage table's address lies beyond the second stage.
    0x74 NESTED_BEYOND_WIDTH: "address of a first-stage table beyond the second stage";
    /// SFS: the second stage does not let the first-stage top table be read.
    0x75 NESTED_TOP_READ_DENIED: "read of the first-stage top table not permitted";
    /// SFS: the second stage does not let a first-stage table be read.
    0x76 NESTED_READ_DENIED: "read of a first-stage table not permitted";
    /// SFS: the second stage does not let a first-stage table be written.
    0x77 NESTED_WRITE_DENIED: "write to a first-stage table not permitted";
    /// SSS: a second-stage entry could not be read.
    0x78 SECOND_STAGE_ACCESS: "second-stage entry unreadable";
    /// SSS: no permission.
    0x79 SECOND_STAGE_DENIED: "second stage does not permit it";
    /// SSS: reserved bits in a present second-stage entry.
    0x7a SECOND_STAGE_RESERVED: "reserved bits in a second-stage entry";
    /// SSS: the second-stage top table pointer is invalid.
    0x7b SECOND_STAGE_POINTER: "second-stage table pointer invalid";
    /// SSS: accessed and dirty bits cannot be set without snooping.
    0x7c SECOND_STAGE_ACCESSED_DIRTY: "second-stage accessed and dirty bits cannot be set";
    /// SSS: the sixth fault of the second stage; which condition it stands for is not settled.
    0x7d SECOND_STAGE_6: "second-stage fault 6";
    /// SGN: the address is not canonical.
    0x80 NOT_CANONICAL: "address not canonical";
    /// SGN: a user request for a supervisor page.
    0x81 USER_DENIED: "user request not permitted";
    /// SGN: no permission to execute.
    0x82 EXECUTE_DENIED: "execution not permitted";
    /// SGN: the address lies beyond what the unit can map.
    0x83 SCALABLE_BEYOND_WIDTH: "address beyond the width";
    /// SGN: the address lies beyond what the second stage can map.
    0x84 SECOND_STAGE_BEYOND_WIDTH: "address beyond the second stage's width";
    /// SGN: no permission to write.
    0x85 SCALABLE_WRITE_DENIED: "write not permitted";
    /// SGN: no permission to read.
    0x86 SCALABLE_READ_DENIED: "read not permitted";
    /// SGN: the translated address lies in the interrupt range.
    0x87 SCALABLE_OUTPUT_IN_INTERRUPT_RANGE: "output in the interrupt range";
    /// SGN: the ninth general fault; which condition it stands for is not settled.
    0x88 SCALABLE_GENERAL_9: "general fault 9";
    /// SGN: the tenth general fault; which condition it stands for is not settled.
    0x89 SCALABLE_GENERAL_10: "general fault 10";
    /// SFS: accessed and dirty bits cannot be set without snooping.
    0x90 FIRST_STAGE_ACCESSED_DIRTY: "first-stage accessed and dirty bits cannot be set";
    /// SFS: setting accessed and dirty bits failed.
    0x91 FIRST_STAGE_UPDATE: "setting first-stage accessed and dirty bits failed";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => write!(f, "{words} ({:#x})", self.0),
            None => write!(f, "reason {:#x}", self.0),
        }
    }
}
