//! One unit's state, and what it does by itself when time passes: commands that take effect, invalidations that finish.

use super::cache::Caches;
use super::faultlog::FaultLog;
use super::interrupts::Interrupts;
use super::page_requests::PageQueue;
use super::queue::{self, Command, Queue};
use crate::config::{Protected, Scope, UnitConfig};
use crate::fabric::Fabric;
use crate::faults::QueueFaultKind;
use crate::trace::{Invalidation, TraceLine};
use spec::Extent;
use spec::SourceId;
use spec::fault::Reason;
use spec::invalidation::response;
use spec::regs::{Ccmd, Gsts, IotlbCommand, Iqa, Irta, Iva, Pmen, RootAddr, offset};
use std::collections::BTreeMap;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes to this physical address.
    To(u64),
    /// It is no memory access: an interrupt message, or a read of the interrupt range.
    NoMemory,
    /// It was refused.
    Refused,
}

/// A command that software gave and that has not taken effect.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pending {
    SetRoot(RootAddr),
    Translation(bool),
    QueueOn,
    QueueOff,
    FlushBuffer,
    SetInterruptTable,
    InterruptRemapping(bool),
    Compatibility(bool),
    Protection(bool),
    Contexts(Ccmd),
    Iotlb(IotlbCommand, Iva),
}

impl Pending {
    /// Given through the global command register, where one command must finish before the next.
    pub(super) fn is_global(self) -> bool {
        !matches!(self, Self::Protection(_) | Self::Contexts(_) | Self::Iotlb(..))
    }
}

/// One remapping unit.
#[derive(Debug)]
pub struct Unit {
    /// What was built.
    pub config: UnitConfig,
    pub(super) host_width: u8,
    pub(super) status: Gsts,
    pub(super) root_register: RootAddr,
    /// The root that walks use: latched by SRTP.
    pub(super) root: RootAddr,
    pub(super) ccmd: Ccmd,
    pub(super) iva: Iva,
    pub(super) iotlb: IotlbCommand,
    pub(super) iqa_register: Iqa,
    pub(super) pmen: Pmen,
    /// Registers that only hold what was written: fault event, protected ranges, interrupt table.
    pub(super) plain: BTreeMap<u64, u64>,
    pub(crate) caches: Caches,
    pub(super) faults: FaultLog,
    pub(super) queue: Queue,
    pub(super) pages: PageQueue,
    pub(super) interrupts: Interrupts,
    pub(super) pending: Vec<(u64, Pending)>,
}

impl Unit {
    /// A unit after reset, on a host with addresses of `host_width` bits.
    #[must_use]
    pub fn new(config: UnitConfig, host_width: u8) -> Self {
        let records = config.cap.fault_records() as usize;
        let faults = FaultLog::new(records, config.quirks.pasid_leak);
        let caches = Caches::new(config.cache_room).coarse(config.caching.coarse);
        let mask_of_events = 0x8000_0000;
        let mut plain = BTreeMap::from([(offset::FECTL, mask_of_events)]);
        let pmen = Pmen::ZERO.with_epm(config.protected.is_some()).with_prs(config.protected.is_some());
        if let Some(Protected { low, high }) = config.protected {
            let last = |run: Extent| run.end().start().get() - 1;
            plain.insert(offset::PLMBASE, low.start().get());
            plain.insert(offset::PLMLIMIT, last(low));
            plain.insert(offset::PHMBASE, high.start().get());
            plain.insert(offset::PHMLIMIT, last(high));
        }
        let queue = Queue::new(config.device_patience);
        Self {
            config,
            host_width,
            status: Gsts::ZERO,
            root_register: RootAddr::ZERO,
            root: RootAddr::ZERO,
            ccmd: Ccmd::ZERO,
            iva: Iva::ZERO,
            iotlb: IotlbCommand::ZERO,
            iqa_register: Iqa::ZERO,
            pmen,
            plain,
            caches,
            faults,
            queue,
            pages: PageQueue::default(),
            interrupts: Interrupts::default(),
            pending: Vec::new(),
        }
    }

    /// Whether the unit translates for a requester of `segment` that goes by one of these names: itself, and the bridges
    /// above it.
    #[must_use]
    pub fn covers(&self, segment: spec::Segment, listed_as: &[SourceId]) -> bool {
        let named = match &self.config.scope {
            Scope::Listed(sources) => listed_as.iter().any(|name| sources.contains(name)),
            Scope::Everything | Scope::Rest => true,
        };
        named && segment == self.config.id.segment
    }

    /// Whether translation is on.
    #[must_use]
    pub fn translates(&self) -> bool {
        self.status.tes()
    }

