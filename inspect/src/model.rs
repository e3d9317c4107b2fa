//! What an image and its registers say, put together: units, requesters, domains, interrupts, handover.
//!
//! [`Model::build`] starts from each unit's registers and follows hardware's own pointers down to the page tables, which
//! are summed up (not stored: a domain may have millions of leaves; whoever wants them all walks again with
//! [`crate::tables::walk`]). Everything that is missing or cannot be is kept as a [`Problem`] with the place where it was
//! found. Handovers are found by [`crate::kho`].

mod interrupts;
mod space;
pub(crate) mod unit;

pub use interrupts::{Descriptor, Interrupts, Queue, descriptor_name};
pub use space::{Range, Space, Trouble};

use crate::image::{Form, Memory};
use crate::kho::{self, Kho};
use crate::registers::Registers;
use crate::tables::{Budget, Hardware, Top};
use spec::context::{ContextEntry, TranslationType};
use spec::scalable::{PasidEntry, PasidTranslation, ScalableContextEntry};
use spec::{PhysAddr, SourceId};
use std::collections::HashMap;
use std::fmt;

/// How much is taken in.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Page tables that are read, over all domains.
    pub budget: Budget,
    /// PASID entries that are read, over all requesters: more are left off.
    pub pasids: usize,
    /// Ranges that are kept for each domain: more are left off.
    pub ranges: usize,
    /// Problems that are kept at each place: more are counted.
    pub problems: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { budget: Budget::default(), pasids: 1 << 20, ranges: 1 << 20, problems: 256 }
    }
}

/// Where to look for a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FindKho {
    /// Look at the start of every frame, unless the image is large or has to be asked for frame by frame.
    #[default]
    Auto,
    /// Look at the start of every frame.
    Scan,
    /// The tree is at this address.
    At(PhysAddr),
    /// Do not.
    No,
}

/// Images with more bytes are not searched for a handover unasked.
pub const SCAN_LIMIT: u64 = 4 << 30;

/// The two root-table formats, and what else RTADDR.TTM may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Legacy.
    Legacy,
    /// Scalable.
    Scalable,
    /// Every DMA is aborted.
    AbortDma,
    /// Reserved: the value.
    Reserved(u64),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Legacy => f.write_str("legacy"),
            Self::Scalable => f.write_str("scalable"),
            Self::AbortDma => f.write_str("abort-DMA"),
            Self::Reserved(value) => write!(f, "reserved ({value})"),
        }
    }
}

/// Something that is missing from the image or cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Physical address of what is wrong.
    pub at: PhysAddr,
    /// What it is about, in words.
    pub subject: String,
    /// What is wrong, in words.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.subject, self.at, self.what)
    }
}

/// Everything known of an image.
#[derive(Debug)]
pub struct Model {
    /// Units, in the order of their registers.
    pub units: Vec<Unit>,
    /// Page tables, each once.
    pub spaces: Vec<Space>,
    /// Handovers.
    pub handovers: Vec<Kho>,
    /// Who uses each page table.
    pub users: Vec<Vec<User>>,
    /// What hardware allows.
    pub hardware: Hardware,
    /// What has no better place.
    pub problems: Vec<Problem>,
}

/// A unit.
#[derive(Debug)]
pub struct Unit {
    /// Its registers.
    pub registers: Registers,
    /// Format of its root table; `None` when RTADDR is not known.
    pub mode: Option<Mode>,
    /// Whether it translates; `None` when GSTS is not known.
    pub translating: Option<bool>,
    /// Its requesters, ascending.
    pub requesters: Vec<Requester>,
    /// Context tables: address, bus, and the half of the bus in scalable mode.
    pub context_tables: Vec<ContextTable>,
    /// Its interrupt table.
    pub interrupts: Option<Interrupts>,
    /// Its invalidation queue.
    pub queue: Option<Queue>,
    /// What is wrong with its tables above the page tables.
    pub problems: Vec<Problem>,
    /// Problems that were not kept.
    pub problems_left_off: u64,
    /// PASID entries that were not read.
    pub pasids_left_off: bool,
}

impl Unit {
    /// Address of the root table.
    #[must_use]
    pub fn root_table(&self) -> Option<PhysAddr> {
        self.registers.rtaddr().map(|rtaddr| rtaddr.table())
    }
}

/// A context table and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextTable {
    /// Physical address.
    pub at: PhysAddr,
    /// Bus.
    pub bus: u8,
    /// Scalable mode: the table of functions from 0x80 on.
    pub upper: bool,
}

/// A requester with a present context entry.
#[derive(Debug, Clone)]
pub struct Requester {
    /// Its source id.
    pub source: SourceId,
    /// Address of its root entry.
    pub root_at: PhysAddr,
    /// Its root entry.
    pub root: [u64; 2],
    /// Address of its context entry.
    pub context_at: PhysAddr,
    /// Its context entry.
    pub context: Context,
    /// What becomes of its requests: one in legacy mode, one for each PASID in scalable mode.
    pub attachments: Vec<Attachment>,
    /// Tables of its own: PASID directory and PASID tables, with their lengths in bytes.
    pub pasid_tables: Vec<(PhysAddr, u64)>,
}

