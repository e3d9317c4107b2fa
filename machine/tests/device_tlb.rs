//! The driver and devices that keep translations (ATS), on the machine: what such a device keeps goes stale, and where it then
//! writes to is the witness.

mod common;

use common::host::{Buses, Host};
use common::{assert_good, machine};
use holdover_machine::{
    Ats, Invalidation, Machine, MachineConfig, Run, RunConfig, TraceLine, UnitConfig, pci, run,
};
use iommu::driver::Setup;
use iommu::{
    Access, AttachError, Capability, Config, DeviceTlb, DomainHandle, Hal, Iommu, MapError, QueueError,
    UnitDescription,
};
use liveupdate::host::{MaySleep, Unit};
use scenario::event::Event;
use scenario::platform::{Mark, Platform};
use spec::fault::Reason;
use spec::invalidation::{DeviceTlbInvalidate, kind};
use spec::{Iova, PhysAddr, Requester, Segment, SourceId};

const BASE: u64 = 0xfed9_0000;
const DEVICE: SourceId = pci::EDU_B;
const OTHER: SourceId = pci::EDU_A;
const OLD: u64 = 0x1000_0000;
const NEW: u64 = 0x1100_0000;
const IOVA: u64 = 0x20_0000;
const RW: Access = Access { read: true, write: true };

fn requester(source: SourceId) -> Requester {
    Requester::new(Segment(0), source)
}

fn ats(function: SourceId) -> Ats {
    Ats { function, queue_depth: 4, answers: None }
}

fn unit() -> UnitConfig {
    UnitConfig::plain(BASE, 48).with_device_tlbs()
}

fn with(seed: u64, unit: UnitConfig, ats: &[Ats]) -> MachineConfig {
    MachineConfig { units: vec![unit], ats: ats.to_vec(), ..machine(seed) }
}

struct World<'m> {
    machine: &'m Machine,
    host: &'m Host<'m>,
    iommu: Iommu<'m, Host<'m>>,
    domain: DomainHandle,
    ctx: MaySleep,
}

/// A driver on `config`, a domain with 16 pages mapped, and `attached` in it with ATS on where they have it.
fn on(config: &MachineConfig, attached: &[SourceId], f: impl FnOnce(&mut World<'_>)) {
    let machine = Machine::new(config);
    let host = Host::boot(&machine, config.memory);
    let mut ctx = MaySleep::at_thread_start();
    let describe = |unit: &UnitConfig| UnitDescription { id: unit.id, catch_all: true, scopes: Vec::new() };
    let units: Vec<_> = config.units.iter().map(describe).collect();
    let setup = Setup { units, host_address_bits: 48, topology: &Buses, config: Config::default() };
    let iommu = Iommu::probe(&host, &mut ctx, setup).expect("driver");
    iommu.enable(&mut ctx).expect("translation");
    let domain = iommu.create_domain(&mut ctx, &[config.units[0].id], None).expect("domain");
    let mut world = World { machine: &machine, host: &host, iommu, domain, ctx };
    world.map(IOVA, OLD, 16);
    for &source in attached {
        scenario::pci::enable(&host.kernel, source).expect("mastering");
        world.iommu.attach(&mut world.ctx, requester(source), &[], domain).expect("attach");
        if config.ats.iter().any(|ats| ats.function == source) {
            world.switch_on(source).expect("ATS");
        }
    }
    f(&mut world);
    let broken = |line: &TraceLine| matches!(line, TraceLine::Misuse { .. } | TraceLine::QueueError { .. });
    assert_eq!(machine.trace().into_iter().find(broken), None);
}

impl World<'_> {
    fn map(&mut self, iova: u64, phys: u64, pages: u64) {
        let (iova, phys) = (Iova::new(iova), PhysAddr::new(phys));
        self.iommu.map(&mut self.ctx, self.domain, iova, phys, pages << 12, RW).expect("map");
    }
    fn unmap(&mut self, iova: u64, pages: u64) -> Result<u64, MapError> {
        self.iommu.unmap(&mut self.ctx, self.domain, Iova::new(iova), pages << 12)
    }
    fn switch_on(&mut self, source: SourceId) -> Result<(), AttachError> {
        let found = scenario::pci::ats::Ats::find(&self.host.kernel, source).expect("capabilities");
        let found = found.expect("an ATS capability");
        let tlb = DeviceTlb { physical_function: source, queue_depth: found.queue_depth };
        self.iommu.enable_device_tlb(&mut self.ctx, requester(source), tlb)?;
        found.enable(&self.host.kernel);
        Ok(())
    }
    fn asks(&self, source: SourceId, iova: u64) -> Option<u64> {
        self.machine.request(source, iova, true)
    }
    fn silent(&self) -> Vec<Requester> {
        let mut silent = Vec::new();
        self.iommu.take_silent(&mut |requester| silent.push(requester));
        silent
    }
    fn errors(&self) -> Vec<QueueError> {
        let mut errors = Vec::new();
        self.iommu.units()[0].queue_errors(&mut |error| errors.push(error));
        errors
    }
}

