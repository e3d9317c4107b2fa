//! The KHO root and the radix key against a real handover, against each other, and against damage.

use holdover_spec::fdt::Writer;
use holdover_spec::kho::radix::{self, Key};
use holdover_spec::kho::{Blob, KhoError, MAX_BLOBS, Root, ShortText, write_root};
use holdover_spec::{Extent, Frame, PhysAddr};
use proptest::prelude::*;

/// The KHO root of a Linux 7.3.4 kernel that was booted by kexec with one preserved memfd.
const KHO_ROOT: &[u8] = include_bytes!("data/kho-root.fdt");

/// A root with these properties, whatever they are, and one node with those.
fn root(properties: &[(&str, &[u8])], nodes: &[(&str, &[(&str, u64)])]) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let mut writer = Writer::new(&mut buffer).unwrap();
    writer.begin_node("").unwrap();
    for (name, value) in properties {
        writer.property(name, value).unwrap();
    }
    for (node, properties) in nodes {
        writer.begin_node(node).unwrap();
        for &(name, value) in *properties {
            writer.property_u64(name, value).unwrap();
        }
        writer.end().unwrap();
    }
    writer.end().unwrap();
    writer.finish().unwrap().to_vec()
}

fn fault(properties: &[(&str, &[u8])], nodes: &[(&str, &[(&str, u64)])]) -> KhoError {
    Root::parse(&root(properties, nodes)).unwrap_err()
}

const MAP: [u8; 8] = 0x1000_u64.to_ne_bytes();
const GOOD: &[(&str, &[u8])] = &[("compatible", b"kho-v4\0"), ("preserved-memory-map", &MAP)];

#[test]
fn the_root_of_a_real_handover_names_its_blobs() {
    let root = Root::parse(KHO_ROOT).unwrap();
    assert_eq!(root.memory_map(), PhysAddr::new(0x77_d000));
    let blobs: Vec<_> = root.blobs().map(|blob| (blob.name, blob.data.get(), blob.bytes)).collect();
    assert_eq!(blobs, [("LUO", 0xc5_4000, 0x20), ("kexec-metadata", 0x78_4000, 0x49)]);
    assert_eq!(root.blob("kexec-metadata").map(|blob| blob.bytes), Some(0x49));
    assert_eq!(root.blob("holdover"), None);
}

#[test]
fn a_root_that_is_written_reads_back() {
    let blobs = [
        Blob { name: "holdover", data: PhysAddr::new(0x1234_5000), bytes: 0x2_0000 },
        Blob { name: "LUO", data: PhysAddr::new(0x8000), bytes: 32 },
    ];
    let mut page = [0xff; 4096];
    write_root(&mut page, PhysAddr::new(0x7000), &blobs).unwrap();
    let root = Root::parse(&page).unwrap();
    assert_eq!(root.memory_map(), PhysAddr::new(0x7000));
    assert!(root.blobs().eq(blobs));
}

#[test]
fn a_root_of_another_version_is_refused_by_name() {
    let found = |compatible: &[u8]| match fault(&[("compatible", compatible)], &[]) {
        KhoError::Compatible { found } => found.as_str().to_owned(),
        other => panic!("{other}"),
    };
    assert_eq!(found(b"kho-v3\0"), "kho-v3");
    assert_eq!(found(b"kho-v4"), "", "no NUL at the end");
    assert_eq!(found(b"kho-v4\0kho-v3\0"), "", "two strings");
    assert_eq!(found(format!("{}\u{e9}\0", "x".repeat(31)).as_bytes()), "x".repeat(31), "cut at a character");
}

#[test]
fn a_root_without_a_usable_memory_map_is_refused() {
    let with = |map: u64| fault(&[GOOD[0], ("preserved-memory-map", &map.to_ne_bytes())], &[]);
    assert_eq!(with(0), KhoError::MemoryMap { address: PhysAddr::new(0) });
    assert_eq!(with(0x1008), KhoError::MemoryMap { address: PhysAddr::new(0x1008) });
    let missing = KhoError::Property { node: ShortText::new(""), property: "preserved-memory-map" };
    assert_eq!(fault(&GOOD[..1], &[]), missing);
    assert_eq!(fault(&[GOOD[0], ("preserved-memory-map", &MAP[..4])], &[]), missing);
}

