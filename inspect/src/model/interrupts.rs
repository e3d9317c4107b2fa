//! The interrupt remapping table and the invalidation queue of a unit.

use super::{Limits, Problem};
use crate::image::{self, Memory};
use crate::registers::Registers;
use audit::Image;
use spec::interrupt::{PostedEntry, RemappedEntry};
use spec::invalidation::kind;
use spec::{PAGE_SIZE, PhysAddr};

/// An interrupt remapping table.
#[derive(Debug)]
pub struct Interrupts {
    /// Where it lies.
    pub at: PhysAddr,
    /// Entries it has room for.
    pub size: u64,
    /// Destinations have 32 bits.
    pub extended: bool,
    /// Whether interrupt remapping is on; `None` when GSTS is not known.
    pub on: Option<bool>,
    /// Entries that are present: index and content.
    pub entries: Vec<(u32, [u64; 2])>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Interrupts {
    /// The entries in remapped format.
    pub fn remapped(&self) -> impl Iterator<Item = (u32, RemappedEntry)> {
        let all = self.entries.iter().map(|&(index, raw)| (index, RemappedEntry::from_raw(raw)));
        all.filter(|(_, entry)| !entry.im())
    }

    /// The entries in posted format.
    pub fn posted(&self) -> impl Iterator<Item = (u32, PostedEntry)> {
        let all = self.entries.iter().map(|&(index, raw)| (index, PostedEntry::from_raw(raw)));
        all.filter(|(_, entry)| entry.im())
    }
}

/// Reads the interrupt table that IRTA names, if it names one.
pub(super) fn table(memory: &Memory, registers: &Registers, limits: Limits) -> Option<Interrupts> {
    let irta = registers.irta()?;
    let on = registers.gsts().map(|gsts| gsts.ires());
    if irta.irta() == 0 && on != Some(true) {
        return None;
    }
    let at = PhysAddr::new(irta.irta() << 12);
    let size = 2 << irta.s();
    let mut found =
        Interrupts { at, size, extended: irta.eime(), on, entries: Vec::new(), problems: Vec::new() };
    for page in 0..(16 * size).div_ceil(PAGE_SIZE) {
        let here = at.plus(page * PAGE_SIZE);
        let first = page * (PAGE_SIZE / 16);
        let mut words = vec![0; 2 * (size - first).min(PAGE_SIZE / 16) as usize];
        if memory.read(here, &mut words).is_err() {
            if found.problems.len() < limits.problems {
                let what = "the image does not hold it".into();
                let last = first + words.len() as u64 / 2 - 1;
                let subject = format!("interrupt table entries {first} to {last}");
                found.problems.push(Problem { at: here, subject, what });
            }
            continue;
        }
        let present = words.as_chunks::<2>().0.iter().enumerate().filter(|(_, raw)| raw[0] & 1 == 1);
        found.entries.extend(present.map(|(slot, raw)| (first as u32 + slot as u32, *raw)));
    }
    Some(found)
}

/// An invalidation queue.
#[derive(Debug)]
pub struct Queue {
    /// Where it lies.
    pub at: PhysAddr,
    /// Descriptors it has room for.
    pub size: u64,
    /// Descriptors have 256 bits.
    pub wide: bool,
    /// The descriptor that the unit reads next; `None` when IQH is not known.
    pub head: Option<u64>,
    /// The descriptor that software writes next; `None` when IQT is not known.
    pub tail: Option<u64>,
    /// Whether queued invalidation is on; `None` when GSTS is not known.
    pub on: Option<bool>,
    /// All descriptors, as far as the image holds them.
    pub descriptors: Vec<Descriptor>,
    /// The first page of the queue that the image does not hold.
    pub missing: Option<PhysAddr>,
}

/// A descriptor: 2 or 4 words, the rest zero.
pub type Descriptor = [u64; 4];

impl Queue {
    /// Whether the unit has not carried out descriptor `index` yet.
    #[must_use]
    pub fn is_pending(&self, index: u64) -> bool {
        match (self.head, self.tail) {
            (Some(head), Some(tail)) if head <= tail => head <= index && index < tail,
            (Some(head), Some(tail)) => index >= head || index < tail,
            _ => false,
        }
    }
}

/// Reads the invalidation queue that IQA names, if it names one.
pub(super) fn queue(memory: &Memory, registers: &Registers) -> Option<Queue> {
    let iqa = registers.iqa()?;
    let on = registers.gsts().map(|gsts| gsts.qies());
    if iqa.iqa() == 0 && on != Some(true) {
        return None;
    }
    let at = PhysAddr::new(iqa.iqa() << 12);
    let bytes = PAGE_SIZE << iqa.qs();
    // QEMU 7.2 heeds IQA.DW but reads it as zero.
    let wide = iqa.dw()
        || registers.ecap().is_some_and(|ecap| ecap.smts()) && every_other_is_empty(memory, at, bytes);
    let width = if wide { 4 } else { 2 };
    let shift = if wide { 5 } else { 4 };
    let mut found = Queue {
        at,
        size: bytes >> shift,
        wide,
        head: registers.iqh().map(|iqh| iqh.raw() >> shift),
        tail: registers.iqt().map(|iqt| iqt.raw() >> shift),
        on,
        descriptors: Vec::new(),
        missing: None,
    };
    for page in 0..bytes / PAGE_SIZE {
        let here = at.plus(page * PAGE_SIZE);
        let Ok(words) = image::table(memory, here) else {
            found.missing = Some(here);
            break;
        };
        found.descriptors.extend(words.chunks_exact(width).map(|part| {
            let mut descriptor = [0; 4];
            descriptor[..width].copy_from_slice(part);
            descriptor
        }));
    }
    Some(found)
}

/// Whether descriptors of 128 bits stand in every other place alone, as those of 256 bits do: their upper halves are mostly
/// zero, and a unit stops at an empty descriptor.
fn every_other_is_empty(memory: &Memory, at: PhysAddr, bytes: u64) -> bool {
    let mut some = false;
    for page in 0..bytes / PAGE_SIZE {
        let Ok(words) = image::table(memory, at.plus(page * PAGE_SIZE)) else { break };
        let halves = words.as_chunks::<4>().0;
        if halves.iter().any(|four| four[2] != 0 || four[3] != 0) {
            return false;
        }
        some |= halves.iter().any(|four| four[0] != 0);
    }
    some
}

/// What a descriptor is for, in words.
#[must_use]
pub fn descriptor_name(descriptor: &Descriptor) -> &'static str {
    match descriptor[0] & 0xf | (descriptor[0] >> 9 & 7) << 4 {
        kind::CONTEXT => "context cache",
        kind::IOTLB => "IOTLB",
        kind::DEVICE_TLB => "device-TLB",
        kind::INTERRUPT => "interrupt cache",
        kind::WAIT => "wait",
        kind::PASID_IOTLB => "IOTLB by PASID",
        kind::PASID_CACHE => "PASID cache",
        kind::PASID_DEVICE_TLB => "device-TLB by PASID",
        kind::PAGE_GROUP_RESPONSE => "page group response",
        kind::PAGE_STREAM_RESPONSE => "page stream response",
        0 => "empty",
        _ => "unknown",
    }
}
