//! What went wrong in an invalidation queue (VT-d 6.5.2.10): noted where it is mended, told when somebody asks.
//!
//! The queue notes under the unit's lock, where nothing may allocate; a reader takes the notes later, by name.

use crate::Hal;
use crate::queue::Descriptor;
use crate::registers::Registers;
use core::cell::Cell;
use core::fmt;
use spec::regs::{Fsts, Iqercd, offset, queue_error};
use spec::{Requester, SourceId, UnitId};

/// Most errors that are kept until somebody takes them.
const KEPT: usize = 8;

/// An error of an invalidation queue. The queue went on after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueError {
    /// The unit refused a descriptor (FSTS.IQE). It was not carried out; a wait took its place.
    Refused {
        /// The unit.
        unit: UnitId,
        /// The descriptor's first 128 bits.
        descriptor: Descriptor,
        /// What the unit says was wrong: a code of [`spec::regs::queue_error`].
        why: u8,
    },
    /// A device did not answer an invalidation of its device-TLB in time (FSTS.ITE). The unit dropped that and every wait
    /// it had fetched.
    Unanswered {
        /// The unit.
        unit: UnitId,
        /// The device; `None` where the unit does not say.
        requester: Option<Requester>,
    },
    /// An answer to an invalidation came that the unit did not expect (FSTS.ICE). Nothing was lost.
    Unexpected {
        /// The unit.
        unit: UnitId,
        /// Who answered; `None` where the unit does not say.
        requester: Option<Requester>,
    },
}

impl QueueError {
    /// The unit.
    #[must_use]
    pub const fn unit(&self) -> UnitId {
        match self {
            Self::Refused { unit, .. } | Self::Unanswered { unit, .. } | Self::Unexpected { unit, .. } => {
                *unit
            }
        }
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { unit, descriptor: [low, high], why } => {
                let why = words(*why);
                write!(f, "unit {unit}: invalidation descriptor {low:#x} {high:#x} refused: {why}")
            }
            Self::Unanswered { unit, requester } => {
                write!(f, "unit {unit}: ")?;
                who(*requester, f)?;
                f.write_str(" did not answer an invalidation of its device-TLB")
            }
            Self::Unexpected { unit, requester } => {
                write!(f, "unit {unit}: ")?;
                who(*requester, f)?;
                f.write_str(" answered an invalidation that nobody waits for")
            }
        }
    }
}

fn who(requester: Option<Requester>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match requester {
        Some(requester) => write!(f, "{requester}"),
        None => f.write_str("a device (which is not said)"),
    }
}

/// IQERCD.IQEI in words.
const fn words(why: u8) -> &'static str {
    match why as u64 {
        queue_error::NO_INFO => "no reason given",
        queue_error::BAD_TAIL => "the tail lies outside the queue",
        queue_error::FETCH => "it cannot be read",
        queue_error::BAD_TYPE => "unknown type",
        queue_error::RESERVED_FIELD => "a reserved field is set",
        queue_error::BAD_WIDTH => "its width does not go with the mode",
        queue_error::TAIL_MISALIGNED => "the tail is misaligned",
        queue_error::BAD_TABLE_MODE => "it does not go with the root table's mode",
        _ => "unknown reason",
    }
}

/// The errors of one queue that nobody has taken yet.
#[derive(Debug, Default)]
pub struct QueueErrors {
    kept: Cell<[Option<QueueError>; KEPT]>,
    lost: Cell<u32>,
}

impl QueueErrors {
    fn note(&self, error: QueueError) {
        let mut kept = self.kept.get();
        match kept.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(error),
            None => self.lost.set(self.lost.get().saturating_add(1)),
        }
        self.kept.set(kept);
    }

    /// Hands each error to `f`, oldest first, and forgets it. Says how many more there were than could be kept.
    pub fn take(&self, f: &mut dyn FnMut(QueueError)) -> u32 {
        self.kept.take().into_iter().flatten().for_each(f);
        self.lost.take()
    }

    /// Notes the refused descriptor at the queue's head. Call before FSTS.IQE is cleared.
    pub(crate) fn refused<H: Hal>(&self, registers: &Registers<'_, H>, descriptor: Descriptor) {
        let why = record(registers).iqei() as u8;
        self.note(QueueError::Refused { unit: registers.id, descriptor, why });
    }

    /// Notes and clears FSTS.ITE; the queue fetches again then. Says whose answer is missing, where the unit says.
    pub(crate) fn clear_unanswered<H: Hal>(&self, registers: &Registers<'_, H>) -> Option<SourceId> {
        let requester = named(registers, record(registers).itesid());
        self.note(QueueError::Unanswered { unit: registers.id, requester });
        registers.write32(offset::FSTS, Fsts::ZERO.with_ite(true).raw());
        requester.map(|r| r.source)
    }

    /// Notes and clears FSTS.ICE, if it is set. It does not stop the queue.
    pub(crate) fn clear_unexpected<H: Hal>(&self, registers: &Registers<'_, H>) {
        if registers.fault_status().ice() {
            let requester = named(registers, record(registers).icesid());
            self.note(QueueError::Unexpected { unit: registers.id, requester });
            registers.write32(offset::FSTS, Fsts::ZERO.with_ice(true).raw());
        }
    }
}

fn record<H: Hal>(registers: &Registers<'_, H>) -> Iqercd {
    Iqercd::from_raw(registers.read64(offset::IQERCD))
}

/// 0 is the host bridge, which has no device-TLB: units that keep no record read so.
fn named<H: Hal>(registers: &Registers<'_, H>, source: u64) -> Option<Requester> {
    (source != 0).then(|| Requester::new(registers.id.segment, SourceId::from_raw(source as u16)))
}
