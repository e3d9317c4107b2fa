//! One unit: brought up from reset or firmware's state, or taken over while it runs; made to forget; switched on and off.
//!
//! How it is made to forget is in [`crate::forget`], how root and context entries are written in [`crate::entries`].

use crate::Hal;
use crate::arena::{Arena, UNIT_CHUNK};
use crate::command;
use crate::config::{Capability, Choices, lacks};
pub use crate::config::{Config, Origin};
use crate::error::UnitError;
use crate::faults::{Fault, FaultSummary, harvest};
use crate::forget::Invalidation;
use crate::interrupts::InterruptTable;
use crate::queue::{self, FRAMES, Queue};
use crate::queue_errors::QueueError;
use crate::registers::Registers;
use crate::table::format::Stage;
use core::cell::{Cell, RefCell};
use liveupdate::host::{Atomic, DeviceTlb, Forget, Forgotten, InterruptRemapping, MaySleep, TimedOut, Unit};
use spec::regs::{Cap, Ecap, Fectl, Fsts, Gsts, Irta, Pmen, RootAddr, offset};
use spec::{Extent, PAGE_SIZE, PhysAddr, SourceId, UnitId};

/// One remapping unit.
#[derive(Debug)]
pub struct VtdUnit<'h, H> {
    pub(crate) registers: Registers<'h, H>,
    /// `None` on hardware without a queue.
    pub(crate) queue: Option<Queue>,
    pub(crate) invalidation: Invalidation,
    pub(crate) config: Config,
    origin: Origin,
    lock: Cell<bool>,
    /// Where page requests are queued, when they are.
    pub(crate) pages: Cell<Option<PhysAddr>>,
    /// Frames of the context tables (and root table) that this driver made.
    pub(crate) tables: RefCell<Arena>,
    /// The interrupt table, while the driver knows of one.
    pub(crate) interrupt_books: RefCell<Option<InterruptTable>>,
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
    /// in, the root table set, all caches invalidated. Translation is switched neither on nor off: a unit that translates
    /// in another mode is refused, as the mode cannot change under it (VT-d 11.4.5).
    ///
    /// # Errors
    /// [`UnitError`]. Frames that hardware may know of are not given back then.
    pub fn set_up(hal: &'h H, ctx: &mut MaySleep, id: UnitId, config: Config) -> Result<Self, UnitError> {
        let registers = Registers { hal, id, patience: config.patience };
        check(&registers, config)?;
        if registers.status().tes() {
            check_mode(&registers, config)?;
        }
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
        let root = RootAddr::ZERO.with_ttm(config.mode.table_mode()).with_rta(root.frame().number());
        registers.write64(offset::RTADDR, root.raw());
        registers.command("setting the root table", |c| c.with_srtp(true), Gsts::rtps)?;
        let unit = Self {
            registers,
            invalidation: Invalidation::probe(&registers, queue.as_ref(), config.mode)?,
            queue,
            config,
            origin: Origin::SetUp,
            lock: Cell::new(false),
            pages: Cell::new(None),
            tables: RefCell::new(tables),
            interrupt_books: RefCell::new(None),
        };
        // Where setting the root table does not invalidate by itself (CAP.ESRTPS), software does (VT-d 6.6).
        if !registers.cap().esrtps() {
            let _ = unit.locked(ctx, |atomic| unit.forget(atomic, Forget::Everything))?;
        }
        Ok(unit)
    }

    /// Takes over a unit that a predecessor left running, in the configured mode. Translation, the root table, interrupt
    /// remapping with its table, and recorded faults are not touched. The predecessor's queue, or its register commands,
    /// are drained; then a queue of our own is put in.
    ///
    /// # Errors
    /// [`UnitError`]; the unit goes on translating. Frames that hardware may know of are not given back.
    pub fn take_over(hal: &'h H, ctx: &mut MaySleep, id: UnitId, config: Config) -> Result<Self, UnitError> {
        let registers = Registers { hal, id, patience: config.patience };
        check(&registers, config)?;
        let running = |status: Gsts| status.tes() && status.rtps();
        let not_running = |status: Gsts| UnitError::NotRunning { unit: id, status: status.raw() };
        let status = registers.status();
        if !running(status) {
            return Err(not_running(status));
        }
        check_mode(&registers, config)?;
        registers.hal.read(registers.root().table())?;
        let queue = queue_frames(&registers, ctx)?;
        let queue = replace_queue(&registers, ctx, queue, config)?;
        let status = registers.status();
        if !running(status) {
            return Err(not_running(status));
        }
        // In place, as it is: interrupts go on meanwhile.
        let interrupts = (status.ires() && queue.is_some())
            .then(|| InterruptTable::new(Irta::from_raw(registers.read64(offset::IRTA))));
        Ok(Self {
            registers,
            invalidation: Invalidation::probe(&registers, queue.as_ref(), config.mode)?,
            queue,
            config,
            origin: Origin::TakenOver,
            lock: Cell::new(false),
            pages: Cell::new(None),
            tables: RefCell::new(Arena::new(UNIT_CHUNK)),
            interrupt_books: RefCell::new(interrupts),
        })
    }

    /// How the driver came by the unit.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// How the unit is driven.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config
    }

    /// What the driver makes of the unit's capabilities.
    #[must_use]
    pub fn choices(&self) -> Choices {
        Choices::of(self.registers.cap(), self.registers.ecap())
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

    /// What went wrong in the invalidation queue since it was asked last, and was mended: each error is handed to `f`.
    /// Says how many more there were than could be kept. Needs no lock.
    pub fn queue_errors(&self, f: &mut dyn FnMut(QueueError)) -> u32 {
        self.queue.as_ref().map_or(0, |queue| queue.errors().take(f))
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

    fn release_protected_memory(&self) -> Result<(), TimedOut> {
        let cap = self.registers.cap();
        let pmen = || Pmen::from_raw(self.registers.read32(offset::PMEN));
        if !(cap.plmr() || cap.phmr()) || !(pmen().epm() || pmen().prs()) {
            return Ok(());
        }
        self.registers.write32(offset::PMEN, pmen().with_epm(false).raw());
        self.registers.wait("releasing protected memory", || !pmen().prs())
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
        self.forget_what(what)?;
        Ok(Forgotten::observed())
    }
    fn forget_device(&self, atomic: &Atomic, source: SourceId, tlb: DeviceTlb) -> Result<bool, TimedOut> {
        self.forget_all_in_device(atomic, source, tlb)
    }
    fn forget_device_pasid(
        &self,
        atomic: &Atomic,
        source: SourceId,
        tlb: DeviceTlb,
        pasid: u32,
    ) -> Result<bool, TimedOut> {
        self.forget_in_device(atomic, source, tlb, &[pasid], None)
    }
    fn disable(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        self.registers.command("switching translation off", |c| c.with_te(false), |s| !s.tes())?;
        self.release_protected_memory()
    }
    fn interrupts(&self) -> Option<&dyn InterruptRemapping> {
        if self.can_remap_interrupts() { Some(self) } else { None }
    }
    /// # Panics
    /// When the lock is held already: code under a unit's lock asked for it again.
    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R {
        assert!(!self.lock.replace(true), "the lock of unit {} is held already", self.registers.id);
        let _open = Locked(&self.lock);
        ctx.atomic(f)
    }
}

/// Whether a unit answers, is one that this driver knows, and has what the configuration asks for.
fn check<H: Hal>(registers: &Registers<'_, H>, config: Config) -> Result<(), UnitError> {
    let unit = registers.id;
    let (version, cap) = (registers.version(), registers.cap());
    if [0, u32::MAX].contains(&version.raw()) || [0, u64::MAX].contains(&cap.raw()) {
        return Err(UnitError::NotThere(unit));
    }
    if version.max() == 0 {
        return Err(UnitError::Version { unit, version: version.raw() });
    }
    let choices = Choices::of(cap, registers.ecap());
    let unused = config.registers_only && config.mode.is_scalable();
    let lacking = lacks(registers.ecap(), config.mode).or(unused.then_some(Capability::Queue));
    if let Some(what) = lacking {
        return Err(UnitError::Lacks { unit, what });
    }
    if config.mode.stage() == Stage::Second && choices.second_stage_levels.is_none() {
        return Err(UnitError::NoWidth { unit, cap: cap.raw() });
    }
    Ok(())
}

/// Whether the root table register is in the configured mode (I10).
fn check_mode<H: Hal>(registers: &Registers<'_, H>, config: Config) -> Result<(), UnitError> {
    let root = registers.root();
    if root.ttm() == config.mode.table_mode() {
        return Ok(());
    }
    Err(UnitError::Mode { unit: registers.id, root: root.raw(), configured: config.mode })
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
    let queue = Queue::new(frames);
    if registers.status().qies() {
        queue::retire(registers, status_word, queue.errors())?;
    } else {
        command::drain(registers)?;
        // Left over from a queue that is off; a set bit would stop ours.
        registers.write32(offset::FSTS, Fsts::ZERO.with_iqe(true).raw());
    }
    if config.registers_only || !registers.ecap().qi() {
        registers.hal.free(ctx, frames);
        return Ok(None);
    }
    if config.mode.is_scalable() && !config.narrow_queue {
        queue.start_wide(registers)?;
    } else {
        queue.start(registers)?;
    }
    Ok(Some(queue))
}
