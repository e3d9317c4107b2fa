//! Handovers as other writers would leave them: records taken apart, changed, and sealed again.

use super::machine::Machine;
use liveupdate::Container;
use liveupdate::host::TableMemory;
use spec::PhysAddr;
use spec::handover::{self, Header};
use spec::xxh64::Hasher;
use zerocopy::IntoBytes;

/// One record: its kind and the words of its body.
pub type Record = (u16, Vec<u64>);

const HEADER_WORDS: u64 = (Header::BYTES / 8) as u64;

pub fn words_of<T: IntoBytes + zerocopy::Immutable>(item: &T) -> Vec<u64> {
    let chunks = item.as_bytes().chunks_exact(8);
    chunks.map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

/// The records as they lie in memory.
pub fn records(machine: &Machine, container: &Container) -> Vec<Record> {
    let mut at = container.blob.plus(8 * HEADER_WORDS);
    let end = container.blob.plus(container.blob_bytes);
    let mut all = Vec::new();
    while at < end {
        let head = machine.get(at);
        let (kind, bytes) = (head as u16, head >> 32);
        all.push((kind, (1..bytes / 8).map(|n| machine.get(at.plus(8 * n))).collect()));
        at = at.plus(bytes);
    }
    all
}

/// Puts these records in the place of the old ones, under a header of this version, with digest and tree in order.
pub fn reseal(
    machine: &Machine,
    container: &Container,
    records: &[Record],
    version: u32,
    oldest_reader: u32,
) {
    let body: Vec<u64> = records
        .iter()
        .flat_map(|(kind, words)| {
            let head =
                u64::from(*kind) | u64::from(version as u16) << 16 | (8 + 8 * words.len() as u64) << 32;
            std::iter::once(head).chain(words.iter().copied())
        })
        .collect();
    let bytes = 8 * (HEADER_WORDS + body.len() as u64);
    assert!(bytes <= 4096 * (container.fdt.frame().number() - container.blob.frame().number()));
    let header = Header {
        magic: handover::MAGIC,
        version,
        oldest_reader,
        bytes,
        records: records.len() as u32,
        reserved0: 0,
        digest: 0,
        reserved1: [0; 3],
    };
    let words: Vec<u64> = words_of(&header).into_iter().chain(body).collect();
    write(machine, container.blob, &words);
    redigest(machine, container.blob);
    let mut page = [0; 4096];
    let map = machine.map_of(container);
    let blob = spec::kho::Blob { name: handover::SUBNODE, data: container.blob, bytes };
    spec::kho::write_root(&mut page, map, &[blob]).unwrap();
    let words: Vec<u64> = page.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    write(machine, container.fdt, &words);
}

/// Makes the digest right again, as far as the length in the header lies in memory.
pub fn redigest(machine: &Machine, blob: PhysAddr) {
    let length = machine.get(blob.plus(16)).min(handover::MAX_BYTES);
    let digest_at = core::mem::offset_of!(Header, digest) as u64;
    machine.set(blob.plus(digest_at), 0);
    let mut hasher = Hasher::new(0);
    for n in 0..length / 8 {
        let Ok(word) = TableMemory::read(machine, blob.plus(8 * n)) else { return };
        hasher.update_words(&[word]);
    }
    machine.set(blob.plus(digest_at), hasher.finish());
}

pub fn write(machine: &Machine, at: PhysAddr, words: &[u64]) {
    for (n, word) in (0..).zip(words) {
        machine.set(at.plus(8 * n), *word);
    }
}
