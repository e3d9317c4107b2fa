//! A domain of 1 TiB in 4 KiB leaves, verified: how long that takes beside summing the same bytes.
//!
//! The driver makes the tables, in the machine's own memory: 2 GiB of words. A handover beside them says that all memory is
//! preserved, and a policy that the domain's targets are a device's; so every invariant that an image can show must hold,
//! and one bent leaf must be found.

mod common;

use common::host::{Buses, Host};
use holdover_machine::{Machine, MachineConfig, UnitConfig, pci};
use inspect::image::{Live, Memory};
use inspect::model::{FindKho, Limits, Model};
use inspect::registers::Registers;
use inspect::tables::Hardware;
use inspect::verify::{Policy, Report, Stage, verify};
use iommu::driver::Setup;
use iommu::{Access, Config, Hal, Iommu, UnitDescription};
use liveupdate::host::MaySleep;
use scenario::platform::Platform;
use spec::kho::radix::{self, LEVELS};
use spec::kho::write_root;
use spec::{Iova, PhysAddr, Requester, Segment};
use std::rc::Rc;
use std::time::{Duration, Instant};

const BASE: u64 = 0xfed9_0000;
const GIB: u64 = 1 << 30;
/// Where the domain starts: above the addresses of interrupt messages, which no domain may map.
const FIRST: u64 = 4 * GIB;
/// Where the device lies whose memory the domain maps.
const DEVICE: u64 = 1 << 44;

struct Seen(Rc<Machine>);

impl Live for Seen {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> bool {
        self.0.peek(offset, out).is_ok()
    }
}

/// What was made: the machine, what is seen of it, and where its registers and its handover are.
struct World {
    machine: Rc<Machine>,
    registers: Registers,
    fdt: PhysAddr,
    memory: Memory,
    domain: u64,
}

impl World {
    /// A domain of so many bytes, mapped in pieces of 1 GiB that lie in the device in reverse order: ranges stay apart.
    fn new(domain: u64) -> Self {
        let unit = UnitConfig::plain(BASE, 48).with_cap(|cap| cap.with_sslps(0));
        let mut config = MachineConfig::qemu_like(7, domain / 256 + GIB, 48);
        config.units = vec![unit];
        let machine = Rc::new(Machine::new(&config));
        let host = Host::boot(&machine, config.memory);
        let mut ctx = MaySleep::at_thread_start();
        let id = config.units[0].id;
        let units = vec![UnitDescription { id, catch_all: true, scopes: Vec::new() }];
        let setup = Setup { units, host_address_bits: 48, topology: &Buses, config: Config::default() };
        let iommu = Iommu::probe(&host, &mut ctx, setup).unwrap();
        iommu.enable(&mut ctx).unwrap();
        let handle = iommu.create_domain(&mut ctx, &[id], None).unwrap();
        let access = Access { read: true, write: true };
        for piece in 0..domain / GIB {
            let target = PhysAddr::new(DEVICE + domain - (piece + 1) * GIB);
            iommu.map(&mut ctx, handle, Iova::new(FIRST + piece * GIB), target, GIB, access).unwrap();
        }
        let audio = Requester::new(Segment(0), pci::AUDIO);
        iommu.attach(&mut ctx, audio, &[], handle).unwrap();
        let window: Vec<u8> = (0..0x230 / 4)
            .flat_map(|word| host.read32(PhysAddr::new(BASE + 4 * word)).to_le_bytes())
            .collect();
        let registers = Registers::from_window("dmar0".into(), BASE, &window).unwrap();
        let fdt = hand_over(&machine, &host);
        let runs: Vec<(u64, u64)> =
            machine.memory_map().iter().map(|range| (range.start, range.bytes)).collect();
        let memory = Memory::live(Box::new(Seen(Rc::clone(&machine))), &runs);
        // The tables stay as they are: nobody tears the domain down.
        std::mem::forget(iommu);
        Self { machine, registers, fdt, memory, domain }
    }

    fn model(&self) -> Model {
        let find = FindKho::At(self.fdt);
        Model::build(&self.memory, vec![self.registers.clone()], Hardware::default(), find, Limits::default())
    }

    fn judge(&self, model: &Model) -> Report {
        let text = format!(
            r#"{{ "preserved_requesters": ["{}"], "targets": [{{ "start": "{DEVICE:#x}", "bytes": "{:#x}" }}] }}"#,
            pci::AUDIO,
            self.domain
        );
        let policy = Policy::parse(text.as_bytes()).unwrap();
        verify(&self.memory, model, Stage::Sealed, &policy).unwrap()
    }

