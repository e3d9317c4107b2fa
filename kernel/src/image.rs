//! Checks of a kernel image before it is loaded: foreign bytes in, a list of segments that may be copied out.
//!
//! An image is an ELF64 executable for one scratch area. It carries a note named `Holdover` that says which release it
//! is, which handover formats it reads, which area it is linked for, and what it can adopt: an image that cannot read what
//! this kernel will leave, or does not say what it can adopt, is refused before anything is preserved.

use crate::layout::Area;
use core::fmt;
use scenario::platform::{Adoptable, NoSense};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most loadable segments of an image.
pub const MAX_SEGMENTS: usize = 8;
/// Name of the note, with its zero byte.
pub const NOTE_NAME: [u8; 9] = *b"Holdover\0";
/// Type of the note.
pub const NOTE_TYPE: u32 = 1;

const MAX_HEADERS: u16 = 32;
const PAGE: u64 = 4096;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// The ELF64 file header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct FileHeader {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_bytes: u16,
    program_header_bytes: u16,
    program_header_count: u16,
    section_header_bytes: u16,
    section_header_count: u16,
    section_names: u16,
}

/// An ELF64 program header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

/// The description of the `Holdover` note. Eight-byte fields are halves, because a note is aligned to four bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct NoteBody {
    oldest_format: u32,
    newest_format: u32,
    area_start: [u32; 2],
    area_end: [u32; 2],
    release: [u8; 32],
}

/// What the description goes on with: [`Adoptable::to_words`].
type Adopts = [u32; 2];

/// The note as an image carries it, header and all, for a static in section `.note.holdover`.
#[derive(IntoBytes, Immutable, Clone, Copy)]
#[repr(C)]
pub struct Note {
    name_bytes: u32,
    body_bytes: u32,
    kind: u32,
    name: [u8; 12],
    body: NoteBody,
    adopts: Adopts,
}

impl Note {
    /// The note of a release.
    ///
    /// # Panics
    /// When the release string does not fit: at compile time, in a static.
    #[must_use]
    pub const fn new(
        release: &str,
        oldest_format: u32,
        newest_format: u32,
        area: Area,
        adopts: Adoptable,
    ) -> Self {
        let source = release.as_bytes();
        assert!(!source.is_empty() && source.len() < 32, "a release string has 1 to 31 bytes");
        let mut padded = [0; 32];
        let mut name = [0; 12];
        let mut i = 0;
        while i < source.len() {
            padded[i] = source[i];
            i += 1;
        }
        i = 0;
        while i < NOTE_NAME.len() {
            name[i] = NOTE_NAME[i];
            i += 1;
        }
        let body = NoteBody {
            oldest_format,
            newest_format,
            area_start: [area.start as u32, (area.start >> 32) as u32],
            area_end: [area.end as u32, (area.end >> 32) as u32],
            release: padded,
        };
        Self {
            name_bytes: NOTE_NAME.len() as u32,
            body_bytes: (size_of::<NoteBody>() + size_of::<Adopts>()) as u32,
            kind: NOTE_TYPE,
            name,
            body,
            adopts: adopts.to_words(),
        }
    }
}

/// A part of an image, where it belongs in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Physical address, a multiple of 4096.
    pub address: u64,
    /// Bytes in memory; those past the end of the file's part are zero.
    pub memory_bytes: u64,
    /// Where its bytes begin in the file.
    pub file_offset: u64,
    /// How many of them there are.
    pub file_bytes: u64,
    /// Instructions are fetched from it.
    pub executable: bool,
    /// It is written to.
    pub writable: bool,
}

impl Segment {
    /// Address after the last page that the segment touches.
    #[must_use]
    pub const fn end(&self) -> u64 {
        (self.address + self.memory_bytes).next_multiple_of(PAGE)
    }
}

/// An image that passed every check.
#[derive(Debug, Clone, Copy)]
pub struct KernelImage<'a> {
    bytes: &'a [u8],
    release: [u8; 32],
    release_bytes: usize,
    /// Where its first instruction is.
    pub entry: u64,
    /// What its kernel can adopt.
    pub adopts: Adoptable,
    segments: [Segment; MAX_SEGMENTS],
    segment_count: usize,
}

