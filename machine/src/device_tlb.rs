//! Device-TLBs: translations that a device keeps for itself (PCIe ATS), and its answers to invalidations.
//!
//! With ATS on, a device asks the unit for a page's translation once and then issues requests with the translated address,
//! which the unit lets pass as they are if the requester's entry allows it (VT-d 4.1). What the device keeps goes stale like
//! every cache: only an invalidation that it was sent, and answered, removes it. Switching ATS off and on again does not: the
//! specification leaves that to the device.

use crate::fabric::Fabric;
use crate::memory::PAGE;
use crate::trace::TraceLine;
use crate::vtd::Unit;
use spec::SourceId;
use spec::invalidation::response;
use std::collections::{BTreeMap, BTreeSet};

/// A function's device-TLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ats {
    /// The function. Requests carry its own source-id.
    pub function: SourceId,
    /// Invalidations that it queues, 1 to 32; it loses those beyond.
    pub queue_depth: u8,
    /// How many invalidations it answers, before it falls silent; `None`: all.
    pub answers: Option<u64>,
}

/// Whose translations an invalidation names (PCIe 10.3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pasids {
    /// Requests without PASID.
    Without,
    /// Requests with this one.
    One(u32),
    /// Requests with any.
    Any,
}

impl Pasids {
    const fn cover(self, pasid: Option<u32>) -> bool {
        match (self, pasid) {
            (Self::Without, None) | (Self::Any, Some(_)) => true,
            (Self::One(named), Some(own)) => named == own,
            _ => false,
        }
    }
}

/// What an invalidation names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePages {
    /// The device.
    pub source: SourceId,
    /// Requests with which PASID, or without one.
    pub pasids: Pasids,
    /// First page number.
    pub first: u64,
    /// Last page number.
    pub last: u64,
}

/// A translation that a device keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Physical address of the page.
    pub(crate) page: u64,
    /// May be written.
    pub(crate) write: bool,
}

/// One device's translations.
#[derive(Debug)]
pub(crate) struct DeviceTlb {
    pub(crate) ats: Ats,
    /// By PASID of the requests and page number.
    kept: BTreeMap<(Option<u32>, u64), Kept>,
    asked: u64,
    pages: PageAnswers,
    /// Groups of page requests that are not answered.
    open: BTreeSet<u16>,
    next_group: u16,
}

/// How a device's page requests fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageAnswers {
    /// Groups asked for.
    pub asked: u64,
    /// Groups answered with success.
    pub succeeded: u64,
    /// Groups answered otherwise.
    pub failed: u64,
    /// Answers to groups that were not open: given twice, or to nobody.
    pub unexpected: u64,
    /// Groups not answered.
    pub open: u64,
}

impl DeviceTlb {
    pub(crate) fn new(ats: Ats) -> Self {
        Self {
            ats,
            kept: BTreeMap::new(),
            asked: 0,
            pages: PageAnswers::default(),
            open: BTreeSet::new(),
            next_group: 0,
        }
    }

    /// An invalidation arrives; says whether the device answers it.
    fn invalidate(&mut self, what: DevicePages) -> bool {
        let answers = self.ats.answers.is_none_or(|most| self.asked < most);
        self.asked += 1;
        if answers {
            let named = |pasid, page| what.pasids.cover(pasid) && (what.first..=what.last).contains(&page);
            self.kept.retain(|&(pasid, page), _| !named(pasid, page));
        }
        answers
    }
}

impl Fabric {
    fn device_tlb(&mut self, source: SourceId) -> Option<&mut DeviceTlb> {
        self.device_tlbs.iter_mut().find(|tlb| tlb.ats.function == source)
    }

    /// Invalidations that the device of `source` queues; none where there is none.
    pub(crate) fn invalidation_room(&self, source: SourceId) -> usize {
        let found = self.device_tlbs.iter().find(|tlb| tlb.ats.function == source);
        found.map_or(0, |tlb| usize::from(tlb.ats.queue_depth))
    }

    /// Whether the device of `source` will answer the next invalidation.
    pub(crate) fn device_answers(&self, source: SourceId) -> bool {
        let found = self.device_tlbs.iter().find(|tlb| tlb.ats.function == source);
        found.is_some_and(|tlb| tlb.ats.answers.is_none_or(|most| tlb.asked < most))
    }

    /// An invalidation arrives at a device; says whether it answers.
    pub(crate) fn invalidate_device(&mut self, what: DevicePages) -> bool {
        self.device_tlb(what.source).is_some_and(|tlb| tlb.invalidate(what))
    }

    /// The device of `source` asks for a page: the number of its group.
    pub(crate) fn new_page_group(&mut self, source: SourceId) -> Option<u16> {
        let tlb = self.device_tlb(source)?;
        let group = tlb.next_group;
        // Field PRGI has 9 bits.
        tlb.next_group = (group + 1) % 512;
        tlb.pages.asked += 1;
        tlb.open.insert(group);
        let at = self.now;
        self.trace.push(TraceLine::PageAsked { at, source, group });
        Some(group)
    }

    /// An answer arrives at the device of `source`.
    pub(crate) fn answer_page(&mut self, source: SourceId, group: u16, code: u64) {
        let Some(tlb) = self.device_tlb(source) else { return };
        let (open, success) = (tlb.open.remove(&group), code == response::SUCCESS);
        match (open, success) {
            (false, _) => tlb.pages.unexpected += 1,
            (true, true) => tlb.pages.succeeded += 1,
            (true, false) => tlb.pages.failed += 1,
        }
        let at = self.now;
        self.trace.push(TraceLine::PageAnswered { at, source, group, success, open });
    }

    /// How the page requests of `source` fared.
    pub(crate) fn page_answers(&self, source: SourceId) -> PageAnswers {
        let found = self.device_tlbs.iter().find(|tlb| tlb.ats.function == source);
        found.map_or(PageAnswers::default(), |tlb| PageAnswers { open: tlb.open.len() as u64, ..tlb.pages })
    }

    /// Page numbers that the device of `source` keeps translations of, for requests with `pasid` or without one.
    pub(crate) fn device_pages(&self, source: SourceId, pasid: Option<u32>) -> Vec<u64> {
        let found = self.device_tlbs.iter().find(|tlb| tlb.ats.function == source);
        let pages = |tlb: &DeviceTlb| {
            tlb.kept.keys().filter(|(own, _)| *own == pasid).map(|(_, page)| *page).collect()
        };
        found.map_or(Vec::new(), pages)
    }
}

/// The way of a request of a device with ATS on, within one page: `None` when the device has no translation for it and gets
/// none, and asks with the address that it has. `Some(None)` is a refusal.
pub(crate) fn route(
    unit: &mut Unit,
    (source, pasid): (SourceId, Option<u32>),
    iova: u64,
    bytes: u64,
    write: bool,
    fabric: &mut Fabric,
) -> Option<Option<u64>> {
    let number = iova / PAGE;
    let known = fabric.device_tlb(source)?.kept.get(&(pasid, number)).copied();
    let kept = match known.filter(|kept| kept.write || !write) {
        Some(kept) => kept,
        None => {
            let kept = unit.translation_request((source, pasid), iova, write, fabric)?;
            fabric.device_tlb(source)?.kept.insert((pasid, number), kept);
            kept
        }
    };
    let output = kept.page + iova % PAGE;
    Some(unit.translated_request(source, iova, output, bytes, write, fabric).then_some(output))
}
