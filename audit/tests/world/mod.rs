//! A small machine with a handover, built from nothing but `spec`: memory, tables, records, map and tree.
//!
//! [`World::sealed`] is a sound machine before the cut-off, [`World::arrived`] the same after it. A test damages a part of
//! it, calls [`World::seal`] and looks at what the audit says.
#![allow(dead_code, unreachable_pub)] // each test file uses its own part

mod layout;
mod memory;
pub mod scalable;

pub use layout::*;
pub use memory::Memory;

use holdover_audit::{Finding, Report, Scratch, Stage, UnitState, Unreadable, What, audit};
use spec::context::ContextEntry;
use spec::handover::{
    Alias, Attachment, Container, ContextTable, Domain, DomainIdUse, DomainTables, Header, MAGIC,
    PasidTables, RecordHeader, Region, Release, RequesterRecord, Scratch as ScratchRecord, Unit, kind,
};
use spec::scalable::PasidEntry;
use spec::xxh64::hash;
use spec::{PAGE_SIZE, PhysAddr, Requester, Segment, SourceId};
use zerocopy::IntoBytes;

/// The machine with everything that a test may damage.
#[derive(Clone)]
pub struct World {
    pub stage: Stage,
    pub memory: Memory,
    pub states: Vec<UnitState>,
    /// Preserved runs: start and length in bytes.
    pub preserved: Vec<(u64, u64)>,
    pub header: Header,
    pub release: Vec<Release>,
    pub scratch: Vec<ScratchRecord>,
    pub units: Vec<Unit>,
    pub contexts: Vec<ContextTable>,
    pub regions: Vec<Region>,
    pub domains: Vec<Domain>,
    pub tables: Vec<DomainTables>,
    pub ids: Vec<DomainIdUse>,
    pub requesters: Vec<RequesterRecord>,
    pub aliases: Vec<Alias>,
    pub containers: Vec<Container>,
    pub pasids: Vec<PasidTables>,
    pub attachments: Vec<Attachment>,
    /// More records behind these: kind and content.
    pub others: Vec<(u16, Vec<u8>)>,
    /// Bytes that a newer release appended to each record.
    pub appended: usize,
}

pub fn requester(segment: u16, bus: u8, device: u8, function: u8) -> Requester {
    Requester::new(Segment(segment), SourceId::new(bus, device, function))
}

/// Number of nodes in the map of preserved memory.
pub fn map_nodes(world: &World) -> u64 {
    Memory::default().write_map(MAP, &world.preserved, 18)
}

impl World {
    /// The machine before the cut-off: strangers' entries are present.
    pub fn sealed() -> Self {
        let mut world = layout::build(Stage::Sealed);
        world.digest();
        world.seal();
        world
    }

    /// The machine after the cut-off.
    pub fn arrived() -> Self {
        let mut world = layout::build(Stage::Arrived);
        world.cut_off();
        world.digest();
        world.seal();
        world
    }

    /// A machine in scalable mode before the cut-off.
    pub fn scalable_sealed() -> Self {
        let mut world = scalable::build(Stage::Sealed);
        world.digest();
        world.seal();
        world
    }

    /// The same after it.
    pub fn scalable_arrived() -> Self {
        let mut world = scalable::build(Stage::Arrived);
        world.cut_off();
        world.digest();
        world.seal();
        world
    }

    /// Clears what belongs to no preserved requester.
    pub fn cut_off(&mut self) {
        self.memory = self.memory_after_cut_off();
    }

    fn owns(&self, unit: u32, source: u16) -> bool {
        let mine = |r: &RequesterRecord| r.unit == unit;
        let alias =
            |a: &Alias| self.requesters.get(a.requester as usize).is_some_and(mine) && a.source == source;
        self.requesters.iter().any(|r| mine(r) && r.source == source) || self.aliases.iter().any(alias)
    }

