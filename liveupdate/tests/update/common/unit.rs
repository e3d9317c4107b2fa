//! A remapping unit: reads tables for DMA, caches what it read, forgets when told to. In legacy mode and in scalable mode,
//! whichever its root table address says.

use super::machine::{Shared, Step};
use liveupdate::host::{Atomic, DeviceTlb, Forget, Forgotten, InterruptRemapping, MaySleep, TimedOut, Unit};
use spec::context::{ContextEntry, TranslationType};
use spec::first_stage::FirstStageEntry;
use spec::regs::{Cap, Ecap, Gsts, Irta, RootAddr};
use spec::root::RootEntry;
use spec::scalable::{
    PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry, directory_index, table_index,
};
use spec::second_stage::{self, SecondStageEntry};
use spec::{DomainId, PhysAddr, Segment, SourceId, UnitId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Why a request was not translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    Root,
    Context,
    Pasid,
    Page,
}

/// Domain id, PASID where a first stage was walked, and page.
type PageKey = (DomainId, Option<u32>, u64);

pub struct FakeUnit {
    pub id: UnitId,
    pub cap: Cell<Cap>,
    pub ecap: Cell<Ecap>,
    pub status: Cell<Gsts>,
    pub root: Cell<RootAddr>,
    /// Invalidation never completes.
    pub hangs: Cell<bool>,
    /// It never says whether a device answered.
    pub devices_hang: Cell<bool>,
    /// The interrupt table; `None`: the host leaves interrupt remapping out.
    pub irta: Cell<Option<Irta>>,
    pub cached_interrupts: RefCell<BTreeMap<u32, [u64; 2]>>,
    pub shared: Rc<Shared>,
    contexts: RefCell<BTreeMap<SourceId, [u64; 4]>>,
    pasids: RefCell<BTreeMap<(SourceId, u32), PasidEntry>>,
    pages: RefCell<BTreeMap<PageKey, u64>>,
}

impl FakeUnit {
    pub fn new(index: u64, root: PhysAddr, shared: Rc<Shared>) -> Self {
        Self {
            id: UnitId { segment: Segment(0), register_base: 0xfed9_0000 + 0x1000 * index },
            cap: Cell::new(Cap::ZERO.with_nd(2).with_sagaw(0b110).with_sslps(0b11).with_mgaw(47)),
            ecap: Cell::new(Ecap::ZERO.with_qi(true).with_c(true).with_dt(true)),
            status: Cell::new(Gsts::ZERO.with_tes(true).with_rtps(true).with_qies(true)),
            root: Cell::new(RootAddr::ZERO.with_rta(root.get() >> 12)),
            hangs: Cell::new(false),
            devices_hang: Cell::new(false),
            irta: Cell::new(None),
            cached_interrupts: RefCell::default(),
            shared,
            contexts: RefCell::default(),
            pasids: RefCell::default(),
            pages: RefCell::default(),
        }
    }

    /// A request by `source` without PASID to `iova`: where it ends up.
    pub fn dma(&self, source: SourceId, iova: u64) -> Result<u64, Blocked> {
        self.request(source, None, iova)
    }

    /// A request by `source` with or without PASID.
    pub fn request(&self, source: SourceId, pasid: Option<u32>, iova: u64) -> Result<u64, Blocked> {
        if !self.status.get().tes() {
            return Ok(iova);
        }
        let words = self.context(source)?;
        if self.is_scalable() {
            let context = ScalableContextEntry::from_raw(words);
            let pasid = pasid.unwrap_or(context.rid_pasid() as u32);
            let entry = self.pasid(source, context, pasid)?;
            return self.by_pasid(entry, pasid, iova);
        }
        let entry = ContextEntry::from_raw([words[0], words[1]]);
        if entry.translation_type() == TranslationType::PassThrough {
            return Ok(iova);
        }
        self.cached((entry.domain_id(), None, iova >> 12), iova, &|| {
            self.second(entry.top_table(), entry.levels(), iova)
        })
    }

    fn is_scalable(&self) -> bool {
        self.root.get().ttm() == 1
    }

