//! What a kernel tells its successor at the jump, beside the handover: where things are, and which update this is.
//!
//! The block lies in the mailbox of the successor's scratch area; its address is in `rdi` when the successor's first
//! instruction runs. To the successor it is foreign data: [`read`] checks every field before any is used. All numbers are
//! little-endian; the block's own length covers header, ranges and command line:
//!
//! ```text
//!   offset  bytes
//!        0      8   magic "HLDBOOT1"
//!        8      4   length of the block in bytes, at most 16 KiB
//!       12      4   number of memory ranges, at most 64
//!       16      8   XXH64 (seed 0) over the block, with this field zero
//!       24      8   number of this update: 1 for the jump from the first kernel to the second
//!       32      8   physical address of the handover's FDT, 0 for none
//!       40      8   physical address of the RSDP
//!       48      8   physical address of the bundle, 0 for none; else in the bundle part of the same mailbox
//!       56      8   length of the bundle
//!       64      4   number of the bundle's image that comes after the successor
//!       68      4   length of the command line
//!       72      8   clock when the predecessor left, ns
//!       80     32   release string of the predecessor, UTF-8, padded with zero bytes
//!      112     24   per memory range: start, length, 1 for usable or 0
//!        …      …   command line, UTF-8
//! ```

use crate::layout::{Area, PARAMETER_BYTES};
use crate::memory::MAX_RANGES;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use scenario::platform::MemoryRange;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First bytes of every block. The last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"HLDBOOT1";
/// Longest command line that is handed on.
pub const MAX_COMMAND_LINE: usize = 4096;

/// The fixed part of the block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    length: u32,
    ranges: u32,
    digest: u64,
    update: u64,
    handover: u64,
    rsdp: u64,
    bundle: u64,
    bundle_bytes: u64,
    next_image: u32,
    command_line_bytes: u32,
    left_at: u64,
    predecessor: [u8; 32],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
    usable: u64,
}

const HEADER_BYTES: usize = size_of::<Header>();
const RANGE_BYTES: usize = size_of::<Range>();

// The longest block fits.
const _: () = assert!(HEADER_BYTES + MAX_RANGES * RANGE_BYTES + MAX_COMMAND_LINE <= PARAMETER_BYTES as usize);

/// What a kernel knows when it starts, wherever it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootParameters {
    /// Number of the update that led here; 0 in the first kernel.
    pub update: u64,
    /// Physical address of the handover's FDT. Not checked here.
    pub handover: Option<u64>,
    /// Physical address of the RSDP. Not checked here.
    pub rsdp: u64,
    /// Address and length of the bundle.
    pub bundle: Option<(u64, u64)>,
    /// Number of the bundle's image that is this kernel's successor.
    pub next_image: usize,
    /// Clock when the predecessor left, ns; 0 in the first kernel.
    pub left_at: u64,
    /// Release string of the predecessor; empty in the first kernel.
    pub predecessor: String,
    /// Memory as the predecessor knew it. Not in order yet: see [`crate::memory::normalise`].
    pub memory: Vec<MemoryRange>,
    /// The command line.
    pub command_line: String,
}

/// Why a block is not believed, or cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterError {
    /// The address in `rdi` is not where the mailbox of this kernel's area begins.
    Address {
        /// What was in `rdi`.
        found: u64,
        /// Where the block has to be.
        expected: u64,
    },
    /// No boot parameters, or of another version.
    Magic([u8; 8]),
    /// Lengths that contradict each other or the limits.
    Length {
        /// Length of the block.
        block: u64,
        /// Number of ranges.
        ranges: u64,
        /// Length of the command line.
        command_line: u64,
    },
    /// The block's digest is not that of its bytes.
    Digest {
        /// What the block says.
        found: u64,
        /// What its bytes give.
        computed: u64,
    },
    /// An update with number 0.
    Update,
    /// A bundle outside the mailbox of this kernel's area.
    Bundle {
        /// Its address.
        address: u64,
        /// Its length.
        bytes: u64,
    },
    /// A memory range that is neither usable nor not.
    RangeKind {
        /// Its start.
        start: u64,
        /// What stands there instead of 0 or 1.
        kind: u64,
    },
    /// A string that is no UTF-8.
    Text {
        /// Which one.
        what: &'static str,
    },
}

impl fmt::Display for ParameterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { found, expected } => {
                write!(f, "the boot parameters are said to be at {found:#x}, but belong at {expected:#x}")
            }
            Self::Magic(found) => {
                write!(f, "no boot parameters of this version: they start with {found:02x?}")
            }
            Self::Length { block, ranges, command_line } => write!(
                f,
                "the boot parameters' lengths do not agree: {block} bytes with {ranges} memory ranges and {command_line} \
                 bytes of command line"
            ),
            Self::Digest { found, computed } => {
                write!(
                    f,
                    "the boot parameters were altered: digest {found:#018x}, their bytes give {computed:#018x}"
                )
            }
            Self::Update => write!(f, "the boot parameters carry no update number"),
            Self::Bundle { address, bytes } => {
                write!(f, "the bundle at {address:#x} with {bytes:#x} bytes lies outside the mailbox")
            }
            Self::RangeKind { start, kind } => {
                write!(f, "the memory range at {start:#x} is of unknown kind {kind}")
            }
            Self::Text { what } => write!(f, "the {what} in the boot parameters is no UTF-8"),
        }
    }
}
impl core::error::Error for ParameterError {}