#[test]
fn a_stale_device_tlb_writes_to_the_old_frame_until_it_is_invalidated() {
    on(&with(1, unit(), &[ats(DEVICE)]), &[DEVICE], |w| {
        assert_eq!(w.asks(DEVICE, IOVA + 8), Some(OLD + 8));
        assert_eq!(w.machine.device_pages(DEVICE), [IOVA >> 12]);
        // The mistake: the page is unmapped, the unit forgets, and the device is forgotten.
        let id = w.iommu.domain_id(w.domain, w.iommu.units()[0].id()).expect("id");
        let leaf = lowest_entry(w);
        w.host.kernel.write64(leaf, 0).expect("memory");
        let vtd = &w.iommu.units()[0];
        let everything = liveupdate::host::Forget::Domain(id);
        let _ = vtd.locked(&mut w.ctx, |atomic| vtd.forget(atomic, everything)).expect("forgotten");
        assert_eq!(w.asks(DEVICE, IOVA + 8), Some(OLD + 8), "the machine's device-TLB does not go stale");
        // Without the mistake, and another frame there.
        let tlb = w.iommu.device_tlb(requester(DEVICE)).expect("booked");
        let asked = vtd.locked(&mut w.ctx, |atomic| {
            vtd.forget_in_device(atomic, DEVICE, tlb, &[0], Some((Iova::new(IOVA), 0)))
        });
        assert_eq!(asked, Ok(true));
        assert_eq!(w.asks(DEVICE, IOVA + 8), None);
        w.map(IOVA, NEW, 1);
        assert_eq!(w.asks(DEVICE, IOVA + 8), Some(NEW + 8));
    });
}

/// The address of the entry that maps `IOVA`.
fn lowest_entry(w: &World<'_>) -> PhysAddr {
    let levels = w.iommu.levels(w.domain).expect("levels");
    let top = w.iommu.top_table(w.domain).expect("tables");
    (0..levels).rev().fold(top, |at, level| {
        let entry = at.plus(8 * (IOVA >> (12 + 9 * level) & 0x1ff));
        match level {
            0 => entry,
            _ => PhysAddr::new(w.host.kernel.read64(entry).expect("a table") & !0xfff),
        }
    })
}

#[test]
fn unmapping_reaches_the_devices_of_the_domain_after_the_iotlb_and_leaves_their_other_pages() {
    for seed in 0..20 {
        on(&with(seed, unit(), &[ats(DEVICE), ats(OTHER)]), &[DEVICE, OTHER], |w| {
            for (source, page) in [(DEVICE, 0), (DEVICE, 3), (DEVICE, 9), (OTHER, 3), (OTHER, 4)] {
                assert!(w.asks(source, IOVA + (page << 12)).is_some());
            }
            let before = w.machine.trace().len();
            w.unmap(IOVA + 0x2000, 2).expect("unmapped");
            let first = IOVA >> 12;
            assert_eq!(w.machine.device_pages(DEVICE), [first, first + 9]);
            assert_eq!(w.machine.device_pages(OTHER), [first + 4]);
            let order: Vec<_> = w.machine.trace()[before..]
                .iter()
                .filter_map(|line| match line {
                    TraceLine::Invalidated { what, .. } => Some(*what),
                    _ => None,
                })
                .collect();
            assert!(matches!(order[0], Invalidation::Pages { .. }), "{order:?}");
            assert!(
                order[1..].iter().all(|what| matches!(what, Invalidation::DeviceTlb(_))) && order.len() == 3
            );
            w.map(IOVA + 0x3000, NEW, 1);
            assert_eq!(w.asks(OTHER, IOVA + 0x3000), Some(NEW));
        });
    }
}

