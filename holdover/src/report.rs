//! The result of a run: the one JSON object of `holdover update --json`, and what the table and the page are made of.
//!
//! `docs/update.md` documents every field. Within `holdover.update/1` fields may be added and never change their meaning.
//! Nothing here depends on the host's clock, so that two deterministic runs give the same bytes.

use scenario::event::{Checked, Violation};
use serde::{Deserialize, Serialize};

/// Name and version of the schema.
pub const SCHEMA: &str = "holdover.update/1";

/// The whole result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// `"qemu"` or `"builtin"`.
    pub machine: String,
    /// Version of the machine, as it names itself.
    pub machine_version: String,
    /// Translation mode of the units, as the kernels say: `"legacy"`, `"second-stage"` or `"first-stage"`; empty when no
    /// unit was reported.
    pub mode: String,
    /// How the run ended.
    pub outcome: Outcome,
    /// First and last kernel of the run.
    pub releases: Releases,
    /// Requesters that were preserved, each once.
    pub preserved: Vec<Preserved>,
    /// Requesters that were cut off.
    pub cut_off: Vec<CutOff>,
    /// Requesters that were reduced to their reserved memory.
    #[serde(default)]
    pub reduced: Vec<Reduced>,
    /// Streams that went on over the jump, with and without PASID.
    #[serde(default)]
    pub streams: Vec<Stream>,
    /// PASIDs that were cut off though their requesters were preserved.
    #[serde(default)]
    pub pasids_cut_off: Vec<PasidCutOff>,
    /// The playing stream, as it was recorded outside the machine.
    pub witness: Witness,
    /// Faults that the incoming kernels reported.
    pub faults: Faults,
    /// Interrupts of devices whose entries were in place, counted by the kernels.
    #[serde(default)]
    pub interrupts: Interrupts,
    /// Page requests of devices, counted by the machine's trace.
    #[serde(default)]
    pub page_requests: PageRequests,
    /// Judged from the machine's own trace: translation was on from the first exercise of the devices to the end.
    pub translation_enabled_throughout: bool,
    /// Both audits, over all updates of the run.
    pub audit: Audits,
    /// Phases in the order of their start; times count from the first kernel's boot.
    pub timeline: Vec<Phase>,
    /// Nanoseconds from the last instruction of the outgoing kernel to adoption, summed over all updates.
    pub gap_ns: u64,

    /// What the run was asked for.
    pub asked: Asked,
    /// Each update of the run by itself.
    pub updates: Vec<Update>,
    /// What else the kernels and the trace say.
    pub evidence: Evidence,
    /// What is wrong, each with its kind and in words. Empty when the update is clean.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether the update completed and nothing is wrong with it.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.outcome == Outcome::Completed && self.findings.is_empty()
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every update was carried through.
    Completed,
    /// A kernel refused a step and went on running as it was.
    Refused,
    /// A kernel, or the machine, could not go on.
    Failed,
}

impl Outcome {
    /// The word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Release strings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releases {
    /// The kernel that the run began with.
    pub outgoing: String,
    /// The kernel that it ended with; empty when there was none.
    pub incoming: String,
}

/// A preserved requester.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preserved {
    /// As people write it, `0000:00:02.0`.
    pub requester: String,
    /// The other source-ids that its requests may carry: those of phantom functions, or a bridge's in its place.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its domain's id on its unit.
    pub domain_id: u16,
    /// The token by which the incoming kernel retrieves it.
    pub token: String,
}

/// A requester that was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutOff {
    /// As people write it; as its requests arrive.
    pub requester: String,
    /// The other source-ids that its requests may carry.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Whether it is a function that enumeration of PCI finds.
    pub listed: bool,
    /// Accesses that the machine blocked after the cut-off, by its own trace.
    pub attempts_blocked: u64,
    /// Whether the memory that it aimed at is as it was.
    pub memory_intact: bool,
    /// Accesses that the machine let through after the cut-off, by its own trace.
    pub attempts_let_through: u64,
}

