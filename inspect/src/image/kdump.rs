//! Compressed dumps: what makedumpfile makes of a crash (`-c`, `-l`, `-p`, `-z`), and QEMU of a guest (`dump-guest-memory -z`).
//!
//! A block of header, some of a second one, two maps with a bit for each page of memory (it exists; it is in the dump), a
//! descriptor of 24 bytes for each page in the dump, in their order, and the packed pages. A page is unpacked when it is
//! read. Bytes in such a [`Memory`]'s runs are counted in descriptors, [`PAGE_SIZE`] for each.

use super::open::OpenError;
use super::store::{Asked, Live, Store, by_chunks};
use super::{Form, Memory, Run};
use spec::PAGE_SIZE;
use std::cell::RefCell;
use std::collections::HashMap;

/// What such a dump opens with.
pub(crate) const MAGIC: [u8; 8] = *b"KDUMP   ";
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 24;
/// Blocks that the second header may have.
const SUB_HEADER_BLOCKS: u32 = 1 << 16;
/// Pages kept at most (64 MiB); then all are dropped.
const KEPT: usize = 16384;
/// How a page is packed, as descriptors and the header say it.
const ZLIB: u32 = 1;
const LZO: u32 = 2;
const SNAPPY: u32 = 4;
const INCOMPLETE: u32 = 8;
const ZSTD: u32 = 0x20;

/// Where fields of the headers of a kernel of 64 bits lie.
mod field {
    pub(super) const VERSION: u64 = 8;
    pub(super) const STATUS: u64 = 424;
    pub(super) const BLOCK_BYTES: u64 = 428;
    pub(super) const SUB_HEADER_BLOCKS: u64 = 432;
    pub(super) const BITMAP_BLOCKS: u64 = 436;
    pub(super) const PAGES: u64 = 440;
    /// In a kernel of 32 bits.
    pub(super) const BLOCK_BYTES_32: u64 = 416;
    /// From the second header's start on.
    pub(super) const SPLIT: u64 = 12;
    pub(super) const PAGES_64: u64 = 96;
}

/// Opens a compressed dump.
pub(super) fn open(store: Store, mut notes: Vec<String>) -> Result<Memory, OpenError> {
    let layout = Layout::read(&store)?;
    if layout.status & INCOMPLETE != 0 {
        notes.push("whoever made the dump could not finish it: the rest is missing".to_owned());
    }
    let runs = layout.runs(&store, &mut notes)?;
    if runs.is_empty() {
        return Err(damaged("it holds no page of memory"));
    }
    let pages = Pages { store, first: layout.descriptors, kept: HashMap::new() };
    let store = Store::Live(Asked(RefCell::new(Box::new(pages))));
    Ok(Memory::new(store, runs, Form::Compressed, notes))
}

fn damaged(what: impl Into<String>) -> OpenError {
    OpenError::Dump { what: what.into() }
}

fn word32(store: &Store, at: u64) -> Result<u32, OpenError> {
    let mut word = [0; 4];
    let read = store.read_at(at, &mut word);
    if read { Ok(u32::from_le_bytes(word)) } else { Err(damaged("it ends within its headers")) }
}

/// Where the parts of a dump lie.
struct Layout {
    status: u32,
    /// Bytes of the file before the maps, of both maps, and before the first descriptor.
    maps: u64,
    map_bytes: u64,
    descriptors: u64,
    /// There is one map: that of pages in the dump.
    one_map: bool,
}

impl Layout {
    fn read(store: &Store) -> Result<Self, OpenError> {
        let header = |at| word32(store, at);
        let version = header(field::VERSION)?;
        if version.swap_bytes() < 0x100 && version >= 0x100 {
            return Err(damaged("it is of a big-endian machine, which has no such remapping hardware"));
        }
        if header(field::BLOCK_BYTES)? != PAGE_SIZE as u32 {
            return Err(damaged(if header(field::BLOCK_BYTES_32)? == PAGE_SIZE as u32 {
                "it is of a kernel of 32 bits: make an ELF core of that".to_owned()
            } else {
                format!("its pages have {} bytes, not 4096", header(field::BLOCK_BYTES)?)
            }));
        }
        let (sub_header, maps) = (header(field::SUB_HEADER_BLOCKS)?, header(field::BITMAP_BLOCKS)?);
        if sub_header == 0 || sub_header > SUB_HEADER_BLOCKS {
            return Err(damaged(format!("its second header claims {sub_header} blocks")));
        }
        if version >= 2 && header(PAGE_SIZE + field::SPLIT)? != 0 {
            return Err(damaged(
                "it is one part of several: put them together with makedumpfile --reassemble",
            ));
        }
        let mut pages = u64::from(header(field::PAGES)?);
        if version >= 6 {
            let at = PAGE_SIZE + field::PAGES_64;
            pages = u64::from(header(at)?) | u64::from(header(at + 4)?) << 32;
        }
        let before = (1 + u64::from(sub_header)) * PAGE_SIZE;
        let map_bytes = u64::from(maps) * PAGE_SIZE;
        let status = header(field::STATUS)?;
        let layout = Self {
            status,
            maps: before,
            map_bytes,
            descriptors: before + map_bytes,
            one_map: pages > map_bytes * 4,
        };
        if layout.descriptors > store.bytes() {
            return Err(damaged(format!(
                "it ends before its first page: {} bytes, where its maps reach to {}",
                store.bytes(),
                layout.descriptors
            )));
        }
        Ok(layout)
    }

