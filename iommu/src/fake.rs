//! A small machine to test the driver on: honest memory, and units that cache what they read until told to forget.
//!
//! A unit walks tables in memory by itself ([`Fake::dma`]), keeps context entries and translations in caches, does
//! commands and descriptors only after `latency` polls, and has the habits of QEMU that a driver must cope with. Frame
//! allocation can be made to fail at the n-th frame, hardware can be made to get stuck.

pub(crate) mod interrupts;
pub(crate) mod scalable;

use crate::Hal;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::RefCell;
use liveupdate::host::{MaySleep, NoMemory, TableMemory};
use spec::context::ContextEntry;
use spec::invalidation::{ContextInvalidate, IotlbInvalidate, Wait, granularity, kind};
use spec::regs::{Cap, Ccmd, Ecap, Gcmd, Gsts, IotlbCommand, Iqa, Iva, RootAddr, offset};
use spec::root::RootEntry;
use spec::{DomainId, Extent, Frame, PAGE_SIZE, PhysAddr, Segment, SourceId, UnitId};

pub(crate) const UNIT: UnitId = UnitId { segment: Segment(0), register_base: 0xfed9_0000 };
pub(crate) const SECOND: UnitId = UnitId { segment: Segment(0), register_base: 0xfed9_1000 };
/// Capabilities of QEMU's unit with 48 bits.
pub(crate) const QEMU_CAP: u64 = 0x00d2_008c_222f_0606;
pub(crate) const QEMU_ECAP: u64 = 0x0f0_0f4a;
/// First frame that the fake hands out.
const FIRST_FRAME: u64 = 0x1000;
const LAST_FRAME: u64 = 0x9000;

/// What a unit was made to forget, in the order of doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Context {
        g: u64,
        source: u16,
        domain: u16,
    },
    Translations {
        g: u64,
        domain: u16,
        page: u64,
        order: u64,
    },
    Pasids {
        g: u64,
        domain: u16,
        pasid: u32,
    },
    PasidTranslations {
        g: u64,
        domain: u16,
        pasid: u32,
        page: u64,
        order: u64,
    },
    Interrupts {
        index: bool,
        first: u32,
        order: u32,
    },
    Wait,
    RootSet,
    /// A store to memory, while stores are logged.
    Store {
        at: u64,
        value: u64,
    },
}

/// What hardware does not do any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    No,
    /// Invalidations, by queue or registers.
    Invalidations,
    /// Global commands.
    Commands,
}

/// How a unit takes descriptors of PASID cache and PASID-based IOTLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quirks {
    /// By the specification; the latter in queues of 256-bit descriptors only, which there are with scalable mode.
    None,
    /// As QEMU 7.2: taken and ignored; PASID entries are forgotten with contexts; IQA.DW reads zero, and is heeded.
    Ignores,
    /// Not at all, in either kind of queue; PASID entries are forgotten with contexts.
    Refuses,
}

/// A page, as cached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    to: u64,
    read: bool,
    write: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct FakeUnit {
    id: UnitId,
    pub(crate) cap: Cap,
    pub(crate) ecap: Ecap,
    pub(crate) status: Gsts,
    pub(crate) rtaddr: u64,
    /// The root table in use: RTADDR when SRTP was last given.
    root: u64,
    ccmd: u64,
    iva: u64,
    iotlb: u64,
    pub(crate) iqa: u64,
    pub(crate) iqh: u64,
    pub(crate) iqt: u64,
    pub(crate) fsts: u32,
    pub(crate) pmen: u32,
    pub(crate) records: Vec<[u64; 2]>,
    last_kind: u64,
    /// The tail was written since the queue last stopped: QEMU fetches only then.
    fetching: bool,
    delay: u32,
    pub(crate) latency: u32,
    pub(crate) stuck: Stuck,
    pub(crate) done: Vec<Done>,
    contexts: BTreeMap<u16, [u64; 2]>,
    wide_contexts: BTreeMap<u16, [u64; 4]>,
    /// By source-id and PASID.
    pasids: BTreeMap<(u16, u32), [u64; 8]>,
    /// By domain id, PASID unless of the second stage alone, and page.
    translations: BTreeMap<(u16, Option<u32>, u64), Option<Leaf>>,
    pub(crate) interrupts: interrupts::Interrupts,
    pub(crate) quirks: Quirks,
    /// Page walks that did not snoop though they could: they see what the processor has not written back.
    pub(crate) incoherent: u32,
    /// Words that were written but sit in the write buffer: what the unit still sees (CAP.RWBF).
    buffered: BTreeMap<u64, u64>,
    /// Register commands given while a queue was on: they never end.
    pub(crate) misused: u32,
    /// Whether translation was ever switched off.
    pub(crate) translation_went_off: bool,
    /// Whether protected memory was ever opened while translation was off.
    pub(crate) opened_untranslated: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    frames: BTreeMap<u64, Vec<u64>>,
    given: BTreeSet<u64>,
    /// Frames still to be had before an allocation fails.
    pub(crate) frames_left: u64,
    /// Largest run that can be had at once.
    pub(crate) largest_run: u64,
    clock: u64,
    /// Nanoseconds from one look at the clock to the next.
    pub(crate) tick: u64,
    /// Puts stores to memory into the first unit's log.
    pub(crate) log_stores: bool,
    pub(crate) units: Vec<FakeUnit>,
}