/// A requester that was not preserved, but reduced to the memory that firmware reserved for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reduced {
    /// As people write it.
    pub requester: String,
    /// Its domain's id on its unit.
    pub domain_id: u16,
    /// The token by which the incoming kernel retrieves it.
    pub token: String,
    /// Its reserved memory: start and length of each region, in hexadecimal.
    pub regions: Vec<[String; 2]>,
    /// Accesses to that memory that the machine let through after the cut-off, by its own trace.
    pub attempts_within: u64,
    /// Accesses to anything else that it let through.
    pub attempts_outside: u64,
}

/// A stream of numbers that a preserved requester writes and reads back, with a PASID or without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Whose.
    pub requester: String,
    /// What its requests carry.
    pub pasid: Option<u32>,
    /// What they go through: `"second-stage"`, `"first-stage"` or `"nested"`.
    pub through: String,
    /// The token of its domain; empty without PASID, where it is that of the requester's own domain.
    pub token: String,
    /// Numbers written since it began.
    pub sent: u64,
    /// Of these, written between the last instruction of an outgoing kernel and adoption.
    pub sent_in_gap: u64,
    /// Numbers that the device did not find again a lap later.
    pub lost: u64,
    /// Whether the last lap lay whole in memory when the incoming kernel looked.
    pub complete: bool,
    /// Of a nested stream, whether a page came through that the host mapped after adoption.
    pub grown: Option<bool>,
}

/// A PASID that was cut off, of a requester that was preserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasidCutOff {
    /// Whose.
    pub requester: String,
    /// Which.
    pub pasid: u32,
    /// What its requests went through before: `"second-stage"`, `"first-stage"`, `"nested"` or `"pass-through"`.
    pub through: String,
    /// Accesses that the machine blocked after the cut-off, by its own trace.
    pub attempts_blocked: u64,
    /// Accesses that it let through.
    pub attempts_let_through: u64,
    /// Whether the memory that it aimed at is as it was.
    pub memory_intact: bool,
}

/// The playing stream. A sample is one stereo frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// Samples of the tune that were recorded, without silence before and after.
    pub samples: u64,
    /// Samples that the device played in the gaps, by its own position.
    pub samples_in_gap: u64,
    /// Places where a sample is not the successor of the one before.
    pub discontinuities: u64,
    /// Samples that belong to no tune, in all discontinuities.
    pub samples_wrong: u64,
    /// Samples of silence before the tune and after it.
    pub silence: [u64; 2],
}

/// Faults that the incoming kernels reported, by what they were attributed to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Of preserved requesters; also those that only the trace shows.
    pub preserved: u64,
    /// Of requesters that were cut off.
    pub cut_off: u64,
    /// Of anybody else.
    pub unattributed: u64,
    /// How often a unit said that it lost records.
    pub overflows: u64,
}

/// Interrupts that devices sent through their entries in the unit's interrupt table. All zero where the kernels only poll.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// Messages sent.
    pub sent: u64,
    /// Delivered to an outgoing kernel.
    pub delivered_before: u64,
    /// Raised in a gap, and delivered to the incoming kernel after adoption.
    pub delivered_in_gap: u64,
    /// Raised and delivered after adoption.
    pub delivered_after: u64,
    /// Sent and never delivered.
    pub lost: u64,
    /// Delivered by a vector that nobody asked for, or of a device that was cut off.
    pub misdirected: u64,
}

/// Groups of page requests (PRI). All zero where no device asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequests {
    /// Raised by devices.
    pub raised: u64,
    /// Answered before the first jump, with the page there.
    pub answered_before: u64,
    /// The same after it.
    pub answered_after: u64,
    /// Never answered, or by hardware because nobody was there to answer.
    pub lost: u64,
    /// Answers to requests that were answered already, or never raised.
    pub answered_twice: u64,
}

/// Both audits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audits {
    /// By the outgoing kernel at freeze.
    pub before_jump: Audit,
    /// By the incoming kernel against the running hardware.
    pub after_jump: Audit,
}

/// One audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// What was checked, with counts.
    pub checked: Vec<Checked>,
    /// What was violated.
    pub violations: Vec<Violation>,
}

/// One phase of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub phase: String,
    /// Nanoseconds since the first kernel's boot.
    pub start_ns: u64,
    /// Nanoseconds.
    pub duration_ns: u64,
    /// Release string of the kernel.
    pub kernel: String,
}

