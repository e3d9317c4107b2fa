//! Storage for the core's book and the auditor: taken once, of a fixed size.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use liveupdate::{
    AliasOf, Attached, ContextRun, Domain, Kept, KeptUnit, PasidRun, Region, Storage, TableRun,
};
use spec::Extent;

/// Words of working memory for the auditor: half a megabyte.
const AUDIT_WORDS: usize = 64 << 10;

/// The storage. How much may be preserved in this kernel.
pub(crate) struct Store {
    regions: Box<[Option<Region>]>,
    domains: Box<[Option<Domain>]>,
    tables: Box<[Option<TableRun>]>,
    requesters: Box<[Option<Kept>]>,
    attachments: Box<[Option<Attached>]>,
    pasid_runs: Box<[Option<PasidRun>]>,
    aliases: Box<[Option<AliasOf>]>,
    units: Box<[Option<KeptUnit>]>,
    contexts: Box<[Option<ContextRun>]>,
    runs: Box<[Option<Extent>]>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            regions: vec![None; 32].into(),
            domains: vec![None; 32].into(),
            tables: vec![None; 256].into(),
            requesters: vec![None; 64].into(),
            attachments: vec![None; 128].into(),
            pasid_runs: vec![None; 128].into(),
            aliases: vec![None; 64].into(),
            units: vec![None; 8].into(),
            contexts: vec![None; 64].into(),
            runs: vec![None; 640].into(),
        }
    }

    pub(crate) fn storage(&mut self) -> Storage<'_> {
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

/// Working memory for one audit.
pub(crate) fn audit_words() -> Vec<u64> {
    vec![0; AUDIT_WORDS]
}
