//! The glue between a platform, the driver and the update's core: what a kernel of its own writes once.
//!
//! [`Machine`] gives the driver memory, registers and time out of a [`Platform`]; [`Kernel`] gives the core the driver's
//! units, the books of preserved frames and the machine's topology. Both are small on purpose: they are the port.

use super::{Mutant, ats};
use crate::pci;
use crate::platform::Platform;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use iommu::{Hal, Iommu, VtdUnit};
use liveupdate::host::{
    Adoptable, Atomic, FrameKeeper, Host, InterruptRemapping, KeepError, Level, MaySleep, NoMemory,
    RequesterKind, TableMemory,
};
use spec::{Extent, Frame, PhysAddr, Requester, Segment, SourceId, UnitId};

/// A platform as the driver sees it, with the faults that a test may put into the seam between core and hardware.
pub(crate) struct Machine<'p, P: ?Sized> {
    pub(crate) platform: &'p P,
    /// Stores to tables are lost: what happens when the cut-off is left out.
    pub(crate) lose_stores: Cell<bool>,
    /// Frames come out of this run alone: of the others nobody knows what is preserved, or what devices still write to.
    pub(crate) only: Cell<Option<Extent>>,
}

impl<'p, P: Platform + ?Sized> Machine<'p, P> {
    pub(crate) fn new(platform: &'p P) -> Self {
        Self { platform, lose_stores: Cell::new(false), only: Cell::new(None) }
    }
}

impl<P: Platform + ?Sized> Machine<'_, P> {
    /// Makes what was stored to `run` visible to walks that do not snoop.
    fn show(&self, run: Extent) {
        const LINE: u64 = 64;
        (0..run.bytes() / LINE).for_each(|line| self.platform.flush_line(run.start().plus(line * LINE)));
    }
}

impl<P: Platform + ?Sized> TableMemory for Machine<'_, P> {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.platform.read64(at)
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        if self.lose_stores.get() {
            return self.platform.read64(at).map(drop);
        }
        self.platform.write64(at, value)?;
        self.platform.flush_line(at);
        Ok(())
    }
}

impl<P: Platform + ?Sized> Hal for Machine<'_, P> {
    fn read32(&self, at: PhysAddr) -> u32 {
        self.platform.mmio_read32(at)
    }
    fn read64(&self, at: PhysAddr) -> u64 {
        self.platform.mmio_read64(at)
    }
    fn write32(&self, at: PhysAddr, value: u32) {
        self.platform.mmio_write32(at, value);
    }
    fn write64(&self, at: PhysAddr, value: u64) {
        self.platform.mmio_write64(at, value);
    }
    fn now(&self) -> u64 {
        self.platform.now()
    }
    fn relax(&self) {
        self.platform.relax();
    }
    fn allocate(&self, _: &mut MaySleep, count: u64, align: u64) -> Option<Extent> {
        let Some(only) = self.only.get() else {
            return self.platform.allocate(count, align, PhysAddr::new(0)).inspect(|run| self.show(*run));
        };
        let first = only.first().number().next_multiple_of(align);
        let run = Extent::new(Frame::new(first), count).filter(|run| only.covers(*run))?;
        self.only.set(Extent::new(run.end(), only.end().number() - run.end().number()));
        self.platform.fill(run, 0).ok()?;
        self.show(run);
        Some(run)
    }
    fn free(&self, _: &mut MaySleep, run: Extent) {
        self.platform.free(run);
    }
    fn device_tlb_off(&self, requester: Requester) -> bool {
        ats::off(self.platform, requester)
    }
}

/// The machine's buses, for scopes and aliases; and functions of other segments that the kernel was told of.
pub(crate) struct Buses(pub(crate) pci::Topology, pub(crate) Vec<Requester>);

impl iommu::Topology for Buses {
    fn bridge(&self, function: Requester) -> Option<(u8, u8)> {
        match self.0.function(function.source)?.kind {
            pci::Kind::Bridge { secondary, subordinate, .. } if function.segment == Segment(0) => {
                Some((secondary, subordinate))
            }
            _ => None,
        }
    }
}

/// Whether a run is merely reserved or marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    Reserved,
    Committed,
}

