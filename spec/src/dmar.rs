//! The DMAR table of ACPI (VT-d chapter 8): which remapping units there are and whose requests each one sees.
//!
//! Bytes from firmware are foreign. [`Dmar::parse`] checks the header; [`Dmar::structures`] walks the table and checks
//! each structure as it comes; [`Structure::scopes`] does the same for the device scopes in it. Every step takes at least
//! four bytes off, so a walk ends with the table at the latest; a walk that met an error is over. What this project does
//! not know comes out as [`Structure::Unknown`] and as open numbers, not as an error.
//!
//! [`build`] makes tables, for machines that have no firmware.

pub mod build;
mod error;
mod layout;

pub use error::{DmarError, Reason};
pub use layout::{
    Andd, Atsr, Drhd, Header, PathEntry, Rhsa, Rmrr, Satc, ScopeHeader, Sidp, StructureHeader, flag, kind,
    scope_kind,
};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Signature of the table.
pub const SIGNATURE: [u8; 4] = *b"DMAR";
/// Offset of the first structure in the table.
pub const FIRST_STRUCTURE: usize = Header::BYTES;

/// A DMAR table whose header was checked.
#[derive(Debug, Clone, Copy)]
pub struct Dmar<'a> {
    header: &'a Header,
    /// Exactly the table.
    table: &'a [u8],
}

impl<'a> Dmar<'a> {
    /// The table that `bytes` opens with. More bytes may follow.
    ///
    /// # Errors
    /// When the header is torn, is another table's, or claims a length that cannot be.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        let torn = Reason::Torn { need: Header::BYTES, have: bytes.len() };
        let (header, _) =
            Header::ref_from_prefix(bytes).map_err(|_| DmarError { offset: 0, reason: torn })?;
        if header.signature != SIGNATURE {
            return Err(DmarError { offset: 0, reason: Reason::Signature { found: header.signature } });
        }
        let length = header.length.get() as usize;
        if length < Header::BYTES {
            return Err(DmarError { offset: 4, reason: Reason::Length { length, least: Header::BYTES } });
        }
        let table = bytes
            .get(..length)
            .ok_or(DmarError { offset: 4, reason: Reason::Torn { need: length, have: bytes.len() } })?;
        Ok(Self { header, table })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &'a Header {
        self.header
    }

    /// The table's bytes, as many as its header says.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.table
    }

    /// Whether the table's bytes sum to zero, as ACPI demands. Separate from [`parse`](Self::parse): what to do with a
    /// table that is wrong only here is the caller's to decide.
    #[must_use]
    pub fn checksum_holds(&self) -> bool {
        self.table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
    }

    /// Widest address that DMA can reach on this platform, in bits (VT-d 8.1).
    #[must_use]
    pub const fn address_bits(&self) -> u32 {
        self.header.host_address_width as u32 + 1
    }

    /// Walks the structures in the order of the table.
    #[must_use]
    pub fn structures(&self) -> Structures<'a> {
        Structures { rest: &self.table[FIRST_STRUCTURE..], offset: FIRST_STRUCTURE }
    }
}

/// A structure of the table.
#[derive(Debug, Clone)]
pub enum Structure<'a> {
    /// A remapping unit (VT-d 8.3).
    Drhd {
        /// Fixed part.
        drhd: &'a Drhd,
        /// Whose requests it sees; with [`flag::INCLUDE_PCI_ALL`], beside everything that no other unit names.
        scopes: Scopes<'a>,
    },
    /// Memory that some requesters must reach at all times (VT-d 8.4).
    Rmrr {
        /// Fixed part.
        rmrr: &'a Rmrr,
        /// Those requesters.
        scopes: Scopes<'a>,
    },
    /// Root ports that pass address translation requests (VT-d 8.5).
    Atsr {
        /// Fixed part.
        atsr: &'a Atsr,
        /// Those ports.
        scopes: Scopes<'a>,
    },
    /// The memory node that a unit is near to (VT-d 8.6).
    Rhsa {
        /// The whole structure.
        rhsa: &'a Rhsa,
    },
    /// A device that is known to ACPI only (VT-d 8.7).
    Andd {
        /// Fixed part.
        andd: &'a Andd,
        /// Its name in the ACPI namespace, without the NUL.
        name: &'a str,
    },
    /// Devices in the processor with a translation cache (VT-d 8.8).
    Satc {
        /// Fixed part.
        satc: &'a Satc,
        /// Those devices.
        scopes: Scopes<'a>,
    },
    /// Properties of devices in the processor (VT-d 8.9).
    Sidp {
        /// Fixed part.
        sidp: &'a Sidp,
        /// Those devices; their properties are in the scopes' `flags`.
        scopes: Scopes<'a>,
    },
    /// A kind that this project does not know.
    Unknown {
        /// The kind.
        kind: u16,
        /// The whole structure, its header included.
        bytes: &'a [u8],
    },
}

