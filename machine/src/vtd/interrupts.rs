//! Interrupt requests (VT-d 5): the table that IRTA named when it was last latched, a cache of its entries that goes stale,
//! source-id validation, posted interrupts.
//!
//! A request either becomes an interrupt for a processor, or is blocked; most of the reasons are recorded like those of a
//! refused DMA. A present entry is cached until it is invalidated, whatever becomes of it in memory; with caching mode so is
//! one that is not present.

use super::unit::Unit;
use crate::fabric::Fabric;
use crate::trace::TraceLine;
use spec::SourceId;
use spec::fault::Reason;
use spec::interrupt::{
    CompatibilityAddress, CompatibilityData, ENTRY_BYTES, MESSAGE_BASE, PostedDescriptor, PostedEntry,
    RemappableAddress, RemappableData, RemappedEntry, delivery, entry_format, source_check,
};
use spec::invalidation::InterruptInvalidate;
use spec::regs::{Cap, Irta};
use std::collections::BTreeMap;

/// Bit 0 of an entry's first word, and the bit behind it that keeps faults from being recorded.
const FPD: u64 = 1 << 1;
/// Words of a posted-interrupt descriptor that hold requests.
const REQUEST_WORDS: u64 = 4;

/// An interrupt message as a function sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Where the write goes: [`MESSAGE_BASE`] in the upper twelve bits.
    pub address: u32,
    /// What is written.
    pub data: u32,
}

/// An interrupt on its way to a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt {
    /// Its vector.
    pub vector: u8,
    /// The processor's id, or a set of processors.
    pub destination: u32,
    /// It is a set.
    pub logical: bool,
}

/// Interrupt remapping of a unit.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    /// IRTA as SIRTP latched it.
    pub(super) table: Irta,
    cached: BTreeMap<u32, [u64; 2]>,
}

impl Interrupts {
    /// Forgets what an invalidation names.
    pub(super) fn forget(&mut self, what: Option<(u16, u8)>) {
        self.cached.retain(|index, _| {
            what.is_some_and(|(first, order)| index >> order != u32::from(first) >> order)
        });
    }
}

/// What an interrupt entry cache invalidation names: everything, or `2^order` entries; `Err` beyond ECAP.MHMV.
pub(super) fn named(d: InterruptInvalidate, most: u64) -> Result<Option<(u16, u8)>, ()> {
    match d.g() {
        false => Ok(None),
        true if d.im() <= most => Ok(Some((d.iidx() as u16, d.im() as u8))),
        true => Err(()),
    }
}

/// A request that goes no further: why, about which index, and whether it is to be recorded.
struct Blocked {
    reason: Reason,
    index: u32,
    quiet: bool,
}

impl Unit {
    /// What comes of a message of `source`: an interrupt for a processor, or nothing. The trace hears of it.
    pub(crate) fn interrupt(
        &mut self,
        source: SourceId,
        message: Message,
        fabric: &mut Fabric,
    ) -> Option<Interrupt> {
        let address = RemappableAddress::from_raw(message.address);
        let (at, unit) = (fabric.now, self.config.id);
        if address.base() != MESSAGE_BASE {
            return None;
        }
        // A message does not pass the writes sent before it.
        fabric.land_all();
        let done = match (self.status.ires(), address.format()) {
            (false, _) => Ok(Some(compatible(message))),
            (true, false) => self.compatibility(message),
            (true, true) => self.remap(source, address, RemappableData::from_raw(message.data), fabric),
        };
        match done {
            Ok(interrupt) => {
                let vector = interrupt.map(|i| i.vector);
                fabric.trace.push(TraceLine::Interrupt { at, unit, source, vector });
                interrupt
            }
            Err(Blocked { reason, index, quiet }) => {
                // The record has the index in the upper bits of its address (VT-d 11.4.14).
                let address = u64::from(index) << 48;
                let recorded = !quiet && self.faults.record(source, address, reason, true);
                fabric.trace.push(TraceLine::InterruptBlocked { at, unit, source, index, reason, recorded });
                None
            }
        }
    }

    /// In compatibility format a message passes only where CFI lets it, and never in extended mode (VT-d 5.1.4).
    fn compatibility(&self, message: Message) -> Result<Option<Interrupt>, Blocked> {
        if self.status.cfis() && !self.interrupts.table.eime() {
            return Ok(Some(compatible(message)));
        }
        Err(Blocked { reason: Reason::COMPATIBILITY_BLOCKED, index: 0, quiet: false })
    }

