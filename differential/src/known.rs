//! Where QEMU is known to depart from the specification, or chooses where that leaves a choice. Whatever is not listed here
//! and differs is a failure.
//!
//! [`BUILT_IN`] are choices and departures that the simulated unit can be built with, so that it answers exactly as QEMU
//! does. [`KNOWN`] are those that it is not built with: each explains single requests, by what was recorded of them.

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
        name: "an unusable PASID entry is recorded in spite of its FPD",
        reason: "FPD of an entry of a PASID directory or table keeps faults from being recorded that are found at it (VT-d 9.5, 9.6). QEMU looks at \
                 it in entries alone that it can use.",
        explains: |_, case| {
            let unusable =
                [Reason::PASID_INVALID, Reason::PASID_NOT_PRESENT, Reason::PASID_DIRECTORY_NOT_PRESENT];
            unusable.into_iter().any(|r| case.twin.fault == Some((r, false)) && case.seen_shows(r))
        },
    },
];

/// A choice or departure that the simulated unit can be built with: a field of [`machine::Quirks`] or
/// [`machine::Caching`].
pub struct BuiltIn {
    /// The field.
    pub field: &'static str,
    /// The versions of QEMU it was seen in.
    pub versions: &'static str,
    /// What QEMU does, and what the specification says.
    pub reason: &'static str,
}

const fn built_in(field: &'static str, versions: &'static str, reason: &'static str) -> BuiltIn {
    BuiltIn { field, versions, reason }
}

/// Every one of them.
pub const BUILT_IN: &[BuiltIn] = &[
    built_in(
        "queue_ends_with_wait",
        "7.2, 10.0.2",
        "QEMU switches its queue off only when a wait was its last descriptor.",
    ),
    built_in(
        "tail_restarts_queue",
        "7.2, 10.0.2",
        "A queue goes on when software clears its error. QEMU's goes on only when its tail is written.",
    ),
    built_in(
        "no_queue_record",
        "7.2, 10.0.2",
        "IQERCD tells which device did not answer, and where a descriptor lies that went wrong. QEMU's reads zero.",
    ),
    built_in(
        "pasid_leak",
        "7.2, 10.0.2",
        "The PASID of a fault record means nothing without PP; QEMU shows ones there at times.",
    ),
    built_in(
        "permission_first",
        "7.2, 10.0.2",
        "Which of several faults is reported is open. QEMU tests the permission asked for at each level before reserved bits.",
    ),
    built_in(
        "pass_through_unchecked",
        "7.2, 10.0.2",
        "Addresses that pass through are held against the host's width (VT-d 3.6). QEMU takes any address.",
    ),
    built_in(
        "pasid_reserved_ignored",
        "7.2, 10.0.2",
        "Reserved bits in PASID directory and PASID entries are faults 0x52 and 0x5a. QEMU does not look at them.",
    ),
    built_in(
        "own_pasid_shown",
        "7.2, 10.0.2",
        "PP says that the request carried a PASID. QEMU sets it, with PASID 0, for requests without, when a table walk fails.",
    ),
    built_in(
        "legacy_reasons",
        "7.2, 10.0.2",
        "Root and context entries and the second stage have reasons 0x38 to 0x43 and 0x78 to 0x84 in scalable mode. QEMU \
         reports those of legacy mode, 0x01 to 0x0c.",
    ),
    built_in(
        "root_halves_checked",
        "7.2, 10.0.2",
        "A root entry of scalable mode is two entries (VT-d 9.2). Reserved bits in either half make QEMU refuse both.",
    ),
    built_in(
        "rid_pasid_honoured",
        "7.2, 10.0.2",
        "Without ECAP.RPS the field RID_PASID is reserved. QEMU uses it, and reads beyond a directory that is too small for it.",
    ),
    built_in(
        "snoop_ignored",
        "7.2, 10.0.2",
        "Without ECAP.SC bit 11 of a second-stage leaf is reserved. In scalable mode QEMU ignores it.",
    ),
    built_in(
        "pasid_present_last",
        "10.0.2",
        "An entry that is not present has no other fault. QEMU looks at type and widths of a PASID entry first.",
    ),
    built_in(
        "one_pasid_reason",
        "7.2",
        "Reasons 0x50 to 0x5b tell what is wrong with PASID directory and entry, subject to FPD. QEMU 7.2 has 0x58 for all \
         and records it always.",
    ),
    built_in(
        "second_stage_only",
        "7.2",
        "QEMU 7.2 has no first stage in scalable mode, and takes PASID entries that ask for it for second-stage ones.",
    ),
    built_in(
        "canonical_by_second",
        "10.0.2",
        "First-stage addresses are canonical by the levels of the first stage. QEMU takes AW, the second stage's width.",
    ),
    built_in(
        "dirty_missed",
        "10.0.2",
        "The dirty bit of a first-stage leaf is set before a write is let through (VT-d 3.6.2). QEMU lets a write through \
         without it when the translation was cached by a read, or when the accessed bit was set already.",
    ),
    built_in("tables", "7.2, 10.0.2", "Entries that point to tables may be cached. QEMU caches none."),
    built_in(
        "shared",
        "7.2, 10.0.2",
        "A translation may serve all sources of a domain. In QEMU it serves one source.",
    ),
    built_in(
        "denied",
        "7.2, 10.0.2",
        "A leaf may be cached by a request that it refused. QEMU does not do so.",
    ),
    built_in(
        "pasids",
        "7.2, 10.0.2",
        "PASID entries may be cached. QEMU caches none; but what says pass-through stays in force until the context entry is \
         invalidated.",
    ),
    built_in(
        "coarse",
        "7.2",
        "More may be forgotten than was asked. QEMU 7.2 compares 8 bits of page numbers in page-selective invalidations.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use machine::{Caching, Quirks};

    #[test]
    fn every_choice_and_departure_of_the_simulated_unit_is_in_the_table() {
        let printed = format!("{:?} {:?}", Quirks::default(), Caching::default());
        let fields: Vec<_> =
            printed.split([' ', '{', '}', ',']).filter_map(|word| word.strip_suffix(':')).collect();
        let listed: Vec<_> = BUILT_IN.iter().map(|b| b.field).collect();
        for field in &fields {
            assert!(listed.contains(field), "{field} is not in the table");
        }
        assert_eq!(fields.len(), listed.len(), "{fields:?}");
        assert!(BUILT_IN.iter().all(|b| !b.reason.is_empty() && !b.versions.is_empty()));
        assert!(KNOWN.iter().all(|k| !k.reason.is_empty() && !k.name.is_empty()));
    }
}
