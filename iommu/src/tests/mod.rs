//! Tests of the driver on the fake machine.

mod attach;
mod capabilities;
mod dmar;
mod import;
mod interrupts;
mod map;
mod model;
mod pasid;
mod random;
mod scalable;
mod stages;
mod tables;
mod unit;

use crate::fake::{Fake, QEMU_CAP, QEMU_ECAP, SECOND, UNIT};
use crate::registers::Patience;
use crate::scope::{Scope, ScopeKind, Topology, UnitDescription};
use crate::{Config, Iommu, Mode, Setup};
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use spec::regs::{Cap, Ecap};
use spec::{Requester, Segment, SourceId};

pub(crate) const SEGMENT: Segment = Segment(0);
/// Patience that runs out soon.
pub(crate) const CONFIG: Config = Config {
    patience: Patience { nanoseconds: 2_000_000, looks: 500 },
    registers_only: false,
    mode: Mode::Legacy,
    pasid_directory: 0,
    narrow_queue: false,
};

/// 00:05.0 is a bridge to bus 1; 00:06.0 one to buses 2 to 4.
pub(crate) struct Buses;

impl Topology for Buses {
    fn bridge(&self, function: Requester) -> Option<(u8, u8)> {
        match function.source.raw() {
            0x28 => Some((1, 1)),
            0x30 => Some((2, 4)),
            _ => None,
        }
    }
}

pub(crate) fn source(bus: u8, device: u8, function: u8) -> SourceId {
    SourceId::new(bus, device, function)
}

pub(crate) fn requester(bus: u8, device: u8, function: u8) -> Requester {
    Requester::new(SEGMENT, source(bus, device, function))
}

/// A unit for 00:1f.0, and one for everything else.
pub(crate) fn setup() -> Setup<'static> {
    let named = Scope { kind: ScopeKind::Endpoint, start_bus: 0, path: Vec::from([(0x1f, 0)]) };
    Setup {
        units: Vec::from([
            UnitDescription { id: UNIT, catch_all: true, scopes: Vec::new() },
            UnitDescription { id: SECOND, catch_all: false, scopes: Vec::from([named]) },
        ]),
        host_address_bits: 39,
        topology: &Buses,
        config: CONFIG,
    }
}

/// Capabilities of a unit with everything that scalable mode has.
pub(crate) fn rich() -> (u64, u64) {
    let cap = Cap::from_raw(QEMU_CAP).with_fs1gp(true).with_fs5lp(true);
    let ecap = Ecap::from_raw(QEMU_ECAP).with_smts(true).with_ssts(true).with_fsts(true).with_nest(true);
    let ecap = ecap.with_pt(true).with_pasid(true).with_pss(19).with_c(true).with_smpwcs(true);
    (cap.raw(), ecap.raw())
}

/// A machine whose units have everything that scalable mode has.
pub(crate) fn rich_fake() -> Fake {
    let (cap, ecap) = rich();
    Fake::new(cap, ecap)
}

/// A running driver on `fake`, driven as `config` says.
pub(crate) fn running_as<'f>(fake: &'f Fake, ctx: &mut MaySleep, config: Config) -> Iommu<'f, Fake> {
    let iommu = Iommu::probe(fake, ctx, Setup { config, ..setup() }).expect("units come up");
    iommu.enable(ctx).expect("translation goes on");
    iommu
}

/// A running driver on `fake`, in `mode`.
pub(crate) fn running_in<'f>(fake: &'f Fake, ctx: &mut MaySleep, mode: Mode) -> Iommu<'f, Fake> {
    running_as(fake, ctx, Config { mode, ..CONFIG })
}

/// A running driver on `fake`.
pub(crate) fn running<'f>(fake: &'f Fake, ctx: &mut MaySleep) -> Iommu<'f, Fake> {
    let iommu = Iommu::probe(fake, ctx, setup()).expect("units come up");
    iommu.enable(ctx).expect("translation goes on");
    iommu
}