/// Checks and takes over a block; `home` is the area of the kernel that reads it.
///
/// # Errors
/// [`ParameterError`] for the first thing that is wrong.
pub fn read(block: &[u8], home: Area) -> Result<BootParameters, ParameterError> {
    let (header, _) = Header::read_from_prefix(block).map_err(|_| ParameterError::Length {
        block: block.len() as u64,
        ranges: 0,
        command_line: 0,
    })?;
    if header.magic != MAGIC {
        return Err(ParameterError::Magic(header.magic));
    }
    let (ranges, line) = (header.ranges as usize, header.command_line_bytes as usize);
    let lengths = ParameterError::Length {
        block: u64::from(header.length),
        ranges: u64::from(header.ranges),
        command_line: u64::from(header.command_line_bytes),
    };
    if ranges > MAX_RANGES || line > MAX_COMMAND_LINE {
        return Err(lengths);
    }
    let line_at = HEADER_BYTES + ranges * RANGE_BYTES;
    if header.length as usize != line_at + line {
        return Err(lengths);
    }
    let block = block.get(..header.length as usize).ok_or(lengths)?;
    let computed = digest(&header, &block[HEADER_BYTES..]);
    if computed != header.digest {
        return Err(ParameterError::Digest { found: header.digest, computed });
    }
    if header.update == 0 {
        return Err(ParameterError::Update);
    }
    let bundle = match (header.bundle, header.bundle_bytes) {
        (0, 0) => None,
        (address, bytes) if home.bundle().holds(address, bytes) => Some((address, bytes)),
        (address, bytes) => return Err(ParameterError::Bundle { address, bytes }),
    };
    let name_bytes = header.predecessor.iter().position(|&b| b == 0).unwrap_or(header.predecessor.len());
    Ok(BootParameters {
        update: header.update,
        handover: (header.handover != 0).then_some(header.handover),
        rsdp: header.rsdp,
        bundle,
        next_image: header.next_image as usize,
        left_at: header.left_at,
        predecessor: text(&header.predecessor[..name_bytes], "release string")?,
        memory: block[HEADER_BYTES..line_at]
            .chunks_exact(RANGE_BYTES)
            .map(range)
            .collect::<Result<_, _>>()?,
        command_line: text(&block[line_at..], "command line")?,
    })
}

fn text(bytes: &[u8], what: &'static str) -> Result<String, ParameterError> {
    core::str::from_utf8(bytes).map(ToString::to_string).map_err(|_| ParameterError::Text { what })
}

fn range(bytes: &[u8]) -> Result<MemoryRange, ParameterError> {
    let lengths = ParameterError::Length { block: bytes.len() as u64, ranges: 1, command_line: 0 };
    let range = Range::read_from_bytes(bytes).map_err(|_| lengths)?;
    if range.usable > 1 {
        return Err(ParameterError::RangeKind { start: range.start, kind: range.usable });
    }
    Ok(MemoryRange { start: range.start, bytes: range.bytes, usable: range.usable == 1 })
}

/// The block's digest: over its bytes, with the digest's own field taken as zero.
fn digest(header: &Header, body: &[u8]) -> u64 {
    let mut state = spec::xxh64::Hasher::new(0);
    state.update(Header { digest: 0, ..*header }.as_bytes());
    state.update(body);
    state.finish()
}

/// Writes a block to the start of `out` without a digest: [`seal`] completes it.
///
/// Everything that can fail or allocate happens here, before the point of no return.
///
/// # Errors
/// [`ParameterError::Length`] when there are too many ranges, the command line is too long, or `out` too short.
pub fn write(parameters: &BootParameters, out: &mut [u8]) -> Result<(), ParameterError> {
    let (ranges, line) = (parameters.memory.len(), parameters.command_line.len());
    let length = HEADER_BYTES + ranges * RANGE_BYTES + line;
    let lengths =
        ParameterError::Length { block: length as u64, ranges: ranges as u64, command_line: line as u64 };
    if ranges > MAX_RANGES || line > MAX_COMMAND_LINE {
        return Err(lengths);
    }
    let out = out.get_mut(..length).ok_or(lengths)?;
    let mut predecessor = [0; 32];
    let name = &parameters.predecessor.as_bytes()[..parameters.predecessor.len().min(31)];
    predecessor[..name.len()].copy_from_slice(name);
    let header = Header {
        magic: MAGIC,
        length: length as u32,
        ranges: ranges as u32,
        digest: 0,
        update: parameters.update,
        handover: parameters.handover.unwrap_or(0),
        rsdp: parameters.rsdp,
        bundle: parameters.bundle.map_or(0, |(address, _)| address),
        bundle_bytes: parameters.bundle.map_or(0, |(_, bytes)| bytes),
        next_image: parameters.next_image as u32,
        command_line_bytes: line as u32,
        left_at: parameters.left_at,
        predecessor,
    };
    let (head, tail) = out.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(header.as_bytes());
    let (map, text) = tail.split_at_mut(ranges * RANGE_BYTES);
    for (place, range) in map.chunks_exact_mut(RANGE_BYTES).zip(&parameters.memory) {
        let range = Range { start: range.start, bytes: range.bytes, usable: u64::from(range.usable) };
        place.copy_from_slice(range.as_bytes());
    }
    text.copy_from_slice(parameters.command_line.as_bytes());
    Ok(())
}

