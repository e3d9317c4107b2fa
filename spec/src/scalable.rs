//! Tables of scalable mode below the root: context entries, PASID directory, PASID entries (VT-d 9.4 to 9.6).
//!
//! A root entry ([`crate::root::ScalableRootEntry`]) points to two context tables of 128 entries, which point to a PASID
//! directory each; bits 19:6 of the PASID pick its entry, which points to a PASID table; bits 5:0 pick the entry there,
//! which says how the request is translated. Requests without PASID take the one in RID_PASID.

use crate::{DomainId, PhysAddr};

/// Entries in a context table: one per device and function of half a bus. Entry `devfn % 128`.
pub const CONTEXT_ENTRIES: u64 = 128;
/// Entries in a PASID table.
pub const PASID_TABLE_ENTRIES: u64 = 64;
/// PASIDs are numbers of 20 bits: they are below this.
pub const PASIDS: u32 = 1 << 20;

bitfields! {
    /// A context entry in scalable mode (VT-d 9.4).
    pub struct ScalableContextEntry([u64; 4]) {
        /// Present.
        [0] present, with_present;
        /// Fault processing disable.
        [1] fpd, with_fpd;
        /// Device-TLB enable: translation requests and translated requests are served.
        [2] dte, with_dte;
        /// PASID enable: requests with PASID are served.
        [3] paside, with_paside;
        /// Page request enable.
        [4] pre, with_pre;
        /// Size of the PASID directory: `2^(pdts + 7)` entries.
        [11:9] pdts, with_pdts;
        /// Frame of the PASID directory.
        [63:12] pasiddirptr, with_pasiddirptr;
        /// PASID of requests that carry none.
        [83:64] rid_pasid, with_rid_pasid;
        /// Requests that carry no PASID are privileged.
        [84] rid_priv, with_rid_priv;
    }
}

impl ScalableContextEntry {
    /// Address of the PASID directory. Meaningful when `present`.
    #[must_use]
    pub const fn directory(self) -> PhysAddr {
        PhysAddr::new(self.pasiddirptr() << 12)
    }
    /// Entries in the PASID directory: 128 to 16384.
    #[must_use]
    pub const fn directory_entries(self) -> u64 {
        1 << (self.pdts() + 7)
    }
}

bitfields! {
    /// An entry of a PASID directory (VT-d 9.5).
    pub struct PasidDirectoryEntry(u64) {
        /// Present.
        [0] present, with_present;
        /// Fault processing disable.
        [1] fpd, with_fpd;
        /// Frame of the PASID table.
        [63:12] smptblptr, with_smptblptr;
    }
}

impl PasidDirectoryEntry {
    /// Address of the PASID table. Meaningful when `present`.
    #[must_use]
    pub const fn table(self) -> PhysAddr {
        PhysAddr::new(self.smptblptr() << 12)
    }
}

/// Index of `pasid` in the PASID directory.
#[must_use]
pub const fn directory_index(pasid: u32) -> u64 {
    (pasid as u64 >> 6) & 0x3fff
}

/// Index of `pasid` in its PASID table.
#[must_use]
pub const fn table_index(pasid: u32) -> u64 {
    pasid as u64 & 0x3f
}

