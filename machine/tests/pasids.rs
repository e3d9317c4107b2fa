//! A whole update by hand, with several PASIDs of one requester, both stages and one below the other: the real driver on the
//! simulated unit, whose caches go stale and whose queue takes time.

mod common;

use common::host::{Buses, Host};
use common::port::Port;
use holdover_machine::{Ats, Machine, MachineConfig, TraceLine, UnitConfig, pci};
use iommu::driver::Setup;
use iommu::table::format::Stage as DriverStage;
use iommu::{Access, Attachment, Config, DeviceTlb, DomainHandle, GuestTables, Iommu, Mode, UnitDescription};
use liveupdate::host::{Adoptable, Atomic, MaySleep, TableMemory, Unit};
use liveupdate::{
    DomainTablesOf, FreezeInput, Incoming, Outgoing, RegionKind, ReservedMemory, Room, Stage, Token,
};
use scenario::platform::Platform;
use spec::{Extent, Iova, PhysAddr, Requester, Segment, SourceId};
use std::collections::BTreeMap;

const BASE: u64 = 0xfed9_0000;
const MEMORY: u64 = 512 << 20;
const NIC: SourceId = pci::AUDIO;
const GPU: SourceId = pci::EDU_A;
const STRANGER: SourceId = pci::EDU_B;

const GUEST_MEMORY: Token = Token(1);
const SHARED_MEMORY: Token = Token(2);
const GUEST: Token = Token(3);
const SHARED: Token = Token(4);
const PROCESS: Token = Token(5);
const NIC_TOKEN: Token = Token(6);
const GPU_TOKEN: Token = Token(7);

const IOVA: u64 = 0x4000_0000;
const PROCESS_IOVA: u64 = 0x12_3456_7000;
const BOTH: Access = Access { read: true, write: true };

fn requester(source: SourceId) -> Requester {
    Requester::new(Segment(0), source)
}

fn setup(mode: Mode) -> Setup<'static> {
    let unit = UnitConfig::plain(BASE, 48);
    let units = vec![UnitDescription { id: unit.id, catch_all: true, scopes: Vec::new() }];
    // Directories of two frames.
    let config = Config { mode, pasid_directory: 3, ..Config::default() };
    Setup { units, host_address_bits: 48, topology: &Buses, config }
}

fn machine(seed: u64) -> Machine {
    machine_with(seed, None)
}

/// A machine whose NIC keeps translations, or does not.
fn machine_with(seed: u64, ats: Option<Ats>) -> Machine {
    let mut config = MachineConfig::qemu_like(seed, MEMORY, 48);
    config.units = vec![UnitConfig::plain(BASE, 48).with_scalable_mode().with_device_tlbs()];
    config.ats.extend(ats);
    Machine::new(&config)
}

/// What a machine's NIC may keep translations by, which answers so many invalidations.
fn ats(answers: Option<u64>) -> Ats {
    Ats { function: NIC, queue_depth: 4, answers }
}

/// Where requests of preserved requesters end up, by what: `None` when refused.
fn reach(machine: &Machine) -> [Option<u64>; 5] {
    [
        machine.request(NIC, IOVA + 8, true),
        machine.request_as(NIC, 5, IOVA + 0x1008, true),
        machine.request_as(NIC, 4070, PROCESS_IOVA + 16, true),
        // The same guest's tables once more.
        machine.request_as(NIC, 4071, PROCESS_IOVA + 24, true),
        machine.request(GPU, IOVA + 0x10, true),
    ]
}

/// Nobody else reaches anything.
fn strangers(machine: &Machine) -> [Option<u64>; 3] {
    let stray = [9, 2000].map(|pasid| machine.request_as(NIC, pasid, IOVA, true));
    [machine.request(STRANGER, IOVA, true), stray[0], stray[1]]
}

/// Four tables of the guest's, at `tables` in its memory (page `first` of it), that map one page of it by its addresses.
fn guest_tables(host: &Host<'_>, memory: Extent, first: u64, page: u64) -> GuestTables {
    let address = |n: u64| IOVA + 0x1000 * n;
    for (level, n) in (0..4).rev().zip(first..) {
        let at = memory.start().plus(0x1000 * n);
        (0..512).for_each(|word| host.write(at.plus(8 * word), 0).unwrap());
        let next = if level == 0 { page } else { n + 1 };
        let at = at.plus(8 * spec::second_stage::index(PROCESS_IOVA, level));
        host.write(at, address(next) | 0b111).unwrap();
    }
    GuestTables { top: Iova::new(address(first)), levels: 4 }
}

