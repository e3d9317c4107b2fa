//! Topologies as firmware leaves them, and as it should not.

use super::*;
use crate::fake::{FakeFunction, Machine};
use alloc::vec;
use spec::PhysAddr;

fn source(bus: u8, device: u8, function: u8) -> SourceId {
    SourceId::new(bus, device, function)
}

fn edu() -> FakeFunction {
    FakeFunction::endpoint(0x1234, 0x11e8, 0x00_ff_00)
}

/// The demo's machine: endpoints on bus 0, an edu behind a PCIe-to-PCI bridge, one more behind a conventional bridge,
/// one below a root port and a switch.
fn machine() -> Machine {
    Machine::new(0)
        .with_function(source(0, 0, 0), FakeFunction::endpoint(0x8086, 0x29c0, 0x06_00_00))
        .with_function(source(0, 2, 0), FakeFunction::endpoint(0x8086, 0x2668, 0x04_03_00))
        .with_function(source(0, 3, 0), edu())
        .with_function(source(0, 5, 0), FakeFunction::bridge(0, 1, 2).express(7))
        .with_function(source(1, 3, 0), edu())
        .with_function(source(1, 4, 0), FakeFunction::bridge(1, 2, 2))
        .with_function(source(2, 1, 0), edu())
        .with_function(source(0, 6, 0), FakeFunction::bridge(0, 3, 3))
        .with_function(source(3, 0, 0), edu())
        .with_function(source(0, 7, 0), FakeFunction::bridge(0, 4, 6).express(4))
        .with_function(source(4, 0, 0), FakeFunction::bridge(4, 5, 6).express(5))
        .with_function(source(5, 1, 0), FakeFunction::bridge(5, 6, 6).express(6))
        .with_function(source(6, 0, 0), edu().express(0))
}

#[test]
fn every_function_behind_every_bridge_is_found_once_in_order() {
    let topology = Topology::discover(&machine(), &[]);
    let found: Vec<SourceId> = topology.functions().iter().map(|function| function.source).collect();
    let ids = [0x00, 0x10, 0x18, 0x28, 0x30, 0x38, 0x118, 0x120, 0x208, 0x300, 0x400, 0x508, 0x600];
    assert_eq!(found, ids.map(SourceId::from_raw));
    assert_eq!(topology.oddities(), []);
    let hda = topology.function(source(0, 2, 0)).unwrap();
    assert_eq!((hda.vendor, hda.device, hda.class, hda.kind), (0x8086, 0x2668, 0x04_03_00, Kind::Endpoint));
    assert_eq!(topology.find(0x1234, 0x11e8).count(), 5);
}

#[test]
fn behind_a_pcie_to_pci_bridge_requests_carry_an_id_that_is_on_no_list() {
    let topology = Topology::discover(&machine(), &[]);
    assert_eq!(topology.aliases_of(source(1, 3, 0)), vec![source(1, 3, 0), source(1, 0, 0)]);
    assert_eq!(topology.carried_by(source(1, 3, 0)), source(1, 0, 0));
    assert!(topology.is_listed(source(1, 3, 0)));
    assert!(!topology.is_listed(source(1, 0, 0)));
}

#[test]
fn behind_a_conventional_bridge_requests_carry_the_bridges_own_id() {
    let topology = Topology::discover(&machine(), &[]);
    assert_eq!(topology.aliases_of(source(3, 0, 0)), vec![source(3, 0, 0), source(0, 6, 0)]);
    let deep = topology.aliases_of(source(2, 1, 0));
    assert_eq!(deep, vec![source(2, 1, 0), source(1, 4, 0), source(1, 0, 0)]);
}

