//! Our own handovers: the auditor's judgement, with the way to each violation.

use super::{KEPT, Line, Report, Stage, Violation, way};
use crate::format::text::size;
use crate::image::Memory;
use crate::kho::Kho;
use crate::model::{Model, Unit};
use crate::translate::Asker;
use audit::{Finding, Image, Scratch, UnitState, What};
use spec::regs::{Cap, Ecap, Gsts, RootAddr};
use spec::{PhysAddr, Segment, UnitId};

/// Words of working memory that are given at most (8 GiB).
const SCRATCH_LIMIT: u64 = 1 << 30;

/// Runs the auditor.
pub(super) fn verify(memory: &Memory, model: &Model, kho: &Kho, stage: Stage) -> Result<Report, String> {
    let image: &dyn Image = memory;
    let units: Vec<UnitState> = model.units.iter().map(state).collect();
    let needed = Scratch::words_needed(&image, kho.at).map_err(|error| error.to_string())?;
    if needed > SCRATCH_LIMIT {
        return Err(format!("the records want {needed} words of working memory"));
    }
    let mut words = vec![0; usize::try_from(needed).unwrap_or(0)];
    let mut findings: Vec<Finding> = Vec::new();
    let mut left_off = 0_u64;
    let report = audit::audit(&image, kho.at, &units, stage, &mut Scratch::new(&mut words), &mut |finding| {
        if findings.len() < KEPT { findings.push(finding) } else { left_off += 1 }
    })
    .map_err(|error| error.to_string())?;
    let lines = report.checked.iter().map(|line| Line {
        invariant: line.invariant,
        what: line.what.to_owned(),
        checkable: line.checkable,
        items: line.items,
        violations: line.violations,
    });
    let violations = findings.iter().map(|finding| Violation {
        invariant: finding.invariant,
        at: PhysAddr::new(finding.at),
        what: finding.to_string(),
        path: path(memory, model, finding),
    });
    let totals = report.totals;
    let mut outlook = vec![
        format!(
            "{} tables with {} leaves were walked, {} mapped; {} preserved in {} runs",
            totals.tables,
            totals.leaves,
            size(totals.mapped_bytes),
            size(totals.preserved_frames.saturating_mul(4096)),
            totals.preserved_runs,
        ),
        format!("{} context entries belong to preserved requesters", totals.kept_entries),
    ];
    if stage == Stage::Sealed {
        outlook.push(format!(
            "the cut-off will clear {} context entries and {} root entries",
            totals.entries_to_cut_off, totals.root_entries_to_cut_off
        ));
    }
    if left_off > 0 {
        outlook.push(format!("{left_off} more violations are not listed"));
    }
    let words = if stage == Stage::Sealed { "sealed, not cut off yet" } else { "arrived" };
    Ok(Report {
        basis: format!("handover at {}, taken as {words}, judged by its own records", kho.at),
        lines: lines.collect(),
        violations: violations.collect(),
        outlook,
    })
}

/// A unit's registers, as the auditor wants them. What is not known is zero, which the auditor then says.
fn state(unit: &Unit) -> UnitState {
    let registers = &unit.registers;
    UnitState {
        id: UnitId { segment: Segment(0), register_base: registers.base },
        cap: registers.cap().unwrap_or(Cap::ZERO),
        ecap: registers.ecap().unwrap_or(Ecap::ZERO),
        status: registers.gsts().unwrap_or(Gsts::ZERO),
        root: registers.rtaddr().unwrap_or(RootAddr::ZERO),
        interrupts: registers.irta(),
    }
}

/// The entries that lead to what a finding speaks of.
fn path(memory: &Memory, model: &Model, finding: &Finding) -> Vec<String> {
    let Some(requester) = finding.requester else { return Vec::new() };
    let source = requester.source;
    let knows = |unit: &&Unit| {
        finding.unit.is_none_or(|id| id.register_base == unit.registers.base)
            && unit.requesters.iter().any(|known| known.source == source)
    };
    let Some(unit) = model.units.iter().find(knows) else { return Vec::new() };
    let iova = match finding.what {
        What::LeafOutside { iova, .. } => Some(iova),
        _ => None,
    };
    let steps = way(memory, model, unit, Asker { source, pasid: None }, iova.unwrap_or(0));
    // Without an address of its own a finding is about the requester: down to its context entry.
    let keep = if iova.is_some() { steps.len() } else { 3 };
    steps.into_iter().take(keep).collect()
}
