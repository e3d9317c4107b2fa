//! Makes DMAR tables in a buffer of the caller's.
//!
//! One call per structure, in the order that the table is to have; [`Builder::finish`] fills in length and checksum.
//! Lengths of structures and scopes are counted here, so a built table always parses.

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Andd, Atsr, Drhd, Header, PathEntry, Rhsa, Rmrr, SIGNATURE, Satc, ScopeHeader, Sidp, StructureHeader,
    kind,
};
use crate::{Segment, UnitId};

/// Revision of the tables made here.
pub const REVISION: u8 = 1;

/// A device scope to be written.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// See [`super::scope_kind`].
    pub kind: u8,
    /// Properties in a SIDP; 0 elsewhere.
    pub flags: u8,
    /// What the device is called elsewhere, for some kinds.
    pub enumeration_id: u8,
    /// The bus that the path starts on.
    pub start_bus: u8,
    /// Device and function of each hop, 1 to 124 of them.
    pub path: &'a [(u8, u8)],
}

/// Why a table could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildError {
    /// The buffer is full.
    Full {
        /// Its length in bytes.
        buffer: usize,
    },
    /// A structure or a scope grew longer than its length field can say, or a path is empty.
    Length {
        /// Where in the table it starts.
        offset: usize,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { buffer } => write!(f, "DMAR table does not fit a buffer of {buffer} bytes"),
            Self::Length { offset } => {
                write!(f, "item at {offset:#x} of the DMAR table has no length that can be said")
            }
        }
    }
}

impl core::error::Error for BuildError {}

/// A table under construction. After an error, drop it.
#[derive(Debug)]
pub struct Builder<'b> {
    buffer: &'b mut [u8],
    used: usize,
}

impl<'b> Builder<'b> {
    /// A table without structures. `address_bits` (1 to 256) is the width of an address that DMA can reach; `flags` are
    /// those of [`super::flag`].
    ///
    /// # Errors
    /// [`BuildError::Full`].
    pub fn new(buffer: &'b mut [u8], address_bits: u16, flags: u8) -> Result<Self, BuildError> {
        let mut builder = Self { buffer, used: 0 };
        builder.append(&Header {
            signature: SIGNATURE,
            length: U32::ZERO,
            revision: REVISION,
            checksum: 0,
            oem_id: *b"HOLDOV",
            oem_table_id: *b"HOLDOVER",
            oem_revision: U32::new(1),
            creator_id: *b"HOLD",
            creator_revision: U32::new(1),
            host_address_width: address_bits.saturating_sub(1).min(255) as u8,
            flags,
            reserved: [0; 10],
        })?;
        Ok(builder)
    }

    /// Adds a remapping unit with a register set of `2^size` pages.
    ///
    /// # Errors
    /// See [`BuildError`]; so for every other structure.
    pub fn drhd(
        &mut self,
        unit: UnitId,
        flags: u8,
        size: u8,
        scopes: &[Scope<'_>],
    ) -> Result<(), BuildError> {
        let fixed = Drhd {
            kind: U16::new(kind::DRHD),
            length: U16::ZERO,
            flags,
            size,
            segment: U16::new(unit.segment.0),
            register_base: U64::new(unit.register_base),
        };
        self.structure(&fixed, scopes, &[])
    }

    /// Adds reserved memory from `base` to `limit`, both inclusive.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn rmrr(
        &mut self,
        segment: Segment,
        base: u64,
        limit: u64,
        scopes: &[Scope<'_>],
    ) -> Result<(), BuildError> {
        let fixed = Rmrr {
            kind: U16::new(kind::RMRR),
            length: U16::ZERO,
            reserved: U16::ZERO,
            segment: U16::new(segment.0),
            base: U64::new(base),
            limit: U64::new(limit),
        };
        self.structure(&fixed, scopes, &[])
    }

    /// Adds root ports with ATS.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn atsr(&mut self, segment: Segment, flags: u8, scopes: &[Scope<'_>]) -> Result<(), BuildError> {
        let (kind, segment) = (U16::new(kind::ATSR), U16::new(segment.0));
        self.structure(&Atsr { kind, length: U16::ZERO, flags, reserved: 0, segment }, scopes, &[])
    }