    /// When something happens here next.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        let pending = self.pending.iter().map(|&(at, _)| at).min();
        [pending, self.queue.next_due(), self.pages.next_due()].into_iter().flatten().min()
    }

    /// Does what is due by now.
    pub(crate) fn run(&mut self, fabric: &mut Fabric) {
        while let Some(i) = self.pending.iter().position(|&(at, _)| at <= fabric.now) {
            let (_, command) = self.pending.remove(i);
            self.take_effect(command, fabric);
        }
        let before = (self.queue.error, self.queue.unanswered, self.queue.unexpected);
        for command in self.queue.run(fabric, self.config.cap, self.config.ecap) {
            match command {
                Command::Forget { what, drain } => self.forget(what, drain, fabric),
                Command::Device { what, .. } => {
                    let what = Invalidation::DeviceTlb(what);
                    fabric.trace.push(TraceLine::Invalidated { at: fabric.now, unit: self.config.id, what });
                }
                Command::Respond { source, group, code } => fabric.answer_page(source, group, code),
                Command::Wait(wait) => {
                    if wait.pd() {
                        self.land_page_requests(u64::MAX, fabric);
                    }
                    queue::complete_wait(&mut self.queue, wait, fabric);
                    fabric.trace.push(TraceLine::Waited { at: fabric.now, unit: self.config.id });
                }
            }
        }
        self.trace_queue_errors(before, fabric);
        self.land_page_requests(fabric.now, fabric);
    }

    /// A device asks for a page.
    pub(crate) fn ask_page(&mut self, source: SourceId, group: u16, page: u64, fabric: &mut Fabric) {
        self.pages.ask(source, group, page, fabric);
    }

    /// Page requests that are due by `now` come in. One that its requester's entry does not allow is a fault, and answered.
    fn land_page_requests(&mut self, now: u64, fabric: &mut Fabric) {
        while let Some(request) = self.pages.take_due(now) {
            let source = SourceId::from_raw(request.rid() as u16);
            let allowed = self.context(source, None, fabric).is_ok_and(|context| context.page_requests);
            let answer = if allowed {
                self.pages.land(request, fabric)
            } else {
                let reason = Reason::PAGE_REQUEST_DISABLED;
                let recorded = self.faults.record(source, request.addr() << 12, reason, true);
                let (at, unit, iova) = (fabric.now, self.config.id, request.addr() << 12);
                fabric.trace.push(TraceLine::Faulted {
                    at,
                    unit,
                    source,
                    pasid: None,
                    iova,
                    reason,
                    write: true,
                    recorded,
                });
                Some(response::INVALID_REQUEST)
            };
            if let Some(code) = answer {
                fabric.answer_page(source, request.prgi() as u16, code);
            }
        }
    }

    /// An error strikes the queue between two descriptors.
    pub(crate) fn strike_queue(&mut self, kind: QueueFaultKind, fabric: &mut Fabric) {
        let before = (self.queue.error, self.queue.unanswered, self.queue.unexpected);
        match kind {
            QueueFaultKind::Refused => self.queue.error = queue::error::FETCH,
            QueueFaultKind::Unanswered(source) => self.queue.time_out(source),
            QueueFaultKind::Unexpected(source) => self.queue.unexpected = Some(source),
        }
        self.trace_queue_errors(before, fabric);
    }

    /// Tells the trace of queue errors that were not there `before`.
    fn trace_queue_errors(&self, before: (u8, Option<SourceId>, Option<SourceId>), fabric: &mut Fabric) {
        let (at, unit) = (fabric.now, self.config.id);
        if before.0 == 0 && self.queue.error != 0 {
            fabric.trace.push(TraceLine::QueueError { at, unit, info: self.queue.error });
        }
        if let Some(source) = self.queue.unanswered.filter(|_| before.1.is_none()) {
            fabric.trace.push(TraceLine::Unanswered { at, unit, source });
        }
        if let Some(source) = self.queue.unexpected.filter(|_| before.2.is_none()) {
            fabric.trace.push(TraceLine::Unexpected { at, unit, source });
        }
    }

    /// A command takes effect after a while.
    pub(super) fn schedule(&mut self, command: Pending, fabric: &mut Fabric) {
        let at = fabric.now + fabric.dice.between(200, 4_000);
        self.pending.push((at, command));
    }

    fn take_effect(&mut self, command: Pending, fabric: &mut Fabric) {
        let (at, unit) = (fabric.now, self.config.id);
        match command {
            Pending::SetRoot(root) => {
                fabric.land_all();
                self.root = root;
                self.status = self.status.with_rtps(true);
                fabric.trace.push(TraceLine::RootSet { at, unit, table: root.table().get() });
                if self.config.cap.esrtps() {
                    self.caches.forget(Invalidation::Contexts);
                    self.caches.forget(Invalidation::Pasids);
                    self.caches.forget(Invalidation::Translations);
                }
            }
            Pending::Translation(on) => {
                fabric.land_all();
                self.status = self.status.with_tes(on);
                fabric.trace.push(TraceLine::TranslationEnabled { at, unit, on });
            }
            Pending::QueueOn => {
                self.queue.address = self.iqa_register;
                self.queue.start();
                self.queue.kick(fabric);
                self.set_queue_status(true, fabric);
            }
            Pending::QueueOff => self.queue_off(fabric),
            Pending::FlushBuffer => {
                fabric.memory.drain_buffer();
                self.status = self.status.with_wbfs(false);
            }
            Pending::SetInterruptTable => {
                let irta = self.plain.get(&offset::IRTA).copied().unwrap_or(0);
                self.interrupts.table = Irta::from_raw(irta);
                self.status = self.status.with_irtps(true);
                if self.config.cap.esirtps() {
                    self.interrupts.forget(None);
                }
            }
            Pending::InterruptRemapping(on) => {
                self.status = self.status.with_ires(on);
                fabric.trace.push(TraceLine::InterruptsRemapped { at, unit, on });
            }
            Pending::Compatibility(on) => self.status = self.status.with_cfis(on),
            Pending::Protection(on) => {
                self.pmen = self.pmen.with_prs(on);
                fabric.trace.push(TraceLine::ProtectionEnabled { at, unit, on });
            }
            Pending::Contexts(ccmd) => self.finish_contexts(ccmd, fabric),
            Pending::Iotlb(command, iva) => self.finish_iotlb(command, iva, fabric),
        }
    }

    fn queue_off(&mut self, fabric: &mut Fabric) {
        if self.config.quirks.queue_ends_with_wait && !self.queue.ended_with_wait() {
            fabric.misuse(self.config.id, "the queue was switched off before a wait ended it");
            return;
        }
        if !self.queue.idle() && self.queue.error == 0 {
            // What was handed in is finished first.
            self.schedule(Pending::QueueOff, fabric);
            return;
        }
        self.queue.stop();
        self.set_queue_status(false, fabric);
    }

    fn set_queue_status(&mut self, on: bool, fabric: &mut Fabric) {
        self.status = self.status.with_qies(on);
        fabric.trace.push(TraceLine::QueueEnabled { at: fabric.now, unit: self.config.id, on });
    }

    fn finish_contexts(&mut self, ccmd: Ccmd, fabric: &mut Fabric) {
        match queue::context_scope(ccmd.cirg(), ccmd.did(), ccmd.sid(), ccmd.fm()) {
            Some(what) => {
                self.forget(what, false, fabric);
                self.ccmd = ccmd.with_icc(false).with_caig(ccmd.cirg());
            }
            None => {
                fabric.misuse(self.config.id, "a context invalidation of granularity 0");
                self.ccmd = ccmd.with_icc(false).with_caig(0);
            }
        }
    }

    fn finish_iotlb(&mut self, command: IotlbCommand, iva: Iva, fabric: &mut Fabric) {
        let cap = self.config.cap;
        let what =
            queue::iotlb_scope(command.iirg(), command.did(), iva.addr() << 12, iva.am(), iva.ih(), cap);
        match what {
            Some(what) => {
                self.forget(what, command.dw() && cap.dwd(), fabric);
                self.iotlb = command.with_ivt(false).with_iaig(command.iirg());
            }
            None => {
                fabric.misuse(self.config.id, "an IOTLB invalidation of granularity 0 or beyond CAP.MAMV");
                self.iotlb = command.with_ivt(false).with_iaig(0);
            }
        }
    }

    /// An invalidation takes effect. A unit behind a write buffer drains it first (VT-d 11.4.6).
    fn forget(&mut self, what: Invalidation, drain: bool, fabric: &mut Fabric) {
        if fabric.injector.invalidation_is_swallowed() {
            return;
        }
        if drain {
            fabric.land_all();
        }
        if self.config.cap.rwbf() {
            fabric.memory.drain_buffer();
        }
        self.caches.forget(what);
        if let Invalidation::InterruptEntries(named) = what {
            self.interrupts.forget(named);
        }
        fabric.trace.push(TraceLine::Invalidated { at: fabric.now, unit: self.config.id, what });
    }
}
