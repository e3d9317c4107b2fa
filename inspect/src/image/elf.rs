//! ELF cores: program headers of type LOAD, by their physical address.
//!
//! What QEMU's dump-guest-memory and kdump's `vmcore` write. Bytes that a segment has in memory but not in the file were
//! left out by whoever made the dump: they are missing, not zero.

use super::Run;
use super::open::OpenError;
use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadRef};

/// The runs of an ELF core, and what was odd about it.
pub(crate) fn runs<'d, R: ReadRef<'d>>(data: R) -> Result<(Vec<Run>, Vec<String>), OpenError> {
    match FileKind::parse(data).map_err(damaged)? {
        FileKind::Elf32 => segments::<FileHeader32<Endianness>, R>(data),
        FileKind::Elf64 => segments::<FileHeader64<Endianness>, R>(data),
        other => Err(OpenError::Elf { what: format!("it is {other:?}, not an ELF core") }),
    }
}

fn damaged(error: object::read::Error) -> OpenError {
    OpenError::Elf { what: error.to_string() }
}

fn segments<'d, H: FileHeader<Endian = Endianness>, R: ReadRef<'d>>(
    data: R,
) -> Result<(Vec<Run>, Vec<String>), OpenError> {
    let header = H::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let mut notes = Vec::new();
    if header.e_type(endian) != object::elf::ET_CORE {
        notes.push("the ELF file is not of type CORE".to_owned());
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
        left_out = left_out.saturating_add(in_memory.saturating_sub(in_file));
        // All ones is how a core of virtual memory says that it does not know.
        if in_file == 0 || start == u64::MAX || start.checked_add(in_file).is_none() {
            continue;
        }
        runs.push(Run { start, bytes: in_file, offset });
    }
    if runs.is_empty() {
        return Err(OpenError::Elf { what: "no segment holds memory at a physical address".into() });
    }
    if left_out > 0 {
        notes.push(format!("{left_out} bytes of memory were left out of the dump"));
    }
    Ok((runs, notes))
}
