//! What changed between two images, in terms of units, requesters, ranges, interrupts and handovers.
//!
//! Both sides are turned into facts by name (`facts`) and compared; what domains translate is compared address by
//! address (`ranges`), so that tables that moved without a change of meaning show as moved tables only.

mod facts;
mod ranges;

use crate::model::Model;
use serde_json::{Value, json};
use std::io::{self, Write};

/// What happened to a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is only in the second image.
    Added(String),
    /// It is only in the first image.
    Removed(String),
    /// It is in both, and differs.
    Changed {
        /// In the first image.
        from: String,
        /// In the second image.
        to: String,
    },
}

/// A thing that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    pub subject: String,
    /// What happened to it.
    pub change: Change,
}

/// Differences that are kept at most.
pub const KEPT: usize = 100_000;

/// Everything that differs, facts first, then ranges.
#[must_use]
pub fn diff(a: &Model, b: &Model) -> Vec<Difference> {
    let (before, after) = (facts::of(a), facts::of(b));
    let mut found = Vec::new();
    for (key, from) in &before {
        let change = match after.get(key) {
            None => Change::Removed(from.clone()),
            Some(to) if to != from => Change::Changed { from: from.clone(), to: to.clone() },
            Some(_) => continue,
        };
        found.push(Difference { subject: key.1.clone(), change });
    }
    for (key, to) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
        found.push(Difference { subject: key.1.clone(), change: Change::Added(to.clone()) });
    }
    found.extend(ranges::preserved(a, b));
    found.extend(ranges::translated(a, b));
    found.truncate(KEPT);
    found
}

/// The differences for people.
///
/// # Errors
/// When `out` cannot be written.
pub fn text(out: &mut dyn Write, differences: &[Difference]) -> io::Result<()> {
    if differences.is_empty() {
        return writeln!(out, "no difference");
    }
    for Difference { subject, change } in differences {
        match change {
            Change::Added(what) => writeln!(out, "+ {subject}: {what}")?,
            Change::Removed(what) => writeln!(out, "- {subject}: {what}")?,
            Change::Changed { from, to } => writeln!(out, "~ {subject}: {from} -> {to}")?,
        }
    }
    Ok(())
}

/// The differences for programs: schema `holdover.diff/1`.
#[must_use]
pub fn to_json(differences: &[Difference]) -> Value {
    let list: Vec<Value> = differences
        .iter()
        .map(|Difference { subject, change }| match change {
            Change::Added(what) => json!({ "subject": subject, "change": "added", "to": what }),
            Change::Removed(what) => json!({ "subject": subject, "change": "removed", "from": what }),
            Change::Changed { from, to } => {
                json!({ "subject": subject, "change": "changed", "from": from, "to": to })
            }
        })
        .collect();
    json!({ "schema": "holdover.diff/1", "same": differences.is_empty(), "differences": list })
}
