//! The invariants of a live update, checked on an image: what was looked at, how much, and every violation with the way
//! that leads to it.
//!
//! An image with our own records is judged by the auditor (`ours`). On any other, a Linux kernel's say, `linux` states
//! what a jump would do as things stand: the preserved set is that of the handover found (none, when there is none), and
//! requesters count as preserved only when the [`Policy`] says so.

mod linux;
mod ours;
mod outside;
mod policy;
mod show;

pub use policy::{Policy, PolicyError};
pub use show::{json, text};

use crate::image::Memory;
use crate::model::{Model, Unit};
use crate::translate::{self, Asker};
use audit::Invariant;
use spec::PhysAddr;

/// At which point of an update the image was taken.
pub use audit::Stage;

/// Violations that are kept at most for each invariant; more are counted.
pub const KEPT: usize = 1000;

/// One invariant, as it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Which.
    pub invariant: Invariant,
    /// What was checked, or why it was not.
    pub what: String,
    /// Whether the image can tell.
    pub checkable: bool,
    /// How many items were looked at.
    pub items: u64,
    /// How many violations were found.
    pub violations: u64,
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant that does not hold.
    pub invariant: Invariant,
    /// Where.
    pub at: PhysAddr,
    /// What is wrong, in words.
    pub what: String,
    /// The entries that lead there, from the register on.
    pub path: Vec<String>,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was taken for the preserved set, and by which rules it was judged.
    pub basis: String,
    /// One line for each invariant.
    pub lines: Vec<Line>,
    /// Violations, by invariant.
    pub violations: Vec<Violation>,
    /// What a jump would do, in words.
    pub outlook: Vec<String>,
}

impl Report {
    /// Whether no violation was found.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.lines.iter().all(|line| line.violations == 0)
    }
}

/// Checks an image.
///
/// # Errors
/// In words, when the image cannot be judged at all: no registers, or records that cannot be read.
pub fn verify(memory: &Memory, model: &Model, stage: Stage, policy: &Policy) -> Result<Report, String> {
    if model.units.is_empty() {
        return Err("no registers are known: give --registers or --rtaddr".into());
    }
    match model.handovers.iter().find(|kho| kho.records.is_some()) {
        Some(kho) => ours::verify(memory, model, kho, stage),
        None => Ok(linux::verify(memory, model, policy)),
    }
}

/// What hardware reads on the way to `iova` of a requester, in words.
fn way(memory: &Memory, model: &Model, unit: &Unit, asker: Asker, iova: u64) -> Vec<String> {
    let translation = translate::translate(memory, &unit.registers, model.hardware, asker, iova);
    let steps = translation.steps.iter().filter(|step| step.what != "GSTS");
    steps
        .map(|step| {
            let at = step.at.map_or_else(String::new, |at| format!(" at {at}"));
            let words: Vec<String> = step.raw.iter().rev().map(|word| format!("{word:#x}")).collect();
            format!("{}{at} = {}", step.what, words.join(":"))
        })
        .collect()
}
