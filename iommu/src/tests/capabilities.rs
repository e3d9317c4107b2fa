//! Capability registers of real units, and what the driver makes of each kind: expectations are written by hand from the
//! registers' descriptions, and hold for what the driver then does, too.

use super::{CONFIG, requester, setup};
use crate::fake::{Fake, UNIT};
use crate::table::format::{Access, Stage};
use crate::{Choices, Config, DomainError, Invalidation, Iommu, Mode, Modes, Setup, VtdUnit};
use liveupdate::host::MaySleep;
use spec::regs::{Cap, Ecap};
use spec::{DomainId, Iova, PhysAddr};

/// CAP and ECAP of units that were seen, and where.
type Seen = (u64, u64, &'static str);

/// A unit of legacy mode alone, as all were for long: the rest is said by what differs.
const fn legacy(levels: u8, leaves: u64, queue: bool) -> Choices {
    Choices {
        queue,
        second_stage_levels: Some(levels),
        second_stage_leaves: leaves,
        first_stage_levels: None,
        first_stage_leaves: 0,
        modes: Modes { legacy: true, second_stage: false, first_stage: false },
        nested: false,
        pass_through: true,
        pasid_bits: 0,
        domain_ids: 256,
        fault_records: 1,
        page_order: None,
    }
}

/// A unit that has all three modes.
const fn scalable(first_stage_levels: u8, nested: bool, pasid_bits: u32) -> Choices {
    Choices {
        first_stage_levels: Some(first_stage_levels),
        first_stage_leaves: 3,
        modes: Modes { legacy: true, second_stage: true, first_stage: true },
        nested,
        pasid_bits,
        ..legacy(4, 3, true)
    }
}

const ALL: &[(&[Seen], Choices)] = &[
    (
        &[(0xc9_0080_10e6_0262, 0xf0_207a, "Core i7 920"), (0xc9_0080_2066_0262, 0xf0_105a, "Core i7-2640M")],
        Choices { page_order: Some(9), ..legacy(3, 0, true) },
    ),
    (
        &[
            (0xc9_0780_106f_0462, 0xf0_20fe, "Dell Precision T7500, Xeon X5650"),
            (0xc9_0780_106f_0462, 0xf0_20f6, "Xeon E5630"),
        ],
        Choices { page_order: Some(9), fault_records: 8, ..legacy(4, 0, true) },
    ),
    (
        &[
            (0xc9_0080_20e3_0272, 0x1000, "HP Compaq 8000, Core 2 Duo E8500, first unit"),
            (0xc9_0080_2063_0272, 0x1000, "HP Compaq 8000, fourth unit"),
        ],
        Choices { page_order: Some(9), pass_through: false, ..legacy(3, 0, false) },
    ),
    (
        &[(0xc0_0000_2063_0272, 0x1000, "HP Compaq 8000, second and third unit")],
        Choices { pass_through: false, ..legacy(3, 0, false) },
    ),
    (
        &[
            (0xc9_0080_20e3_0260, 0x1000, "HP Compaq 6730b, Core 2 Duo P8600, first unit"),
            (0xc9_0080_2063_0260, 0x1000, "HP Compaq 6730b, third unit"),
        ],
        Choices { page_order: Some(9), pass_through: false, domain_ids: 16, ..legacy(3, 0, false) },
    ),
    (
        &[(0xc0_0000_2063_0260, 0x1000, "HP Compaq 6730b, graphics")],
        Choices { pass_through: false, domain_ids: 16, ..legacy(3, 0, false) },
    ),
    (
        &[(0xc0_0000_20e6_0262, 0xf0_101a, "Core i7-2640M, graphics")],
        Choices { pass_through: false, ..legacy(3, 0, true) },
    ),
    (
        &[(0xc0_0000_2066_0462, 0xf0_101a, "Haswell desktop, graphics")],
        Choices { pass_through: false, ..legacy(4, 0, true) },
    ),
    (
        &[(0xd2_0080_2066_0462, 0xf0_10da, "Haswell desktop")],
        Choices { page_order: Some(18), ..legacy(4, 0, true) },
    ),
    (
        &[
            (0xd2_008c_2066_0462, 0xf0_10da, "Broadwell"),
            (
                0xd2_008c_4066_0462,
                0xf0_50da,
                "Microsoft Surface Book, and client chipsets since; version 5.0 too",
            ),
        ],
        Choices { page_order: Some(18), ..legacy(4, 3, true) },
    ),
    (
        // Bits 38:24 of ECAP had other meanings before there was scalable mode: these units have none, whatever the
        // width of a PASID and nesting seem to say.
        &[
            (0x1c0_000c_4066_0462, 0x7e_1ff0_505e, "Skylake graphics"),
            (0x1c0_000c_4066_0462, 0x7e_3ff0_505e, "Microsoft Surface Book, Core i5-6300U, graphics"),
            (0x1c0_000c_4066_0462, 0x19e_2ff0_505e, "MacBookPro14,3, Core i7-7700HQ, graphics"),
            (0x1c0_000c_4066_0462, 0x49e_2ff0_505e, "Surface Pro 7, Core i7-1065G7, graphics; version 4.0"),
            (0x1c0_000c_4066_0462, 0x69e_2ff0_505e, "ThinkPad E15, Core i7-1165G7, graphics; version 4.0"),
            (0x1c0_000c_4066_0462, 0x29a_00f0_505e, "Dell Latitude 9420, Core i7-1185G7, graphics"),
        ],
        legacy(4, 3, true),
    ),
    (
        &[(0x1c0_000c_4066_0462, 0x7e_3ff0_501e, "Alienware, graphics")],
        Choices { pass_through: false, ..legacy(4, 3, true) },
    ),
    (
        &[(0xd2_078c_106f_0462, 0xf0_20fe, "HP ProLiant DL380e Gen8, Xeon E5-2403")],
        Choices { page_order: Some(18), fault_records: 8, ..legacy(4, 3, true) },
    ),
    (
        &[
            (0xd2_078c_106f_0466, 0xf0_20de, "a server of two sockets"),
            (0x8d2_078c_106f_0466, 0xf0_20de, "Supermicro X10, Xeon E5-2640 v4"),
            (0x8d2_078c_106f_0466, 0xf0_20df, "Dell PowerEdge R630, Xeon E5-2620 v4"),
        ],
        Choices { page_order: Some(18), fault_records: 8, domain_ids: 65536, ..legacy(4, 3, true) },
    ),
    (
        &[(0x8ed_008c_4078_0466, 0x600_00f0_50df, "Xeon Silver 4310")],
        Choices { page_order: Some(45), domain_ids: 65536, ..legacy(4, 3, true) },
    ),
    (
        // Everything but requests with PASID.
        &[(0x9ed_008c_4078_0466, 0x3_ee9e_86f0_50df, "a server of version 6.0")],
        Choices { page_order: Some(45), domain_ids: 65536, ..scalable(4, true, 0) },
    ),
    (
        // Five levels in both stages; four are taken where nobody asks.
        &[
            (0x19ed_008c_4078_0c66, 0x3_ef9e_86f0_50df, "Sapphire Rapids, root ports"),
            (0x19ed_008c_4078_0c66, 0x3_ef9e_a6f0_50df, "Sapphire Rapids, the rest"),
            (0xf9ed_008c_ee78_0c66, 0x3f_ef9e_a6f0_efdf, "Dell PowerEdge R770, Xeon 6515P"),
        ],
        Choices { page_order: Some(45), domain_ids: 65536, ..scalable(5, true, 20) },
    ),
    (
        // Scalable mode without coherent walks, nesting, and requests with PASID.
        &[
            (0xc9de_008c_ee69_0462, 0x12_ca9a_00f0_ef5e, "Core Ultra 7 155H, graphics"),
            (0xc9de_008c_ee69_0462, 0x12_ca9a_00f0_efde, "Core Ultra 7 155H"),
        ],
        Choices { page_order: Some(30), ..scalable(4, false, 0) },
    ),
    (
        &[(0xd2_008c_2226_0286, 0xf0_0f5a, "QEMU, 39 bits")],
        Choices { page_order: Some(18), domain_ids: 65536, ..legacy(3, 3, true) },
    ),
    (
        // Three levels and four: four are taken.
        &[
            (0xd2_008c_222f_0686, 0xf0_0f5a, "QEMU, 48 bits"),
            (0xd2_008c_222f_0606, 0xf0_0f5e, "QEMU, 48 bits, device-TLBs"),
        ],
        Choices { page_order: Some(18), domain_ids: 65536, ..legacy(4, 3, true) },
    ),
    (
        &[(0x80d2_008c_222f_06c6, 0xf0_0f1a, "QEMU 11")],
        Choices { page_order: Some(18), domain_ids: 65536, pass_through: false, ..legacy(4, 3, true) },
    ),
    (
        &[(0xd2_008c_222f_0606, 0x4800_80f0_0f4a, "QEMU 7.2 and 10.0, x-scalable-mode")],
        Choices {
            page_order: Some(18),
            domain_ids: 65536,
            modes: Modes { legacy: true, second_stage: true, first_stage: false },
            ..legacy(4, 3, true)
        },
    ),
    (
        // The first stage in place of the second, not beside it.
        &[(0x1d2_008c_222f_0606, 0x8800_00f0_0f4a, "QEMU 10.0, x-scalable-mode and x-flts")],
        Choices {
            page_order: Some(18),
            domain_ids: 65536,
            modes: Modes { legacy: true, second_stage: false, first_stage: true },
            first_stage_levels: Some(4),
            first_stage_leaves: 3,
            ..legacy(4, 3, true)
        },
    ),
];

fn all() -> impl Iterator<Item = (Seen, Choices)> {
    ALL.iter().flat_map(|(seen, choices)| seen.iter().map(|seen| (*seen, *choices)))
}

#[test]
fn capabilities_of_real_units_decide_what_is_written_here_for_them() {
    for ((cap, ecap, name), expected) in all() {
        assert_eq!(Choices::of(Cap::from_raw(cap), Ecap::from_raw(ecap)), expected, "{name}");
    }
}

#[test]
fn the_driver_comes_up_on_every_real_unit_in_just_the_modes_that_it_offers() {
    for ((cap, ecap, name), expected) in all() {
        let Modes { legacy, second_stage, first_stage } = expected.modes;
        let modes =
            [(Mode::Legacy, legacy), (Mode::SecondStage, second_stage), (Mode::FirstStage, first_stage)];
        for (mode, offered) in modes {
            let (fake, mut ctx) = (Fake::new(cap, ecap), MaySleep::at_thread_start());
            let unit = VtdUnit::set_up(&fake, &mut ctx, UNIT, Config { mode, ..CONFIG });
            assert_eq!(unit.is_ok(), offered, "{name} in {mode} mode: {:?}", unit.err());
            let Ok(unit) = unit else { continue };
            assert_eq!(unit.has_queue(), expected.queue, "{name}");
            let by_pasid = unit.invalidation() == Invalidation::ByPasid;
            assert_eq!(by_pasid, mode.is_scalable(), "{name} in {mode} mode");
            // The last fault record is looked at.
            fake.with_unit(|u| {
                let last = u.records.len() - 1;
                assert_eq!(u.records.len() as u64, expected.fault_records, "{name}");
                u.records[last] = [0x1000, 1 << 63 | 6 << 32];
            });
            assert_eq!(unit.faults(&mut |_| {}).recorded, 1, "{name}");
        }
    }
}

#[test]
fn domains_on_every_real_unit_have_the_depth_leaves_and_ids_that_it_offers() {
    for ((cap, ecap, name), expected) in all() {
        let legacy =
            (Mode::Legacy, Stage::Second, expected.second_stage_levels, expected.second_stage_leaves);
        let first = (Mode::FirstStage, Stage::First, Some(4), expected.first_stage_leaves);
        for (mode, stage, levels, leaves) in
            [Some(legacy), expected.modes.first_stage.then_some(first)].into_iter().flatten()
        {
            let (fake, mut ctx) = (Fake::new(cap, ecap), MaySleep::at_thread_start());
            let setup = Setup { config: Config { mode, ..CONFIG }, ..setup() };
            let iommu = Iommu::probe(&fake, &mut ctx, setup).expect(name);
            let domain = iommu.create_domain(&mut ctx, &[UNIT], None).expect(name);
            assert_eq!((iommu.stage(domain), iommu.levels(domain)), (Some(stage), levels), "{name}");
            // All leaves or none: no unit here has those of 2 MiB alone.
            let (bytes, tables) = match (leaves, levels.map(u64::from)) {
                (3, Some(levels)) => (1 << 30, levels - 2),
                (0, Some(levels)) => (2 << 20, levels),
                other => panic!("{name}: {other:?}"),
            };
            let (at, to) = (Iova::new(1 << 30), PhysAddr::new(1 << 30));
            iommu.map(&mut ctx, domain, at, to, bytes, Access::READ).expect(name);
            let mut frames = 0;
            iommu.domain_tables(domain, &mut |run| frames += run.count()).expect(name);
            assert_eq!(frames, tables, "{name}: leaves as large as can be");
            iommu.attach(&mut ctx, requester(0, 2, 0), &[], domain).expect(name);
            let id = |id: u32| iommu.reserve_domain_id(UNIT, DomainId(id as u16));
            id(expected.domain_ids - 1).expect(name);
            if expected.domain_ids < 1 << 16 {
                let beyond =
                    DomainError::DomainIdTaken { unit: UNIT, id: DomainId(expected.domain_ids as u16) };
                assert_eq!(id(expected.domain_ids), Err(beyond), "{name}");
            }
        }
    }
}

/// The list that these facts were taken from, which is not part of this tree: `HOLDOVER_SHARED` says where it lies.
#[test]
fn every_unit_of_the_list_of_real_ones_is_here() {
    let Some(shared) = std::env::var_os("HOLDOVER_SHARED") else { return };
    let list = std::path::Path::new(&shared).join("dumps/dmar/capabilities.csv");
    let mut rows = 0;
    for row in std::fs::read_to_string(list).expect("the list").lines().skip(1) {
        let mut cells = row.split(',').skip(1).map(|cell| u64::from_str_radix(cell, 16).expect(row));
        let registers = (cells.next().expect(row), cells.next().expect(row));
        assert!(all().any(|((cap, ecap, _), _)| (cap, ecap) == registers), "{row}");
        rows += 1;
    }
    assert!(rows >= 38, "{rows}");
}
