//! The table's fixed parts, byte by byte (VT-d chapter 8). Little-endian, at any alignment.

use zerocopy::little_endian::{U16, U32, U64};

use crate::{Extent, PhysAddr, Segment, UnitId};

/// Kinds of structures (VT-d 8.2).
pub mod kind {
    /// Remapping unit: [`super::Drhd`].
    pub const DRHD: u16 = 0;
    /// Reserved memory: [`super::Rmrr`].
    pub const RMRR: u16 = 1;
    /// Root ports with ATS: [`super::Atsr`].
    pub const ATSR: u16 = 2;
    /// Memory node of a unit: [`super::Rhsa`].
    pub const RHSA: u16 = 3;
    /// Device of the ACPI namespace: [`super::Andd`].
    pub const ANDD: u16 = 4;
    /// Translation caches in the processor: [`super::Satc`].
    pub const SATC: u16 = 5;
    /// Properties of devices in the processor: [`super::Sidp`].
    pub const SIDP: u16 = 6;
}

/// Kinds of device scopes (VT-d 8.3.1).
pub mod scope_kind {
    /// One PCI function.
    pub const PCI_ENDPOINT: u8 = 1;
    /// A PCI bridge and all below it.
    pub const PCI_SUB_HIERARCHY: u8 = 2;
    /// An I/O APIC; the enumeration id is its APIC id.
    pub const IOAPIC: u8 = 3;
    /// An HPET block; the enumeration id is its number.
    pub const HPET: u8 = 4;
    /// A device of the ACPI namespace; the enumeration id is the device number in its ANDD.
    pub const ACPI_NAMESPACE: u8 = 5;
}

/// Bits of the various `flags`.
pub mod flag {
    /// Table: interrupt remapping is supported.
    pub const INTR_REMAP: u8 = 1;
    /// Table: firmware asks not to use x2APIC.
    pub const X2APIC_OPT_OUT: u8 = 2;
    /// Table: firmware asks to restrict DMA early.
    pub const DMA_CTRL_PLATFORM_OPT_IN: u8 = 4;
    /// Table: remapping is not to be used.
    pub const REMAP_OPT_OUT: u8 = 8;
    /// DRHD: the unit sees every requester of its segment that no other unit names.
    pub const INCLUDE_PCI_ALL: u8 = 1;
    /// ATSR: all root ports of the segment.
    pub const ALL_PORTS: u8 = 1;
    /// SATC: the devices do not work without their translation cache.
    pub const ATC_REQUIRED: u8 = 1;
}

wire! {
    /// What the table opens with (VT-d 8.1): the header of every ACPI table, then DMAR's own.
    pub unaligned struct Header (48) {
        /// [`super::SIGNATURE`].
        signature: [u8; 4],
        /// Length of the table in bytes, this header included.
        length: U32,
        /// Revision, 1 or later.
        revision: u8,
        /// Makes the table's bytes sum to zero.
        checksum: u8,
        /// Who made it.
        oem_id: [u8; 6],
        /// For which machine.
        oem_table_id: [u8; 8],
        /// Revision by the maker's count.
        oem_revision: U32,
        /// Tool that made it.
        creator_id: [u8; 4],
        /// Revision of the tool.
        creator_revision: U32,
        /// Width of an address that DMA can reach in bits, less one.
        host_address_width: u8,
        /// See [`flag`].
        flags: u8,
        /// Reserved.
        reserved: [u8; 10],
    }
}

wire! {
    /// What a structure opens with (VT-d 8.2).
    pub unaligned struct StructureHeader (4) {
        /// See [`kind`].
        kind: U16,
        /// Length in bytes, device scopes included.
        length: U16,
    }
}

wire! {
    /// Remapping unit (VT-d 8.3); device scopes follow.
    pub unaligned struct Drhd (16) {
        /// [`kind::DRHD`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// See [`flag::INCLUDE_PCI_ALL`].
        flags: u8,
        /// The register set takes `2^size` pages; 0 in old tables.
        size: u8,
        /// Segment.
        segment: U16,
        /// Physical address of the register set.
        register_base: U64,
    }
}

