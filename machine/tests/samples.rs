//! Handovers with every kind of record, as small images: what `inspect` and the fuzz targets are tried on.
//!
//! Each is played on the machine, caught at the jump, and must be judged good by its own records. With
//! `HOLDOVER_WRITE_SAMPLES=1` what was caught is written to `inspect/tests/data/ours`, anew after the format of the records
//! or the layout of the tables has changed; `zstd -19 --rm` packs it.

mod common;

use common::broken_rules;
use common::host::{Buses, Host};
use common::port::Port;
use holdover_machine::run::{self, run as play};
use holdover_machine::{Ats, Extra, Machine, MachineConfig, RunConfig, UnitConfig, pci};
use inspect::extract;
use inspect::image::{self, Options};
use inspect::model::{FindKho, Limits, Model};
use inspect::registers::{Registers, USUAL_BASE};
use inspect::tables::Hardware;
use inspect::verify::{Policy, Stage, verify};
use iommu::driver::Setup;
use iommu::table::format;
use iommu::{Access, Config, GuestTables, Hal, Iommu, Mode, UnitDescription};
use liveupdate::host::{Adoptable, Atomic, MaySleep, TableMemory};
use liveupdate::{
    DomainTablesOf, FreezeInput, Outgoing, RegionKind, ReservedMemory, Room, Stage as Of, Token,
};
use scenario::platform::Platform;
use scenario::story::Verdict;
use spec::handover::kind;
use spec::{Extent, Iova, PhysAddr, Requester, Segment, SourceId};
use std::collections::BTreeSet;
use std::path::Path;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;
/// Who goes on, the function with phantom ids first, and who is cut off.
const CAST: &str = "00:08.0/kept,00:03.0/kept,00:04.0/cut";

/// A unit that posts interrupts; two functions keep translations of their own and have reserved memory, one has phantoms.
fn everything(seed: u64, change: impl Fn(UnitConfig) -> UnitConfig) -> MachineConfig {
    let mut config = MachineConfig::qemu_like(seed, MEMORY, 48);
    let unit = UnitConfig::qemu_like(48).with_device_tlbs();
    let unit = unit.with_cap(|cap| cap.with_pi(true).with_nfr(7)).with_ecap(|ecap| ecap.with_c(true));
    config.units = vec![change(unit)];
    config.ats =
        [pci::EDU_A, pci::EDU_B].map(|function| Ats { function, queue_depth: 4, answers: None }).to_vec();
    config.reserved = [(1, pci::EDU_A), (2, pci::EDU_B)]
        .map(|(number, source)| {
            let start = PhysAddr::new(config.low_end() - number * MIB);
            (source, Extent::from_bytes(start, MIB).expect("memory"))
        })
        .to_vec();
    let phantom = Extra::Function { at: SourceId::new(0, 8, 0), registers: 0xfe70_0000, phantom_bits: 2 };
    config.more = vec![phantom];
    config
}

/// A page file of what lies in the machine at the jump, and the kinds of records in it. It must be judged good.
fn caught(machine: &Machine, fdt: PhysAddr) -> (Vec<u8>, BTreeSet<u16>) {
    let mut memory = vec![0; MEMORY as usize];
    for range in machine.memory_map().iter().filter(|range| range.start + range.bytes <= MEMORY) {
        let place = range.start as usize..(range.start + range.bytes) as usize;
        machine.peek(range.start, &mut memory[place]).expect("memory");
    }
    let memory = image::from_bytes(memory, Options { base: Some(0), ..Options::default() }).expect("memory");
    let host = Host::boot(machine, MEMORY);
    let word = |number: u64| host.read32(PhysAddr::new(USUAL_BASE + 4 * number)).to_le_bytes();
    let window: Vec<u8> = (0..0x230 / 4).flat_map(word).collect();
    let registers = Registers::from_window("dmar0".into(), USUAL_BASE, &window).expect("a window");
    let find = FindKho::At(fdt);
    let model = Model::build(&memory, vec![registers], Hardware::default(), find, Limits::default());
    let records = model.handovers[0].records.as_ref().expect("records");
    let kind_at = |at: PhysAddr| {
        let mut kind = [0; 2];
        memory.read_bytes(at, &mut kind).expect("a record");
        u16::from_le_bytes(kind)
    };
    let kinds = records.records.iter().map(|record| kind_at(record.at)).collect();
    let report = verify(&memory, &model, Stage::Arrived, &Policy::default()).expect("a verdict");
    assert!(report.holds(), "{report:#?}");
    let mut pages = Vec::new();
    extract::write(&mut pages, &memory, &model).expect("pages");
    (pages, kinds)
}

