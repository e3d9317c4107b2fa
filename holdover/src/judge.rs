//! Makes a result of what a run left behind.
//!
//! Three witnesses are heard apart: the kernels (their events), the devices (sound and memory), and the machine (its trace).
//! Each check adds what it found to the report; whatever a witness should have said and did not is a finding too, so that
//! a run which shows nothing never passes for a clean one.

mod devices;
mod kernels;
mod machine;
mod streams;

pub(crate) use kernels::in_words;

use crate::record::Record;
use crate::report::{Asked, Finding, Kind, Outcome, Report, SCHEMA};
use crate::sound::{Heard, Tune};

/// The result, and what the picture of the sound is drawn from.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The result.
    pub report: Report,
    /// What was heard.
    pub heard: Heard,
}

/// Judges a run.
#[must_use]
pub fn judge(asked: &Asked, record: &Record, tune: &Tune) -> Judgement {
    let heard = record.sound.as_ref().map(|recording| tune.listen(recording)).unwrap_or_default();
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        machine: record.machine.clone(),
        machine_version: record.machine_version.clone(),
        mode: String::new(),
        outcome: Outcome::Completed,
        releases: Default::default(),
        preserved: Vec::new(),
        cut_off: Vec::new(),
        reduced: Vec::new(),
        streams: Vec::new(),
        pasids_cut_off: Vec::new(),
        witness: Default::default(),
        faults: Default::default(),
        interrupts: Default::default(),
        page_requests: Default::default(),
        translation_enabled_throughout: false,
        audit: Default::default(),
        timeline: Vec::new(),
        gap_ns: 0,
        asked: asked.clone(),
        updates: Vec::new(),
        evidence: Default::default(),
        findings: Vec::new(),
    };
    kernels::judge(&mut report, record);
    devices::judge(&mut report, record, &heard);
    machine::judge(&mut report, record);
    streams::judge(&mut report, record);
    // The same thing may be said by several witnesses; it is told once, with the gravest first.
    report.findings.sort_by_key(|f| f.kind);
    report.findings.dedup();
    Judgement { report, heard }
}

impl Report {
    /// Adds a finding.
    pub(crate) fn find(&mut self, kind: Kind, words: impl Into<String>) {
        self.findings.push(Finding { kind, words: words.into() });
    }
    /// Makes the outcome worse, never better.
    pub(crate) fn at_best(&mut self, outcome: Outcome) {
        self.outcome = match (self.outcome, outcome) {
            (Outcome::Failed, _) | (_, Outcome::Failed) => Outcome::Failed,
            (Outcome::Refused, _) | (_, Outcome::Refused) => Outcome::Refused,
            _ => Outcome::Completed,
        };
    }
}

/// Counts with the word that goes with it: `1 sample`, `2 samples`.
pub(crate) fn count(number: u64, word: &str) -> String {
    format!("{} {word}{}", crate::table::thousands(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