fn of<'a>(
    iommu: &Iommu<'_, Host<'_>>,
    domain: DomainHandle,
    runs: &'a mut Vec<Extent>,
) -> DomainTablesOf<'a> {
    iommu.domain_tables(domain, &mut |run| runs.push(run)).unwrap();
    let stage = match iommu.stage(domain).unwrap() {
        DriverStage::Second => Stage::Second,
        DriverStage::First => Stage::First,
    };
    let (top_table, levels) = (iommu.top_table(domain).unwrap(), iommu.levels(domain).unwrap());
    DomainTablesOf { top_table, stage, levels, parent: None, runs }
}

/// The outgoing kernel's life: where the handover lies, and where requests ended up before.
fn outgoing(machine: &Machine, mode: Mode) -> (PhysAddr, [Option<u64>; 5]) {
    outgoing_with(machine, mode, &[])
}

/// The same, with PASIDs of the NIC that are detached before the update.
fn outgoing_with(machine: &Machine, mode: Mode, detached: &[u32]) -> (PhysAddr, [Option<u64>; 5]) {
    let host = Host::boot(machine, MEMORY);
    let mut ctx = MaySleep::at_thread_start();
    let iommu = Iommu::probe(&host, &mut ctx, setup(mode)).unwrap();
    iommu.enable(&mut ctx).unwrap();
    let unit = [iommu.units()[0].id()];
    let memory = |frames| host.kernel.allocate(frames, 1, PhysAddr::new(0)).unwrap();
    let (guest_memory, shared_memory, other_memory) = (memory(32), memory(4), memory(2));
    let mut domain = |stage, run: Extent| {
        let domain = iommu.create_staged_domain(&mut ctx, stage, &unit, Some(4)).unwrap();
        iommu.map(&mut ctx, domain, Iova::new(IOVA), run.start(), run.bytes(), BOTH).unwrap();
        domain
    };
    let guest = domain(DriverStage::Second, guest_memory);
    let shared = domain(DriverStage::First, shared_memory);
    let other = domain(DriverStage::First, other_memory);
    let tables = guest_tables(&host, guest_memory, 8, 3);
    iommu.attach(&mut ctx, requester(NIC), &[], guest).unwrap();
    iommu.attach_pasid(&mut ctx, requester(NIC), &[], 5, shared).unwrap();
    for pasid in [4070, 4071] {
        iommu.attach_nested(&mut ctx, requester(NIC), &[], pasid, tables, guest).unwrap();
    }
    for pasid in [9, 2000] {
        iommu.attach_pasid(&mut ctx, requester(NIC), &[], pasid, other).unwrap();
    }
    iommu.attach(&mut ctx, requester(GPU), &[], shared).unwrap();
    iommu.attach(&mut ctx, requester(STRANGER), &[], other).unwrap();
    if let Some(found) = scenario::pci::ats::Ats::find(&host.kernel, NIC).unwrap() {
        let tlb = DeviceTlb { physical_function: NIC, queue_depth: found.queue_depth };
        iommu.enable_device_tlb(&mut ctx, requester(NIC), tlb).unwrap();
        found.enable(&host.kernel);
    }
    let before = reach(machine);
    assert!(before.iter().chain(&strangers(machine)).all(Option::is_some), "{before:x?}");
    assert_eq!(before[2], Some(guest_memory.start().get() + 3 * 0x1000 + 16));
    for &pasid in detached {
        iommu.detach_pasid(&mut ctx, requester(NIC), pasid).unwrap();
        assert_eq!(machine.request_as(NIC, pasid, IOVA, true), None);
    }

    let port = Port::new(&host, &iommu);
    let mut room = Room::<16>::new();
    let mut update = Outgoing::new(&port, room.storage());
    update.preserve_region(&mut ctx, GUEST_MEMORY, guest_memory, RegionKind::Memory).unwrap();
    update.preserve_region(&mut ctx, SHARED_MEMORY, shared_memory, RegionKind::Memory).unwrap();
    let (mut one, mut two) = (Vec::new(), Vec::new());
    update.preserve_domain(&mut ctx, GUEST, of(&iommu, guest, &mut one)).unwrap();
    update.preserve_domain(&mut ctx, SHARED, of(&iommu, shared, &mut two)).unwrap();
    let top_table = guest_memory.start().plus(8 * 0x1000);
    let parent = Some(GUEST);
    let process = DomainTablesOf { top_table, stage: Stage::First, levels: 4, parent, runs: &[] };
    update.preserve_domain(&mut ctx, PROCESS, process).unwrap();
    update.preserve_requester(&mut ctx, NIC_TOKEN, requester(NIC)).unwrap();
    update.preserve_pasid(&mut ctx, NIC_TOKEN, 5).unwrap();
    update.preserve_pasid(&mut ctx, NIC_TOKEN, 4070).unwrap();
    update.preserve_pasid(&mut ctx, NIC_TOKEN, 4071).unwrap();
    update.preserve_requester(&mut ctx, GPU_TOKEN, requester(GPU)).unwrap();
    let input = FreezeInput {
        release: "a",
        update: 1,
        scratch: &holdover_machine::run::areas(MEMORY),
        reserved: ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    let mut words = vec![0; 1 << 15];
    let scratch = &mut audit::Scratch::new(&mut words);
    let sealed = update.freeze(&mut ctx, &input, scratch, &mut |f| panic!("{f}"));
    let sealed = sealed.map_err(|refused| refused.why).unwrap();
    assert_eq!(reach(machine), before);
    let fdt = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container.fdt;
    (fdt, before)
}

/// Retrieves everything for the driver.
fn retrieve<'m>(
    iommu: &Iommu<'_, Host<'m>>,
    incoming: &mut Incoming<'_, '_, Port<'_, 'm>>,
    ctx: &mut MaySleep,
) -> BTreeMap<Token, DomainHandle> {
    let mut handles = BTreeMap::new();
    for token in [GUEST, SHARED, PROCESS] {
        let got = incoming.retrieve_domain(token).unwrap();
        if got.parent.is_some() {
            continue; // the guest keeps its tables
        }
        let stage = if got.stage == Stage::Second { DriverStage::Second } else { DriverStage::First };
        let tables: Vec<_> = incoming.tables_of(token).collect();
        let ids: Vec<_> = incoming.domain_ids_of(token).collect();
        let handle =
            iommu.import_staged_domain(ctx, stage, got.top_table, got.levels, &ids, &tables).unwrap();
        handles.insert(token, handle);
    }
    for token in [NIC_TOKEN, GPU_TOKEN] {
        let requester = incoming.retrieve_requester(token).unwrap().requester;
        let pasids = incoming.pasids_of(token).map(|pasid| {
            let what = match pasid.parent {
                None => Attachment::Domain(handles[&pasid.domain]),
                Some(parent) => {
                    let top = Iova::new(pasid.entry.first_stage_table().get());
                    let first = GuestTables { top, levels: pasid.entry.first_stage_levels() };
                    Attachment::Nested { first, parent: handles[&parent] }
                }
            };
            (pasid.pasid, what)
        });
        iommu.import_pasids(ctx, requester, &[], &pasids.collect::<Vec<_>>()).unwrap();
    }
    handles
}

