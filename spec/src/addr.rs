//! Addresses and runs of frames. A physical address and an I/O virtual address are different types.

use core::fmt;

/// Bytes in a frame: the unit of preservation and of every translation table.
pub const PAGE_SIZE: u64 = 4096;

/// A host physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address with this value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// The value.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The frame that the address lies in.
    #[must_use]
    pub const fn frame(self) -> Frame {
        Frame(self.0 / PAGE_SIZE)
    }
    /// The address `bytes` further on, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(v) => Some(Self(v)),
            None => None,
        }
    }
    /// The address `bytes` further on. Wraps at the end of the address space; use on addresses already checked.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
    /// Whether the address is a multiple of `align` (a power of two).
    #[must_use]
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// An I/O virtual address: the input of a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Iova(u64);

impl Iova {
    /// The address with this value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// The value.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The address `bytes` further on. Wraps at the end of the address space.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of a 4 KiB physical frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Frame(u64);

impl Frame {
    /// The frame with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
    /// The frame's number: its address divided by 4096.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
    /// The address of the frame's first byte.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        PhysAddr(self.0.wrapping_mul(PAGE_SIZE))
    }
}

/// A run of adjacent frames. Never empty, never past the end of the address space.
///
/// # Invariants
/// `count > 0` and `(first + count) * 4096 <= 2^64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    first: Frame,
    count: u64,
}

impl Extent {
    /// `count` frames from `first` on; `None` when `count` is zero or the run leaves the address space.
    #[must_use]
    pub const fn new(first: Frame, count: u64) -> Option<Self> {
        if count == 0 {
            return None;
        }
        match first.0.checked_add(count) {
            // INVARIANT: checked here.
            Some(end) if end <= u64::MAX / PAGE_SIZE + 1 => Some(Self { first, count }),
            _ => None,
        }
    }
    /// The run that covers `bytes` bytes from `start` on; `None` when either is no multiple of 4096 or it is empty.
    #[must_use]
    pub const fn from_bytes(start: PhysAddr, bytes: u64) -> Option<Self> {
        if !start.is_aligned(PAGE_SIZE) || bytes % PAGE_SIZE != 0 {
            return None;
        }
        Self::new(start.frame(), bytes / PAGE_SIZE)
    }
    /// The run that holds just `frame`. The frame must lie within the 64-bit address space.
    #[must_use]
    pub const fn one(frame: Frame) -> Self {
        Self { first: frame, count: 1 }
    }
    /// First frame.
    #[must_use]
    pub const fn first(self) -> Frame {
        self.first
    }
    /// Number of frames.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.count
    }
    /// The frame after the last one.
    #[must_use]
    pub const fn end(self) -> Frame {
        Frame(self.first.0 + self.count)
    }
    /// Address of the first byte.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        self.first.start()
    }
    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count * PAGE_SIZE
    }
    /// Whether `frame` is one of the run's.
    #[must_use]
    pub const fn contains(self, frame: Frame) -> bool {
        self.first.0 <= frame.0 && frame.0 - self.first.0 < self.count
    }
    /// Whether all of `other` lies within the run.
    #[must_use]
    pub const fn covers(self, other: Extent) -> bool {
        self.contains(other.first) && other.end().0 <= self.end().0
    }
    /// Whether the two share a frame.
    #[must_use]
    pub const fn overlaps(self, other: Extent) -> bool {
        self.first.0 < other.end().0 && other.first.0 < self.end().0
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start().get(), self.end().start().get())
    }
}
