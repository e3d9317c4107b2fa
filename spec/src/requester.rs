//! Who can issue DMA, and the units that watch them.

use core::fmt;

/// A PCI segment group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Segment(pub u16);

/// A source-id: bus, device and function as they travel with a request (VT-d 3.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceId(u16);

impl SourceId {
    /// The source-id with this raw value: bus in bits 15:8, device in 7:3, function in 2:0.
    #[must_use]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
    /// The source-id of `bus:device.function`; device is taken modulo 32, function modulo 8.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 0x1f) as u16) << 3 | (function & 7) as u16)
    }
    /// The raw value.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
    /// Bus number: the index into the root table.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }
    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
    /// Device and function: the index into a legacy context table.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{:x}", self.bus(), self.device(), self.function())
    }
}

/// A source-id on a segment: anything that can issue DMA. It need not be on any list of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Requester {
    /// The segment.
    pub segment: Segment,
    /// The source-id on it.
    pub source: SourceId,
}

impl Requester {
    /// The requester `source` on `segment`.
    #[must_use]
    pub const fn new(segment: Segment, source: SourceId) -> Self {
        Self { segment, source }
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment.0, self.source)
    }
}

/// A domain id on one unit: the tag of its cached translations (VT-d 6.2.1). Zero is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DomainId(pub u16);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One remapping hardware unit: known by its segment and the physical base of its registers (VT-d 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnitId {
    /// The segment whose requesters the unit translates.
    pub segment: Segment,
    /// Physical address of the register set.
    pub register_base: u64,
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}@{:#x}", self.segment.0, self.register_base)
    }
}