/// A kernel as the update's core sees it.
pub(crate) struct Kernel<'k, 'p, P: Platform + ?Sized> {
    pub(crate) machine: &'k Machine<'p, P>,
    pub(crate) iommu: &'k Iommu<'k, Machine<'p, P>>,
    pub(crate) buses: &'k Buses,
    /// Units as the core is given them.
    pub(crate) units: Vec<Seam<'k, 'p, P>>,
    marks: RefCell<Vec<(Extent, Marked)>>,
    /// Who may ask for pages.
    pub(crate) asking: RefCell<Vec<Requester>>,
}

/// A unit as the core is given it: the driver's, with the faults that a test may put into the seam.
pub(crate) struct Seam<'k, 'p, P: ?Sized> {
    pub(crate) unit: &'k VtdUnit<'k, Machine<'p, P>>,
    /// Hardware is not told to forget, and the core is told that it was.
    pub(crate) swallow_forget: Cell<bool>,
    /// Hardware is told to forget everything but the PASID cache.
    pub(crate) spare_pasid_cache: Cell<bool>,
}

impl<'k, 'p, P: Platform + ?Sized> Kernel<'k, 'p, P> {
    pub(crate) fn new(
        machine: &'k Machine<'p, P>,
        iommu: &'k Iommu<'k, Machine<'p, P>>,
        buses: &'k Buses,
    ) -> Self {
        let [swallow_forget, spare_pasid_cache] = [false; 2].map(Cell::new);
        let seam = |unit| Seam {
            unit,
            swallow_forget: swallow_forget.clone(),
            spare_pasid_cache: spare_pasid_cache.clone(),
        };
        let units = iommu.units().iter().map(seam).collect();
        let (marks, asking) = (RefCell::default(), RefCell::default());
        Self { machine, iommu, buses, units, marks, asking }
    }

    pub(crate) fn platform(&self) -> &'p P {
        self.machine.platform
    }

    /// The other source-ids under which DMA of the function at `source` may arrive.
    pub(crate) fn other_ids(&self, source: SourceId) -> Vec<SourceId> {
        self.buses.0.aliases_of(source).into_iter().filter(|alias| *alias != source).collect()
    }

    /// How many runs of frames are reserved or marked.
    pub(crate) fn marked(&self) -> usize {
        self.marks.borrow().len()
    }
}

impl<P: Platform + ?Sized> liveupdate::host::Unit for Seam<'_, '_, P> {
    fn id(&self) -> UnitId {
        self.unit.id()
    }
    fn cap(&self) -> spec::regs::Cap {
        self.unit.cap()
    }
    fn ecap(&self) -> spec::regs::Ecap {
        self.unit.ecap()
    }
    fn status(&self) -> spec::regs::Gsts {
        self.unit.status()
    }
    fn root(&self) -> spec::regs::RootAddr {
        self.unit.root()
    }
    fn forget(
        &self,
        atomic: &Atomic,
        what: liveupdate::host::Forget,
    ) -> Result<liveupdate::host::Forgotten, liveupdate::host::TimedOut> {
        if self.swallow_forget.get() {
            return Ok(liveupdate::host::Forgotten::observed());
        }
        if self.spare_pasid_cache.get() {
            self.unit.forget_all_but_pasids(atomic)?;
            return Ok(liveupdate::host::Forgotten::observed());
        }
        self.unit.forget(atomic, what)
    }
    fn forget_device(
        &self,
        atomic: &Atomic,
        source: SourceId,
        tlb: liveupdate::host::DeviceTlb,
    ) -> Result<bool, liveupdate::host::TimedOut> {
        if self.swallow_forget.get() {
            return Ok(true);
        }
        self.unit.forget_device(atomic, source, tlb)
    }
    fn forget_device_pasid(
        &self,
        atomic: &Atomic,
        source: SourceId,
        tlb: liveupdate::host::DeviceTlb,
        pasid: u32,
    ) -> Result<bool, liveupdate::host::TimedOut> {
        if self.swallow_forget.get() {
            return Ok(true);
        }
        self.unit.forget_device_pasid(atomic, source, tlb, pasid)
    }
    fn disable(&self, atomic: &Atomic) -> Result<(), liveupdate::host::TimedOut> {
        self.unit.disable(atomic)
    }
    fn interrupts(&self) -> Option<&dyn InterruptRemapping> {
        if self.unit.interrupts().is_some() { Some(self) } else { None }
    }
    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R {
        self.unit.locked(ctx, f)
    }
}

