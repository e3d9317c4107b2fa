//! The register page as software sees it (VT-d 11.4): reads, writes, and the commands that writes start.
//!
//! Everything is handled as aligned 64-bit slots with a mask of the bits that an access touches, because a 64-bit register may
//! be written as two halves and two 32-bit registers share a slot.

use super::queue::error;
use super::unit::{Pending, Unit};
use crate::fabric::Fabric;
use spec::SourceId;
use spec::regs::{Ccmd, Fsts, Gcmd, IotlbCommand, Iqa, Iqercd, Iva, Pmen, Prs, RootAddr, Version, offset};

const LOW: u64 = 0xffff_ffff;
/// Interrupt message registers of the fault and invalidation events: written and read back, nothing more.
const EVENT_SLOTS: [u64; 4] = [0x38, 0x40, 0xa0, 0xa8];

impl Unit {
    /// A read of 4 or 8 bytes at `at`, an offset within the register page.
    pub(crate) fn read(&mut self, at: u64, bytes: u64, fabric: &mut Fabric) -> u64 {
        if !matches!(bytes, 4 | 8) || !at.is_multiple_of(bytes) {
            fabric.misuse(self.config.id, "a register access that is not 4 or 8 aligned bytes");
            return u64::MAX;
        }
        let slot = self.slot(at & !7);
        if bytes == 8 { slot } else { slot >> (8 * (at % 8)) & LOW }
    }

    /// A write of 4 or 8 bytes at `at`.
    pub(crate) fn write(&mut self, at: u64, bytes: u64, value: u64, fabric: &mut Fabric) {
        if !matches!(bytes, 4 | 8) || !at.is_multiple_of(bytes) {
            fabric.misuse(self.config.id, "a register access that is not 4 or 8 aligned bytes");
            return;
        }
        let (value, mask) = match (bytes, at % 8) {
            (8, _) => (value, u64::MAX),
            (_, 0) => (value & LOW, LOW),
            _ => (value << 32, !LOW),
        };
        self.write_slot(at & !7, value, mask, fabric);
    }

    fn slot(&self, at: u64) -> u64 {
        let high = |v: u32| u64::from(v) << 32;
        match at {
            offset::VER => u64::from(Version::ZERO.with_max(1).raw()),
            offset::CAP => self.config.cap.raw(),
            offset::ECAP => self.config.ecap.raw(),
            // GCMD is write only; GSTS is its upper neighbour.
            offset::GCMD => high(self.status.raw()),
            offset::RTADDR => self.root_register.raw(),
            offset::CCMD => self.ccmd.raw(),
            0x30 => high(self.fault_status().raw()),
            0x60 => high(self.pmen.raw()),
            offset::IQH => self.queue.head,
            offset::IQT => self.queue.tail,
            offset::IQA => self.iqa_register.raw(),
            0x98 => high(u32::from(self.queue.wait_completed)),
            offset::PQH => self.pages.head(),
            offset::PQT => self.pages.tail(),
            offset::PQA => self.pages.address(),
            0xd8 => high(self.pages.status().raw()),
            offset::IQERCD => self.queue_record().raw(),
            offset::PLMBASE => self.plain(offset::PLMBASE) | self.plain(offset::PLMLIMIT) << 32,
            _ if at == self.config.ecap.iva_offset() => self.iva.raw(),
            _ if at == self.config.ecap.iotlb_offset() => self.iotlb.raw(),
            _ => match self.record_at(at) {
                Some((index, half)) => self.faults.read(index, half),
                None => self.plain(at),
            },
        }
    }