    fn memory_after_cut_off(&self) -> Memory {
        let mut memory = self.memory.clone();
        for (unit, record) in (0u32..).zip(&self.units) {
            if spec::regs::RootAddr::from_raw(record.root).ttm() == 1 {
                self.cut_off_scalable(unit, record, &mut memory);
                continue;
            }
            let root = spec::regs::RootAddr::from_raw(record.root).table().get();
            for bus in 0..=255u8 {
                if !self.contexts.iter().any(|c| c.unit == unit && c.bus == bus) {
                    memory.write(root + 16 * u64::from(bus), &[0, 0]);
                }
            }
            for table in self.contexts.iter().filter(|c| c.unit == unit) {
                for devfn in 0..=255u8 {
                    if !self.owns(unit, u16::from(table.bus) << 8 | u16::from(devfn)) {
                        memory.write(table.table + 16 * u64::from(devfn), &[0, 0]);
                    }
                }
            }
        }
        memory
    }

    /// Computes the digests of units and domains, from the tables as they are now.
    pub fn digest(&mut self) {
        let after = self.memory_after_cut_off();
        for (unit, record) in (0u32..).zip(&mut self.units) {
            let mut bytes = after.bytes(spec::regs::RootAddr::from_raw(record.root).table().get(), PAGE_SIZE);
            for table in self.contexts.iter().filter(|c| c.unit == unit) {
                bytes.extend(after.bytes(table.table, PAGE_SIZE));
            }
            let of_unit = |run: &&PasidTables| self.requesters[run.requester as usize].unit == unit;
            for run in self.pasids.iter().filter(of_unit) {
                bytes.extend(after.bytes(run.start, run.bytes));
            }
            record.digest = hash(0, &bytes);
        }
        for (domain, record) in (0u32..).zip(&mut self.domains) {
            let runs = self.tables.iter().filter(|run| run.domain == domain);
            let dirty = |a: &Attachment| {
                let named = a.domain == domain || a.parent == domain + 1;
                named && PasidEntry::from_raw(a.entry).ssade()
            };
            let mask = match record.format {
                1 => !0x60,
                _ if self.attachments.iter().any(dirty) => !0x300,
                _ => u64::MAX,
            };
            let words = runs.flat_map(|run| self.memory.read(run.start, run.bytes as usize / 8));
            let bytes: Vec<u8> = words.flat_map(|word| (word & mask).to_le_bytes()).collect();
            record.digest = hash(0, &bytes);
        }
    }

    /// Writes records, map and tree into memory, with the records' digest.
    pub fn seal(&mut self) {
        let blob = self.blob();
        self.memory.write_bytes(BLOB, &blob);
        self.memory.write_map(MAP, &self.preserved, 18);
        self.write_tree(blob.len() as u64);
    }

    pub fn write_tree(&mut self, bytes: u64) {
        let mut buffer = [0; 512];
        let ours = spec::kho::Blob { name: "holdover", data: PhysAddr::new(BLOB), bytes };
        let theirs = spec::kho::Blob { name: "LUO", data: PhysAddr::new(0x1234_5000), bytes: 32 };
        let tree = spec::kho::write_root(&mut buffer, PhysAddr::new(MAP), &[theirs, ours]).unwrap().to_vec();
        self.memory.write_bytes(FDT, &tree);
    }

    /// The records as bytes, sealed.
    pub fn blob(&self) -> Vec<u8> {
        let mut bytes = self.header.as_bytes().to_vec();
        let mut records = 0u32;
        let mut put = |kind: u16, body: &[u8], appended: usize| {
            let length = (size_of::<RecordHeader>() + body.len() + appended) as u32;
            bytes.extend(RecordHeader { kind, version: 1, bytes: length }.as_bytes());
            bytes.extend(body);
            bytes.extend(std::iter::repeat_n(0xee, appended));
            records += 1;
        };
        macro_rules! all {
            ($($list:ident: $kind:ident,)*) => {
                $(for record in &self.$list { put(kind::$kind, record.as_bytes(), self.appended); })*
            };
        }
        all! {
            release: RELEASE, scratch: SCRATCH, units: UNIT, contexts: CONTEXT_TABLE, regions: REGION,
            domains: DOMAIN, tables: DOMAIN_TABLES, ids: DOMAIN_ID, requesters: REQUESTER, aliases: ALIAS,
            containers: CONTAINER, pasids: PASID_TABLES, attachments: ATTACHMENT,
        }
        for (kind, body) in &self.others {
            put(*kind, body, 0);
        }
        let length = bytes.len() as u64;
        // A test that put something of its own there keeps it.
        if self.header.records == 0 {
            bytes[24..28].copy_from_slice(records.as_bytes());
        }
        if self.header.bytes == 0 {
            bytes[16..24].copy_from_slice(length.as_bytes());
        }
        reseal(&mut bytes);
        bytes
    }