    /// Adds the memory node of a unit.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn rhsa(&mut self, register_base: u64, proximity_domain: u32) -> Result<(), BuildError> {
        let fixed = Rhsa {
            kind: U16::new(kind::RHSA),
            length: U16::ZERO,
            reserved: U32::ZERO,
            register_base: U64::new(register_base),
            proximity_domain: U32::new(proximity_domain),
        };
        self.structure(&fixed, &[], &[])
    }

    /// Adds a device of the ACPI namespace. `name` is without its NUL.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn andd(&mut self, device_number: u8, name: &str) -> Result<(), BuildError> {
        let kind = U16::new(kind::ANDD);
        let fixed = Andd { kind, length: U16::ZERO, reserved: [0; 3], device_number };
        self.structure(&fixed, &[], &[name.as_bytes(), &[0]])
    }

    /// Adds devices in the processor with a translation cache.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn satc(&mut self, segment: Segment, flags: u8, scopes: &[Scope<'_>]) -> Result<(), BuildError> {
        let (kind, segment) = (U16::new(kind::SATC), U16::new(segment.0));
        self.structure(&Satc { kind, length: U16::ZERO, flags, reserved: 0, segment }, scopes, &[])
    }

    /// Adds properties of devices in the processor.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn sidp(&mut self, segment: Segment, scopes: &[Scope<'_>]) -> Result<(), BuildError> {
        let (kind, segment) = (U16::new(kind::SIDP), U16::new(segment.0));
        self.structure(&Sidp { kind, length: U16::ZERO, reserved: U16::ZERO, segment }, scopes, &[])
    }

    /// Adds a structure of any kind with this content behind its header.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn raw(&mut self, kind: u16, content: &[u8]) -> Result<(), BuildError> {
        let header = StructureHeader { kind: U16::new(kind), length: U16::ZERO };
        self.structure(&header, &[], &[content])
    }

    /// Completes the table and returns its bytes: the front of the buffer.
    ///
    /// # Errors
    /// [`BuildError::Length`] when the table is too long for its length field.
    pub fn finish(self) -> Result<&'b [u8], BuildError> {
        let Self { buffer, used } = self;
        let table = &mut buffer[..used];
        let length = u32::try_from(used).map_err(|_| BuildError::Length { offset: 0 })?;
        if let Ok((header, _)) = Header::mut_from_prefix(table) {
            header.length = U32::new(length);
        }
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if let Ok((header, _)) = Header::mut_from_prefix(table) {
            header.checksum = sum.wrapping_neg();
        }
        Ok(table)
    }

    /// Appends a structure and then fills in its length.
    fn structure<T>(&mut self, fixed: &T, scopes: &[Scope<'_>], content: &[&[u8]]) -> Result<(), BuildError>
    where
        T: IntoBytes + zerocopy::Immutable,
    {
        let offset = self.used;
        self.append(fixed)?;
        for scope in scopes {
            self.scope(scope)?;
        }
        for bytes in content {
            self.append(*bytes)?;
        }
        let length = u16::try_from(self.used - offset).map_err(|_| BuildError::Length { offset })?;
        if let Ok((header, _)) = StructureHeader::mut_from_prefix(&mut self.buffer[offset..]) {
            header.length = U16::new(length);
        }
        Ok(())
    }

    fn scope(&mut self, scope: &Scope<'_>) -> Result<(), BuildError> {
        let bytes = ScopeHeader::BYTES + PathEntry::BYTES * scope.path.len();
        let length = match u8::try_from(bytes) {
            Ok(length) if !scope.path.is_empty() => length,
            _ => return Err(BuildError::Length { offset: self.used }),
        };
        self.append(&ScopeHeader {
            kind: scope.kind,
            length,
            flags: scope.flags,
            reserved: 0,
            enumeration_id: scope.enumeration_id,
            start_bus: scope.start_bus,
        })?;
        for &(device, function) in scope.path {
            self.append(&PathEntry { device, function })?;
        }
        Ok(())
    }

    fn append<T: IntoBytes + zerocopy::Immutable + ?Sized>(&mut self, item: &T) -> Result<(), BuildError> {
        let bytes = item.as_bytes();
        let full = BuildError::Full { buffer: self.buffer.len() };
        let place = self.buffer[self.used..].get_mut(..bytes.len()).ok_or(full)?;
        place.copy_from_slice(bytes);
        self.used += bytes.len();
        Ok(())
    }
}
