//! A machine in scalable mode, with its tables in memory and the records of them.
//!
//! One unit. 00:02.0 on the lower half of bus 0: requests without PASID in domain S, PASIDs 5 and 40000 in domain F, PASID
//! 70 in domain N below S. 00:10.0 on the upper half, with alias 03:00.0: requests without PASID take PASID 1, in domain S;
//! PASID 2 in domain G. Strangers: 00:04.0, 00:1f.0, 01:10.0; PASIDs 6 and 192 of 00:02.0, PASID 3 of 00:10.0.
//! S: second stage, 4 levels, hardware keeps accessed and dirty bits. F: first stage, 4 levels, leaves of all sizes. G: first
//! stage, 5 levels. N: first stage in the memory that S maps.

use super::layout::{
    BASE, BLOB, DEVICE, DEVICE_BYTES, FDT, LARGE, LARGE_BYTES, SCRATCH, SCRATCH_BYTES, SMALL, SMALL_BYTES,
    entry_to, unit_id,
};
use super::{Memory, World, header};
use holdover_audit::{Stage, UnitState};
use spec::SourceId;
use spec::first_stage::FirstStageEntry;
use spec::handover::{
    Alias, Attachment, Container, ContextTable, Domain, DomainIdUse, DomainTables, PasidTables, Region,
    Release, RequesterRecord, Scratch as ScratchRecord, Unit,
};
use spec::regs::{Cap, Ecap, Gsts, RootAddr};
use spec::scalable::{PasidDirectoryEntry, PasidEntry, ScalableContextEntry, pasid_type};

pub const ROOT: u64 = 0x400_0000;
/// Context tables: bus 0, lower and upper half; the alias's bus 3; a stranger's bus 1, upper half.
pub const LOWER: u64 = 0x400_1000;
pub const UPPER: u64 = 0x400_2000;
pub const OF_3: u64 = 0x400_3000;
pub const OF_1: u64 = 0x480_0000;
/// Directory of 00:02.0, two frames, and its tables of PASIDs 0, 64 and 40000 on.
pub const DIR_2: u64 = 0x410_0000;
pub const TABLE_0: u64 = 0x410_2000;
pub const TABLE_64: u64 = 0x410_3000;
pub const TABLE_40000: u64 = 0x410_4000;
/// Directory of 00:10.0, and its table.
pub const DIR_10: u64 = 0x410_5000;
pub const TABLE_OF_10: u64 = 0x410_6000;
/// Domains: tables from the top down.
pub const S: u64 = 0x420_0000;
pub const F: u64 = 0x421_0000;
pub const G: u64 = 0x422_0000;
/// Where N's four tables lie, the top one last: S maps page p to page 15 - p.
pub const N: u64 = SMALL + 0xc000;
pub const N_TOP: u64 = SMALL + 0xf000;
pub const N_LEAVES: u64 = SMALL + 0xc000;
pub const TOKENS: [u64; 4] = [0x51, 0x52, 0x53, 0x54];
/// Leaves: 16 and one of 2 MiB in S; 4 + 1 + 1 in F; 1 in G; 2 in N.
pub const LEAVES: u64 = 17 + 6 + 1 + 2;

pub fn cap() -> Cap {
    Cap::ZERO.with_nd(2).with_sagaw(0b00110).with_mgaw(47).with_sslps(0b11).with_fs1gp(true).with_fs5lp(true)
}

pub fn ecap() -> Ecap {
    let modes = Ecap::ZERO.with_smts(true).with_ssts(true).with_fsts(true).with_nest(true).with_pt(true);
    modes.with_qi(true).with_sc(true).with_pasid(true).with_pss(19).with_rps(true).with_ssads(true)
}

pub fn context(directory: u64, pdts: u64, rid_pasid: u64) -> [u64; 4] {
    let entry = ScalableContextEntry::ZERO.with_present(true).with_paside(true);
    entry.with_pdts(pdts).with_pasiddirptr(directory >> 12).with_rid_pasid(rid_pasid).raw()
}