impl<P: Platform + ?Sized> InterruptRemapping for Seam<'_, '_, P> {
    fn interrupt_table(&self) -> spec::regs::Irta {
        self.unit.interrupt_table()
    }
    fn forget_interrupts(
        &self,
        atomic: &Atomic,
        what: liveupdate::host::ForgetInterrupts,
    ) -> Result<liveupdate::host::Forgotten, liveupdate::host::TimedOut> {
        if self.swallow_forget.get() {
            return Ok(liveupdate::host::Forgotten::observed());
        }
        self.unit.forget_interrupts(atomic, what)
    }
    fn disable_interrupts(&self, atomic: &Atomic) -> Result<(), liveupdate::host::TimedOut> {
        self.unit.disable_interrupts(atomic)
    }
}

impl<P: Platform + ?Sized> TableMemory for Kernel<'_, '_, P> {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.machine.read(at)
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        self.machine.write(at, value)
    }
}

impl<P: Platform + ?Sized> FrameKeeper for Kernel<'_, '_, P> {
    fn reserve(&self, _: &mut MaySleep, run: Extent) -> Result<(), KeepError> {
        let platform = self.platform();
        let scratch = platform.successor_home().into_iter().chain([platform.home()]).any(|s| s.overlaps(run));
        if scratch {
            return Err(KeepError::NotKeepable(run));
        }
        let mut marks = self.marks.borrow_mut();
        marks.try_reserve(1).map_err(|_| KeepError::NoMemory { frames: run.count() })?;
        marks.push((run, Marked::Reserved));
        Ok(())
    }
    fn commit(&self, _: &Atomic, run: Extent) {
        let mut marks = self.marks.borrow_mut();
        if let Some(mark) = marks.iter_mut().find(|m| **m == (run, Marked::Reserved)) {
            mark.1 = Marked::Committed;
        }
    }
    fn release(&self, _: &mut MaySleep, run: Extent) {
        let mut marks = self.marks.borrow_mut();
        if let Some(index) = marks.iter().rposition(|(r, _)| *r == run) {
            marks.remove(index);
        }
    }
    fn allocate(&self, _: &mut MaySleep, count: u64) -> Result<Extent, KeepError> {
        let none = KeepError::NoMemory { frames: count };
        self.platform().allocate(count, 1, PhysAddr::new(0)).ok_or(none)
    }
    fn free(&self, _: &mut MaySleep, run: Extent) {
        self.platform().free(run);
    }
}

impl<'k, 'p, P: Platform + ?Sized> Host for Kernel<'k, 'p, P> {
    type Unit = Seam<'k, 'p, P>;

    fn unit(&self, id: UnitId) -> Option<&Self::Unit> {
        self.units.iter().find(|u| u.unit.id() == id)
    }
    fn for_each_unit(&self, f: &mut dyn FnMut(&Self::Unit)) {
        self.units.iter().for_each(f);
    }
    fn unit_for(&self, requester: Requester) -> Option<&Self::Unit> {
        let id = self.iommu.unit_of(requester)?.id();
        self.unit(id)
    }
    fn give_back(&self, _: &mut MaySleep, run: Extent) {
        self.platform().free(run);
    }
    fn device_tlb(&self, requester: Requester) -> Option<liveupdate::host::DeviceTlb> {
        ats::state(self.platform(), requester)
    }
    fn device_tlb_off(&self, _: &Atomic, requester: Requester) -> bool {
        ats::off(self.platform(), requester)
    }
    fn page_requests(&self) -> Option<&dyn liveupdate::host::PageRequests> {
        Some(self)
    }
    fn adoptable(&self) -> Adoptable {
        let mode = self.iommu.units().first().map(|unit| unit.config().mode);
        mode.map_or(Adoptable::NOTHING, |mode| super::drive::adoptable(mode).and(self.platform().adopts()))
    }
    fn now(&self) -> u64 {
        self.platform().now()
    }
    fn log(&self, _: Level, message: fmt::Arguments<'_>) {
        self.platform().log(message);
    }
    fn hold_mappings(&self, _: &mut MaySleep, top_table: PhysAddr, held: bool) {
        self.iommu.hold_mappings(top_table, held);
    }
    fn aliases(&self, requester: Requester, f: &mut dyn FnMut(SourceId)) -> RequesterKind {
        let listed = requester.segment == Segment(0) && self.buses.0.is_listed(requester.source);
        if !listed && !self.buses.1.contains(&requester) {
            return RequesterKind::Other;
        }
        if Mutant::of(self.platform()) != Some(Mutant::ForgottenAlias) {
            self.aliases_of(requester).into_iter().for_each(f);
        }
        RequesterKind::PciFunction
    }
}

use liveupdate::host::Unit as _;