#[test]
fn a_device_that_does_not_answer_is_cut_off_and_named_and_not_waited_for() {
    for (seed, answers) in [(1, 0), (2, 1), (3, 2)] {
        // It answers once when it is let.
        let silent = Ats { answers: Some(1 + answers), ..ats(DEVICE) };
        on(&with(seed, unit(), &[silent, ats(OTHER)]), &[DEVICE, OTHER], |w| {
            for page in 0..4 {
                assert!(w.asks(DEVICE, IOVA + (page << 12)).is_some());
                assert!(w.asks(OTHER, IOVA + (page << 12)).is_some());
            }
            let start = w.machine.now();
            for page in 0..=answers {
                assert_eq!(w.unmap(IOVA + (page << 12), 1), Ok(4096));
            }
            assert!(w.machine.now() - start < 30_000_000, "took {} ns", w.machine.now() - start);
            assert_eq!(w.silent(), [requester(DEVICE)]);
            assert_eq!(w.silent(), []);
            assert_eq!(*w.host.silenced.borrow(), [requester(DEVICE)]);
            let named =
                QueueError::Unanswered { unit: w.iommu.units()[0].id(), requester: Some(requester(DEVICE)) };
            assert_eq!(w.errors(), [named]);
            assert_eq!(w.iommu.domain_of(requester(DEVICE)), None);
            // Its device-TLB is as it was; whatever it asks for, translated or not, is blocked.
            assert!(!w.machine.device_pages(DEVICE).is_empty());
            for page in 0..4 {
                assert_eq!(w.asks(DEVICE, IOVA + (page << 12)), None);
            }
            assert_eq!(w.asks(OTHER, IOVA + 0xf000), Some(OLD + 0xf000), "the other one goes on");
            assert_eq!(w.unmap(IOVA + 0xf000, 1), Ok(4096));
        });
    }
}

