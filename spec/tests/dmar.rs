//! The DMAR views against tables written out by hand, against the builder, against real machines' tables, and against
//! damage.

use holdover_spec::dmar::build::{BuildError, Builder, Scope};
use holdover_spec::dmar::{Dmar, DmarError, Reason, Structure, flag, kind, scope_kind};
use holdover_spec::{Extent, PhysAddr, Segment, UnitId};
use proptest::prelude::*;

/// One of each kind, written out by hand; each line is one structure or scope.
#[rustfmt::skip]
const BY_HAND: &[u8] = &[
    // Header: 0xc6 bytes, 39 bits, interrupt remapping and platform opt-in.
    b'D', b'M', b'A', b'R', 0xc6, 0, 0, 0, 1, 0xe7, b'H', b'A', b'N', b'D', 0, 0, // 0x00
    b'T', b'A', b'B', b'L', b'E', 0, 0, 0, 1, 0, 0, 0, b'T', b'O', b'O', b'L', // 0x10
    2, 0, 0, 0, 38, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 0x20
    0, 0, 26, 0, 1, 4, 0x34, 0x12, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, // 0x30: DRHD
    3, 10, 0, 0, 8, 0xf0, 0x1f, 7, 2, 3, // 0x40: IOAPIC, two hops
    1, 0, 32, 0, 0, 0, 1, 0, 0, 0, 0, 0x7d, 0, 0, 0, 0, 0xff, 0xff, 0x7f, 0x7f, 0, 0, 0, 0, // 0x4a: RMRR
    1, 8, 0, 0, 0, 0, 2, 0, // 0x62: endpoint
    2, 0, 8, 0, 1, 0, 2, 0, // 0x6a: ATSR
    3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 9, 0, 0, 0, // 0x72: RHSA
    4, 0, 16, 0, 0, 0, 0, 7, b'\\', b'_', b'S', b'B', b'.', b'I', b'2', 0, // 0x86: ANDD
    5, 0, 16, 0, 1, 0, 3, 0, // 0x96: SATC
    1, 8, 0, 0, 0, 0, 11, 0, // 0x9e
    6, 0, 16, 0, 0, 0, 4, 0, // 0xa6: SIDP
    1, 8, 0x1f, 0, 0, 0, 2, 0, // 0xae
    0x34, 0x12, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, // 0xb6: unknown
];

fn structures(bytes: &[u8]) -> Result<Vec<Structure<'_>>, DmarError> {
    Dmar::parse(bytes)?.structures().collect()
}

/// A scope as plain values: kind, flags, enumeration id, start bus, path.
type Plain = (u8, u8, u8, u8, Vec<(u8, u8)>);

fn scopes(structure: &Structure<'_>) -> Result<Vec<Plain>, DmarError> {
    structure
        .scopes()
        .map(|scope| {
            let scope = scope?;
            let path = scope.path().iter().map(|hop| (hop.device, hop.function)).collect();
            let head = scope.header;
            Ok((head.kind, head.flags, head.enumeration_id, head.start_bus, path))
        })
        .collect()
}

/// Everything in a table is walked; the first error wins.
fn walk(bytes: &[u8]) -> Result<usize, DmarError> {
    structures(bytes)?.iter().map(|structure| Ok(1 + scopes(structure)?.len())).sum()
}

#[test]
fn a_table_written_by_hand_reads_as_it_was_meant() {
    let dmar = Dmar::parse(BY_HAND).unwrap();
    assert!(dmar.checksum_holds());
    assert_eq!(dmar.address_bits(), 39);
    assert_eq!(dmar.header().flags, flag::INTR_REMAP | flag::DMA_CTRL_PLATFORM_OPT_IN);
    let all = structures(BY_HAND).unwrap();
    assert_eq!(all.iter().map(Structure::kind).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 0x1234]);

    let Structure::Drhd { drhd, .. } = all[0] else { panic!() };
    assert!(drhd.includes_all());
    assert_eq!(drhd.unit(), UnitId { segment: Segment(0x1234), register_base: 0xfed9_0000 });
    assert_eq!(drhd.registers(), Extent::from_bytes(PhysAddr::new(0xfed9_0000), 0x1_0000));
    assert_eq!(scopes(&all[0]).unwrap(), [(scope_kind::IOAPIC, 0, 8, 0xf0, vec![(0x1f, 7), (2, 3)])]);

    let Structure::Rmrr { rmrr, .. } = all[1] else { panic!() };
    assert_eq!(rmrr.segment.get(), 1);
    assert_eq!(rmrr.extent(), Extent::from_bytes(PhysAddr::new(0x7d00_0000), 0x280_0000));
    assert_eq!(scopes(&all[1]).unwrap(), [(scope_kind::PCI_ENDPOINT, 0, 0, 0, vec![(2, 0)])]);

    let Structure::Atsr { atsr, .. } = all[2] else { panic!() };
    assert_eq!((atsr.flags, atsr.segment.get()), (flag::ALL_PORTS, 2));
    let Structure::Rhsa { rhsa } = all[3] else { panic!() };
    assert_eq!((rhsa.register_base.get(), rhsa.proximity_domain.get()), (0xfed9_0000, 9));
    let Structure::Andd { andd, name } = all[4] else { panic!() };
    assert_eq!((andd.device_number, name), (7, "\\_SB.I2"));
    let Structure::Satc { satc, .. } = all[5] else { panic!() };
    assert_eq!((satc.flags, satc.segment.get()), (flag::ATC_REQUIRED, 3));
    let Structure::Sidp { sidp, .. } = all[6] else { panic!() };
    assert_eq!(sidp.segment.get(), 4);
    assert_eq!(scopes(&all[6]).unwrap()[0].1, 0x1f);
    let Structure::Unknown { kind, bytes } = all[7] else { panic!() };
    assert_eq!((kind, bytes.len(), bytes[15]), (0x1234, 16, 12));
}

