//! The handover's own records: what lies in the `holdover` blob of the KHO container.
//!
//! A blob is one [`Header`] and then records, each opening with a [`RecordHeader`] that carries its kind, its version and
//! its length. A reader skips kinds that it does not know, and bytes behind the fields that it knows: a newer release
//! appends. What an older reader must not skip raises `oldest_reader`. Everything is little-endian, 8-byte aligned;
//! reserved bytes are zero. Records refer to one another by ordinal: the n-th record of that kind, from 0.
//!
//! `digest` is XXH64 (seed 0) over the whole blob with the digest field itself zero. Table digests cover the frames that
//! the record lists, whole, in the order listed; those of a unit describe the tables as they are *after* the cut-off.

/// Name of our subnode in the KHO tree.
pub const SUBNODE: &str = "holdover";
/// First eight bytes of a blob.
pub const MAGIC: [u8; 8] = *b"HOLDOVER";
/// The version that this release writes.
pub const VERSION: u32 = 1;
/// The oldest version that this release reads.
pub const OLDEST_READABLE: u32 = 1;
/// Largest blob a reader accepts, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// Record kinds. Values are never reused.
pub mod kind {
    /// [`super::Release`]; exactly one.
    pub const RELEASE: u16 = 1;
    /// [`super::Scratch`].
    pub const SCRATCH: u16 = 2;
    /// [`super::Unit`].
    pub const UNIT: u16 = 3;
    /// [`super::ContextTable`].
    pub const CONTEXT_TABLE: u16 = 4;
    /// [`super::Region`].
    pub const REGION: u16 = 5;
    /// [`super::Domain`].
    pub const DOMAIN: u16 = 6;
    /// [`super::DomainTables`].
    pub const DOMAIN_TABLES: u16 = 7;
    /// [`super::DomainIdUse`].
    pub const DOMAIN_ID: u16 = 8;
    /// [`super::RequesterRecord`].
    pub const REQUESTER: u16 = 9;
    /// [`super::Alias`].
    pub const ALIAS: u16 = 10;
    /// [`super::Container`].
    pub const CONTAINER: u16 = 11;
    /// [`super::PasidTables`].
    pub const PASID_TABLES: u16 = 12;
    /// [`super::Attachment`].
    pub const ATTACHMENT: u16 = 13;
    /// [`super::InterruptTable`].
    pub const INTERRUPT_TABLE: u16 = 14;
    /// [`super::InterruptEntry`].
    pub const INTERRUPT_ENTRY: u16 = 15;
    /// [`super::DeviceTlb`].
    pub const DEVICE_TLB: u16 = 16;
}

/// Bytes of a record's body that every release wrote: a reader refuses shorter ones, and takes what a release before did
/// not write yet as zero. `None` for kinds that this release does not know.
#[must_use]
pub const fn least_body(of: u16) -> Option<usize> {
    Some(match of {
        kind::RELEASE => 72,
        kind::UNIT => 48,
        kind::SCRATCH | kind::CONTEXT_TABLE | kind::DOMAIN_ID | kind::CONTAINER | kind::DEVICE_TLB => 16,
        kind::REGION => 32,
        kind::DOMAIN | kind::REQUESTER => 40,
        kind::DOMAIN_TABLES | kind::INTERRUPT_TABLE => 24,
        kind::PASID_TABLES | kind::INTERRUPT_ENTRY => 32,
        kind::ATTACHMENT => 88,
        kind::ALIAS => 8,
        _ => return None,
    })
}

wire! {
    /// What a blob opens with.
    pub struct Header (64) {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// Version of the writer's format.
        version: u32,
        /// A reader older than this must refuse.
        oldest_reader: u32,
        /// Length of the blob in bytes, header included, a multiple of 8.
        bytes: u64,
        /// Number of records.
        records: u32,
        /// Reserved.
        reserved0: u32,
        /// XXH64 of the blob with this field zero.
        digest: u64,
        /// Reserved.
        reserved1: [u64; 3],
    }
}

wire! {
    /// What a record opens with.
    pub struct RecordHeader (8) {
        /// See [`kind`].
        kind: u16,
        /// Version of this kind of record: grows when fields are appended.
        version: u16,
        /// Length in bytes, this header included, a multiple of 8.
        bytes: u32,
    }
}

wire! {
    /// Who hands over.
    pub struct Release (80) {
        /// Ordinal of this update on the machine, from 1.
        update: u64,
        /// Release string of the outgoing kernel, padded with NUL.
        release: [u8; 64],
        /// Monotonic time of the seal in nanoseconds, on a clock that both kernels read; 0 when there is none.
        sealed_at: u64,
    }
}

