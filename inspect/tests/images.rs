//! Every form of image gives the same answers, from a file and from memory, and says what it lacks.

mod common;

use common::synthetic::Pages;
use common::{folder, text};
use holdover_inspect::format::debugfs;
use holdover_inspect::image::{self, Form, Memory, OpenError, Options};
use holdover_inspect::model::{FindKho, Limits, Model};
use holdover_inspect::registers::{self, USUAL_BASE};
use holdover_inspect::tables::Hardware;
use spec::PhysAddr;
use std::path::PathBuf;

/// A file that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("holdover-inspect-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A segment: physical address, bytes in the file, bytes in memory.
type Segment<'a> = (u64, &'a [u8], u64);

/// An ELF core of 64 bits with these segments.
fn elf(segments: &[Segment<'_>]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half =
        |bytes: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    half(&mut bytes, &[4, 62]);
    bytes.extend(1_u32.to_le_bytes());
    [0_u64, 64, 0].iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    bytes.extend(0_u32.to_le_bytes());
    half(&mut bytes, &[64, 56, segments.len() as u16 + 1, 0, 0, 0]);
    let mut offset = 64 + 56 * (segments.len() as u64 + 1);
    // A note comes first, as in every core.
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend([0; 52]);
    for (start, content, in_memory) in segments {
        [1_u32, 0].iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        for value in [offset, 0, *start, content.len() as u64, *in_memory, 0] {
            bytes.extend(value.to_le_bytes());
        }
        offset += content.len() as u64;
    }
    segments.iter().for_each(|(_, content, _)| bytes.extend_from_slice(content));
    bytes
}

/// The bytes of a run of memory.
fn content(memory: &Memory, start: u64, bytes: u64) -> Vec<u8> {
    let mut out = vec![0; bytes as usize];
    memory.read_bytes(PhysAddr::new(start), &mut out).unwrap();
    out
}

fn kernel_text(memory: &Memory) -> String {
    let window = std::fs::read(folder("min-legacy").join("vtd-regs.bin")).unwrap();
    let units = registers::parse(&window, USUAL_BASE).unwrap();
    let model = Model::build(memory, units, Hardware::default(), FindKho::No, Limits::default());
    let mut out = Vec::new();
    debugfs::all(&mut out, memory, &model).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn page_file_elf_core_and_raw_memory_answer_alike_from_file_and_from_memory() {
    let packed = image::open(&folder("min-legacy").join("reach.pages.zst"), Options::default()).unwrap();
    let expected = kernel_text(&packed);
    assert!(
        expected.lines().count() > 800 && text(&folder("min-legacy"), "linux-debugfs.txt").contains("dmar0")
    );

    let runs: Vec<(u64, Vec<u8>)> =
        packed.runs().iter().map(|run| (run.start, content(&packed, run.start, run.bytes))).collect();
    let segments: Vec<Segment<'_>> =
        runs.iter().map(|(start, bytes)| (*start, bytes.as_slice(), bytes.len() as u64)).collect();
    let core = elf(&segments);
    let end = packed.runs().last().map(|run| run.start + run.bytes).unwrap();
    let mut raw = vec![0; end as usize - 0x10_0000];
    for (start, bytes) in &runs {
        let at = *start as usize - 0x10_0000;
        raw[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let addresses: Vec<u64> =
        runs.iter().flat_map(|(start, bytes)| (*start..*start + bytes.len() as u64).step_by(4096)).collect();
    let mut pages = Vec::new();
    image::write_pages(&mut pages, &packed, &addresses, &[]).unwrap();

    let base = Options { base: Some(0x10_0000), ..Options::default() };
    for (form, bytes, options) in [
        (Form::Elf, core, Options::default()),
        (Form::Raw, raw, base),
        (Form::Pages, pages, Options::default()),
    ] {
        let file = Scratch::new(&form.to_string().replace(' ', "-"), &bytes);
        for memory in [image::open(&file.0, options).unwrap(), image::from_bytes(bytes, options).unwrap()] {
            assert_eq!(memory.form(), form);
            assert_eq!(kernel_text(&memory), expected, "{form}");
        }
    }
}

#[test]
fn what_an_elf_core_leaves_out_is_missing() {
    let page = [7; 4096];
    let bytes = elf(&[(0x5000, &page, 0x2000), (u64::MAX, &page, 4096), (0x9000, &[], 4096)]);
    let memory = image::from_bytes(bytes, Options::default()).unwrap();
    assert!(memory.holds_frame(PhysAddr::new(0x5fff)));
    assert!(!memory.holds_frame(PhysAddr::new(0x6000)) && !memory.holds_frame(PhysAddr::new(0x9000)));
    assert_eq!(memory.bytes(), 4096);
    assert_eq!(memory.notes().len(), 1, "{:?}", memory.notes());
}

#[test]
fn a_file_that_ends_early_keeps_what_it_has() {
    let page = [7; 4096];
    let mut bytes = elf(&[(0x5000, &page, 4096), (0x8000, &page, 4096)]);
    bytes.truncate(bytes.len() - 4000);
    let file = Scratch::new("torn", &bytes);
    for memory in [
        image::open(&file.0, Options::default()).unwrap(),
        image::from_bytes(bytes, Options::default()).unwrap(),
    ] {
        assert!(memory.holds_frame(PhysAddr::new(0x5000)) && !memory.holds_frame(PhysAddr::new(0x8000)));
        assert!(memory.notes()[0].contains("4000 bytes early"), "{:?}", memory.notes());
    }
}

#[test]
fn segments_that_all_claim_the_whole_address_space_are_cut_to_the_file() {
    // Two program headers, patched to claim almost 2^64 bytes each: what is left out adds up beyond a word.
    let mut bytes = elf(&[(0x5000, &[7; 64], 64), (0x9000, &[7; 64], 64)]);
    for header in 1..3 {
        let at = 64 + 56 * header;
        bytes[at + 32..at + 40].copy_from_slice(&(u64::MAX - 0x1_0000).to_le_bytes());
        bytes[at + 40..at + 48].copy_from_slice(&(u64::MAX - 0x1_0000).to_le_bytes());
    }
    let memory = image::from_bytes(bytes.clone(), Options::default()).unwrap();
    assert!(memory.bytes() < bytes.len() as u64);
    assert!(memory.notes().iter().any(|note| note.contains("early")), "{:?}", memory.notes());
}

#[test]
fn the_last_bytes_of_the_address_space_are_searched_for_a_handover_too() {
    let memory = image::from_bytes(elf(&[(u64::MAX - 0x100, &[7; 64], 64)]), Options::default()).unwrap();
    let model = Model::build(&memory, Vec::new(), Hardware::default(), FindKho::Scan, Limits::default());
    assert!(memory.bytes() == 64 && model.handovers.is_empty());
}

#[test]
fn files_that_are_no_images_are_refused_by_name() {
    let refused = |bytes: &[u8]| image::from_bytes(bytes.to_vec(), Options::default()).unwrap_err();
    assert!(matches!(refused(b"KDUMP   and more"), OpenError::Dump { .. }));
    assert!(matches!(refused(b"no image at all"), OpenError::Unknown));
    assert!(matches!(refused(b""), OpenError::Empty));
    assert!(matches!(refused(b"\x7fELF\x02\x01\x01\0 and then nothing"), OpenError::Elf { .. }));
    assert!(matches!(refused(&elf(&[])), OpenError::Elf { .. }));
    let claims = |count: u64, rest: &[u8]| [b"VTDPAGE1".as_slice(), &count.to_le_bytes(), rest].concat();
    for (count, rest) in
        [(1, vec![0; 100]), (u64::MAX, vec![0; 8192]), (1, [&[1][..], &[0; 4103]].concat()), (0, Vec::new())]
    {
        assert!(matches!(refused(&claims(count, &rest)), OpenError::PageFile { .. }), "{count}");
    }
    let past = image::from_bytes(vec![0; 4096], Options { base: Some(u64::MAX - 100), ..Options::default() })
        .unwrap_err();
    assert!(matches!(past, OpenError::Base { .. }));
}

/// Linux stops at the first half of a bus that has no context table; the model does not.
#[test]
fn a_bus_with_an_upper_half_only_is_in_the_model_and_not_in_linuxs_text() {
    let mut pages = Pages::default();
    // Root entry of bus 1: upper half only, with function 1f.0.
    pages.set(0x1000 + 16 + 8, 0x2001);
    let entry = 0x2000 + 32 * (0xf8 - 0x80);
    pages.set(entry, 0x3001);
    pages.set(0x3000, 0x4001);
    pages.set(0x4000, 4 << 6 | 1);
    let memory = pages.memory();
    let mut window = std::fs::read(folder("min-sm-sl").join("vtd-regs.bin")).unwrap();
    window[0x20..0x28].copy_from_slice(&0x1400_u64.to_le_bytes());
    let units = registers::parse(&window, USUAL_BASE).unwrap();
    let model = Model::build(&memory, units, Hardware::default(), FindKho::No, Limits::default());
    let sources: Vec<String> = model.units[0].requesters.iter().map(|r| r.source.to_string()).collect();
    assert_eq!(sources, ["01:1f.0"]);
    let mut out = Vec::new();
    debugfs::dmar_translation_struct(&mut out, &model).unwrap();
    assert!(!String::from_utf8(out).unwrap().contains("01:1f.0"));
}
