//! A domain of 1 TiB in 4 KiB leaves, verified: how long that takes beside summing the same bytes.
//!
//! The driver makes the tables, in the machine's own memory: 2 GiB of words. They are judged twice. Once as on an image of
//! anybody's: a tree beside them says that all memory is preserved, and a policy that the domain's targets are a device's.
//! Once as ours: the core preserves, freezes and cuts off, and the auditor judges by what was sealed. Every invariant that an
//! image can show must hold, and one bent leaf must be found. All that with leaves one after another within each GiB, and again
//! with leaves of which no two are adjacent.

mod common;

use common::host::{Buses, Host};
use common::port::Port;
use holdover_machine::{Machine, MachineConfig, UnitConfig, pci, run};
use inspect::image::{Live, Memory};
use inspect::model::{FindKho, Limits, Model};
use inspect::registers::Registers;
use inspect::tables::Hardware;
use inspect::verify::{Policy, Report, Stage, verify};
use iommu::driver::Setup;
use iommu::{Access, Config, DomainHandle, Hal, Iommu, UnitDescription};
use liveupdate::host::{Adoptable, Atomic, MaySleep};
use liveupdate::{
    DomainTablesOf, FreezeInput, Outgoing, RegionKind, ReservedMemory, Room, Stage as Of, Token,
};
use scenario::platform::Platform;
use spec::kho::radix::{self, LEVELS};
use spec::kho::write_root;
use spec::{Extent, Iova, PhysAddr, Requester, Segment};
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

/// Which handover says what may be reached.
#[derive(Debug, Clone, Copy)]
enum By {
    /// A tree of somebody's, and a policy.
    Policy,
    /// The core's sealed records.
    Records,
}

/// How leaves lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// One after another within each GiB.
    InOrder,
    /// No two adjacent.
    Scattered,
}

/// What was made: the machine, what is seen of it, and where its registers and its handovers are.
struct World {
    machine: Rc<Machine>,
    registers: Registers,
    /// By [`By`].
    trees: [PhysAddr; 2],
    memory: Memory,
    domain: u64,
}

impl World {
    /// A domain of so many bytes, mapped in pieces of 1 GiB that lie in the device in reverse order: ranges stay apart.
    fn new(domain: u64, leaves: Leaves) -> Self {
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
        let anybodys = hand_over(&machine, &host);
        let runs: Vec<(u64, u64)> =
            machine.memory_map().iter().map(|range| (range.start, range.bytes)).collect();
        let memory = Memory::live(Box::new(Seen(Rc::clone(&machine))), &runs);
        let mut world =
            Self { machine: Rc::clone(&machine), registers, trees: [anybodys; 2], memory, domain };
        if leaves == Leaves::Scattered {
            world.scatter();
        }
        world.trees[By::Records as usize] = seal(&host, &iommu, ctx, handle, domain);
        // The tables stay as they are: nobody tears the domain down.
        std::mem::forget(iommu);
        world
    }

    fn judge(&self, by: By) -> (Model, Report) {
        let (registers, hardware) = (vec![self.registers.clone()], Hardware::default());
        let find = FindKho::At(self.trees[by as usize]);
        let model = Model::build(&self.memory, registers, hardware, find, Limits::default());
        let text = format!(
            r#"{{ "preserved_requesters": ["{}"], "targets": [{{ "start": "{DEVICE:#x}", "bytes": "{:#x}" }}] }}"#,
            pci::AUDIO,
            self.domain
        );
        let policy = Policy::parse(text.as_bytes()).unwrap();
        let report = verify(&self.memory, &model, Stage::Arrived, &policy).unwrap();
        (model, report)
    }

    /// Judges both ways; gives back the model, and how long each took. All must hold.
    fn judged(&self) -> (Model, [Duration; 2]) {
        let mut took = [Duration::ZERO; 2];
        let models = [By::Policy, By::Records].map(|by| {
            let start = Instant::now();
            let (model, report) = self.judge(by);
            took[by as usize] = start.elapsed();
            assert!(report.holds(), "{by:?}: {report:#?}");
            let ours = report.basis.contains("its own records");
            assert_eq!(ours, matches!(by, By::Records), "{}", report.basis);
            model
        });
        let [model, _] = models;
        (model, took)
    }

