//! Page requests (PRI): a device asks for pages, the driver answers, and over a change of drivers none is lost and none
//! answered twice. The device counts.

mod common;

use common::host::{Buses, Host};
use common::machine;
use holdover_machine::{Ats, Machine, MachineConfig, PageAnswers, TraceLine, UnitConfig, pci};
use iommu::driver::Setup;
use iommu::page_requests::{INVALID, SUCCESS, Served};
use iommu::{Access, AttachError, Capability, Config, DeviceTlb, Iommu, Mode, UnitDescription, UnitError};
use liveupdate::host::{MaySleep, Unit};
use scenario::pci::ats::{Ats as AtsCapability, Pri};
use spec::fault::Reason;
use spec::{Extent, Iova, PhysAddr, Requester, Segment};

const DEVICE: spec::SourceId = pci::EDU_B;
const IOVA: u64 = 0x20_0000;
const RW: Access = Access { read: true, write: true };

fn requester() -> Requester {
    Requester::new(Segment(0), DEVICE)
}

fn unit() -> UnitConfig {
    UnitConfig::plain(0xfed9_0000, 48).with_scalable_mode().with_device_tlbs().with_page_requests()
}

fn config(seed: u64, unit: UnitConfig) -> MachineConfig {
    let ats = vec![Ats { function: DEVICE, queue_depth: 8, answers: None }];
    MachineConfig { units: vec![unit], ats, ..machine(seed) }
}

fn setup(config: &MachineConfig, mode: Mode) -> Setup<'static> {
    let describe = |unit: &UnitConfig| UnitDescription { id: unit.id, catch_all: true, scopes: Vec::new() };
    let units = config.units.iter().map(describe).collect();
    let config = Config { mode, ..Config::default() };
    Setup { units, host_address_bits: 48, topology: &Buses, config }
}

type Driver<'m> = Iommu<'m, Host<'m>>;

/// Attaches the device with ATS on.
fn start<'m>(host: &'m Host<'m>, ctx: &mut MaySleep, setup: Setup<'m>) -> (Driver<'m>, iommu::DomainHandle) {
    let iommu = Iommu::probe(host, ctx, setup).expect("driver");
    iommu.enable(ctx).expect("translation");
    let domain = iommu.create_domain(ctx, &[iommu.units()[0].id()], None).expect("domain");
    iommu.map(ctx, domain, Iova::new(IOVA), PhysAddr::new(0x1000_0000), 1 << 16, RW).expect("map");
    scenario::pci::enable(&host.kernel, DEVICE).expect("mastering");
    iommu.attach(ctx, requester(), &[], domain).expect("attach");
    let tlb = DeviceTlb { physical_function: DEVICE, queue_depth: 8 };
    iommu.enable_device_tlb(ctx, requester(), tlb).expect("device-TLB");
    AtsCapability::find(&host.kernel, DEVICE).unwrap().unwrap().enable(&host.kernel);
    (iommu, domain)
}

fn page_requests_on(iommu: &Driver<'_>, host: &Host<'_>, ctx: &mut MaySleep) {
    iommu.units()[0].start_page_requests(ctx).expect("a queue");
    iommu.enable_page_requests(ctx, requester()).expect("page requests");
    Pri::find(&host.kernel, DEVICE).unwrap().unwrap().enable(&host.kernel);
}

fn serve(iommu: &Driver<'_>, ctx: &mut MaySleep, code: u64) -> Served {
    let unit = &iommu.units()[0];
    unit.locked(ctx, |atomic| unit.serve_page_requests(atomic, &mut |_| code)).expect("served")
}

/// The device's PRI off, what is on its way drained, and all of it answered.
fn stop(iommu: &Driver<'_>, host: &Host<'_>, ctx: &mut MaySleep) -> Served {
    Pri::find(&host.kernel, DEVICE).unwrap().unwrap().disable(&host.kernel);
    iommu.stop_page_requests(ctx, requester(), &mut |_| SUCCESS).expect("stopped")
}

fn refused(machine: &Machine) -> bool {
    let disabled = |l: &TraceLine| {
        matches!(
            l,
            TraceLine::Faulted { reason: Reason::PAGE_REQUEST_DISABLED, .. } | TraceLine::QueueError { .. }
        )
    };
    machine.trace().iter().any(disabled)
}