    /// The memory in the dump.
    fn runs(&self, store: &Store, notes: &mut Vec<String>) -> Result<Vec<Run>, OpenError> {
        let half = if self.one_map { 0 } else { self.map_bytes / 2 };
        let room = (store.bytes() - self.descriptors) / DESCRIPTOR;
        let mut runs = Runs { runs: Vec::new(), descriptors: 0, left_out: 0, torn: 0 };
        let (mut exist, mut here) = (0_u64.to_le_bytes(), 0_u64.to_le_bytes());
        for at in (0..self.map_bytes - half).step_by(8) {
            let read =
                store.read_at(self.maps + half + at, &mut here) && store.read_at(self.maps + at, &mut exist);
            if !read {
                return Err(damaged("its maps cannot be read"));
            }
            let (here, exist) = (u64::from_le_bytes(here), u64::from_le_bytes(exist));
            runs.left_out += u64::from((exist & !here).count_ones());
            let mut rest = here;
            while rest != 0 {
                let page = at * 8 + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                runs.page(page, room, &|descriptor| self.holds(store, descriptor));
            }
        }
        if runs.left_out > 0 {
            notes.push(format!("{} bytes of memory were left out of the dump", runs.left_out * PAGE_SIZE));
        }
        if runs.torn > 0 {
            notes.push(format!("the file ends early: {} bytes of memory are missing", runs.torn * PAGE_SIZE));
        }
        Ok(runs.runs)
    }

    /// Whether the file reaches to the end of a page.
    fn holds(&self, store: &Store, number: u64) -> bool {
        let found = descriptor(store, self.descriptors, number);
        found.and_then(|page| page.at.checked_add(page.bytes)).is_some_and(|end| end <= store.bytes())
    }
}

/// Runs as they grow, page by page.
struct Runs {
    runs: Vec<Run>,
    /// Descriptors so far.
    descriptors: u64,
    /// Pages that exist and are not in the dump.
    left_out: u64,
    /// Pages that are said to be in the dump, and are not in the file.
    torn: u64,
}

impl Runs {
    fn page(&mut self, page: u64, room: u64, holds: &dyn Fn(u64) -> bool) {
        let number = self.descriptors;
        self.descriptors += 1;
        if number >= room || !holds(number) {
            self.torn += 1;
            return;
        }
        let (start, offset) = (page * PAGE_SIZE, number * PAGE_SIZE);
        match self.runs.last_mut() {
            Some(last) if last.end() == start && last.offset + last.bytes == offset => {
                last.bytes += PAGE_SIZE
            }
            _ => self.runs.push(Run { start, bytes: PAGE_SIZE, offset }),
        }
    }
}

/// Where a page lies, and how it is packed.
struct Descriptor {
    at: u64,
    bytes: u64,
    packed: u32,
}

fn descriptor(store: &Store, first: u64, number: u64) -> Option<Descriptor> {
    let mut bytes = [0; 16];
    let at = number.checked_mul(DESCRIPTOR)?.checked_add(first)?;
    store.read_at(at, &mut bytes).then(|| {
        let [a, b] = [&bytes[..8], &bytes[8..]].map(|half| half.try_into().map_or(0, u64::from_le_bytes));
        Descriptor { at: a, bytes: b & 0xffff_ffff, packed: (b >> 32) as u32 }
    })
}

/// The pages of a dump, as they are asked for.
struct Pages {
    store: Store,
    /// Where descriptors begin.
    first: u64,
    kept: HashMap<u64, Box<[u8]>>,
}

impl Pages {
    /// The page of this descriptor; `None` when it cannot be unpacked.
    fn unpack(&self, number: u64) -> Option<Box<[u8]>> {
        let Descriptor { at, bytes, packed } = descriptor(&self.store, self.first, number)?;
        // What is packed is no longer than what it was.
        let mut content = vec![0; usize::try_from(bytes.min(2 * PAGE_SIZE)).ok()?];
        if !self.store.read_at(at, &mut content) {
            return None;
        }
        let page = match packed & (ZLIB | LZO | SNAPPY | ZSTD) {
            0 => content,
            ZLIB => {
                miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&content, PAGE_SIZE as usize).ok()?
            }
            LZO => super::lzo::unpack(&content, PAGE_SIZE as usize)?,
            SNAPPY if snap::raw::decompress_len(&content).ok()? as u64 <= PAGE_SIZE => {
                snap::raw::Decoder::new().decompress_vec(&content).ok()?
            }
            ZSTD => super::unpack::small(&content, PAGE_SIZE)?,
            _ => return None,
        };
        (page.len() as u64 == PAGE_SIZE).then(|| page.into())
    }
}

impl Live for Pages {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> bool {
        by_chunks(offset, out, |number, within, part| {
            if !self.kept.contains_key(&number) {
                let Some(page) = self.unpack(number) else { return false };
                if self.kept.len() >= KEPT {
                    self.kept.clear();
                }
                self.kept.insert(number, page);
            }
            let page = self.kept.get(&number).and_then(|page| page.get(within..within + part.len()));
            page.is_some_and(|bytes| {
                part.copy_from_slice(bytes);
                true
            })
        })
    }
}
