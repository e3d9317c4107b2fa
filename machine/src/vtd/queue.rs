//! The invalidation queue (VT-d 6.5.2): descriptors are fetched one by one, work on them takes time and overlaps, and only
//! a wait descriptor tells that what came before it is done.
//!
//! The head moves on when a descriptor is fetched, not when its work is done: software that takes the head for
//! completion is found out here.

use super::interrupts::named;
use crate::device_tlb::{DevicePages, Pasids};
use crate::fabric::Fabric;
use crate::faults::QueueFaultKind;
use crate::memory::PAGE;
use crate::trace::Invalidation;
use spec::SourceId;
use spec::invalidation::{
    ContextInvalidate, DeviceTlbInvalidate, InterruptInvalidate, IotlbInvalidate, PageGroupResponse,
    PasidCacheInvalidate, PasidDeviceTlbInvalidate, PasidIotlbInvalidate, Wait, granularity, kind,
    pasid_cache_granularity, pasid_iotlb_granularity,
};
use spec::regs::{Cap, Ecap, Iqa};

/// What IQERCD.IQEI says of a stopped queue (VT-d 11.4.9.9).
pub mod error {
    /// The tail lies outside the queue.
    pub const TAIL: u8 = 1;
    /// A descriptor could not be read.
    pub const FETCH: u8 = 2;
    /// No such type.
    pub const TYPE: u8 = 3;
    /// Reserved bits or codes.
    pub const RESERVED: u8 = 4;
}

/// A descriptor as the unit understood it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Forget; `drain` lands the writes under way first.
    Forget {
        /// What.
        what: Invalidation,
        /// Drain writes.
        drain: bool,
    },
    /// Have a device forget.
    Device {
        /// What.
        what: DevicePages,
        /// How many such may be on their way to this device.
        pending: usize,
    },
    /// Answer a device's page requests.
    Respond {
        /// The device.
        source: SourceId,
        /// The group of requests.
        group: u16,
        /// The answer.
        code: u64,
    },
    /// Tell that everything before is done.
    Wait(Wait),
}

/// Work that was fetched and is not done.
#[derive(Debug, Clone, Copy)]
struct Work {
    number: u64,
    done_at: u64,
    command: Command,
    /// Sent to a device that had no room for it.
    lost: bool,
}

/// The queue of one unit.
#[derive(Debug, Default)]
pub struct Queue {
    /// Switched on.
    pub enabled: bool,
    /// Base and size.
    pub address: Iqa,
    /// Byte offset of the next descriptor to fetch.
    pub head: u64,
    /// Byte offset behind the last descriptor.
    pub tail: u64,
    /// Why the queue stopped; zero while it has not.
    pub error: u8,
    /// A device did not answer (FSTS.ITE); nothing is fetched while this is so.
    pub unanswered: Option<SourceId>,
    /// An answer came that nobody waits for (FSTS.ICE).
    pub unexpected: Option<SourceId>,
    /// A wait asked for an interrupt (ICS.IWC).
    pub wait_completed: bool,
    /// How long a device may take to answer, in nanoseconds.
    pub device_patience: u64,
    /// Where a descriptor stands that was refused on demand, and the descriptor.
    disliked: Option<(u64, [u64; 2])>,
    work: Vec<Work>,
    next_number: u64,
    held: bool,
    fetch_at: u64,
    last_was_wait: bool,
}

impl Queue {
    /// A queue that is off, of a unit that waits for devices so many nanoseconds.
    #[must_use]
    pub fn new(device_patience: u64) -> Self {
        Self { device_patience, ..Self::default() }
    }

    /// An error was cleared, and the queue goes on when its tail is written.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// Software moved the tail, cleared an error or switched the queue on: fetching starts soon, when there is something.
    pub(crate) fn kick(&mut self, fabric: &mut Fabric) {
        self.held = false;
        if self.next_fetch().is_none() {
            return;
        }
        self.fetch_at = self.fetch_at.max(fabric.now + fabric.dice.between(50, 400));
    }

