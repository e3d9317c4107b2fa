//! Sparse memory, and the radix tree of preserved frames written into it.

use holdover_audit::{Image, Missing};
use spec::{PAGE_SIZE, PhysAddr};
use std::collections::BTreeMap;

/// Pages that exist, by frame number.
#[derive(Clone, Default)]
pub struct Memory {
    pub pages: BTreeMap<u64, Box<[u64; 512]>>,
}

impl Image for Memory {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), Missing> {
        let mut done = 0;
        while done < out.len() {
            let at = at.checked_add(8 * done as u64).ok_or(Missing { at })?;
            if !at.is_aligned(8) {
                return Err(Missing { at });
            }
            let page = self.pages.get(&at.frame().number()).ok_or(Missing { at })?;
            let first = (at.get() % PAGE_SIZE / 8) as usize;
            let piece = (512 - first).min(out.len() - done);
            out[done..done + piece].copy_from_slice(&page[first..first + piece]);
            done += piece;
        }
        Ok(())
    }
}

impl Memory {
    fn page(&mut self, at: u64) -> &mut [u64; 512] {
        self.pages.entry(at / PAGE_SIZE).or_insert_with(|| Box::new([0; 512]))
    }
    pub fn exist(&mut self, start: u64, bytes: u64) {
        for at in (start..start + bytes).step_by(PAGE_SIZE as usize) {
            self.page(at);
        }
    }
    pub fn remove(&mut self, at: u64) {
        self.pages.remove(&(at / PAGE_SIZE));
    }
    pub fn read(&self, at: u64, words: usize) -> Vec<u64> {
        let mut out = vec![0; words];
        Image::read(self, PhysAddr::new(at), &mut out).expect("the test reads what it wrote");
        out
    }
    pub fn write(&mut self, at: u64, words: &[u64]) {
        for (at, word) in (at..).step_by(8).zip(words) {
            self.page(at)[(at % PAGE_SIZE / 8) as usize] = *word;
        }
    }
    pub fn bytes(&self, at: u64, bytes: u64) -> Vec<u8> {
        self.read(at, bytes as usize / 8).iter().flat_map(|word| word.to_le_bytes()).collect()
    }
    pub fn write_bytes(&mut self, at: u64, bytes: &[u8]) {
        for (at, piece) in (at..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.write(at, &[u64::from_le_bytes(word)]);
        }
    }

    /// Writes the map of these runs with its root at `root` and further nodes behind it; blocks are of orders up to
    /// `limit`. Gives the number of nodes.
    pub fn write_map(&mut self, root: u64, runs: &[(u64, u64)], limit: u32) -> u64 {
        let mut nodes = 1;
        self.write(root, &[0; 512]);
        for &(start, bytes) in runs {
            let (mut frame, end) = (start / PAGE_SIZE, (start + bytes) / PAGE_SIZE);
            while frame < end {
                let fits = |order: &u32| frame % (1 << order) == 0 && frame + (1 << order) <= end;
                let order = (0..=limit).rev().find(fits).unwrap();
                self.set_key(root, &mut nodes, 1 << (52 - order) | frame >> order);
                frame += 1 << order;
            }
        }
        nodes
    }

    pub fn set_key(&mut self, root: u64, nodes: &mut u64, key: u64) {
        let mut node = root;
        for shift in [51, 42, 33, 24, 15] {
            let at = node + 8 * (key >> shift & 511);
            if self.read(at, 1)[0] == 0 {
                let fresh = root + *nodes * PAGE_SIZE;
                *nodes += 1;
                self.write(fresh, &[0; 512]);
                self.write(at, &[fresh]);
            }
            node = self.read(at, 1)[0];
        }
        let at = node + 8 * (key >> 6 & 511);
        let word = self.read(at, 1)[0] | 1 << (key & 63);
        self.write(at, &[word]);
    }
}
