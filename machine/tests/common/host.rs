//! A kernel of the machine as the driver's host, for tests that need no more of a kernel.

use holdover_machine::{Boot, Kernel, Machine, pci, run};
use iommu::Hal;
use liveupdate::host::{MaySleep, NoMemory, TableMemory};
use scenario::pci::ats::Ats;
use scenario::platform::Platform;
use spec::{Extent, PhysAddr, Requester};
use std::cell::RefCell;

/// A platform as the driver wants it.
pub(crate) struct Host<'m> {
    pub(crate) kernel: Kernel<'m>,
    /// Functions whose ATS the driver had switched off.
    pub(crate) silenced: RefCell<Vec<Requester>>,
}

impl<'m> Host<'m> {
    /// The first kernel of a machine with so many bytes of memory.
    pub(crate) fn boot(machine: &'m Machine, memory: u64) -> Self {
        Self::boot_in(machine, memory, 0)
    }

    /// A kernel that lives in one of the two areas for kernels.
    pub(crate) fn boot_in(machine: &'m Machine, memory: u64, area: usize) -> Self {
        let areas = run::areas(memory).to_vec();
        let (release, options, home) = ("a".into(), Vec::new(), areas[area]);
        let adopts = Some(scenario::platform::Adoptable::EVERYTHING.to_words());
        let (successor_home, successor_adopts) = (None, None);
        let boot = Boot { release, adopts, home, successor_home, successor_adopts, areas, options };
        Self { kernel: Kernel::new(machine, boot), silenced: RefCell::default() }
    }
}

impl TableMemory for Host<'_> {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.kernel.read64(at)
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        self.kernel.write64(at, value)?;
        self.kernel.flush_line(at);
        Ok(())
    }
}

impl Hal for Host<'_> {
    fn read32(&self, at: PhysAddr) -> u32 {
        self.kernel.mmio_read32(at)
    }
    fn read64(&self, at: PhysAddr) -> u64 {
        self.kernel.mmio_read64(at)
    }
    fn write32(&self, at: PhysAddr, value: u32) {
        self.kernel.mmio_write32(at, value);
    }
    fn write64(&self, at: PhysAddr, value: u64) {
        self.kernel.mmio_write64(at, value);
    }
    fn now(&self) -> u64 {
        self.kernel.now()
    }
    fn relax(&self) {
        self.kernel.relax();
    }
    fn allocate(&self, _: &mut MaySleep, count: u64, align: u64) -> Option<Extent> {
        let run = self.kernel.allocate(count, align, PhysAddr::new(0))?;
        (0..run.bytes() / 64).for_each(|line| self.kernel.flush_line(run.start().plus(line * 64)));
        Some(run)
    }
    fn free(&self, _: &mut MaySleep, run: Extent) {
        self.kernel.free(run);
    }
    fn device_tlb_off(&self, requester: Requester) -> bool {
        self.silenced.borrow_mut().push(requester);
        let ats = Ats::find(&self.kernel, requester.source).ok().flatten();
        ats.is_some_and(|ats| {
            ats.disable(&self.kernel);
            !ats.is_enabled(&self.kernel)
        })
    }
}

/// The scenario's one bridge.
pub(crate) struct Buses;

impl iommu::Topology for Buses {
    fn bridge(&self, function: Requester) -> Option<(u8, u8)> {
        (function.source == pci::BRIDGE).then_some((1, 1))
    }
}