/// Why an image is not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageError {
    /// The file ends before something that its headers promise.
    Short {
        /// What is missing.
        what: &'static str,
        /// Byte after it.
        needed: u64,
        /// Length of the file.
        present: u64,
    },
    /// No ELF file, or not one of 64 bits, little-endian.
    NotElf64,
    /// An ELF file of another type (only 2, an executable, is taken) or machine (only 62, x86-64).
    Kind {
        /// Type of the file.
        kind: u16,
        /// Machine.
        machine: u16,
    },
    /// More program headers or segments than are read, or headers of another size.
    Headers {
        /// Number of headers.
        count: u16,
        /// Size of one.
        bytes: u16,
    },
    /// A segment whose sizes contradict each other, or whose two addresses differ.
    Segment {
        /// Number of the program header.
        header: usize,
        /// Its address.
        address: u64,
    },
    /// A segment that may be written and executed.
    WritableAndExecutable {
        /// Its address.
        address: u64,
    },
    /// A segment outside the image's part of the successor's scratch area.
    Outside {
        /// Its address.
        address: u64,
        /// Its length in memory.
        bytes: u64,
        /// The area it has to lie in.
        area: Area,
    },
    /// Two segments share a page.
    Overlap {
        /// Address of the one.
        first: u64,
        /// Address of the other.
        second: u64,
    },
    /// The entry point lies in no executable segment.
    Entry {
        /// The entry point.
        entry: u64,
    },
    /// No well-formed note named `Holdover`.
    NoNote,
    /// The note names another scratch area.
    Area {
        /// What the note says.
        start: u64,
        /// What the note says.
        end: u64,
        /// The area that the successor has to live in.
        area: Area,
    },
    /// The release cannot read the handover that this kernel writes.
    Format {
        /// Oldest format that the release reads.
        oldest: u32,
        /// Newest format that it reads.
        newest: u32,
        /// The format that this kernel writes.
        written: u32,
    },
    /// The note does not say what the release can adopt: it is of a release before that was asked.
    NoAdoptable,
    /// What the note says of that is not understood.
    Adoptable(NoSense),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { what, needed, present } => {
                write!(
                    f,
                    "the image ends before its {what}: {needed} bytes are needed and {present} are there"
                )
            }
            Self::NotElf64 => write!(f, "the image is no 64-bit little-endian ELF file"),
            Self::Kind { kind, machine } => {
                write!(
                    f,
                    "the image has ELF type {kind} and machine {machine}: only executables for x86-64 are taken"
                )
            }
            Self::Headers { count, bytes } => {
                write!(f, "the image has {count} program headers of {bytes} bytes, or too many segments")
            }
            Self::Segment { header, address } => {
                write!(f, "program header {header} of the image (at {address:#x}) contradicts itself")
            }
            Self::WritableAndExecutable { address } => {
                write!(f, "the image's segment at {address:#x} is both writable and executable")
            }
            Self::Outside { address, bytes, area } => write!(
                f,
                "the image's segment at {address:#x} with {bytes:#x} bytes lies outside {:#x}..{:#x}",
                area.start, area.end
            ),
            Self::Overlap { first, second } => {
                write!(f, "the image's segments at {first:#x} and {second:#x} share a page")
            }
            Self::Entry { entry } => write!(f, "the image's entry {entry:#x} lies in no executable segment"),
            Self::NoNote => {
                write!(f, "the image has no note named Holdover: it is no release of this kernel")
            }
            Self::Area { start, end, area } => write!(
                f,
                "the image is for scratch area {start:#x}..{end:#x}, but the free one is {:#x}..{:#x}",
                area.start, area.end
            ),
            Self::NoAdoptable => write!(
                f,
                "the image does not say what it can adopt: build it anew, or update by way of a release that it knows"
            ),
            Self::Adoptable(error) => write!(f, "the image is not understood: {error}"),
            Self::Format { oldest, newest, written } => write!(
                f,
                "the image reads handover formats {oldest} to {newest}, but this kernel writes format {written}"
            ),
        }
    }
}
impl core::error::Error for ImageError {}

impl<'a> KernelImage<'a> {
    /// Checks an image for `area`, whose release must read handover format `written`.
    ///
    /// # Errors
    /// [`ImageError`] for the first thing that is wrong.
    pub fn check(bytes: &'a [u8], area: Area, written: u32) -> Result<Self, ImageError> {
        let header = file_header(bytes)?;
        let mut image = Self {
            bytes,
            release: [0; 32],
            release_bytes: 0,
            entry: header.entry,
            adopts: Adoptable::NOTHING,
            segments: [Segment::default(); MAX_SEGMENTS],
            segment_count: 0,
        };
        let mut note = None;
        for number in 0..usize::from(header.program_header_count) {
            let program = program_header(bytes, &header, number)?;
            match program.kind {
                PT_LOAD if program.memory_bytes > 0 => {
                    let segment = check_segment(bytes, &program, number, area.image())?;
                    let place = image.segments.get_mut(image.segment_count);
                    *place.ok_or(too_many(&header))? = segment;
                    image.segment_count += 1;
                }
                PT_NOTE => {
                    note = note.or(find_note(slice(bytes, program.offset, program.file_bytes, "notes")?))
                }
                _ => {}
            }
        }
        image.check_overlap()?;
        if !image
            .segments()
            .iter()
            .any(|s| s.executable && s.address <= header.entry && header.entry < s.end())
        {
            return Err(ImageError::Entry { entry: header.entry });
        }
        let (note, adopts) = note.ok_or(ImageError::NoNote)?;
        image.check_note(&note, area, written)?;
        image.adopts =
            Adoptable::from_words(adopts.ok_or(ImageError::NoAdoptable)?).map_err(ImageError::Adoptable)?;
        Ok(image)
    }

