//! Storage for a book in one piece, for hosts that would rather choose one number than ten.

use crate::book::{
    AliasOf, Attached, ContextRun, Domain, Kept, KeptUnit, PasidRun, Region, Storage, TableRun,
};
use spec::Extent;

/// Room to preserve up to `N` requesters, as many domains and regions, two PASIDs and one alias for each requester, and four
/// runs of table frames for each domain. What is full is refused with the name of the list; a host with another mix gives a
/// [`Storage`] of its own. It takes no allocation: a static, or memory that a host takes once.
#[derive(Debug)]
pub struct Room<const N: usize> {
    regions: [Option<Region>; N],
    domains: [Option<Domain>; N],
    tables: [[Option<TableRun>; N]; 4],
    requesters: [Option<Kept>; N],
    attachments: [[Option<Attached>; N]; 2],
    pasid_runs: [[Option<PasidRun>; N]; 2],
    aliases: [Option<AliasOf>; N],
    units: [Option<KeptUnit>; N],
    contexts: [Option<ContextRun>; N],
    /// One for each region, run of tables, PASID structure and context table, two for each unit, and one more.
    runs: [[Option<Extent>; N]; 11],
}

impl<const N: usize> Room<N> {
    /// Empty room.
    pub const fn new() -> Self {
        Self {
            regions: [None; N],
            domains: [None; N],
            tables: [[None; N]; 4],
            requesters: [None; N],
            attachments: [[None; N]; 2],
            pasid_runs: [[None; N]; 2],
            aliases: [None; N],
            units: [None; N],
            contexts: [None; N],
            runs: [[None; N]; 11],
        }
    }

    /// The storage, for one update: an [`Outgoing`](crate::Outgoing) or an [`open`](crate::open).
    pub fn storage(&mut self) -> Storage<'_> {
        Storage {
            regions: &mut self.regions,
            domains: &mut self.domains,
            tables: self.tables.as_flattened_mut(),
            requesters: &mut self.requesters,
            attachments: self.attachments.as_flattened_mut(),
            pasid_runs: self.pasid_runs.as_flattened_mut(),
            aliases: &mut self.aliases,
            units: &mut self.units,
            contexts: &mut self.contexts,
            runs: self.runs.as_flattened_mut(),
        }
    }
}

impl<const N: usize> Default for Room<N> {
    fn default() -> Self {
        Self::new()
    }
}
