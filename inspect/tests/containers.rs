//! Every container that memory comes in, also odd, torn and hostile ones: what is there is read, what is missing is missing,
//! and what is refused is refused by name with what to do about it.

mod common;

use common::containers::{Dump, Elf, Packed, Segment, flatten, load, note, page_file, zstd};
use holdover_inspect::image::{self, Form, Memory, OpenError, Options};
use spec::PhysAddr;

const PAGE: usize = 4096;

fn open(bytes: &[u8]) -> Result<Memory, OpenError> {
    image::from_bytes(bytes.to_vec(), Options::default())
}

fn opened(bytes: &[u8]) -> Memory {
    open(bytes).unwrap_or_else(|error| panic!("{error}"))
}

/// Why it is refused.
fn refused(bytes: &[u8]) -> String {
    open(bytes).map(|memory| memory.form()).expect_err("refused").to_string()
}

/// One page of `fill`, with its number in front.
fn page(fill: u8) -> Vec<u8> {
    let mut page = vec![fill; PAGE];
    // Not all alike, so that packing has something to do.
    page.iter_mut().step_by(7).enumerate().for_each(|(n, byte)| *byte = n as u8);
    page[0] = fill;
    page
}

fn bytes(memory: &Memory, at: u64, count: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; count];
    memory.read_bytes(PhysAddr::new(at), &mut out).ok().map(|()| out)
}

fn pages(range: std::ops::Range<u8>) -> Vec<u8> {
    range.flat_map(page).collect()
}

#[test]
fn a_crash_dump_with_text_mapped_twice_notes_and_high_memory_is_read_by_physical_address() {
    let (low, all, high) = (pages(1..4), pages(10..26), pages(30..33));
    let text = Segment { virt: 0xffff_ffff_8100_0000, ..load(0x10_4000, &all[4 * PAGE..8 * PAGE]) };
    let info = b"\x0b\0\0\0\x14\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=7.3.4\nPAGESIZE=4096\n";
    // Out of order, as no tool writes them and nothing forbids.
    let core = Elf::default().build(&[
        note(info),
        text,
        load(1 << 32, &high),
        load(0x1000, &low),
        load(0x10_0000, &all),
    ]);
    for memory in [opened(&core), opened(&zstd(&core)), opened(&flatten(&core, 5000))] {
        assert_eq!(memory.form(), Form::Elf);
        assert_eq!(
            (bytes(&memory, 0x1000, low.len()), bytes(&memory, 1 << 32, high.len())),
            (Some(low.clone()), Some(high.clone()))
        );
        assert_eq!(bytes(&memory, 0x10_0000, all.len()), Some(all.clone()));
        assert_eq!(memory.bytes(), (low.len() + all.len() + high.len()) as u64, "no byte counts twice");
        assert!(bytes(&memory, 0x4000, 1).is_none() && bytes(&memory, 0xf_fff8, 16).is_none());
        assert!(memory.notes().is_empty(), "{:?}", memory.notes());
    }
}

#[test]
fn segments_of_a_running_kernel_without_a_physical_address_are_passed_over() {
    let ram = pages(1..3);
    let nowhere = |virt| Segment { virt, phys: u64::MAX, in_memory: 1 << 45, ..load(0, &ram) };
    let text = Segment { virt: 0xffff_ffff_8100_0000, ..load(0x5000, &ram[..PAGE]) };
    let vmalloc = nowhere(0xffff_c900_0000_0000);
    let core = Elf::default().build(&[vmalloc, text, nowhere(0xffff_ea00_0000_0000), load(0x5000, &ram)]);
    let memory = opened(&core);
    assert_eq!((memory.bytes(), bytes(&memory, 0x5000, ram.len())), (ram.len() as u64, Some(ram.clone())));
    assert!(memory.notes().is_empty(), "what is no memory is not left out of it: {:?}", memory.notes());
    assert!(
        refused(&Elf::default().build(&[vmalloc])).contains("no segment holds memory at a physical address")
    );
}