pub fn second(id: u64) -> PasidEntry {
    let entry = PasidEntry::ZERO.with_present(true).with_pgtt(pasid_type::SECOND_STAGE).with_ssade(true);
    entry.with_aw(2).with_ssptptr(S >> 12).with_did(id)
}

pub fn first(top: u64, five: u64, id: u64) -> PasidEntry {
    let entry = PasidEntry::ZERO.with_present(true).with_pgtt(pasid_type::FIRST_STAGE);
    entry.with_fspm(five).with_fsptptr(top >> 12).with_did(id)
}

/// N's top table is at address 0 of S.
pub fn nested() -> PasidEntry {
    second(3).with_pgtt(pasid_type::NESTED).with_fsptptr(0)
}

/// A first-stage entry that leads to `address`.
pub fn to(address: u64) -> FirstStageEntry {
    FirstStageEntry::ZERO.with_present(true).with_rw(true).with_us(true).with_addr(address >> 12)
}

pub fn directory(table: u64) -> u64 {
    PasidDirectoryEntry::ZERO.with_present(true).with_smptblptr(table >> 12).raw()
}

/// Where the entry of a PASID lies in its table.
pub fn pasid_at(table: u64, pasid: u64) -> u64 {
    table + 64 * (pasid & 63)
}

fn tables(memory: &mut Memory) {
    for (start, bytes) in [(ROOT, 0x4000), (OF_1, 0x1000), (DIR_2, 0x7000), (S, 0x4000), (F, 0x4000)] {
        memory.exist(start, bytes);
    }
    memory.exist(G, 0x5000);
    memory.exist(N, 0x4000);
    memory.write(ROOT, &[LOWER | 1, UPPER | 1]);
    memory.write(ROOT + 16, &[0, OF_1 | 1]);
    memory.write(ROOT + 16 * 3, &[OF_3 | 1, 0]);
    memory.write(LOWER + 32 * 0x10, &context(DIR_2, 3, 0));
    memory.write(LOWER + 32 * 0x20, &context(0x7777_7000, 0, 0));
    memory.write(UPPER, &context(DIR_10, 0, 1));
    memory.write(UPPER + 32 * 0x78, &context(0x7777_7000, 0, 0));
    memory.write(OF_1, &context(0x7777_7000, 0, 0));
    memory.write(OF_3, &context(DIR_10, 0, 1));

    memory.write(DIR_2, &[directory(TABLE_0), directory(TABLE_64), 0, directory(0x7777_6000)]);
    memory.write(DIR_2 + 8 * 625, &[directory(TABLE_40000)]);
    memory.write(pasid_at(TABLE_0, 0), &second(1).raw());
    memory.write(pasid_at(TABLE_0, 5), &first(F, 0, 2).raw());
    memory.write(pasid_at(TABLE_0, 6), &first(0x7777_5000, 0, 9).raw());
    memory.write(pasid_at(TABLE_64, 70), &nested().raw());
    memory.write(pasid_at(TABLE_40000, 40000), &first(F, 0, 2).raw());
    memory.write(DIR_10, &[directory(TABLE_OF_10)]);
    memory.write(pasid_at(TABLE_OF_10, 1), &second(1).raw());
    memory.write(pasid_at(TABLE_OF_10, 2), &first(G, 1, 4).raw());
    memory.write(pasid_at(TABLE_OF_10, 3), &first(0x7777_5000, 0, 9).raw());
}

