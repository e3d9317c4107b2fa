//! What the machine's driver would do: domains, mappings, attachments.

use super::machine::Machine;
use liveupdate::{DomainTablesOf, Stage};
use spec::context::ContextEntry;
use spec::root::RootEntry;
use spec::second_stage::{self, SecondStageEntry};
use spec::{Extent, PhysAddr, SourceId};

/// A domain of the machine's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    pub top: PhysAddr,
    pub stage: Stage,
    pub levels: u8,
}

impl Tables {
    /// As the core is told of it.
    pub fn of(self) -> DomainTablesOf<'static> {
        DomainTablesOf {
            top_table: self.top,
            stage: self.stage,
            levels: self.levels,
            parent: None,
            runs: &[],
        }
    }
}

/// An entry of either stage that leads to a table or a 4 KiB leaf: read and write, or present, writable and for users.
fn pointer(stage: Stage, to: PhysAddr) -> u64 {
    to.get() | if stage == Stage::Second { 0b11 } else { 0b111 }
}

impl Machine {
    pub fn domain(&self, levels: u8) -> Tables {
        Tables { top: self.table(), stage: Stage::Second, levels }
    }

    pub fn first_stage(&self, levels: u8) -> Tables {
        Tables { top: self.table(), stage: Stage::First, levels }
    }

    /// Where the entry for `iova` at `level` lies; tables on the way are made.
    pub fn entry(&self, domain: Tables, iova: u64, level: u8) -> PhysAddr {
        let mut table = domain.top;
        for above in (level + 1..domain.levels).rev() {
            let at = table.plus(8 * second_stage::index(iova, above));
            // Both stages have the address in the same place, and bit 0 in every entry that is made here.
            let entry = SecondStageEntry::from_raw(self.get(at));
            table = if entry.is_present() { entry.address() } else { self.table() };
            self.set(at, self.get(at) | pointer(domain.stage, table));
        }
        table.plus(8 * second_stage::index(iova, level))
    }

    /// Maps 4 KiB leaves.
    pub fn map(&self, domain: Tables, iova: u64, to: Extent) {
        for n in 0..to.count() {
            let at = self.entry(domain, iova + 4096 * n, 0);
            self.set(at, pointer(domain.stage, to.start().plus(4096 * n)));
        }
    }

    /// Maps one large leaf.
    pub fn map_large(&self, domain: Tables, iova: u64, to: PhysAddr, level: u8) {
        let at = self.entry(domain, iova, level);
        self.set(at, pointer(domain.stage, to) | 1 << 7);
    }

    pub fn root_entry(&self, unit: usize, bus: u8) -> PhysAddr {
        self.units[unit].root.get().table().plus(16 * u64::from(bus))
    }

    /// Where the context entry lies; its table is made.
    pub fn context_entry(&self, unit: usize, source: SourceId) -> PhysAddr {
        let at = self.root_entry(unit, source.bus());
        let entry = RootEntry::from_raw([self.get(at), 0]);
        let table = if entry.present() { entry.context_table() } else { self.table() };
        self.set(at, entry.with_present(true).with_ctp(table.get() >> 12).raw()[0]);
        table.plus(16 * u64::from(source.devfn()))
    }

    pub fn put_context(&self, unit: usize, source: SourceId, entry: ContextEntry) {
        let at = self.context_entry(unit, source);
        self.set(at, entry.raw()[0]);
        self.set(at.plus(8), entry.raw()[1]);
    }

    pub fn attach(&self, unit: usize, source: SourceId, did: u64, domain: Tables) {
        self.put_context(unit, source, context(did, domain));
        if unit != 0 {
            self.behind.borrow_mut().insert(source, unit);
        }
    }
}

pub fn context(did: u64, domain: Tables) -> ContextEntry {
    ContextEntry::ZERO
        .with_present(true)
        .with_ssptptr(domain.top.get() >> 12)
        .with_aw(u64::from(domain.levels) - 2)
        .with_did(did)
}
