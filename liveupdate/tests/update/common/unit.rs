//! A remapping unit: reads tables for DMA, caches what it read, forgets when told to.

use super::machine::{Shared, Step};
use liveupdate::host::{Atomic, Forget, Forgotten, InterruptRemapping, MaySleep, TimedOut, Unit};
use spec::context::{ContextEntry, TranslationType};
use spec::regs::{Cap, Ecap, Gsts, Irta, RootAddr};
use spec::root::RootEntry;
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
    Page,
}

pub struct FakeUnit {
    pub id: UnitId,
    pub cap: Cell<Cap>,
    pub ecap: Cell<Ecap>,
    pub status: Cell<Gsts>,
    pub root: Cell<RootAddr>,
    /// Invalidation never completes.
    pub hangs: Cell<bool>,
    /// The interrupt table; `None`: the host leaves interrupt remapping out.
    pub irta: Cell<Option<Irta>>,
    pub cached_interrupts: RefCell<BTreeMap<u32, [u64; 2]>>,
    pub shared: Rc<Shared>,
    contexts: RefCell<BTreeMap<SourceId, ContextEntry>>,
    pages: RefCell<BTreeMap<(DomainId, u64), u64>>,
}

impl FakeUnit {
    pub fn new(index: u64, root: PhysAddr, shared: Rc<Shared>) -> Self {
        Self {
            id: UnitId { segment: Segment(0), register_base: 0xfed9_0000 + 0x1000 * index },
            cap: Cell::new(Cap::ZERO.with_nd(2).with_sagaw(0b110).with_sslps(0b11).with_mgaw(47)),
            ecap: Cell::new(Ecap::ZERO.with_qi(true).with_c(true)),
            status: Cell::new(Gsts::ZERO.with_tes(true).with_rtps(true).with_qies(true)),
            root: Cell::new(RootAddr::ZERO.with_rta(root.get() >> 12)),
            hangs: Cell::new(false),
            irta: Cell::new(None),
            cached_interrupts: RefCell::default(),
            shared,
            contexts: RefCell::default(),
            pages: RefCell::default(),
        }
    }

    /// A request by `source` to `iova`: where it ends up.
    pub fn dma(&self, source: SourceId, iova: u64) -> Result<u64, Blocked> {
        if !self.status.get().tes() {
            return Ok(iova);
        }
        let entry = self.context(source)?;
        if entry.translation_type() == TranslationType::PassThrough {
            return Ok(iova);
        }
        let key = (entry.domain_id(), iova >> 12);
        let cached = self.pages.borrow().get(&key).copied();
        let page = match cached {
            Some(page) => page,
            None => self.walk(entry, iova)?,
        };
        self.pages.borrow_mut().insert(key, page);
        Ok(page | iova & 0xfff)
    }

    fn context(&self, source: SourceId) -> Result<ContextEntry, Blocked> {
        if let Some(entry) = self.contexts.borrow().get(&source) {
            return Ok(*entry);
        }
        let root = self.pair(self.root.get().table(), u64::from(source.bus())).ok_or(Blocked::Root)?;
        let root = Some(RootEntry::from_raw(root)).filter(|r| r.present()).ok_or(Blocked::Root)?;
        let entry = self.pair(root.context_table(), u64::from(source.devfn())).ok_or(Blocked::Context)?;
        let entry = Some(ContextEntry::from_raw(entry)).filter(|e| e.present()).ok_or(Blocked::Context)?;
        self.contexts.borrow_mut().insert(source, entry);
        Ok(entry)
    }

    fn pair(&self, table: PhysAddr, index: u64) -> Option<[u64; 2]> {
        let at = table.plus(16 * index);
        Some([self.shared.word(at)?, self.shared.word(at.plus(8))?])
    }

    fn walk(&self, entry: ContextEntry, iova: u64) -> Result<u64, Blocked> {
        let mut table = entry.top_table();
        for level in (0..entry.levels()).rev() {
            let at = table.plus(8 * second_stage::index(iova, level));
            let entry = SecondStageEntry::from_raw(self.shared.word(at).ok_or(Blocked::Page)?);
            if !entry.is_present() {
                return Err(Blocked::Page);
            }
            if entry.is_leaf(level) {
                let within = iova & (second_stage::span(level) - 1);
                return Ok((entry.address().get() | within) & !0xfff);
            }
            table = entry.address();
        }
        Err(Blocked::Page)
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
        match what {
            Forget::Everything => {
                contexts.clear();
                pages.clear();
            }
            Forget::Requester { source, domain } => {
                contexts.remove(&source);
                pages.retain(|(did, _), _| *did != domain);
            }
            Forget::Domain(domain) => pages.retain(|(did, _), _| *did != domain),
            Forget::Pages { domain, start, order } => {
                let first = start.get() >> 12;
                pages.retain(|(did, page), _| {
                    *did != domain || *page < first || *page >= first + (1 << order)
                });
            }
        }
        Ok(Forgotten::observed())
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
