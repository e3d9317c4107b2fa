//! Containers of memory as kernels, makedumpfile and QEMU write them, put together byte by byte.

/// A segment of an ELF core: virtual and physical address, what the file holds, bytes in memory.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) kind: u32,
    pub(crate) virt: u64,
    pub(crate) phys: u64,
    pub(crate) content: &'a [u8],
    pub(crate) in_memory: u64,
}

/// Memory at `phys`, in the kernel's direct map.
pub(crate) fn load(phys: u64, content: &[u8]) -> Segment<'_> {
    let virt = phys.wrapping_add(0xffff_8880_0000_0000);
    Segment { kind: 1, virt, phys, content, in_memory: content.len() as u64 }
}

/// A note.
pub(crate) fn note(content: &[u8]) -> Segment<'_> {
    Segment { kind: 4, virt: 0, phys: 0, content, in_memory: 0 }
}

/// How an ELF file is made.
#[derive(Clone, Copy)]
pub(crate) struct Elf {
    pub(crate) wide: bool,
    pub(crate) big: bool,
    pub(crate) kind: u16,
    pub(crate) machine: u16,
    /// The number of program headers stands in section 0, as when there are 65535 or more.
    pub(crate) many: bool,
}

impl Default for Elf {
    fn default() -> Self {
        Self { wide: true, big: false, kind: 4, machine: 62, many: false }
    }
}

struct Out {
    bytes: Vec<u8>,
    big: bool,
    wide: bool,
}

impl Out {
    fn put(&mut self, value: u64, bytes: usize) {
        let little = value.to_le_bytes();
        let mut word = little[..bytes].to_vec();
        if self.big {
            word.reverse();
        }
        self.bytes.extend(word);
    }
    fn half(&mut self, value: u16) {
        self.put(value.into(), 2);
    }
    fn word(&mut self, value: u32) {
        self.put(value.into(), 4);
    }
    fn address(&mut self, value: u64) {
        self.put(value, if self.wide { 8 } else { 4 });
    }
}