#[test]
fn every_pasid_that_was_preserved_goes_on_through_a_whole_update_and_no_other() {
    for (seed, mode) in [(1, Mode::SecondStage), (2, Mode::FirstStage), (3, Mode::SecondStage)] {
        let machine = machine(seed);
        let (fdt, before) = outgoing(&machine, mode);
        assert_eq!((reach(&machine), strangers(&machine)), (before, [None; 3]), "in the gap");

        let host = Host::boot_in(&machine, MEMORY, 1);
        let mut room = Room::<16>::new();
        let opened = liveupdate::open(&host, fdt, room.storage()).unwrap();
        opened.for_each_preserved(&host, &mut |run| host.kernel.reserve(run)).unwrap();
        let mut ctx = MaySleep::at_thread_start();
        let iommu = Iommu::take_over(&host, &mut ctx, setup(mode)).unwrap();
        let port = Port::new(&host, &iommu);
        let mut words = vec![0; 1 << 15];
        let checked =
            opened.check(&port, &mut audit::Scratch::new(&mut words), &mut |f| panic!("{f}")).unwrap();
        let mut reserve = |unit, id| iommu.reserve_domain_id(unit, id).is_ok();
        let mut incoming = checked.adopt(&port, &mut ctx, &mut reserve, &mut |_| ());
        assert_eq!((reach(&machine), strangers(&machine)), (before, [None; 3]), "adopted");
        let handles = retrieve(&iommu, &mut incoming, &mut ctx);
        assert_eq!(incoming.finish(&mut ctx, &mut |_| ()), 0);
        assert_eq!((reach(&machine), strangers(&machine)), (before, [None; 3]), "finished");

        // The driver's own again: it detaches what it took over, and what is left goes on.
        iommu.detach_pasid(&mut ctx, requester(NIC), 4070).unwrap();
        iommu.detach_pasid(&mut ctx, requester(NIC), 5).unwrap();
        let [guest, .., process, gpu] = before;
        assert_eq!(reach(&machine), [guest, None, None, process, gpu]);
        iommu.attach_pasid(&mut ctx, requester(NIC), &[], 7, handles[&SHARED]).unwrap();
        assert_eq!(machine.request_as(NIC, 7, IOVA + 0x1008, true), before[1]);
        let misuse = machine.trace().into_iter().find(|line| matches!(line, TraceLine::Misuse { .. }));
        assert_eq!(misuse, None);
        let off = |line: &TraceLine| matches!(line, TraceLine::TranslationEnabled { on: false, .. });
        assert!(!machine.trace().iter().any(off), "translation was on in every instant");
    }
}