/// The page file says what the memory said; writes it down if wanted.
fn keep(name: &str, pages: Vec<u8>) {
    let again = image::from_bytes(pages.clone(), Options::default()).expect("a page file");
    let mut window = [0; 0x230];
    again.read_bytes(PhysAddr::new(USUAL_BASE), &mut window).expect("registers");
    let registers = Registers::from_window("dmar0".into(), USUAL_BASE, &window).expect("a window");
    let model = Model::build(&again, vec![registers], Hardware::default(), FindKho::Scan, Limits::default());
    let report = verify(&again, &model, Stage::Arrived, &Policy::default()).expect("a verdict");
    assert!(report.holds(), "{report:#?}");
    if std::env::var_os("HOLDOVER_WRITE_SAMPLES").is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../inspect/tests/data/ours");
        std::fs::write(folder.join(name), pages).expect("written");
    }
}

#[test]
fn a_handover_of_the_whole_cast_has_every_kind_of_record_in_the_mode_it_is_for() {
    let both: BTreeSet<u16> = (kind::RELEASE..=kind::CONTAINER)
        .chain([kind::INTERRUPT_TABLE, kind::INTERRUPT_ENTRY, kind::DEVICE_TLB])
        .collect();
    for (name, mode, change) in [
        ("legacy.pages", "legacy", (|unit| unit) as fn(UnitConfig) -> UnitConfig),
        ("scalable.pages", "second-stage", UnitConfig::with_scalable_mode),
    ] {
        let mut found = None;
        let config =
            RunConfig::new(everything(1, change), 1).with_option("mode", mode).with_option("cast", CAST);
        let whole = play(&config, &mut |machine, fdt| found = Some(caught(machine, fdt)));
        assert_eq!((whole.verdict, broken_rules(&whole)), (Verdict::Completed, Vec::new()), "{name}");
        let (pages, kinds) = found.expect("a jump");
        println!("{name}: {} bytes, kinds {kinds:?}", pages.len());
        assert!(both.is_subset(&kinds), "{kinds:?}");
        keep(name, pages);
    }
}

const GUEST_MEMORY: Token = Token(1);
const PROCESS_MEMORY: Token = Token(2);
const GUEST: Token = Token(3);
const PROCESS: Token = Token(4);
const NESTED: Token = Token(5);
const NIC: Token = Token(6);
const IOVA: u64 = 0x4000_0000;

/// Tables of a guest's in frames 4 to 7 of its memory, by its own addresses: they map page 1 to the first page of it.
fn guest_tables(host: &Host<'_>, memory: Extent) -> GuestTables {
    for number in 4..8 {
        let at = memory.start().plus(number << 12);
        (0..512).for_each(|word| host.write(at.plus(8 * word), 0).expect("memory"));
        let next = IOVA + if number == 7 { 0 } else { (number + 1) << 12 };
        // Entry 1 of the lowest alone, so that page 1 is what is mapped.
        let entry = if number == 7 { 1 } else { 0 };
        host.write(at.plus(8 * entry), next | 0b111).expect("memory");
    }
    GuestTables { top: Iova::new(IOVA + (4 << 12)), levels: 4 }
}

