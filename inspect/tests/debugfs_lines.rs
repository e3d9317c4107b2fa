//! The `debugfs` format where no machine at hand makes Linux print it: five levels, large pages in every column, many PASIDs,
//! posted interrupts, several units and segments. The lines expected here follow from what Linux's format strings say.

mod common;

use common::synthetic::Pages;
use holdover_inspect::format::debugfs::{self, Device};
use holdover_inspect::image::Memory;
use holdover_inspect::model::{FindKho, Limits, Model};
use holdover_inspect::registers::{Registers, named};
use holdover_inspect::tables::Hardware;
use spec::{Segment, SourceId};

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const DIRECTORY: u64 = 0x8000;
const PASIDS: u64 = 0x4000;
const TOP: u64 = 0x1_0000;
const SCALABLE: u64 = 1 << 10;
const BUS_LINE: &str = "B.D.F\tRoot_entry\t\t\t\tContext_entry\t\t\t\tPASID\tPASID_table_entry\n";
const LEAF_LINE: &str = "IOVA_PFN         \tPML5E             \tPML4E             \tPDPE              \tPDE               \tPTE\n";

/// A unit that translates, with these registers besides.
fn unit(name: &str, registers: &[(&str, u64)]) -> Registers {
    let mut unit = Registers::unknown(name.into(), 0xfed9_0000);
    unit.set(named("GSTS").unwrap(), 0x8000_0000);
    for (name, value) in registers {
        unit.set(named(name).unwrap(), *value);
    }
    unit
}

fn model(memory: &Memory, units: Vec<Registers>) -> Model {
    Model::build(memory, units, Hardware::default(), FindKho::No, Limits::default())
}

fn domain(memory: &Memory, model: &Model, source: u16, pasid: Option<u32>) -> String {
    let device = Device { segment: Segment(0), source: SourceId::from_raw(source), pasid };
    let mut out = Vec::new();
    debugfs::domain_translation_struct(&mut out, memory, model, device).unwrap();
    String::from_utf8(out).unwrap()
}

