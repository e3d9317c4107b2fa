//! What an audit did: per invariant how much was checked, and totals of what was read.

use crate::finding::{Finding, Invariant};

/// One invariant as it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// The invariant.
    pub invariant: Invariant,
    /// What was checked, or why it was not, in words.
    pub what: &'static str,
    /// Whether memory and registers can tell. When they cannot, `items` is zero and proves nothing.
    pub checkable: bool,
    /// How many items were looked at.
    pub items: u64,
    /// How many violations were found.
    pub violations: u64,
}

/// What was read and counted on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Units whose tables were walked.
    pub units: u64,
    /// Context tables that were walked.
    pub context_tables: u64,
    /// Page tables that were walked.
    pub tables: u64,
    /// Declared table frames that no entry leads to.
    pub unreached_tables: u64,
    /// Leaves that were checked.
    pub leaves: u64,
    /// Bytes that those leaves map.
    pub mapped_bytes: u64,
    /// Bytes that digests were computed over.
    pub bytes_hashed: u64,
    /// Frames in the map of preserved memory.
    pub preserved_frames: u64,
    /// Runs in the map of preserved memory.
    pub preserved_runs: u64,
    /// Present context entries of preserved requesters and their aliases.
    pub kept_entries: u64,
    /// Present context entries that the cut-off will clear ([`Stage::Sealed`](crate::Stage) only).
    pub entries_to_cut_off: u64,
    /// Present root entries that the cut-off will clear ([`Stage::Sealed`](crate::Stage) only). In scalable mode each half
    /// of an entry counts.
    pub root_entries_to_cut_off: u64,
    /// PASID directories and tables that were walked.
    pub pasid_tables: u64,
    /// Present PASID entries of attachments that were handed over.
    pub kept_pasids: u64,
    /// Present PASID entries, of tables that stay, that the cut-off will clear ([`Stage::Sealed`](crate::Stage) only).
    pub pasids_to_cut_off: u64,
    /// Present entries of PASID directories that the cut-off will clear, each with all PASIDs of its table
    /// ([`Stage::Sealed`](crate::Stage) only).
    pub pasid_tables_to_cut_off: u64,
    /// Present interrupt entries of preserved requesters.
    pub kept_interrupts: u64,
    /// Present interrupt entries that the cut-off will clear ([`Stage::Sealed`](crate::Stage) only).
    pub interrupts_to_cut_off: u64,
}

/// The result of an audit that could be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// One line per invariant, I1 first.
    pub checked: [Checked; 10],
    /// What was read and counted.
    pub totals: Totals,
}

impl Report {
    /// Number of violations, all invariants together. Zero is what lets an update go on.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.checked.iter().fold(0, |sum, checked| sum.saturating_add(checked.violations))
    }
    /// The line of one invariant.
    #[must_use]
    pub fn line(&self, invariant: Invariant) -> Option<&Checked> {
        self.checked.get(invariant.position())
    }
}

/// Words and checkability of one invariant.
const fn words(invariant: Invariant) -> (bool, &'static str) {
    match invariant {
        Invariant::I1 => (
            true,
            "root, context, PASID, page and interrupt table frames are preserved, declared, well formed and reached once",
        ),
        Invariant::I2 => (
            true,
            "present root, context, PASID and interrupt entries belong to preserved requesters or go with the cut-off",
        ),
        Invariant::I3 => (
            true,
            "leaves and posted interrupts point into declared regions, whose memory is preserved and holds no table",
        ),
        Invariant::I4 => {
            (true, "records agree with one another; registers, entries and digests equal what was sealed")
        }
        Invariant::I5 => (true, "domain ids are unique per unit, in range, and those of the entries"),
        Invariant::I6 => (false, "not checkable from memory: what hardware cached does not show"),
        Invariant::I7 => (false, "not checkable from memory: what undone steps left does not show"),
        Invariant::I8 => (
            true,
            "translation is on, in a mode that translates, and interrupts are remapped where they were",
        ),
        Invariant::I9 => (true, "preserved runs, regions and the container lie outside of scratch memory"),
        Invariant::I10 => (true, "the translation mode is the sealed one"),
    }
}

/// Counts, and passes findings on.
pub(crate) struct Sink<'f> {
    findings: &'f mut dyn FnMut(Finding),
    items: [u64; 10],
    violations: [u64; 10],
    pub(crate) totals: Totals,
}

impl<'f> Sink<'f> {
    pub(crate) fn new(findings: &'f mut dyn FnMut(Finding)) -> Self {
        Self { findings, items: [0; 10], violations: [0; 10], totals: Totals::default() }
    }

    /// `count` more items were looked at.
    pub(crate) fn checked(&mut self, invariant: Invariant, count: u64) {
        if let Some(items) = self.items.get_mut(invariant.position()) {
            *items = items.saturating_add(count);
        }
    }

    /// One more violation.
    pub(crate) fn found(&mut self, finding: Finding) {
        if let Some(violations) = self.violations.get_mut(finding.invariant.position()) {
            *violations = violations.saturating_add(1);
        }
        (self.findings)(finding);
    }

    pub(crate) fn report(&self) -> Report {
        let checked = Invariant::ALL.map(|invariant| {
            let (checkable, what) = words(invariant);
            let count = |counts: &[u64; 10]| counts.get(invariant.position()).copied().unwrap_or(0);
            Checked {
                invariant,
                what,
                checkable,
                items: count(&self.items),
                violations: count(&self.violations),
            }
        });
        Report { checked, totals: self.totals }
    }
}

/// Adds without a wrap: totals of foreign numbers.
pub(crate) fn add(total: &mut u64, more: u64) {
    *total = total.saturating_add(more);
}