/// What the run was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bits of an input address.
    pub address_width: u8,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Whether the incoming kernel poisons memory that it does not own.
    pub poison: bool,
    /// Updates in a row.
    pub updates: u8,
    /// Whether the machine counted instructions, so that runs repeat bit for bit.
    pub icount: bool,
    /// The mistake that was put in on purpose.
    pub mutant: Option<String>,
    /// The translation mode: `"legacy"`, `"second-stage"` or `"first-stage"`.
    pub mode: String,
    /// The scenario's name.
    pub scenario: String,
}

/// One update: from one kernel to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Release string of the kernel that goes.
    pub outgoing: String,
    /// Release string of the kernel that comes.
    pub incoming: String,
    /// Frames that the stream had played at the last instruction of the outgoing kernel.
    pub frames_at_jump: u64,
    /// Frames that the stream had played at adoption.
    pub frames_at_adoption: u64,
    /// When the jump was, since the first kernel's boot.
    pub jump_ns: u64,
    /// When adoption was, since the first kernel's boot.
    pub adopted_ns: u64,
    /// What the handover holds.
    pub handover: Option<Handover>,
}

impl Update {
    /// Samples that the device played in the gap.
    #[must_use]
    pub fn samples_in_gap(&self) -> u64 {
        self.frames_at_adoption.saturating_sub(self.frames_at_jump)
    }
    /// Length of the gap in nanoseconds.
    #[must_use]
    pub fn gap_ns(&self) -> u64 {
        self.adopted_ns.saturating_sub(self.jump_ns)
    }
}

/// Size and seal of one handover.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Bytes of the sealed records.
    pub blob_bytes: u64,
    /// Digest over the sealed bytes, in hexadecimal.
    pub digest: String,
    /// Frames that it preserves.
    pub preserved_frames: u64,
    /// Runs of adjacent frames among them.
    pub extents: u64,
}

/// What else the kernels and the trace say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Remapping units.
    pub units: Vec<Unit>,
    /// Fault records, in the order in which they were read.
    pub faults: Vec<FaultRecord>,
    /// Transfers that preserved requesters had in flight at the jump.
    pub transfers: Vec<Transfer>,
    /// Streams that wrote to preserved memory.
    pub captures: Vec<Capture>,
    /// Preserved memory that was compared.
    pub contents: Vec<Content>,
    /// Accesses that the trace holds, by requester: `[translated, blocked]` from the first exercise to the end.
    pub traffic: Vec<Traffic>,
}

/// One remapping unit as a kernel found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Segment and register base.
    pub unit: String,
    /// Version of the architecture.
    pub version: String,
    /// Capability register, in hexadecimal.
    pub cap: String,
    /// Extended capability register, in hexadecimal.
    pub ecap: String,
}

/// One fault as a kernel reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRecord {
    /// Whose request it was.
    pub requester: String,
    /// The PASID that the unit recorded with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pasid: Option<u32>,
    /// The address asked for, in hexadecimal.
    pub address: String,
    /// The reason's number in the specification.
    pub reason: u8,
    /// The reason in words.
    pub words: String,
    /// A write; otherwise a read.
    pub write: bool,
    /// `"preserved"`, `"cut_off"` or `"unattributed"`.
    pub who: String,
    /// Whether it was recorded between jump and adoption.
    pub in_gap: bool,
}

/// Judgement of a transfer in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Who transferred.
    pub requester: String,
    /// It was still busy at the jump.
    pub busy_at_jump: bool,
    /// It ended.
    pub complete: bool,
    /// What arrived is what was sent.
    pub correct: bool,
}

/// Judgement of a capture stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// Who captured.
    pub requester: String,
    /// Frames written in the incoming kernel's time.
    pub frames: u64,
    /// They arrived without a hole.
    pub complete: bool,
}

/// Judgement of preserved memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Token of the region.
    pub token: String,
    /// It holds what the outgoing kernel left.
    pub intact: bool,
}

/// Accesses of one requester in the machine's trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Who.
    pub requester: String,
    /// With which PASID; those without one apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pasid: Option<u32>,
    /// Accesses that were translated.
    pub translated: u64,
    /// Accesses that were blocked.
    pub blocked: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// What exactly, in words.
    pub words: String,
}

