//! The tables that firmware leaves: RSDP, RSDT, and a DMAR that names units and scopes as QEMU's does.
//!
//! Written byte by byte from ACPI 6.4 (5.2.5 to 5.2.7) and VT-d 8.1 to 8.3; no reader's code is used.

use crate::config::{MachineConfig, Scope, UnitConfig};
use crate::extra::{Extra, Named};
use crate::memory::PAGE;
use crate::pci::Pci;
use spec::{Extent, Requester, Segment, SourceId};

/// Where the RSDP lies, as in QEMU's firmware.
pub const RSDP: u64 = 0xf_5230;

const SCOPE_ENDPOINT: u8 = 1;
const SCOPE_BRIDGE: u8 = 2;
const SCOPE_IOAPIC: u8 = 3;
const SCOPE_HPET: u8 = 4;
const SCOPE_NAMESPACE: u8 = 5;
const DMAR_INTERRUPT_REMAPPING: u8 = 1;
const DRHD_INCLUDE_PCI_ALL: u8 = 1;

/// The tables as (address, bytes), the RSDP among them; `at` is where there is room for the others.
#[must_use]
pub fn tables(at: u64, config: &MachineConfig, pci: &Pci) -> Vec<(u64, Vec<u8>)> {
    let (madt_at, dmar_at, rsdt_at) = (at, at + PAGE / 2, at + PAGE);
    let madt = table(*b"APIC", 3, &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
    let mut body = dmar_body(config, pci);
    config.reserved.iter().for_each(|(function, memory)| rmrr(&mut body, *function, *memory));
    namespace_devices(&mut body, config);
    let dmar = table(*b"DMAR", 1, &body);
    let entries: Vec<u8> = [madt_at, dmar_at].iter().flat_map(|a| (*a as u32).to_le_bytes()).collect();
    let rsdt = table(*b"RSDT", 1, &entries);
    vec![(madt_at, madt), (dmar_at, dmar), (rsdt_at, rsdt), (RSDP, rsdp(rsdt_at))]
}

/// Revision 0: no XSDT.
fn rsdp(rsdt_at: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0HOLDOV\0".to_vec();
    bytes.extend_from_slice(&(rsdt_at as u32).to_le_bytes());
    bytes[8] = checksum(&bytes);
    bytes
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(b"HOLDOVMACHINE \x01\0\0\0HLDV\x01\0\0\0");
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes);
    bytes
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

fn dmar_body(config: &MachineConfig, pci: &Pci) -> Vec<u8> {
    let units = &config.units;
    let remaps_interrupts = units.iter().any(|unit| unit.ecap.ir());
    let mut body = vec![config.host_width - 1, if remaps_interrupts { DMAR_INTERRUPT_REMAPPING } else { 0 }];
    body.extend_from_slice(&[0; 10]);
    let last = units.iter().rposition(|unit| unit.id.segment == Segment(0));
    for (i, unit) in units.iter().enumerate() {
        let mut scopes = Vec::new();
        if Some(i) == last && unit.ecap.ir() {
            scope(&mut scopes, SCOPE_IOAPIC, 0, 0xff, &[SourceId::new(0xff, 0, 0)]);
        }
        for function in named_functions(unit, pci) {
            let kind = if pci.is_bridge(function) { SCOPE_BRIDGE } else { SCOPE_ENDPOINT };
            let mut path = pci.above(function.bus());
            path.reverse();
            path.push(function);
            scope(&mut scopes, kind, 0, 0, &path);
        }
        for (id, requester, named) in firmware_devices(config) {
            let covers = match &unit.scope {
                Scope::Listed(sources) => sources.contains(&requester.source),
                Scope::Everything | Scope::Rest => true,
            };
            if covers && requester.segment == unit.id.segment && !claimed(&units[..i], requester) {
                let kind = match named {
                    Named::Ioapic => SCOPE_IOAPIC,
                    Named::Hpet => SCOPE_HPET,
                    Named::Namespace => SCOPE_NAMESPACE,
                };
                scope(&mut scopes, kind, id, requester.source.bus(), &[requester.source]);
            }
        }
        let flags = if unit.scope == Scope::Rest { DRHD_INCLUDE_PCI_ALL } else { 0 };
        body.extend_from_slice(&0u16.to_le_bytes());
        body.extend_from_slice(&(16 + scopes.len() as u16).to_le_bytes());
        body.extend_from_slice(&[flags, 0]);
        body.extend_from_slice(&unit.id.segment.0.to_le_bytes());
        body.extend_from_slice(&unit.id.register_base.to_le_bytes());
        body.extend_from_slice(&scopes);
    }
    body
}

/// The functions that a unit's scopes name: those of the root bus in their order, then those behind bridges.
fn named_functions(unit: &UnitConfig, pci: &Pci) -> Vec<SourceId> {
    let root_bus = pci.root_bus().map(|(function, _)| function);
    match &unit.scope {
        Scope::Everything => root_bus.collect(),
        Scope::Listed(sources) => {
            let mut named: Vec<_> = root_bus.filter(|function| sources.contains(function)).collect();
            named.extend(sources.iter().filter(|s| s.bus() > 0 && pci.function(**s).is_some()));
            named
        }
        Scope::Rest => Vec::new(),
    }
}

/// Whether a unit before names the requester.
fn claimed(before: &[UnitConfig], requester: Requester) -> bool {
    let names = |unit: &UnitConfig| match &unit.scope {
        Scope::Listed(sources) => sources.contains(&requester.source),
        Scope::Everything | Scope::Rest => true,
    };
    before.iter().any(|unit| unit.id.segment == requester.segment && names(unit))
}

/// Devices that DMAR names though no enumeration finds them, each with a number.
fn firmware_devices(config: &MachineConfig) -> impl Iterator<Item = (u8, Requester, Named)> + '_ {
    let named = config.more.iter().filter_map(|extra| match extra {
        Extra::Fixed { requester, named: Some(named), .. } => Some((*requester, *named)),
        _ => None,
    });
    named.enumerate().map(|(i, (requester, named))| (i as u8 + 1, requester, named))
}

