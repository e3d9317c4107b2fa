//! Interrupt remapping of a fake unit: a table that it reads by itself, and a cache that goes stale.

use super::{Done, Fake, FakeUnit, Frames, word};
use alloc::collections::BTreeMap;
use spec::interrupt::{ENTRY_BYTES, RemappableAddress, RemappableData, RemappedEntry};
use spec::invalidation::InterruptInvalidate;
use spec::regs::{Gcmd, Irta};

/// The state of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupts {
    pub(crate) irta: u64,
    /// IRTA when SIRTP was last given.
    in_use: u64,
    cached: BTreeMap<u32, [u64; 2]>,
    /// Whether remapping was ever switched off.
    pub(crate) went_off: bool,
}

impl FakeUnit {
    pub(crate) fn interrupt_command(&mut self, command: Gcmd) {
        if command.sirtp() {
            self.interrupts.in_use = self.interrupts.irta;
            self.status = self.status.with_irtps(true);
            // CAP.ESIRTPS is not offered: nothing is forgotten by itself.
        }
        self.interrupts.went_off |= self.status.ires() && !command.ire();
        self.status = self.status.with_ires(command.ire()).with_cfis(command.cfi());
    }

    pub(crate) fn forget_interrupts(&mut self, words: [u64; 2]) {
        let d = InterruptInvalidate::from_raw(words);
        let (first, order) = (d.iidx() as u32, d.im() as u32);
        self.done.push(Done::Interrupts { index: d.g(), first, order });
        self.buffered.clear();
        self.interrupts.cached.retain(|index, _| d.g() && index >> order != first >> order);
    }

    fn interrupt(
        &mut self,
        frames: &Frames,
        source: u16,
        address: u32,
        data: u32,
    ) -> Result<RemappedEntry, u8> {
        let (irta, address) = (Irta::from_raw(self.interrupts.in_use), RemappableAddress::from_raw(address));
        if !self.status.ires() || !address.format() {
            return Err(if self.status.cfis() { 0 } else { 0x25 });
        }
        let index = address.index(RemappableData::from_raw(data));
        if index >= irta.entries() {
            return Err(0x21);
        }
        let at = irta.table().get() + u64::from(index) * ENTRY_BYTES;
        let cached = self.interrupts.cached.get(&index).copied();
        let words = cached.unwrap_or_else(|| [self.see(frames, at), self.see(frames, at + 8)]);
        let entry = RemappedEntry::from_raw(words);
        if !entry.present() {
            return Err(0x22);
        }
        self.interrupts.cached.insert(index, words);
        let bits = [0xffff, 0xfffb, 0xfff9, 0xfff8][entry.sq() as usize];
        match entry.svt() {
            1 if u64::from(source & bits) != entry.sid() & u64::from(bits) => Err(0x26),
            2 if !(entry.buses().0..=entry.buses().1).contains(&((source >> 8) as u8)) => Err(0x26),
            _ => Ok(entry),
        }
    }
}

impl Fake {
    /// An interrupt message by a device, as the first unit serves it: the entry that was found, or the fault reason.
    pub(crate) fn interrupt(&self, source: u16, message: crate::Message) -> Result<RemappedEntry, u8> {
        let state = &mut *self.0.borrow_mut();
        state.units[0].interrupt(&state.frames, source, message.address, message.data)
    }

    /// A word of memory.
    pub(crate) fn word_at(&self, at: u64) -> u64 {
        word(&self.0.borrow().frames, at).unwrap_or(u64::MAX)
    }
}
