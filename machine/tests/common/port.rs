//! A kernel as the live update's core sees it, for tests that play a whole update by hand: the driver's units, frames that
//! are marked in a list, and functions without aliases.

use super::host::Host;
use iommu::{Iommu, VtdUnit};
use liveupdate::host::{
    Adoptable, Atomic, DeviceTlb, FrameKeeper, KeepError, Level, MaySleep, NoMemory, RequesterKind,
    TableMemory,
};
use scenario::platform::Platform;
use spec::{Extent, PhysAddr, Requester, SourceId, UnitId};
use std::cell::RefCell;
use std::fmt;

/// A kernel with its driver.
pub(crate) struct Port<'k, 'm> {
    pub(crate) host: &'k Host<'m>,
    pub(crate) iommu: &'k Iommu<'k, Host<'m>>,
    pub(crate) marks: RefCell<Vec<Extent>>,
}

impl<'k, 'm> Port<'k, 'm> {
    pub(crate) fn new(host: &'k Host<'m>, iommu: &'k Iommu<'k, Host<'m>>) -> Self {
        Self { host, iommu, marks: RefCell::default() }
    }
}

impl TableMemory for Port<'_, '_> {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.host.read(at)
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        self.host.write(at, value)
    }
}

impl FrameKeeper for Port<'_, '_> {
    fn reserve(&self, _: &mut MaySleep, run: Extent) -> Result<(), KeepError> {
        self.marks.borrow_mut().push(run);
        Ok(())
    }
    fn commit(&self, _: &Atomic, run: Extent) {
        assert!(self.marks.borrow().contains(&run));
    }
    fn release(&self, _: &mut MaySleep, run: Extent) {
        self.marks.borrow_mut().retain(|mark| *mark != run);
    }
    fn allocate(&self, _: &mut MaySleep, count: u64) -> Result<Extent, KeepError> {
        let none = KeepError::NoMemory { frames: count };
        self.host.kernel.allocate(count, 1, PhysAddr::new(0)).ok_or(none)
    }
    fn free(&self, _: &mut MaySleep, run: Extent) {
        self.host.kernel.free(run);
    }
}

impl<'k, 'm> liveupdate::host::Host for Port<'k, 'm> {
    type Unit = VtdUnit<'k, Host<'m>>;

    fn unit(&self, id: UnitId) -> Option<&Self::Unit> {
        self.iommu.unit(id)
    }
    fn for_each_unit(&self, f: &mut dyn FnMut(&Self::Unit)) {
        self.iommu.units().iter().for_each(f);
    }
    fn unit_for(&self, requester: Requester) -> Option<&Self::Unit> {
        self.iommu.unit_of(requester)
    }
    fn give_back(&self, _: &mut MaySleep, run: Extent) {
        self.host.kernel.free(run);
    }
    fn device_tlb(&self, requester: Requester) -> Option<DeviceTlb> {
        let found = scenario::pci::ats::Ats::find(&self.host.kernel, requester.source).ok()??;
        let on = found.is_enabled(&self.host.kernel);
        on.then_some(DeviceTlb { physical_function: requester.source, queue_depth: found.queue_depth })
    }
    fn device_tlb_off(&self, _: &Atomic, requester: Requester) -> bool {
        iommu::Hal::device_tlb_off(self.host, requester)
    }
    fn adoptable(&self) -> Adoptable {
        Adoptable::EVERYTHING
    }
    fn now(&self) -> u64 {
        self.host.kernel.now()
    }
    fn log(&self, _: Level, message: fmt::Arguments<'_>) {
        self.host.kernel.log(message);
    }
    fn hold_mappings(&self, _: &mut MaySleep, top_table: PhysAddr, held: bool) {
        // A guest's own tables are nobody's here.
        let _ = self.iommu.hold_mappings(top_table, held);
    }
    fn aliases(&self, _: Requester, _: &mut dyn FnMut(SourceId)) -> RequesterKind {
        RequesterKind::PciFunction
    }
}
