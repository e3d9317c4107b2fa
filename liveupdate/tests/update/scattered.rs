//! Lesson 19: many scattered runs take little longer than few.

use crate::common::machine::Machine;
use crate::common::reseal::{Record, words_of, write};
use crate::common::scene::*;
use crate::common::{Store, extent};
use liveupdate::host::MaySleep;
use liveupdate::{Outgoing, RegionKind, Token, open};
use spec::handover::{self, Header, kind};
use spec::kho::Blob;
use spec::{Extent, Frame, PhysAddr};
use std::time::{Duration, Instant};

const RUNS: u64 = 200_000;
/// Work in proportion to the number of runs takes a fraction of this; work in proportion to its square, a multiple.
const LIMIT: Duration = Duration::from_secs(8);

#[test]
fn lesson_19_opening_two_hundred_thousand_scattered_regions_is_not_quadratic() {
    let machine = Machine::new(0);
    let mut records: Vec<Record> = Vec::new();
    let release = handover::Release { update: 1, release: [0; 64], sealed_at: 0 };
    records.push((kind::RELEASE, words_of(&release)));
    for n in 0..RUNS {
        // In no order, neither by place nor by name.
        let place = n * 7919 % RUNS;
        let start = 0x1_0000_0000 + 0x2000 * place;
        let region =
            handover::Region { token: 1 + n * 104_729 % RUNS, start, bytes: 4096, kind: 0, reserved: 0 };
        records.push((kind::REGION, words_of(&region)));
    }
    let body = records.iter().flat_map(|(kind, words)| {
        let head = u64::from(*kind) | 1 << 16 | (8 + 8 * words.len() as u64) << 32;
        std::iter::once(head).chain(words.iter().copied())
    });
    let body: Vec<u64> = body.collect();
    let bytes = (Header::BYTES + 8 * body.len()) as u64;
    let mut header = Header {
        magic: handover::MAGIC,
        version: 1,
        oldest_reader: 1,
        bytes,
        records: records.len() as u32,
        reserved0: 0,
        digest: 0,
        reserved1: [0; 3],
    };
    let mut hasher = spec::xxh64::Hasher::new(0);
    hasher.update_words(&words_of(&header));
    hasher.update_words(&body);
    header.digest = hasher.finish();
    let (fdt, map, blob) = (machine.table(), machine.table(), PhysAddr::new(0x7000_0000));
    machine.ram(extent(blob.get(), bytes.div_ceil(4096)));
    write(&machine, blob, &words_of(&header));
    write(&machine, blob.plus(Header::BYTES as u64), &body);
    let mut page = [0; 4096];
    spec::kho::write_root(&mut page, map, &[Blob { name: handover::SUBNODE, data: blob, bytes }]).unwrap();
    let page: Vec<u64> = page.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    write(&machine, fdt, &page);

    let mut store = Store::of(1);
    store.regions = vec![None; RUNS as usize];
    store.runs = vec![None; RUNS as usize];
    let begun = Instant::now();
    let opened = open(&machine, fdt, store.storage()).unwrap();
    assert_eq!(opened.regions().count() as u64, RUNS);
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
}

#[test]
fn a_domain_of_thousands_of_scattered_tables_is_preserved_and_taken_back_in_a_moment() {
    const TABLES: u64 = 4000;
    let (machine, mut ctx) = (Machine::new(1), MaySleep::at_thread_start());
    let domain = machine.domain(3);
    let page = Extent::one(Frame::new(0x9_0000));
    for n in 0..TABLES {
        machine.skip_table();
        machine.map(domain, n * 0x20_0000, page);
    }
    let mut store = Store::of(2 * TABLES as usize);
    let mut outgoing = Outgoing::new(&machine, store.storage());
    outgoing.preserve_region(&mut ctx, Token(1), page, RegionKind::Memory).unwrap();
    let begun = Instant::now();
    outgoing.preserve_domain(&mut ctx, Token(2), domain.of()).unwrap();
    assert!(outgoing.totals().table_runs as u64 > TABLES - 10);
    outgoing.unpreserve_domain(&mut ctx, Token(2)).unwrap();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    // Tables that touch are one run.
    let dense = machine.domain(3);
    for n in 0..TABLES {
        machine.map(dense, n * 0x20_0000, page);
    }
    outgoing.preserve_domain(&mut ctx, Token(2), dense.of()).unwrap();
    assert_eq!(outgoing.totals().table_runs, 1);
    let _sealed = freeze(outgoing, &mut ctx).unwrap();
}
