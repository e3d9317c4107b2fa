//! Where an image's bytes lie: in a file that is read as needed, unpacked in memory, or with somebody who is asked.

use super::flat::Flat;
use super::unpack::Unpacked;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// Bytes read from a file at once.
pub(crate) const CHUNK: u64 = 4096;
/// Chunks kept at most (64 MiB); then all are dropped.
const KEPT: usize = 16384;

/// Bytes at offsets.
#[derive(Debug)]
pub(crate) enum Store {
    /// In memory.
    Bytes(Vec<u8>),
    /// Unpacked in memory.
    Unpacked(Unpacked),
    /// In a file.
    File(FileStore),
    /// In pieces of another store.
    Flat(Box<Flat>),
    /// With somebody who is asked.
    Live(Asked),
}

/// Somebody who is asked for bytes.
pub(crate) struct Asked(pub(crate) RefCell<Box<dyn Live>>);

// What lives there has no duty to describe itself.
impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

/// Memory that is fetched as it is read. Offsets are physical addresses.
pub trait Live {
    /// Fills `out` from `offset` on; `false` when the bytes are not there.
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> bool;
}

/// A file, and the parts of it that were read lately.
#[derive(Debug)]
pub(crate) struct FileStore {
    file: File,
    bytes: u64,
    kept: RefCell<HashMap<u64, Box<[u8]>>>,
}

impl Store {
    pub(crate) fn file(file: File) -> std::io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self::File(FileStore { file, bytes, kept: RefCell::default() }))
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Unpacked(unpacked) => unpacked.bytes(),
            Self::File(file) => file.bytes,
            Self::Flat(flat) => flat.bytes(),
            Self::Live(_) => u64::MAX,
        }
    }

    /// Fills `out` from `offset` on; `false` when the bytes are not there.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> bool {
        match self {
            Self::Bytes(bytes) => {
                let Ok(start) = usize::try_from(offset) else { return false };
                let part = start.checked_add(out.len()).and_then(|end| bytes.get(start..end));
                part.is_some_and(|part| {
                    out.copy_from_slice(part);
                    true
                })
            }
            Self::Unpacked(unpacked) => unpacked.read_at(offset, out),
            Self::File(file) => by_chunks(offset, out, |chunk, within, part| file.read(chunk, within, part)),
            Self::Flat(flat) => flat.read_at(offset, out),
            Self::Live(live) => live.0.borrow_mut().read_at(offset, out),
        }
    }
}

/// Fills `out` from `offset` on, chunk by chunk: `read` is given a chunk's number, the first byte that is wanted of it, and
/// where it belongs. `false` as soon as `read` says so.
pub(crate) fn by_chunks(
    mut offset: u64,
    mut out: &mut [u8],
    mut read: impl FnMut(u64, usize, &mut [u8]) -> bool,
) -> bool {
    while !out.is_empty() {
        let within = (offset % CHUNK) as usize;
        let take = out.len().min(CHUNK as usize - within);
        let (now, later) = out.split_at_mut(take);
        if !read(offset / CHUNK, within, now) {
            return false;
        }
        out = later;
        // Past the last address nothing is left to read.
        offset = offset.wrapping_add(take as u64);
    }
    true
}

/// A store as something to read on in, as the `object` crate wants it.
pub(crate) struct Reader<'s> {
    store: &'s Store,
    at: u64,
}

impl<'s> Reader<'s> {
    pub(crate) const fn new(store: &'s Store) -> Self {
        Self { store, at: 0 }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.store.bytes().saturating_sub(self.at);
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        if !self.store.read_at(self.at, &mut out[..take]) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += take as u64;
        Ok(take)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.store.bytes().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl FileStore {
    fn read(&self, chunk: u64, within: usize, out: &mut [u8]) -> bool {
        let mut kept = self.kept.borrow_mut();
        if !kept.contains_key(&chunk) {
            let start = chunk * CHUNK;
            let length = self.bytes.saturating_sub(start).min(CHUNK) as usize;
            let mut bytes = vec![0; length].into_boxed_slice();
            if self.file.read_exact_at(&mut bytes, start).is_err() {
                return false;
            }
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(chunk, bytes);
        }
        let part = kept.get(&chunk).and_then(|bytes| bytes.get(within..within + out.len()));
        part.is_some_and(|part| {
            out.copy_from_slice(part);
            true
        })
    }
}
