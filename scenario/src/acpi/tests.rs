//! Firmware as it should be, and as it should not.

use super::*;
use crate::fake::Machine;

const RSDP: u64 = 0x5_0000 + 0x9e0;
const ROOT: u64 = 0x6_0000;

/// A table with a right length and checksum.
fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..4].copy_from_slice(signature);
    bytes.extend(body);
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    seal(&mut bytes, 9);
    bytes
}

/// Makes the bytes add up to zero by the one at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = sum(bytes).wrapping_neg();
}

fn rsdp(revision: u8, rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = vec![0; RSDP_V2_BYTES];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[15] = revision;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[20..24].copy_from_slice(&36u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    seal(&mut bytes[..RSDP_V1_BYTES], 8);
    seal(&mut bytes, 32);
    if revision < 2 {
        bytes[RSDP_V1_BYTES..].fill(0xee); // What follows the old RSDP is somebody else's.
    }
    bytes
}

/// A machine with an RSDT at [`ROOT`] that points to `tables`, each laid out at its address.
fn machine(tables: &[(u32, Vec<u8>)]) -> Machine {
    let machine = bare(rsdp(0, ROOT as u32, 0));
    let pointers: Vec<u8> = tables.iter().flat_map(|(at, _)| at.to_le_bytes()).collect();
    put(&machine, ROOT, &table(b"RSDT", &pointers));
    for (at, bytes) in tables {
        put(&machine, (*at).into(), bytes);
    }
    machine
}

fn bare(rsdp: Vec<u8>) -> Machine {
    let machine = Machine::new(0x20_0000);
    machine.rsdp.set(RSDP);
    put(&machine, RSDP, &rsdp);
    machine
}

fn put(machine: &Machine, at: u64, bytes: &[u8]) {
    machine.write(PhysAddr::new(at), bytes).unwrap();
}

fn at(address: u64) -> PhysAddr {
    PhysAddr::new(address)
}

#[test]
fn the_dmar_is_found_through_the_rsdt_at_unaligned_addresses() {
    let wanted = table(b"DMAR", &[38, 1, 2, 3, 4]);
    let machine = machine(&[(0x7_0001, table(b"FACP", &[])), (0x7_1003, wanted.clone())]);
    let found = dmar(&machine).unwrap();
    assert_eq!(found, Dmar { table: Table { at: at(0x7_1003), bytes: wanted }, ignored: vec![] });
}

#[test]
fn from_revision_2_on_the_xsdt_counts() {
    let machine = bare(rsdp(2, ROOT as u32, 0x6_8004));
    put(&machine, ROOT, &table(b"RSDT", &0x7_0000u32.to_le_bytes()));
    put(&machine, 0x6_8004, &table(b"XSDT", &0x7_1000u64.to_le_bytes()));
    put(&machine, 0x7_0000, &table(b"DMAR", b"narrow"));
    put(&machine, 0x7_1000, &table(b"DMAR", b"wide"));
    assert_eq!(dmar(&machine).unwrap().table.at, at(0x7_1000));
}

#[test]
fn a_revision_2_without_an_xsdt_falls_back_to_the_rsdt() {
    let machine = bare(rsdp(2, ROOT as u32, 0));
    put(&machine, ROOT, &table(b"RSDT", &0x7_0000u32.to_le_bytes()));
    put(&machine, 0x7_0000, &table(b"DMAR", b"narrow"));
    assert_eq!(dmar(&machine).unwrap().table.at, at(0x7_0000));
}

#[test]
fn of_two_dmars_the_first_counts_and_the_second_is_reported() {
    let machine = machine(&[(0x7_0000, table(b"DMAR", b"1")), (0x7_1000, table(b"DMAR", b"2"))]);
    let found = dmar(&machine).unwrap();
    assert_eq!((found.table.at, found.ignored), (at(0x7_0000), vec![at(0x7_1000)]));
}

#[test]
fn a_pointer_that_occurs_twice_is_one_table() {
    let dmar_table = table(b"DMAR", b"1");
    let machine = machine(&[(0x7_0000, dmar_table.clone()), (0x7_0000, dmar_table)]);
    assert_eq!(dmar(&machine).unwrap().ignored, vec![]);
}

#[test]
fn a_damaged_first_dmar_is_an_error_even_when_another_follows() {
    let mut damaged = table(b"DMAR", b"1");
    damaged[36] ^= 0x10;
    let machine = machine(&[(0x7_0000, damaged), (0x7_1000, table(b"DMAR", b"2"))]);
    let error = AcpiError::Checksum { at: at(0x7_0000), signature: Signature::DMAR, sum: 0xf0 };
    assert_eq!(dmar(&machine), Err(error));
}

#[test]
fn without_a_dmar_the_error_says_what_that_means() {
    let machine = machine(&[(0x7_0000, table(b"APIC", &[]))]);
    let error = dmar(&machine).unwrap_err();
    assert_eq!(error, AcpiError::Absent { signature: Signature::DMAR });
    assert!(alloc::format!("{error}").contains("no VT-d"));
}

#[test]
fn a_length_out_of_bounds_is_refused_before_anything_is_copied() {
    for length in [0, 8, 35, MAX_TABLE_BYTES + 1, u32::MAX] {
        let mut bytes = table(b"DMAR", b"1");
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        let machine = machine(&[(0x7_0000, bytes)]);
        let error = AcpiError::Length { at: at(0x7_0000), signature: Signature::DMAR, bytes: length };
        assert_eq!(dmar(&machine), Err(error));
    }
}

#[test]
fn a_table_that_runs_out_of_memory_is_an_error_not_a_fault() {
    let mut bytes = table(b"DMAR", &[]);
    bytes[4..8].copy_from_slice(&0x1000u32.to_le_bytes());
    let end = 0x20_0000 - HEADER_BYTES as u32;
    let machine = machine(&[(end, bytes)]);
    assert_eq!(dmar(&machine), Err(AcpiError::NoMemory { at: at(end.into()) }));
}

#[test]
fn pointers_to_nowhere_are_reported_and_the_rest_is_followed() {
    let machine = bare(rsdp(2, 0, 0x6_8000));
    let pointers = [u64::MAX - 8, 0, 0x9000_0000, 0x7_0000];
    put(&machine, 0x6_8000, &table(b"XSDT", &pointers.map(u64::to_le_bytes).concat()));
    put(&machine, 0x7_0000, &table(b"DMAR", b"1"));
    put(&machine, 0, &table(b"DMAR", b"what a zero does not point to"));
    let found = tables(&machine, at(RSDP), Signature::DMAR).unwrap();
    assert_eq!(found.unreadable, vec![at(u64::MAX - 8), at(0x9000_0000)]);
    assert_eq!(found.found.len(), 1);
}

#[test]
fn a_root_table_that_points_to_itself_and_the_rsdp_leads_nowhere() {
    let machine = machine(&[(0x7_0000, table(b"DMAR", b"1"))]);
    let pointers = [ROOT as u32, RSDP as u32, 0x7_0000];
    put(&machine, ROOT, &table(b"RSDT", &pointers.map(u32::to_le_bytes).concat()));
    assert_eq!(dmar(&machine).unwrap().table.at, at(0x7_0000));
}

#[test]
fn an_rsdp_of_revision_2_must_point_to_an_xsdt_and_not_to_an_rsdt() {
    let machine = bare(rsdp(2, 0, ROOT));
    put(&machine, ROOT, &table(b"RSDT", &[]));
    let error = AcpiError::Unexpected { at: at(ROOT), wanted: Signature::XSDT, found: Signature::RSDT };
    assert_eq!(dmar(&machine), Err(error));
}

#[test]
fn a_root_table_with_too_many_entries_is_refused() {
    let machine = machine(&[]);
    put(&machine, ROOT, &table(b"RSDT", &vec![0; 4 * (MAX_ENTRIES + 1)]));
    assert_eq!(dmar(&machine), Err(AcpiError::TooManyEntries { at: at(ROOT), entries: MAX_ENTRIES + 1 }));
}

#[test]
fn both_checksums_of_the_rsdp_are_checked() {
    let sum = 0x40;
    for (revision, damaged) in [(0, 10), (2, 10), (2, 30)] {
        let mut bytes = rsdp(revision, ROOT as u32, 0x6_8000);
        bytes[damaged] = bytes[damaged].wrapping_add(sum);
        let machine = bare(bytes);
        assert_eq!(dmar(&machine), Err(AcpiError::RsdpChecksum { at: at(RSDP), sum }), "byte {damaged}");
    }
}

#[test]
fn no_rsdp_and_no_root_table_are_errors_of_their_own() {
    let machine = Machine::new(0x10_0000);
    machine.rsdp.set(RSDP);
    assert_eq!(dmar(&machine), Err(AcpiError::NoRsdp { at: at(RSDP) }));
    machine.rsdp.set(0x10_0000);
    assert_eq!(dmar(&machine), Err(AcpiError::NoMemory { at: at(0x10_0000) }));
    assert_eq!(dmar(&bare(rsdp(0, 0, 0))), Err(AcpiError::NoRootTable { rsdp: at(RSDP) }));
}
