//! ELF cores: program headers of type LOAD, by their physical address.
//!
//! What QEMU's dump-guest-memory, kdump's `vmcore` and `/proc/kcore` are. Bytes that a segment has in memory but not in the
//! file were left out by whoever made the dump: they are missing, not zero. The kernel's own text is mapped twice, so that
//! segments of a crash dump overlap; both show the same memory.

use super::Run;
use super::open::OpenError;
use super::store::{Reader, Store};
use object::elf::{EM_386, EM_NONE, EM_X86_64, ET_CORE, FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef};

/// The runs of an ELF core, and what was odd about it.
pub(crate) fn runs(store: &Store) -> Result<(Vec<Run>, Vec<String>), OpenError> {
    let data = &ReadCache::new(Reader::new(store));
    match FileKind::parse(data).map_err(damaged)? {
        FileKind::Elf32 => segments::<FileHeader32<Endianness>, _>(data),
        FileKind::Elf64 => segments::<FileHeader64<Endianness>, _>(data),
        other => Err(is(format!("{other:?}, not an ELF core"))),
    }
}

fn damaged(error: object::read::Error) -> OpenError {
    OpenError::Elf { what: format!("damaged ELF core: {error}") }
}

fn is(what: impl std::fmt::Display) -> OpenError {
    OpenError::Elf { what: format!("this is {what}") }
}

fn segments<'d, H: FileHeader<Endian = Endianness>, R: ReadRef<'d>>(
    data: R,
) -> Result<(Vec<Run>, Vec<String>), OpenError> {
    let header = H::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    if endian == Endianness::Big {
        return Err(is("an ELF file of a big-endian machine, which has no such remapping hardware"));
    }
    if header.e_type(endian) != ET_CORE {
        let kind = header.e_type(endian);
        return Err(is(format!(
            "an ELF file of type {kind}, a program or library: a core of memory is needed"
        )));
    }
    let mut notes = Vec::new();
    let machine = header.e_machine(endian);
    if ![EM_NONE, EM_386, EM_X86_64].contains(&machine) {
        notes.push(format!("the ELF core is of another kind of machine (e_machine {machine})"));
    }
    let mut runs = Vec::new();
    let mut left_out = 0_u64;
    for segment in header.program_headers(endian, data).map_err(damaged)? {
        if segment.p_type(endian) != PT_LOAD {
            continue;
        }
        let start: u64 = segment.p_paddr(endian).into();
        let (offset, in_file) = segment.file_range(endian);
        let in_memory: u64 = segment.p_memsz(endian).into();
        // All ones is how a core of virtual memory says that it does not know: 32 of them in a core of 32 bits.
        let nowhere = if header.is_class_64() { u64::MAX } else { u32::MAX.into() };
        if start == nowhere {
            continue;
        }
        left_out = left_out.saturating_add(in_memory.saturating_sub(in_file));
        let in_file = in_file.min(in_memory);
        if in_file == 0 || start.checked_add(in_file).is_none() {
            continue;
        }
        runs.push(Run { start, bytes: in_file, offset });
    }
    if runs.is_empty() {
        return Err(OpenError::Elf {
            what: "an ELF core of which no segment holds memory at a physical address".into(),
        });
    }
    if runs.len() > 1 && runs.iter().all(|run| run.start == 0) {
        return Err(is("a core without physical addresses: of a process, or of an old kernel's /proc/kcore"));
    }
    if left_out > 0 {
        notes.push(format!("{left_out} bytes of memory were left out of the dump"));
    }
    Ok((runs, notes))
}
