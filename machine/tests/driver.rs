//! The driver against the machine: whatever it says a requester reaches, hardware agrees, at once and for good.
//!
//! Random operations of the driver, with requests of every source in between. Hardware must never let a request through that the
//! driver's books refuse, nor send it elsewhere, and must serve what the books allow.

mod common;

use common::host::{Buses, Host};
use holdover_machine::devices::Habits;
use holdover_machine::{Machine, MachineConfig, TraceLine, UnitConfig, pci};
use iommu::driver::Setup;
use iommu::scope::{Scope, ScopeKind};
use iommu::{Access, Config, DomainHandle, Iommu, UnitDescription};
use liveupdate::host::MaySleep;
use proptest::prelude::*;
use spec::fault::Reason;
use spec::{Iova, PhysAddr, Requester, Segment, SourceId};

const BASE: u64 = 0xfed9_0000;
const SOURCES: [SourceId; 4] = [pci::AUDIO, pci::EDU_A, pci::EDU_B, pci::BEHIND_BRIDGE];
const TARGET: u64 = 0x1000_0000;

fn setup(units: &[UnitConfig], registers_only: bool) -> Setup<'static> {
    let describe = |unit: &UnitConfig| {
        let scope = |source: &SourceId| Scope {
            kind: if *source == pci::BRIDGE { ScopeKind::Bridge } else { ScopeKind::Endpoint },
            start_bus: 0,
            path: vec![(source.device(), source.function())],
        };
        let (catch_all, scopes) = match &unit.scope {
            holdover_machine::Scope::Listed(sources) => (false, sources.iter().map(scope).collect()),
            _ => (true, Vec::new()),
        };
        UnitDescription { id: unit.id, catch_all, scopes }
    };
    let config = Config { registers_only, ..Config::default() };
    Setup { units: units.iter().map(describe).collect(), host_address_bits: 48, topology: &Buses, config }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Map { domain: usize, page: u64, pages: u64, target: u64, access: usize },
    Unmap { domain: usize, page: u64, pages: u64 },
    Attach { source: usize, domain: usize },
    Detach { source: usize },
    Ask { source: usize, page: u64, write: bool },
}

/// Pages that operations and requests hit: few, so that they meet; near 2 MiB and 1 GiB borders.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..4, 510u64..514, (0u64..2).prop_map(|n| (1 << 18) + n * 512)]
}

fn step() -> impl Strategy<Value = Step> {
    let count = prop_oneof![1u64..4, Just(512u64), Just(1024u64)];
    let target = prop_oneof![(0u64..32).prop_map(|n| n << 12), (0u64..4).prop_map(|n| n << 21)];
    prop_oneof![
        3 => (0..2usize, page(), count.clone(), target, 0..3usize)
            .prop_map(|(domain, page, pages, target, access)| Step::Map { domain, page, pages, target, access }),
        2 => (0..2usize, page(), count).prop_map(|(domain, page, pages)| Step::Unmap { domain, page, pages }),
        2 => (0..4usize, 0..2usize).prop_map(|(source, domain)| Step::Attach { source, domain }),
        1 => (0..4usize).prop_map(|source| Step::Detach { source }),
        8 => (0..4usize, page(), any::<bool>()).prop_map(|(source, page, write)| Step::Ask { source, page, write }),
    ]
}

/// Kinds of units that ask different things of a driver.
fn units() -> impl Strategy<Value = (Vec<UnitConfig>, bool)> {
    let plain = || UnitConfig::plain(BASE, 48);
    let rest = |mut unit: UnitConfig| {
        unit.scope = holdover_machine::Scope::Rest;
        unit
    };
    let two =
        vec![UnitConfig::plain(BASE + 0x1000, 48).for_sources(&[pci::AUDIO, pci::BRIDGE]), rest(plain())];
    let kinds = vec![
        (vec![plain()], false),
        (vec![plain()], true),
        (vec![UnitConfig::qemu_like(48)], false),
        (vec![UnitConfig::qemu_like(39)], false),
        (vec![plain().without_queue()], false),
        (vec![plain().with_cap(|c| c.with_cm(true))], false),
        (vec![plain().with_cap(|c| c.with_cm(true))], true),
        (vec![plain().with_cap(|c| c.with_rwbf(true))], false),
        (vec![plain().with_cap(|c| c.with_psi(false))], false),
        (vec![plain().with_cap(|c| c.with_sslps(0).with_mamv(1))], false),
        (two, false),
    ];
    prop::sample::select(kinds)
}