/// Completes a block of [`write()`] with what is known only at the very end. Allocates nothing and cannot fail; a block
/// that is none stays as it is, and the successor refuses it.
pub fn seal(block: &mut [u8], handover: u64, left_at: u64) {
    let Ok((mut header, _)) = Header::read_from_prefix(block) else { return };
    header.handover = handover;
    header.left_at = left_at;
    let Some(body) = block.get(HEADER_BYTES..header.length as usize) else { return };
    header.digest = digest(&header, body);
    block[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{S0, S1};
    use alloc::vec;

    fn sample() -> BootParameters {
        BootParameters {
            update: 1,
            handover: Some(0x7000_0000),
            rsdp: 0xf_5230,
            bundle: Some((S1.bundle().start, 0x1234)),
            next_image: 1,
            left_at: 987_654_321,
            predecessor: "0.1.0-a".to_string(),
            memory: vec![
                MemoryRange { start: 0x1000, bytes: 0x9_e000, usable: true },
                MemoryRange { start: 0xf_0000, bytes: 0x1_0000, usable: false },
            ],
            command_line: "width=48 no-poison".to_string(),
        }
    }

    fn sealed(parameters: &BootParameters) -> Vec<u8> {
        let mut block = vec![0; PARAMETER_BYTES as usize];
        write(parameters, &mut block).unwrap();
        seal(&mut block, parameters.handover.unwrap_or(0), parameters.left_at);
        block
    }

    /// Seals again after a field was spoilt, so that only the check of that field can refuse.
    fn spoilt(at: usize, bytes: &[u8]) -> Result<BootParameters, ParameterError> {
        let mut block = sealed(&sample());
        block[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut block, 1, 1);
        read(&block, S1)
    }

    #[test]
    fn what_was_written_is_read_back() {
        assert_eq!(read(&sealed(&sample()), S1), Ok(sample()));
        let bare = BootParameters { handover: None, bundle: None, memory: vec![], ..sample() };
        assert_eq!(read(&sealed(&bare), S1), Ok(bare));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let block = sealed(&sample());
        let length = HEADER_BYTES + 2 * RANGE_BYTES + sample().command_line.len();
        for bit in 0..length * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped, S1).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_block_that_was_never_sealed_is_refused() {
        let mut block = vec![0; PARAMETER_BYTES as usize];
        write(&sample(), &mut block).unwrap();
        assert!(matches!(read(&block, S1), Err(ParameterError::Digest { found: 0, .. })));
    }

    #[test]
    fn a_bundle_outside_the_own_mailbox_is_refused() {
        let block = sealed(&sample());
        let (address, bytes) = sample().bundle.unwrap();
        assert_eq!(read(&block, S0), Err(ParameterError::Bundle { address, bytes }));
        let long = S1.bundle().bytes() + 1;
        assert!(matches!(spoilt(56, &long.to_le_bytes()), Err(ParameterError::Bundle { .. })));
        assert!(matches!(spoilt(48, &0u64.to_le_bytes()), Err(ParameterError::Bundle { .. })));
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        for (at, value) in [(8, 0u32), (8, u32::MAX), (12, 3), (12, u32::MAX), (68, 0), (68, u32::MAX)] {
            let result = spoilt(at, &value.to_le_bytes());
            assert!(matches!(result, Err(ParameterError::Length { .. })), "{at}: {value:#x}: {result:?}");
        }
        assert!(matches!(read(&[0; 20], S1), Err(ParameterError::Length { .. })));
    }

    #[test]
    fn update_zero_a_range_of_no_kind_and_broken_text_are_refused() {
        assert_eq!(spoilt(24, &0u64.to_le_bytes()), Err(ParameterError::Update));
        assert_eq!(
            spoilt(112 + 16, &2u64.to_le_bytes()),
            Err(ParameterError::RangeKind { start: 0x1000, kind: 2 })
        );
        assert_eq!(spoilt(80, &[0xff]), Err(ParameterError::Text { what: "release string" }));
    }

    #[test]
    fn a_command_line_that_is_too_long_is_not_written() {
        let long = BootParameters { command_line: "x".repeat(MAX_COMMAND_LINE + 1), ..sample() };
        let mut block = vec![0; PARAMETER_BYTES as usize];
        assert!(matches!(write(&long, &mut block), Err(ParameterError::Length { .. })));
        assert!(matches!(write(&sample(), &mut block[..100]), Err(ParameterError::Length { .. })));
    }
}
