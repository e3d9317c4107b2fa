//! The queue of page requests (VT-d 7.4): what devices ask for takes a while to come in, lies in memory until software reads
//! it, and is answered by descriptors of the invalidation queue. A request that has no room is answered by hardware.

use crate::fabric::Fabric;
use crate::memory::PAGE;
use spec::invalidation::{PAGE_REQUEST_KIND, PageRequest, response};
use spec::regs::{Pqa, Prs};
use spec::{PhysAddr, SourceId};

const ENTRY: u64 = 32;
const OFFSET_MASK: u64 = 0x7_ffe0;

/// The queue of one unit.
#[derive(Debug, Default)]
pub(super) struct PageQueue {
    address: u64,
    head: u64,
    tail: u64,
    status: Prs,
    coming: Vec<(u64, PageRequest)>,
}

impl PageQueue {
    pub(super) fn head(&self) -> u64 {
        self.head
    }
    pub(super) fn tail(&self) -> u64 {
        self.tail
    }
    pub(super) fn address(&self) -> u64 {
        self.address
    }
    pub(super) fn status(&self) -> Prs {
        self.status
    }
    pub(super) fn set_head(&mut self, value: u64) {
        self.head = value & OFFSET_MASK;
    }
    pub(super) fn set_tail(&mut self, value: u64) {
        self.tail = value & OFFSET_MASK;
    }
    pub(super) fn set_address(&mut self, value: u64) {
        self.address = value;
    }
    pub(super) fn clear(&mut self, written: Prs) {
        let (ppr, pro) = (self.status.ppr() && !written.ppr(), self.status.pro() && !written.pro());
        self.status = Prs::ZERO.with_ppr(ppr).with_pro(pro);
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.coming.iter().map(|(due, _)| *due).min()
    }

    /// A device asks for one page, in a group of its own.
    pub(super) fn ask(&mut self, source: SourceId, group: u16, page: u64, fabric: &mut Fabric) {
        let request = PageRequest::ZERO
            .with_kind(PAGE_REQUEST_KIND)
            .with_rid(u64::from(source.raw()))
            .with_wrr(true)
            .with_rdr(true)
            .with_lpig(true)
            .with_prgi(u64::from(group))
            .with_addr(page);
        let earliest = self.coming.last().map_or(0, |(due, _)| *due);
        let due = (fabric.now + fabric.dice.between(500, 20_000)).max(earliest);
        self.coming.push((due, request));
    }

    /// The next request that is due by `now`.
    pub(super) fn take_due(&mut self, now: u64) -> Option<PageRequest> {
        let first = self.coming.first().filter(|(due, _)| *due <= now)?.1;
        self.coming.remove(0);
        Some(first)
    }

    /// A request comes in. `Some` is the code that hardware answers with by itself.
    pub(super) fn land(&mut self, request: PageRequest, fabric: &mut Fabric) -> Option<u64> {
        let bytes = PAGE << Pqa::from_raw(self.address).pqs();
        let next = (self.tail + ENTRY) % bytes;
        if self.status.pro() || next == self.head {
            self.status = self.status.with_pro(true);
            // The device is to ask again.
            return Some(response::SUCCESS);
        }
        let at = PhysAddr::new(Pqa::from_raw(self.address).pqa() << 12).plus(self.tail).get();
        let words: Vec<u8> = request.raw().into_iter().flat_map(u64::to_le_bytes).collect();
        // An address outside memory is a write that nobody answers.
        let _ = fabric.memory.write_snooped(at, &words);
        self.tail = next;
        self.status = self.status.with_ppr(true);
        None
    }
}
