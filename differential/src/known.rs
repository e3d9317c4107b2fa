//! Where QEMU is known to depart from the specification, or from itself in another version. Whatever is not listed here
//! and differs is a failure.

use crate::compare::Case;
use crate::mode::Mode;
use spec::fault::Reason;
use spec::regs::Fsts;

/// One known difference.
pub struct Difference {
    /// What QEMU does.
    pub name: &'static str,
    /// What the specification says, and why the difference is QEMU's.
    pub reason: &'static str,
    /// Whether it explains a request that was judged differently, all of it.
    pub explains: fn(Mode, &Case) -> bool,
}

/// All known differences.
pub const KNOWN: &[Difference] = &[
    Difference {
        name: "a cached translation that lacks permission refuses silently",
        reason: "A refused request is recorded (VT-d 7.2), whether the translation was cached or not. QEMU caches a translation \
             with its permissions when it served a request, and lets the memory system refuse later requests, which \
             records nothing.",
        explains: |_, case| {
            let denied = [Reason::WRITE_DENIED, Reason::READ_DENIED];
            case.twin.cached
                && case.twin.fault.is_some_and(|(reason, recorded)| recorded && denied.contains(&reason))
                && case.seen.meaning() == (Fsts::ZERO, None)
                && case.seen_word.is_none()
        },
    },
    Difference {
        name: "reserved bits in a context entry are recorded in spite of FPD",
        reason: "FPD of the context entry keeps every fault from being recorded that is found at or below it (VT-d 9.3). QEMU's \
             list of such faults leaves this one out.",
        explains: |_, case| {
            case.twin.fault == Some((Reason::CONTEXT_RESERVED, false))
                && case.seen_shows(Reason::CONTEXT_RESERVED)
        },
    },
];