fn pages(memory: &mut Memory) {
    let second = |at: u64| entry_to(at).raw();
    memory.write(S, &[second(S + 0x1000)]);
    memory.write(S + 0x1000, &[second(S + 0x2000)]);
    memory.write(S + 0x2000, &[second(S + 0x3000), entry_to(SMALL).with_ps(true).raw()]);
    let backwards: Vec<u64> = (0..16).map(|page| second(SMALL + (15 - page) * 0x1000)).collect();
    memory.write(S + 0x3000, &backwards);

    memory.write(F, &[to(F + 0x1000).raw()]);
    memory.write(F + 0x1000, &[to(F + 0x2000).raw(), to(LARGE).with_ps(true).raw()]);
    memory.write(F + 0x2000, &[to(F + 0x3000).raw(), to(SMALL).with_ps(true).with_xd(true).raw()]);
    let leaves = [to(SMALL), to(SMALL + 0x1000).with_rw(false), to(DEVICE), to(SMALL + 0x20_0000)];
    memory.write(F + 0x3000, &leaves.map(FirstStageEntry::raw));
    for level in 0..4 {
        memory.write(G + level * 0x1000, &[to(G + (level + 1) * 0x1000).raw()]);
    }
    memory.write(G + 0x4000, &[to(SMALL).raw()]);

    memory.write(N_TOP, &[to(0x1000).raw()]);
    memory.write(N_TOP - 0x1000, &[to(0x2000).raw()]);
    memory.write(N_TOP - 0x2000, &[to(0x3000).raw(), to(0x20_0000).with_ps(true).raw()]);
    memory.write(N_LEAVES, &[to(0x5000).raw()]);
}

fn attachment(requester: u32, pasid: u32, entry: PasidEntry, domain: u32, parent: u32) -> Attachment {
    Attachment { entry: entry.raw(), requester, pasid, domain, parent, reserved: 0 }
}

fn requester(token: u64, entry: [u64; 4], source: SourceId) -> RequesterRecord {
    let [a, b, c, d] = entry;
    RequesterRecord {
        token,
        context: [a, b],
        unit: 0,
        domain: 0,
        segment: 0,
        source: source.raw(),
        reserved: 0,
        context_high: [c, d],
    }
}

fn unit() -> (UnitState, Unit) {
    let root = RootAddr::ZERO.with_rta(ROOT >> 12).with_ttm(1);
    let status = Gsts::ZERO.with_tes(true).with_rtps(true).with_qies(true);
    let state = UnitState { id: unit_id(0), cap: cap(), ecap: ecap(), status, root, interrupts: None };
    let (cap, ecap, root) = (cap().raw(), ecap().raw(), root.raw());
    let record = Unit {
        register_base: BASE,
        cap,
        ecap,
        root,
        digest: 0,
        segment: 0,
        reserved0: [0; 3],
        reserved1: [0; 2],
    };
    (state, record)
}

pub fn build(stage: Stage) -> World {
    let mut memory = Memory::default();
    tables(&mut memory);
    pages(&mut memory);
    memory.exist(BLOB, 0x2000);
    let (state, unit) = unit();
    let context_table = |bus, half, table| ContextTable { table, unit: 0, bus, half, reserved: 0 };
    let region = |token, start, bytes, kind| Region { token, start, bytes, kind, reserved: 0 };
    let domain = |n: usize, top_table, table_frames, levels, format| Domain {
        token: TOKENS[n],
        top_table,
        digest: 0,
        table_frames,
        levels,
        format,
        reserved: [0; 6],
    };
    let run = |domain, start, bytes| DomainTables { start, bytes, domain, reserved: 0 };
    let pasids = |requester, kind, start, bytes, first_pasid| PasidTables {
        start,
        bytes,
        requester,
        first_pasid,
        kind,
        reserved: 0,
    };
    World {
        stage,
        memory,
        states: vec![state],
        preserved: vec![
            (ROOT, 0x4000),
            (DIR_2, 0x7000),
            (S, 0x4000),
            (F, 0x4000),
            (G, 0x5000),
            (BLOB, 0x2000),
            (FDT, 0x1000),
            (SMALL, SMALL_BYTES),
            (LARGE, LARGE_BYTES),
        ],
        header: header(),
        release: vec![Release { update: 1, release: [0; 64], sealed_at: 0 }],
        scratch: vec![ScratchRecord { start: SCRATCH, bytes: SCRATCH_BYTES }],
        units: vec![unit],
        contexts: vec![context_table(3, 0, OF_3), context_table(0, 1, UPPER), context_table(0, 0, LOWER)],
        regions: vec![
            region(0x11, LARGE, LARGE_BYTES, 0),
            region(0x12, DEVICE, DEVICE_BYTES, 1),
            region(0x10, SMALL, SMALL_BYTES, 0),
        ],
        domains: vec![
            domain(0, S, 4, 4, 0),
            domain(1, F, 4, 4, 1),
            domain(2, N_TOP, 4, 4, 1),
            domain(3, G, 5, 5, 1),
        ],
        tables: vec![run(0, S, 0x4000), run(1, F, 0x4000), run(2, N, 0x4000), run(3, G, 0x5000)],
        ids: (0u32..4)
            .map(|n| DomainIdUse { domain: n, unit: 0, id: n as u16 + 1, reserved: [0; 3] })
            .collect(),
        requesters: vec![
            requester(0x20, context(DIR_2, 3, 0), SourceId::new(0, 2, 0)),
            requester(0x21, context(DIR_10, 0, 1), SourceId::new(0, 0x10, 0)),
        ],
        aliases: vec![Alias { requester: 1, source: SourceId::new(3, 0, 0).raw(), reserved: 0 }],
        containers: vec![Container { start: BLOB + 0x1000, bytes: 0x1000 }],
        pasids: vec![
            pasids(1, 1, TABLE_OF_10, 0x1000, 0),
            pasids(0, 0, DIR_2, 0x2000, 0),
            pasids(0, 1, TABLE_40000, 0x1000, 40000),
            pasids(0, 1, TABLE_0, 0x1000, 0),
            pasids(0, 1, TABLE_64, 0x1000, 64),
            pasids(1, 0, DIR_10, 0x1000, 0),
        ],
        attachments: vec![
            attachment(0, 0, second(1), 0, 0),
            attachment(0, 5, first(F, 0, 2), 1, 0),
            attachment(0, 70, nested(), 2, 1),
            attachment(0, 40000, first(F, 0, 2), 1, 0),
            attachment(1, 1, second(1), 0, 0),
            attachment(1, 2, first(G, 1, 4), 3, 0),
        ],
        others: Vec::new(),
        appended: 0,
    }
}