/// A context entry of either mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Legacy.
    Legacy(ContextEntry),
    /// Scalable.
    Scalable(ScalableContextEntry),
}

impl Context {
    /// The first two words, as Linux prints them.
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        match self {
            Self::Legacy(entry) => entry.raw(),
            Self::Scalable(entry) => [entry.raw()[0], entry.raw()[1]],
        }
    }
}

/// What becomes of the requests of a requester (with a PASID, in scalable mode).
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The PASID and where its entries lie; `None` in legacy mode.
    pub pasid: Option<Pasid>,
    /// Domain id.
    pub domain_id: u16,
    /// What becomes of them.
    pub route: Route,
}

/// A PASID entry and the way to it.
#[derive(Debug, Clone, Copy)]
pub struct Pasid {
    /// The PASID.
    pub number: u32,
    /// Requests without PASID take this one.
    pub is_rid_pasid: bool,
    /// Address of the directory entry.
    pub directory_at: PhysAddr,
    /// The directory entry.
    pub directory: u64,
    /// Address of the PASID entry.
    pub at: PhysAddr,
    /// The PASID entry.
    pub entry: PasidEntry,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It goes through a page table: index into [`Model::spaces`].
    Space(usize),
    /// It passes unchanged: all of memory is within reach.
    PassThrough,
    /// The entry is of a reserved type: hardware refuses.
    Refused,
}

impl Model {
    /// Reads the image.
    #[must_use]
    pub fn build(
        memory: &Memory,
        registers: Vec<Registers>,
        hardware: Hardware,
        find: FindKho,
        limits: Limits,
    ) -> Self {
        let mut builder = Builder { memory, limits, tops: Vec::new(), known: HashMap::new(), pasids: 0 };
        let mut units: Vec<Unit> = registers.into_iter().map(|registers| builder.unit(registers)).collect();
        let mut budget = limits.budget;
        let tops = std::mem::take(&mut builder.tops);
        let spaces: Vec<Space> = tops
            .into_iter()
            .map(|(top, users)| space::sum_up(memory, top, users, hardware, &mut budget, limits))
            .collect();
        for unit in &mut units {
            unit::judge_domain_ids(unit, &spaces);
        }
        let mut problems = Vec::new();
        let handovers = match find {
            FindKho::No => Vec::new(),
            FindKho::At(at) => kho::read(memory, at)
                .map_err(|what| problems.push(Problem { at, subject: "handover".into(), what }))
                .into_iter()
                .collect(),
            FindKho::Auto if memory.bytes() > SCAN_LIMIT || memory.form() == Form::Live => Vec::new(),
            FindKho::Auto | FindKho::Scan => kho::scan(memory),
        };
        let users = users(&units, spaces.len());
        Self { units, spaces, handovers, users, hardware, problems }
    }

    /// Whether nothing is missing and nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
            && self.units.iter().all(|unit| {
                unit.problems.is_empty()
                    && unit.interrupts.iter().all(|table| table.problems.is_empty())
                    && unit.queue.iter().all(|queue| queue.missing.is_none())
            })
            && self.spaces.iter().all(|space| space.troubles.is_empty())
            && self.handovers.iter().all(|kho| kho.problems.is_empty())
    }
}

/// Who uses a page table: the unit's number, the source id, the PASID in scalable mode.
pub type User = (usize, SourceId, Option<u32>);

/// Who uses each of `spaces` page tables.
fn users(units: &[Unit], spaces: usize) -> Vec<Vec<User>> {
    let mut users = vec![Vec::new(); spaces];
    for (number, unit) in units.iter().enumerate() {
        for requester in &unit.requesters {
            for attachment in &requester.attachments {
                if let Route::Space(space) = attachment.route {
                    users[space].push((number, requester.source, attachment.pasid.map(|pasid| pasid.number)));
                }
            }
        }
    }
    users
}

/// What is carried along while units are read.
struct Builder<'m> {
    memory: &'m Memory,
    limits: Limits,
    /// Page tables found so far, and how many attachments use them.
    tops: Vec<(Top, u64)>,
    /// Their numbers.
    known: HashMap<Top, usize>,
    /// PASID entries read so far.
    pasids: usize,
}

/// In words.
#[must_use]
pub const fn translation_type_words(kind: TranslationType) -> &'static str {
    match kind {
        TranslationType::SecondStage => "second stage",
        TranslationType::SecondStageDeviceTlb => "second stage, device-TLB allowed",
        TranslationType::PassThrough => "pass-through",
        TranslationType::Reserved => "reserved type",
    }
}

/// In words.
#[must_use]
pub const fn pasid_translation_words(kind: PasidTranslation) -> &'static str {
    match kind {
        PasidTranslation::FirstStage => "first stage",
        PasidTranslation::SecondStage => "second stage",
        PasidTranslation::Nested => "nested",
        PasidTranslation::PassThrough => "pass-through",
        PasidTranslation::Reserved(_) => "reserved type",
    }
}