wire! {
    /// Memory that the incoming kernel boots in and may overwrite: nothing preserved lies there (I9).
    pub struct Scratch (16) {
        /// Physical address, a multiple of 4096.
        start: u64,
        /// Length in bytes, a multiple of 4096.
        bytes: u64,
    }
}

wire! {
    /// A unit that stays on.
    pub struct Unit (64) {
        /// Physical address of the register set.
        register_base: u64,
        /// CAP at the seal.
        cap: u64,
        /// ECAP at the seal.
        ecap: u64,
        /// RTADDR at the seal: root table and mode.
        root: u64,
        /// XXH64 of the root table and then of the listed context tables, as they are after the cut-off.
        digest: u64,
        /// Segment.
        segment: u16,
        /// Reserved.
        reserved0: [u16; 3],
        /// Reserved.
        reserved1: [u64; 2],
    }
}

wire! {
    /// A context table that stays: the one of a bus on which a preserved requester lives.
    pub struct ContextTable (16) {
        /// Physical address.
        table: u64,
        /// Ordinal of the unit.
        unit: u32,
        /// Bus.
        bus: u8,
        /// 0 in legacy mode; in scalable mode 0 for the lower half and 1 for the upper.
        half: u8,
        /// Reserved.
        reserved: u16,
    }
}

/// What a region is made of.
pub mod region_kind {
    /// Memory: its frames are in the preserved set.
    pub const MEMORY: u32 = 0;
    /// A device's BAR: a legal target of DMA, never in the preserved set.
    pub const DEVICE: u32 = 1;
}

wire! {
    /// Memory whose content is kept, or a device range that may be a target.
    pub struct Region (32) {
        /// The name under which the next kernel finds it.
        token: u64,
        /// Physical address, a multiple of 4096.
        start: u64,
        /// Length in bytes, a multiple of 4096.
        bytes: u64,
        /// See [`region_kind`].
        kind: u32,
        /// Reserved.
        reserved: u32,
    }
}

/// Formats of a domain's tables.
pub mod domain_format {
    /// Second-stage tables (VT-d 9.8).
    pub const SECOND_STAGE: u8 = 0;
    /// First-stage tables (VT-d 9.7).
    pub const FIRST_STAGE: u8 = 1;
}

wire! {
    /// A domain whose tables stay.
    pub struct Domain (40) {
        /// The name under which the next kernel retrieves it.
        token: u64,
        /// Physical address of the top table. For a first stage below a second one (nested) too: the PASID entry then holds
        /// the address that the parent translates to this one.
        top_table: u64,
        /// XXH64 of the table frames, in the order of its [`DomainTables`] records, with the bits cleared that hardware
        /// writes on its own after the seal. [`domain_format::FIRST_STAGE`]: bits 5 and 6 (A, D) of every word.
        /// [`domain_format::SECOND_STAGE`]: bits 8 and 9 (A, D) of every word when the entry of an [`Attachment`] that names
        /// the domain, as `domain` or as `parent`, has SSADE; none otherwise. Extended accessed bits are not provided for:
        /// a PASID entry with EAFE is not preserved.
        digest: u64,
        /// Number of table frames.
        table_frames: u64,
        /// Levels: 3, 4 or 5.
        levels: u8,
        /// See [`domain_format`].
        format: u8,
        /// Reserved.
        reserved: [u8; 6],
    }
}

wire! {
    /// A run of frames that hold a domain's tables.
    pub struct DomainTables (24) {
        /// Physical address, a multiple of 4096.
        start: u64,
        /// Length in bytes, a multiple of 4096.
        bytes: u64,
        /// Ordinal of the domain.
        domain: u32,
        /// Reserved.
        reserved: u32,
    }
}

wire! {
    /// The id of a domain on one unit (I5).
    pub struct DomainIdUse (16) {
        /// Ordinal of the domain.
        domain: u32,
        /// Ordinal of the unit.
        unit: u32,
        /// The domain id.
        id: u16,
        /// Reserved.
        reserved: [u16; 3],
    }
}

