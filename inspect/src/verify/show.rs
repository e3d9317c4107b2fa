//! A verdict as text and as JSON.

use super::{Report, Violation};
use serde_json::{Value, json as value};
use std::io::{self, Write};

/// Violations of each invariant that are shown unless all are asked for.
const SHOWN: usize = 10;

/// The verdict for people.
///
/// # Errors
/// When `out` cannot be written.
pub fn text(out: &mut dyn Write, report: &Report, verbose: bool) -> io::Result<()> {
    writeln!(out, "{}\n", report.basis)?;
    for line in &report.lines {
        let verdict = match (line.checkable, line.violations) {
            (false, _) => "  ?  ".to_owned(),
            (true, 0) => " ok  ".to_owned(),
            (true, _) => "FAILS".to_owned(),
        };
        let name = line.invariant.to_string();
        write!(out, "{name:3}  {verdict}  {}", line.what)?;
        if line.checkable {
            write!(out, " ({} checked, {} violations)", line.items, line.violations)?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    for line in &report.outlook {
        writeln!(out, "{line}")?;
    }
    for line in report.lines.iter().filter(|line| line.violations > 0) {
        writeln!(out, "\n{}: {} violations", line.invariant, line.violations)?;
        let of: Vec<&Violation> =
            report.violations.iter().filter(|violation| violation.invariant == line.invariant).collect();
        let shown = if verbose { of.len() } else { SHOWN.min(of.len()) };
        for violation in &of[..shown] {
            writeln!(out, "  {}", violation.what)?;
            if !violation.path.is_empty() {
                writeln!(out, "      by {}", violation.path.join(", "))?;
            }
        }
        if line.violations > shown as u64 {
            writeln!(out, "  and {} more", line.violations - shown as u64)?;
        }
    }
    Ok(())
}

/// The verdict for programs: schema `holdover.verify/1`.
#[must_use]
pub fn json(report: &Report) -> Value {
    let lines: Vec<Value> = report
        .lines
        .iter()
        .map(|line| {
            value!({
                "invariant": line.invariant.to_string(),
                "what": line.what,
                "checkable": line.checkable,
                "items": line.items,
                "violations": line.violations,
            })
        })
        .collect();
    let violations: Vec<Value> = report
        .violations
        .iter()
        .map(|violation| {
            value!({
                "invariant": violation.invariant.to_string(),
                "at": format!("{:#x}", violation.at.get()),
                "what": violation.what,
                "path": violation.path,
            })
        })
        .collect();
    value!({
        "schema": "holdover.verify/1",
        "basis": report.basis,
        "holds": report.holds(),
        "invariants": lines,
        "violations": violations,
        "outlook": report.outlook,
    })
}
