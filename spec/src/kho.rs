//! Kexec handover (KHO), Linux's container for what one kernel leaves to the next: names, layouts and a checked view.
//!
//! The outgoing kernel leaves a device tree, the *root*: its `compatible` says the version, `preserved-memory-map` is the
//! physical address of a radix tree of preserved frames ([`radix`]), and each subnode names a blob by physical address
//! and length. [`Root::parse`] checks such a tree, [`write_root`] makes one. What Linux itself puts into blobs is in
//! [`luo`], for the inspector.
//!
//! Layouts are those of Linux 7.3 (`include/linux/kho/abi`, x86 with 4 KiB pages). Numbers are in the processor's own
//! byte order. Nothing here reads memory: following an address is the business of whoever can.

mod error;
pub mod luo;
pub mod radix;

pub use error::{KhoError, ShortText};

use crate::PhysAddr;
use crate::fdt::{Fdt, Node, WriteError, Writer};

/// `compatible` of the root.
pub const COMPATIBLE: &str = "kho-v4";
/// Property of every tree and node that says what it is.
pub const COMPATIBLE_PROPERTY: &str = "compatible";
/// Property of the root: physical address of the radix tree of preserved frames.
pub const MEMORY_MAP_PROPERTY: &str = "preserved-memory-map";
/// Property of a subnode: physical address of its blob.
pub const DATA_PROPERTY: &str = "preserved-data";
/// Property of a subnode: length of its blob in bytes.
pub const SIZE_PROPERTY: &str = "blob-size";

/// Subnode of the live update orchestrator; its blob is a [`luo::Luo`].
pub const LUO_NODE: &str = "LUO";
/// Subnode with a [`luo::KexecMetadata`].
pub const METADATA_NODE: &str = "kexec-metadata";
/// Subnode of reserved memory, a device tree of its own.
pub const MEMBLOCK_NODE: &str = "memblock";
/// `compatible` of the tree in [`MEMBLOCK_NODE`].
pub const MEMBLOCK_COMPATIBLE: &str = "memblock-v1";
/// `compatible` of a reservation in the tree of [`MEMBLOCK_NODE`].
pub const RESERVE_MEM_COMPATIBLE: &str = "reserve-mem-v1";

/// Type of the x86 `setup_data` node that carries a [`BootData`].
pub const SETUP_DATA_TYPE: u32 = 10;
/// Subnodes that a root may have.
pub const MAX_BLOBS: usize = 64;

wire! {
    /// What the boot loader's `setup_data` says about KHO (`struct kho_data`).
    pub struct BootData (32) {
        /// Physical address of the root.
        fdt_addr: u64,
        /// Bytes there are for it.
        fdt_size: u64,
        /// Physical address of an array of [`Scratch`].
        scratch_addr: u64,
        /// Length of the array in bytes.
        scratch_size: u64,
    }
}

wire! {
    /// A piece of memory that the next kernel boots in (`struct kho_scratch`).
    pub struct Scratch (16) {
        /// Physical address.
        addr: u64,
        /// Length in bytes.
        size: u64,
    }
}

/// A blob that the root names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob<'a> {
    /// Name of the subnode.
    pub name: &'a str,
    /// Where the blob starts. Not null; `data + bytes` stays in the address space. Whether memory is there, and
    /// preserved, is for the caller to check.
    pub data: PhysAddr,
    /// Length in bytes; not zero.
    pub bytes: u64,
}

/// The root of a handover, checked as far as it can be without reading memory.
///
/// # Invariants
/// Every node below the root reads as a [`Blob`], and no two have the same name.
#[derive(Debug, Clone, Copy)]
pub struct Root<'a> {
    fdt: Fdt<'a>,
    memory_map: PhysAddr,
}

impl<'a> Root<'a> {
    /// Checks the root that `bytes` opens with.
    ///
    /// # Errors
    /// The first thing found wrong; see [`KhoError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, KhoError> {
        let fdt = Fdt::parse(bytes).map_err(KhoError::Tree)?;
        let compatible =
            fdt.root().property(COMPATIBLE_PROPERTY).and_then(|p| p.as_str()).unwrap_or_default();
        if compatible != COMPATIBLE {
            return Err(KhoError::Compatible { found: ShortText::new(compatible) });
        }
        let memory_map = PhysAddr::new(number(fdt.root(), MEMORY_MAP_PROPERTY)?);
        if memory_map.get() == 0 || !memory_map.is_aligned(crate::PAGE_SIZE) {
            return Err(KhoError::MemoryMap { address: memory_map });
        }
        // INVARIANT: each subnode is read here once; duplicates are refused.
        for (ordinal, node) in fdt.nodes().enumerate() {
            if ordinal == MAX_BLOBS {
                return Err(KhoError::TooManyBlobs { limit: MAX_BLOBS });
            }
            let blob = blob(node)?;
            if fdt.nodes().take(ordinal).any(|earlier| earlier.name() == blob.name) {
                return Err(KhoError::Twice { node: ShortText::new(blob.name) });
            }
        }
        Ok(Self { fdt, memory_map })
    }

    /// Where the radix tree of preserved frames starts: a multiple of 4096, not null.
    #[must_use]
    pub const fn memory_map(&self) -> PhysAddr {
        self.memory_map
    }

    /// The blobs, in the order of the tree.
    pub fn blobs(&self) -> impl Iterator<Item = Blob<'a>> + use<'a> {
        self.fdt.nodes().filter_map(|node| blob(node).ok())
    }

    /// The blob with this name.
    #[must_use]
    pub fn blob(&self, name: &str) -> Option<Blob<'a>> {
        self.blobs().find(|blob| blob.name == name)
    }
}

/// Writes a root into `buffer` and returns its bytes. KHO gives it one page.
///
/// # Errors
/// [`WriteError::Full`] when the buffer is too small, [`WriteError::Text`] for a name that no node may have.
pub fn write_root<'b>(
    buffer: &'b mut [u8],
    memory_map: PhysAddr,
    blobs: &[Blob<'_>],
) -> Result<&'b [u8], WriteError> {
    let mut writer = Writer::new(buffer)?;
    writer.begin_node("")?;
    writer.property_str(COMPATIBLE_PROPERTY, COMPATIBLE)?;
    writer.property_u64(MEMORY_MAP_PROPERTY, memory_map.get())?;
    for blob in blobs {
        writer.begin_node(blob.name)?;
        writer.property_u64(SIZE_PROPERTY, blob.bytes)?;
        writer.property_u64(DATA_PROPERTY, blob.data.get())?;
        writer.end()?;
    }
    writer.end()?;
    writer.finish()
}

/// The blob that a subnode names.
fn blob(node: Node<'_>) -> Result<Blob<'_>, KhoError> {
    let data = PhysAddr::new(number(node, DATA_PROPERTY)?);
    let bytes = number(node, SIZE_PROPERTY)?;
    if data.get() == 0 || bytes == 0 || data.checked_add(bytes).is_none() {
        return Err(KhoError::Blob { node: ShortText::new(node.name()), data, bytes });
    }
    Ok(Blob { name: node.name(), data, bytes })
}

fn number(node: Node<'_>, property: &'static str) -> Result<u64, KhoError> {
    node.property(property)
        .and_then(|value| value.native_u64())
        .ok_or_else(|| KhoError::Property { node: ShortText::new(node.name()), property })
}
