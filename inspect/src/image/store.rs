//! Where an image's bytes lie: in a file that is read as needed, or unpacked in memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes read from a file at once.
const CHUNK: u64 = 4096;
/// Chunks kept at most (64 MiB); then all are dropped.
const KEPT: usize = 16384;

/// Bytes at offsets.
#[derive(Debug)]
pub(crate) enum Store {
    /// In memory.
    Bytes(Vec<u8>),
    /// In a file.
    File(FileStore),
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
            Self::File(file) => file.bytes,
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
            Self::File(file) => file.read_at(offset, out),
            Self::Live(live) => live.0.borrow_mut().read_at(offset, out),
        }
    }
}

impl FileStore {
    /// Calls `read` with the file as the `object` crate wants it: parts are read once and kept until it returns.
    pub(crate) fn with_headers<T>(&self, read: impl FnOnce(&object::ReadCache<&File>) -> T) -> T {
        read(&object::ReadCache::new(&self.file))
    }

    fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let within = (offset % CHUNK) as usize;
            let take = out.len().min(CHUNK as usize - within);
            let (now, later) = out.split_at_mut(take);
            if !self.read_within(offset / CHUNK, within, now) {
                return false;
            }
            out = later;
            offset += take as u64;
        }
        true
    }

    fn read_within(&self, chunk: u64, within: usize, out: &mut [u8]) -> bool {
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