/// A requester with a domain, a PASID with one of the first stage, and one with a guest's tables below the second; the
/// update by hand, up to the jump. Gives back the handover.
fn with_pasids(machine: &Machine) -> PhysAddr {
    let host = Host::boot(machine, MEMORY);
    let mut ctx = MaySleep::at_thread_start();
    let id = UnitConfig::plain(USUAL_BASE, 48).id;
    let units = vec![UnitDescription { id, catch_all: true, scopes: Vec::new() }];
    let config = Config { mode: Mode::SecondStage, pasid_directory: 3, ..Config::default() };
    let setup = Setup { units, host_address_bits: 48, topology: &Buses, config };
    let iommu = Iommu::probe(&host, &mut ctx, setup).expect("a driver");
    iommu.enable(&mut ctx).expect("translation");
    let nic = Requester::new(Segment(0), pci::AUDIO);
    let rights = Access { read: true, write: true };
    let memory = [8, 2].map(|frames| host.kernel.allocate(frames, 1, PhysAddr::new(0)).expect("memory"));
    let mut domain = |stage, run: Extent| {
        let domain = iommu.create_staged_domain(&mut ctx, stage, &[id], Some(4)).expect("a domain");
        iommu.map(&mut ctx, domain, Iova::new(IOVA), run.start(), run.bytes(), rights).expect("mapped");
        domain
    };
    let guest = domain(format::Stage::Second, memory[0]);
    let process = domain(format::Stage::First, memory[1]);
    let tables = guest_tables(&host, memory[0]);
    iommu.attach(&mut ctx, nic, &[], guest).expect("attached");
    iommu.attach_pasid(&mut ctx, nic, &[], 5, process).expect("attached");
    iommu.attach_nested(&mut ctx, nic, &[], 4070, tables, guest).expect("attached");
    assert_eq!(machine.request_as(pci::AUDIO, 4070, 0x1008, true), Some(memory[0].start().get() + 8));

    let port = Port::new(&host, &iommu);
    let mut room = Room::<16>::new();
    let mut update = Outgoing::new(&port, room.storage());
    for (token, run) in [(GUEST_MEMORY, memory[0]), (PROCESS_MEMORY, memory[1])] {
        update.preserve_region(&mut ctx, token, run, RegionKind::Memory).expect("a region");
    }
    for (token, domain, stage) in [(GUEST, guest, Of::Second), (PROCESS, process, Of::First)] {
        let mut runs = Vec::new();
        iommu.domain_tables(domain, &mut |run| runs.push(run)).expect("tables");
        let top_table = iommu.top_table(domain).expect("tables");
        let of = DomainTablesOf { top_table, stage, levels: 4, parent: None, runs: &runs };
        update.preserve_domain(&mut ctx, token, of).expect("a domain");
    }
    let top_table = memory[0].start().plus(4 << 12);
    let of = DomainTablesOf { top_table, stage: Of::First, levels: 4, parent: Some(GUEST), runs: &[] };
    update.preserve_domain(&mut ctx, NESTED, of).expect("a nested domain");
    update.preserve_requester(&mut ctx, NIC, nic).expect("a requester");
    for pasid in [5, 4070] {
        update.preserve_pasid(&mut ctx, NIC, pasid).expect("a PASID");
    }
    let input = FreezeInput {
        release: "a",
        update: 1,
        scratch: &run::areas(MEMORY),
        reserved: ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    let mut words = vec![0; 1 << 15];
    let sealed =
        update.freeze(&mut ctx, &input, &mut audit::Scratch::new(&mut words), &mut |f| panic!("{f}"));
    let sealed = sealed.map_err(|refused| refused.why).expect("sealed");
    sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container.fdt
}

#[test]
fn a_handover_of_several_pasids_has_their_records_and_is_judged_good() {
    let mut config = MachineConfig::qemu_like(2, MEMORY, 48);
    config.units = vec![UnitConfig::plain(USUAL_BASE, 48).with_scalable_mode()];
    let machine = Machine::new(&config);
    let fdt = with_pasids(&machine);
    let (pages, kinds) = caught(&machine, fdt);
    println!("pasids.pages: {} bytes, kinds {kinds:?}", pages.len());
    assert!(kinds.contains(&kind::PASID_TABLES) && kinds.contains(&kind::ATTACHMENT), "{kinds:?}");
    keep("pasids.pages", pages);
}
