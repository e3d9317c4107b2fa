//! Memory images: what a kernel's memory held, read out of a file.
//!
//! `open` looks at a file's first bytes and takes it for what it is: an ELF core (`elf`, program headers by physical
//! address), a compressed dump (`kdump`), a page file (`pages`), or, with a base address given, raw memory. Any of them may
//! be packed with zstd (`unpack`), and a dump may be flattened (`flat`).
//! The result is one [`Memory`]: runs of physical addresses, each with its place in the file. Memory that no run holds is
//! *missing*, which is an answer of its own and never zero.

mod elf;
mod flat;
mod kdump;
mod lzo;
mod open;
mod pages;
mod qmp;
mod store;
mod unpack;

pub use open::{Form, OpenError, Options, UNPACKED_LIMIT, from_bytes, open};
pub use pages::write as write_pages;
pub use qmp::open_qmp;
pub use store::Live;

use audit::{Image, Missing};
use spec::{PAGE_SIZE, PhysAddr};
use std::cell::RefCell;
use store::{Asked, Store};
use zerocopy::IntoBytes;

/// Adjacent bytes of memory that the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Physical address of the first byte.
    pub start: u64,
    /// Length in bytes; `start + bytes` stays in the address space.
    pub bytes: u64,
    /// Where in the file they lie.
    pub(crate) offset: u64,
}

impl Run {
    const fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

/// A memory image.
///
/// # Invariants
/// Runs ascend, do not overlap, are not empty, and lie within the file.
#[derive(Debug)]
pub struct Memory {
    store: Store,
    runs: Vec<Run>,
    form: Form,
    /// What was odd about the file.
    notes: Vec<String>,
}

impl Memory {
    /// Puts an image together; runs may overlap or leave the file, and are cut.
    fn new(store: Store, mut runs: Vec<Run>, form: Form, mut notes: Vec<String>) -> Self {
        let length = store.bytes();
        let mut torn = 0_u64;
        for run in &mut runs {
            let left = length.saturating_sub(run.offset).min(u64::MAX - run.start);
            if left < run.bytes {
                torn = torn.saturating_add(run.bytes - left);
                run.bytes = left;
            }
        }
        if torn > 0 {
            notes.push(format!("the file ends {torn} bytes early: that memory is missing"));
        }
        // Of two runs that claim the same address the one that starts first is believed.
        runs.sort_by_key(|run| run.start);
        let mut end = 0;
        let mut kept: Vec<Run> = Vec::with_capacity(runs.len());
        for mut run in runs {
            if run.start < end {
                let twice = (end - run.start).min(run.bytes);
                run = Run { start: end, bytes: run.bytes - twice, offset: run.offset + twice };
            }
            if run.bytes == 0 {
                continue;
            }
            end = run.end();
            match kept.last_mut() {
                Some(last) if last.end() == run.start && last.offset + last.bytes == run.offset => {
                    last.bytes += run.bytes;
                }
                _ => kept.push(run),
            }
        }
        // INVARIANT: sorted, cut and filtered above.
        Self { store, runs: kept, form, notes }
    }

    /// The memory of a machine that is there: `runs` of (start, bytes), read through `source` as they are needed.
    #[must_use]
    pub fn live(source: Box<dyn Live>, runs: &[(u64, u64)]) -> Self {
        let runs = runs.iter().map(|&(start, bytes)| Run { start, bytes, offset: start }).collect();
        Self::new(Store::Live(Asked(RefCell::new(source))), runs, Form::Live, Vec::new())
    }

    /// The memory there is, ascending.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// What the file is.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// What was odd about the file, in words.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of memory in the image.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes).sum()
    }

    /// Whether the image holds the whole frame at `at`.
    #[must_use]
    pub fn holds_frame(&self, at: PhysAddr) -> bool {
        let start = at.frame().start().get();
        let mut at = start;
        while let Some(run) = self.run_of(at) {
            if run.end() - start >= PAGE_SIZE {
                return true;
            }
            at = run.end();
        }
        false
    }

