//! Context entries of legacy mode: one per requester (VT-d 9.3).

use crate::{DomainId, PhysAddr};

/// Entries in a legacy context table: one per device and function.
pub const ENTRIES: u64 = 256;

bitfields! {
    /// A context entry in legacy mode (VT-d 9.3).
    pub struct ContextEntry([u64; 2]) {
        /// Present.
        [0] present, with_present;
        /// Fault processing disable.
        [1] fpd, with_fpd;
        /// Translation type, see [`TranslationType`].
        [3:2] tt, with_tt;
        /// Second-stage top table pointer, as a frame number.
        [63:12] ssptptr, with_ssptptr;
        /// Address width: levels less two.
        [66:64] aw, with_aw;
        /// Ignored by hardware, free for software.
        [70:67] _;
        /// Domain id.
        [87:72] did, with_did;
    }
}

/// What a legacy context entry does with a request (VT-d 9.3, field TT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranslationType {
    /// Untranslated requests go through the second stage; translated ones are blocked.
    SecondStage,
    /// As `SecondStage`, and the device may hold translations of its own (ATS).
    SecondStageDeviceTlb,
    /// Untranslated requests pass unchanged: the requester reaches all of memory.
    PassThrough,
    /// Reserved.
    Reserved,
}

impl ContextEntry {
    /// The translation type in words.
    #[must_use]
    pub const fn translation_type(self) -> TranslationType {
        match self.tt() {
            0 => TranslationType::SecondStage,
            1 => TranslationType::SecondStageDeviceTlb,
            2 => TranslationType::PassThrough,
            _ => TranslationType::Reserved,
        }
    }
    /// Address of the second-stage top table. Meaningful unless pass-through.
    #[must_use]
    pub const fn top_table(self) -> PhysAddr {
        PhysAddr::new(self.ssptptr() << 12)
    }
    /// Levels of the second-stage table: 3, 4 or 5 for the widths that the manual defines.
    #[must_use]
    pub const fn levels(self) -> u8 {
        self.aw() as u8 + 2
    }
    /// The domain id as a type.
    #[must_use]
    pub const fn domain_id(self) -> DomainId {
        DomainId(self.did() as u16)
    }
}