    fn cached(
        &self,
        key: PageKey,
        iova: u64,
        walk: &dyn Fn() -> Result<u64, Blocked>,
    ) -> Result<u64, Blocked> {
        let cached = self.pages.borrow().get(&key).copied();
        let page = match cached {
            Some(page) => page,
            None => walk()? & !0xfff,
        };
        self.pages.borrow_mut().insert(key, page);
        Ok(page | iova & 0xfff)
    }

    fn by_pasid(&self, entry: PasidEntry, pasid: u32, iova: u64) -> Result<u64, Blocked> {
        let id = entry.domain_id();
        let second = |address| self.second(entry.second_stage_table(), entry.second_stage_levels(), address);
        let (top, levels) = (entry.first_stage_table().get(), entry.first_stage_levels());
        match entry.translation() {
            PasidTranslation::SecondStage => self.cached((id, None, iova >> 12), iova, &|| second(iova)),
            PasidTranslation::FirstStage => {
                self.cached((id, Some(pasid), iova >> 12), iova, &|| self.first(top, levels, iova, &Ok))
            }
            PasidTranslation::Nested => self.cached((id, Some(pasid), iova >> 12), iova, &|| {
                second(self.first(top, levels, iova, &second)?)
            }),
            PasidTranslation::PassThrough => Ok(iova),
            PasidTranslation::Reserved(_) => Err(Blocked::Pasid),
        }
    }

    fn context(&self, source: SourceId) -> Result<[u64; 4], Blocked> {
        if let Some(entry) = self.contexts.borrow().get(&source) {
            return Ok(*entry);
        }
        let half = if self.is_scalable() { 8 * u64::from(source.devfn() >> 7) } else { 0 };
        let root = self.root.get().table().plus(16 * u64::from(source.bus()) + half);
        let root = RootEntry::from_raw([self.shared.word(root).ok_or(Blocked::Root)?, 0]);
        let table = Some(root).filter(|r| r.present()).ok_or(Blocked::Root)?.context_table();
        let (index, count) = if self.is_scalable() {
            (u64::from(source.devfn() & 0x7f), 4)
        } else {
            (u64::from(source.devfn()), 2)
        };
        let mut words = [0; 4];
        for (n, word) in (0..).zip(&mut words[..count]) {
            let at = table.plus(8 * (count as u64 * index + n));
            *word = self.shared.word(at).ok_or(Blocked::Context)?;
        }
        if words[0] & 1 == 0 {
            return Err(Blocked::Context);
        }
        self.contexts.borrow_mut().insert(source, words);
        Ok(words)
    }

    fn pasid(
        &self,
        source: SourceId,
        context: ScalableContextEntry,
        pasid: u32,
    ) -> Result<PasidEntry, Blocked> {
        if let Some(entry) = self.pasids.borrow().get(&(source, pasid)) {
            return Ok(*entry);
        }
        if directory_index(pasid) >= context.directory_entries() {
            return Err(Blocked::Pasid);
        }
        let read = |at| self.shared.word(at).ok_or(Blocked::Pasid);
        let pointer =
            PasidDirectoryEntry::from_raw(read(context.directory().plus(8 * directory_index(pasid)))?);
        let pointer = Some(pointer).filter(|p| p.present()).ok_or(Blocked::Pasid)?;
        let mut words = [0; 8];
        for (n, word) in (0..).zip(&mut words) {
            *word = read(pointer.table().plus(64 * table_index(pasid) + 8 * n))?;
        }
        let entry = Some(PasidEntry::from_raw(words)).filter(|e| e.present()).ok_or(Blocked::Pasid)?;
        self.pasids.borrow_mut().insert((source, pasid), entry);
        Ok(entry)
    }

    fn second(&self, mut table: PhysAddr, levels: u8, iova: u64) -> Result<u64, Blocked> {
        for level in (0..levels).rev() {
            let at = table.plus(8 * second_stage::index(iova, level));
            let entry = SecondStageEntry::from_raw(self.shared.word(at).ok_or(Blocked::Page)?);
            if !entry.is_present() {
                return Err(Blocked::Page);
            }
            if entry.is_leaf(level) {
                return Ok(entry.address().get() | iova & (second_stage::span(level) - 1));
            }
            table = entry.address();
        }
        Err(Blocked::Page)
    }