#[test]
fn phantom_functions_that_are_switched_on_are_aliases_by_the_upper_bits_of_the_function_number() {
    let phantom = |bits: u32, on: u32| {
        let express = |edu: FakeFunction| edu.express(0).word(0x44, bits << 3).word(0x48, on << 9);
        let multi = express(edu()).word(0x0c, 0x80 << 16);
        let machine = Machine::new(0)
            .with_function(source(0, 3, 0), multi)
            .with_function(source(0, 3, 1), express(edu()));
        let topology = Topology::discover(&machine, &[]);
        assert_eq!(topology.carried_by(source(0, 3, 1)), source(0, 3, 1));
        [0, 1].map(|function| {
            topology.aliases_of(source(0, 3, function)).iter().map(|id| id.function()).collect::<Vec<_>>()
        })
    };
    assert_eq!(phantom(1, 0), [vec![0], vec![1]], "not switched on");
    assert_eq!(phantom(1, 1), [vec![0, 4], vec![1, 5]]);
    assert_eq!(phantom(2, 1), [vec![0, 2, 4, 6], vec![1, 3, 5, 7]]);
    assert_eq!(phantom(3, 1)[0], (0..8).collect::<Vec<_>>());
}

#[test]
fn express_ports_and_root_buses_leave_ids_alone() {
    let topology = Topology::discover(&machine(), &[]);
    for alone in [source(6, 0, 0), source(0, 2, 0), source(0, 5, 0), source(9, 9, 1)] {
        assert_eq!(topology.aliases_of(alone), vec![alone]);
    }
}

#[test]
fn a_bridge_with_a_damaged_capability_list_may_carry_either_id() {
    let cyclic = FakeFunction::bridge(0, 1, 1).capabilities(&[(0x40, 0x4405), (0x44, 0x4009)]);
    let machine =
        Machine::new(0).with_function(source(0, 1, 0), cyclic).with_function(source(1, 2, 0), edu());
    let topology = Topology::discover(&machine, &[]);
    assert_eq!(topology.aliases_of(source(1, 2, 0)), vec![source(1, 2, 0), source(1, 0, 0), source(0, 1, 0)]);
    let cycle = PciError::CapabilityCycle { function: source(0, 1, 0), offset: 0x40 };
    assert_eq!(topology.oddities(), [Oddity::Capabilities(cycle)]);
}

#[test]
fn functions_above_0_are_looked_for_only_where_function_0_says_so() {
    let many = FakeFunction::endpoint(1, 1, 0).word(0x0c, 0x80 << 16);
    let machine = Machine::new(0)
        .with_function(source(0, 1, 0), many)
        .with_function(source(0, 1, 5), edu())
        .with_function(source(0, 2, 0), edu())
        .with_function(source(0, 2, 1), edu()) // A phantom of function 0.
        .with_function(source(0, 3, 1), edu()); // No function 0: nothing there.
    let topology = Topology::discover(&machine, &[]);
    let found: Vec<SourceId> = topology.functions().iter().map(|function| function.source).collect();
    assert_eq!(found, [source(0, 1, 0), source(0, 1, 5), source(0, 2, 0)]);
}

#[test]
fn further_root_buses_are_walked_and_each_bus_only_once() {
    let machine = Machine::new(0)
        .with_function(source(0, 1, 0), edu())
        .with_function(source(0x80, 0, 0), FakeFunction::bridge(0x80, 0x81, 0x81).express(4))
        .with_function(source(0x81, 0, 0), edu());
    assert_eq!(Topology::discover(&machine, &[]).functions().len(), 1);
    assert_eq!(Topology::discover(&machine, &[0x80, 0, 0x80]).functions().len(), 3);
}

