//! Where everything lies in the test machine, and how it is built.
//!
//! Unit 0 (segment 0): 00:02.0 in domain A, 00:03.0 with alias 03:00.0 in domain B, strangers 00:04.0 and 01:00.0.
//! Unit 1 (segment 1): 05:00.0 in domain A, stranger 06:01.0.
//! Domain A: 4 levels, leaves of 4 KiB, 2 MiB and 1 GiB, one of them a device range. Domain B: 3 levels, 4 KiB.

use super::{Memory, World, header};
use holdover_audit::{Stage, UnitState};
use spec::context::ContextEntry;
use spec::handover::{
    Alias, Container, ContextTable, Domain, DomainIdUse, DomainTables, Region, Release, RequesterRecord,
    Scratch as ScratchRecord, Unit,
};
use spec::regs::{Cap, Ecap, Gsts, RootAddr};
use spec::root::RootEntry;
use spec::second_stage::SecondStageEntry;
use spec::{Segment, SourceId, UnitId};

pub const SCRATCH: u64 = 0x100_0000;
pub const SCRATCH_BYTES: u64 = 0x100_0000;
pub const ROOT: u64 = 0x400_0000;
/// Context tables of unit 0: buses 0 and 3, and the stranger's bus 1.
pub const CONTEXT_0: u64 = 0x400_1000;
pub const CONTEXT_3: u64 = 0x400_2000;
pub const CONTEXT_1: u64 = 0x480_0000;
pub const ROOT_OF_1: u64 = 0x400_3000;
/// Context tables of unit 1: bus 5, and the stranger's bus 6.
pub const CONTEXT_5_OF_1: u64 = 0x400_4000;
pub const CONTEXT_6_OF_1: u64 = 0x480_1000;
/// Domain A: level 3, 2, 1 and 0, then level 0 again in a second run.
pub const A: u64 = 0x420_0000;
pub const A_L2: u64 = A + 0x1000;
pub const A_L1: u64 = A + 0x2000;
pub const A_L0: u64 = A + 0x3000;
pub const A_MORE: u64 = 0x421_0000;
pub const A_TOKEN: u64 = 0xa_0000_000a;
/// Domain B: level 2, 1 and 0.
pub const B: u64 = 0x430_0000;
pub const B_L1: u64 = B + 0x1000;
pub const B_L0: u64 = B + 0x2000;
pub const B_TOKEN: u64 = 0xb_0000_000b;
pub const BLOB: u64 = 0x500_0000;
pub const FDT: u64 = 0x510_0000;
pub const MAP: u64 = 0x520_0000;
/// Memory: 2 MiB and 64 KiB.
pub const SMALL: u64 = 0x1000_0000;
pub const SMALL_BYTES: u64 = 0x21_0000;
/// Memory: 1 GiB.
pub const LARGE: u64 = 0x4000_0000;
pub const LARGE_BYTES: u64 = 0x4000_0000;
/// A device's BAR.
pub const DEVICE: u64 = 0xe000_0000;
pub const DEVICE_BYTES: u64 = 0x1_0000;
pub const BASE: u64 = 0xfed9_0000;
pub const BASE_OF_1: u64 = 0xfed9_1000;
/// Number of leaves: 16 of 4 KiB, one each of 2 MiB and 1 GiB, 2 of the device; 8 in domain B.
pub const LEAVES: u64 = 28;

pub fn unit_id(ordinal: u16) -> UnitId {
    UnitId { segment: Segment(ordinal), register_base: if ordinal == 0 { BASE } else { BASE_OF_1 } }
}

pub fn cap() -> Cap {
    Cap::ZERO.with_nd(2).with_sagaw(0b00110).with_mgaw(47).with_sslps(0b11)
}

pub fn ecap() -> Ecap {
    Ecap::ZERO.with_qi(true).with_sc(true)
}

pub fn context(top: u64, levels: u64, id: u64) -> [u64; 2] {
    ContextEntry::ZERO.with_present(true).with_ssptptr(top >> 12).with_aw(levels - 2).with_did(id).raw()
}

pub fn entry_to(address: u64) -> SecondStageEntry {
    SecondStageEntry::ZERO.with_r(true).with_w(true).with_addr(address >> 12)
}

fn root(table: u64) -> [u64; 2] {
    RootEntry::ZERO.with_present(true).with_ctp(table >> 12).raw()
}

fn unit(ordinal: u16, table: u64) -> (UnitState, Unit) {
    let root = RootAddr::ZERO.with_rta(table >> 12);
    let status = Gsts::ZERO.with_tes(true).with_rtps(true).with_qies(true);
    let state = UnitState { id: unit_id(ordinal), cap: cap(), ecap: ecap(), status, root, interrupts: None };
    let record = Unit {
        register_base: state.id.register_base,
        cap: cap().raw(),
        ecap: ecap().raw(),
        root: root.raw(),
        digest: 0,
        segment: ordinal,
        reserved0: [0; 3],
        reserved1: [0; 2],
    };
    (state, record)
}