    /// How long it takes to read and add up the words of every table, and the sum.
    fn sum(&self, model: &Model) -> (Duration, u64) {
        let start = Instant::now();
        let (mut words, mut sum) = ([0; 512], 0_u64);
        for (at, _) in &model.spaces[0].frames {
            audit::Image::read(&self.memory, *at, &mut words).unwrap();
            sum = words.iter().fold(sum, |sum, word| sum.wrapping_add(*word));
        }
        (start.elapsed(), sum)
    }
}

/// Writes a handover that preserves all memory, in blocks of 4 GiB; gives back the address of its tree.
fn hand_over(machine: &Machine, host: &Host<'_>) -> PhysAddr {
    let frame = || host.kernel.allocate(1, 1, PhysAddr::new(0)).unwrap().start();
    let poke = |at: PhysAddr, word: u64| machine.poke(at.get(), &word.to_le_bytes()).unwrap();
    let nodes: Vec<PhysAddr> = (0..LEVELS).map(|_| frame()).collect();
    for node in &nodes {
        machine.poke(node.get(), &[0; 4096]).unwrap();
    }
    let order = 20;
    let key = 1_u64 << (radix::ORDER_0_BIT - order);
    for level in (1..LEVELS).rev() {
        let shift = radix::LEAF_LOG2 + radix::NODE_LOG2 * (u32::from(level) - 1);
        let index = key >> shift & (radix::NODE_ENTRIES as u64 - 1);
        poke(nodes[usize::from(level)].plus(8 * index), nodes[usize::from(level) - 1].get());
    }
    // The first 64 blocks: more than there is memory.
    let bit = key & (radix::LEAF_ENTRIES as u64 - 1);
    poke(nodes[0].plus(bit / 8), u64::MAX);
    let fdt = frame();
    let mut page = [0; 4096];
    write_root(&mut page, nodes[usize::from(LEVELS) - 1], &[]).unwrap();
    machine.poke(fdt.get(), &page).unwrap();
    fdt
}

/// Verifies a domain of this size; gives back how long summing and verifying took.
fn verified(domain: u64) -> (Duration, Duration) {
    let making = Instant::now();
    let world = World::new(domain);
    let making = making.elapsed();
    let start = Instant::now();
    let model = world.model();
    let report = world.judge(&model);
    let verifying = start.elapsed();
    let (summing, sum) = world.sum(&model);

    let [space] = model.spaces.as_slice() else { panic!("{} domains", model.spaces.len()) };
    assert_eq!((space.leaf_count(), space.mapped), (domain >> 12, domain));
    assert_eq!(space.leaves[0], space.leaf_count(), "nothing but leaves of 4 KiB");
    assert_eq!(space.ranges.len() as u64, domain / GIB);
    assert!(report.holds(), "{report:#?}");
    let bytes = space.table_count() * 4096;
    println!(
        "{} GiB in 4 KiB leaves, {} MiB of tables (made in {making:.1?}): summed in {summing:.2?} ({sum:#x}), verified in \
         {verifying:.2?}: {:.2} times as long",
        domain / GIB,
        bytes >> 20,
        verifying.as_secs_f64() / summing.as_secs_f64(),
    );

    // Not a verdict by default: the last leaf of all, bent to memory of nobody's, is found.
    let last = space.frames.iter().rfind(|(_, level)| *level == 0).unwrap().0.plus(8 * 511);
    let bent = (DEVICE + 2 * domain) | 3;
    world.machine.poke(last.get(), &bent.to_le_bytes()).unwrap();
    let report = world.judge(&world.model());
    let found: Vec<_> = report.violations.iter().map(|violation| violation.what.as_str()).collect();
    assert!(found.len() == 1 && found[0].contains("4 KiB"), "{found:?}");
    (summing, verifying)
}

#[test]
fn a_domain_of_2_gib_in_4_kib_leaves_is_verified_and_one_bent_leaf_found() {
    verified(2 * GIB);
}

/// `cargo xtask bench verify` prints the times.
#[test]
#[ignore = "makes 2 GiB of tables, which takes minutes"]
fn a_domain_of_1_tib_in_4_kib_leaves_is_verified_in_a_few_times_the_time_of_summing() {
    let (summing, verifying) = verified(1024 * GIB);
    assert!(verifying < 20 * summing, "{verifying:?} against {summing:?}");
}
