//! PASID directories and tables of scalable mode (VT-d 9.5, 9.6): where they are, and how their entries are written.
//!
//! A requester's context entry points to its directory, a directory entry to a table, a table entry says how requests with
//! that PASID are translated. Requests without PASID take PASID 0. Tables come when the first of their 64 PASIDs is
//! attached and stay until the directory goes.

use crate::Hal;
use crate::domain::DomainHandle;
use crate::entries::{clear_to, store};
use crate::error::AttachError;
use crate::unit::VtdUnit;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, NoMemory, TableMemory};
use spec::scalable::{
    PASID_TABLE_ENTRIES, PasidDirectoryEntry, PasidEntry, ScalableContextEntry, directory_index, table_index,
};
use spec::{Extent, Iova, PAGE_SIZE, PhysAddr};

/// Words of a PASID entry.
const WORDS: usize = 8;
/// Bytes of a PASID entry.
const ENTRY: u64 = 8 * WORDS as u64;
/// The present bit, in the first word of an entry.
const PRESENT: u64 = 1;

/// First-stage tables that somebody else keeps, such as a guest: their addresses, the first one too, are addresses of the
/// second stage that they are nested in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestTables {
    /// The top table. A multiple of 4096.
    pub top: Iova,
    /// Levels, 4 or 5.
    pub levels: u8,
}

/// What the requests with one PASID of a requester go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// A domain of either stage.
    Domain(DomainHandle),
    /// First-stage tables that the driver does not know, within a second-stage domain.
    Nested {
        /// The first stage.
        first: GuestTables,
        /// The second stage.
        parent: DomainHandle,
    },
    /// Nothing: the requester reaches all of memory.
    PassThrough,
}

impl Attachment {
    /// The domain of this driver whose tables hardware walks for it.
    #[must_use]
    pub const fn domain(&self) -> Option<DomainHandle> {
        match self {
            Self::Domain(domain) | Self::Nested { parent: domain, .. } => Some(*domain),
            Self::PassThrough => None,
        }
    }
}

/// A PASID directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    /// The context entry that leads to it, the same for all its requesters and their aliases.
    pub(crate) context: ScalableContextEntry,
    /// Its tables, by their index in the directory.
    pub(crate) tables: BTreeMap<u64, PhysAddr>,
}

impl Directory {
    /// The directory that a context entry points to, without its tables.
    pub(crate) const fn of(context: ScalableContextEntry) -> Self {
        Self { context, tables: BTreeMap::new() }
    }

    pub(crate) const fn at(&self) -> PhysAddr {
        self.context.directory()
    }

    pub(crate) const fn pdts(&self) -> u8 {
        self.context.pdts() as u8
    }

    /// Frames that it takes itself.
    pub(crate) const fn frames(pdts: u8) -> u64 {
        (8_u64 << (pdts + 7)).div_ceil(PAGE_SIZE)
    }

    /// PASIDs that it has room for are below this.
    pub(crate) const fn limit(pdts: u8) -> u32 {
        (PASID_TABLE_ENTRIES as u32) << (pdts + 7)
    }

    fn slot(&self, pasid: u32) -> PhysAddr {
        self.at().plus(8 * directory_index(pasid))
    }

    /// The place of a PASID entry, where there is a table for it.
    pub(crate) fn entry_at(&self, pasid: u32) -> Option<PhysAddr> {
        Some(self.tables.get(&directory_index(pasid))?.plus(ENTRY * table_index(pasid)))
    }

    /// The entry of a PASID as it is in memory; zero where there is no table for it.
    pub(crate) fn load<M: TableMemory>(&self, memory: &M, pasid: u32) -> Result<PasidEntry, NoMemory> {
        let mut words = [0; WORDS];
        if let Some(at) = self.entry_at(pasid) {
            memory.read_words(at, &mut words)?;
        }
        Ok(PasidEntry::from_raw(words))
    }

    /// Clears the present bits of entries.
    pub(crate) fn clear_present<M: TableMemory>(&self, memory: &M, pasids: &[u32]) -> Result<(), NoMemory> {
        for at in pasids.iter().filter_map(|pasid| self.entry_at(*pasid)) {
            memory.write(at, memory.read(at)? & !PRESENT)?;
        }
        Ok(())
    }

    /// Wipes entries that hardware has forgotten.
    pub(crate) fn wipe<M: TableMemory>(&self, memory: &M, pasids: &[u32]) -> Result<(), NoMemory> {
        pasids
            .iter()
            .filter_map(|pasid| self.entry_at(*pasid))
            .try_for_each(|at| store(memory, at, &[0; WORDS]))
    }

    /// Finds the tables, and calls `f` with every present entry. Bounded by the directory's size.
    pub(crate) fn read<M: TableMemory>(
        &mut self,
        memory: &M,
        f: &mut dyn FnMut(u32, PasidEntry),
    ) -> Result<(), NoMemory> {
        for index in 0..self.context.directory_entries() {
            let entry = PasidDirectoryEntry::from_raw(memory.read(self.at().plus(8 * index))?);
            if !entry.present() {
                continue;
            }
            self.tables.insert(index, entry.table());
            for i in 0..PASID_TABLE_ENTRIES {
                let pasid = (index * PASID_TABLE_ENTRIES + i) as u32;
                let there = self.load(memory, pasid)?;
                if there.present() {
                    f(pasid, there);
                }
            }
        }
        Ok(())
    }
}

