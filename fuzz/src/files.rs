//! Files: page files and compressed dumps (packed or not), ELF cores, DMAR tables.

use inspect::format::{debugfs, html, json, text};
use inspect::image::{self, Form, Memory, Options};
use inspect::model::{FindKho, Limits, Model};
use inspect::registers::{self, Registers, USUAL_BASE, named};
use inspect::tables::{Budget, Hardware};
use inspect::translate::{Asker, translate};
use inspect::verify::{Policy, Stage, verify};
use inspect::{dmar as dmar_report, reach};
use spec::dmar::{Dmar, Structure};
use spec::{PhysAddr, SourceId};

/// Bytes that a packed image may unpack to.
const UNPACKED: u64 = 4 << 20;

/// Small enough that a trap is a trap after milliseconds.
pub(crate) const LIMITS: Limits =
    Limits { budget: Budget { tables: 400, repeats: 16 }, pasids: 1 << 10, ranges: 1000, problems: 32 };

/// One input in sixteen goes through every format: they are slow.
pub(crate) fn chosen(data: &[u8]) -> bool {
    data.iter().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte)).is_multiple_of(16)
}

pub(crate) fn page_file(data: &[u8]) {
    let options = Options { unpacked: Some(UNPACKED), ..Options::default() };
    let Ok(memory) = image::from_bytes(data.to_vec(), options) else { return };
    // Of a compressed dump a page costs a descriptor.
    let most = if memory.form() == Form::Compressed { UNPACKED / 24 * 4096 } else { UNPACKED };
    assert!(memory.bytes() <= most);
    apart(&memory);
    look(&memory, chosen(data));
}

pub(crate) fn elf(data: &[u8]) {
    // Not packed: that is another target's.
    if !data.starts_with(b"\x7fELF") {
        return;
    }
    let Ok(memory) = image::from_bytes(data.to_vec(), Options::default()) else { return };
    apart(&memory);
    for run in memory.runs() {
        let mut last = [0; 1];
        memory
            .read_bytes(PhysAddr::new(run.start + run.bytes - 1), &mut last)
            .expect("the last byte of a run");
    }
    look(&memory, chosen(data));
}

/// Segments may share bytes of the file, but no byte of memory has two places.
fn apart(memory: &Memory) {
    assert!(memory.runs().windows(2).all(|two| two[0].start + two[0].bytes <= two[1].start));
}

/// Everything that can be done with an image whose registers it carries along, or whose root table is its first frame.
fn look(memory: &Memory, closely: bool) {
    let mut window = [0; 0x230];
    let carried = memory.read_bytes(PhysAddr::new(USUAL_BASE), &mut window).is_ok();
    let units = if carried {
        Registers::from_window("dmar0".into(), USUAL_BASE, &window).into_iter().collect()
    } else {
        let mut unit = Registers::unknown("dmar0".into(), USUAL_BASE);
        let first = memory.runs().first().map_or(0, |run| run.start);
        if let Some(rtaddr) = named("RTADDR") {
            unit.set(rtaddr, first & !0xfff | first & 0xc00);
        }
        vec![unit]
    };
    // Few frames: looked at one by one.
    let find = if memory.bytes() < 1 << 20 { FindKho::Scan } else { FindKho::No };
    let model = Model::build(memory, units, Hardware::default(), find, LIMITS);
    assert!(model.spaces.iter().all(|space| space.ranges.len() <= LIMITS.ranges));
    assert!(model.spaces.iter().map(|space| space.table_count()).sum::<u64>() <= LIMITS.budget.tables);
    for requester in model.units.iter().flat_map(|unit| &unit.requesters).take(4) {
        for pasid in [None, Some(1)] {
            let asker = Asker { source: requester.source, pasid };
            let _ = translate(memory, &model.units[0].registers, model.hardware, asker, 0x20_1000);
        }
    }
    if closely {
        show(memory, &model);
    }
}

/// Every format. What is written is in proportion to what was found, which may be every source-id there is.
pub(crate) fn show(memory: &Memory, model: &Model) {
    if model.units.iter().map(|unit| unit.requesters.len()).sum::<usize>() > 300 {
        return;
    }
    let mut out = Vec::new();
    text::all(&mut out, memory, model, text::Options::default()).expect("text");
    let _ = json::all(memory, model, None);
    let _ = html::page(memory, model, "image");
    if model.spaces.len() < 16 {
        debugfs::all(&mut out, memory, model).expect("the kernel's text");
        let _ = verify(memory, model, Stage::Sealed, &Policy::default());
        let asker = Asker { source: SourceId::from_raw(0), pasid: None };
        for unit in &model.units {
            let _ = translate(memory, &unit.registers, model.hardware, asker, 0);
        }
        for range in model.spaces.iter().filter_map(|space| space.ranges.first()).take(2) {
            let _ = (reach::reach(memory, model, range.target), reach::roles(model, range.target));
        }
    }
}

pub(crate) fn dmar(data: &[u8]) {
    let _ = registers::parse(data, 0);
    examine(data);
    // Once more as if length and checksum had been right, so that what lies behind them is read too.
    let mut table = data.to_vec();
    if table.len() >= 48 {
        let bytes = table.len() as u32;
        table[..4].copy_from_slice(b"DMAR");
        table[4..8].copy_from_slice(&bytes.to_le_bytes());
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = table[9].wrapping_sub(sum);
        examine(&table);
    }
}

fn examine(data: &[u8]) {
    if let Ok(report) = dmar_report::examine(data) {
        // An odd structure has a few oddities; a table has a few per structure, and each structure four bytes.
        assert!(report.parts.len() <= data.len() / 4 + 1);
        if chosen(data) {
            let _ = (dmar_report::json(&report), dmar_report::text(&mut Vec::new(), &report));
        }
    }
    let Ok(table) = Dmar::parse(data) else { return };
    let mut steps = 0;
    for structure in table.structures() {
        steps += 1;
        let Ok(structure) = structure else { continue };
        if let Structure::Drhd { drhd, .. } = structure {
            let _ = (drhd.unit(), drhd.registers());
        }
        for scope in structure.scopes() {
            steps += 1;
            let _ = scope;
        }
        assert!(steps <= data.len(), "more structures and scopes than bytes");
    }
}