#[test]
fn the_checksum_is_its_own_question() {
    let mut bytes = BY_HAND.to_vec();
    bytes[9] ^= 1;
    let dmar = Dmar::parse(&bytes).unwrap();
    assert!(!dmar.checksum_holds());
    assert_eq!(dmar.structures().count(), 8);
}

#[test]
fn a_malformed_table_is_refused_with_offset_and_reason() {
    let with = |offset: usize, value: u8| {
        let mut bytes = BY_HAND.to_vec();
        bytes[offset] = value;
        walk(&bytes).unwrap_err()
    };
    let error = |offset, reason| DmarError { offset, reason };
    assert_eq!(with(0, b'X'), error(0, Reason::Signature { found: *b"XMAR" }));
    assert_eq!(with(4, 47), error(4, Reason::Length { length: 47, least: 48 }));
    assert_eq!(with(4, 0xc7), error(4, Reason::Torn { need: 0xc7, have: 0xc6 }));
    assert_eq!(walk(&BY_HAND[..47]), Err(error(0, Reason::Torn { need: 48, have: 47 })));
    // Structures: no length, less than a header, less than the kind needs, past the end of the table.
    assert_eq!(with(0x32, 0), error(0x30, Reason::Length { length: 0, least: 4 }));
    assert_eq!(with(0x32, 3), error(0x30, Reason::Length { length: 3, least: 4 }));
    assert_eq!(with(0x32, 15), error(0x30, Reason::Length { length: 15, least: 16 }));
    assert_eq!(with(0x74, 19), error(0x72, Reason::Length { length: 19, least: 20 }));
    assert_eq!(with(0xb8, 17), error(0xb6, Reason::Torn { need: 17, have: 16 }));
    assert_eq!(with(0xb8, 13), error(0xc3, Reason::Torn { need: 4, have: 3 }), "a remainder");
    // Scopes: no length, no path, half a hop, past the end of the structure.
    assert_eq!(with(0x41, 0), error(0x40, Reason::Length { length: 0, least: 6 }));
    assert_eq!(with(0x41, 6), error(0x40, Reason::Path { length: 6 }));
    assert_eq!(with(0x41, 9), error(0x40, Reason::Path { length: 9 }));
    assert_eq!(with(0x41, 12), error(0x40, Reason::Torn { need: 12, have: 10 }));
    assert_eq!(with(0x41, 8), error(0x48, Reason::Torn { need: 6, have: 2 }), "a remainder");
    // Names: no end, no text.
    assert_eq!(with(0x95, b'X'), error(0x8e, Reason::Name));
    assert_eq!(with(0x8f, 0xff), error(0x8e, Reason::Name));
}

#[test]
fn a_walk_is_over_after_an_error() {
    let mut bytes = BY_HAND.to_vec();
    bytes[0x4c] = 0;
    let mut walk = Dmar::parse(&bytes).unwrap().structures();
    assert!(matches!(walk.next(), Some(Ok(_))));
    assert_eq!(walk.offset(), 0x4a);
    assert!(matches!(walk.next(), Some(Err(_))));
    assert!(walk.next().is_none());
}

