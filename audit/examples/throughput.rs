//! How fast leaf tables are checked: `cargo run --release -p holdover-audit --example throughput [GiB]`.
//!
//! Builds a domain that maps so much guest memory in 4 KiB pages and audits it; prints the time and the rate.

#[path = "../tests/world/mod.rs"]
mod world;

use holdover_audit::Scratch;
use spec::PhysAddr;
use spec::handover::{DomainTables, Region};
use std::time::Instant;
use world::{A, FDT, LEAVES, World, entry_to};

/// Where the additional tables and the guest lie.
const TABLES: u64 = 0x10_0000_0000;
const GUEST: u64 = 0x100_0000_0000;

fn main() {
    let gib: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(64);
    let mut world = World::arrived();
    // Behind the entries that are there: one level-2 table, `gib` level-1 tables, 512 leaf tables for each.
    let frames = 1 + gib + 512 * gib;
    let at = |frame: u64| TABLES + frame * 4096;
    world.memory.write(A + 8 * 8, &[entry_to(at(0)).raw()]);
    for upper in 0..gib {
        world.memory.write(at(0) + 8 * upper, &[entry_to(at(1 + upper)).raw()]);
        for lower in 0..512 {
            let table = at(1 + gib + 512 * upper + lower);
            world.memory.write(at(1 + upper) + 8 * lower, &[entry_to(table).raw()]);
            let first = GUEST + (512 * upper + lower) * 0x20_0000;
            let leaves: Vec<u64> = (0..512).map(|page| entry_to(first + page * 4096).raw()).collect();
            world.memory.write(table, &leaves);
        }
    }
    world.tables.push(DomainTables { start: TABLES, bytes: frames * 4096, domain: 0, reserved: 0 });
    world.domains[0].table_frames += frames;
    world.regions.push(Region { token: 0x99, start: GUEST, bytes: gib << 30, kind: 0, reserved: 0 });
    world.preserved.extend([(TABLES, frames * 4096), (GUEST, gib << 30)]);
    world.digest();
    world.seal();

    let mut words = vec![0; Scratch::words_needed(&world.memory, PhysAddr::new(FDT)).unwrap() as usize];
    let started = Instant::now();
    let (report, findings) = world.audit_with(&mut words).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(findings.is_empty() && report.totals.leaves == LEAVES + (gib << 18));
    let read = report.totals.tables * 4096 + report.totals.bytes_hashed;
    println!(
        "{gib} GiB in 4 KiB pages: {} tables, {} leaves, {:.1} ms, {:.0} million leaves/s, {:.2} GB/s of tables, {} KiB of working memory",
        report.totals.tables,
        report.totals.leaves,
        seconds * 1e3,
        report.totals.leaves as f64 / seconds / 1e6,
        read as f64 / seconds / 1e9,
        words.len() * 8 / 1024,
    );
}