#[derive(Debug)]
pub(crate) struct Fake(pub(crate) RefCell<State>);

impl Fake {
    pub(crate) fn new(cap: u64, ecap: u64) -> Self {
        let units = Vec::from([FakeUnit::new(UNIT, cap, ecap), FakeUnit::new(SECOND, cap, ecap)]);
        Self(RefCell::new(State {
            frames: BTreeMap::new(),
            given: BTreeSet::new(),
            frames_left: u64::MAX,
            largest_run: u64::MAX,
            clock: 0,
            tick: 1000,
            log_stores: false,
            units,
        }))
    }
    pub(crate) fn qemu() -> Self {
        Self::new(QEMU_CAP, QEMU_ECAP)
    }
    pub(crate) fn with_unit<R>(&self, f: impl FnOnce(&mut FakeUnit) -> R) -> R {
        f(&mut self.0.borrow_mut().units[0])
    }
    /// Bytes of all memory, frames that are all zero left out.
    pub(crate) fn memory(&self) -> BTreeMap<u64, Vec<u64>> {
        let mut frames = self.0.borrow().frames.clone();
        frames.retain(|_, words| words.iter().any(|w| *w != 0));
        frames
    }
    /// Frames that the fake gave out and did not get back.
    pub(crate) fn frames_given(&self) -> BTreeSet<u64> {
        self.0.borrow().given.clone()
    }
    /// A request by a device, as the first unit serves it: the address it reaches, or the fault reason.
    pub(crate) fn dma(&self, source: SourceId, iova: u64, write: bool) -> Result<u64, u8> {
        self.dma_with(source, None, iova, write)
    }
    /// The same, of a request that may carry a PASID.
    pub(crate) fn dma_with(
        &self,
        source: SourceId,
        pasid: Option<u32>,
        iova: u64,
        write: bool,
    ) -> Result<u64, u8> {
        let state = &mut *self.0.borrow_mut();
        let (unit, frames) = (&mut state.units[0], &mut state.frames);
        match unit.status.tes() && unit.is_scalable() {
            true => unit.dma_scalable(frames, source, pasid, iova, write),
            false => unit.dma(frames, source, iova, write),
        }
    }
    /// What the first unit has done since the last call.
    pub(crate) fn done(&self) -> Vec<Done> {
        core::mem::take(&mut self.0.borrow_mut().units[0].done)
    }
}

type Frames = BTreeMap<u64, Vec<u64>>;

fn word(frames: &Frames, at: u64) -> Option<u64> {
    frames.get(&(at / PAGE_SIZE)).map(|words| words[(at % PAGE_SIZE / 8) as usize])
}

impl FakeUnit {
    fn new(id: UnitId, cap: u64, ecap: u64) -> Self {
        Self {
            id,
            cap: Cap::from_raw(cap),
            ecap: Ecap::from_raw(ecap),
            status: Gsts::ZERO,
            rtaddr: 0,
            root: 0,
            ccmd: 0,
            iva: 0,
            iotlb: 0,
            iqa: 0,
            iqh: 0,
            iqt: 0,
            fsts: 0,
            pmen: 0,
            records: alloc::vec![[0; 2]; Cap::from_raw(cap).fault_records() as usize],
            last_kind: 0,
            fetching: false,
            delay: 0,
            latency: 0,
            stuck: Stuck::No,
            done: Vec::new(),
            contexts: BTreeMap::new(),
            wide_contexts: BTreeMap::new(),
            pasids: BTreeMap::new(),
            translations: BTreeMap::new(),
            interrupts: interrupts::Interrupts::default(),
            quirks: Quirks::None,
            incoherent: 0,
            buffered: BTreeMap::new(),
            misused: 0,
            translation_went_off: false,
            opened_untranslated: false,
        }
    }