    /// Changes the sealed bytes and seals them again.
    pub fn patch(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.blob();
        change(&mut bytes);
        reseal(&mut bytes);
        self.memory.write_bytes(BLOB, &bytes);
        self.write_tree(bytes.len() as u64);
    }

    /// Address of the `n`-th record of a kind.
    pub fn record(&self, wanted: u16, mut n: usize) -> u64 {
        let blob = self.blob();
        let mut at = size_of::<Header>();
        loop {
            let kind = u16::from_le_bytes([blob[at], blob[at + 1]]);
            let bytes = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap());
            if kind == wanted {
                if n == 0 {
                    return BLOB + at as u64;
                }
                n -= 1;
            }
            at += bytes as usize;
        }
    }

    /// Address of a context entry on the first unit.
    pub fn entry(&self, table: u64, device: u8, function: u8) -> u64 {
        table + 16 * u64::from(SourceId::new(0, device, function).devfn())
    }

    /// Changes a context entry and, when `recorded`, the record of the requester too.
    pub fn change_entry(
        &mut self,
        at: u64,
        recorded: Option<usize>,
        f: impl FnOnce(ContextEntry) -> ContextEntry,
    ) {
        let words = self.memory.read(at, 2);
        let changed = f(ContextEntry::from_raw([words[0], words[1]])).raw();
        self.memory.write(at, &changed);
        if let Some(ordinal) = recorded {
            self.requesters[ordinal].context = changed;
        }
    }

    pub fn audit(&self) -> Result<(Report, Vec<Finding>), Unreadable> {
        let mut words = vec![0xdead_beef; 64 << 10];
        self.audit_with(&mut words)
    }

    pub fn audit_with(&self, words: &mut [u64]) -> Result<(Report, Vec<Finding>), Unreadable> {
        let mut findings = Vec::new();
        let mut scratch = Scratch::new(words);
        let fdt = PhysAddr::new(FDT);
        let report =
            audit(&self.memory, fdt, &self.states, self.stage, &mut scratch, &mut |f| findings.push(f))?;
        assert_eq!(report.violations(), findings.len() as u64, "every finding is counted");
        assert!(findings.iter().all(|f| !f.to_string().is_empty()));
        Ok((report, findings))
    }

    /// The findings of a handover that can be read.
    pub fn findings(&self) -> Vec<Finding> {
        self.audit().expect("readable").1
    }

    /// The one finding that the damage must lead to.
    #[track_caller]
    pub fn only(&self) -> Finding {
        let findings = self.findings();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(findings.len(), 1, "exactly one finding expected: {lines:#?}");
        findings[0]
    }

    /// The first finding that says what `wanted` accepts.
    #[track_caller]
    pub fn find(&self, wanted: impl Fn(&What) -> bool) -> Finding {
        let findings = self.findings();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        findings.into_iter().find(|f| wanted(&f.what)).unwrap_or_else(|| panic!("not among {lines:#?}"))
    }

    #[track_caller]
    pub fn unreadable(&self) -> Unreadable {
        self.audit().expect_err("must not be readable")
    }
}

/// Puts the digest into sealed bytes.
pub fn reseal(bytes: &mut [u8]) {
    bytes[32..40].fill(0);
    // The digest covers what the header says.
    let length = u64::from_le_bytes(bytes[16..24].try_into().unwrap()).min(bytes.len() as u64) as usize;
    let digest = hash(0, &bytes[..length]);
    bytes[32..40].copy_from_slice(digest.as_bytes());
}

pub fn header() -> Header {
    Header {
        magic: MAGIC,
        version: 1,
        oldest_reader: 1,
        bytes: 0,
        records: 0,
        reserved0: 0,
        digest: 0,
        reserved1: [0; 3],
    }
}