wire! {
    /// A requester that goes on. In legacy mode it is attached to one domain by its context entry. In scalable mode its
    /// context entry leads to a PASID directory, and each preserved PASID is an [`Attachment`]; `domain` is the domain of
    /// requests without PASID.
    ///
    /// Version 2 appended `context_high`: a reader takes it as zero in a record of version 1.
    pub struct RequesterRecord (56) {
        /// The name under which the next kernel retrieves it.
        token: u64,
        /// Its context entry as it must be found: bits 127:0.
        context: [u64; 2],
        /// Ordinal of the unit.
        unit: u32,
        /// Ordinal of the domain.
        domain: u32,
        /// Segment.
        segment: u16,
        /// Source id.
        source: u16,
        /// Reserved.
        reserved: u32,
        /// Bits 255:128 of its context entry in scalable mode; zero in legacy mode.
        context_high: [u64; 2],
    }
}

wire! {
    /// A run of frames of a requester's PASID structures that stays (scalable mode). After the cut-off a directory holds
    /// only entries for listed tables, and a table holds only entries of listed attachments; all else is zero. The digest
    /// of the unit goes on over these runs, in the order of their records, after the context tables.
    pub struct PasidTables (32) {
        /// Physical address, a multiple of 4096.
        start: u64,
        /// Length in bytes, a multiple of 4096: the whole directory, or one table.
        bytes: u64,
        /// Ordinal of the requester. Aliases share its structures.
        requester: u32,
        /// The first PASID that a table holds, a multiple of 64; zero for a directory.
        first_pasid: u32,
        /// See [`pasid_tables_kind`].
        kind: u32,
        /// Reserved.
        reserved: u32,
    }
}

/// What a [`PasidTables`] run holds.
pub mod pasid_tables_kind {
    /// The PASID directory. Exactly one run for each requester in scalable mode.
    pub const DIRECTORY: u32 = 0;
    /// A PASID table.
    pub const TABLE: u32 = 1;
}

wire! {
    /// One PASID of a requester, attached to a domain (scalable mode).
    pub struct Attachment (88) {
        /// Its PASID entry as it must be found.
        entry: [u64; 8],
        /// Ordinal of the requester.
        requester: u32,
        /// The PASID; requests without PASID have the one in RID_PASID of the context entry.
        pasid: u32,
        /// Ordinal of the domain whose tables the entry leads to: for a nested entry, that of the first stage.
        domain: u32,
        /// For a nested entry the ordinal of the second stage's domain, plus one; zero otherwise.
        parent: u32,
        /// Reserved.
        reserved: u64,
    }
}

wire! {
    /// Another source-id under which a requester's DMA arrives. Its context entry equals the requester's.
    pub struct Alias (8) {
        /// Ordinal of the requester.
        requester: u32,
        /// The source id, on the requester's segment.
        source: u16,
        /// Reserved.
        reserved: u16,
    }
}

wire! {
    /// The interrupt remapping table of a unit that remaps interrupts, which stays in place and in use. At most one for
    /// each unit; none for a unit that remaps no interrupts. Its frames are in the preserved set. Releases that do not know
    /// this record leave the table as it is.
    pub struct InterruptTable (24) {
        /// IRTA at the seal: address, size and mode.
        irta: u64,
        /// XXH64 of the whole table as it is after the cut-off: entries that belong to no preserved requester are zero.
        digest: u64,
        /// Ordinal of the unit.
        unit: u32,
        /// Number of present entries that stay: so many [`InterruptEntry`] records name the unit.
        entries: u32,
    }
}

wire! {
    /// A present entry of a unit's interrupt table that belongs to a preserved requester: whoever may ask by it (SVT, SID,
    /// SQ) is that requester under one of its source-ids.
    pub struct InterruptEntry (32) {
        /// The entry as it must be found.
        entry: [u64; 2],
        /// Ordinal of the unit.
        unit: u32,
        /// Ordinal of the requester; the first one where several share the source-id.
        requester: u32,
        /// Its index in the table.
        index: u32,
        /// Reserved.
        reserved: u32,
    }
}

wire! {
    /// The device of a requester keeps translations of its own, and its context entry lets it: ATS is on. Exactly one for each
    /// such requester.
    pub struct DeviceTlb (16) {
        /// Ordinal of the requester.
        requester: u32,
        /// Source id of the physical function, on the requester's segment.
        physical_function: u16,
        /// Invalidations that the device queues, 1 to 32.
        queue_depth: u8,
        /// Bit 0: page requests of the device (PRI) were on until the freeze switched them off. Other bits are reserved.
        page_requests: u8,
        /// Reserved.
        reserved: u64,
    }
}

wire! {
    /// The frames that hold the handover itself: records, map and tree. Free once the handover is finished with.
    pub struct Container (16) {
        /// Physical address, a multiple of 4096.
        start: u64,
        /// Length in bytes, a multiple of 4096.
        bytes: u64,
    }
}
