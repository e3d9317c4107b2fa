//! Random attaching, detaching, mapping and unmapping in scalable mode: after every step, every request of every requester
//! with every PASID ends where the model says, on units of every kind, though all of them cache all that they see.

use super::{CONFIG, requester, rich, running_as, source};
use crate::domain::DomainHandle;
use crate::error::{AttachError, MapError};
use crate::fake::{Fake, Quirks, UNIT};
use crate::table::format::{Access, Stage};
use crate::{Config, Iommu, Mode};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use proptest::prelude::*;
use spec::{Iova, PhysAddr, Requester, SourceId};

const PAGE: u64 = 0x1000;
const PAGES: u64 = 5;
const PASIDS: [u32; 4] = [0, 1, 65, 127];
/// The second and third share an alias, and are on the upper half of their bus.
const WHO: [(u8, u8, u8); 3] = [(0, 2, 0), (1, 0x12, 0), (1, 0x13, 0)];

fn who(i: usize) -> Requester {
    requester(WHO[i].0, WHO[i].1, WHO[i].2)
}

fn aliases(i: usize) -> Vec<SourceId> {
    if i == 0 { Vec::new() } else { Vec::from([source(1, 0, 0)]) }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Attach(usize, u32, usize),
    Detach(usize, u32),
    DetachAll(usize),
    Map(usize, u64, u64),
    Unmap(usize, u64, u64),
}

#[derive(Debug, Default)]
struct Model {
    /// By requester and PASID.
    attached: BTreeMap<(usize, u32), usize>,
    /// Pages by domain.
    pages: [BTreeMap<u64, u64>; 3],
}

impl Model {
    /// Requesters that share a directory with this one.
    fn group(i: usize) -> core::ops::Range<usize> {
        if i == 0 { 0..1 } else { 1..3 }
    }
    fn leads_to(&self, i: usize, pasid: u32) -> Option<usize> {
        Self::group(i).find_map(|other| self.attached.get(&(other, pasid)).copied())
    }
    fn is_attached(&self, i: usize) -> bool {
        self.attached.keys().any(|(other, _)| *other == i)
    }
    fn sources(&self) -> Vec<(SourceId, bool, usize)> {
        let mut all: Vec<_> = (0..3).map(|i| (who(i).source, self.is_attached(i), i)).collect();
        all.push((source(1, 0, 0), self.is_attached(1) || self.is_attached(2), 1));
        all
    }
}

struct Bench<'f> {
    fake: &'f Fake,
    iommu: Iommu<'f, Fake>,
    domains: [DomainHandle; 3],
    model: Model,
}

