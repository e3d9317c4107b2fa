//! Images put together word by word.

use holdover_inspect::image::{self, Memory, Options};
use std::collections::BTreeMap;

/// Pages by address.
#[derive(Default)]
pub(crate) struct Pages(BTreeMap<u64, Vec<u64>>);

impl Pages {
    /// Makes the page at `at` exist.
    pub(crate) fn zero(&mut self, at: u64) {
        self.0.entry(at & !0xfff).or_insert_with(|| vec![0; 512]);
    }

    /// Writes a word.
    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.zero(at);
        self.0.get_mut(&(at & !0xfff)).unwrap()[(at % 4096 / 8) as usize] = value;
    }

    /// The pages as an image, by way of a page file.
    pub(crate) fn memory(&self) -> Memory {
        let mut bytes = b"VTDPAGE1".to_vec();
        let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        word(self.0.len() as u64);
        self.0.keys().for_each(|at| word(*at));
        self.0.values().flatten().for_each(|value| word(*value));
        image::from_bytes(bytes, Options::default()).unwrap()
    }
}