/// An ANDD structure for each device of the namespace (VT-d 8.7).
fn namespace_devices(out: &mut Vec<u8>, config: &MachineConfig) {
    for (id, _, named) in firmware_devices(config) {
        if named != Named::Namespace {
            continue;
        }
        let name = format!("\\_SB.DMA{id}\0");
        out.extend_from_slice(&4u16.to_le_bytes());
        out.extend_from_slice(&(8 + name.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0, 0, 0, id]);
        out.extend_from_slice(name.as_bytes());
    }
}

/// Reserved memory of one function of the root bus (VT-d 8.4).
fn rmrr(out: &mut Vec<u8>, function: SourceId, memory: Extent) {
    out.extend_from_slice(&[1, 0, 32, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&memory.start().get().to_le_bytes());
    out.extend_from_slice(&(memory.start().get() + memory.bytes() - 1).to_le_bytes());
    scope(out, SCOPE_ENDPOINT, 0, 0, &[function]);
}

/// A device scope: a path of one step for each function.
fn scope(out: &mut Vec<u8>, kind: u8, id: u8, start_bus: u8, path: &[SourceId]) {
    out.extend_from_slice(&[kind, 6 + 2 * path.len() as u8, 0, 0, id, start_bus]);
    out.extend(path.iter().flat_map(|step| [step.device(), step.function()]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{AUDIO, Pci};

    fn machine(units: Vec<UnitConfig>, host_width: u8) -> MachineConfig {
        MachineConfig { units, host_width, ..MachineConfig::qemu_like(1, 64 << 20, 39) }
    }

    #[test]
    fn every_table_sums_to_zero_and_states_its_length() {
        let config = machine(vec![UnitConfig::qemu_like(48)], 48);
        for (at, bytes) in tables(0x7f_0000, &config, &Pci::scenario()) {
            assert_eq!(bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "table at {at:#x}");
            let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            assert!(at == RSDP || length as usize == bytes.len());
        }
    }

    #[test]
    fn the_dmar_lists_every_function_of_the_root_bus_and_a_rest_unit_lists_none() {
        let pci = Pci::scenario();
        let all = dmar_body(&machine(vec![UnitConfig::qemu_like(39)], 39), &pci);
        assert_eq!((all[0], all[1]), (38, 1));
        assert_eq!(all.len(), 12 + 16 + 8 * (1 + pci.root_bus().count()));
        let first = UnitConfig::plain(0xfed9_1000, 39).for_sources(&[AUDIO]);
        let mut rest = UnitConfig::plain(0xfed9_0000, 39).without_queue();
        rest.scope = Scope::Rest;
        let two = dmar_body(&machine(vec![first, rest], 39), &pci);
        assert_eq!(two.len(), 12 + 16 + 8 + 16);
        assert_eq!(two[12 + 24 + 4], DRHD_INCLUDE_PCI_ALL);
    }

    #[test]
    fn what_lies_behind_bridges_is_named_by_its_path_and_what_no_enumeration_finds_by_its_kind() {
        let (port, deep) = (SourceId::new(0, 7, 0), SourceId::new(3, 1, 0));
        let hpet = Requester::new(Segment(0), SourceId::new(0xf0, 31, 0));
        let device = Requester::new(Segment(0), SourceId::new(0xf0, 30, 1));
        let fixed = |requester, named| Extra::Fixed { requester, registers: 0xfe70_0000, named: Some(named) };
        let more = vec![
            Extra::Bridge { at: port, secondary: 3, subordinate: 3, kind: crate::extra::BridgeKind::Port },
            Extra::Function { at: deep, registers: 0xfe60_0000, phantom_bits: 0 },
            fixed(hpet, Named::Hpet),
            fixed(device, Named::Namespace),
        ];
        let first = UnitConfig::plain(0xfed9_1000, 39).without_queue().for_sources(&[deep, hpet.source]);
        let rest = UnitConfig { scope: Scope::Rest, ..UnitConfig::plain(0xfed9_0000, 39).without_queue() };
        let config = MachineConfig { more, ..machine(vec![first, rest], 39) };
        let pci = Pci::scenario().with(&config.more);
        let body = dmar_body(&config, &pci);
        let scopes = &body[12 + 16..];
        assert_eq!(scopes[..10], [SCOPE_ENDPOINT, 10, 0, 0, 0, 0, 7, 0, 1, 0]);
        assert_eq!(scopes[10..18], [SCOPE_HPET, 8, 0, 0, 1, 0xf0, 31, 0]);
        assert_eq!(scopes[18 + 16..], [SCOPE_NAMESPACE, 8, 0, 0, 2, 0xf0, 30, 1]);
        let mut structures = Vec::new();
        namespace_devices(&mut structures, &config);
        assert_eq!(structures, b"\x04\0\x12\0\0\0\0\x02\\_SB.DMA2\0");
    }
}