    fn write_slot(&mut self, at: u64, value: u64, mask: u64, fabric: &mut Fabric) {
        let merged = |old: u64| (old & !mask) | (value & mask);
        let high_written = mask & !LOW != 0;
        match at {
            offset::GCMD if mask & LOW != 0 => self.command(Gcmd::from_raw(value as u32), fabric),
            offset::RTADDR => self.root_register = RootAddr::from_raw(merged(self.root_register.raw())),
            offset::CCMD => self.write_ccmd(Ccmd::from_raw(merged(self.ccmd.raw())), high_written, fabric),
            0x30 if high_written => self.clear_fault_status(Fsts::from_raw((value >> 32) as u32), fabric),
            0x60 if high_written => self.write_pmen(Pmen::from_raw((value >> 32) as u32), fabric),
            offset::PLMBASE | offset::PHMBASE | offset::PHMLIMIT => {
                self.write_protected(at, value, mask, fabric)
            }
            offset::IQT => self.write_tail(merged(self.queue.tail), fabric),
            offset::IQA => self.write_iqa(merged(self.iqa_register.raw()), fabric),
            0x98 if high_written => self.queue.wait_completed &= value >> 32 & 1 == 0,
            offset::PQH => self.pages.set_head(merged(self.pages.head())),
            offset::PQT => self.pages.set_tail(merged(self.pages.tail())),
            offset::PQA => self.pages.set_address(merged(self.pages.address())),
            0xd8 if high_written => self.pages.clear(Prs::from_raw((value >> 32) as u32)),
            offset::IRTA => drop(self.plain.insert(at, merged(self.plain(at)))),
            _ if EVENT_SLOTS.contains(&at) => drop(self.plain.insert(at, merged(self.plain(at)))),
            _ if at == self.config.ecap.iva_offset() => self.iva = Iva::from_raw(merged(self.iva.raw())),
            _ if at == self.config.ecap.iotlb_offset() => {
                self.write_iotlb(IotlbCommand::from_raw(merged(self.iotlb.raw())), high_written, fabric);
            }
            _ => {
                if let Some((index, 1)) = self.record_at(at) {
                    self.faults.write_upper(index, value & mask);
                }
            }
        }
    }

    fn plain(&self, at: u64) -> u64 {
        self.plain.get(&at).copied().unwrap_or(0)
    }

    /// Which fault record, and which half of it, lies at `at`.
    fn record_at(&self, at: u64) -> Option<(usize, usize)> {
        let cap = self.config.cap;
        let from_first = at.checked_sub(cap.fault_record_offset(0))?;
        (from_first / 16 < cap.fault_records())
            .then_some(((from_first / 16) as usize, (from_first / 8 % 2) as usize))
    }

    fn fault_status(&self) -> Fsts {
        let status = self.faults.status().with_iqe(self.queue.error != 0);
        status.with_ite(self.queue.unanswered.is_some()).with_ice(self.queue.unexpected.is_some())
    }

    /// What the queue's errors were (VT-d 11.4.9.9).
    fn queue_record(&self) -> Iqercd {
        if self.config.quirks.no_queue_record {
            return Iqercd::ZERO;
        }
        let source = |source: Option<SourceId>| source.map_or(0, |s| u64::from(s.raw()));
        let record = Iqercd::ZERO.with_iqei(u64::from(self.queue.error));
        record.with_itesid(source(self.queue.unanswered)).with_icesid(source(self.queue.unexpected))
    }

    fn clear_fault_status(&mut self, written: Fsts, fabric: &mut Fabric) {
        self.faults.clear_status(written);
        if written.ice() {
            self.queue.unexpected = None;
        }
        let cleared =
            written.iqe() && self.queue.error != 0 || written.ite() && self.queue.unanswered.is_some();
        if written.iqe() {
            self.queue.error = 0;
        }
        if written.ite() {
            self.queue.unanswered = None;
        }
        if cleared && self.config.quirks.tail_restarts_queue {
            self.queue.hold();
        } else if cleared {
            self.queue.kick(fabric);
        }
    }

    /// The global command register: one bit changes at a time, and a change finishes before the next (VT-d 11.4.4).
    fn command(&mut self, command: Gcmd, fabric: &mut Fabric) {
        let changes = self.changes(command);
        if changes.len() > 1 {
            fabric.misuse(self.config.id, "several global commands in one write");
        }
        if !changes.is_empty() && self.pending.iter().any(|(_, p)| p.is_global()) {
            fabric.misuse(self.config.id, "a global command before the one before it finished");
        }
        for change in changes {
            match change {
                Pending::SetRoot(_) => self.status = self.status.with_rtps(false),
                Pending::SetInterruptTable => self.status = self.status.with_irtps(false),
                Pending::FlushBuffer => self.status = self.status.with_wbfs(true),
                Pending::Translation(true) if !self.status.rtps() => {
                    fabric.misuse(self.config.id, "translation was switched on without a root table");
                }
                _ => {}
            }
            self.schedule(change, fabric);
        }
    }