    /// Whether nothing waits to be fetched and nothing is being worked on.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.head == self.tail && self.work.is_empty()
    }

    /// Whether QEMU would let the queue be switched off.
    #[must_use]
    pub fn ended_with_wait(&self) -> bool {
        self.idle() && self.last_was_wait
    }

    /// Switched on: empty, from the start.
    pub fn start(&mut self) {
        self.enabled = true;
        self.head = 0;
        self.last_was_wait = false;
    }

    /// Switched off. Work that was fetched is still done.
    pub fn stop(&mut self) {
        self.enabled = false;
        self.head = 0;
    }

    /// When something happens here next.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        let done = self.work.iter().filter(|w| self.may_finish(w)).map(|w| w.done_at).min();
        [done, self.next_fetch()].into_iter().flatten().min()
    }

    fn next_fetch(&self) -> Option<u64> {
        let fenced = self.work.iter().any(|w| matches!(w.command, Command::Wait(wait) if wait.fence()));
        let stopped = self.held || self.error != 0 || self.unanswered.is_some();
        let ready = self.enabled && !stopped && self.head != self.tail && !fenced;
        ready.then_some(self.fetch_at)
    }

    /// A wait finishes after all work before it.
    fn may_finish(&self, work: &Work) -> bool {
        !matches!(work.command, Command::Wait(_)) || self.work.iter().all(|w| w.number >= work.number)
    }

    /// Does what is due by now. Returns the commands that finished, in their order of finishing.
    pub(crate) fn run(&mut self, fabric: &mut Fabric, cap: Cap, ecap: Ecap) -> Vec<Command> {
        let mut finished = Vec::new();
        while let Some(i) = self.due_work(fabric.now) {
            let work = self.work.remove(i);
            if let Command::Device { what, .. } = work.command
                && (work.lost || !fabric.invalidate_device(what))
            {
                self.time_out(what.source);
                continue;
            }
            finished.push(work.command);
        }
        if self.next_fetch().is_some_and(|at| at <= fabric.now) {
            self.fetch(fabric, cap, ecap);
        }
        finished
    }

    fn due_work(&self, now: u64) -> Option<usize> {
        let due = self.work.iter().enumerate().filter(|(_, w)| w.done_at <= now && self.may_finish(w));
        due.min_by_key(|(_, w)| w.done_at).map(|(i, _)| i)
    }

    fn fetch(&mut self, fabric: &mut Fabric, cap: Cap, ecap: Ecap) {
        let size = PAGE << self.address.qs();
        // Wide descriptors, of 256 bits, end in 128 bits of zeroes here.
        let wide = self.address.dw();
        let bytes = if wide { 32 } else { 16 };
        if self.tail >= size || !self.tail.is_multiple_of(bytes) {
            self.error = error::TAIL;
            return;
        }
        let base = (self.address.iqa() << 12) + self.head;
        // Fetching snoops whatever ECAP.C says (VT-d 11.4.3).
        let (Ok(low), Ok(high)) = (fabric.memory.load(base), fabric.memory.load(base + 8)) else {
            self.error = error::FETCH;
            return;
        };
        let is_zero = |at| fabric.memory.load(at).map(|word| word == 0);
        let end_is_zero = match (wide, is_zero(base + 16), is_zero(base + 24)) {
            (false, ..) => true,
            (true, Ok(third), Ok(fourth)) => third && fourth,
            (true, ..) => {
                self.error = error::FETCH;
                return;
            }
        };
        let command = if end_is_zero { decode([low, high], wide, cap, ecap) } else { Err(error::RESERVED) };
        let fault = fabric.injector.queue_fault();
        if fault == Some(QueueFaultKind::Refused) {
            self.disliked = Some((base, [low, high]));
        }
        match command {
            _ if self.disliked == Some((base, [low, high])) => self.error = error::TYPE,
            Ok(command) => {
                let mut done_at = fabric.now + fabric.dice.between(100, 2_500);
                let mut lost = false;
                if let Command::Device { what, pending } = command {
                    let under_way = self.device_work(what.source).count();
                    if under_way >= pending {
                        // The device has enough to do: later.
                        let first = self.device_work(what.source).map(|w| w.done_at).min();
                        self.fetch_at = first.unwrap_or(done_at) + 1;
                        return;
                    }
                    lost = under_way >= fabric.invalidation_room(what.source);
                    if lost || !fabric.device_answers(what.source) {
                        done_at = fabric.now + self.device_patience;
                    }
                }
                self.last_was_wait = matches!(command, Command::Wait(_));
                self.work.push(Work { number: self.next_number, done_at, command, lost });
                self.next_number += 1;
                self.head = (self.head + bytes) % size;
                self.fetch_at = fabric.now + fabric.dice.between(30, 300);
                match fault {
                    Some(QueueFaultKind::Unanswered(source)) => self.time_out(source),
                    Some(QueueFaultKind::Unexpected(source)) => {
                        self.unexpected = self.unexpected.or(Some(source));
                    }
                    _ => {}
                }
            }
            Err(info) => self.error = info,
        }
    }
    /// A device did not answer: waits and device-TLB invalidations that were fetched are dropped, and fetching stops
    /// (VT-d 6.5.2.10).
    pub(crate) fn time_out(&mut self, source: SourceId) {
        self.unanswered = self.unanswered.or(Some(source));
        self.work.retain(|work| !matches!(work.command, Command::Wait(_) | Command::Device { .. }));
    }

    fn device_work(&self, source: SourceId) -> impl Iterator<Item = &Work> {
        let of = move |w: &&Work| matches!(w.command, Command::Device { what, .. } if what.source == source);
        self.work.iter().filter(of)
    }
}