    /// Fills `out` with the bytes from `at` on.
    ///
    /// # Errors
    /// [`Missing`] when any of them is not in the image; `out` is then undefined.
    pub fn read_bytes(&self, at: PhysAddr, out: &mut [u8]) -> Result<(), Missing> {
        let mut at = at.get();
        let mut rest = out;
        while !rest.is_empty() {
            let missing = Missing { at: PhysAddr::new(at) };
            let run = self.run_of(at).ok_or(missing)?;
            let skipped = at - run.start;
            let take = usize::try_from(run.bytes - skipped).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(take);
            if !self.store.read_at(run.offset + skipped, now) {
                return Err(missing);
            }
            rest = later;
            // Past the last address nothing is left to read, or no run is found.
            at = at.wrapping_add(take as u64);
        }
        Ok(())
    }

    fn run_of(&self, at: u64) -> Option<&Run> {
        let next = self.runs.partition_point(|run| run.start <= at);
        self.runs.get(next.checked_sub(1)?).filter(|run| at < run.end())
    }
}

impl Image for Memory {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        self.read_bytes(at, out.as_mut_bytes())
    }
}

/// One word of any image.
///
/// # Errors
/// [`Missing`] when the image does not hold it.
pub fn word(image: &dyn Image, at: PhysAddr) -> Result<u64, Missing> {
    let mut out = [0];
    image.read(at, &mut out)?;
    Ok(out[0])
}

/// A table of 512 words.
pub(crate) type Table = [u64; 512];

/// The frame at `at`, which is a multiple of 4096, as words.
pub(crate) fn table(image: &dyn Image, at: PhysAddr) -> Result<Box<Table>, Missing> {
    let mut words = Box::new([0; 512]);
    image.read(at, words.as_mut_slice())?;
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(runs: &[(u64, u64, u64)], file: usize) -> Memory {
        let bytes = (0..file).map(|i| i as u8).collect();
        let runs = runs.iter().map(|&(start, bytes, offset)| Run { start, bytes, offset }).collect();
        Memory::new(Store::Bytes(bytes), runs, Form::Raw, Vec::new())
    }

    #[test]
    fn memory_between_runs_is_missing_and_named() {
        let memory = memory(&[(0x1000, 16, 0), (0x1020, 16, 16)], 32);
        let mut out = [0; 4];
        assert!(memory.read(PhysAddr::new(0x1000), &mut out[..2]).is_ok());
        assert_eq!(memory.read(PhysAddr::new(0x1000), &mut out), Err(Missing { at: PhysAddr::new(0x1010) }));
        assert!(memory.read(PhysAddr::new(0xfff), &mut out[..1]).is_err());
        assert!(memory.read(PhysAddr::new(u64::MAX - 7), &mut out[..2]).is_err());
    }

    #[test]
    fn a_read_goes_on_from_one_run_into_the_next() {
        let memory = memory(&[(0x1004, 12, 20), (0x1000, 4, 0)], 32);
        let mut out = [0; 8];
        memory.read_bytes(PhysAddr::new(0x1002), &mut out).unwrap();
        assert_eq!(out, [2, 3, 20, 21, 22, 23, 24, 25]);
    }

    #[test]
    fn a_run_that_the_file_does_not_hold_is_cut_and_said_so() {
        let memory = memory(&[(0x1000, 64, 16)], 32);
        assert_eq!(memory.bytes(), 16);
        assert_eq!(memory.notes().len(), 1);
    }

    #[test]
    fn of_runs_that_overlap_the_first_is_believed() {
        let memory = memory(&[(0x1000, 8, 0), (0x1004, 8, 8), (0x1002, 2, 30)], 32);
        let mut out = [0; 12];
        memory.read_bytes(PhysAddr::new(0x1000), &mut out).unwrap();
        assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]);
    }
}