#[test]
fn a_region_or_window_that_cannot_be_has_no_extent() {
    let mut buffer = [0; 256];
    let mut builder = Builder::new(&mut buffer, 39, 0).unwrap();
    for (base, limit) in [(0, 0), (0x2000, 0xfff), (0x1000, 0x1ffe), (0x1008, 0x2007), (0, u64::MAX)] {
        builder.rmrr(Segment(0), base, limit, &[]).unwrap();
    }
    builder.drhd(UnitId { segment: Segment(0), register_base: 0x1000 }, 0, 255, &[]).unwrap();
    builder.drhd(UnitId { segment: Segment(0), register_base: 0x1800 }, 0, 0, &[]).unwrap();
    for structure in structures(builder.finish().unwrap()).unwrap() {
        match structure {
            Structure::Rmrr { rmrr, .. } => assert_eq!(rmrr.extent(), None),
            Structure::Drhd { drhd, .. } => assert_eq!(drhd.registers(), None),
            _ => panic!(),
        }
    }
}

#[test]
fn the_builder_says_what_does_not_fit() {
    assert_eq!(Builder::new(&mut [0; 47], 39, 0).unwrap_err(), BuildError::Full { buffer: 47 });
    let mut buffer = [0; 1 << 17];
    let mut builder = Builder::new(&mut buffer, 39, 0).unwrap();
    let long = [(0, 0); 125];
    let scope = |path| Scope { kind: 1, flags: 0, enumeration_id: 0, start_bus: 0, path };
    assert_eq!(
        builder.atsr(Segment(0), 0, &[scope(&long)]).unwrap_err(),
        BuildError::Length { offset: 0x38 }
    );
    let mut builder = Builder::new(&mut buffer, 39, 0).unwrap();
    assert_eq!(builder.atsr(Segment(0), 0, &[scope(&[])]).unwrap_err(), BuildError::Length { offset: 0x38 });
    let mut builder = Builder::new(&mut buffer, 39, 0).unwrap();
    assert!(builder.atsr(Segment(0), 0, &[scope(&long[..124])]).is_ok());
    assert_eq!(builder.raw(9, &[0; 1 << 16]).unwrap_err(), BuildError::Length { offset: 0x136 });
}

/// A structure to be built.
#[derive(Debug, Clone)]
enum Wanted {
    Listed { kind: u16, flags: u8, segment: u16, base: u64, limit: u64, scopes: Vec<Plain> },
    Rhsa { base: u64, node: u32 },
    Andd { number: u8, name: String },
    Unknown { kind: u16, content: Vec<u8> },
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let path = prop::collection::vec(any::<(u8, u8)>(), 1..4);
    let scopes = prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), path), 0..4);
    let listed = prop::sample::select(vec![kind::DRHD, kind::RMRR, kind::ATSR, kind::SATC, kind::SIDP]);
    prop_oneof![
        (listed, any::<u8>(), any::<u16>(), any::<u64>(), any::<u64>(), scopes).prop_map(
            |(kind, flags, segment, base, limit, scopes)| Wanted::Listed {
                kind,
                flags,
                segment,
                base,
                limit,
                scopes
            }
        ),
        (any::<u64>(), any::<u32>()).prop_map(|(base, node)| Wanted::Rhsa { base, node }),
        (any::<u8>(), "[A-Z\\\\.]{0,12}").prop_map(|(number, name)| Wanted::Andd { number, name }),
        (7_u16.., prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(kind, content)| Wanted::Unknown { kind, content }),
    ]
}

fn build(builder: &mut Builder<'_>, wanted: &Wanted) {
    match wanted {
        Wanted::Listed { kind, flags, segment, base, limit, scopes } => {
            let scopes: Vec<Scope<'_>> = scopes
                .iter()
                .map(|(kind, flags, enumeration_id, start_bus, path)| Scope {
                    kind: *kind,
                    flags: *flags,
                    enumeration_id: *enumeration_id,
                    start_bus: *start_bus,
                    path,
                })
                .collect();
            let segment = Segment(*segment);
            match *kind {
                kind::DRHD => builder.drhd(UnitId { segment, register_base: *base }, *flags, 1, &scopes),
                kind::RMRR => builder.rmrr(segment, *base, *limit, &scopes),
                kind::ATSR => builder.atsr(segment, *flags, &scopes),
                kind::SATC => builder.satc(segment, *flags, &scopes),
                _ => builder.sidp(segment, &scopes),
            }
        }
        Wanted::Rhsa { base, node } => builder.rhsa(*base, *node),
        Wanted::Andd { number, name } => builder.andd(*number, name),
        Wanted::Unknown { kind, content } => builder.raw(*kind, content),
    }
    .unwrap();
}

