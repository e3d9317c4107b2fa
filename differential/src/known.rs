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
        reason: "A refused request is recorded (VT-d 7.2), whether the translation was cached or not. QEMU caches a \
                 translation with its permissions when it served a request, and lets the memory system refuse later \
                 requests, which records nothing.",
        explains: |_, case| {
            let denied = [Reason::WRITE_DENIED, Reason::READ_DENIED, Reason::SCALABLE_WRITE_DENIED];
            case.twin.cached
                && case.twin.fault.is_some_and(|(reason, recorded)| recorded && denied.contains(&reason))
                && case.seen.meaning() == (Fsts::ZERO, None)
                && case.seen_word.is_none()
        },
    },
    Difference {
        name: "some faults are recorded in spite of FPD",
        reason: "FPD of an entry keeps every fault from being recorded that is found at or below it (VT-d 9.3, 9.4, \
                 9.5). QEMU's list of such faults leaves these out.",
        explains: |_, case| {
            let left_out = [Reason::CONTEXT_RESERVED, Reason::PASID_DIRECTORY_ACCESS, Reason::PASID_ACCESS];
            left_out.into_iter().any(|r| case.twin.fault == Some((r, false)) && case.seen_shows(r))
        },
    },
    Difference {
        name: "an invalid PASID entry is recorded in spite of its FPD",
        reason: "FPD of a PASID entry keeps faults from being recorded that are found at it (VT-d 9.6). QEMU looks at \
                 it in entries alone that it can use.",
        explains: |_, case| {
            let unusable = [Reason::PASID_INVALID, Reason::PASID_NOT_PRESENT];
            unusable.into_iter().any(|r| case.twin.fault == Some((r, false)) && case.seen_shows(r))
        },
    },
];