    fn see(&self, frames: &Frames, at: u64) -> u64 {
        self.buffered.get(&at).copied().or_else(|| word(frames, at)).unwrap_or(u64::MAX)
    }

    fn context(&mut self, frames: &Frames, source: SourceId) -> Result<ContextEntry, u8> {
        if let Some(cached) = self.contexts.get(&source.raw()) {
            let entry = ContextEntry::from_raw(*cached);
            return if entry.present() { Ok(entry) } else { Err(2) };
        }
        let root = RootAddr::from_raw(self.root).table().get() + 16 * u64::from(source.bus());
        let root = RootEntry::from_raw([self.see(frames, root), self.see(frames, root + 8)]);
        let mut entry = ContextEntry::ZERO;
        if root.present() {
            let at = root.context_table().get() + 16 * u64::from(source.devfn());
            entry = ContextEntry::from_raw([self.see(frames, at), self.see(frames, at + 8)]);
        }
        if entry.present() || self.cap.cm() {
            self.contexts.insert(source.raw(), entry.raw());
        }
        match (root.present(), entry.present()) {
            (true, true) => Ok(entry),
            (true, false) => Err(2),
            (false, _) => Err(1),
        }
    }

    /// The 4 KiB leaf for an address, as hardware would cache it.
    fn leaf(&mut self, frames: &Frames, entry: ContextEntry, iova: u64) -> Option<Leaf> {
        let key = (entry.domain_id().0, None, iova / PAGE_SIZE);
        if let Some(cached) = self.translations.get(&key) {
            return *cached;
        }
        let found = self.second_stage(frames, (entry.top_table().get(), entry.levels()), iova);
        if found.is_some() || self.cap.cm() {
            self.translations.insert(key, found);
        }
        found
    }

    fn dma(&mut self, frames: &Frames, source: SourceId, iova: u64, write: bool) -> Result<u64, u8> {
        if !self.status.tes() {
            return Ok(iova);
        }
        let entry = self.context(frames, source)?;
        let denied = if write { 5 } else { 6 };
        let leaf = self.leaf(frames, entry, iova).ok_or(denied)?;
        let allowed = if write { leaf.write } else { leaf.read };
        if allowed { Ok(leaf.to + iova % PAGE_SIZE) } else { Err(denied) }
    }

    fn forget_context(&mut self, g: u64, source: u16, domain: u16) {
        self.done.push(Done::Context { g, source, domain });
        self.buffered.clear();
        let named = |s: &u16| g == granularity::GLOBAL || (g == granularity::SELECTIVE && *s == source);
        // Context entries of scalable mode have no domain.
        self.wide_contexts.retain(|s, _| !named(s));
        if self.quirks != Quirks::None {
            self.pasids.retain(|(s, _), _| !named(s));
        }
        self.contexts.retain(|s, entry| {
            let tag = ContextEntry::from_raw(*entry).domain_id().0;
            !(g == granularity::GLOBAL || (g == granularity::SELECTIVE && *s == source && tag == domain))
        });
    }

    fn forget_translations(&mut self, g: u64, domain: u16, page: u64, order: u64) {
        self.done.push(Done::Translations { g, domain, page, order });
        self.buffered.clear();
        self.translations.retain(|(d, tag, p), _| match g {
            granularity::GLOBAL => false,
            granularity::DOMAIN => *d != domain,
            // Pages are named by second-stage addresses.
            _ => *d != domain || tag.is_some() || p >> order != page >> order,
        });
    }

