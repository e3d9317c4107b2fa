//! Tests of the image checks, on an image made by hand: a header, three segments and a note.

use super::*;
use crate::layout::{S0, S1};
use alloc::string::ToString;
use alloc::vec::Vec;

const WRITTEN: u32 = 1;
const NOTE_AT: usize = 0x400;
const TEXT: usize = 1;

fn program(
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
) -> ProgramHeader {
    ProgramHeader {
        kind,
        flags,
        offset,
        virtual_address: address,
        physical_address: address,
        file_bytes,
        memory_bytes,
        align: 4096,
    }
}

/// An image for S1; `change` may spoil its headers before they are written.
fn image(change: impl FnOnce(&mut FileHeader, &mut [ProgramHeader; 4])) -> Vec<u8> {
    let base = S1.start;
    let note = Note::new("0.1.0-b", 1, 2, S1, Adoptable::EVERYTHING);
    let mut programs = [
        program(PT_LOAD, 4, 0, base, 0x800, 0x800),
        program(PT_LOAD, 5, 0x800, base + 0x1000, 0x100, 0x100),
        program(PT_LOAD, 6, 0x900, base + 0x2000, 0x100, 0x9000),
        program(
            PT_NOTE,
            4,
            NOTE_AT as u64,
            base + NOTE_AT as u64,
            size_of::<Note>() as u64,
            size_of::<Note>() as u64,
        ),
    ];
    let mut ident = [0; 16];
    ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut header = FileHeader {
        ident,
        kind: 2,
        machine: 62,
        version: 1,
        entry: base + 0x1010,
        program_headers: 64,
        section_headers: 0,
        flags: 0,
        header_bytes: 64,
        program_header_bytes: 56,
        program_header_count: 4,
        section_header_bytes: 0,
        section_header_count: 0,
        section_names: 0,
    };
    change(&mut header, &mut programs);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(header.as_bytes());
    for p in &programs {
        bytes.extend_from_slice(p.as_bytes());
    }
    bytes.resize(NOTE_AT, 0);
    bytes.extend_from_slice(note.as_bytes());
    bytes.resize(0xa00, 0x90);
    bytes
}

fn verdict(change: impl FnOnce(&mut FileHeader, &mut [ProgramHeader; 4])) -> ImageError {
    KernelImage::check(&image(change), S1, WRITTEN).map(|_| ()).unwrap_err()
}

#[test]
fn a_good_image_is_taken_with_its_release_entry_and_segments() {
    let bytes = image(|_, _| {});
    let image = KernelImage::check(&bytes, S1, WRITTEN).unwrap();
    assert_eq!(image.release(), "0.1.0-b");
    assert_eq!(image.entry, S1.start + 0x1010);
    assert_eq!(image.adopts, Adoptable::EVERYTHING);
    assert_eq!(image.segments().len(), 3);
    assert!(image.segments()[TEXT].executable && !image.segments()[TEXT].writable);
    assert_eq!(image.contents(&image.segments()[TEXT]), &bytes[0x800..0x900]);
    assert_eq!(image.segments()[2].end(), S1.start + 0xb000);
}

#[test]
fn other_classes_machines_and_types_are_refused() {
    assert_eq!(verdict(|h, _| h.ident[4] = 1), ImageError::NotElf64);
    assert_eq!(verdict(|h, _| h.ident[5] = 2), ImageError::NotElf64);
    assert_eq!(verdict(|h, _| h.machine = 183), ImageError::Kind { kind: 2, machine: 183 });
    assert_eq!(verdict(|h, _| h.kind = 3), ImageError::Kind { kind: 3, machine: 62 });
    assert_eq!(verdict(|h, _| h.program_header_bytes = 55), ImageError::Headers { count: 4, bytes: 55 });
}

#[test]
fn a_segment_outside_the_image_part_of_the_area_is_refused() {
    for address in [S1.start - 4096, S1.image().end - 4096, S0.start, u64::MAX - 4095, 0] {
        let error = verdict(|_, p| (p[2].physical_address, p[2].virtual_address) = (address, address));
        assert_eq!(error, ImageError::Outside { address, bytes: 0x9000, area: S1.image() }, "{address:#x}");
    }
    let error = verdict(|_, p| p[2].memory_bytes = u64::MAX);
    assert!(matches!(error, ImageError::Outside { .. }), "{error}");
}

#[test]
fn segments_that_share_a_page_are_refused() {
    let error = verdict(|_, p| p[1].memory_bytes = 0x1001);
    assert_eq!(error, ImageError::Overlap { first: S1.start + 0x1000, second: S1.start + 0x2000 });
}