    fn remap(
        &mut self,
        source: SourceId,
        address: RemappableAddress,
        data: RemappableData,
        fabric: &mut Fabric,
    ) -> Result<Option<Interrupt>, Blocked> {
        let index = address.index(data);
        let blocked = |reason, quiet| Blocked { reason, index: index & 0xffff, quiet };
        if data.raw() >> 16 != 0 {
            return Err(blocked(Reason::INTERRUPT_RESERVED, false));
        }
        if index >= self.interrupts.table.entries() {
            return Err(blocked(Reason::INTERRUPT_INDEX, false));
        }
        let words = self.entry(index, fabric).ok_or(blocked(Reason::INTERRUPT_ACCESS, false))?;
        let (entry, quiet) = (RemappedEntry::from_raw(words), words[0] & FPD != 0);
        if !entry.present() {
            return Err(blocked(Reason::INTERRUPT_NOT_PRESENT, quiet));
        }
        let posted = entry.im() == entry_format::POSTED;
        if is_malformed(words, posted, self.config.cap) {
            return Err(blocked(Reason::INTERRUPT_ENTRY_RESERVED, quiet));
        }
        if !may_ask(entry, source) {
            return Err(blocked(Reason::INTERRUPT_SOURCE, quiet));
        }
        if posted {
            let entry = PostedEntry::from_raw(words);
            return self.post(entry, fabric).map_err(|reason| blocked(reason, quiet));
        }
        let extended = self.interrupts.table.eime();
        let destination = if extended { entry.dst() as u32 } else { entry.xapic_destination().into() };
        Ok(Some(Interrupt { vector: entry.v() as u8, destination, logical: entry.dm() }))
    }

    /// An entry as hardware knows it: from the cache, or from memory as this unit's walks see it.
    fn entry(&mut self, index: u32, fabric: &Fabric) -> Option<[u64; 2]> {
        if let Some(cached) = self.interrupts.cached.get(&index) {
            return Some(*cached);
        }
        let at = self.interrupts.table.table().get() + u64::from(index) * ENTRY_BYTES;
        let words: [u64; 2] = self.load_all(at, fabric)?;
        if words[0] & 1 == 1 || self.config.cap.cm() {
            self.interrupts.cached.insert(index, words);
        }
        Some(words)
    }

    /// Posts a request: the vector's bit, then a notification unless one is under way or none is wanted (VT-d 5.2.3). The
    /// descriptor is read and written as one.
    fn post(&self, entry: PostedEntry, fabric: &mut Fabric) -> Result<Option<Interrupt>, Reason> {
        let at = entry.descriptor().get();
        let mut words = [0; 8];
        for (n, word) in (0..).zip(&mut words) {
            *word = fabric.memory.load(at + 8 * n).map_err(|_| Reason::POSTED_ACCESS)?;
        }
        let descriptor = PostedDescriptor::from_raw(words);
        let reserved = PostedDescriptor::RESERVED;
        if words.iter().zip(reserved).any(|(word, reserved)| word & reserved != 0) {
            return Err(Reason::POSTED_RESERVED);
        }
        let vector = entry.vv();
        words[(vector / 64 % REQUEST_WORDS) as usize] |= 1 << (vector % 64);
        let notify = !descriptor.on() && (!descriptor.sn() || entry.urg());
        let posted = PostedDescriptor::from_raw(words).with_on(descriptor.on() || notify);
        for (n, word) in (0..).zip(posted.raw()) {
            fabric.memory.store_snooped(at + 8 * n, word).map_err(|_| Reason::POSTED_ACCESS)?;
        }
        let extended = self.interrupts.table.eime();
        let ndst = descriptor.ndst() as u32;
        let destination = if extended { ndst } else { ndst >> 8 & 0xff };
        Ok(notify.then_some(Interrupt { vector: descriptor.nv() as u8, destination, logical: false }))
    }
}

/// A message that says itself which interrupt it is.
pub(crate) fn compatible(message: Message) -> Interrupt {
    let vector = CompatibilityData::from_raw(message.data).vector() as u8;
    let address = CompatibilityAddress::from_raw(message.address);
    Interrupt { vector, destination: address.destid(), logical: address.dm() }
}

/// Whether an entry has bits or codes that are reserved (VT-d 9.10, 9.11).
fn is_malformed(words: [u64; 2], posted: bool, cap: Cap) -> bool {
    let reserved = if posted { PostedEntry::RESERVED } else { RemappedEntry::RESERVED };
    let entry = RemappedEntry::from_raw(words);
    let mode = matches!(entry.dlm(), 3 | 6) || entry.dlm() == delivery::EXTINT && entry.tm();
    words.iter().zip(reserved).any(|(word, reserved)| word & reserved != 0)
        || entry.svt() == 3
        || posted && !cap.pi()
        || !posted && mode
}

/// Whether the source may ask for the entry (VT-d 5.1.3).
fn may_ask(entry: RemappedEntry, source: SourceId) -> bool {
    match entry.svt() {
        source_check::SOURCE_ID => {
            let counts = [0xffff, 0xfffb, 0xfff9, 0xfff8][entry.sq() as usize & 3];
            (source.raw() ^ entry.source().raw()) & counts == 0
        }
        source_check::BUS_RANGE => {
            let (first, last) = entry.buses();
            (first..=last).contains(&source.bus())
        }
        _ => true,
    }
}
