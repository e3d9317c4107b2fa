//! One unit: brought up from reset or firmware's state, or taken over while it runs; made to forget; switched on and off.
//!
//! How root and context entries are written is in [`crate::entries`].

use crate::Hal;
use crate::arena::{Arena, UNIT_CHUNK};
use crate::command;
use crate::error::UnitError;
use crate::faults::{Fault, FaultSummary, harvest};
use crate::queue::{self, FRAMES, Queue};
use crate::registers::{Patience, Registers};
use core::cell::{Cell, RefCell};
use liveupdate::host::{Atomic, Forget, Forgotten, MaySleep, TimedOut, Unit};
use spec::invalidation::{ContextInvalidate, IotlbInvalidate, granularity, kind};
use spec::regs::{Cap, Ccmd, Ecap, Fectl, Fsts, Gsts, IotlbCommand, Iva, Pmen, RootAddr, offset};
use spec::{DomainId, Extent, Iova, PAGE_SIZE, PhysAddr, SourceId, UnitId};

/// RTADDR.TTM of legacy mode.
const LEGACY: u64 = 0;

/// How a unit is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// Bound of every wait for hardware.
    pub patience: Patience,
    /// Leave the invalidation queue alone and invalidate by registers, as on hardware without a queue.
    pub registers_only: bool,
}

/// How the driver came by a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Set up anew: an empty root table.
    SetUp,
    /// Taken over while it ran, with the predecessor's tables.
    TakenOver,
}

/// One remapping unit in legacy mode.
#[derive(Debug)]
pub struct VtdUnit<'h, H> {
    pub(crate) registers: Registers<'h, H>,
    /// `None` on hardware without a queue.
    queue: Option<Queue>,
    origin: Origin,
    lock: Cell<bool>,
    /// Frames of the context tables (and root table) that this driver made.
    pub(crate) tables: RefCell<Arena>,
}

/// Which pages an IOTLB invalidation is for.
#[derive(Debug, Clone, Copy)]
enum Reach {
    Everything,
    Domain(DomainId),
    Pages(DomainId, Iova, u8),
}

/// Opens the lock again, also when the code under it panics.
struct Locked<'u>(&'u Cell<bool>);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<'h, H: Hal> VtdUnit<'h, H> {
    /// Brings a unit up with an empty root table, from reset or from whatever firmware left: faults dropped, a queue put
    /// in, the root table set, all caches invalidated. Translation is switched neither on nor off.
    ///
    /// # Errors
    /// [`UnitError`]. Frames that hardware may know of are not given back then.
    pub fn set_up(hal: &'h H, ctx: &mut MaySleep, id: UnitId, config: Config) -> Result<Self, UnitError> {
        let registers = Registers { hal, id, patience: config.patience };
        check(&registers)?;
        let mut tables = Arena::new(UNIT_CHUNK);
        tables.reserve(hal, ctx, 1).map_err(|_| UnitError::OutOfMemory { unit: id, frames: 1 })?;
        let root = tables.take().ok_or(UnitError::OutOfMemory { unit: id, frames: 1 })?;
        let queue = match queue_frames(&registers, ctx) {
            Ok(frames) => frames,
            Err(e) => {
                tables.dissolve(hal, ctx);
                return Err(e);
            }
        };
        // Faults are polled for. What firmware's time left behind is nobody's business now.
        registers.write32(offset::FECTL, Fectl::ZERO.with_im(true).raw());
        harvest(&registers, &mut |_| {});
        let queue = replace_queue(&registers, ctx, queue, config)?;
        registers
            .write64(offset::RTADDR, RootAddr::ZERO.with_ttm(LEGACY).with_rta(root.frame().number()).raw());
        registers.command("setting the root table", |c| c.with_srtp(true), Gsts::rtps)?;
        let unit = Self {
            registers,
            queue,
            origin: Origin::SetUp,
            lock: Cell::new(false),
            tables: RefCell::new(tables),
        };
        let _ = unit.locked(ctx, |atomic| unit.forget(atomic, Forget::Everything))?;
        Ok(unit)
    }