    /// Does what is due in the queue, one descriptor after another.
    fn work(&mut self, frames: &mut Frames) {
        if self.delay > 0 {
            self.delay -= 1;
            return;
        }
        if self.stuck == Stuck::Invalidations || !self.fetching {
            return;
        }
        // A wide queue (IQA.DW) has the same descriptors with 16 bytes behind them that must be zero.
        let stride = if Iqa::from_raw(self.iqa).dw() { 32 } else { 16 };
        let size = PAGE_SIZE << Iqa::from_raw(self.iqa).qs();
        while self.status.qies() && self.iqh != self.iqt && self.fsts & 0x10 == 0 {
            let at = (Iqa::from_raw(self.iqa).iqa() << 12) + self.iqh;
            let words = [word(frames, at).unwrap_or(0), word(frames, at + 8).unwrap_or(0)];
            let rest = if stride == 32 { word(frames, at + 16) } else { None };
            match words[0] & 0xf | rest.unwrap_or(0) {
                kind::PASID_CACHE | kind::PASID_IOTLB if self.pasid_descriptor(words, stride == 32) => {}
                kind::CONTEXT => {
                    let d = ContextInvalidate::from_raw(words);
                    self.forget_context(d.g(), d.sid() as u16, d.did() as u16);
                }
                kind::IOTLB => {
                    let d = IotlbInvalidate::from_raw(words);
                    self.forget_translations(d.g(), d.did() as u16, d.addr(), d.am());
                }
                kind::INTERRUPT => self.forget_interrupts(words),
                kind::WAIT => {
                    let d = Wait::from_raw(words);
                    self.done.push(Done::Wait);
                    let to = d.staddr() * 4;
                    if let Some(frame) = frames.get_mut(&(to / PAGE_SIZE)) {
                        let old = &mut frame[(to % PAGE_SIZE / 8) as usize];
                        *old = *old & !0xffff_ffff | d.stdata();
                    }
                }
                _ => {
                    self.fsts |= 0x10;
                    self.fetching = false;
                    return;
                }
            }
            self.last_kind = words[0] & 0xf;
            self.iqh = (self.iqh + stride) % size;
        }
    }

    fn command(&mut self, raw: u32) {
        if self.stuck == Stuck::Commands {
            return;
        }
        let command = Gcmd::from_raw(raw);
        if command.srtp() {
            self.root = self.rtaddr;
            self.status = self.status.with_rtps(true);
            self.done.push(Done::RootSet);
        }
        if command.wbf() {
            self.buffered.clear();
        }
        if command.qie() && !self.status.qies() {
            self.iqh = 0;
            self.status = self.status.with_qies(true);
        } else if !command.qie() && self.iqh == self.iqt && self.last_kind == kind::WAIT {
            // QEMU refuses in any other state.
            self.status = self.status.with_qies(false);
            self.iqh = 0;
        }
        self.interrupt_command(command);
        self.translation_went_off |= self.status.tes() && !command.te();
        self.status = self.status.with_tes(command.te());
    }

    fn invalidate_context(&mut self, raw: u64) {
        self.ccmd = raw;
        let command = Ccmd::from_raw(raw);
        if self.status.qies() {
            self.misused += 1;
        } else if command.icc() && self.stuck != Stuck::Invalidations {
            self.forget_context(command.cirg(), command.sid() as u16, command.did() as u16);
            self.ccmd = command.with_icc(false).with_caig(command.cirg()).raw();
        }
    }

    fn invalidate_translations(&mut self, raw: u64) {
        self.iotlb = raw;
        let command = IotlbCommand::from_raw(raw);
        if self.status.qies() {
            self.misused += 1;
        } else if command.ivt() && self.stuck != Stuck::Invalidations {
            let pages = Iva::from_raw(self.iva);
            self.forget_translations(command.iirg(), command.did() as u16, pages.addr(), pages.am());
            self.iotlb = command.with_ivt(false).with_iaig(command.iirg()).raw();
        }
    }

    fn read(&self, at: u64) -> u64 {
        let records = self.cap.fault_record_offset(0);
        match at {
            offset::VER => 0x10,
            offset::CAP => self.cap.raw(),
            offset::ECAP => self.ecap.raw(),
            offset::GSTS => u64::from(self.status.raw()),
            offset::RTADDR => self.rtaddr,
            offset::CCMD => self.ccmd,
            offset::FSTS => {
                let pending = self.records.iter().any(|r| r[1] >> 63 == 1);
                u64::from(self.fsts | u32::from(pending) << 1)
            }
            offset::PMEN => u64::from(self.pmen),
            offset::IQA if self.quirks == Quirks::Ignores => self.iqa & !(1 << 11),
            offset::IQA => self.iqa,
            offset::IQH => self.iqh,
            offset::IQT => self.iqt,
            offset::IRTA => self.interrupts.irta,
            at if at == self.ecap.iotlb_offset() => self.iotlb,
            at if at >= records && at < records + 16 * self.records.len() as u64 => {
                self.records[((at - records) / 16) as usize][((at - records) % 16 / 8) as usize]
            }
            _ => 0,
        }
    }

