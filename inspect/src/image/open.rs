//! From a file's name to a memory image: which form it has, told by its first bytes.

use super::flat::{self, Flat};
use super::store::Store;
use super::unpack::{is_packed, unpack};
use super::{Memory, Run, elf, kdump, pages};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes that a packed image may have when unpacked.
pub const UNPACKED_LIMIT: u64 = 8 << 30;
/// Bytes that a form is told from.
const FIRST: usize = 16;

/// Forms that are known and not read: what they begin with, what they are, and what to do about it.
const FOREIGN: [(&[u8], &str, &str); 11] = [
    (b"\x1f\x8b", "gzip", UNPACK),
    (b"\xfd7zXZ\0", "xz", UNPACK),
    (b"BZh", "bzip2", UNPACK),
    (b"\x04\x22\x4d\x18", "lz4", UNPACK),
    (b"PAGEDU64", "Windows's crash dump", DUMP),
    (b"PAGEDUMP", "Windows's crash dump", DUMP),
    (b"DISKDUMP", "diskdump", DUMP),
    (b"EMiL", "LiME", "write it with format=raw or padded, and say where it starts with --base"),
    (b"QEVM", "QEMU's saved state", "load it (-incoming) and look with --qmp, or dump-guest-memory there"),
    (b"QFI\xfb", "a disk of QEMU's (qcow2)", DUMP),
    (b"LUKS\xba\xbe", "an encrypted disk", DUMP),
];
const UNPACK: &str = "unpack it first";
const DUMP: &str = "an ELF core is needed: kdump's vmcore, or QEMU's dump-guest-memory without -w";

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An ELF core.
    Elf,
    /// A compressed dump of makedumpfile's or QEMU's.
    Compressed,
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
            Self::Compressed => "compressed dump",
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
    /// Raw memory leaves these addresses out: where they start, and where it goes on.
    pub hole: Option<(u64, u64)>,
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
    TooLarge {
        /// Bytes that it may have.
        limit: u64,
    },
    /// Its form cannot be told from its first bytes.
    Unknown,
    /// It has no bytes.
    Empty,
    /// A form that is known and not read.
    Foreign {
        /// What is said of it.
        what: &'static str,
        /// The form.
        name: &'static str,
        /// What to do about it.
        instead: &'static str,
    },
    /// A damaged compressed or flattened dump.
    Dump {
        /// What is wrong with it.
        what: String,
    },
    /// A damaged page file.
    PageFile {
        /// What is wrong with it.
        what: String,
    },
    /// A damaged ELF core, or an ELF file that is none.
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
    /// Raw memory was named, but this is none.
    NotRaw {
        /// What it is.
        form: &'static str,
    },
    /// A hole that raw memory does not reach, or that is none.
    Hole {
        /// Where it starts.
        start: u64,
        /// Where it ends.
        end: u64,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Packed(error) => write!(f, "cannot be unpacked: {error}"),
            Self::TooLarge { limit } => {
                write!(f, "unpacks to more than {} MiB: unpack it with zstd -d first", limit >> 20)
            }
            Self::Unknown => f.write_str(
                "neither a page file nor an ELF core nor a compressed dump; for raw memory say where it starts, with \
                 --base",
            ),
            Self::Empty => f.write_str("the file is empty"),
            Self::Foreign { what, name, instead } => write!(f, "{what} {name}: {instead}"),
            Self::Dump { what } => write!(f, "damaged dump: {what}"),
            Self::PageFile { what } => write!(f, "damaged page file: {what}"),
            Self::Elf { what } => f.write_str(what),
            Self::Qmp(error) => write!(f, "monitor: {error}"),
            Self::Base { base } => write!(f, "memory from {base:#x} on leaves the address space"),
            Self::NotRaw { form } => {
                write!(f, "this is {form}, which says by itself where its memory lies: leave --base out")
            }
            Self::Hole { start, end } => {
                write!(f, "no hole from {start:#x} to {end:#x} in this memory: --hole START-END lies within it")
            }
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
    (&file).take(FIRST as u64).read_to_end(&mut first).map_err(OpenError::Io)?;
    file.seek(SeekFrom::Start(0)).map_err(OpenError::Io)?;
    let store = if is_packed(&first) {
        Store::Unpacked(unpack(file, options.unpacked.unwrap_or(UNPACKED_LIMIT))?)
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
    let store = if is_packed(&bytes) {
        Store::Unpacked(unpack(bytes.as_slice(), options.unpacked.unwrap_or(UNPACKED_LIMIT))?)
    } else {
        Store::Bytes(bytes)
    };
    from_store(store, options)
}

/// The first bytes of a store, zeroes behind its end.
fn first_of(store: &Store) -> [u8; FIRST] {
    let mut first = [0; FIRST];
    let here = usize::try_from(store.bytes()).map_or(FIRST, |bytes| bytes.min(FIRST));
    // What cannot be read is no form that is known.
    let _ = store.read_at(0, &mut first[..here]);
    first
}

fn from_store(mut store: Store, options: Options) -> Result<Memory, OpenError> {
    if store.bytes() == 0 {
        return Err(OpenError::Empty);
    }
    let mut first = first_of(&store);
    if let Some(base) = options.base {
        return raw(store, &first, base, options.hole);
    }
    let mut notes = Vec::new();
    if first == flat::MAGIC {
        let (flat, odd) = Flat::new(store)?;
        (store, notes) = (Store::Flat(Box::new(flat)), odd);
        first = first_of(&store);
    }
    if first.starts_with(&pages::MAGIC) {
        let (runs, odd) = pages::runs(&store)?;
        notes.extend(odd);
        return Ok(Memory::new(store, runs, Form::Pages, notes));
    }
    if first.starts_with(ELF) {
        let (runs, odd) = elf::runs(&store)?;
        notes.extend(odd);
        return Ok(Memory::new(store, runs, Form::Elf, notes));
    }
    if first.starts_with(&kdump::MAGIC) {
        return kdump::open(store, notes);
    }
    let foreign = FOREIGN.iter().find(|(magic, ..)| first.starts_with(magic));
    Err(foreign.map_or(OpenError::Unknown, |&(_, name, instead)| OpenError::Foreign {
        what: "this is",
        name,
        instead,
    }))
}

/// First bytes of an ELF file.
const ELF: &[u8] = b"\x7fELF";

/// Raw memory, which nothing tells from anything else: at least it is not something that is known.
fn raw(store: Store, first: &[u8], base: u64, hole: Option<(u64, u64)>) -> Result<Memory, OpenError> {
    let known: [(&[u8], &str); 4] = [
        (&pages::MAGIC, "a page file"),
        (ELF, "an ELF file"),
        (&kdump::MAGIC, "a compressed dump"),
        (flat::MAGIC, "a flattened dump"),
    ];
    if let Some((_, form)) = known.into_iter().find(|(magic, _)| first.starts_with(magic)) {
        return Err(OpenError::NotRaw { form });
    }
    let bytes = store.bytes();
    let mut runs = vec![Run { start: base, bytes, offset: 0 }];
    if let Some((start, end)) = hole {
        let before = start.checked_sub(base).filter(|before| (1..bytes).contains(before) && start < end);
        let before = before.ok_or(OpenError::Hole { start, end })?;
        runs[0].bytes = before;
        runs.push(Run { start: end, bytes: bytes - before, offset: before });
    }
    if runs.iter().any(|run| run.start.checked_add(run.bytes).is_none()) {
        return Err(OpenError::Base { base });
    }
    Ok(Memory::new(store, runs, Form::Raw, Vec::new()))
}
