//! The driver's invalidation queue on the QEMU that `HOLDOVER_QEMU` names: refused descriptors, in its own queue and in one
//! that a predecessor left stuck.

use holdover_differential::mode::Mode;
use holdover_differential::program::Registers as _;
use holdover_differential::rig::{MEMORY, Rig};
use iommu::queue::{Queue, retire};
use iommu::queue_errors::QueueErrors;
use iommu::registers::{Patience, Registers};
use iommu::{Hal, QueueError};
use liveupdate::host::{MaySleep, NoMemory, TableMemory};
use spec::invalidation::{DeviceTlbInvalidate, IotlbInvalidate, granularity, kind};
use spec::regs::{Iqa, offset};
use spec::{Extent, Frame, PhysAddr, Segment, UnitId};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Instant;

const UNIT: UnitId = UnitId { segment: Segment(0), register_base: 0xfed9_0000 };
/// Where queues lie: memory of the rig that is nobody's.
const FRAMES: u64 = 0x30_0000 >> 12;

/// QEMU as the driver's host.
struct Host {
    rig: RefCell<Rig>,
    next: Cell<u64>,
    start: Instant,
}

impl Host {
    fn start(mode: Mode) -> Self {
        let qemu = std::env::var_os("HOLDOVER_QEMU").map(PathBuf::from);
        let qemu = qemu.expect("HOLDOVER_QEMU names the QEMU to drive");
        let rig = RefCell::new(Rig::start(&qemu, mode).unwrap());
        Self { rig, next: Cell::new(FRAMES), start: Instant::now() }
    }
    fn frames(&self) -> Extent {
        self.allocate(&mut MaySleep::at_thread_start(), iommu::queue::FRAMES, 1).unwrap()
    }
    fn registers(&self) -> Registers<'_, Self> {
        let patience = Patience { nanoseconds: 2_000_000_000, looks: 100_000 };
        Registers { hal: self, id: UNIT, patience }
    }
}

impl TableMemory for Host {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        if at.get() < MEMORY { Ok(self.rig.borrow().word(at.get()).unwrap()) } else { Err(NoMemory { at }) }
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        if at.get() >= MEMORY {
            return Err(NoMemory { at });
        }
        Rig::store(&self.rig.borrow(), at.get(), value).unwrap();
        Ok(())
    }
}

impl Hal for Host {
    fn read32(&self, at: PhysAddr) -> u32 {
        self.rig.borrow_mut().read(at.get() - UNIT.register_base, 4).unwrap() as u32
    }
    fn read64(&self, at: PhysAddr) -> u64 {
        self.rig.borrow_mut().read(at.get() - UNIT.register_base, 8).unwrap()
    }
    fn write32(&self, at: PhysAddr, value: u32) {
        self.rig.borrow_mut().write(at.get() - UNIT.register_base, 4, value.into()).unwrap();
    }
    fn write64(&self, at: PhysAddr, value: u64) {
        self.rig.borrow_mut().write(at.get() - UNIT.register_base, 8, value).unwrap();
    }
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
    fn relax(&self) {}
    fn allocate(&self, _: &mut MaySleep, count: u64, _: u64) -> Option<Extent> {
        let run = Extent::new(Frame::new(self.next.replace(self.next.get() + count)), count)?;
        (0..run.bytes() / 8).try_for_each(|word| self.write(run.start().plus(8 * word), 0)).ok()?;
        Some(run)
    }
    fn free(&self, _: &mut MaySleep, _: Extent) {}
}

fn errors(of: &QueueErrors) -> Vec<QueueError> {
    let mut all = Vec::new();
    assert_eq!(of.take(&mut |error| all.push(error)), 0);
    all
}

/// No type has this code.
const NONSENSE: [u64; 2] = [0xf, 0];

fn refused(error: &QueueError) -> bool {
    matches!(error, QueueError::Refused { unit: UNIT, descriptor: NONSENSE, .. })
}

fn global() -> [u64; 2] {
    IotlbInvalidate::ZERO.with_kind(kind::IOTLB).with_g(granularity::GLOBAL).raw()
}

#[test]
fn qemu_goes_on_after_a_descriptor_that_it_refused() {
    let host = Host::start(Mode::Legacy48);
    let registers = host.registers();
    let queue = Queue::new(host.frames());
    queue.start(&registers).unwrap();
    for round in 0..100 {
        // What comes before and after it is carried out all the same.
        let done = queue.offer(&registers, "nonsense", &[global(), NONSENSE, global()]).unwrap();
        assert!(!done, "round {round}");
        assert!(!registers.fault_status().iqe());
        let errors = errors(queue.errors());
        assert!(errors.len() == 1 && refused(&errors[0]), "round {round}: {errors:?}");
        queue.submit(&registers, "the queue goes on", &[global()]).unwrap();
    }
    let e = queue.submit(&registers, "nonsense", &[NONSENSE]).unwrap_err();
    assert_eq!(e.what, "a descriptor that the invalidation queue accepts");
}

#[test]
fn qemus_queue_that_a_predecessor_left_stuck_is_drained_and_switched_off() {
    let host = Host::start(Mode::Legacy48);
    let registers = host.registers();
    let old = Queue::new(host.frames());
    old.start(&registers).unwrap();
    let base = Iqa::from_raw(registers.read64(offset::IQA)).iqa() << 12;
    // Ends with what is no wait, and is refused: QEMU would not switch it off.
    let mut tail = registers.read64(offset::IQT);
    for words in [NONSENSE, global(), NONSENSE, NONSENSE] {
        host.write(PhysAddr::new(base + tail), words[0]).unwrap();
        host.write(PhysAddr::new(base + tail + 8), words[1]).unwrap();
        tail += 16;
    }
    registers.write64(offset::IQT, tail);
    assert!(registers.fault_status().iqe() && registers.status().qies());
    let queue = Queue::new(host.frames());
    let status = host.frames().start();
    retire(&registers, status, queue.errors()).unwrap();
    assert!(!registers.status().qies() && !registers.fault_status().iqe());
    let errors = errors(queue.errors());
    assert!(errors.len() == 3 && errors.iter().all(refused), "{errors:?}");
    queue.start(&registers).unwrap();
    queue.submit(&registers, "the new queue", &[global()]).unwrap();
}

#[test]
fn qemu_answers_device_tlb_invalidations_and_refuses_what_is_reserved_in_them() {
    let host = Host::start(Mode::Legacy48);
    let registers = host.registers();
    assert!(!registers.ecap().dit());
    let queue = Queue::new(host.frames());
    queue.start(&registers).unwrap();
    let ask = DeviceTlbInvalidate::ZERO.with_kind(kind::DEVICE_TLB).with_sid(0x18).with_mip(31);
    let one = ask.with_addr(0x1_2345);
    let all = ask.with_s(true).with_addr(u64::MAX >> 13);
    queue.submit(&registers, "device-TLBs", &[one.raw(), all.raw(), global()]).unwrap();
    assert!(errors(queue.errors()).is_empty());
    // A physical function means nothing without ECAP.DIT.
    let wrong = one.with_pfsid_low(1).raw();
    let done = queue.offer(&registers, "device-TLBs", &[wrong, all.raw()]).unwrap();
    let errors = errors(queue.errors());
    let named =
        matches!(errors[..], [QueueError::Refused { unit: UNIT, descriptor, .. }] if descriptor == wrong);
    assert!(!done && named, "{errors:?}");
}
