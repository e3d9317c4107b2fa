//! What Linux 7.3 itself puts into the handover: KHO's helpers, the live update orchestrator (LUO) and preserved memfds.
//!
//! Layouts for the inspector. The blob of node `LUO` is a [`Luo`]; sessions and files lie in chains of blocks, a
//! [`BlockHeader`] and entries in each; the file of a memfd points to a [`Memfd`], whose folios lie in a [`Vmalloc`] area.
//! Every address is physical and foreign: check it before following it. Numbers are in the processor's own byte order.

use zerocopy::native_endian::U32;

use crate::PAGE_SIZE;

/// [`Luo::compatible`], padded with NUL.
pub const LUO_COMPATIBLE: &str = "luo-v5";
/// [`LuoFile::compatible`] of a memfd, padded with NUL.
pub const MEMFD_COMPATIBLE: &str = "memfd-v2";
/// [`KexecMetadata::version`].
pub const METADATA_VERSION: u32 = 1;
/// Length of a session's name in bytes.
pub const SESSION_NAME_BYTES: usize = 64;
/// Length of a file handler's name in bytes.
pub const HANDLER_NAME_BYTES: usize = 48;
/// Length of the name of a file-lifecycle-bound object in bytes.
pub const FLB_NAME_BYTES: usize = 48;
/// Length of a block in bytes.
pub const BLOCK_BYTES: u64 = PAGE_SIZE;
/// Blocks in a chain that a reader follows at most.
pub const MAX_BLOCKS: usize = 10_000;
/// Page addresses in one chunk of a [`Vmalloc`] area.
pub const VMALLOC_CHUNK_PAGES: usize = 511;
/// [`Vmalloc::flags`]: from `vmalloc`.
pub const VMALLOC_ALLOC: u16 = 1;
/// [`Vmalloc::flags`]: huge pages allowed.
pub const VMALLOC_HUGE: u16 = 2;
/// [`MemfdFolio::flags`]: dirty.
pub const FOLIO_DIRTY: u64 = 1;
/// [`MemfdFolio::flags`]: up to date.
pub const FOLIO_UP_TO_DATE: u64 = 2;
/// All bits that [`Memfd::seals`] may have.
pub const ALL_SEALS: u32 = 0x3f;

/// How many entries of `bytes` bytes a block holds behind its header.
#[must_use]
pub const fn entries_per_block(bytes: usize) -> usize {
    (BLOCK_BYTES as usize - BlockHeader::BYTES) / bytes
}

wire! {
    /// What a block opens with (`struct kho_block_header_ser`); entries follow.
    pub struct BlockHeader (16) {
        /// Physical address of the next block; 0 ends the chain.
        next: u64,
        /// Entries in this block.
        count: u64,
    }
}

wire! {
    /// The orchestrator's state (`struct luo_ser`).
    pub struct Luo (32) {
        /// [`LUO_COMPATIBLE`].
        compatible: [u8; 8],
        /// Live updates so far.
        liveupdate_num: u64,
        /// Physical address of the first block of [`LuoSession`].
        sessions_pa: u64,
        /// Physical address of a [`FlbHeader`].
        flbs_pa: u64,
    }
}

wire! {
    /// The files of a session (`struct luo_file_set_ser`).
    pub struct LuoFileSet (16) {
        /// Physical address of the first block of [`LuoFile`].
        files: u64,
        /// Files in all blocks.
        count: u64,
    }
}

wire! {
    /// A session (`struct luo_session_ser`): a name and a [`LuoFileSet`].
    pub struct LuoSession (80) {
        /// Its name, padded with NUL.
        name: [u8; SESSION_NAME_BYTES],
        /// Physical address of the first block of [`LuoFile`].
        files: u64,
        /// Files in all blocks.
        count: u64,
    }
}

wire! {
    /// A preserved file (`struct luo_file_ser`).
    pub struct LuoFile (64) {
        /// Name of its handler, padded with NUL.
        compatible: [u8; HANDLER_NAME_BYTES],
        /// What the handler left; a memfd: physical address of a [`Memfd`].
        data: u64,
        /// The name under which the session's owner retrieves it.
        token: u64,
    }
}

wire! {
    /// What the list of file-lifecycle-bound objects opens with (`struct luo_flb_header_ser`); [`Flb`]s follow.
    pub struct FlbHeader (16) {
        /// Pages of the list.
        pgcnt: u64,
        /// Objects in it.
        count: u64,
    }
}

wire! {
    /// A file-lifecycle-bound object (`struct luo_flb_ser`).
    pub struct Flb (64) {
        /// Its name, padded with NUL.
        name: [u8; FLB_NAME_BYTES],
        /// What its owner left.
        data: u64,
        /// Files that hold it.
        count: u64,
    }
}

wire! {
    /// A virtually contiguous area (`struct kho_vmalloc`).
    pub struct Vmalloc (16) {
        /// Physical address of the first [`VmallocChunk`].
        first: u64,
        /// Pages in the area.
        total_pages: u32,
        /// See [`VMALLOC_ALLOC`].
        flags: u16,
        /// Each address stands for `2^order` pages.
        order: u16,
    }
}

wire! {
    /// A page of page addresses (`struct kho_vmalloc_chunk`).
    pub struct VmallocChunk (4096) {
        /// Physical address of the next chunk; 0 ends the chain.
        next: u64,
        /// Physical addresses; zeroes behind the last one.
        phys: [u64; VMALLOC_CHUNK_PAGES],
    }
}

wire! {
    /// A preserved memfd (`struct memfd_luo_ser`).
    pub struct Memfd (48) {
        /// File position.
        pos: u64,
        /// Length of the file in bytes.
        size: u64,
        /// Seals; see [`ALL_SEALS`].
        seals: u32,
        /// Flags of its creation.
        flags: u32,
        /// Folios preserved.
        nr_folios: u64,
        /// Area with one [`MemfdFolio`] per folio.
        folios: Vmalloc,
    }
}

bitfields! {
    /// A folio of a memfd (`struct memfd_luo_folio_ser`).
    pub struct MemfdFolio([u64; 2]) {
        /// Its first frame.
        [51:0] pfn, with_pfn;
        /// See [`FOLIO_DIRTY`] and [`FOLIO_UP_TO_DATE`].
        [63:52] flags, with_flags;
        /// Offset in the file, in pages.
        [127:64] index, with_index;
    }
}

wire! {
    /// Where the chain of kernels stands (`struct kho_kexec_metadata`). Packed: the count is not aligned.
    pub unaligned struct KexecMetadata (73) {
        /// [`METADATA_VERSION`].
        version: U32,
        /// Release of the outgoing kernel, padded with NUL.
        previous_release: [u8; 65],
        /// Handovers so far.
        kexec_count: U32,
    }
}