    /// Takes over a unit that a predecessor left running. Translation, the root table and recorded faults are not
    /// touched. The predecessor's queue, or its register commands, are drained; then a queue of our own is put in.
    ///
    /// # Errors
    /// [`UnitError`]; the unit goes on translating. Frames that hardware may know of are not given back.
    pub fn take_over(hal: &'h H, ctx: &mut MaySleep, id: UnitId, config: Config) -> Result<Self, UnitError> {
        let registers = Registers { hal, id, patience: config.patience };
        check(&registers)?;
        let running = |status: Gsts| status.tes() && status.rtps();
        let not_running = |status: Gsts| UnitError::NotRunning { unit: id, status: status.raw() };
        let status = registers.status();
        if !running(status) {
            return Err(not_running(status));
        }
        let root = registers.root();
        if root.ttm() != LEGACY {
            return Err(UnitError::Mode { unit: id, root: root.raw() });
        }
        registers.hal.read(root.table())?;
        let queue = queue_frames(&registers, ctx)?;
        let queue = replace_queue(&registers, ctx, queue, config)?;
        let status = registers.status();
        if !running(status) {
            return Err(not_running(status));
        }
        let tables = RefCell::new(Arena::new(UNIT_CHUNK));
        Ok(Self { registers, queue, origin: Origin::TakenOver, lock: Cell::new(false), tables })
    }

    /// How the driver came by the unit.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Whether hardware is made to forget through a queue; otherwise through registers.
    #[must_use]
    pub const fn has_queue(&self) -> bool {
        self.queue.is_some()
    }

    /// Switches translation on, and then firmware's protected memory regions off: in this order no requester reaches
    /// more in between than before or after.
    ///
    /// # Errors
    /// [`TimedOut`] when a status bit did not follow.
    pub fn enable(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        self.flush_write_buffer()?;
        self.registers.command("switching translation on", |c| c.with_te(true), Gsts::tes)?;
        self.release_protected_memory()
    }

    /// Reads recorded faults, hands each to `f`, clears them, and clears the overflow bit. Bounded; needs no lock.
    pub fn faults(&self, f: &mut dyn FnMut(Fault)) -> FaultSummary {
        harvest(&self.registers, f)
    }

    /// Where the root table is, as hardware has it.
    #[must_use]
    pub fn root_table(&self) -> PhysAddr {
        self.registers.root().table()
    }

    /// The machine.
    #[must_use]
    pub const fn hal(&self) -> &'h H {
        self.registers.hal
    }

    /// Flushes the unit's write buffer where it has one that must be flushed by hand: after making an entry present,
    /// when no invalidation follows (VT-d 6.8).
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn flush_write_buffer(&self) -> Result<(), TimedOut> {
        if !self.registers.cap().rwbf() {
            return Ok(());
        }
        self.registers.command("flushing the write buffer", |c| c.with_wbf(true), |s| !s.wbfs())
    }

    /// Makes a new context entry known: with caching mode hardware remembered that there was none, under domain id 0
    /// (VT-d 6.1).
    pub(crate) fn announce(
        &self,
        atomic: &Atomic,
        source: SourceId,
        domain: DomainId,
    ) -> Result<(), TimedOut> {
        if !self.registers.cap().cm() {
            return self.flush_write_buffer();
        }
        let _ = self.forget(atomic, Forget::Requester { source, domain: DomainId(0) })?;
        let _ = self.forget(atomic, Forget::Domain(domain))?;
        Ok(())
    }

    fn release_protected_memory(&self) -> Result<(), TimedOut> {
        let cap = self.registers.cap();
        let pmen = || Pmen::from_raw(self.registers.read32(offset::PMEN));
        if !(cap.plmr() || cap.phmr()) || !(pmen().epm() || pmen().prs()) {
            return Ok(());
        }
        self.registers.write32(offset::PMEN, pmen().with_epm(false).raw());
        self.registers.wait("releasing protected memory", || !pmen().prs())
    }

    /// Invalidates context entries: all, or those of one source-id.
    fn forget_context(&self, one: Option<(SourceId, DomainId)>) -> Result<(), TimedOut> {
        let (g, source, domain) = match one {
            None => (granularity::GLOBAL, 0, 0),
            Some((source, domain)) => (granularity::SELECTIVE, u64::from(source.raw()), u64::from(domain.0)),
        };
        match &self.queue {
            Some(queue) => {
                let descriptor = ContextInvalidate::ZERO.with_kind(kind::CONTEXT).with_g(g);
                let descriptor = descriptor.with_sid(source).with_did(domain).raw();
                queue.submit(&self.registers, "context cache invalidation", &[descriptor])
            }
            None => {
                command::context(&self.registers, Ccmd::ZERO.with_cirg(g).with_sid(source).with_did(domain))
            }
        }
    }

    /// Invalidates translations, and drains requests under way where hardware can.
    fn forget_translations(&self, reach: Reach) -> Result<(), TimedOut> {
        let cap = self.registers.cap();
        let (g, domain, pages) = match reach {
            Reach::Everything => (granularity::GLOBAL, 0, None),
            Reach::Pages(domain, start, order) if cap.psi() && u64::from(order) <= cap.mamv() => {
                let page = (start.get() / PAGE_SIZE) >> order << order;
                (granularity::SELECTIVE, domain.0, Some((page, u64::from(order))))
            }
            Reach::Domain(domain) | Reach::Pages(domain, ..) => (granularity::DOMAIN, domain.0, None),
        };
        let (page, order) = pages.unwrap_or((0, 0));
        match &self.queue {
            Some(queue) => {
                let descriptor =
                    IotlbInvalidate::ZERO.with_kind(kind::IOTLB).with_g(g).with_did(u64::from(domain));
                let descriptor =
                    descriptor.with_dw(cap.dwd()).with_dr(cap.drd()).with_am(order).with_addr(page);
                queue.submit(&self.registers, "IOTLB invalidation", &[descriptor.raw()])
            }
            None => {
                let command = IotlbCommand::ZERO.with_iirg(g).with_did(u64::from(domain));
                let command = command.with_dw(cap.dwd()).with_dr(cap.drd());
                let pages = pages.map(|_| Iva::ZERO.with_am(order).with_addr(page));
                command::iotlb(&self.registers, command, pages)
            }
        }
    }
}