impl Bench<'_> {
    fn step(&mut self, ctx: &mut MaySleep, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Attach(i, pasid, d) => {
                let got = self.iommu.attach_pasid(ctx, who(i), &aliases(i), pasid, self.domains[d]);
                let taken = self.model.leads_to(i, pasid).is_some_and(|other| other != d);
                if self.model.attached.contains_key(&(i, pasid)) || taken {
                    prop_assert!(got.is_err(), "{step:?}");
                } else {
                    prop_assert_eq!(got, Ok(()));
                    self.model.attached.insert((i, pasid), d);
                }
            }
            Step::Detach(i, pasid) => {
                let got = self.iommu.detach_pasid(ctx, who(i), pasid);
                let there = self.model.attached.remove(&(i, pasid)).is_some();
                prop_assert_eq!(got.is_ok(), there);
            }
            Step::DetachAll(i) => {
                let got = self.iommu.detach(ctx, who(i));
                let there = self.model.is_attached(i);
                self.model.attached.retain(|(other, _), _| *other != i);
                prop_assert_eq!(got, if there { Ok(()) } else { Err(AttachError::NotAttached(who(i))) });
            }
            Step::Map(d, page, to) => {
                let (at, to) = (Iova::new(page * PAGE), PhysAddr::new(to * PAGE));
                let got = self.iommu.map(ctx, self.domains[d], at, to, PAGE, Access::READ_WRITE);
                match self.model.pages[d].contains_key(&page) {
                    true => prop_assert_eq!(got, Err(MapError::AlreadyMapped { iova: at })),
                    false => {
                        prop_assert_eq!(got, Ok(()));
                        self.model.pages[d].insert(page, to.get());
                    }
                }
            }
            Step::Unmap(d, page, count) => {
                let got = self.iommu.unmap(ctx, self.domains[d], Iova::new(page * PAGE), count * PAGE);
                let before = self.model.pages[d].len();
                self.model.pages[d].retain(|p, _| !(page..page + count).contains(p));
                prop_assert_eq!(got, Ok((before - self.model.pages[d].len()) as u64 * PAGE));
            }
        }
        Ok(())
    }

    /// Every request ends where it must.
    fn check(&self, after: &Step) -> Result<(), TestCaseError> {
        for (source, attached, i) in self.model.sources() {
            for pasid in PASIDS {
                let domain = self.model.leads_to(i, pasid).filter(|_| attached);
                for page in 0..PAGES {
                    let expected = domain.and_then(|d| self.model.pages[d].get(&page).copied());
                    let with = Some(pasid).filter(|pasid| *pasid != 0);
                    let got = self.fake.dma_with(source, with, page * PAGE, true).ok();
                    prop_assert_eq!(got, expected, "{} {} page {} after {:?}", source, pasid, page, after);
                }
            }
        }
        prop_assert_eq!(self.fake.with_unit(|u| u.incoherent), 0);
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pasid = || prop::sample::select(&PASIDS[..]);
    let step = prop_oneof![
        4 => (0..3_usize, pasid(), 0..3_usize).prop_map(|(i, p, d)| Step::Attach(i, p, d)),
        2 => (0..3_usize, pasid()).prop_map(|(i, p)| Step::Detach(i, p)),
        1 => (0..3_usize).prop_map(Step::DetachAll),
        3 => (0..3_usize, 0..PAGES, 0x100..0x200_u64).prop_map(|(d, p, to)| Step::Map(d, p, to)),
        2 => (0..3_usize, 0..PAGES, 1..=PAGES).prop_map(|(d, p, n)| Step::Unmap(d, p, n)),
    ];
    prop::collection::vec(step, 1..30)
}

/// A kind of unit and a way to drive it: quirks, capabilities beyond the usual, 128-bit descriptors.
fn kinds() -> impl Strategy<Value = (Quirks, u64, bool)> {
    let quirks = prop::sample::select(&[Quirks::None, Quirks::None, Quirks::Ignores, Quirks::Refuses][..]);
    let cap = prop::sample::select(&[0_u64, 0, 1 << 7, 1 << 4, 1 << 7 | 1 << 4][..]);
    (quirks, cap, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn every_request_ends_where_it_must_after_any_sequence((quirks, cap, narrow_queue) in kinds(), steps in steps()) {
        let (fake, mut ctx) = (Fake::new(rich().0 | cap, rich().1), MaySleep::at_thread_start());
        fake.with_unit(|u| u.quirks = quirks);
        let config = Config { mode: Mode::SecondStage, narrow_queue, ..CONFIG };
        let iommu = running_as(&fake, &mut ctx, config);
        let frames = fake.frames_given();
        let domains = [Stage::Second, Stage::First, Stage::First].map(|stage| {
            iommu.create_staged_domain(&mut ctx, stage, &[UNIT], None).expect("domain")
        });
        let mut bench = Bench { fake: &fake, iommu, domains, model: Model::default() };
        for step in &steps {
            bench.step(&mut ctx, *step)?;
            bench.check(step)?;
        }
        let left: BTreeSet<usize> = bench.model.attached.keys().map(|(i, _)| *i).collect();
        for i in left {
            bench.step(&mut ctx, Step::DetachAll(i))?;
        }
        for domain in bench.domains {
            prop_assert_eq!(bench.iommu.domain_id(domain, UNIT), None);
            bench.iommu.destroy_domain(&mut ctx, domain).expect("nobody is attached");
        }
        prop_assert_eq!(fake.frames_given(), frames, "every frame came back");
    }
}