bitfields! {
    /// A PASID entry (VT-d 9.6): how the requests of one requester with one PASID are translated.
    pub struct PasidEntry([u64; 8]) {
        /// Present.
        [0] present, with_present;
        /// Fault processing disable.
        [1] fpd, with_fpd;
        /// Address width of the second stage: levels less two.
        [4:2] aw, with_aw;
        /// Execute bits of the second stage count.
        [5] ssee, with_ssee;
        /// Translation type, see [`pasid_type`].
        [8:6] pgtt, with_pgtt;
        /// Accessed and dirty bits of the second stage are kept.
        [9] ssade, with_ssade;
        /// Frame of the second-stage top table.
        [63:12] ssptptr, with_ssptptr;
        /// Domain id.
        [79:64] did, with_did;
        /// Page walks snoop the processor's caches.
        [87] pwsnp, with_pwsnp;
        /// Accesses to the pages snoop the processor's caches.
        [88] pgsnp, with_pgsnp;
        /// Cache disable.
        [89] cd, with_cd;
        /// Memory types of the second stage count.
        [90] emte, with_emte;
        /// Memory type of the first stage's own tables.
        [93:91] emt, with_emt;
        /// Write-through for the first stage's top table.
        [94] pwt, with_pwt;
        /// No caching for the first stage's top table.
        [95] pcd, with_pcd;
        /// Page attribute table: eight memory types of four bits.
        [127:96] pat, with_pat;
        /// Supervisor requests are served.
        [128] sre, with_sre;
        /// Execute requests are served.
        [129] ere, with_ere;
        /// Levels of the first stage: 0 four, 1 five.
        [131:130] fspm, with_fspm;
        /// Supervisor writes honour write protection.
        [132] wpe, with_wpe;
        /// Execute-disable bits count.
        [133] nxe, with_nxe;
        /// Supervisor may not execute user pages.
        [134] smep, with_smep;
        /// Extended accessed bits are kept.
        [135] eafe, with_eafe;
        /// Frame of the first-stage top table.
        [191:140] fsptptr, with_fsptptr;
    }
}

/// [`PasidEntry`], field PGTT (VT-d 9.6). Other values are reserved.
pub mod pasid_type {
    /// First stage only.
    pub const FIRST_STAGE: u64 = 1;
    /// Second stage only.
    pub const SECOND_STAGE: u64 = 2;
    /// First stage, and its output through the second.
    pub const NESTED: u64 = 3;
    /// Addresses pass unchanged: the requester reaches all of memory.
    pub const PASS_THROUGH: u64 = 4;
}

/// [`PasidEntry`], field FSPM.
pub mod first_stage_mode {
    /// Four levels.
    pub const FOUR_LEVELS: u64 = 0;
    /// Five levels.
    pub const FIVE_LEVELS: u64 = 1;
}

/// What a PASID entry does with a request (VT-d 9.6, field PGTT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasidTranslation {
    /// First stage only.
    FirstStage,
    /// Second stage only.
    SecondStage,
    /// First stage, and its output through the second.
    Nested,
    /// Addresses pass unchanged: the requester reaches all of memory.
    PassThrough,
    /// Reserved; the value.
    Reserved(u8),
}

impl PasidEntry {
    /// The translation type in words.
    #[must_use]
    pub const fn translation(self) -> PasidTranslation {
        match self.pgtt() {
            pasid_type::FIRST_STAGE => PasidTranslation::FirstStage,
            pasid_type::SECOND_STAGE => PasidTranslation::SecondStage,
            pasid_type::NESTED => PasidTranslation::Nested,
            pasid_type::PASS_THROUGH => PasidTranslation::PassThrough,
            other => PasidTranslation::Reserved(other as u8),
        }
    }
    /// Address of the second-stage top table. Meaningful for types with a second stage.
    #[must_use]
    pub const fn second_stage_table(self) -> PhysAddr {
        PhysAddr::new(self.ssptptr() << 12)
    }
    /// Levels of the second stage: 3, 4 or 5 for the widths that the manual defines.
    #[must_use]
    pub const fn second_stage_levels(self) -> u8 {
        self.aw() as u8 + 2
    }
    /// Address of the first-stage top table. Meaningful for types with a first stage.
    #[must_use]
    pub const fn first_stage_table(self) -> PhysAddr {
        PhysAddr::new(self.fsptptr() << 12)
    }
    /// Levels of the first stage: 4 or 5 for the modes that the manual defines.
    #[must_use]
    pub const fn first_stage_levels(self) -> u8 {
        self.fspm() as u8 + 4
    }
    /// The domain id as a type.
    #[must_use]
    pub const fn domain_id(self) -> DomainId {
        DomainId(self.did() as u16)
    }
}
