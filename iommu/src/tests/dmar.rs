//! DMAR tables, as firmware writes them: units and scopes come out of every one, and oddities lead to errors with a name.

use super::{Buses, CONFIG, requester};
use crate::driver::Setup;
use crate::error::UnitError;
use crate::fake::{Fake, UNIT};
use crate::scope::unit_of;
use crate::{Iommu, UnitDescription};
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use spec::dmar::build::{Builder, Scope};
use spec::dmar::{Dmar, flag, scope_kind};
use spec::{Requester, Segment, SourceId, UnitId};

/// Asks for the unit of every requester of a segment: each answer is one of the units, named by it or its catch-all.
fn watched(units: &[UnitDescription], segment: Segment) -> usize {
    let mut watched = 0;
    for raw in 0..=u16::MAX {
        let who = Requester::new(segment, SourceId::from_raw(raw));
        if let Some(i) = unit_of(units, who, &Buses) {
            assert!(units[i].catch_all || !units[i].scopes.is_empty(), "{who}");
            assert_eq!(units[i].id.segment, segment);
            watched += 1;
        }
    }
    watched
}

/// Tables of real machines, which are not part of this tree: `HOLDOVER_SHARED` says where they lie.
#[test]
fn tables_of_real_machines_become_as_many_units_as_their_index_states() {
    let Some(shared) = std::env::var_os("HOLDOVER_SHARED") else { return };
    let folder = std::path::Path::new(&shared).join("dumps/dmar");
    let index = std::fs::read_to_string(folder.join("INDEX.md")).expect("index");
    let mut tables = 0;
    for row in index.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| file")) {
        // file, machine, source, size, revision, address bits, flags, structures
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, file, _, _, _, _, bits, _, stated, ..] = cells[..] else { continue };
        let bytes = std::fs::read(folder.join(std::format!("{file}.dmar"))).expect(file);
        let setup = Setup::from_dmar(&Dmar::parse(&bytes).expect(file), &Buses, CONFIG).expect(file);
        let expected: usize = stated.split_once(" DRHD").expect(file).0.parse().expect(file);
        assert_eq!(setup.units.len(), expected, "{file}");
        assert_eq!(setup.host_address_bits, bits.parse::<u32>().expect(file), "{file}");
        let catch_all = setup.units.iter().any(|unit| unit.catch_all);
        assert_eq!(watched(&setup.units, Segment(0)) == 1 << 16, catch_all, "{file}");
        assert_eq!(watched(&setup.units, Segment(1)), 0, "{file}");
        tables += 1;
    }
    assert_eq!(tables, 32, "rows of the index");
}

/// A table with these units: register base, flags, scopes.
fn table(units: &[(u64, u8, &[Scope<'_>])]) -> Vec<u8> {
    let mut bytes = [0; 512];
    let mut table = Builder::new(&mut bytes, 46, 0).expect("room");
    for &(register_base, flags, scopes) in units {
        table.drhd(UnitId { segment: Segment(0), register_base }, flags, 0, scopes).expect("room");
    }
    table.finish().expect("table").to_vec()
}

#[test]
fn units_without_scopes_watch_nobody_unless_they_watch_everybody_else() {
    let endpoint =
        Scope { kind: scope_kind::PCI_ENDPOINT, flags: 0, enumeration_id: 0, start_bus: 0, path: &[(2, 0)] };
    // As on a server of ten units, of which six have neither scopes nor the flag.
    let bytes = table(&[
        (0x1000, 0, &[]),
        (0x2000, 0, &[endpoint]),
        (0x3000, 0, &[]),
        (0x4000, flag::INCLUDE_PCI_ALL, &[]),
    ]);
    let setup = Setup::from_dmar(&Dmar::parse(&bytes).expect("a table"), &Buses, CONFIG).expect("sound");
    assert_eq!(setup.units.len(), 4);
    assert_eq!(unit_of(&setup.units, requester(0, 2, 0), &Buses), Some(1));
    assert_eq!(unit_of(&setup.units, requester(0, 3, 0), &Buses), Some(3));
    // As on a server whose table was cut short: no catch-all.
    let bytes = table(&[(0x1000, 0, &[]), (0x2000, 0, &[endpoint])]);
    let setup = Setup::from_dmar(&Dmar::parse(&bytes).expect("a table"), &Buses, CONFIG).expect("sound");
    assert_eq!(watched(&setup.units, Segment(0)), 1);
}

#[test]
fn a_unit_whose_register_base_is_zero_is_an_error_that_names_it() {
    // As on a notebook whose firmware left the base of the catch-all out.
    let (fake, mut ctx) = (Fake::qemu(), MaySleep::at_thread_start());
    let bytes = table(&[(UNIT.register_base, 0, &[]), (0, flag::INCLUDE_PCI_ALL, &[])]);
    let setup = Setup::from_dmar(&Dmar::parse(&bytes).expect("a table"), &Buses, CONFIG).expect("sound");
    let e = Iommu::probe(&fake, &mut ctx, setup).err().expect("nothing is there");
    assert_eq!(e, UnitError::NotThere(UnitId { segment: Segment(0), register_base: 0 }));
}
