//! The streaming device by itself: it counts what it does not find again, and never waits.

use holdover_machine::run::areas;
use holdover_machine::{Boot, Kernel, TraceLine};
use holdover_machine::{Extra, Machine, MachineConfig, UnitConfig};
use scenario::pci;
use scenario::platform::Platform;
use scenario::streamer::{Setup, Streamer, value};
use spec::{Iova, PhysAddr, SourceId};

const MEMORY: u64 = 256 << 20;
const AT: SourceId = SourceId::new(0, 10, 0);
const REGISTERS: u32 = 0xfe70_0000;
const SLOTS: u64 = 16;
const RING: u64 = 0x400_0000;

fn machine() -> Machine {
    let mut config = MachineConfig::qemu_like(1, MEMORY, 48);
    config.units = config.units.into_iter().map(UnitConfig::with_scalable_mode).collect();
    config.more = vec![Extra::Streamer { at: AT, registers: REGISTERS }];
    Machine::new(&config)
}

fn kernel(machine: &Machine) -> Kernel<'_> {
    let areas = areas(MEMORY);
    let boot = Boot {
        release: "a".to_owned(),
        home: areas[0],
        successor_home: None,
        areas: areas.to_vec(),
        options: Vec::new(),
        adopts: None,
        successor_adopts: None,
    };
    let kernel = Kernel::new(machine, boot);
    pci::enable(&kernel, AT).unwrap();
    kernel
}

fn setup(pasid: Option<u32>) -> Setup {
    Setup { ring: Iova::new(RING), slots: SLOTS, period: 10_000, pasid }
}

/// Lets a queue do so many beats.
fn beat(kernel: &Kernel<'_>, streamer: &Streamer<'_, Kernel<'_>>, queue: usize, beats: u64) {
    let until = streamer.sent(queue) + beats;
    while streamer.sent(queue) < until {
        kernel.relax();
    }
}

#[test]
fn a_queue_finds_again_what_it_wrote_a_lap_ago_and_counts_what_it_does_not() {
    let machine = machine();
    let kernel = kernel(&machine);
    let streamer = Streamer::open(&kernel, PhysAddr::new(REGISTERS.into())).unwrap();
    streamer.start(3, setup(None));
    beat(&kernel, &streamer, 3, 3 * SLOTS);
    assert_eq!(streamer.lost(3), 0);
    let slot = (streamer.sent(3) + SLOTS / 2) % SLOTS;
    kernel.write64(PhysAddr::new(RING + 8 * slot), 7).unwrap();
    beat(&kernel, &streamer, 3, 2 * SLOTS);
    assert_eq!(streamer.lost(3), 1, "one number was changed, once");
    streamer.stop(3);
    let last = streamer.sent(3) - 1;
    assert_eq!(kernel.read64(PhysAddr::new(RING + 8 * (last % SLOTS))), Ok(value(3, last)));
    assert_eq!((streamer.sent(2), streamer.lost(2)), (0, 0), "other queues do nothing");
}

#[test]
fn requests_carry_the_pasid_of_their_queue_and_a_refused_one_is_lost_not_waited_for() {
    let machine = machine();
    let kernel = kernel(&machine);
    let unit = machine_unit();
    // A root table of nothing: everybody is refused.
    let root = kernel.allocate(1, 1, PhysAddr::new(0)).unwrap();
    (0..64).for_each(|line| kernel.flush_line(root.start().plus(64 * line)));
    let at = |offset| PhysAddr::new(unit + offset);
    use spec::regs::{Gcmd, RootAddr, offset};
    let table = RootAddr::ZERO.with_rta(root.first().number()).with_ttm(1);
    kernel.mmio_write64(at(offset::RTADDR), table.raw());
    kernel.mmio_write32(at(offset::GCMD), Gcmd::ZERO.with_srtp(true).raw());
    (0..100).for_each(|_| kernel.relax());
    kernel.mmio_write32(at(offset::GCMD), Gcmd::ZERO.with_te(true).raw());
    (0..100).for_each(|_| kernel.relax());
    let streamer = Streamer::open(&kernel, PhysAddr::new(REGISTERS.into())).unwrap();
    streamer.start(0, setup(Some(77)));
    beat(&kernel, &streamer, 0, SLOTS);
    streamer.stop(0);
    let sent = streamer.sent(0);
    assert_eq!(streamer.lost(0), sent);
    let with = |pasid| {
        let trace = machine.trace();
        trace.iter().filter(|l| matches!(l, TraceLine::Faulted { pasid: p, .. } if *p == pasid)).count()
            as u64
    };
    assert_eq!((with(Some(77)), with(None)), (2 * sent, 0), "a read and a write each");
}

fn machine_unit() -> u64 {
    UnitConfig::qemu_like(48).id.register_base
}