#[test]
fn more_segments_than_the_header_can_count_are_all_read() {
    let ram: Vec<Vec<u8>> = (0..70_000_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let segments: Vec<_> = ram.iter().zip(1..).map(|(content, n)| load(0x1000 * n, content)).collect();
    let memory = opened(&Elf { many: true, ..Elf::default() }.build(&segments));
    assert_eq!(memory.runs().len(), 70_000);
    assert_eq!(bytes(&memory, 0x1000 * 70_000, 4), Some(69_999_u32.to_le_bytes().to_vec()));
}

#[test]
fn a_core_of_32_bits_is_read_and_others_are_refused_by_name() {
    let ram = pages(1..3);
    let build = |elf: Elf| elf.build(&[note(b"1234"), load(0x10_0000, &ram)]);
    let small = opened(&build(Elf { wide: false, machine: 3, ..Elf::default() }));
    assert_eq!((small.form(), bytes(&small, 0x10_0000, ram.len())), (Form::Elf, Some(ram.clone())));
    for (elf, reason) in [
        (Elf { big: true, machine: 21, ..Elf::default() }, "big-endian"),
        (Elf { big: true, wide: false, ..Elf::default() }, "big-endian"),
        (Elf { kind: 2, ..Elf::default() }, "a program or library: a core of memory is needed"),
        (Elf { kind: 3, ..Elf::default() }, "a program or library"),
    ] {
        let said = refused(&build(elf));
        assert!(said.contains(reason), "{said}");
    }
    let other = opened(&build(Elf { machine: 183, ..Elf::default() }));
    assert!(other.notes()[0].contains("e_machine 183"), "{:?}", other.notes());
    let process = Elf::default().build(&[load(0, &ram), load(0, &ram[..PAGE]), load(0, &ram)]);
    assert!(refused(&process).contains("of a process"));
    let lowest = opened(&Elf::default().build(&[load(0, &ram)]));
    assert_eq!(bytes(&lowest, 0, ram.len()), Some(ram));
}

#[test]
fn a_segment_holds_no_more_than_it_says_and_no_more_than_the_file() {
    let ram = pages(1..4);
    let less = Segment { in_memory: 0x2000, ..load(0x5000, &ram) };
    let more = Segment { in_memory: 0x8000, ..load(0x1_0000, &ram) };
    let core = Elf::default().build(&[less, more]);
    let memory = opened(&core);
    assert!(bytes(&memory, 0x6fff, 1).is_some() && bytes(&memory, 0x7000, 1).is_none());
    assert!(bytes(&memory, 0x1_2fff, 1).is_some() && bytes(&memory, 0x1_3000, 1).is_none());
    assert_eq!(memory.notes(), ["20480 bytes of memory were left out of the dump"]);
    for cut in [1, PAGE, 2 * PAGE + 5] {
        let memory = opened(&core[..core.len() - cut]);
        let end = 0x1_3000 - cut as u64;
        assert!(bytes(&memory, end - 1, 1).is_some() && bytes(&memory, end, 1).is_none(), "{cut}");
        assert!(memory.notes().iter().any(|note| note.contains(&format!("ends {cut} bytes early"))), "{cut}");
    }
    for cut in 0..300 {
        // Within its headers or its first bytes: an answer of some kind, and no panic.
        let _ = open(&core[..cut]);
    }
}

/// Two pages that exist and are in the dump, one that was left out, a hole, and more behind.
fn dump(packed: Packed, version: u32) -> (Dump, Vec<(u64, Vec<u8>)>) {
    let held: Vec<(u64, Vec<u8>)> = [1, 2, 9, 100, 20_000].map(|n| (n, page(n as u8))).into();
    let mut pages: Vec<_> = held.iter().map(|(n, page)| (*n, Some((packed, page.clone())))).collect();
    pages.insert(2, (3, None));
    // The packing of a page is its own; what does not get smaller stays as it is.
    pages[1].1.as_mut().expect("a page").0 = Packed::Not;
    (Dump { version, status: 1, pages, split: false }, held)
}

#[test]
fn a_compressed_dump_is_read_page_by_page_and_what_it_leaves_out_is_missing() {
    for (packed, version) in [
        (Packed::Zlib, 6),
        (Packed::Zlib, 1),
        (Packed::Lzo, 6),
        (Packed::Snappy, 6),
        (Packed::Zstd, 6),
        (Packed::Not, 6),
    ] {
        let (dump, held) = dump(packed, version);
        let file = dump.build();
        for memory in [opened(&file), opened(&flatten(&file, 777)), opened(&zstd(&flatten(&file, 100_000)))] {
            assert_eq!(memory.form(), Form::Compressed);
            for (number, content) in &held {
                assert_eq!(bytes(&memory, number << 12, PAGE).as_ref(), Some(content), "page {number}");
            }
            let both = [held[0].1.as_slice(), &held[1].1].concat();
            assert_eq!(bytes(&memory, 0x1800, PAGE), Some(both[0x800..0x1800].to_vec()), "across two pages");
            for missing in [0, 0x3000, 0x8000, 0xa000, 101 << 12] {
                assert!(!memory.holds_frame(PhysAddr::new(missing)), "{missing:#x}");
            }
            assert_eq!(memory.notes(), ["4096 bytes of memory were left out of the dump"]);
        }
    }
}

#[test]
fn a_torn_compressed_dump_keeps_what_it_has() {
    let (dump, held) = dump(Packed::Not, 6);
    let file = dump.build();
    for cut in [1, 2 * PAGE + 1] {
        let lost = cut.div_ceil(PAGE);
        let memory = opened(&file[..file.len() - cut]);
        let here = |(n, content): &(u64, Vec<u8>)| bytes(&memory, n << 12, PAGE).as_ref() == Some(content);
        assert_eq!(held.iter().filter(|page| here(page)).count(), held.len() - lost);
        assert_eq!(memory.bytes(), ((held.len() - lost) * PAGE) as u64);
        let note = format!("the file ends early: {} bytes of memory are missing", lost * PAGE);
        assert!(memory.notes().contains(&note), "{:?}", memory.notes());
    }
    for cut in [0, 8, 20, 430, 4100, 4 * PAGE, 5 * PAGE, 5 * PAGE + 24] {
        assert!(open(&file[..cut]).is_err(), "nothing of memory is in the first {cut} bytes");
    }
    // A page that does not unpack is missing, not zero.
    for packed in [Packed::Zlib, Packed::Lzo, Packed::Snappy, Packed::Zstd] {
        let (dump, held) = self::dump(packed, 6);
        let mut file = dump.build();
        let length = file.len();
        file[length - 8..].fill(0xff);
        let memory = opened(&file);
        assert!(bytes(&memory, held[4].0 << 12, 1).is_none() && bytes(&memory, held[3].0 << 12, 1).is_some());
    }
}

#[test]
fn compressed_dumps_of_other_kinds_are_refused_by_name() {
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = dump(Packed::Zlib, 6).0.build();
        change(&mut file);
        refused(&file)
    };
    let word = |at: usize, value: u32| {
        move |file: &mut Vec<u8>| file[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    for (said, reason) in [
        (changed(&word(4096 + 12, 1)), "makedumpfile --reassemble"),
        (changed(&word(428, 65536)), "65536 bytes, not 4096"),
        (
            changed(&|file| {
                word(428, 0)(file);
                word(416, 4096)(file)
            }),
            "a kernel of 32 bits",
        ),
        (changed(&word(8, 6_u32.swap_bytes())), "big-endian"),
        (changed(&word(432, 0)), "0 blocks"),
        (changed(&word(432, u32::MAX)), "4294967295 blocks"),
        (changed(&word(436, u32::MAX)), "it ends before its first page"),
        (changed(&|file| file[4 * PAGE..5 * PAGE].fill(0)), "it holds no page of memory"),
    ] {
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let incomplete = {
        let mut file = dump(Packed::Zlib, 6).0.build();
        word(424, 9)(&mut file);
        opened(&file)
    };
    assert!(incomplete.notes()[0].contains("could not finish"), "{:?}", incomplete.notes());
}

#[test]
fn every_form_that_is_known_and_not_read_says_what_to_do() {
    for (first, reason) in [
        (&b"\x1f\x8b\x08\0 and more of that"[..], "this is gzip: unpack it first"),
        (b"\xfd7zXZ\0\0 and more of that", "this is xz: unpack it first"),
        (b"BZh91AY and more of that", "this is bzip2: unpack it first"),
        (b"\x04\x22\x4d\x18 and more of that", "this is lz4: unpack it first"),
        (b"PAGEDU64 and more of that", "Windows's crash dump: an ELF core is needed"),
        (b"DISKDUMP and more of that", "diskdump: an ELF core is needed"),
        (b"EMiL\x01\0\0\0 and more of that", "LiME: write it with format=raw"),
        (b"QEVM\0\0\0\x03 and more of that", "--qmp"),
        (b"no image at all", "for raw memory say where it starts, with --base"),
        (b"short", "for raw memory"),
        (b"", "the file is empty"),
        (b"makedumpfile\0\0\0\0", "unknown type or version"),
    ] {
        let said = refused(first);
        assert!(said.contains(reason), "{said}");
    }
    assert!(refused(&flatten(b"no image at all", 4)).contains("for raw memory"));
}

#[test]
fn raw_memory_starts_anywhere_and_may_have_a_hole() {
    let ram = pages(1..4);
    let raw =
        |base, hole| image::from_bytes(ram.clone(), Options { base: Some(base), hole, ..Options::default() });
    let high = raw(0x3_8000_0000, None).unwrap();
    assert_eq!((high.form(), bytes(&high, 0x3_8000_0000, ram.len())), (Form::Raw, Some(ram.clone())));
    assert!(bytes(&high, 0, 1).is_none() && bytes(&high, 0x3_7fff_ffff, 1).is_none());
    // As QEMU's memory lies in its file: what is above 4 GiB follows what is below the hole.
    let holed = raw(0, Some((0x1000, 1 << 32))).unwrap();
    assert_eq!(bytes(&holed, 0, PAGE), Some(page(1)));
    assert_eq!(bytes(&holed, 1 << 32, 2 * PAGE), Some(pages(2..4)));
    assert!(bytes(&holed, 0x1000, 1).is_none() && bytes(&holed, (1 << 32) - 1, 2).is_none());
    for (base, hole) in
        [(0, (0, 0x1000)), (0, (0x3000, 0x9000)), (0, (0x1000, 0x1000)), (0x8000, (0x1000, 0x9000))]
    {
        assert!(matches!(raw(base, Some(hole)), Err(OpenError::Hole { .. })), "{hole:x?}");
    }
    assert!(matches!(raw(0, Some((0x1000, u64::MAX - 0x100))), Err(OpenError::Base { .. })));
    for known in [Elf::default().build(&[load(0, &ram)]), page_file(&[]), dump(Packed::Zlib, 6).0.build()] {
        let said = image::from_bytes(known, Options { base: Some(0), ..Options::default() }).unwrap_err();
        assert!(said.to_string().contains("leave --base out"), "{said}");
    }
}

#[test]
fn pages_of_a_page_file_come_in_any_order_and_no_two_may_contradict_each_other() {
    let file = [(0x5000, page(5)), (0x1_0000_0000, page(9)), (0x1000, page(1)), (0x4000, page(4))];
    let memory = opened(&page_file(&file));
    file.iter()
        .for_each(|(at, content)| assert_eq!(bytes(&memory, *at, PAGE).as_ref(), Some(content), "{at:#x}"));
    assert_eq!(bytes(&memory, 0x4800, PAGE), Some([&page(4)[0x800..], &page(5)[..0x800]].concat()));
    let again = [file.to_vec(), vec![file[2].clone()]].concat();
    let memory = opened(&page_file(&again));
    assert_eq!(memory.notes(), ["1 pages are held more than once, with the same content"]);
    assert_eq!(memory.bytes(), 4 * PAGE as u64);
    let other = [file.to_vec(), vec![(0x1000, page(2))]].concat();
    assert!(refused(&page_file(&other)).contains("the page at 0x1000 twice, with different content"));
    assert!(refused(&page_file(&[(0x5008, page(5))])).contains("0x5008: not aligned"));
    assert!(refused(&page_file(&[])).contains("it holds no page"));
    let whole = page_file(&file);
    for cut in [12, 15, 16, 40, 48, 5000, whole.len() - 1] {
        let said = refused(&whole[..cut]);
        assert!(said.contains("page file"), "{cut}: {said}");
    }
    assert!(refused(&[b"VTDPAGE1".as_slice(), &u64::MAX.to_le_bytes()].concat()).contains("cannot hold"));
    let trailing = opened(&[whole.as_slice(), b"more"].concat());
    assert_eq!(trailing.notes(), ["4 bytes follow the last page"]);
    let last = opened(&page_file(&[(u64::MAX - 0xfff, page(7))]));
    assert!(last.bytes() >= PAGE as u64 - 1, "the last page of the address space");
}

/// A frame of blocks that each repeat one byte `length` times, with this window descriptor; it says how long it is.
fn bomb(window: u8, blocks: u32, length: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x80, window];
    frame.extend((blocks * length).to_le_bytes());
    for block in 1..=blocks {
        let header = u32::from(block == blocks) | 1 << 1 | length << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

#[test]
fn packed_files_may_have_several_frames_and_nothing_else() {
    let file = page_file(&[(0x1000, page(1)), (0x2000, page(2))]);
    let (first, second) = file.split_at(5000);
    let skippable = [&0x184d_2a53_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"12345"].concat();
    let two = [zstd(first), zstd(second)].concat();
    let between =
        [skippable.clone(), zstd(first), skippable.clone(), zstd(second), skippable.clone()].concat();
    for packed in [zstd(&file), two.clone(), between.clone()] {
        assert_eq!(bytes(&opened(&packed), 0x1000, 2 * PAGE), Some(pages(1..3)));
    }
    for cut in 1..two.len() {
        // Only where the first frame ends is there something whole: half a page file.
        let said = refused(&two[..two.len() - cut]);
        assert!(
            said.contains("cannot be unpacked") || said.contains("page file") || cut + 4 >= two.len(),
            "{cut}: {said}"
        );
    }
    assert!(refused(&between[..between.len() - 1]).contains("cannot be unpacked"));
    let trailing = [two.as_slice(), b"more than that"].concat();
    assert!(refused(&trailing).contains("something that is no frame follows the last one"));
    let mut wrong = zstd(&file);
    let checksum = wrong.len() - 1;
    wrong[checksum] ^= 1;
    assert!(refused(&wrong).contains("checksum"), "what was packed is not what comes out");
}

#[test]
fn what_unpacks_to_too_much_is_refused_before_it_fills_memory() {
    let limited = |packed: Vec<u8>| {
        image::from_bytes(packed, Options { unpacked: Some(1 << 20), ..Options::default() })
            .unwrap_err()
            .to_string()
    };
    assert!(
        limited(bomb(0x58, 1000, 100_000))
            .contains("unpacks to more than 1 MiB: unpack it with zstd -d first")
    );
    assert!(limited(bomb(0x98, 1000, 100_000)).contains("too much memory"), "it looks back at 512 MiB");
    assert!(limited(bomb(0xff, 1000, 100_000)).contains("cannot be unpacked"), "it looks back at terabytes");
    // Of one frame of 8 TiB, which says so.
    let says = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &(8_u64 << 40).to_le_bytes(), &[1, 0, 0]].concat();
    assert!(limited(says).contains("too much memory"));
    // What a frame says counts: one that holds less is damaged.
    let mut lies = bomb(0x58, 1000, 100_000);
    lies[6] ^= 1;
    let lies = image::from_bytes(lies, Options { base: Some(0), ..Options::default() }).unwrap_err();
    assert!(lies.to_string().contains("a frame says 100000001 bytes and holds 100000000"), "{lies}");
    // A gigabyte of nothing is little to keep, and is read.
    let much = bomb(0x58, 10_000, 100_000);
    let memory = image::from_bytes(much, Options { base: Some(0), ..Options::default() }).unwrap();
    assert_eq!((memory.bytes(), bytes(&memory, 999_999_999, 1)), (1_000_000_000, Some(vec![0])));
}
