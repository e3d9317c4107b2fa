//! From the RSDP to a table: the way to the DMAR, which says where the remapping units are.
//!
//! Everything on the way is foreign: addresses, lengths and counts come from firmware. [`dmar`] and [`tables`] follow
//! RSDP, then XSDT (or RSDT where there is none), and copy a table out of memory only after its length is within
//! bounds; it is handed on only when its checksum holds. Nothing is followed deeper than that, so a cycle leads nowhere.
//!
//! ACPI 6.4, 5.2.5 (RSDP), 5.2.6 (header), 5.2.7 and 5.2.8 (RSDT, XSDT).

use crate::platform::{NoMemory, Platform};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use spec::PhysAddr;

/// Longest table that is copied, in bytes. A DMAR of a large machine has a few thousand.
pub const MAX_TABLE_BYTES: u32 = 1 << 20;
/// Most entries of an RSDT or XSDT that are looked at.
pub const MAX_ENTRIES: usize = 1024;

/// Length of the header that every table begins with.
const HEADER_BYTES: usize = 36;
/// Length of the first RSDP, which the first checksum covers.
const RSDP_V1_BYTES: usize = 20;
/// Length of the RSDP from revision 2 on.
const RSDP_V2_BYTES: usize = 36;

/// The four letters that name a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// The DMA remapping table (VT-d 8.1).
    pub const DMAR: Self = Self(*b"DMAR");
    /// Root table with 32-bit pointers.
    pub const RSDT: Self = Self(*b"RSDT");
    /// Root table with 64-bit pointers.
    pub const XSDT: Self = Self(*b"XSDT");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{}", byte.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why a table could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcpiError {
    /// There is no memory behind a pointer.
    NoMemory {
        /// First byte that was asked for.
        at: PhysAddr,
    },
    /// No RSDP at the address that the boot loader gave.
    NoRsdp {
        /// The address.
        at: PhysAddr,
    },
    /// The RSDP's bytes do not add up to zero.
    RsdpChecksum {
        /// Its address.
        at: PhysAddr,
        /// What they add up to, modulo 256.
        sum: u8,
    },
    /// Neither an XSDT nor an RSDT is pointed to.
    NoRootTable {
        /// Address of the RSDP.
        rsdp: PhysAddr,
    },
    /// Another table than expected.
    Unexpected {
        /// Its address.
        at: PhysAddr,
        /// What was expected.
        wanted: Signature,
        /// What was found.
        found: Signature,
    },
    /// A length that is shorter than the header, or longer than [`MAX_TABLE_BYTES`].
    Length {
        /// Address of the table.
        at: PhysAddr,
        /// Its signature.
        signature: Signature,
        /// The length it states, in bytes.
        bytes: u32,
    },
    /// A table's bytes do not add up to zero.
    Checksum {
        /// Address of the table.
        at: PhysAddr,
        /// Its signature.
        signature: Signature,
        /// What they add up to, modulo 256.
        sum: u8,
    },
    /// More entries than [`MAX_ENTRIES`].
    TooManyEntries {
        /// Address of the root table.
        at: PhysAddr,
        /// How many it has.
        entries: usize,
    },
    /// No table of this signature.
    Absent {
        /// What was looked for.
        signature: Signature,
    },
}

impl From<NoMemory> for AcpiError {
    fn from(error: NoMemory) -> Self {
        Self::NoMemory { at: error.at }
    }
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoMemory { at } => write!(f, "ACPI points to {at}, where there is no memory"),
            Self::NoRsdp { at } => write!(f, "no RSDP at {at}: the boot loader's pointer is wrong"),
            Self::RsdpChecksum { at, sum } => {
                write!(f, "the RSDP at {at} is damaged: its bytes add up to {sum:#04x}, not 0")
            }
            Self::NoRootTable { rsdp } => write!(f, "the RSDP at {rsdp} points to no RSDT and no XSDT"),
            Self::Unexpected { at, wanted, found } => {
                write!(f, "the table at {at} is a {found} where a {wanted} should be")
            }
            Self::Length { at, signature, bytes } => write!(
                f,
                "the {signature} at {at} states a length of {bytes} bytes; {HEADER_BYTES} to {MAX_TABLE_BYTES} are possible"
            ),
            Self::Checksum { at, signature, sum } => {
                write!(f, "the {signature} at {at} is damaged: its bytes add up to {sum:#04x}, not 0")
            }
            Self::TooManyEntries { at, entries } => {
                write!(f, "the root table at {at} has {entries} entries, more than {MAX_ENTRIES}")
            }
            Self::Absent { signature } => match signature {
                Signature::DMAR => {
                    write!(f, "no DMAR table: the machine has no VT-d, or firmware switched it off")
                }
                _ => write!(f, "no {signature} table"),
            },
        }
    }
}

impl core::error::Error for AcpiError {}

/// One table, copied out of memory; its length and checksum hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Where it was found.
    pub at: PhysAddr,
    /// All of it, header included.
    pub bytes: Vec<u8>,
}

/// The tables of one signature, in the order of the root table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Each table, or why it could not be read. A pointer that occurs twice counts once.
    pub found: Vec<Result<Table, AcpiError>>,
    /// Pointers of the root table behind which no header could be read.
    pub unreadable: Vec<PhysAddr>,
}

/// The DMAR that counts, and those that do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dmar {
    /// The first DMAR.
    pub table: Table,
    /// Addresses of further DMARs, which are not followed: report them.
    pub ignored: Vec<PhysAddr>,
}