#[test]
fn translated_requests_of_a_device_that_ignores_that_ats_is_off_are_blocked_by_its_entry() {
    let silent = Ats { answers: Some(1), ..ats(DEVICE) };
    on(&with(4, unit(), &[silent]), &[DEVICE], |w| {
        assert!(w.asks(DEVICE, IOVA).is_some());
        w.unmap(IOVA, 1).expect("unmapped");
        // It switches itself on again.
        let found = scenario::pci::ats::Ats::find(&w.host.kernel, DEVICE).unwrap().unwrap();
        assert!(!found.is_enabled(&w.host.kernel));
        found.enable(&w.host.kernel);
        let before = w.machine.trace().len();
        assert_eq!(w.asks(DEVICE, IOVA), None);
        let reasons: Vec<_> = w.machine.trace()[before..]
            .iter()
            .filter_map(|line| match line {
                TraceLine::Faulted { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect();
        assert_eq!(reasons, [Reason::CONTEXT_NOT_PRESENT]);
        // Attached anew without leave to keep translations, it may not use what it kept.
        w.iommu.attach(&mut w.ctx, requester(DEVICE), &[], w.domain).expect("attach");
        assert_eq!(w.asks(DEVICE, IOVA), None);
        let last = *w.machine.trace().last().expect("a line");
        assert!(matches!(last, TraceLine::Faulted { reason: Reason::REQUEST_TYPE_BLOCKED, .. }), "{last:?}");
    });
}

#[test]
fn a_unit_that_is_more_patient_than_the_driver_keeps_nobody_waiting_and_nothing_is_used_again() {
    let mut patient = unit();
    patient.device_patience = 60_000_000_000;
    let silent = Ats { answers: Some(1), ..ats(DEVICE) };
    on(&with(5, patient, &[silent]), &[DEVICE], |w| {
        assert!(w.asks(DEVICE, IOVA).is_some());
        let start = w.machine.now();
        let e = w.unmap(IOVA, 1).expect_err("nobody can say that it was forgotten");
        assert!(matches!(e, MapError::TimedOut(_)), "{e}");
        assert!(w.machine.now() - start < 500_000_000, "took {} ns", w.machine.now() - start);
        assert_eq!(w.silent(), [requester(DEVICE)]);
        assert_eq!(*w.host.silenced.borrow(), [requester(DEVICE)]);
        // The entry is not present: when the unit gives up, or forgets by itself, the device is cut off for good.
        w.machine.lapse(61_000_000_000);
        let unit = &w.iommu.units()[0];
        let forget = liveupdate::host::Forget::Everything;
        let _ = unit.locked(&mut w.ctx, |atomic| unit.forget(atomic, forget)).expect("forgotten");
        assert_eq!(w.asks(DEVICE, IOVA), None);
        assert_eq!(w.errors().len(), 1);
    });
}

#[test]
fn a_device_that_does_not_answer_when_it_is_let_is_cut_off_at_once() {
    let silent = Ats { answers: Some(0), ..ats(OTHER) };
    on(&with(9, unit(), &[silent]), &[DEVICE], |w| {
        w.iommu.attach(&mut w.ctx, requester(OTHER), &[], w.domain).expect("attach");
        let e = w.switch_on(OTHER).expect_err("it does not answer");
        assert_eq!(e, AttachError::DeviceSilent(requester(OTHER)));
        assert_eq!((w.iommu.domain_of(requester(OTHER)), w.asks(OTHER, IOVA)), (None, None));
        assert_eq!(w.silent(), [requester(OTHER)]);
        assert_eq!(w.asks(DEVICE, IOVA), Some(OLD), "the other one goes on");
    });
}

#[test]
fn detaching_empties_the_device_tlb_and_so_does_switching_it_off() {
    on(&with(6, unit(), &[ats(DEVICE), ats(OTHER)]), &[DEVICE, OTHER], |w| {
        for source in [DEVICE, OTHER] {
            assert!(w.asks(source, IOVA).is_some() && w.asks(source, IOVA + 0x5000).is_some());
            assert_eq!(w.machine.device_pages(source).len(), 2);
        }
        w.iommu.detach(&mut w.ctx, requester(DEVICE)).expect("detach");
        assert_eq!(w.machine.device_pages(DEVICE), []);
        let found = scenario::pci::ats::Ats::find(&w.host.kernel, OTHER).unwrap().unwrap();
        found.disable(&w.host.kernel);
        assert_eq!(w.iommu.disable_device_tlb(&mut w.ctx, requester(OTHER)), Ok(true));
        assert_eq!((w.machine.device_pages(OTHER), w.silent()), (vec![], vec![]));
        assert_eq!(w.asks(OTHER, IOVA), Some(OLD));
        assert_eq!(w.machine.device_pages(OTHER), [], "it keeps nothing any more");
    });
}

#[test]
fn more_invalidations_than_a_device_queues_are_held_back_by_the_depth_that_they_name() {
    for (named, lost) in [(4, false), (5, true), (0, true)] {
        on(&with(7, unit(), &[ats(DEVICE)]), &[DEVICE], |w| {
            let iqa = w.host.read64(PhysAddr::new(BASE + spec::regs::offset::IQA)) & !0xfff;
            let tail = w.host.read64(PhysAddr::new(BASE + spec::regs::offset::IQT));
            let descriptor = DeviceTlbInvalidate::ZERO
                .with_kind(kind::DEVICE_TLB)
                .with_sid(DEVICE.raw().into())
                .with_mip(named)
                .with_addr(IOVA >> 12)
                .raw();
            for i in 0..12 {
                w.host.kernel.write64(PhysAddr::new(iqa + tail + 16 * i), descriptor[0]).unwrap();
                w.host.kernel.write64(PhysAddr::new(iqa + tail + 16 * i + 8), descriptor[1]).unwrap();
            }
            w.host.write64(PhysAddr::new(BASE + spec::regs::offset::IQT), tail + 16 * 12);
            w.machine.lapse(1_000_000_000);
            let lost_one = w.machine.trace().iter().any(|l| matches!(l, TraceLine::Unanswered { .. }));
            assert_eq!(lost_one, lost, "MIP {named}");
        });
    }
}

#[test]
fn what_cannot_keep_translations_is_refused_with_the_reason() {
    let tlb = DeviceTlb { physical_function: DEVICE, queue_depth: 4 };
    on(&with(8, UnitConfig::plain(BASE, 48), &[]), &[DEVICE], |w| {
        let e = w.iommu.enable_device_tlb(&mut w.ctx, requester(DEVICE), tlb).expect_err("no ECAP.DT");
        assert_eq!(e, AttachError::Lacks { requester: requester(DEVICE), what: Capability::DeviceTlb });
        let e = w.iommu.enable_device_tlb(&mut w.ctx, requester(OTHER), tlb).expect_err("not attached");
        assert_eq!(e, AttachError::NotAttached(requester(OTHER)));
        assert_eq!(scenario::pci::ats::Ats::find(&w.host.kernel, DEVICE), Ok(None));
    });
    on(&with(8, unit().without_queue(), &[]), &[DEVICE], |w| {
        let e = w.iommu.enable_device_tlb(&mut w.ctx, requester(DEVICE), tlb).expect_err("no queue");
        assert_eq!(e, AttachError::Lacks { requester: requester(DEVICE), what: Capability::Queue });
    });
    on(&with(8, unit(), &[]), &[], |w| {
        let alias = [SourceId::new(1, 0, 0)];
        w.iommu.attach(&mut w.ctx, requester(DEVICE), &alias, w.domain).expect("attach");
        let e = w.iommu.enable_device_tlb(&mut w.ctx, requester(DEVICE), tlb).expect_err("an alias");
        assert_eq!(e, AttachError::DeviceTlbAliases(requester(DEVICE)));
    });
}

/// A whole update of devices that keep translations: two that are preserved, one that is cut off.
fn story(seed: u64, answers: Option<u64>) -> MachineConfig {
    let cut = Ats { answers, ..ats(pci::EDU_B) };
    with(seed, unit(), &[ats(pci::AUDIO), ats(pci::EDU_A), cut])
}

/// What a run of `config` has in device-TLBs at the jump: of the preserved edu and of the one that is cut off.
fn at_jump(config: &RunConfig) -> (Run, Vec<[usize; 2]>) {
    let mut kept = Vec::new();
    let run = run(config, &mut |machine, _| {
        kept.push([pci::EDU_A, pci::EDU_B].map(|source| machine.device_pages(source).len()));
    });
    (run, kept)
}

#[test]
fn an_update_carries_devices_that_keep_translations_and_empties_those_of_who_is_cut_off() {
    for seed in 0..4 {
        let (run, kept) = at_jump(&RunConfig::new(story(seed, None), 2));
        assert_good(&run, &format!("seed {seed}"));
        assert_eq!(kept.len(), 2);
        for [preserved, cut] in kept {
            assert!(preserved > 0 && cut == 0, "seed {seed}: {preserved} and {cut} pages");
        }
        // The last kernel goes on invalidating what its predecessors let them keep.
        assert!(!run.machine.device_pages(pci::AUDIO).is_empty());
        let forgotten = |source: SourceId| {
            let of = |l: &&TraceLine| matches!(l, TraceLine::Invalidated { what: Invalidation::DeviceTlb(d), .. } if d.source == source);
            run.machine.trace().iter().filter(of).count()
        };
        // When it was let, at each cut-off, when it was let again; the others only once.
        assert_eq!([pci::AUDIO, pci::EDU_A, pci::EDU_B].map(forgotten), [1, 1, 4], "seed {seed}");
    }
}

#[test]
fn a_device_that_falls_silent_at_the_cut_off_is_named_switched_off_and_not_waited_for() {
    let (run, kept) = at_jump(&RunConfig::new(story(5, Some(1)), 1));
    assert_good(&run, "silent at the cut-off");
    assert!(kept[0][1] > 0, "the device did not forget");
    let told = |e: &Event| matches!(e, Event::QueueError { words, .. } if words.contains("did not answer"));
    assert!(run.events().iter().any(told), "{:?}", run.events());
    let off = run.machine.trace();
    let marks = |mark| off.iter().find(|l| matches!(l, TraceLine::Mark { mark: m, .. } if *m == mark));
    let [begin, done] = [Mark::CutOffBegin, Mark::CutOffDone].map(|m| marks(m).expect("a mark").at());
    assert!(done - begin < 30_000_000, "the cut-off took {} ns", done - begin);
}

#[test]
fn an_update_without_device_tlb_invalidation_at_the_cut_off_is_found_out() {
    let config = RunConfig::new(story(6, None), 1).with_option("mutant", "missing-invalidation");
    let (_, kept) = at_jump(&config);
    assert!(kept[0][1] > 0, "the device forgot by itself");
}