#[test]
fn a_blob_that_cannot_be_is_refused_with_its_name() {
    let node = ShortText::new("a");
    let with = |data: u64, bytes: u64| {
        (fault(GOOD, &[("a", &[("preserved-data", data), ("blob-size", bytes)])]), data, bytes)
    };
    for (error, data, bytes) in [with(0, 8), with(0x1000, 0), with(u64::MAX, 2)] {
        assert_eq!(error, KhoError::Blob { node, data: PhysAddr::new(data), bytes });
    }
    assert_eq!(
        fault(GOOD, &[("a", &[("preserved-data", 8)])]),
        KhoError::Property { node, property: "blob-size" }
    );
    let good: &[(&str, u64)] = &[("preserved-data", 8), ("blob-size", 8)];
    assert_eq!(fault(GOOD, &[("a", good), ("b", good), ("a", good)]), KhoError::Twice { node });
}

#[test]
fn more_blobs_than_the_limit_are_refused() {
    let names: Vec<String> = (0..=MAX_BLOBS).map(|i| format!("n{i}")).collect();
    let good: &[(&str, u64)] = &[("preserved-data", 8), ("blob-size", 8)];
    let nodes: Vec<(&str, &[(&str, u64)])> = names.iter().map(|name| (name.as_str(), good)).collect();
    assert_eq!(fault(GOOD, &nodes), KhoError::TooManyBlobs { limit: MAX_BLOBS });
    assert!(Root::parse(&root(GOOD, &nodes[..MAX_BLOBS])).is_ok());
}

#[test]
fn keys_are_those_of_the_kernel() {
    // 4 KiB at 0x77e000, 2 MiB at 0x4000_0000, and the largest block there can be.
    assert_eq!(radix::key(Frame::new(0x77e), 0), Some(1 << 52 | 0x77e));
    assert_eq!(radix::key(Frame::new(0x4_0000), 9), Some(1 << 43 | 0x200));
    assert_eq!(radix::key(Frame::new(0), 52), Some(1));
}

#[test]
fn what_is_no_block_has_no_key_and_what_is_no_key_has_no_block() {
    assert_eq!(radix::key(Frame::new(1), 1), None, "misaligned");
    assert_eq!(radix::key(Frame::new(1 << 52), 0), None, "beyond the address space");
    assert_eq!(radix::key(Frame::new(0), 53), None);
    assert_eq!(radix::decode(0), None);
    assert_eq!(radix::decode(1 << 53), None);
    assert_eq!(radix::decode(u64::MAX), None);
}

proptest! {
    #[test]
    fn a_key_decodes_to_its_block(frame in 0_u64..1 << 52, order in 0_u32..=52) {
        let frame = Frame::new(frame >> order << order);
        let key = radix::key(frame, order).unwrap();
        prop_assert_eq!(key, 1 << (52 - order) | frame.start().get().checked_shr(12 + order).unwrap_or(0));
        prop_assert_eq!(radix::decode(key), Some((frame, order)));
        prop_assert_eq!(radix::extent(key), Extent::new(frame, 1 << order));
    }

    #[test]
    fn a_number_below_the_limit_is_the_key_of_the_block_it_decodes_to(key in 1_u64..1 << 53) {
        let (frame, order) = radix::decode(key).unwrap();
        prop_assert_eq!(radix::key(frame, order), Some(key));
    }

    #[test]
    fn a_key_is_the_sum_of_its_parts_and_its_indices_are_its_fields(key in 0_u64..1 << 53) {
        let sum: u64 = (0..radix::LEVELS).map(|level| radix::part(radix::index(key, level), level)).sum();
        prop_assert_eq!(sum, key);
        let fields = Key::from_raw(key);
        let fields = [fields.level0(), fields.level1(), fields.level2(), fields.level3(), fields.level4(), fields.level5()];
        for (level, field) in (0..).zip(fields) {
            prop_assert_eq!(radix::index(key, level) as u64, field);
        }
    }

    #[test]
    fn a_run_is_cut_into_blocks_that_fit_and_cover_it(first in 0_u64..1 << 20, count in 1_u64..5000, limit in 0_u32..12) {
        let (mut at, end, mut blocks) = (first, first + count, 0);
        while at < end {
            let order = radix::largest_order(Frame::new(at), end - at, limit);
            prop_assert!(order <= limit && radix::key(Frame::new(at), order).is_some());
            at += 1 << order;
            blocks += 1;
        }
        prop_assert_eq!(at, end);
        // Never more than the whole blocks of the largest size and a staircase at either end.
        prop_assert!(blocks <= (count >> limit) + 2 * u64::from(limit) + 1);
    }
}
