//! Images made of few bytes: changes to pages, each a few bytes long.
//!
//! A change has 11 bytes: page (8 bits, modulo the number of pages), first slot (9 bits), logarithm of the number of slots
//! (4 bits), and the word that they get; numbers are little-endian. So one change makes a table whose every entry names
//! itself. Pages lie one after another from [`FIRST`] on, and only those that were changed, or were there before, exist.

use audit::{Image, Missing};
use liveupdate::host::{NoMemory, TableMemory};
use spec::{PAGE_SIZE, PhysAddr};
use std::cell::Cell;
use std::rc::Rc;

/// Address of the first page.
pub const FIRST: u64 = 0x1000;
const WORDS: usize = 512;

/// Reads after which memory is missing: a reader that only ends when a large bound of its own is reached shall end now.
pub const PATIENCE: u64 = 200_000;
/// Reads that a reader may still make when all memory is missing.
const MANNERS: u64 = 20_000;

/// Memory of a machine that has none: no page file is that empty.
struct Nothing;

impl inspect::image::Live for Nothing {
    fn read_at(&mut self, _: u64, _: &mut [u8]) -> bool {
        false
    }
}

/// Memory that counts how often it is read.
#[derive(Debug, Default, Clone)]
pub struct Sparse {
    /// Pages by address, ascending; shared with copies until they are changed.
    pages: Vec<(u64, Rc<[u64; WORDS]>)>,
    reads: Cell<u64>,
}

impl Sparse {
    /// Memory with these pages, by ascending address.
    #[must_use]
    pub fn of(pages: Vec<(u64, Rc<[u64; WORDS]>)>) -> Self {
        Self { pages, reads: Cell::new(0) }
    }

    /// Memory with what `changes` make of at most `count` pages.
    #[must_use]
    pub fn new(changes: &[u8], count: u8) -> Self {
        let mut memory = Self::default();
        for change in changes_of(changes) {
            let at = FIRST + PAGE_SIZE * u64::from(change.page % count);
            change.apply(memory.page(at));
        }
        memory
    }

    /// Makes `changes` to the pages that are there.
    pub fn change(&mut self, changes: &[u8]) {
        let count = self.pages.len().max(1);
        for change in changes_of(changes) {
            if let Some((_, words)) = self.pages.get_mut(usize::from(change.page) % count) {
                change.apply(Rc::make_mut(words));
            }
        }
    }

    /// The page at `at`, which exists from now on.
    pub fn page(&mut self, at: u64) -> &mut [u64; WORDS] {
        let place = self.pages.binary_search_by_key(&at, |(page, _)| *page).unwrap_or_else(|place| {
            self.pages.insert(place, (at, Rc::new([0; WORDS])));
            place
        });
        Rc::make_mut(&mut self.pages[place].1)
    }

    /// How often it was read since it was last asked, at most.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.replace(0)
    }

    /// The same memory as the readers of images open it: by way of a page file.
    #[must_use]
    pub fn image(&self) -> inspect::image::Memory {
        if self.pages.is_empty() {
            return inspect::image::Memory::live(Box::new(Nothing), &[]);
        }
        let mut bytes = Vec::with_capacity(16 + self.pages.len() * (8 + PAGE_SIZE as usize));
        bytes.extend_from_slice(b"VTDPAGE1");
        bytes.extend_from_slice(&(self.pages.len() as u64).to_le_bytes());
        self.pages.iter().for_each(|(at, _)| bytes.extend_from_slice(&at.to_le_bytes()));
        self.pages
            .iter()
            .for_each(|(_, words)| bytes.extend_from_slice(zerocopy::IntoBytes::as_bytes(&words[..])));
        inspect::image::from_bytes(bytes, inspect::image::Options::default()).expect("a sound page file")
    }

    fn words(&self, at: u64, out: &mut [u64]) -> Result<(), u64> {
        let reads = self.reads.get() + 1;
        self.reads.set(reads);
        assert!(reads <= PATIENCE + MANNERS, "memory is missing, and yet it is read on and on");
        if reads > PATIENCE {
            return Err(at);
        }
        let (mut at, mut rest) = (at, out);
        while !rest.is_empty() {
            let page = self.pages.binary_search_by_key(&(at & !0xfff), |(page, _)| *page).map_err(|_| at)?;
            let from = (at % PAGE_SIZE / 8) as usize;
            let take = rest.len().min(WORDS - from);
            let (now, later) = rest.split_at_mut(take);
            now.copy_from_slice(&self.pages[page].1[from..from + take]);
            at = at.wrapping_add(8 * take as u64);
            rest = later;
        }
        Ok(())
    }
}

impl Image for Sparse {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        assert!(at.is_aligned(8), "the readers of an image owe aligned addresses: {at}");
        self.words(at.get(), out).map_err(|at| Missing { at: PhysAddr::new(at) })
    }
}

impl TableMemory for Sparse {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        let mut out = [0];
        self.words(at.get(), &mut out).map_err(|at| NoMemory { at: PhysAddr::new(at) })?;
        Ok(out[0])
    }

    fn write(&self, at: PhysAddr, _: u64) -> Result<(), NoMemory> {
        panic!("whoever opens a handover writes nothing, least of all at {at}")
    }
}

struct Change {
    page: u8,
    slot: usize,
    count: usize,
    word: u64,
}

impl Change {
    fn apply(&self, words: &mut [u64; WORDS]) {
        let end = (self.slot + self.count).min(WORDS);
        words[self.slot..end].fill(self.word);
    }
}

fn changes_of(bytes: &[u8]) -> impl Iterator<Item = Change> {
    bytes.as_chunks::<11>().0.iter().map(|&[page, low, high, ref word @ ..]| {
        let place = usize::from(u16::from_le_bytes([low, high]));
        let word = u64::from_le_bytes(*word);
        Change { page, slot: place % WORDS, count: 1 << (place >> 9 & 0xf).min(9), word }
    })
}