/// Kinds of findings. `docs/update.md` says what each one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A kernel refused a step.
    Refused,
    /// A kernel or the machine failed.
    Failed,
    /// Translation was off at a moment when devices were running.
    TranslationOff,
    /// The recorded tune has a hole or something foreign in it.
    SoundBroken,
    /// Nothing was played in the gap, or nothing at all: the run shows nothing.
    SoundMissing,
    /// A unit ran in another translation mode than was asked for.
    WrongMode,
    /// A requester that was cut off still had an entry in hardware's tables.
    NotCutOff,
    /// A requester that was cut off was translated, though its entries are gone.
    StaleTranslation,
    /// Memory that a requester aimed at after the cut-off has changed.
    MemoryChanged,
    /// A requester that was cut off made no attempt: the run shows nothing about it.
    NoAttempt,
    /// A blocked attempt that no kernel reported.
    FaultUnreported,
    /// A preserved requester was blocked.
    PreservedFault,
    /// A fault of somebody who is neither preserved nor cut off.
    UnattributedFault,
    /// A transfer in flight did not end, or what arrived is wrong.
    TransferLost,
    /// The transfer was not in flight at the jump: the run shows nothing about it.
    TransferIdle,
    /// The capture stream lost frames.
    CaptureLost,
    /// Preserved memory changed.
    ContentChanged,
    /// An interrupt of a preserved device was not delivered.
    InterruptLost,
    /// An interrupt was delivered that nobody should have had.
    InterruptMisdirected,
    /// A page request was never answered, or by nobody who knows the page; or none was raised after adoption.
    PageRequestLost,
    /// A page request was answered twice.
    PageRequestTwice,
    /// An audit found a violation.
    AuditViolation,
    /// An audit did not take place.
    AuditMissing,
    /// A domain was blocked because it failed its checks.
    DomainBlocked,
    /// The cut-off was not confirmed by hardware.
    CutOffUnconfirmed,
    /// A rule of the hardware's programming interface was broken.
    Misuse,
    /// The record of the run has gaps: marks or events are missing or unreadable.
    RecordIncomplete,
}

impl Kind {
    /// All of them, the gravest first.
    pub const ALL: [Self; 27] = [
        Self::Refused,
        Self::Failed,
        Self::TranslationOff,
        Self::SoundBroken,
        Self::SoundMissing,
        Self::WrongMode,
        Self::NotCutOff,
        Self::StaleTranslation,
        Self::MemoryChanged,
        Self::NoAttempt,
        Self::FaultUnreported,
        Self::PreservedFault,
        Self::UnattributedFault,
        Self::TransferLost,
        Self::TransferIdle,
        Self::CaptureLost,
        Self::ContentChanged,
        Self::InterruptLost,
        Self::InterruptMisdirected,
        Self::PageRequestLost,
        Self::PageRequestTwice,
        Self::AuditViolation,
        Self::AuditMissing,
        Self::DomainBlocked,
        Self::CutOffUnconfirmed,
        Self::Misuse,
        Self::RecordIncomplete,
    ];

    /// As it stands in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::TranslationOff => "translation-off",
            Self::SoundBroken => "sound-broken",
            Self::SoundMissing => "sound-missing",
            Self::WrongMode => "wrong-mode",
            Self::NotCutOff => "not-cut-off",
            Self::StaleTranslation => "stale-translation",
            Self::MemoryChanged => "memory-changed",
            Self::NoAttempt => "no-attempt",
            Self::FaultUnreported => "fault-unreported",
            Self::PreservedFault => "preserved-fault",
            Self::UnattributedFault => "unattributed-fault",
            Self::TransferLost => "transfer-lost",
            Self::TransferIdle => "transfer-idle",
            Self::CaptureLost => "capture-lost",
            Self::ContentChanged => "content-changed",
            Self::InterruptLost => "interrupt-lost",
            Self::InterruptMisdirected => "interrupt-misdirected",
            Self::PageRequestLost => "page-request-lost",
            Self::PageRequestTwice => "page-request-twice",
            Self::AuditViolation => "audit-violation",
            Self::AuditMissing => "audit-missing",
            Self::DomainBlocked => "domain-blocked",
            Self::CutOffUnconfirmed => "cut-off-unconfirmed",
            Self::Misuse => "misuse",
            Self::RecordIncomplete => "record-incomplete",
        }
    }
}