impl World {
    /// The cut-off of a unit in scalable mode, in `memory`.
    pub(super) fn cut_off_scalable(&self, unit: u32, record: &Unit, memory: &mut Memory) {
        let root = RootAddr::from_raw(record.root).table().get();
        for (bus, half) in (0..=255u8).flat_map(|bus| [(bus, 0u8), (bus, 1)]) {
            if !self.contexts.iter().any(|c| (c.unit, c.bus, c.half) == (unit, bus, half)) {
                memory.write(root + 16 * u64::from(bus) + 8 * u64::from(half), &[0]);
            }
        }
        for table in self.contexts.iter().filter(|c| c.unit == unit) {
            for entry in 0..128u16 {
                if !self.owns(unit, u16::from(table.bus) << 8 | u16::from(table.half) << 7 | entry) {
                    memory.write(table.table + 32 * u64::from(entry), &[0; 4]);
                }
            }
        }
        for run in self.pasids.iter().filter(|run| self.requesters[run.requester as usize].unit == unit) {
            let mine = |other: &&PasidTables| other.requester == run.requester && other.kind == 1;
            for n in (0..run.bytes / 8).filter(|_| run.kind == 0) {
                if !self.pasids.iter().filter(mine).any(|other| u64::from(other.first_pasid) == 64 * n) {
                    memory.write(run.start + 8 * n, &[0]);
                }
            }
            for n in (0..64u32).filter(|_| run.kind == 1) {
                let pasid = run.first_pasid + n;
                if !self.attachments.iter().any(|a| (a.requester, a.pasid) == (run.requester, pasid)) {
                    memory.write(run.start + 64 * u64::from(n), &[0; 8]);
                }
            }
        }
    }

    /// Changes the PASID entry at `at`, and with `recorded` the one of that attachment too.
    pub fn change_pasid(
        &mut self,
        at: u64,
        recorded: Option<usize>,
        f: impl FnOnce(PasidEntry) -> PasidEntry,
    ) {
        let words: [u64; 8] = self.memory.read(at, 8).try_into().unwrap();
        let changed = f(PasidEntry::from_raw(words)).raw();
        self.memory.write(at, &changed);
        if let Some(ordinal) = recorded {
            self.attachments[ordinal].entry = changed;
        }
        self.digest();
        self.seal();
    }
}