fn memory() -> Memory {
    let mut memory = Memory::default();
    let at = |table: u64, device: u8| table + 16 * u64::from(SourceId::new(0, device, 0).devfn());
    for table in [ROOT, ROOT_OF_1, CONTEXT_0, CONTEXT_1, CONTEXT_3, CONTEXT_5_OF_1, CONTEXT_6_OF_1] {
        memory.exist(table, 0x1000);
    }
    for (bus, table) in [(0, CONTEXT_0), (1, CONTEXT_1), (3, CONTEXT_3)] {
        memory.write(ROOT + 16 * bus, &root(table));
    }
    memory.write(ROOT_OF_1 + 16 * 5, &root(CONTEXT_5_OF_1));
    memory.write(ROOT_OF_1 + 16 * 6, &root(CONTEXT_6_OF_1));
    memory.write(at(CONTEXT_0, 2), &context(A, 4, 7));
    memory.write(at(CONTEXT_0, 3), &context(B, 3, 8));
    memory.write(at(CONTEXT_0, 4), &context(0x7777_7000, 4, 9));
    memory.write(at(CONTEXT_1, 0), &context(0x7777_7000, 4, 9));
    memory.write(at(CONTEXT_3, 0), &context(B, 3, 8));
    memory.write(at(CONTEXT_5_OF_1, 0), &context(A, 4, 3));
    memory.write(at(CONTEXT_6_OF_1, 1), &context(0x7777_7000, 4, 9));

    let table = |at: u64| entry_to(at).raw();
    memory.exist(A, 0x4000);
    memory.exist(A_MORE, 0x2000);
    memory.write(A, &[table(A_L2)]);
    // A_L2: a table, then a 1 GiB leaf.
    memory.write(A_L2, &[table(A_L1), entry_to(LARGE).with_ps(true).raw()]);
    memory.write(A_L1, &[table(A_L0), entry_to(SMALL).with_ps(true).with_snp(true).raw(), 0, table(A_MORE)]);
    for page in 0..16 {
        memory.write(A_L0 + 8 * page, &[entry_to(SMALL + 0x20_0000 + page * 0x1000).raw()]);
    }
    memory.write(A_MORE + 8 * 510, &[table(DEVICE), table(DEVICE + 0xf000)]);
    memory.exist(B, 0x3000);
    memory.write(B + 8 * 3, &[table(B_L1)]);
    memory.write(B_L1 + 8 * 511, &[table(B_L0)]);
    for page in 0..8 {
        memory.write(B_L0 + 8 * (2 * page), &[entry_to(SMALL + page * 0x1000).raw()]);
    }
    memory.exist(BLOB, 0x2000);
    memory
}

pub fn build(stage: Stage) -> World {
    let (state_0, unit_0) = unit(0, ROOT);
    let (state_1, unit_1) = unit(1, ROOT_OF_1);
    let mut release = [0; 64];
    release[..4].copy_from_slice(b"test");
    let context_table = |unit, bus, table| ContextTable { table, unit, bus, half: 0, reserved: 0 };
    let region = |token, start, bytes, kind| Region { token, start, bytes, kind, reserved: 0 };
    let domain = |token, top_table, table_frames, levels| Domain {
        token,
        top_table,
        digest: 0,
        table_frames,
        levels,
        format: 0,
        reserved: [0; 6],
    };
    let run = |domain, start, bytes| DomainTables { start, bytes, domain, reserved: 0 };
    let id = |domain, unit, id| DomainIdUse { domain, unit, id, reserved: [0; 3] };
    let requester = |token, context, unit, domain, source: SourceId| RequesterRecord {
        token,
        context,
        unit,
        domain,
        segment: unit as u16,
        source: source.raw(),
        reserved: 0,
        context_high: [0; 2],
    };
    World {
        stage,
        memory: memory(),
        states: vec![state_0, state_1],
        preserved: vec![
            (ROOT, 0x5000),
            (A, 0x4000),
            (A_MORE, 0x2000),
            (B, 0x3000),
            (BLOB, 0x2000),
            (FDT, 0x1000),
            (SMALL, SMALL_BYTES),
            (LARGE, LARGE_BYTES),
        ],
        header: header(),
        release: vec![Release { update: 1, release, sealed_at: 123 }],
        scratch: vec![ScratchRecord { start: SCRATCH, bytes: SCRATCH_BYTES }],
        units: vec![unit_0, unit_1],
        contexts: vec![
            context_table(0, 0, CONTEXT_0),
            context_table(1, 5, CONTEXT_5_OF_1),
            context_table(0, 3, CONTEXT_3),
        ],
        regions: vec![
            region(0x11, LARGE, LARGE_BYTES, 0),
            region(0x12, DEVICE, DEVICE_BYTES, 1),
            region(0x10, SMALL, SMALL_BYTES, 0),
        ],
        domains: vec![domain(A_TOKEN, A, 6, 4), domain(B_TOKEN, B, 3, 3)],
        tables: vec![run(0, A_MORE, 0x2000), run(1, B, 0x3000), run(0, A, 0x4000)],
        ids: vec![id(0, 0, 7), id(1, 0, 8), id(0, 1, 3)],
        requesters: vec![
            requester(0x20, context(A, 4, 7), 0, 0, SourceId::new(0, 2, 0)),
            requester(0x21, context(B, 3, 8), 0, 1, SourceId::new(0, 3, 0)),
            requester(0x22, context(A, 4, 3), 1, 0, SourceId::new(5, 0, 0)),
        ],
        aliases: vec![Alias { requester: 1, source: SourceId::new(3, 0, 0).raw(), reserved: 0 }],
        containers: vec![Container { start: BLOB + 0x1000, bytes: 0x1000 }],
        pasids: Vec::new(),
        attachments: Vec::new(),
        others: Vec::new(),
        appended: 0,
    }
}