    fn write(&mut self, at: u64, value: u64) {
        let records = self.cap.fault_record_offset(0);
        match at {
            offset::GCMD => self.command(value as u32),
            offset::RTADDR => self.rtaddr = value,
            offset::IRTA => self.interrupts.irta = value,
            offset::CCMD => self.invalidate_context(value),
            offset::FSTS => self.fsts &= !(value as u32),
            offset::PMEN => {
                self.pmen = (value as u32 >> 31) << 31 | value as u32 >> 31;
                self.opened_untranslated |= self.pmen == 0 && !self.status.tes();
            }
            offset::IQA => {
                let iqa = Iqa::from_raw(value);
                self.iqa = iqa.with_dw(iqa.dw() && self.ecap.smts()).raw();
            }
            offset::IQT => {
                self.iqt = value;
                self.fetching = self.fsts & 0x10 == 0;
                self.delay = self.latency;
            }
            at if at == self.ecap.iva_offset() => self.iva = value,
            at if at == self.ecap.iotlb_offset() => self.invalidate_translations(value),
            at if at >= records && (at - records) % 16 == 12 && value >> 31 == 1 => {
                self.records[((at - records) / 16) as usize][1] &= !(1 << 63);
            }
            _ => {}
        }
    }

    /// Ids of domains that have a cached translation.
    pub(crate) fn cached_domains(&self) -> BTreeSet<DomainId> {
        self.translations.keys().map(|(d, ..)| DomainId(*d)).collect()
    }
}

impl State {
    fn unit(&mut self, at: PhysAddr) -> Option<(&mut FakeUnit, &mut Frames, u64)> {
        let unit = self.units.iter_mut().find(|u| u.id.register_base == at.get() & !0xfff)?;
        Some((unit, &mut self.frames, at.get() & 0xfff))
    }
    fn read_register(&mut self, at: PhysAddr) -> u64 {
        let Some((unit, frames, offset)) = self.unit(at) else { return u64::MAX };
        unit.work(frames);
        unit.read(offset)
    }
    fn write_register(&mut self, at: PhysAddr, value: u64) {
        let Some((unit, frames, offset)) = self.unit(at) else { return };
        unit.write(offset, value);
        unit.work(frames);
    }
}

impl TableMemory for Fake {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        assert!(at.is_aligned(8));
        word(&self.0.borrow().frames, at.get()).ok_or(NoMemory { at })
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        assert!(at.is_aligned(8));
        let state = &mut *self.0.borrow_mut();
        let frame = state.frames.get_mut(&at.frame().number()).ok_or(NoMemory { at })?;
        let place = &mut frame[(at.get() % PAGE_SIZE / 8) as usize];
        for unit in state.units.iter_mut().filter(|u| u.cap.rwbf()) {
            unit.buffered.entry(at.get()).or_insert(*place);
        }
        *place = value;
        if state.log_stores {
            state.units[0].done.push(Done::Store { at: at.get(), value });
        }
        Ok(())
    }
}

impl Hal for Fake {
    fn read32(&self, at: PhysAddr) -> u32 {
        self.0.borrow_mut().read_register(at) as u32
    }
    fn read64(&self, at: PhysAddr) -> u64 {
        self.0.borrow_mut().read_register(at)
    }
    fn write32(&self, at: PhysAddr, value: u32) {
        self.0.borrow_mut().write_register(at, u64::from(value));
    }
    fn write64(&self, at: PhysAddr, value: u64) {
        self.0.borrow_mut().write_register(at, value);
    }
    fn now(&self) -> u64 {
        let mut state = self.0.borrow_mut();
        state.clock += state.tick;
        state.clock
    }
    fn relax(&self) {
        let state = &mut *self.0.borrow_mut();
        for unit in &mut state.units {
            unit.work(&mut state.frames);
        }
    }
    fn allocate(&self, _ctx: &mut MaySleep, count: u64, align: u64) -> Option<Extent> {
        let state = &mut *self.0.borrow_mut();
        if state.frames_left < count || count > state.largest_run {
            return None;
        }
        let free = |first: u64| (first..first + count).all(|f| !state.given.contains(&f));
        let first = (FIRST_FRAME..LAST_FRAME).step_by(align as usize).find(|first| free(*first))?;
        state.frames_left -= count;
        for frame in first..first + count {
            state.given.insert(frame);
            state.frames.insert(frame, alloc::vec![0; 512]);
        }
        Extent::new(Frame::new(first), count)
    }
    fn free(&self, _ctx: &mut MaySleep, run: Extent) {
        let state = &mut *self.0.borrow_mut();
        for frame in run.first().number()..run.end().number() {
            assert!(state.given.remove(&frame), "frame {frame:#x} was freed twice");
            state.frames.remove(&frame);
        }
    }
}
