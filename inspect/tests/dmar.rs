//! The DMAR report over real tables, and over tables that are broken on purpose.

use holdover_inspect::dmar::{Report, Weight, examine, json, text};
use std::collections::BTreeMap;
use std::path::Path;

/// A table with these structures, its length and checksum right.
fn table(structures: &[u8]) -> Vec<u8> {
    let mut bytes =
        b"DMAR\0\0\0\0\x01\0MAKER TABLE   \0\0\0\0TOOL\0\0\0\0\x26\x01\0\0\0\0\0\0\0\0\0\0".to_vec();
    assert_eq!(bytes.len(), 48);
    bytes.extend_from_slice(structures);
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

fn drhd(base: u64, flags: u8, scopes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 16 + scopes.len() as u8, 0, flags, 0, 0, 0];
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes.extend_from_slice(scopes);
    bytes
}

fn rmrr(base: u64, limit: u64) -> Vec<u8> {
    let mut bytes = vec![1, 0, 32, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes.extend_from_slice(&limit.to_le_bytes());
    bytes.extend_from_slice(&[1, 8, 0, 0, 0, 0, 0x1d, 0]);
    bytes
}

const UNIT: u64 = 0xfed9_0000;
const ALL: u8 = 1;

fn refusals(bytes: &[u8]) -> Vec<String> {
    let report = examine(bytes).unwrap();
    report.oddities.iter().filter(|oddity| oddity.weight == Weight::Refuse).map(ToString::to_string).collect()
}

#[test]
fn a_sound_table_has_nothing_odd() {
    let report = examine(&table(&[drhd(UNIT, ALL, &[]), rmrr(0x7b00_0000, 0x7bff_ffff)].concat())).unwrap();
    assert_eq!(report.oddities, []);
    assert!(!report.must_refuse());
    let mut out = Vec::new();
    text(&mut out, &report).unwrap();
    assert!(String::from_utf8(out).unwrap().ends_with("nothing odd\n"));
}

#[test]
fn what_a_kernel_must_refuse_is_named_with_its_offset() {
    let all = drhd(UNIT, ALL, &[]);
    let cases: [(Vec<u8>, &str); 11] = [
        (drhd(0, ALL, &[]), "DRHD@0x30: register base 0"),
        (drhd(UNIT + 1, ALL, &[]), "DRHD@0x30: register base 0xfed90001 not page-aligned"),
        ([all.clone(), rmrr(0, 0)].concat(), "RMRR@0x40: reserved region 0 to 0"),
        (
            [all.clone(), rmrr(0x2000, 0xfff)].concat(),
            "RMRR@0x40: reserved region turned round (0x2000 to 0xfff)",
        ),
        ([all.clone(), rmrr(0x10_0800, 0x10_0fff)].concat(), "RMRR@0x40: reserved region not page-aligned"),
        (
            [all.clone(), rmrr(0x80_0000_0000, 0x80_0000_0fff)].concat(),
            "RMRR@0x40: reserved region ends beyond 39 bits",
        ),
        (
            [all.clone(), drhd(UNIT, 0, &[1, 8, 0, 0, 0, 0, 2, 0])].concat(),
            "DRHD@0x40: the register base of the DRHD at 0x30 again",
        ),
        ([all.clone(), drhd(UNIT + 0x1000, ALL, &[])].concat(), "DRHD@0x40: a second catch-all unit"),
        ([all.clone(), vec![7, 0, 0, 0]].concat(), "structure@0x40: DMAR table at 0x40: length of 0 bytes"),
        (
            [all.clone(), vec![1, 0, 200, 0]].concat(),
            "structure@0x40: DMAR table at 0x40: 200 bytes where 4 are left",
        ),
        (drhd(UNIT, 0, &[1, 7, 0, 0, 0, 0, 2, 0]), "scope@0x40: DMAR table at 0x40"),
    ];
    for (structures, expected) in cases {
        let found = refusals(&table(&structures));
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
    }
    let mut spoiled = table(&all);
    spoiled[40] ^= 1;
    assert_eq!(refusals(&spoiled), ["checksum: the table's bytes do not sum to zero"]);
    assert_eq!(refusals(&table(&[])), ["no remapping unit"]);
    assert!(examine(b"DMAR").is_err() && examine(&[0; 64]).is_err());
}

#[test]
fn what_is_merely_odd_does_not_refuse_the_table() {
    let catch_all_first = [drhd(UNIT, ALL, &[]), drhd(UNIT + 0x1000, 0, &[1, 8, 0, 0, 0, 0, 2, 0])].concat();
    let cases: [(Vec<u8>, &str); 4] = [
        (drhd(UNIT, 0, &[1, 8, 0, 0, 0, 0, 2, 0]), "no catch-all unit"),
        (catch_all_first, "DRHD@0x40: it follows the catch-all unit"),
        ([drhd(UNIT, ALL, &[]), vec![9, 0, 6, 0, 1, 2]].concat(), "unknown@0x40: unknown type 9"),
        ([drhd(UNIT, ALL, &[]), vec![9, 0, 6, 0, 1, 2]].concat(), "unknown@0x40: length 6 not multiple of 4"),
    ];
    for (structures, expected) in cases {
        let report = examine(&table(&structures)).unwrap();
        assert!(!report.must_refuse(), "{expected}");
        let found: Vec<String> = report.oddities.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected}: {found:?}");
    }
}