    /// What a command asks for, measured against the status and what is already under way.
    fn changes(&self, command: Gcmd) -> Vec<Pending> {
        let target = |now: bool, of: fn(&Pending) -> Option<bool>| {
            self.pending.iter().rev().find_map(|(_, p)| of(p)).unwrap_or(now)
        };
        let te = target(self.status.tes(), |p| match p {
            Pending::Translation(on) => Some(*on),
            _ => None,
        });
        let qie = target(self.status.qies(), |p| match p {
            Pending::QueueOn => Some(true),
            Pending::QueueOff => Some(false),
            _ => None,
        });
        let ire = target(self.status.ires(), |p| match p {
            Pending::InterruptRemapping(on) => Some(*on),
            _ => None,
        });
        let cfi = target(self.status.cfis(), |p| match p {
            Pending::Compatibility(on) => Some(*on),
            _ => None,
        });
        let queue = if command.qie() { Pending::QueueOn } else { Pending::QueueOff };
        [
            (command.srtp(), Pending::SetRoot(self.root_register)),
            (command.wbf(), Pending::FlushBuffer),
            (command.sirtp(), Pending::SetInterruptTable),
            (command.qie() != qie && self.config.ecap.qi(), queue),
            (command.ire() != ire && self.config.ecap.ir(), Pending::InterruptRemapping(command.ire())),
            (command.cfi() != cfi && self.config.ecap.ir(), Pending::Compatibility(command.cfi())),
            (command.te() != te, Pending::Translation(command.te())),
        ]
        .into_iter()
        .filter_map(|(asked, change)| asked.then_some(change))
        .collect()
    }

    fn write_ccmd(&mut self, command: Ccmd, high_written: bool, fabric: &mut Fabric) {
        if self.ccmd.icc() {
            fabric.misuse(self.config.id, "CCMD was written while ICC was set");
            return;
        }
        self.ccmd = command;
        if !(high_written && command.icc()) {
            self.ccmd = command.with_icc(false);
        } else if self.status.qies() {
            // ICC stays set for ever.
            fabric.misuse(self.config.id, "register-based invalidation while the queue is on");
        } else {
            self.schedule(Pending::Contexts(command), fabric);
        }
    }

    fn write_iotlb(&mut self, command: IotlbCommand, high_written: bool, fabric: &mut Fabric) {
        if self.iotlb.ivt() {
            fabric.misuse(self.config.id, "the IOTLB register was written while IVT was set");
            return;
        }
        self.iotlb = command;
        if !(high_written && command.ivt()) {
            self.iotlb = command.with_ivt(false);
        } else if self.status.qies() {
            fabric.misuse(self.config.id, "register-based invalidation while the queue is on");
        } else {
            self.schedule(Pending::Iotlb(command, self.iva), fabric);
        }
    }

    fn write_pmen(&mut self, pmen: Pmen, fabric: &mut Fabric) {
        if !self.config.cap.plmr() && !self.config.cap.phmr() {
            return;
        }
        let changed = pmen.epm() != self.pmen.epm();
        self.pmen = self.pmen.with_epm(pmen.epm());
        if changed {
            self.schedule(Pending::Protection(pmen.epm()), fabric);
        }
    }

    fn write_protected(&mut self, at: u64, value: u64, mask: u64, fabric: &mut Fabric) {
        if self.pmen.prs() {
            fabric.misuse(self.config.id, "a protected range was changed while protection was on");
            return;
        }
        if at == offset::PLMBASE {
            if mask & LOW != 0 {
                self.plain.insert(offset::PLMBASE, value & LOW);
            }
            if mask & !LOW != 0 {
                self.plain.insert(offset::PLMLIMIT, value >> 32);
            }
        } else {
            self.plain.insert(at, (self.plain(at) & !mask) | (value & mask));
        }
    }

    fn write_tail(&mut self, tail: u64, fabric: &mut Fabric) {
        const TAIL_BITS: u64 = 0x7_fff0;
        self.queue.tail = tail & TAIL_BITS;
        self.queue.kick(fabric);
    }

    fn write_iqa(&mut self, value: u64, fabric: &mut Fabric) {
        if self.status.qies() {
            fabric.misuse(self.config.id, "the queue's address was changed while the queue is on");
        }
        let iqa = Iqa::from_raw(value & !0x7f8);
        // Descriptors of 256 bits come with scalable mode alone.
        self.iqa_register = iqa.with_dw(iqa.dw() && self.config.ecap.smts());
    }

    /// Whether the queue stopped on an error, and why: for tests and reports.
    #[must_use]
    pub fn queue_error(&self) -> Option<&'static str> {
        match self.queue.error {
            0 => None,
            error::TAIL => Some("tail outside the queue"),
            error::FETCH => Some("descriptor unreadable"),
            error::TYPE => Some("unknown descriptor type"),
            _ => Some("reserved bits in a descriptor"),
        }
    }
}
