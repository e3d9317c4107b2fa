//! A container that cannot be read is refused by name and address, whatever is wrong with it.

mod world;

use holdover_audit::{MAX_TABLE_FRAMES, Unreadable};
use spec::PhysAddr;
use spec::handover::{MAX_BYTES, kind};
use world::{BLOB, FDT, MAP, World};

#[test]
fn a_missing_tree_is_named_with_its_address() {
    let mut world = World::arrived();
    world.memory.remove(FDT);
    assert_eq!(world.unreadable(), Unreadable::Missing { part: "KHO tree", at: PhysAddr::new(FDT) });
}

#[test]
fn a_damaged_tree_is_refused() {
    for (byte, what) in [(0, "magic"), (4, "length"), (23, "version")] {
        let mut world = World::arrived();
        let mut tree = world.memory.bytes(FDT, 64);
        tree[byte] ^= 0x10;
        world.memory.write_bytes(FDT, &tree);
        let error = world.unreadable();
        assert!(matches!(error, Unreadable::Kho { .. } | Unreadable::FdtTooLong { .. }), "{what}: {error}");
    }
}

#[test]
fn a_tree_of_another_version_or_without_our_node_is_refused() {
    for (from, to) in [("kho-v4", "kho-v5"), ("holdover", "holdoveR")] {
        let mut world = World::arrived();
        let mut tree = world.memory.bytes(FDT, 512);
        let at = tree.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        tree[at..at + to.len()].copy_from_slice(to.as_bytes());
        world.memory.write_bytes(FDT, &tree);
        let error = world.unreadable();
        let expected =
            matches!((from, error), ("kho-v4", Unreadable::Kho { .. }) | (_, Unreadable::NoRecords { .. }));
        assert!(expected, "{error}");
    }
}

#[test]
fn the_version_is_looked_at_before_anything_that_depends_on_it() {
    // A newer format may have another length, other counts and another digest: none of them is the first complaint.
    let mut world = World::arrived();
    world.patch(|bytes| {
        bytes[12] = 2;
        bytes[16] ^= 0xff;
    });
    let error = Unreadable::Version { at: PhysAddr::new(BLOB), version: 1, oldest_reader: 2 };
    assert_eq!(world.unreadable(), error);
    world.patch(|bytes| bytes[8] = 0);
    assert!(matches!(world.unreadable(), Unreadable::Version { version: 0, .. }));
    world.patch(|bytes| bytes[0] = 0);
    assert_eq!(world.unreadable(), Unreadable::Magic { at: PhysAddr::new(BLOB) });
}

#[test]
fn a_length_that_cannot_be_is_refused() {
    for length in [0u64, 56, 65, MAX_BYTES + 8, u64::MAX - 7] {
        let mut world = World::arrived();
        world.header.bytes = length.max(1);
        world.seal();
        let error = world.unreadable();
        assert!(
            matches!(error, Unreadable::Length { bytes, .. } if bytes == length.max(1)),
            "{length}: {error}"
        );
    }
}

#[test]
fn more_bytes_than_a_reader_accepts_are_refused_even_if_the_tree_agrees() {
    let mut world = World::arrived();
    world.header.bytes = MAX_BYTES + 8;
    world.seal();
    world.write_tree(MAX_BYTES + 8);
    assert!(matches!(world.unreadable(), Unreadable::Length { room: MAX_BYTES, .. }));
}

#[test]
fn records_that_change_after_the_seal_are_refused() {
    let mut world = World::arrived();
    let at = world.record(kind::REGION, 0) + 16;
    let word = world.memory.read(at, 1)[0];
    world.memory.write(at, &[word ^ 1 << 40]);
    assert!(matches!(world.unreadable(), Unreadable::Digest { at, .. } if at.get() == BLOB));
}

#[test]
fn a_record_with_a_wrong_length_is_refused_at_its_place() {
    let world = World::arrived();
    let at = world.record(kind::UNIT, 1);
    for length in [0u32, 4, 7, 48, 73, 1 << 20, u32::MAX] {
        let mut world = world.clone();
        world.patch(|bytes| {
            let from = (at - BLOB) as usize + 4;
            bytes[from..from + 4].copy_from_slice(&length.to_le_bytes());
        });
        let error = world.unreadable();
        let named = matches!(error, Unreadable::Length { at: found, bytes, .. }
            if found.get() == at && bytes == u64::from(length));
        assert!(named, "{length}: {error}");
    }
}