#[test]
fn over_a_change_of_drivers_no_page_request_is_lost_and_none_answered_twice() {
    for seed in 0..30 {
        let config = config(seed, unit());
        let machine = Machine::new(&config);
        let host = Host::boot(&machine, config.memory);
        let mut ctx = MaySleep::at_thread_start();
        let (old, domain) = start(&host, &mut ctx, setup(&config, Mode::SecondStage));
        page_requests_on(&old, &host, &mut ctx);
        let asks =
            |count: u64| (0..count).filter(|i| machine.ask_page(DEVICE, IOVA + (i << 12))).count() as u64;
        let mut sent = asks(5);
        machine.lapse(seed * 900);
        serve(&old, &mut ctx, SUCCESS);
        sent += asks(4 + seed % 3);
        // Some are in the queue by now, some on their way.
        machine.lapse(seed * 700);
        stop(&old, &host, &mut ctx);
        let at_freeze = machine.page_answers(DEVICE);
        let all = PageAnswers { asked: sent, succeeded: sent, ..PageAnswers::default() };
        assert_eq!(at_freeze, all, "seed {seed}");
        assert_eq!(asks(3), 0, "the device asks no more");
        let entry = old.units()[0].scalable_context_entry(DEVICE).unwrap().expect("an entry");
        assert!(entry.present() && entry.dte() && !entry.pre());

        // What the next driver is told of the domain, the update would carry over.
        let id = (old.units()[0].id(), old.domain_id(domain, old.units()[0].id()).expect("id"));
        let (top, levels) = (old.top_table(domain).expect("top"), old.levels(domain).expect("levels"));
        let mut tables: Vec<Extent> = Vec::new();
        old.domain_tables(domain, &mut |run| tables.push(run)).expect("tables");
        let tlb = old.device_tlb(requester()).expect("booked");
        let new = Iommu::take_over(&host, &mut ctx, setup(&config, Mode::SecondStage)).expect("taken over");
        let domain = new.import_domain(&mut ctx, top, levels, &[id], &tables).expect("domain");
        new.import_requester(&mut ctx, requester(), &[], domain).expect("requester");
        new.import_device_tlb(requester(), tlb).expect("device-TLB");
        page_requests_on(&new, &host, &mut ctx);
        sent += asks(6);
        machine.lapse(1_000_000);
        assert_eq!(serve(&new, &mut ctx, SUCCESS), Served { requests: 6, answered: 6, overflow: false });
        let all = PageAnswers { asked: sent, succeeded: sent, ..PageAnswers::default() };
        assert_eq!(machine.page_answers(DEVICE), all, "seed {seed}");
        assert!(!refused(&machine), "seed {seed}");
    }
}

#[test]
fn without_the_drain_page_requests_are_answered_by_nobody_who_knows_the_pages() {
    // The mistake: the entry forbids them while some are on their way.
    let config = config(3, unit());
    let machine = Machine::new(&config);
    let host = Host::boot(&machine, config.memory);
    let mut ctx = MaySleep::at_thread_start();
    let (iommu, _) = start(&host, &mut ctx, setup(&config, Mode::SecondStage));
    page_requests_on(&iommu, &host, &mut ctx);
    iommu.detach(&mut ctx, requester()).expect("detach");
    assert!(machine.ask_page(DEVICE, IOVA));
    machine.lapse(1_000_000);
    let answers = machine.page_answers(DEVICE);
    assert_eq!((answers.failed, answers.succeeded), (1, 0));
}

#[test]
fn a_queue_that_overflows_is_told_of_and_devices_ask_again() {
    let config = config(4, unit());
    let machine = Machine::new(&config);
    let host = Host::boot(&machine, config.memory);
    let mut ctx = MaySleep::at_thread_start();
    let (iommu, _) = start(&host, &mut ctx, setup(&config, Mode::SecondStage));
    page_requests_on(&iommu, &host, &mut ctx);
    (0..200).for_each(|i| assert!(machine.ask_page(DEVICE, IOVA + (i << 12))));
    machine.lapse(10_000_000);
    assert_eq!(serve(&iommu, &mut ctx, INVALID), Served { requests: 127, answered: 127, overflow: true });
    let answers = machine.page_answers(DEVICE);
    let expected = PageAnswers { asked: 200, succeeded: 73, failed: 127, unexpected: 0, open: 0 };
    assert_eq!(answers, expected);
    assert!(machine.ask_page(DEVICE, IOVA));
    machine.lapse(1_000_000);
    assert_eq!(serve(&iommu, &mut ctx, SUCCESS), Served { requests: 1, answered: 1, overflow: false });
}

#[test]
fn page_requests_need_scalable_mode_a_queue_and_a_device_tlb() {
    let config = config(5, unit());
    let machine = Machine::new(&config);
    let host = Host::boot(&machine, config.memory);
    let mut ctx = MaySleep::at_thread_start();
    let (iommu, _) = start(&host, &mut ctx, setup(&config, Mode::Legacy));
    let id = iommu.units()[0].id();
    let lacks = UnitError::Lacks { unit: id, what: Capability::PageRequests };
    assert_eq!(iommu.units()[0].start_page_requests(&mut ctx), Err(lacks));
    let e = iommu.enable_page_requests(&mut ctx, requester()).expect_err("no queue for them");
    assert_eq!(e, AttachError::Lacks { requester: requester(), what: Capability::PageRequests });
}