/// A wait's visible effects: the status word in memory, the completion bit.
pub(crate) fn complete_wait(queue: &mut Queue, wait: Wait, fabric: &mut Fabric) {
    if wait.sw() {
        let at = wait.staddr() << 2;
        let status = (wait.stdata() as u32).to_le_bytes();
        // A status address outside memory is a write that nobody answers.
        let _ = fabric.memory.write_snooped(at, &status);
    }
    queue.wait_completed |= wait.interrupt();
}

/// Reads a descriptor; `Err` is the code for IQERCD.IQEI.
fn decode(raw: [u64; 2], wide: bool, cap: Cap, ecap: Ecap) -> Result<Command, u8> {
    let reserved = |bits: [u64; 2]| raw[0] & bits[0] != 0 || raw[1] & bits[1] != 0;
    let checked = |bits, command| if reserved(bits) { Err(error::RESERVED) } else { Ok(command) };
    if ContextInvalidate::from_raw(raw).kind_hi() != 0 {
        return Err(error::TYPE);
    }
    match ContextInvalidate::from_raw(raw).kind() {
        kind::CONTEXT => {
            let d = ContextInvalidate::from_raw(raw);
            let what = context_scope(d.g(), d.did(), d.sid(), d.fm()).ok_or(error::RESERVED)?;
            checked(ContextInvalidate::RESERVED, Command::Forget { what, drain: false })
        }
        kind::IOTLB => {
            let d = IotlbInvalidate::from_raw(raw);
            let what =
                iotlb_scope(d.g(), d.did(), d.addr() << 12, d.am(), d.ih(), cap).ok_or(error::RESERVED)?;
            checked(IotlbInvalidate::RESERVED, Command::Forget { what, drain: d.dw() && cap.dwd() })
        }
        kind::DEVICE_TLB if ecap.dt() => {
            let d = DeviceTlbInvalidate::from_raw(raw);
            let physical = d.pfsid_low() != 0 || d.pfsid_high() != 0;
            if physical && !ecap.dit() {
                return Err(error::RESERVED);
            }
            let what = device_pages(d.sid(), Pasids::Without, d.addr(), d.s());
            checked(DeviceTlbInvalidate::RESERVED, Command::Device { what, pending: pending(d.mip()) })
        }
        kind::PASID_DEVICE_TLB if ecap.dt() && ecap.smts() && wide => {
            let d = PasidDeviceTlbInvalidate::from_raw(raw);
            let physical = d.pfsid_low() != 0 || d.pfsid_high() != 0;
            if physical && !ecap.dit() {
                return Err(error::RESERVED);
            }
            let pasids = if d.g() { Pasids::Any } else { Pasids::One(d.pasid() as u32) };
            let what = device_pages(d.sid(), pasids, d.addr(), d.s());
            checked(PasidDeviceTlbInvalidate::RESERVED, Command::Device { what, pending: pending(d.mip()) })
        }
        kind::INTERRUPT if ecap.ir() => {
            let d = InterruptInvalidate::from_raw(raw);
            let named = named(d, ecap.mhmv()).map_err(|()| error::RESERVED)?;
            let what = Invalidation::InterruptEntries(named);
            checked(InterruptInvalidate::RESERVED, Command::Forget { what, drain: false })
        }
        kind::PASID_CACHE if ecap.smts() => {
            let d = PasidCacheInvalidate::from_raw(raw);
            let what = pasid_scope(d).ok_or(error::RESERVED)?;
            checked(PasidCacheInvalidate::RESERVED, Command::Forget { what, drain: false })
        }
        kind::PASID_IOTLB if ecap.smts() && wide => {
            let d = PasidIotlbInvalidate::from_raw(raw);
            let what = pasid_pages(d, cap).ok_or(error::RESERVED)?;
            checked(PasidIotlbInvalidate::RESERVED, Command::Forget { what, drain: false })
        }
        kind::PAGE_GROUP_RESPONSE if ecap.prs() && ecap.smts() => {
            let d = PageGroupResponse::from_raw(raw);
            let source = SourceId::from_raw(d.rid() as u16);
            let command = Command::Respond { source, group: d.prgi() as u16, code: d.rc() };
            checked(PageGroupResponse::RESERVED, command)
        }
        kind::WAIT => checked(Wait::RESERVED, Command::Wait(Wait::from_raw(raw))),
        _ => Err(error::TYPE),
    }
}