struct World<'m> {
    machine: &'m Machine,
    iommu: &'m Iommu<'m, Host<'m>>,
    domains: [DomainHandle; 2],
    ctx: MaySleep,
}

impl World<'_> {
    fn requester(source: usize) -> Requester {
        Requester::new(Segment(0), SOURCES[source])
    }

    /// Carries a step out. What the driver refuses is refused; what it claims is checked by asking.
    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Self { iommu, domains, ctx, .. } = self;
        match step {
            Step::Map { domain, page, pages, target, access } => {
                let access = [
                    Access { read: true, write: true },
                    Access { read: true, write: false },
                    Access { read: false, write: true },
                ][access];
                let (iova, phys) = (Iova::new(page << 12), PhysAddr::new(TARGET + target));
                let _ = iommu.map(ctx, domains[domain], iova, phys, pages << 12, access);
            }
            Step::Unmap { domain, page, pages } => {
                let _ = iommu.unmap(ctx, domains[domain], Iova::new(page << 12), pages << 12);
            }
            Step::Attach { source, domain } => {
                let _ = iommu.attach(ctx, Self::requester(source), &[], domains[domain]);
            }
            Step::Detach { source } => {
                let _ = iommu.detach(ctx, Self::requester(source));
            }
            Step::Ask { source, page, write } => self.ask(source, (page << 12) + 8, write)?,
        }
        Ok(())
    }

    fn ask(&self, source: usize, iova: u64, write: bool) -> Result<(), TestCaseError> {
        let domain = self.iommu.domain_of(Self::requester(source));
        let leaf = domain.and_then(|domain| self.iommu.translate(domain, Iova::new(iova)));
        let allowed = leaf.filter(|(_, access)| if write { access.write } else { access.read });
        let expected = allowed.map(|(at, _)| at.get());
        let found = self.machine.request(SOURCES[source], iova, write);
        prop_assert_eq!(found, expected, "{} at {:#x}, write {}", SOURCES[source], iova, write);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hardware_agrees_with_the_driver_after_every_operation(
        seed in any::<u64>(),
        (units, registers_only) in units(),
        chatty in any::<bool>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut config = MachineConfig::qemu_like(seed, 512 << 20, 48);
        config.units = units.clone();
        // Every requester asks for every page all the time: what is forgotten in the wrong order is back at once.
        let pages = (0..4).chain(510..514).chain([1 << 18, (1 << 18) + 512]);
        let addresses: Vec<u64> = pages.map(|page: u64| page << 12).collect();
        config.chatter = SOURCES
            .map(|source| Habits { source, addresses: addresses.clone(), pause: (20, 3_000) })
            .into_iter()
            .take(if chatty { 4 } else { 0 })
            .collect();
        let machine = Machine::new(&config);
        let host = Host::boot(&machine, config.memory);
        let mut ctx = MaySleep::at_thread_start();
        let iommu = Iommu::probe(&host, &mut ctx, setup(&units, registers_only)).unwrap();
        iommu.enable(&mut ctx).unwrap();
        let ids: Vec<_> = units.iter().map(|unit| unit.id).collect();
        let domains = [0, 1].map(|_| iommu.create_domain(&mut ctx, &ids, None).unwrap());
        let mut world = World { machine: &machine, iommu: &iommu, domains, ctx };
        for step in steps {
            world.take(step)?;
        }
        let trace = machine.trace();
        // Nobody ever meets half an entry, or a table that was not cleared.
        let absent = [
            Reason::ROOT_NOT_PRESENT,
            Reason::CONTEXT_NOT_PRESENT,
            Reason::READ_DENIED,
            Reason::WRITE_DENIED,
            Reason::ADDRESS_BEYOND_WIDTH,
        ];
        let torn = |line: &&TraceLine| matches!(line, TraceLine::Faulted { reason, .. } if !absent.contains(reason));
        prop_assert_eq!(trace.iter().find(torn), None);
        let misuse = trace.iter().find(|line| matches!(line, TraceLine::Misuse { .. }));
        prop_assert_eq!(misuse, None);
    }
}