#[test]
fn a_segment_that_contradicts_itself_is_refused() {
    assert!(matches!(verdict(|_, p| p[1].file_bytes = 0x101), ImageError::Segment { header: 1, .. }));
    assert!(matches!(verdict(|_, p| p[1].virtual_address += 4096), ImageError::Segment { header: 1, .. }));
    let skewed = |_: &mut FileHeader, p: &mut [ProgramHeader; 4]| {
        p[1].physical_address += 8;
        p[1].virtual_address += 8;
    };
    assert!(matches!(verdict(skewed), ImageError::Segment { header: 1, .. }));
    assert!(matches!(verdict(|_, p| p[1].flags = 7), ImageError::WritableAndExecutable { .. }));
}

#[test]
fn an_entry_outside_executable_memory_is_refused() {
    for entry in [0, S1.start, S1.start + 0x2000, u64::MAX] {
        assert_eq!(verdict(|h, _| h.entry = entry), ImageError::Entry { entry });
    }
}

#[test]
fn a_note_for_another_area_or_another_format_is_refused_and_a_missing_one_too() {
    let bytes = image(|_, _| {});
    let for_s0 = KernelImage::check(&bytes, S0, WRITTEN).map(|_| ()).unwrap_err();
    assert!(matches!(for_s0, ImageError::Outside { .. }), "{for_s0}");

    let mut moved = bytes.clone();
    let area_at = NOTE_AT + 24 + 8;
    moved[area_at..area_at + 4].copy_from_slice(&(S0.start as u32).to_le_bytes());
    let error = KernelImage::check(&moved, S1, WRITTEN).map(|_| ()).unwrap_err();
    assert_eq!(error, ImageError::Area { start: S0.start, end: S1.end, area: S1 });

    let error = KernelImage::check(&bytes, S1, 3).map(|_| ()).unwrap_err();
    assert_eq!(error, ImageError::Format { oldest: 1, newest: 2, written: 3 });
    assert_eq!(verdict(|_, p| p[3].kind = 0), ImageError::NoNote);
}

/// Where the note says what it can adopt: version, then bits.
const ADOPTS_AT: usize = NOTE_AT + 24 + size_of::<NoteBody>();

fn saying(words: [u32; 2]) -> Result<Adoptable, ImageError> {
    let mut bytes = image(|_, _| {});
    bytes[ADOPTS_AT..ADOPTS_AT + 8].copy_from_slice(words.as_bytes());
    KernelImage::check(&bytes, S1, WRITTEN).map(|image| image.adopts)
}

#[test]
fn an_image_is_taken_by_its_word_of_what_it_can_adopt_and_refused_when_that_makes_no_sense() {
    assert_eq!(saying(Adoptable::LEGACY.to_words()), Ok(Adoptable::LEGACY));
    let [version, bits] = Adoptable::EVERYTHING.to_words();
    assert_eq!(saying([version + 1, bits]), Err(ImageError::Adoptable(NoSense::Version(version + 1))));
    let contradictory = saying([version, bits & !2]).unwrap_err();
    assert!(matches!(contradictory, ImageError::Adoptable(NoSense::Contradiction { .. })), "{contradictory}");
    assert!(contradictory.to_string().contains("but not scalable mode"), "{contradictory}");
}

#[test]
fn an_image_that_does_not_say_what_it_can_adopt_is_refused() {
    let mut bytes = image(|_, _| {});
    // As a release wrote its note that did not have these words.
    bytes[NOTE_AT + 4..NOTE_AT + 8].copy_from_slice(&(size_of::<NoteBody>() as u32).to_le_bytes());
    let error = KernelImage::check(&bytes, S1, WRITTEN).map(|_| ()).unwrap_err();
    assert_eq!(error, ImageError::NoAdoptable);
    assert!(error.to_string().contains("does not say what it can adopt"));
}

#[test]
fn a_file_cut_at_any_byte_is_refused_up_to_its_last_segment() {
    let bytes = image(|_, _| {});
    for length in 0..0xa00 {
        assert!(KernelImage::check(&bytes[..length], S1, WRITTEN).is_err(), "cut to {length:#x} bytes");
    }
}

#[test]
fn no_flipped_bit_of_the_headers_leads_out_of_the_area_or_the_file() {
    let bytes = image(|_, _| {});
    for bit in 0..(NOTE_AT + size_of::<Note>()) * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(image) = KernelImage::check(&flipped, S1, WRITTEN) {
            for segment in image.segments() {
                assert!(S1.image().holds(segment.address, segment.memory_bytes));
                assert!(image.contents(segment).len() as u64 <= segment.memory_bytes);
            }
        }
    }
}
