//! What kernels report while an update runs: one JSON object a line, in the order of happening.
//!
//! The same types are written by the kernels and read by the command. All times are nanoseconds of the machine's clock,
//! which goes on across the jump. Requesters are strings as people write them, `0000:00:02.0`.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// One report. `kernel` fields hold the release string of the reporting kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // fields of a variant are named by its own line
pub enum Event {
    /// A kernel runs. `update` is 0 in the first, 1 after the first jump, and so on.
    Boot { kernel: String, update: u64, home_start: u64, home_bytes: u64, memory_bytes: u64, at: u64 },
    /// A unit was found and (first kernel) set up or (later ones) seen running.
    Unit { unit: String, version: String, cap: u64, ecap: u64, status: u32, root: u64, mode: String },
    /// A PCI function was found.
    Function { requester: String, vendor: u16, device: u16, class: u32 },
    /// A requester was attached to a domain.
    Attached { requester: String, domain_id: u16, listed: bool },
    /// A phase of the update, reported when it is over.
    Phase { kernel: String, phase: String, start_ns: u64, duration_ns: u64 },
    /// A region was preserved.
    PreservedRegion { token: String, start: u64, bytes: u64 },
    /// A requester was preserved, with the other source-ids that its requests may carry.
    Preserved { requester: String, aliases: Vec<String>, domain_id: u16, token: String },
    /// A requester that is not preserved was reduced to its reserved memory: start and bytes of each region.
    Reduced { requester: String, domain_id: u16, token: String, regions: Vec<(u64, u64)> },
    /// A requester that will be cut off, as its requests arrive, with the other source-ids that they may carry and its
    /// target memory.
    ToCutOff { requester: String, aliases: Vec<String>, listed: bool, target_start: u64, target_bytes: u64 },
    /// One PASID of a preserved requester was preserved, and goes through `"second-stage"`, `"first-stage"` or `"nested"`.
    PreservedPasid { requester: String, pasid: u32, through: String, token: String },
    /// A PASID that will be cut off though its requester stays, with its target memory.
    PasidToCutOff { requester: String, pasid: u32, through: String, target_start: u64, target_bytes: u64 },
    /// What the cut-off of one unit did.
    /// `pasids` are those that went though their requesters stay.
    CutOff {
        unit: String,
        cleared: Vec<String>,
        kept: Vec<String>,
        #[serde(default)]
        pasids: Vec<(String, u32)>,
        confirmed: bool,
    },
    /// An audit: before the jump (`"before_jump"`) or after it (`"after_jump"`).
    Audit { when: String, checked: Vec<Checked>, violations: Vec<Violation> },
    /// Where the playing stream stands. `moment` is `"jump"` or `"adopted"`; `frames` counts from the stream's start.
    Position { moment: String, frames: u64, at: u64 },
    /// The handover, for whoever wants to keep its image.
    Handover { fdt: u64, blob_start: u64, blob_bytes: u64, digest: u64, preserved_frames: u64, extents: u64 },
    /// A fault that the unit recorded. `who` is `"preserved"`, `"cut_off"` or `"unattributed"`; `overflow` when the unit
    /// says that faults were lost beside it.
    Fault {
        unit: String,
        requester: String,
        #[serde(default)]
        pasid: Option<u32>,
        address: u64,
        reason: u8,
        words: String,
        write: bool,
        who: String,
        in_gap: bool,
    },
    /// The unit lost faults: how often its overflow bit was found set and cleared.
    FaultOverflow { unit: String, times: u64 },
    /// Something went wrong in a unit's invalidation queue, and was mended.
    QueueError { unit: String, words: String },
    /// Judgement of the memory that a cut-off requester aimed at.
    Target { requester: String, intact: bool, first_difference: Option<u64> },
    /// Judgement of the transfer that a preserved requester had in flight.
    Transfer { requester: String, busy_at_jump: bool, complete: bool, correct: bool },
    /// Judgement of a stream that was preserved: numbers written since it began and in the gap, how many of them the device did
    /// not find again, and whether its ring is whole. `grown`: whether a page that the host mapped after adoption serves it.
    Stream {
        requester: String,
        pasid: Option<u32>,
        through: String,
        sent: u64,
        sent_in_gap: u64,
        lost: u64,
        complete: bool,
        grown: Option<bool>,
    },
    /// Judgement of the memory that a PASID aimed at that was cut off.
    PasidTarget { requester: String, pasid: u32, intact: bool, first_difference: Option<u64> },
    /// Judgement of the capture stream: frames written by the device in the incoming kernel's time, and whether they
    /// arrived without a hole.
    Capture { requester: String, frames: u64, complete: bool },
    /// Memory that was preserved, compared with what the outgoing kernel left.
    Content { token: String, intact: bool },
    /// Interrupts that a kernel answers for: how many messages were sent by a device whose entry was in place, and how many
    /// interrupted a kernel before the update, in the incoming kernel although raised in the gap, and after adoption. What
    /// arrived by another vector, or from a device that was cut off, is misdirected.
    Interrupts {
        kernel: String,
        sent: u64,
        delivered_before: u64,
        delivered_in_gap: u64,
        delivered_after: u64,
        misdirected: u64,
    },
    /// A unit was adopted.
    Adopted { unit: String, domain_ids: Vec<u16>, at: u64 },
    /// A domain failed its checks and was blocked alone.
    Blocked { token: String, requesters: Vec<String>, why: String },
    /// A domain or requester was retrieved by its token.
    Retrieved { what: String, token: String },
    /// Something was refused: a step that did not happen, with the reason in words.
    Refused { step: String, why: String },
    /// Something failed that the run cannot go on from.
    Failed { step: String, why: String },
    /// The last kernel is done.
    Done { kernel: String, update: u64, at: u64 },
}

/// One invariant as it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// `"I1"` to `"I10"`.
    pub invariant: String,
    /// What was checked, in words.
    pub what: String,
    /// How many items.
    pub count: u64,
}

/// One violation of an invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// `"I1"` to `"I10"`.
    pub invariant: String,
    /// The requester concerned, or empty.
    pub requester: String,
    /// The address concerned: IOVA, entry or frame, as the words say.
    pub address: u64,
    /// What is wrong, in words.
    pub words: String,
}
