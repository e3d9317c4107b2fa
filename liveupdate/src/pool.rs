//! Fixed storage with slots that are used again, so that preserving and unpreserving for ever needs no more room than
//! preserving once.

use crate::error::Full;
use crate::mutant::{self, Mutant};

/// Entries of one kind in storage that the host gave. An entry keeps its index while it lives.
#[derive(Debug)]
pub(crate) struct Pool<'s, T> {
    slots: &'s mut [Option<T>],
    /// No slot before this one is free.
    free_from: usize,
    what: &'static str,
}

impl<'s, T: Copy> Pool<'s, T> {
    /// An empty pool over `slots`. `what` names the entries in errors.
    pub(crate) fn new(slots: &'s mut [Option<T>], what: &'static str) -> Self {
        slots.fill(None);
        Self { slots, free_from: 0, what }
    }

    /// Puts `entry` into the first free slot.
    pub(crate) fn insert(&mut self, entry: T) -> Result<usize, Full> {
        let free = self.slots[self.free_from..].iter().position(Option::is_none);
        let index = free.ok_or(Full { what: self.what, capacity: self.slots.len() })? + self.free_from;
        self.slots[index] = Some(entry);
        self.free_from = index + 1;
        Ok(index)
    }

    /// Takes the entry at `index` out, if there is one.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        if !mutant::on(Mutant::SlotsLost) {
            self.free_from = self.free_from.min(index);
        }
        self.slots.get_mut(index)?.take()
    }

    /// The entry at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.slots.get(index)?.as_ref()
    }

    /// The entry at `index`, to change it.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// All entries with their indices, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, s)| s.as_ref().map(|t| (i, t)))
    }

    /// The first entry that `test` holds for.
    pub(crate) fn find(&self, mut test: impl FnMut(&T) -> bool) -> Option<(usize, &T)> {
        self.iter().find(|(_, t)| test(t))
    }

    /// Number of slots: every index is below it.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    /// How many entries lie before `index`: the ordinal under which records refer to it.
    pub(crate) fn ordinal(&self, index: usize) -> u32 {
        let before = self.iter().take_while(|(i, _)| *i < index).count();
        u32::try_from(before).unwrap_or(u32::MAX)
    }

    /// The index of the entry with this ordinal.
    pub(crate) fn at_ordinal(&self, ordinal: u32) -> Option<usize> {
        self.iter().nth(ordinal as usize).map(|(i, _)| i)
    }
}