/// Finds the DMAR from the RSDP of `platform`.
///
/// # Errors
/// [`AcpiError`]; a damaged first DMAR is an error even when another follows, since two contradict each other.
pub fn dmar<P: Platform + ?Sized>(platform: &P) -> Result<Dmar, AcpiError> {
    let mut found = tables(platform, platform.rsdp(), Signature::DMAR)?.found.into_iter();
    let table = found.next().ok_or(AcpiError::Absent { signature: Signature::DMAR })??;
    let ignored = found
        .filter_map(|other| match other {
            Ok(table) => Some(table.at),
            Err(
                AcpiError::Length { at, .. } | AcpiError::Checksum { at, .. } | AcpiError::NoMemory { at },
            ) => Some(at),
            Err(_) => None,
        })
        .collect();
    Ok(Dmar { table, ignored })
}

/// Finds all tables of one signature from the RSDP at `rsdp`.
///
/// # Errors
/// [`AcpiError`] when the RSDP or the root table cannot be used. A damaged table further down is an error of its own in
/// [`Tables::found`].
pub fn tables<P: Platform + ?Sized>(
    platform: &P,
    rsdp: PhysAddr,
    signature: Signature,
) -> Result<Tables, AcpiError> {
    let mut tables = Tables { found: Vec::new(), unreadable: Vec::new() };
    let mut seen = Vec::new();
    for at in root_entries(platform, rsdp)? {
        if seen.contains(&at) {
            continue;
        }
        seen.push(at);
        match header(platform, at) {
            Err(_) => tables.unreadable.push(at),
            Ok(header) if header.signature == signature => tables.found.push(copy(platform, at, header)),
            Ok(_) => {}
        }
    }
    Ok(tables)
}

/// Where the root table is, and how wide its pointers are.
enum Root {
    /// RSDT: 4-byte pointers.
    Narrow(PhysAddr),
    /// XSDT: 8-byte pointers.
    Wide(PhysAddr),
}

/// Reads and checks the RSDP (ACPI 5.2.5.3).
fn root<P: Platform + ?Sized>(platform: &P, at: PhysAddr) -> Result<Root, AcpiError> {
    let mut first = [0; RSDP_V1_BYTES];
    platform.read(at, &mut first)?;
    if first[..8] != *b"RSD PTR " {
        return Err(AcpiError::NoRsdp { at });
    }
    check_rsdp(at, &first)?;
    let revision = first[15];
    if revision >= 2 {
        let mut whole = [0; RSDP_V2_BYTES];
        platform.read(at, &mut whole)?;
        check_rsdp(at, &whole)?;
        let xsdt = le64(&whole[24..32]);
        if xsdt != 0 {
            return Ok(Root::Wide(PhysAddr::new(xsdt)));
        }
    }
    match le32(&first[16..20]) {
        0 => Err(AcpiError::NoRootTable { rsdp: at }),
        rsdt => Ok(Root::Narrow(PhysAddr::new(rsdt.into()))),
    }
}

fn check_rsdp(at: PhysAddr, bytes: &[u8]) -> Result<(), AcpiError> {
    match sum(bytes) {
        0 => Ok(()),
        sum => Err(AcpiError::RsdpChecksum { at, sum }),
    }
}

/// The pointers of the root table, zeros left out.
fn root_entries<P: Platform + ?Sized>(platform: &P, rsdp: PhysAddr) -> Result<Vec<PhysAddr>, AcpiError> {
    let (at, wanted, width) = match root(platform, rsdp)? {
        Root::Narrow(at) => (at, Signature::RSDT, 4),
        Root::Wide(at) => (at, Signature::XSDT, 8),
    };
    let header = header(platform, at)?;
    if header.signature != wanted {
        return Err(AcpiError::Unexpected { at, wanted, found: header.signature });
    }
    let table = copy(platform, at, header)?;
    let body = &table.bytes[HEADER_BYTES..];
    let entries = body.len() / width;
    if entries > MAX_ENTRIES {
        return Err(AcpiError::TooManyEntries { at, entries });
    }
    let pointer = |entry: &[u8]| if width == 4 { le32(entry).into() } else { le64(entry) };
    Ok(body.chunks_exact(width).map(pointer).filter(|&at| at != 0).map(PhysAddr::new).collect())
}

/// The part of a table's header that is needed to copy it.
#[derive(Clone, Copy)]
struct Header {
    signature: Signature,
    bytes: u32,
}

fn header<P: Platform + ?Sized>(platform: &P, at: PhysAddr) -> Result<Header, AcpiError> {
    let mut raw = [0; HEADER_BYTES];
    platform.read(at, &mut raw)?;
    Ok(Header { signature: Signature([raw[0], raw[1], raw[2], raw[3]]), bytes: le32(&raw[4..8]) })
}

fn copy<P: Platform + ?Sized>(platform: &P, at: PhysAddr, header: Header) -> Result<Table, AcpiError> {
    let Header { signature, bytes } = header;
    if (bytes as usize) < HEADER_BYTES || bytes > MAX_TABLE_BYTES {
        return Err(AcpiError::Length { at, signature, bytes });
    }
    let mut copied = vec![0; bytes as usize];
    platform.read(at, &mut copied).map_err(|_| AcpiError::NoMemory { at })?;
    match sum(&copied) {
        0 => Ok(Table { at, bytes: copied }),
        sum => Err(AcpiError::Checksum { at, signature, sum }),
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Little-endian value of exactly four bytes; the callers cut them to size.
fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Little-endian value of exactly eight bytes.
fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