fn written(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Entries in columns.
fn columns(words: &[u64]) -> String {
    words.iter().map(|word| format!("\t0x{word:016x}")).collect()
}

/// A tree of four tables below `top` (which is at `level`, as Linux counts) with a leaf of each size.
fn tree(pages: &mut Pages, level: u64, top: u64, table: u64, large: u64) {
    let mut at = top;
    for step in (3..level).rev() {
        pages.set(at + 8 * (step + 1), (at + 0x1000) | table);
        at += 0x1000;
    }
    pages.set(at + 8 * 3, 0x4000_0000 | large);
    pages.set(at + 8 * 4, (at + 0x1000) | table);
    pages.set(at + 0x1000 + 8 * 5, 0x20_0000 | large);
    pages.set(at + 0x1000 + 8 * 6, (at + 0x2000) | table);
    pages.set(at + 0x2000 + 8 * 7, 0x12_3000 | table);
    pages.set(at + 0x2000 + 8 * 511, 0x12_4000 | 1);
}

#[test]
fn a_leaf_of_any_size_at_any_depth_stands_below_its_column() {
    for (levels, above) in [(3, [0, 0]), (4, [0, 0x1_1003]), (5, [0x1_1003, 0x1_2003])] {
        let mut pages = Pages::default();
        pages.set(ROOT, CONTEXT | 1);
        pages.set(CONTEXT + 16 * 0xfa, TOP | 1);
        pages.set(CONTEXT + 16 * 0xfa + 8, 7 << 8 | (levels - 2));
        tree(&mut pages, levels, TOP, 3, 0x83);
        let memory = pages.memory();
        let model = model(&memory, vec![unit("dmar0", &[("RTADDR", ROOT)])]);
        // The entries above lead through slots 5 and 4 of the upper levels.
        let base = [0, 4 << 27, 5 << 36 | 4 << 27][levels as usize - 3];
        let bottom = TOP + 0x1000 * (levels - 3);
        let (two, one) = ((bottom + 0x1000) | 3, (bottom + 0x2000) | 3);
        let lines: Vec<String> = [
            (3 << 18, vec![0x4000_0083]),
            (4 << 18 | 5 << 9, vec![two, 0x20_0083]),
            (4 << 18 | 6 << 9 | 7, vec![two, one, 0x12_3003]),
            (4 << 18 | 6 << 9 | 511, vec![two, one, 0x12_4001]),
        ]
        .iter()
        .map(|(frame, below)| {
            let frame: u64 = base | frame;
            format!("0x{frame:013x} |{}{}\n", columns(&above), columns(below))
        })
        .collect();
        let expected = format!("Device 0000:00:1f.2 @0x10000\n{LEAF_LINE}{}", lines.concat());
        assert_eq!(domain(&memory, &model, 0xfa, None), expected, "{levels} levels");
        let line = format!(
            "IOMMU dmar0: Root Table Address: 0x1000\n{BUS_LINE}00:1f.2\t0x0000000000000000:0x0000000000002001\t\
             0x{:016x}:0x0000000000010001\t-1    \t0x0000000000000000:0x0000000000000000:0x0000000000000000\n\n",
            0x700 | (levels - 2)
        );
        assert_eq!(written(|out| debugfs::dmar_translation_struct(out, &model)), line);
    }
}

/// A scalable unit: 00:00.0 with PASIDs of every kind, and 01:10.0 on a bus without a lower context table.
fn scalable() -> Pages {
    let mut pages = Pages::default();
    pages.set(ROOT, CONTEXT | 1);
    // The largest directory: 16384 entries.
    pages.set(CONTEXT, DIRECTORY | 7 << 9 | 1 << 3 | 1);
    (0..32).for_each(|page| pages.zero(DIRECTORY + 0x1000 * page));
    for (number, table) in [(0, PASIDS), (1, PASIDS + 0x1000), (16383, PASIDS + 0x2000)] {
        pages.set(DIRECTORY + 8 * number, table | 1);
    }
    // PASID 0: first stage of four levels. 1: passes through. 65: second stage. 1048575: nested, by second stage.
    let entries = [
        (PASIDS, [1 << 6 | 2 << 2 | 1, 9, TOP]),
        (PASIDS + 64, [4 << 6 | 2 << 2 | 1, 1, 0]),
        (PASIDS + 0x1000 + 64, [(TOP + 0x8000) | 2 << 6 | 1 << 2 | 1, 10, 0]),
        (PASIDS + 0x2000 + 64 * 63, [(TOP + 0x8000) | 3 << 6 | 1 << 2 | 1, 11, TOP]),
    ];
    for (at, words) in entries {
        words.iter().enumerate().for_each(|(index, word)| pages.set(at + 8 * index as u64, *word));
    }
    tree(&mut pages, 4, TOP, 0x23, 0xa3);
    // In the half of addresses that are negative, which Linux counts on from the other.
    pages.set(TOP + 8 * 511, (TOP + 0x1000) | 0x23);
    tree(&mut pages, 3, TOP + 0x8000, 3, 0x83);
    // Bus 1: only functions from 0x80 on.
    pages.set(ROOT + 16 + 8, 0x3001);
    pages.set(0x3000, (DIRECTORY + 0x4_0000) | 1);
    pages.set(DIRECTORY + 0x4_0000, (PASIDS + 0x3000) | 1);
    pages.set(PASIDS + 0x3000, (TOP + 0x8000) | 2 << 6 | 1 << 2 | 1);
    pages
}

#[test]
fn every_pasid_has_its_line_but_not_on_a_bus_whose_lower_half_is_missing() {
    let memory = scalable().memory();
    let model = model(&memory, vec![unit("dmar0", &[("RTADDR", ROOT | SCALABLE)])]);
    let line = |pasid: &str, words: [u64; 3]| {
        let [a, b, c] = words;
        format!(
            "00:00.0\t0x0000000000000000:0x0000000000002001\t0x0000000000000000:0x0000000000008e09\t\
             {pasid}\t0x{c:016x}:0x{b:016x}:0x{a:016x}\n"
        )
    };
    let expected = [
        "IOMMU dmar0: Root Table Address: 0x1000\n",
        BUS_LINE,
        &line("0     ", [0x49, 9, TOP]),
        &line("1     ", [0x109, 1, 0]),
        &line("65    ", [0x1_8085, 10, 0]),
        &line("1048575", [0x1_80c5, 11, TOP]),
        "\n",
    ]
    .concat();
    assert_eq!(written(|out| debugfs::dmar_translation_struct(out, &model)), expected);
    // A device is asked for by itself: the upper half is found.
    let other = domain(&memory, &model, 0x180, None);
    assert!(other.starts_with("Device 0000:01:10.0 with pasid 0 @0x18000\n"), "{other}");
}

#[test]
fn a_pasids_table_is_that_of_its_kind_and_addresses_are_not_negative() {
    let memory = scalable().memory();
    let model = model(&memory, vec![unit("dmar0", &[("RTADDR", ROOT | SCALABLE)])]);
    let first = domain(&memory, &model, 0, None);
    let lines: Vec<&str> = first.lines().collect();
    assert_eq!(lines[0], "Device 0000:00:00.0 with pasid 0 @0x10000");
    assert_eq!(lines.len(), 2 + 4 + 4);
    let entries = columns(&[0, 0x1_1023, 0x4000_00a3]);
    assert_eq!(lines[2], format!("0x00000200c0000 |{entries}"));
    assert_eq!(lines[6], format!("0x0000ff80c0000 |{entries}"), "slot 511 of four levels");
    assert_eq!(domain(&memory, &model, 0, Some(1)), "", "pass-through has no table");
    assert_eq!(domain(&memory, &model, 0, Some(2)), "", "no entry");
    let second = domain(&memory, &model, 0, Some(65));
    assert!(second.starts_with("Device 0000:00:00.0 with pasid 41 @0x18000\nIOVA_PFN "), "{second}");
    let nested = domain(&memory, &model, 0, Some(0xf_ffff));
    assert_eq!(nested, second.replace("pasid 41", "pasid fffff"), "of nested ones the second stage");
    // Linux keeps a folder for each PASID of a device, besides the device's own.
    let all = written(|out| debugfs::all(out, &memory, &model));
    let names: Vec<&str> = all.lines().filter(|line| line.contains("domain_translation")).collect();
    assert_eq!(
        names,
        ["0000:00:00.0", "0000:00:00.0/1", "0000:00:00.0/41", "0000:00:00.0/fffff", "0000:01:10.0"]
            .map(|name| format!("## /sys/kernel/debug/iommu/intel/{name}/domain_translation_struct"))
    );
}

#[test]
fn units_that_do_not_translate_are_named_until_one_does_and_segments_are_kept_apart() {
    let mut pages = Pages::default();
    pages.set(ROOT, CONTEXT | 1);
    pages.set(CONTEXT, TOP | 1);
    pages.set(CONTEXT + 8, 1 << 8 | 1);
    tree(&mut pages, 3, TOP, 3, 0x83);
    let memory = pages.memory();
    let off = ("GSTS", 0);
    let mut units = vec![
        unit("dmar2", &[("RTADDR", ROOT), off]),
        unit("dmar1", &[("RTADDR", ROOT)]),
        unit("dmar0", &[("RTADDR", ROOT), off]),
        unit("dmar3", &[("RTADDR", ROOT)]),
    ];
    units[3].segment = Segment(1);
    let model = model(&memory, units);
    let found = domain(&memory, &model, 0, None);
    assert!(
        found.starts_with("DMA Remapping is not enabled on dmar2\nDevice 0000:00:00.0 @0x10000\nIOVA_PFN")
    );
    assert!(!found.contains("dmar0"), "behind the unit that has it nobody is asked");
    let device = Device { segment: Segment(1), source: SourceId::from_raw(0), pasid: None };
    let other = written(|out| debugfs::domain_translation_struct(out, &memory, &model, device));
    assert_eq!(other, found.split_once('\n').unwrap().1.replace("0000:00", "0001:00"));
    let stranger = written(|out| debugfs::domains_of(out, &memory, &model, SourceId::from_raw(8)));
    assert_eq!(stranger, "DMA Remapping is not enabled on dmar2\nDMA Remapping is not enabled on dmar0\n");
    let text = written(|out| debugfs::dmar_translation_struct(out, &model));
    let heads: Vec<&str> = text.lines().filter(|line| line.contains("dmar")).collect();
    assert_eq!(
        heads,
        [
            "DMA Remapping is not enabled on dmar2",
            "IOMMU dmar1: Root Table Address: 0x1000",
            "DMA Remapping is not enabled on dmar0",
            "IOMMU dmar3: Root Table Address: 0x1000",
        ]
    );
    assert!(text.contains("dmar2\nIOMMU dmar1"), "no empty line behind a unit that does not translate");
}

#[test]
fn posted_interrupts_follow_the_remapped_ones_of_all_units() {
    const TABLE: u64 = 0x10_0000;
    let mut pages = Pages::default();
    pages.zero(TABLE);
    // Remapped: destination 0x103, vector 0x31. Posted: vector 0x42, descriptor at 0x12_3456_7840, urgent.
    pages.set(TABLE + 16, 0x103_0031_000d);
    pages.set(TABLE + 16 + 8, 0x4_00fa);
    pages.set(TABLE + 32, (0x3456_7840_u64 >> 6) << 38 | 0x42_0000 | 1 << 15 | 1 << 14 | 1);
    pages.set(TABLE + 32 + 8, 0x12 << 32 | 0x4_0210);
    let memory = pages.memory();
    let interrupts = ("IRTA", TABLE | 7);
    let (remaps, posts) = (("ECAP", 8), ("CAP", 1 << 59 | 4 << 8));
    let on = ("GSTS", 0x8200_0000);
    let model = model(
        &memory,
        vec![
            unit("dmar1", &[interrupts, remaps, posts, on]),
            unit("dmar0", &[interrupts, remaps, posts]),
            unit("dmar2", &[("ECAP", 0), ("CAP", 2 << 8), on]),
        ],
    );
    let head = " IR table address:100000\n";
    let posted = format!(
        "{head} Entry SrcID   PDA_high PDA_low  Vct IRTE_high\t\tIRTE_low\n \
         2     02:02.0 00000012 34567840 42  0000001200040210\t345678400042c001\n\n"
    );
    let expected = format!(
        "Remapped Interrupt supported on IOMMU: dmar1\n{head} Entry SrcID   DstID    Vct IRTE_high\t\tIRTE_low\n \
         1     00:1f.2 00000103 31  00000000000400fa\t000001030031000d\n\n\
         Remapped Interrupt supported on IOMMU: dmar0\nInterrupt Remapping is not enabled\n\n\
         ****\n\n\
         Posted Interrupt supported on IOMMU: dmar1\n{posted}Posted Interrupt supported on IOMMU: dmar0\n{posted}"
    );
    assert_eq!(written(|out| debugfs::ir_translation_struct(out, &model)), expected);
}

#[test]
fn a_queue_whose_width_cannot_be_read_is_judged_by_what_lies_in_it() {
    const QUEUE: u64 = 0x2_0000;
    // QS 0: one page. IQA.DW reads zero; a wait descriptor follows an invalidation 16 or 32 bytes behind it.
    for (behind, smts, wide) in [(16, 1 << 43, false), (32, 1 << 43, true), (32, 0, false)] {
        let mut pages = Pages::default();
        pages.set(QUEUE, 0x14);
        pages.set(QUEUE + behind, 0x25);
        pages.set(QUEUE + behind + 8, 0x14_f584);
        let registers = [("IQA", QUEUE), ("ECAP", smts), ("CAP", 4 << 8), ("IQH", 64), ("IQT", 64)];
        let model = model(&pages.memory(), vec![unit("dmar0", &registers)]);
        let text = written(|out| debugfs::invalidation_queue(out, &model));
        let (place, index, zeros) = match wide {
            true => (2, 1, "\t0000000000000000\t0000000000000000"),
            false => (4, behind / 16, ""),
        };
        let head = format!(" Base: 0x20000\tHead: {place}\tTail: {place}\n");
        assert!(text.contains(&head), "{behind}, {smts:#x}: {text}");
        let line = format!("\n{index:5}\t0000000000000025\t000000000014f584{zeros}\t0000000000000000\n");
        assert!(text.contains(&line), "{behind}, {smts:#x}: {text}");
    }
}