#[test]
fn a_device_forgets_its_pasids_that_go_by_detaching_and_by_the_cut_off_and_keeps_the_others() {
    // Both go at the cut-off; or one is detached before, and the other is named alone.
    for (seed, detached) in [(4, &[][..]), (5, &[2000]), (6, &[9])] {
        let machine = machine_with(seed, Some(ats(None)));
        let (_, before) = outgoing_with(&machine, Mode::SecondStage, detached);
        let own = machine.device_pages_of(NIC, 5);
        if !detached.is_empty() {
            assert_eq!(own, [IOVA / 4096 + 1], "of what goes on it keeps its translations");
        }
        assert!([9, 2000].iter().all(|pasid| machine.device_pages_of(NIC, *pasid).is_empty()));
        assert_eq!((reach(&machine), strangers(&machine)), (before, [None; 3]), "in the gap");
    }
}

#[test]
fn a_device_that_does_not_forget_a_pasid_is_cut_off_and_nobody_waits_for_it() {
    // It is asked for each of its six PASIDs when ATS is switched on, and never answers again.
    let machine = machine_with(7, Some(ats(Some(6))));
    let start = machine.now();
    let (fdt, before) = outgoing(&machine, Mode::SecondStage);
    assert!(machine.now() - start < 1_000_000_000);
    assert_eq!((reach(&machine), strangers(&machine)), ([None, None, None, None, before[4]], [None; 3]));
    assert!(!machine.device_pages_of(NIC, 9).is_empty(), "it has forgotten nothing, and its entry blocks it");

    let host = Host::boot_in(&machine, MEMORY, 1);
    let mut room = Room::<16>::new();
    let opened = liveupdate::open(&host, fdt, room.storage()).unwrap();
    opened.for_each_preserved(&host, &mut |run| host.kernel.reserve(run)).unwrap();
    let mut ctx = MaySleep::at_thread_start();
    let iommu = Iommu::take_over(&host, &mut ctx, setup(Mode::SecondStage)).unwrap();
    let port = Port::new(&host, &iommu);
    let (mut words, mut findings) = (vec![0; 1 << 15], 0);
    let scratch = &mut audit::Scratch::new(&mut words);
    let checked = opened.check(&port, scratch, &mut |_| findings += 1).unwrap();
    assert!(findings > 0, "the audit misses the entry");
    let mut reserve = |unit, id| iommu.reserve_domain_id(unit, id).is_ok();
    let mut incoming = checked.adopt(&port, &mut ctx, &mut reserve, &mut |_| ());
    for token in [GUEST, SHARED, PROCESS] {
        incoming.retrieve_domain(token).unwrap();
    }
    assert!(incoming.retrieve_requester(NIC_TOKEN).is_err());
    incoming.retrieve_requester(GPU_TOKEN).unwrap();
    incoming.finish(&mut ctx, &mut |_| ());
    assert_eq!(reach(&machine), [None, None, None, None, before[4]], "the other one goes on");
}
