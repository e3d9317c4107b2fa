//! From a file's name to a memory image: which form it has, and unpacking.

use super::store::Store;
use super::{Memory, Run, elf, pages};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes that a packed image may have when unpacked.
pub const UNPACKED_LIMIT: u64 = 8 << 30;

/// First bytes of a zstd frame.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// First bytes of dumps that makedumpfile packed.
const PACKED_DUMPS: [&[u8]; 3] = [b"KDUMP   ", b"DISKDUMP", b"makedump"];

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An ELF core.
    Elf,
    /// A page file.
    Pages,
    /// Raw memory.
    Raw,
    /// A machine that is there.
    Live,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf => "ELF core",
            Self::Pages => "page file",
            Self::Raw => "raw memory",
            Self::Live => "live machine",
        })
    }
}

/// How to take a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// It is raw memory that starts at this physical address.
    pub base: Option<u64>,
    /// Bytes that it may have when unpacked, if not [`UNPACKED_LIMIT`].
    pub unpacked: Option<u64>,
}

/// Why a file is no memory image.
#[derive(Debug)]
pub enum OpenError {
    /// It cannot be read.
    Io(io::Error),
    /// Unpacking failed.
    Packed(io::Error),
    /// It unpacks to more than it may.
    TooLarge,
    /// Its form cannot be told from its first bytes.
    Unknown,
    /// A form that this release does not read.
    PackedDump,
    /// A damaged page file.
    PageFile {
        /// What is wrong with it.
        what: String,
    },
    /// A damaged ELF core.
    Elf {
        /// What is wrong with it.
        what: String,
    },
    /// A QEMU monitor that cannot be reached, or does not answer as one.
    Qmp(io::Error),
    /// Raw memory that would leave the address space.
    Base {
        /// The base given.
        base: u64,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Packed(error) => write!(f, "cannot be unpacked: {error}"),
            Self::TooLarge => {
                write!(f, "unpacks to more than {} GiB: unpack it with zstd -d first", UNPACKED_LIMIT >> 30)
            }
            Self::Unknown => f.write_str(
                "neither a page file nor an ELF core; for raw memory say where it starts, with --base",
            ),
            Self::PackedDump => {
                f.write_str("a dump in makedumpfile's own format: make it an ELF core with makedumpfile -E")
            }
            Self::PageFile { what } => write!(f, "damaged page file: {what}"),
            Self::Elf { what } => write!(f, "damaged ELF core: {what}"),
            Self::Qmp(error) => write!(f, "monitor: {error}"),
            Self::Base { base } => write!(f, "memory from {base:#x} on leaves the address space"),
        }
    }
}
impl std::error::Error for OpenError {}

/// Opens a memory image. Files are read as needed, packed ones are unpacked into memory.
///
/// # Errors
/// See [`OpenError`].
pub fn open(path: &Path, options: Options) -> Result<Memory, OpenError> {
    let mut file = File::open(path).map_err(OpenError::Io)?;
    let mut first = Vec::new();
    (&file).take(ZSTD.len() as u64).read_to_end(&mut first).map_err(OpenError::Io)?;
    file.seek(SeekFrom::Start(0)).map_err(OpenError::Io)?;
    let store = if first == ZSTD {
        Store::Bytes(unpack(file, options)?)
    } else {
        Store::file(file).map_err(OpenError::Io)?
    };
    from_store(store, options)
}

/// The image in `bytes`, as [`open`] would take a file with that content.
///
/// # Errors
/// See [`OpenError`].
pub fn from_bytes(bytes: Vec<u8>, options: Options) -> Result<Memory, OpenError> {
    let bytes = if bytes.starts_with(&ZSTD) { unpack(bytes.as_slice(), options)? } else { bytes };
    from_store(Store::Bytes(bytes), options)
}

fn unpack(packed: impl Read, options: Options) -> Result<Vec<u8>, OpenError> {
    let limit = options.unpacked.unwrap_or(UNPACKED_LIMIT);
    let packed = io::BufReader::new(packed);
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed)
        .map_err(|error| OpenError::Packed(io::Error::other(error)))?;
    let mut bytes = Vec::new();
    decoder.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(OpenError::Packed)?;
    if bytes.len() as u64 > limit { Err(OpenError::TooLarge) } else { Ok(bytes) }
}

fn from_store(store: Store, options: Options) -> Result<Memory, OpenError> {
    if let Some(base) = options.base {
        let bytes = store.bytes();
        if base.checked_add(bytes).is_none() {
            return Err(OpenError::Base { base });
        }
        return Ok(Memory::new(store, vec![Run { start: base, bytes, offset: 0 }], Form::Raw, Vec::new()));
    }
    let mut first = [0; 8];
    let known = store.bytes() >= 8 && store.read_at(0, &mut first);
    if known && first == pages::MAGIC {
        let (runs, notes) = pages::runs(&store)?;
        return Ok(Memory::new(store, runs, Form::Pages, notes));
    }
    if known && first.starts_with(b"\x7fELF") {
        let (runs, notes) = match &store {
            Store::Bytes(bytes) => elf::runs(bytes.as_slice())?,
            Store::File(file) => file.with_headers(|data| elf::runs(data))?,
            Store::Live(_) => return Err(OpenError::Unknown),
        };
        return Ok(Memory::new(store, runs, Form::Elf, notes));
    }
    Err(if PACKED_DUMPS.contains(&first.as_slice()) { OpenError::PackedDump } else { OpenError::Unknown })
}