#[test]
fn a_count_that_lies_is_refused() {
    let mut world = World::arrived();
    world.header.records = 7;
    world.seal();
    assert!(matches!(world.unreadable(), Unreadable::Count { claimed: 7, found: 23, .. }));
}

#[test]
fn there_is_one_release_record() {
    for count in [0, 2] {
        let mut world = World::arrived();
        world.release = vec![world.release[0]; count];
        world.seal();
        assert!(matches!(world.unreadable(), Unreadable::Release { found, .. } if found == count as u64));
    }
}

#[test]
fn more_table_frames_than_can_be_are_refused_before_memory_is_asked_for() {
    let mut world = World::arrived();
    world.tables[0].bytes = (MAX_TABLE_FRAMES + 1) * 4096;
    world.seal();
    let limit = MAX_TABLE_FRAMES;
    assert!(matches!(world.unreadable(), Unreadable::TooMany { limit: l, .. } if l == limit));
    // Fewer, but more than the working memory given has bits for.
    world.tables[0].bytes = (MAX_TABLE_FRAMES - 7) * 4096;
    world.seal();
    assert!(matches!(world.unreadable(), Unreadable::ScratchTooSmall { needed, .. } if needed > 1 << 22));
}

#[test]
fn a_map_with_an_impossible_pointer_or_key_is_refused() {
    let mut world = World::arrived();
    let node = world.memory.read(MAP, 4);
    let (index, _) = node.iter().enumerate().find(|(_, entry)| **entry != 0).unwrap();
    let at = MAP + 8 * index as u64;
    world.memory.write(at, &[node[index] + 8]);
    assert_eq!(world.unreadable(), Unreadable::Map { at: PhysAddr::new(at), value: node[index] + 8 });
    world.seal();
    // Key zero stands for no order at all.
    world.memory.set_key(MAP, &mut 40, 0);
    assert!(matches!(world.unreadable(), Unreadable::Map { value: 0, .. }));
    world.seal();
    world.memory.set_key(MAP, &mut 40, 1 << 53);
    assert!(matches!(world.unreadable(), Unreadable::Map { value, .. } if value == 1 << 53));
}

#[test]
fn a_map_node_that_is_not_there_is_named() {
    let mut world = World::arrived();
    world.memory.remove(MAP + 0x1000);
    let error = world.unreadable();
    assert!(matches!(error, Unreadable::Missing { part: "map of preserved memory", .. }), "{error}");
}

#[test]
fn a_map_that_leads_in_circles_ends_with_an_error() {
    // Every entry of the root points back to the root.
    let mut world = World::arrived();
    world.memory.write(MAP, &[MAP; 512]);
    let itself = |error: &Unreadable| matches!(*error, Unreadable::Map { value: MAP, .. });
    let error = world.unreadable();
    assert!(itself(&error), "{error}");
    // And so does the last node above the bitmaps: the first is reached by five pointers.
    let mut world = World::arrived();
    let node = MAP + 0x10_0000;
    world.memory.write(MAP, &[0, 0, node]);
    for level in 0..3 {
        world.memory.write(node + level * 0x1000, &[node + (level + 1) * 0x1000; 512]);
    }
    world.memory.write(node + 3 * 0x1000, &[MAP; 512]);
    let error = world.unreadable();
    assert!(itself(&error), "{error}");
}

#[test]
fn a_shared_bitmap_of_alternating_bits_ends_with_an_error() {
    let mut world = World::arrived();
    let node = MAP + 0x10_0000;
    for level in 0..5 {
        world.memory.write(node + level * 0x1000, &[node + (level + 1) * 0x1000; 512]);
    }
    world.memory.write(node + 5 * 0x1000, &[0x5555_5555_5555_5555; 512]);
    // Only keys of single frames: entries 2 and 3 of the root.
    world.memory.write(MAP, &[0, 0, node, node]);
    world.memory.write(node, &[node + 0x2000; 512]);
    world.memory.write(node + 0x2000, &[node + 0x3000; 512]);
    let error = world.unreadable();
    assert_eq!(error, Unreadable::MapTooLarge { root: PhysAddr::new(MAP) });
}

#[test]
fn every_refusal_says_what_and_where() {
    let mut world = World::arrived();
    world.header.records = 7;
    world.seal();
    assert_eq!(world.unreadable().to_string(), "records at 0x5000000: header says 7, 23 are there");
}