/// What a device-TLB command names: the lowest zero bit of the page number says how many pages, if `several`.
fn device_pages(source: u64, pasids: Pasids, page: u64, several: bool) -> DevicePages {
    let count = if several { 2_u64 << page.trailing_ones().min(51) } else { 1 };
    let first = page & !(count - 1);
    DevicePages { source: SourceId::from_raw(source as u16), pasids, first, last: first + (count - 1) }
}

/// Field MIP: 0 stands for 32.
fn pending(mip: u64) -> usize {
    if mip == 0 { 32 } else { mip as usize }
}

/// What a PASID-cache command names; `None` for the reserved code.
fn pasid_scope(d: PasidCacheInvalidate) -> Option<Invalidation> {
    let (domain, pasid) = (d.did() as u16, d.pasid() as u32);
    match d.g() {
        pasid_cache_granularity::DOMAIN => Some(Invalidation::PasidsOfDomain(domain)),
        pasid_cache_granularity::PASID => Some(Invalidation::PasidOf { domain, pasid }),
        pasid_cache_granularity::GLOBAL => Some(Invalidation::Pasids),
        _ => None,
    }
}

/// What a PASID-based IOTLB command names; `None` for a reserved code or a mask beyond CAP.MAMV.
fn pasid_pages(d: PasidIotlbInvalidate, cap: Cap) -> Option<Invalidation> {
    let (domain, pasid) = (d.did() as u16, d.pasid() as u32);
    match d.g() {
        pasid_iotlb_granularity::PASID => Some(Invalidation::TranslationsOfPasid { domain, pasid }),
        pasid_iotlb_granularity::PAGE if d.am() <= cap.mamv() => {
            let start = (d.addr() << 12) & !((PAGE << d.am()) - 1);
            Some(Invalidation::PagesOfPasid { domain, pasid, start, order: d.am() as u8 })
        }
        _ => None,
    }
}

/// What a context-cache command of granularity `g` names; `None` for the reserved code.
pub(crate) fn context_scope(g: u64, domain: u64, source: u64, mask: u64) -> Option<Invalidation> {
    let (domain, source) = (domain as u16, SourceId::from_raw(source as u16));
    match g {
        granularity::GLOBAL => Some(Invalidation::Contexts),
        granularity::DOMAIN => Some(Invalidation::ContextsOfDomain(domain)),
        granularity::SELECTIVE => Some(Invalidation::ContextOf { domain, source, mask: mask as u8 }),
        _ => None,
    }
}