#[test]
fn bus_numbers_that_cannot_be_are_reported_and_not_followed() {
    let machine = Machine::new(0)
        .with_function(source(0, 1, 0), FakeFunction::bridge(0, 0, 0)) // Never numbered: leads to its own bus.
        .with_function(source(0, 2, 0), FakeFunction::bridge(0, 4, 5))
        .with_function(source(4, 0, 0), FakeFunction::bridge(4, 9, 9)) // Beyond what 00:02.0 forwards.
        .with_function(source(4, 1, 0), FakeFunction::bridge(4, 2, 2)) // Upwards.
        .with_function(source(9, 0, 0), edu())
        .with_function(source(0, 3, 0), FakeFunction::bridge(0, 4, 5)); // The same bus again.
    let topology = Topology::discover(&machine, &[]);
    let odd = [
        Oddity::BusOutside { bridge: source(0, 1, 0), secondary: 0 },
        Oddity::BusTwice { bridge: source(0, 3, 0), secondary: 4 },
        Oddity::BusOutside { bridge: source(4, 0, 0), secondary: 9 },
        Oddity::BusOutside { bridge: source(4, 1, 0), secondary: 2 },
    ];
    assert_eq!(topology.oddities(), odd);
    assert!(!topology.is_listed(source(9, 0, 0)));
}

#[test]
fn all_256_buses_in_a_chain_end() {
    let chain = (0..=255u8).fold(Machine::new(0), |machine, bus| {
        machine.with_function(source(bus, 0, 0), FakeFunction::bridge(bus, bus.wrapping_add(1), 255))
    });
    let topology = Topology::discover(&chain, &[]);
    assert_eq!(topology.functions().len(), 256);
    assert_eq!(topology.oddities(), [Oddity::BusOutside { bridge: source(255, 0, 0), secondary: 0 }]);
    assert_eq!(topology.aliases_of(source(255, 0, 0)).len(), 256);
}

#[test]
fn a_scope_path_leads_through_bridges_to_an_id_that_need_not_be_listed() {
    let topology = Topology::discover(&machine(), &[]);
    assert_eq!(topology.resolve(0, &[(2, 0)]), Ok(source(0, 2, 0)));
    assert_eq!(topology.resolve(0, &[(5, 0), (4, 0), (1, 0)]), Ok(source(2, 1, 0)));
    assert_eq!(topology.resolve(0xff, &[(0, 0)]), Ok(source(0xff, 0, 0)), "the IOAPIC of QEMU");
    assert_eq!(topology.resolve(1, &[(0, 0)]), Ok(source(1, 0, 0)));
    assert_eq!(topology.resolve(0, &[]), Err(PathError::Empty));
    assert_eq!(topology.resolve(0, &[(2, 0), (0, 0)]), Err(PathError::NoBridge { at: source(0, 2, 0) }));
    assert_eq!(topology.resolve(0, &[(31, 7), (0, 0)]), Err(PathError::NoBridge { at: source(0, 31, 7) }));
}

#[test]
fn a_bridge_has_everything_below_it_at_any_depth() {
    let topology = Topology::discover(&machine(), &[]);
    let below: Vec<SourceId> = topology.below(source(0, 5, 0)).map(|function| function.source).collect();
    assert_eq!(below, [source(1, 3, 0), source(1, 4, 0), source(2, 1, 0)]);
}

#[test]
fn a_capability_list_is_walked_to_its_end_and_not_beyond() {
    let at = source(0, 1, 0);
    let found = |list: &[(u8, u32)], id| {
        let machine = Machine::new(0).with_function(at, edu().capabilities(list));
        capability(&machine, at, id)
    };
    let list = [(0x40, 0x5005), (0x50, 0xfc10), (0xfc, 0x0011)];
    assert_eq!(
        [5, 0x10, 0x11, 9].map(|id| found(&list, id)),
        [0x40, 0x50, 0xfc, 0].map(|at| Ok((at != 0).then_some(at)))
    );
    assert_eq!(found(&[(0x40, 0x4005)], 9), Err(PciError::CapabilityCycle { function: at, offset: 0x40 }));
    assert_eq!(found(&[(0x40, 0x3c05)], 9), Err(PciError::CapabilityOutside { function: at, offset: 0x3c }));
    assert_eq!(
        found(&[(0x43, 0x4705), (0x44, 0x0009)], 9),
        Ok(Some(0x44)),
        "low bits of pointers are reserved"
    );
    let full: Vec<_> =
        (16..64u8).map(|n| (n * 4, u32::from(if n < 63 { n * 4 + 4 } else { 0 }) << 8 | 5)).collect();
    assert_eq!(found(&full, 9), Ok(None), "a list that fills all the room is no cycle");
    let machine = Machine::new(0).with_function(at, edu().word(0x34, 0x40).word(0x40, 0x10));
    assert_eq!(capability(&machine, at, 0x10), Ok(None), "the status register says that there is no list");
}