    /// The first stage; pointers, the first one too, go through `second`.
    fn first(
        &self,
        mut pointer: u64,
        levels: u8,
        iova: u64,
        second: &dyn Fn(u64) -> Result<u64, Blocked>,
    ) -> Result<u64, Blocked> {
        for level in (0..levels).rev() {
            let at = PhysAddr::new(second(pointer)? + 8 * second_stage::index(iova, level));
            let raw = self.shared.word(at).ok_or(Blocked::Page)?;
            let entry = FirstStageEntry::from_raw(raw);
            if !entry.is_present() {
                return Err(Blocked::Page);
            }
            // Hardware notes that the entry was used.
            self.shared.set(at, entry.with_a(true).with_d(entry.d() || entry.is_leaf(level)).raw());
            if entry.is_leaf(level) {
                return Ok(entry.address(level).get() | iova & (second_stage::span(level) - 1));
            }
            pointer = entry.address(level).get();
        }
        Err(Blocked::Page)
    }
}

impl FakeUnit {
    fn device_answers(&self, source: SourceId) -> Result<bool, TimedOut> {
        if self.hangs.get() || self.devices_hang.get() {
            return Err(TimedOut { unit: self.id, what: "device-TLB invalidation", waited: 100_000_000 });
        }
        Ok(!self.shared.silent.borrow().contains(&source))
    }
}

impl Unit for FakeUnit {
    fn id(&self) -> UnitId {
        self.id
    }
    fn cap(&self) -> Cap {
        self.cap.get()
    }
    fn ecap(&self) -> Ecap {
        self.ecap.get()
    }
    fn status(&self) -> Gsts {
        self.status.get()
    }
    fn root(&self) -> RootAddr {
        self.root.get()
    }

    fn forget(&self, _: &Atomic, what: Forget) -> Result<Forgotten, TimedOut> {
        self.shared.step(Step::Forget(self.id, what));
        if self.hangs.get() {
            return Err(TimedOut { unit: self.id, what: "invalidation", waited: 1_000_000 });
        }
        let (mut contexts, mut pages) = (self.contexts.borrow_mut(), self.pages.borrow_mut());
        let mut pasids = self.pasids.borrow_mut();
        match what {
            Forget::Everything => {
                contexts.clear();
                pasids.clear();
                pages.clear();
            }
            Forget::Requester { source, domain } => {
                contexts.remove(&source);
                pasids.retain(|(s, _), _| *s != source);
                pages.retain(|(did, ..), _| *did != domain);
            }
            Forget::Domain(domain) => pages.retain(|(did, ..), _| *did != domain),
            Forget::Pages { domain, start, order } => {
                let first = start.get() >> 12;
                pages.retain(|(did, _, page), _| {
                    *did != domain || *page < first || *page >= first + (1 << order)
                });
            }
        }
        Ok(Forgotten::observed())
    }

    fn forget_device(&self, _: &Atomic, source: SourceId, tlb: DeviceTlb) -> Result<bool, TimedOut> {
        assert_eq!(tlb.physical_function, source);
        self.shared.step(Step::ForgetDevice(self.id, source));
        self.device_answers(source)
    }
    fn forget_device_pasid(
        &self,
        _: &Atomic,
        source: SourceId,
        tlb: DeviceTlb,
        pasid: u32,
    ) -> Result<bool, TimedOut> {
        assert_eq!(tlb.physical_function, source);
        self.shared.step(Step::ForgetDevicePasid(self.id, source, pasid));
        self.device_answers(source)
    }
    fn disable(&self, _: &Atomic) -> Result<(), TimedOut> {
        self.shared.step(Step::Disable(self.id));
        if self.hangs.get() {
            return Err(TimedOut { unit: self.id, what: "translation off", waited: 1_000_000 });
        }
        self.status.set(self.status.get().with_tes(false));
        Ok(())
    }

    fn interrupts(&self) -> Option<&dyn InterruptRemapping> {
        if self.irta.get().is_some() { Some(self) } else { None }
    }

    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R {
        assert_eq!(self.shared.depth.get(), 0, "a lock within a lock");
        self.shared.depth.set(1);
        let result = ctx.atomic(f);
        self.shared.depth.set(0);
        result
    }
}