/// Rows of the index of real tables: the cells by file name.
fn index(folder: &Path) -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(folder.join("INDEX.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| file"));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>())
        .map(|cells| (cells[0].clone(), cells))
        .collect()
}

/// `10 DRHD 2 RMRR`, as the index writes it.
fn counts(report: &Report) -> String {
    let kinds = ["DRHD", "RMRR", "ATSR", "RHSA", "ANDD", "SATC", "SIDP", "unknown"];
    let count = |kind| report.parts.iter().filter(|part| part.kind == kind).count();
    let present = kinds.iter().map(|kind| (count(*kind), kind)).filter(|(count, _)| *count > 0);
    present.map(|(count, kind)| format!("{count} {kind}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn all_real_tables_are_read_and_every_oddity_of_the_index_is_found() {
    let Some(shared) = std::env::var_os("HOLDOVER_SHARED") else { return };
    let folder = Path::new(&shared).join("dumps/dmar");
    let index = index(&folder);
    assert_eq!(index.len(), 32);
    let mut refused = Vec::new();
    for (name, cells) in &index {
        let bytes = std::fs::read(folder.join(format!("{name}.dmar"))).unwrap();
        let report = examine(&bytes).unwrap();
        assert_eq!(report.bytes.to_string(), cells[3], "{name}");
        assert_eq!(report.revision.to_string(), cells[4], "{name}");
        assert_eq!(report.address_bits.to_string(), cells[5], "{name}");
        assert_eq!(format!("{:#x}", report.flags), cells[6], "{name}");
        assert_eq!(counts(&report), cells[7], "{name}");
        assert_eq!(report.parts.iter().map(|part| part.bytes).sum::<usize>() + 48, report.bytes, "{name}");
        let found: Vec<String> = report.oddities.iter().map(ToString::to_string).collect();
        // Where the index gives a place, there must be something at that place.
        for place in cells[8].split([' ', ';']).filter_map(|word| word.strip_suffix(':')) {
            if place.contains('@') {
                assert!(found.iter().any(|line| line.starts_with(place)), "{name}: {place}: {found:?}");
            }
        }
        for (words, expected) in [
            ("no INCLUDE_PCI_ALL", "no catch-all unit"),
            ("names no DRHD", "names no DRHD"),
            ("not multiple of 4", "not multiple of 4"),
            ("6 of them neither", "neither catch-all nor with any device scope"),
            ("RHSA for 2 of 3 units", "RHSA for 2 of 3 units only"),
            ("claim proximity domain 0", "all 2 RHSA claim one proximity domain"),
            ("8 HPET scopes all with", "8 scopes of HPET id 0"),
            ("INTR_REMAP clear", "INTR_REMAP clear"),
            ("although INTR_REMAP is clear", "although INTR_REMAP is clear"),
            ("below 1 MiB", "reserved region below 1 MiB"),
            ("non-ASCII", "bytes in the header that are no text"),
            ("OEM ID blank", "OEM id is blank"),
            ("(gap)", "gaps between ANDD numbers"),
            ("RMRR 0..0", "reserved region 0 to 0"),
            ("2-byte alignment", "not aligned to 4"),
        ] {
            if cells[8].contains(words) {
                assert!(found.iter().any(|line| line.contains(expected)), "{name}: {words}: {found:?}");
            }
        }
        if report.must_refuse() {
            refused.push(name.as_str());
        }
        assert_eq!(json(&report)["structures"].as_array().unwrap().len(), report.parts.len());
    }
    assert_eq!(refused, ["hp-6730b", "lenovo-e15g2-drhd0"], "the two that the index calls broken");
}