#[test]
fn bars_are_sized_with_decoding_off_and_left_as_they_were() {
    let at = source(0, 3, 0);
    let function = edu()
        .word(0x04, 0xf910_0007)
        .bar(0, 0xfea0_0000, 1 << 20)
        .bar(1, 0x8_0000_000c & !8 | 4, 1 << 34)
        .bar(3, 0xc001, 64)
        .bar(5, 0, 4096);
    let machine = Machine::new(0).with_function(at, function);
    let topology = Topology::discover(&machine, &[]);
    let bars = probe_bars(&machine, topology.function(at).unwrap());
    let wanted = [
        Bar::Memory { index: 0, at: PhysAddr::new(0xfea0_0000), bytes: 1 << 20, wide: false },
        Bar::Memory { index: 1, at: PhysAddr::new(0x8_0000_0000), bytes: 1 << 34, wide: true },
        Bar::Io { index: 3, port: 0xc000, count: 64 },
        Bar::Memory { index: 5, at: PhysAddr::new(0), bytes: 4096, wide: false },
    ];
    assert_eq!(bars, wanted);
    machine.function(at, |function| {
        assert_eq!(function.moved_while_decoding, 0);
        assert_eq!(function.status_cleared, 0);
        assert_eq!(function.commands, [4, 7], "bus mastering stays on meanwhile");
        let words = [0x10, 0x14, 0x18, 0x1c, 0x24].map(|offset| function.read(offset));
        assert_eq!(words, [0xfea0_0000, 4, 8, 0xc001, 0]);
    });
}

#[test]
fn a_bar_address_is_read_without_a_write() {
    let at = source(0, 3, 0);
    let function =
        edu().bar(0, 0xfea0_0008, 1 << 20).bar(1, 0x8_0000_0004, 1 << 34).bar(3, 0xc001, 64).bar(4, 0, 4096);
    let machine = Machine::new(0).with_function(at, function);
    assert_eq!(bar_address(&machine, at, 0), Ok(PhysAddr::new(0xfea0_0000)));
    assert_eq!(bar_address(&machine, at, 1), Ok(PhysAddr::new(0x8_0000_0000)));
    for (index, raw) in [(3, 0xc001), (4, 0), (6, 0)] {
        assert_eq!(bar_address(&machine, at, index), Err(PciError::NoMemoryBar { function: at, index, raw }));
    }
    let absent = PciError::NoMemoryBar { function: source(0, 9, 0), index: 0, raw: u32::MAX };
    assert_eq!(bar_address(&machine, source(0, 9, 0), 0), Err(absent));
}

#[test]
fn enabling_and_disabling_change_just_their_bits() {
    let at = source(0, 3, 0);
    let machine = Machine::new(0).with_function(at, edu().word(0x04, 0xf910_0001));
    enable(&machine, at).unwrap();
    disable_bus_master(&machine, at).unwrap();
    machine.function(at, |function| {
        assert_eq!(function.commands, [7, 3]);
        assert_eq!(function.status_cleared, 0);
    });
}

#[test]
fn a_function_that_is_not_there_cannot_be_enabled() {
    let at = source(0, 3, 0);
    assert_eq!(
        disable_bus_master(&Machine::new(0), at),
        Err(PciError::CommandRefused { function: at, wanted: 0xfffb, found: 0xffff })
    );
}