    /// What has to be copied where.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.segment_count]
    }
    /// The bytes that the file holds for a segment of this image.
    #[must_use]
    pub fn contents(&self, segment: &Segment) -> &'a [u8] {
        // Checked when the segment was accepted.
        &self.bytes[segment.file_offset as usize..(segment.file_offset + segment.file_bytes) as usize]
    }
    /// Release string of the image's own note.
    #[must_use]
    pub fn release(&self) -> &str {
        core::str::from_utf8(&self.release[..self.release_bytes]).unwrap_or_default()
    }

    fn check_overlap(&self) -> Result<(), ImageError> {
        for (i, a) in self.segments().iter().enumerate() {
            for b in &self.segments()[..i] {
                if a.address < b.end() && b.address < a.end() {
                    return Err(ImageError::Overlap { first: b.address, second: a.address });
                }
            }
        }
        Ok(())
    }

    fn check_note(&mut self, note: &NoteBody, area: Area, written: u32) -> Result<(), ImageError> {
        let whole = |halves: [u32; 2]| u64::from(halves[0]) | u64::from(halves[1]) << 32;
        let (start, end) = (whole(note.area_start), whole(note.area_end));
        if (start, end) != (area.start, area.end) {
            return Err(ImageError::Area { start, end, area });
        }
        let (oldest, newest) = (note.oldest_format, note.newest_format);
        if !(oldest..=newest).contains(&written) {
            return Err(ImageError::Format { oldest, newest, written });
        }
        self.release = note.release;
        self.release_bytes = note.release.iter().position(|&b| b == 0).ok_or(ImageError::NoNote)?;
        if self.release().is_empty() {
            return Err(ImageError::NoNote);
        }
        Ok(())
    }
}

fn too_many(header: &FileHeader) -> ImageError {
    ImageError::Headers { count: header.program_header_count, bytes: header.program_header_bytes }
}

fn file_header(bytes: &[u8]) -> Result<FileHeader, ImageError> {
    let head = slice(bytes, 0, size_of::<FileHeader>() as u64, "file header")?;
    let header = FileHeader::read_from_bytes(head).map_err(|_| ImageError::NotElf64)?;
    // Magic, class 2 (64 bits), data 1 (little-endian), version 1.
    if header.ident[..7] != *b"\x7fELF\x02\x01\x01" {
        return Err(ImageError::NotElf64);
    }
    if (header.kind, header.machine) != (2, 62) {
        return Err(ImageError::Kind { kind: header.kind, machine: header.machine });
    }
    let size = usize::from(header.program_header_bytes);
    if header.program_header_count > MAX_HEADERS || size != size_of::<ProgramHeader>() {
        return Err(too_many(&header));
    }
    Ok(header)
}

fn program_header(bytes: &[u8], header: &FileHeader, number: usize) -> Result<ProgramHeader, ImageError> {
    let size = size_of::<ProgramHeader>() as u64;
    let at = header.program_headers.saturating_add(number as u64 * size);
    let place = slice(bytes, at, size, "program headers")?;
    ProgramHeader::read_from_bytes(place).map_err(|_| too_many(header))
}

fn check_segment(bytes: &[u8], p: &ProgramHeader, header: usize, area: Area) -> Result<Segment, ImageError> {
    let address = p.physical_address;
    if p.file_bytes > p.memory_bytes || p.virtual_address != address || !address.is_multiple_of(PAGE) {
        return Err(ImageError::Segment { header, address });
    }
    if !area.holds(address, p.memory_bytes) {
        return Err(ImageError::Outside { address, bytes: p.memory_bytes, area });
    }
    slice(bytes, p.offset, p.file_bytes, "segments")?;
    let (executable, writable) = (p.flags & 1 != 0, p.flags & 2 != 0);
    if executable && writable {
        return Err(ImageError::WritableAndExecutable { address });
    }
    Ok(Segment {
        address,
        memory_bytes: p.memory_bytes,
        file_offset: p.offset,
        file_bytes: p.file_bytes,
        executable,
        writable,
    })
}

/// The body of the first `Holdover` note, and what it can adopt, among these notes (aligned to four bytes).
fn find_note(mut notes: &[u8]) -> Option<(NoteBody, Option<Adopts>)> {
    // Every turn takes at least the twelve bytes of a header.
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let field = |i: usize| u32::from_le_bytes(core::array::from_fn(|j| head[i + j])) as usize;
        let (name_bytes, body_bytes, kind) = (field(0), field(4), field(8));
        let body_at = name_bytes.next_multiple_of(4);
        let name = rest.get(..name_bytes)?;
        let body = rest.get(body_at..body_at.checked_add(body_bytes)?)?;
        if name == NOTE_NAME && kind == NOTE_TYPE as usize {
            let (body, rest) = NoteBody::read_from_prefix(body).ok()?;
            return Some((body, Adopts::read_from_prefix(rest).ok().map(|(adopts, _)| adopts)));
        }
        notes = rest.get(body_at + body_bytes.next_multiple_of(4)..)?;
    }
    None
}

fn slice<'a>(bytes: &'a [u8], at: u64, length: u64, what: &'static str) -> Result<&'a [u8], ImageError> {
    let present = bytes.len() as u64;
    let needed = at.saturating_add(length);
    if needed > present {
        return Err(ImageError::Short { what, needed, present });
    }
    Ok(&bytes[at as usize..needed as usize])
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