    /// Turns the entries of every lowest table round: each leaf then is one page below the one before it.
    fn scatter(&self) {
        let (model, _) = self.judge(By::Policy);
        let mut bytes = [0; 4096];
        for (at, _) in model.spaces[0].frames.iter().filter(|(_, level)| *level == 0) {
            self.machine.peek(at.get(), &mut bytes).unwrap();
            bytes.as_chunks_mut::<8>().0.reverse();
            self.machine.poke(at.get(), &bytes).unwrap();
        }
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

const TARGETS: Token = Token(1);
const DOMAIN: Token = Token(2);
const AUDIO: Token = Token(3);

/// Preserves the domain with who is in it, and goes through with the update up to the jump; gives back the address of the
/// handover's tree.
fn seal(
    host: &Host<'_>,
    iommu: &Iommu<'_, Host<'_>>,
    mut ctx: MaySleep,
    domain: DomainHandle,
    bytes: u64,
) -> PhysAddr {
    let port = Port::new(host, iommu);
    let mut room = Room::<64>::new();
    let mut update = Outgoing::new(&port, room.storage());
    let targets = Extent::from_bytes(PhysAddr::new(DEVICE), bytes).unwrap();
    update.preserve_region(&mut ctx, TARGETS, targets, RegionKind::Device).unwrap();
    let mut runs = Vec::new();
    iommu.domain_tables(domain, &mut |run| runs.push(run)).unwrap();
    let (top_table, levels) = (iommu.top_table(domain).unwrap(), iommu.levels(domain).unwrap());
    let of = DomainTablesOf { top_table, stage: Of::Second, levels, parent: None, runs: &runs };
    update.preserve_domain(&mut ctx, DOMAIN, of).unwrap();
    update.preserve_requester(&mut ctx, AUDIO, Requester::new(Segment(0), pci::AUDIO)).unwrap();
    let input = FreezeInput {
        release: "a",
        update: 1,
        scratch: &run::areas(GIB),
        reserved: ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    let mut words = vec![0; 1 << 16];
    let scratch = &mut audit::Scratch::new(&mut words);
    let sealed = update.freeze(&mut ctx, &input, scratch, &mut |f| panic!("{f}"));
    let sealed = sealed.map_err(|refused| refused.why).unwrap();
    sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container.fdt
}

/// How long something took, beside how long summing did.
fn beside(took: Duration, summing: Duration) -> String {
    format!("{took:.2?} ({:.2} times as long)", took.as_secs_f64() / summing.as_secs_f64())
}

/// Verifies a domain of this size; gives back how long summing took, and verifying both ways.
fn verified(domain: u64, leaves: Leaves) -> (Duration, [Duration; 2]) {
    let making = Instant::now();
    let world = World::new(domain, leaves);
    let making = making.elapsed();
    let (model, took) = world.judged();
    let (summing, sum) = world.sum(&model);

    let [space] = model.spaces.as_slice() else { panic!("{} domains", model.spaces.len()) };
    assert_eq!((space.leaf_count(), space.mapped), (domain >> 12, domain));
    assert_eq!(space.leaves[0], space.leaf_count(), "nothing but leaves of 4 KiB");
    let ranges = if leaves == Leaves::InOrder { domain / GIB } else { domain >> 12 };
    assert_eq!(space.ranges.len() as u64 + space.ranges_left_off, ranges);
    println!(
        "{} GiB in 4 KiB leaves, {leaves:?}, {} MiB of tables (made and sealed in {making:.1?}): summed in {summing:.2?} \
         ({sum:#x}); verified by a policy in {}, by its own records in {}",
        domain / GIB,
        space.table_count() >> 8,
        beside(took[0], summing),
        beside(took[1], summing),
    );

    // Not a verdict by default: the last leaf of all, bent to memory of nobody's, is found.
    let last = space.frames.iter().rfind(|(_, level)| *level == 0).unwrap().0.plus(8 * 511);
    let bent = (DEVICE + 2 * domain) | 3;
    world.machine.poke(last.get(), &bent.to_le_bytes()).unwrap();
    // What is sealed is sealed with a digest over its tables: ours are not what they were, besides.
    for (by, invariants) in [(By::Policy, &["I3"][..]), (By::Records, &["I3", "I4"])] {
        let (_, report) = world.judge(by);
        let mut found: Vec<_> = report.violations.iter().map(|found| found.invariant.to_string()).collect();
        found.sort();
        assert_eq!(found, invariants, "{by:?}: {:?}", report.violations);
    }
    (summing, took)
}

#[test]
fn a_domain_of_2_gib_in_4_kib_leaves_is_verified_both_ways_and_one_bent_leaf_found() {
    verified(2 * GIB, Leaves::InOrder);
    verified(2 * GIB, Leaves::Scattered);
}

/// `cargo xtask bench verify` prints the times.
#[test]
#[ignore = "makes 2 GiB of tables twice, which takes minutes"]
fn a_domain_of_1_tib_in_4_kib_leaves_is_verified_in_a_few_times_the_time_of_summing() {
    for (leaves, most) in [(Leaves::InOrder, 60), (Leaves::Scattered, 200)] {
        let (summing, took) = verified(1024 * GIB, leaves);
        assert!(took.iter().all(|took| *took < most * summing), "{took:?} against {summing:?}");
    }
}
