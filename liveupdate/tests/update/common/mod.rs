//! A machine for tests: memory that really holds tables, units whose caches go stale, and a host that counts.
//!
//! [`machine::Machine`] implements the host traits over a map of frames. Frames that are not in the map are no memory.
//! [`unit::FakeUnit`] walks the tables in that memory for DMA and keeps what it read until it is told to forget.
//! [`scene`] builds what most tests start from. Every host call that sleeps panics while a unit's lock is held; marking
//! panics for what was not reserved.
#![allow(unreachable_pub)]

pub mod interrupts;
pub mod machine;
pub mod reseal;
pub mod scalable;
pub mod scene;
pub mod tables;
pub mod unit;

use liveupdate::{
    AliasOf, Attached, ContextRun, Domain, Kept, KeptUnit, PasidRun, Region, Storage, TableRun,
};
use spec::{Extent, PhysAddr, Requester, Segment, SourceId};

/// Storage for a book, as much as a test wants.
pub struct Store {
    pub regions: Vec<Option<Region>>,
    pub domains: Vec<Option<Domain>>,
    pub tables: Vec<Option<TableRun>>,
    pub requesters: Vec<Option<Kept>>,
    pub attachments: Vec<Option<Attached>>,
    pub pasid_runs: Vec<Option<PasidRun>>,
    pub aliases: Vec<Option<AliasOf>>,
    pub units: Vec<Option<KeptUnit>>,
    pub contexts: Vec<Option<ContextRun>>,
    pub runs: Vec<Option<Extent>>,
}

impl Store {
    /// Room for `n` of each kind.
    pub fn of(n: usize) -> Self {
        Self {
            regions: vec![None; n],
            domains: vec![None; n],
            tables: vec![None; n],
            requesters: vec![None; n],
            attachments: vec![None; n],
            pasid_runs: vec![None; n],
            aliases: vec![None; n],
            units: vec![None; n],
            contexts: vec![None; n],
            runs: vec![None; 5 * n + 1],
        }
    }

    pub fn storage(&mut self) -> Storage<'_> {
        Storage {
            regions: &mut self.regions,
            domains: &mut self.domains,
            tables: &mut self.tables,
            requesters: &mut self.requesters,
            attachments: &mut self.attachments,
            pasid_runs: &mut self.pasid_runs,
            aliases: &mut self.aliases,
            units: &mut self.units,
            contexts: &mut self.contexts,
            runs: &mut self.runs,
        }
    }
}

/// `count` frames from the address `start` on.
pub fn extent(start: u64, count: u64) -> Extent {
    Extent::new(PhysAddr::new(start).frame(), count).unwrap()
}

/// `bus:device.function`.
pub fn source(bus: u8, device: u8, function: u8) -> SourceId {
    SourceId::new(bus, device, function)
}

/// A requester on segment 0.
pub fn requester(source: SourceId) -> Requester {
    Requester::new(Segment(0), source)
}