/// A PASID entry about to be written, with the tables that lead to it.
#[derive(Debug)]
pub(crate) struct PasidPlan {
    pub(crate) directory: Directory,
    /// The table of the entry is new.
    new_table: bool,
    pasid: u32,
    before: PasidEntry,
}

/// Frames that a plan will need of those that are reserved, and frames already had.
#[derive(Debug)]
pub(crate) struct PasidFrames {
    pub(crate) reserve: u64,
    /// A directory of more than one frame.
    large: Option<Extent>,
}

impl<H: Hal> VtdUnit<'_, H> {
    /// Counts what an entry for `pasid` needs, and gets the frames of a new directory that is larger than one.
    ///
    /// # Errors
    /// [`AttachError::OutOfMemory`]; nothing has changed.
    pub(crate) fn pasid_frames(
        &self,
        ctx: &mut MaySleep,
        known: Option<&Directory>,
        pasid: u32,
    ) -> Result<PasidFrames, AttachError> {
        if let Some(directory) = known {
            return Ok(PasidFrames { reserve: u64::from(directory.entry_at(pasid).is_none()), large: None });
        }
        match Directory::frames(self.config.pdts()) {
            1 => Ok(PasidFrames { reserve: 2, large: None }),
            frames => {
                let run = self.hal().allocate(ctx, frames, 1).ok_or(AttachError::OutOfMemory { frames })?;
                Ok(PasidFrames { reserve: 1, large: Some(run) })
            }
        }
    }

    /// Gives frames back that no plan was made of.
    pub(crate) fn return_frames(&self, ctx: &mut MaySleep, frames: PasidFrames) {
        frames.large.into_iter().for_each(|run| self.hal().free(ctx, run));
    }

    /// Prepares the entry of `pasid`, out of frames that were counted and reserved.
    ///
    /// # Errors
    /// [`AttachError::NoMemory`].
    pub(crate) fn plan_pasid(
        &self,
        known: Option<&Directory>,
        frames: PasidFrames,
        pasid: u32,
    ) -> Result<PasidPlan, AttachError> {
        let mut directory = match known {
            Some(directory) => directory.clone(),
            None => {
                let at = match frames.large {
                    Some(run) => run.start(),
                    None => self.take_frame()?,
                };
                Directory::of(self.context_to(at))
            }
        };
        let new_table = directory.entry_at(pasid).is_none();
        if new_table {
            directory.tables.insert(directory_index(pasid), self.take_frame()?);
        }
        let before = directory.load(self.hal(), pasid)?;
        Ok(PasidPlan { directory, new_table, pasid, before })
    }

    /// Writes a planned entry, and then makes a new table known, complete as it is.
    pub(crate) fn install_pasid(&self, plan: &PasidPlan, entry: PasidEntry) -> Result<(), NoMemory> {
        let Some(at) = plan.directory.entry_at(plan.pasid) else { return Ok(()) };
        store(self.hal(), at, &entry.raw())?;
        if let Some(table) =
            plan.directory.tables.get(&directory_index(plan.pasid)).filter(|_| plan.new_table)
        {
            let entry = PasidDirectoryEntry::ZERO.with_present(true).with_smptblptr(table.frame().number());
            self.hal().write(plan.directory.slot(plan.pasid), entry.raw())?;
        }
        Ok(())
    }

    /// Undoes [`Self::install_pasid`] however far it came, in reverse. Frames are not given back: hardware may know them.
    pub(crate) fn withdraw_pasid(&self, plan: &PasidPlan) {
        if plan.new_table {
            let _ = self.hal().write(plan.directory.slot(plan.pasid), 0);
        }
        if let Some(at) = plan.directory.entry_at(plan.pasid) {
            let _ = clear_to(self.hal(), at, &plan.before.raw());
        }
    }

    /// The context entry that leads to a new directory.
    fn context_to(&self, directory: PhysAddr) -> ScalableContextEntry {
        let entry = ScalableContextEntry::ZERO.with_present(true).with_pdts(u64::from(self.config.pdts()));
        let entry = entry.with_pasiddirptr(directory.frame().number());
        entry.with_paside(self.choices().pasid_bits > 0)
    }

    /// Wipes a directory whose entries are wiped and that hardware has forgotten, and gives its frames back.
    ///
    /// # Errors
    /// [`NoMemory`]; its frames are not used again then.
    pub(crate) fn dissolve_directory(
        &self,
        ctx: &mut MaySleep,
        directory: &Directory,
    ) -> Result<(), NoMemory> {
        let tables: Vec<(u64, PhysAddr)> = directory.tables.iter().map(|(i, at)| (*i, *at)).collect();
        for (index, table) in tables {
            self.hal().write(directory.at().plus(8 * index), 0)?;
            self.give_frame(ctx, table);
        }
        match Directory::frames(directory.pdts()) {
            1 => self.give_frame(ctx, directory.at()),
            frames => {
                let run = Extent::new(directory.at().frame(), frames);
                run.into_iter().for_each(|run| self.hal().free(ctx, run));
            }
        }
        Ok(())
    }
}