impl Drhd {
    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> UnitId {
        UnitId { segment: Segment(self.segment.get()), register_base: self.register_base.get() }
    }
    /// Whether the unit sees every requester of its segment that no other unit names.
    #[must_use]
    pub const fn includes_all(&self) -> bool {
        self.flags & flag::INCLUDE_PCI_ALL != 0
    }
    /// The frames that the register set claims; `None` when they start within a page or leave the address space.
    #[must_use]
    pub fn registers(&self) -> Option<Extent> {
        let bytes = crate::PAGE_SIZE.checked_mul(1_u64.checked_shl(u32::from(self.size))?)?;
        Extent::from_bytes(PhysAddr::new(self.register_base.get()), bytes)
    }
}

wire! {
    /// Reserved memory (VT-d 8.4); device scopes follow.
    pub unaligned struct Rmrr (24) {
        /// [`kind::RMRR`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// Reserved.
        reserved: U16,
        /// Segment.
        segment: U16,
        /// Physical address of the first byte, a multiple of 4096.
        base: U64,
        /// Physical address of the last byte.
        limit: U64,
    }
}

impl Rmrr {
    /// The reserved frames; `None` when the region is empty, turned round or not whole pages. Firmware gets this wrong.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        let bytes = self.limit.get().checked_sub(self.base.get())?.checked_add(1)?;
        Extent::from_bytes(PhysAddr::new(self.base.get()), bytes)
    }
}

wire! {
    /// Root ports that pass address translation requests (VT-d 8.5); device scopes follow.
    pub unaligned struct Atsr (8) {
        /// [`kind::ATSR`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// See [`flag::ALL_PORTS`].
        flags: u8,
        /// Reserved.
        reserved: u8,
        /// Segment.
        segment: U16,
    }
}

wire! {
    /// The memory node that a unit is near to (VT-d 8.6).
    pub unaligned struct Rhsa (20) {
        /// [`kind::RHSA`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// Reserved.
        reserved: U32,
        /// Physical address of the unit's register set.
        register_base: U64,
        /// The node, as the SRAT table counts them.
        proximity_domain: U32,
    }
}

wire! {
    /// A device of the ACPI namespace (VT-d 8.7); its name follows, ended by NUL.
    pub unaligned struct Andd (8) {
        /// [`kind::ANDD`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// Reserved.
        reserved: [u8; 3],
        /// The number by which device scopes name it.
        device_number: u8,
    }
}

wire! {
    /// Devices in the processor with a translation cache (VT-d 8.8); device scopes follow.
    pub unaligned struct Satc (8) {
        /// [`kind::SATC`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// See [`flag::ATC_REQUIRED`].
        flags: u8,
        /// Reserved.
        reserved: u8,
        /// Segment.
        segment: U16,
    }
}

wire! {
    /// Properties of devices in the processor (VT-d 8.9); device scopes follow.
    pub unaligned struct Sidp (8) {
        /// [`kind::SIDP`].
        kind: U16,
        /// Length in bytes.
        length: U16,
        /// Reserved.
        reserved: U16,
        /// Segment.
        segment: U16,
    }
}

wire! {
    /// What a device scope opens with (VT-d 8.3.1); the path follows.
    pub unaligned struct ScopeHeader (6) {
        /// See [`scope_kind`].
        kind: u8,
        /// Length in bytes: 6, and 2 for each hop of the path.
        length: u8,
        /// Properties in a SIDP; reserved elsewhere.
        flags: u8,
        /// Reserved.
        reserved: u8,
        /// What the device is called elsewhere, for some kinds.
        enumeration_id: u8,
        /// The bus that the path starts on.
        start_bus: u8,
    }
}

wire! {
    /// One hop of a path (VT-d 8.3.1).
    pub unaligned struct PathEntry (2) {
        /// Device number.
        device: u8,
        /// Function number.
        function: u8,
    }
}
