//! The tables that firmware leaves: RSDP, RSDT, and a DMAR that names units and scopes as QEMU's does.
//!
//! Written byte by byte from ACPI 6.4 (5.2.5 to 5.2.7) and VT-d 8.1 to 8.3; no reader's code is used.

use crate::config::{Scope, UnitConfig};
use crate::memory::PAGE;
use spec::{Extent, SourceId};

/// Where the RSDP lies, as in QEMU's firmware.
pub const RSDP: u64 = 0xf_5230;

const SCOPE_ENDPOINT: u8 = 1;
const SCOPE_BRIDGE: u8 = 2;
const SCOPE_IOAPIC: u8 = 3;
const DMAR_INTERRUPT_REMAPPING: u8 = 1;
const DRHD_INCLUDE_PCI_ALL: u8 = 1;

/// The tables as (address, bytes), the RSDP among them; `at` is where there is room for the others.
#[must_use]
pub fn tables(
    at: u64,
    host_width: u8,
    units: &[UnitConfig],
    root_bus: &[(SourceId, bool)],
    reserved: &[(SourceId, Extent)],
) -> Vec<(u64, Vec<u8>)> {
    let (madt_at, dmar_at, rsdt_at) = (at, at + PAGE / 2, at + PAGE);
    let madt = table(*b"APIC", 3, &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
    let mut body = dmar_body(host_width, units, root_bus);
    reserved.iter().for_each(|(function, memory)| rmrr(&mut body, *function, *memory));
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

fn dmar_body(host_width: u8, units: &[UnitConfig], root_bus: &[(SourceId, bool)]) -> Vec<u8> {
    let remaps_interrupts = units.iter().any(|unit| unit.ecap.ir());
    let mut body = vec![host_width - 1, if remaps_interrupts { DMAR_INTERRUPT_REMAPPING } else { 0 }];
    body.extend_from_slice(&[0; 10]);
    for (i, unit) in units.iter().enumerate() {
        let mut scopes = Vec::new();
        if i + 1 == units.len() && unit.ecap.ir() {
            scope(&mut scopes, SCOPE_IOAPIC, SourceId::new(0xff, 0, 0));
        }
        for &(function, bridge) in root_bus {
            let named = match &unit.scope {
                Scope::Everything => true,
                Scope::Listed(sources) => sources.contains(&function),
                Scope::Rest => false,
            };
            if named {
                scope(&mut scopes, if bridge { SCOPE_BRIDGE } else { SCOPE_ENDPOINT }, function);
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

/// Reserved memory of one function of the root bus (VT-d 8.4).
fn rmrr(out: &mut Vec<u8>, function: SourceId, memory: Extent) {
    out.extend_from_slice(&[1, 0, 32, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&memory.start().get().to_le_bytes());
    out.extend_from_slice(&(memory.start().get() + memory.bytes() - 1).to_le_bytes());
    scope(out, SCOPE_ENDPOINT, function);
}

/// A device scope with a path of one step.
fn scope(out: &mut Vec<u8>, kind: u8, function: SourceId) {
    out.extend_from_slice(&[kind, 8, 0, 0, 0, function.bus(), function.device(), function.function()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{AUDIO, Pci};

    #[test]
    fn every_table_sums_to_zero_and_states_its_length() {
        let root_bus: Vec<_> = Pci::scenario().root_bus().collect();
        let units = [UnitConfig::qemu_like(48)];
        for (at, bytes) in tables(0x7f_0000, 48, &units, &root_bus, &[]) {
            assert_eq!(bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "table at {at:#x}");
            let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            assert!(at == RSDP || length as usize == bytes.len());
        }
    }

    #[test]
    fn the_dmar_lists_every_function_of_the_root_bus_and_a_rest_unit_lists_none() {
        let root_bus: Vec<_> = Pci::scenario().root_bus().collect();
        let all = dmar_body(39, &[UnitConfig::qemu_like(39)], &root_bus);
        assert_eq!((all[0], all[1]), (38, 1));
        assert_eq!(all.len(), 12 + 16 + 8 * (1 + root_bus.len()));
        let first = UnitConfig::plain(0xfed9_1000, 39).for_sources(&[AUDIO]);
        let mut rest = UnitConfig::plain(0xfed9_0000, 39).without_queue();
        rest.scope = Scope::Rest;
        let two = dmar_body(39, &[first, rest], &root_bus);
        assert_eq!(two.len(), 12 + 16 + 8 + 16);
        assert_eq!(two[12 + 24 + 4], DRHD_INCLUDE_PCI_ALL);
    }
}