impl<'a> Structure<'a> {
    /// The structure's device scopes; none for kinds that have none.
    #[must_use]
    pub fn scopes(&self) -> Scopes<'a> {
        match self {
            Self::Drhd { scopes, .. }
            | Self::Rmrr { scopes, .. }
            | Self::Atsr { scopes, .. }
            | Self::Satc { scopes, .. }
            | Self::Sidp { scopes, .. } => scopes.clone(),
            Self::Rhsa { .. } | Self::Andd { .. } | Self::Unknown { .. } => Scopes { rest: &[], offset: 0 },
        }
    }

    /// The structure's kind as a number; see [`kind`].
    #[must_use]
    pub const fn kind(&self) -> u16 {
        match self {
            Self::Drhd { .. } => kind::DRHD,
            Self::Rmrr { .. } => kind::RMRR,
            Self::Atsr { .. } => kind::ATSR,
            Self::Rhsa { .. } => kind::RHSA,
            Self::Andd { .. } => kind::ANDD,
            Self::Satc { .. } => kind::SATC,
            Self::Sidp { .. } => kind::SIDP,
            Self::Unknown { kind, .. } => *kind,
        }
    }
}

/// Iterator over the structures of a table.
#[derive(Debug, Clone)]
pub struct Structures<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl Structures<'_> {
    /// Where in the table the next structure starts.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> Iterator for Structures<'a> {
    type Item = Result<Structure<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let taken = take(self.rest, offset, |header: &StructureHeader| usize::from(header.length.get()));
        let result = taken.and_then(|(header, bytes, rest)| {
            self.rest = rest;
            self.offset += bytes.len();
            structure(header.kind.get(), bytes, offset)
        });
        if result.is_err() {
            self.rest = &[];
        }
        Some(result)
    }
}

/// A device scope: a requester, or a bridge with all that is below it (VT-d 8.3.1).
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Where in the table the scope starts.
    pub offset: usize,
    /// Fixed part.
    pub header: &'a ScopeHeader,
    path: &'a [PathEntry],
}

impl<'a> Scope<'a> {
    /// The way from the start bus to the device: bridges first, the device last. Never empty.
    #[must_use]
    pub const fn path(&self) -> &'a [PathEntry] {
        self.path
    }
}

/// Iterator over the device scopes of a structure.
#[derive(Debug, Clone)]
pub struct Scopes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Scopes<'a> {
    type Item = Result<Scope<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let taken = take(self.rest, offset, |header: &ScopeHeader| usize::from(header.length));
        let result = taken.and_then(|(header, bytes, rest)| {
            self.rest = rest;
            self.offset += bytes.len();
            let path = <[PathEntry]>::ref_from_bytes(&bytes[ScopeHeader::BYTES..]).unwrap_or_default();
            if path.is_empty() {
                return Err(DmarError { offset, reason: Reason::Path { length: bytes.len() } });
            }
            Ok(Scope { offset, header, path })
        });
        if result.is_err() {
            self.rest = &[];
        }
        Some(result)
    }
}

/// What a taken item consists of: its header, all its bytes, and the bytes behind it.
type Taken<'a, T> = (&'a T, &'a [u8], &'a [u8]);

/// Takes an item off the front of `bytes`, which start at `offset` of the table; its header says how long it is.
fn take<T>(bytes: &[u8], offset: usize, length: fn(&T) -> usize) -> Result<Taken<'_, T>, DmarError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let fail = |reason| Err(DmarError { offset, reason });
    let least = size_of::<T>();
    let Ok((header, _)) = T::ref_from_prefix(bytes) else {
        return fail(Reason::Torn { need: least, have: bytes.len() });
    };
    let length = length(header);
    if length < least {
        return fail(Reason::Length { length, least });
    }
    match bytes.split_at_checked(length) {
        Some((item, rest)) => Ok((header, item, rest)),
        None => fail(Reason::Torn { need: length, have: bytes.len() }),
    }
}

/// The structure in `bytes`, which lies at `offset` of the table and is as long as its header says.
fn structure(kind: u16, bytes: &[u8], offset: usize) -> Result<Structure<'_>, DmarError> {
    Ok(match kind {
        kind::DRHD => {
            let (drhd, scopes) = split(bytes, offset)?;
            Structure::Drhd { drhd, scopes }
        }
        kind::RMRR => {
            let (rmrr, scopes) = split(bytes, offset)?;
            Structure::Rmrr { rmrr, scopes }
        }
        kind::ATSR => {
            let (atsr, scopes) = split(bytes, offset)?;
            Structure::Atsr { atsr, scopes }
        }
        kind::RHSA => Structure::Rhsa { rhsa: split(bytes, offset)?.0 },
        kind::ANDD => {
            let (andd, name) = split::<Andd>(bytes, offset)?;
            let text = name.rest.split(|&byte| byte == 0).next().filter(|text| text.len() < name.rest.len());
            let name = text
                .and_then(|text| core::str::from_utf8(text).ok())
                .ok_or(DmarError { offset: name.offset, reason: Reason::Name })?;
            Structure::Andd { andd, name }
        }
        kind::SATC => {
            let (satc, scopes) = split(bytes, offset)?;
            Structure::Satc { satc, scopes }
        }
        kind::SIDP => {
            let (sidp, scopes) = split(bytes, offset)?;
            Structure::Sidp { sidp, scopes }
        }
        kind => Structure::Unknown { kind, bytes },
    })
}

/// A structure's fixed part and the scopes behind it.
fn split<T>(bytes: &[u8], offset: usize) -> Result<(&T, Scopes<'_>), DmarError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let least = size_of::<T>();
    let (fixed, rest) = T::ref_from_prefix(bytes)
        .map_err(|_| DmarError { offset, reason: Reason::Length { length: bytes.len(), least } })?;
    Ok((fixed, Scopes { rest, offset: offset + least }))
}