fn check(found: &Structure<'_>, wanted: &Wanted) {
    match (wanted, found) {
        (Wanted::Listed { kind, flags, segment, base, limit, scopes: listed }, found) => {
            assert_eq!(found.kind(), *kind);
            assert_eq!(&scopes(found).unwrap(), listed);
            match found {
                Structure::Drhd { drhd, .. } => assert_eq!(
                    (drhd.flags, drhd.segment.get(), drhd.register_base.get(), drhd.size),
                    (*flags, *segment, *base, 1)
                ),
                Structure::Rmrr { rmrr, .. } => {
                    assert_eq!(
                        (rmrr.segment.get(), rmrr.base.get(), rmrr.limit.get()),
                        (*segment, *base, *limit)
                    );
                }
                Structure::Atsr { atsr, .. } => {
                    assert_eq!((atsr.flags, atsr.segment.get()), (*flags, *segment))
                }
                Structure::Satc { satc, .. } => {
                    assert_eq!((satc.flags, satc.segment.get()), (*flags, *segment))
                }
                Structure::Sidp { sidp, .. } => assert_eq!(sidp.segment.get(), *segment),
                other => panic!("{other:?}"),
            }
        }
        (Wanted::Rhsa { base, node }, Structure::Rhsa { rhsa }) => {
            assert_eq!((rhsa.register_base.get(), rhsa.proximity_domain.get()), (*base, *node));
        }
        (Wanted::Andd { number, name }, Structure::Andd { andd, name: found }) => {
            assert_eq!((andd.device_number, *found), (*number, name.as_str()));
        }
        (Wanted::Unknown { kind, content }, Structure::Unknown { kind: found, bytes }) => {
            assert_eq!((*found, &bytes[4..]), (*kind, content.as_slice()));
        }
        (wanted, found) => panic!("{wanted:?} came out as {found:?}"),
    }
}

proptest! {
    #[test]
    fn a_built_table_reads_as_it_was_described(
        bits in 1_u16..=256, flags: u8, list in prop::collection::vec(wanted(), 0..8),
    ) {
        let mut buffer = [0xee; 4096];
        let mut builder = Builder::new(&mut buffer, bits, flags).unwrap();
        for wanted in &list {
            build(&mut builder, wanted);
        }
        let table = builder.finish().unwrap();
        let dmar = Dmar::parse(table).unwrap();
        prop_assert!(dmar.checksum_holds());
        prop_assert_eq!((dmar.address_bits(), dmar.header().flags), (u32::from(bits), flags));
        prop_assert_eq!(dmar.bytes().len(), table.len());
        let found = structures(table).unwrap();
        prop_assert_eq!(found.len(), list.len());
        for (found, wanted) in found.iter().zip(&list) {
            check(found, wanted);
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_but_never_panic(
        at in 0..BY_HAND.len(), value: u8, cut in 0..=BY_HAND.len(),
    ) {
        let mut bytes = BY_HAND.to_vec();
        bytes[at] = value;
        let _ = walk(&bytes);
        prop_assert_eq!(walk(&BY_HAND[..cut]).is_ok(), cut == BY_HAND.len());
    }
}

/// Tables of real machines, which are not part of this tree: `HOLDOVER_SHARED` says where they lie.
#[test]
fn tables_of_real_machines_have_the_structures_that_their_index_states() {
    let Some(shared) = std::env::var_os("HOLDOVER_SHARED") else { return };
    let folder = std::path::Path::new(&shared).join("dumps/dmar");
    let index = std::fs::read_to_string(folder.join("INDEX.md")).unwrap();
    let mut rows = 0;
    for row in index.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| file")) {
        // file, machine, source, size, revision, address bits, flags, structures
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, file, _, _, size, revision, bits, flags, stated, ..] = cells[..] else { continue };
        let bytes = std::fs::read(folder.join(format!("{file}.dmar"))).unwrap();
        let dmar = Dmar::parse(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(dmar.checksum_holds(), "{file}");
        assert_eq!(dmar.bytes().len(), size.parse::<usize>().unwrap(), "{file}");
        assert_eq!(dmar.header().revision, revision.parse::<u8>().unwrap(), "{file}");
        assert_eq!(dmar.address_bits(), bits.parse::<u32>().unwrap(), "{file}");
        assert_eq!(format!("{:#x}", dmar.header().flags), flags, "{file}");
        assert_eq!(counts(&bytes), stated, "{file}");
        walk(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        rows += 1;
    }
    assert_eq!(rows, 32, "rows of the index");
}

/// How many structures of each kind, as the index writes it.
fn counts(bytes: &[u8]) -> String {
    let names = ["DRHD", "RMRR", "ATSR", "RHSA", "ANDD", "SATC", "SIDP"];
    let found = structures(bytes).unwrap();
    let mut parts = Vec::new();
    for (number, name) in (0_u16..).zip(names) {
        let count = found.iter().filter(|structure| structure.kind() == number).count();
        if count > 0 {
            parts.push(format!("{count} {name}"));
        }
    }
    assert!(
        found.iter().all(|structure| structure.kind() <= kind::SIDP),
        "a kind that the index does not count"
    );
    parts.join(" ")
}