impl Elf {
    pub(crate) fn build(self, segments: &[Segment<'_>]) -> Vec<u8> {
        let class = if self.wide { 2 } else { 1 };
        let mut out = Out { bytes: Vec::new(), big: self.big, wide: self.wide };
        out.bytes.extend([0x7f, b'E', b'L', b'F', class, if self.big { 2 } else { 1 }, 1, 0]);
        out.bytes.extend([0; 8]);
        let (header, entry, section) = if self.wide { (64, 56, 64) } else { (52, 32, 40) };
        let sections = if self.many { section } else { 0 };
        let headers = header + sections;
        out.half(self.kind);
        out.half(self.machine);
        out.word(1);
        [0, headers, if self.many { header } else { 0 }].into_iter().for_each(|value| out.address(value));
        out.word(0);
        let count = if self.many { 0xffff } else { segments.len() as u16 };
        [header as u16, entry as u16, count, section as u16, u16::from(self.many), 0]
            .into_iter()
            .for_each(|value| out.half(value));
        if self.many {
            // Section 0: sh_info is the number of program headers.
            out.word(0);
            out.word(0);
            (0..4).for_each(|_| out.address(0));
            out.word(0);
            out.word(segments.len() as u32);
            (0..2).for_each(|_| out.address(0));
        }
        let mut offset = headers + entry * segments.len() as u64;
        for segment in segments {
            self.segment(&mut out, segment, offset);
            offset += segment.content.len() as u64;
        }
        segments.iter().for_each(|segment| out.bytes.extend_from_slice(segment.content));
        out.bytes
    }

    fn segment(self, out: &mut Out, segment: &Segment<'_>, offset: u64) {
        let Segment { kind, virt, phys, content, in_memory } = *segment;
        out.word(kind);
        if self.wide {
            out.word(7);
        }
        for value in [offset, virt, phys, content.len() as u64, in_memory] {
            out.address(value);
        }
        if !self.wide {
            out.word(7);
        }
        out.address(0);
    }
}

/// How a page of a compressed dump is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    Not,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

/// A page of a compressed dump: its number, how it is packed, its content.
pub(crate) type Page = (u64, Option<(Packed, Vec<u8>)>);

/// A compressed dump.
pub(crate) struct Dump {
    pub(crate) version: u32,
    pub(crate) status: u32,
    /// Pages by number; what is not in the dump is `None`.
    pub(crate) pages: Vec<Page>,
    pub(crate) split: bool,
}

/// Pages of maps: bits for 32768 pages each.
const MAP_BLOCKS: u64 = 1;

impl Dump {
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4096 * (3 + 2 * MAP_BLOCKS as usize)];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"KDUMP   ");
        put(8, &self.version.to_le_bytes());
        put(12, b"Linux");
        let last = self.pages.last().map_or(0, |(number, _)| number + 1);
        // Two blocks of second header, so that its length counts.
        let words =
            [self.status, 4096, 2, 2 * MAP_BLOCKS as u32, if self.version < 6 { last as u32 } else { 0 }];
        words.iter().enumerate().for_each(|(n, word)| put(424 + 4 * n, &word.to_le_bytes()));
        put(4096 + 12, &u32::from(self.split).to_le_bytes());
        put(4096 + 96, &last.to_le_bytes());
        let maps = 3 * 4096;
        for (number, page) in &self.pages {
            let (at, bit) = (*number as usize / 8, 1 << (number % 8));
            bytes[maps + at] |= bit;
            if page.is_some() {
                bytes[maps + 4096 * MAP_BLOCKS as usize + at] |= bit;
            }
        }
        let held: Vec<_> = self.pages.iter().filter_map(|(_, page)| page.as_ref()).collect();
        let mut at = bytes.len() as u64 + 24 * held.len() as u64;
        let mut data: Vec<u8> = Vec::new();
        for (packed, content) in held {
            let (flag, content) = match packed {
                Packed::Not => (0, content.clone()),
                Packed::Zlib => (1, miniz_oxide::deflate::compress_to_vec_zlib(content, 6)),
                Packed::Lzo => (2, lzokay_native::compress(content).expect("memory for it")),
                Packed::Snappy => (4, snap::raw::Encoder::new().compress_vec(content).expect("a page")),
                Packed::Zstd => (0x20, zstd(content)),
            };
            bytes.extend(at.to_le_bytes());
            bytes.extend((content.len() as u32).to_le_bytes());
            bytes.extend((flag as u32).to_le_bytes());
            bytes.extend([0; 8]);
            at += content.len() as u64;
            data.extend(content);
        }
        bytes.extend(data);
        bytes
    }
}

/// Packs with zstd: one frame.
pub(crate) fn zstd(content: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Flattens a file as makedumpfile does, in pieces of `piece` bytes, the last one first.
pub(crate) fn flatten(file: &[u8], piece: usize) -> Vec<u8> {
    let mut bytes = b"makedumpfile\0\0\0\0".to_vec();
    bytes.extend([1_u64, 1].iter().flat_map(|word| word.to_be_bytes()));
    bytes.resize(4096, 0);
    for (number, content) in file.chunks(piece).enumerate().collect::<Vec<_>>().into_iter().rev() {
        bytes.extend(((number * piece) as u64).to_be_bytes());
        bytes.extend((content.len() as u64).to_be_bytes());
        bytes.extend_from_slice(content);
    }
    bytes.extend([0xff; 16]);
    bytes
}

/// A page file with these pages, in this order.
pub(crate) fn page_file(pages: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"VTDPAGE1".to_vec();
    bytes.extend((pages.len() as u64).to_le_bytes());
    pages.iter().for_each(|(at, _)| bytes.extend(at.to_le_bytes()));
    pages.iter().for_each(|(_, content)| bytes.extend_from_slice(content));
    bytes
}