impl<H: Hal> Unit for VtdUnit<'_, H> {
    fn id(&self) -> UnitId {
        self.registers.id
    }
    fn cap(&self) -> Cap {
        self.registers.cap()
    }
    fn ecap(&self) -> Ecap {
        self.registers.ecap()
    }
    fn status(&self) -> Gsts {
        self.registers.status()
    }
    fn root(&self) -> RootAddr {
        self.registers.root()
    }
    fn forget(&self, _atomic: &Atomic, what: Forget) -> Result<Forgotten, TimedOut> {
        // Context entries first, and seen done: a translation cached in between would be tagged by an old entry
        // (VT-d 6.5.3).
        match what {
            Forget::Everything => {
                self.forget_context(None)?;
                self.forget_translations(Reach::Everything)?;
            }
            Forget::Requester { source, domain } => {
                self.forget_context(Some((source, domain)))?;
                self.forget_translations(Reach::Domain(domain))?;
            }
            Forget::Domain(domain) => self.forget_translations(Reach::Domain(domain))?,
            Forget::Pages { domain, start, order } => {
                self.forget_translations(Reach::Pages(domain, start, order))?;
            }
        }
        Ok(Forgotten::observed())
    }
    fn disable(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        self.registers.command("switching translation off", |c| c.with_te(false), |s| !s.tes())?;
        self.release_protected_memory()
    }
    /// # Panics
    /// When the lock is held already: code under a unit's lock asked for it again.
    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R {
        assert!(!self.lock.replace(true), "the lock of unit {} is held already", self.registers.id);
        let _open = Locked(&self.lock);
        ctx.atomic(f)
    }
}

/// Whether a unit answers, and is one that this driver knows.
fn check<H: Hal>(registers: &Registers<'_, H>) -> Result<(), UnitError> {
    let unit = registers.id;
    let (version, cap) = (registers.version(), registers.cap());
    if [0, u32::MAX].contains(&version.raw()) || [0, u64::MAX].contains(&cap.raw()) {
        return Err(UnitError::NotThere(unit));
    }
    if version.max() == 0 {
        return Err(UnitError::Version { unit, version: version.raw() });
    }
    if !(3..=5).any(|levels| cap.supports_levels(levels)) {
        return Err(UnitError::NoWidth { unit, cap: cap.raw() });
    }
    Ok(())
}

fn queue_frames<H: Hal>(registers: &Registers<'_, H>, ctx: &mut MaySleep) -> Result<Extent, UnitError> {
    registers
        .hal
        .allocate(ctx, FRAMES, 1)
        .ok_or(UnitError::OutOfMemory { unit: registers.id, frames: FRAMES })
}

/// Drains and switches off whatever queue is on, and puts one in `frames` in its place, if the unit is to have one. The
/// frames serve for the draining in any case.
fn replace_queue<H: Hal>(
    registers: &Registers<'_, H>,
    ctx: &mut MaySleep,
    frames: Extent,
    config: Config,
) -> Result<Option<Queue>, UnitError> {
    let status_word = frames.start().plus(PAGE_SIZE);
    if registers.status().qies() {
        queue::retire(registers, status_word)?;
    } else {
        command::drain(registers)?;
        // Left over from a queue that is off; a set bit would stop ours.
        registers.write32(offset::FSTS, Fsts::ZERO.with_iqe(true).raw());
    }
    if config.registers_only || !registers.ecap().qi() {
        registers.hal.free(ctx, frames);
        return Ok(None);
    }
    let queue = Queue::new(frames);
    queue.start(registers)?;
    Ok(Some(queue))
}