/// What an IOTLB command of granularity `g` names; `None` for the reserved code or a mask beyond CAP.MAMV.
pub(crate) fn iotlb_scope(
    g: u64,
    domain: u64,
    address: u64,
    mask: u64,
    leaf_only: bool,
    cap: Cap,
) -> Option<Invalidation> {
    let domain = domain as u16;
    match g {
        granularity::GLOBAL => Some(Invalidation::Translations),
        granularity::DOMAIN => Some(Invalidation::TranslationsOfDomain(domain)),
        granularity::SELECTIVE if !cap.psi() => Some(Invalidation::TranslationsOfDomain(domain)),
        granularity::SELECTIVE if mask <= cap.mamv() => {
            let start = address & !((PAGE << mask) - 1);
            Some(Invalidation::Pages { domain, start, order: mask as u8, leaf_only })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UnitConfig;
    use crate::dice::Dice;
    use crate::faults::Injector;
    use crate::memory::{Memory, StorePath};

    const QUEUE: u64 = 0x10_0000;

    struct Bench {
        queue: Queue,
        fabric: Fabric,
    }

    impl Bench {
        fn new(seed: u64) -> Self {
            let memory = Memory::new(&[(QUEUE, 1 << 20)], StorePath::default());
            let fabric = Fabric::new(memory, Dice::new(seed), Injector::default());
            let mut queue = Queue { address: Iqa::from_raw(QUEUE), ..Queue::default() };
            queue.start();
            Self { queue, fabric }
        }
        fn put(&mut self, descriptors: &[[u64; 2]]) {
            for words in descriptors {
                let at = QUEUE + self.queue.tail;
                self.fabric.memory.store_snooped(at, words[0]).unwrap();
                self.fabric.memory.store_snooped(at + 8, words[1]).unwrap();
                self.queue.tail = (self.queue.tail + 16) % PAGE;
            }
            self.queue.kick(&mut self.fabric);
        }
        /// Runs until nothing is due; returns what finished.
        fn run(&mut self) -> Vec<Command> {
            let unit = UnitConfig::qemu_like(48);
            let mut finished = Vec::new();
            while let Some(at) = self.queue.next_due() {
                self.fabric.now = self.fabric.now.max(at);
                finished.extend(self.queue.run(&mut self.fabric, unit.cap, unit.ecap));
            }
            finished
        }
    }

    fn wait(value: u64) -> [u64; 2] {
        Wait::ZERO.with_kind(kind::WAIT).with_sw(true).with_stdata(value).with_staddr(0x10_1000 >> 2).raw()
    }

    #[test]
    fn a_wait_finishes_after_everything_before_it_for_every_seed() {
        for seed in 0..50 {
            let mut bench = Bench::new(seed);
            bench.put(&[[0x11, 0], [0x12, 0], [0x11, 0], wait(7)]);
            let finished = bench.run();
            assert_eq!(finished.len(), 4, "seed {seed}");
            assert!(matches!(finished[3], Command::Wait(_)), "seed {seed}: {finished:?}");
        }
    }

    #[test]
    fn the_head_may_reach_the_tail_before_the_work_is_done() {
        let mut bench = Bench::new(3);
        bench.put(&[[0x12, 0]]);
        let unit = UnitConfig::qemu_like(48);
        bench.fabric.now = bench.queue.next_due().unwrap();
        assert!(bench.queue.run(&mut bench.fabric, unit.cap, unit.ecap).is_empty());
        assert_eq!(bench.queue.head, bench.queue.tail);
        assert!(!bench.queue.idle());
    }

    #[test]
    fn a_bad_descriptor_stops_the_queue_until_the_error_is_cleared() {
        for (words, info) in
            [([0xf, 0], error::TYPE), ([0x11, 1 << 40], error::RESERVED), ([0x1, 0], error::RESERVED)]
        {
            let mut bench = Bench::new(1);
            bench.put(&[words, [0x11, 0]]);
            assert!(bench.run().is_empty());
            assert_eq!((bench.queue.error, bench.queue.head), (info, 0));
            bench.fabric.memory.store_snooped(QUEUE, 0x12).unwrap();
            bench.fabric.memory.store_snooped(QUEUE + 8, 0).unwrap();
            bench.queue.error = 0;
            bench.queue.kick(&mut bench.fabric);
            assert_eq!(bench.run().len(), 2);
        }
    }

    #[test]
    fn a_tail_outside_and_a_queue_outside_memory_are_named() {
        let mut bench = Bench::new(1);
        bench.queue.tail = PAGE;
        bench.run();
        assert_eq!(bench.queue.error, error::TAIL);
        let mut bench = Bench::new(1);
        bench.queue.address = Iqa::from_raw(0x4000_0000);
        bench.queue.tail = 16;
        bench.run();
        assert_eq!(bench.queue.error, error::FETCH);
    }

    #[test]
    fn a_fence_holds_back_what_comes_after_it() {
        for seed in 0..50 {
            let mut bench = Bench::new(seed);
            let fence = Wait::from_raw(wait(1)).with_fence(true).raw();
            bench.put(&[[0x11, 0], fence, [0x12, 0]]);
            let finished = bench.run();
            assert!(matches!(finished[1], Command::Wait(_)), "seed {seed}: {finished:?}");
        }
    }

    #[test]
    fn a_mask_beyond_the_units_maximum_is_refused() {
        let cap = UnitConfig::qemu_like(48).cap;
        assert_eq!(iotlb_scope(3, 1, 0, cap.mamv() + 1, false, cap), None);
        let pages = iotlb_scope(3, 1, 0x5000, 1, false, cap);
        assert_eq!(pages, Some(Invalidation::Pages { domain: 1, start: 0x4000, order: 1, leaf_only: false }));
    }
}
