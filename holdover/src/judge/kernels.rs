//! What the kernels say of themselves: releases, phases, audits, what was refused, and whether they came to the end.

use super::count;
use crate::record::{Ended, Record};
use crate::report::{Audit, Handover, Kind, Outcome, Phase, Preserved, Reduced, Report, Unit, Update};
use crate::table;
use scenario::event::{Checked, Event, Violation};

pub(super) fn judge(report: &mut Report, record: &Record) {
    let origin = record.serial.events.iter().find_map(|e| match e {
        Event::Boot { at, .. } => Some(*at),
        _ => None,
    });
    let since = |at: u64| at.saturating_sub(origin.unwrap_or(0));
    for event in &record.serial.events {
        story(report, event, &since);
        audits(report, event);
    }
    report.timeline.sort_by_key(|p| p.start_ns);
    report.gap_ns = report.updates.iter().map(Update::gap_ns).sum();
    ends(report, record);
}

fn story(report: &mut Report, event: &Event, since: &impl Fn(u64) -> u64) {
    match event {
        Event::Boot { kernel, update, .. } => boot(report, kernel, *update),
        Event::Unit { unit, version, cap, ecap, mode, .. } => {
            report.mode.clone_from(mode);
            if *mode != report.asked.mode {
                let words =
                    format!("unit {unit} runs in {mode} mode, where {} was asked for", report.asked.mode);
                report.find(Kind::WrongMode, words);
            }
            if !report.evidence.units.iter().any(|u| u.unit == *unit) {
                let (cap, ecap) = (format!("{cap:#018x}"), format!("{ecap:#018x}"));
                report.evidence.units.push(Unit { unit: unit.clone(), version: version.clone(), cap, ecap });
            }
        }
        Event::Phase { kernel, phase, start_ns, duration_ns } => report.timeline.push(Phase {
            phase: phase.clone(),
            start_ns: since(*start_ns),
            duration_ns: *duration_ns,
            kernel: kernel.clone(),
        }),
        Event::Preserved { requester, aliases, domain_id, token }
            if !report.preserved.iter().any(|p| p.requester == *requester) =>
        {
            let (requester, aliases, token) = (requester.clone(), aliases.clone(), token.clone());
            report.preserved.push(Preserved { requester, aliases, domain_id: *domain_id, token });
        }
        Event::Reduced { requester, domain_id, token, regions }
            if !report.reduced.iter().any(|r| r.requester == *requester) =>
        {
            report.reduced.push(Reduced {
                requester: requester.clone(),
                domain_id: *domain_id,
                token: token.clone(),
                regions: regions
                    .iter()
                    .map(|(start, bytes)| [start, bytes].map(|n| format!("{n:#x}")))
                    .collect(),
                attempts_within: 0,
                attempts_outside: 0,
            });
        }
        Event::Handover { blob_bytes, digest, preserved_frames, extents, .. } => {
            let update = pending(report);
            update.handover = Some(Handover {
                blob_bytes: *blob_bytes,
                digest: format!("{digest:#018x}"),
                preserved_frames: *preserved_frames,
                extents: *extents,
            });
        }
        Event::Position { moment, frames, at } if moment == "jump" => {
            let update = pending(report);
            (update.frames_at_jump, update.jump_ns) = (*frames, since(*at));
        }
        Event::Position { moment, frames, at } if moment == "adopted" => {
            let update = pending(report);
            (update.frames_at_adoption, update.adopted_ns) = (*frames, since(*at));
        }
        Event::Refused { step, why } => {
            report.at_best(Outcome::Refused);
            report.find(Kind::Refused, format!("{step} was refused: {why}"));
        }
        Event::Failed { step, why } => {
            report.at_best(Outcome::Failed);
            report.find(Kind::Failed, format!("{step} failed: {why}"));
        }
        Event::Blocked { token, requesters, why } => {
            let who = requesters.join(", ");
            let token = table::token(token);
            report.find(Kind::DomainBlocked, format!("domain {token} [{who}] was blocked: {why}"));
        }
        _ => {}
    }
}

fn boot(report: &mut Report, kernel: &str, update: u64) {
    if update == 0 {
        report.releases.outgoing = kernel.to_owned();
    } else {
        report.releases.incoming = kernel.to_owned();
        pending(report).incoming = kernel.to_owned();
    }
}

/// The update that is under way: the last one, or a new one when its kernels are both known and it was adopted.
fn pending(report: &mut Report) -> &mut Update {
    let outgoing = match report.updates.last() {
        None => Some(report.releases.outgoing.clone()),
        Some(last) if last.adopted_ns != 0 => Some(last.incoming.clone()),
        Some(_) => None,
    };
    if let Some(outgoing) = outgoing {
        report.updates.push(Update { outgoing, ..Update::default() });
    }
    let last = report.updates.len() - 1;
    &mut report.updates[last]
}

fn audits(report: &mut Report, event: &Event) {
    let Event::Audit { when, checked, violations } = event else { return };
    let (audit, words) = match when.as_str() {
        "before_jump" => (&mut report.audit.before_jump, "before the jump"),
        "after_jump" => (&mut report.audit.after_jump, "after the jump"),
        other => {
            return report.find(Kind::RecordIncomplete, format!("an audit says that it took place {other}"));
        }
    };
    add(audit, checked, violations);
    for violation in violations {
        report.find(
            Kind::AuditViolation,
            format!("the audit {words} found a violation: {}", in_words(violation)),
        );
    }
}

/// Adds an audit of a further update: counts of the same check are summed.
fn add(audit: &mut Audit, checked: &[Checked], violations: &[Violation]) {
    for new in checked {
        match audit.checked.iter_mut().find(|c| c.invariant == new.invariant && c.what == new.what) {
            Some(known) => known.count += new.count,
            None => audit.checked.push(new.clone()),
        }
    }
    audit.violations.extend_from_slice(violations);
}

/// A violation in one line.
pub(crate) fn in_words(violation: &Violation) -> String {
    let Violation { invariant, requester, address, words } = violation;
    if words.starts_with(invariant.as_str()) {
        // The audit's own words say all of it.
        return words.clone();
    }
    let who = if requester.is_empty() { String::new() } else { format!("{requester}, ") };
    format!("{invariant}: {words} ({who}{address:#x})")
}

/// Whether the run came to its end, and what is missing on the way there.
fn ends(report: &mut Report, record: &Record) {
    let done = record.serial.events.iter().any(|e| matches!(e, Event::Done { .. }));
    let told = report.outcome != Outcome::Completed;
    let ended = match &record.ended {
        Ended::Well if done || told => None,
        Ended::Well => Some("the last kernel did not report that it was done".to_owned()),
        Ended::Badly if told => None,
        Ended::Badly => Some("a kernel gave up and did not say why".to_owned()),
        Ended::TimedOut { after } => {
            Some(format!("the machine was stopped after {}", count(*after, "second")))
        }
        Ended::TraceFull { limit } => {
            Some(format!("the machine was stopped when its trace had grown to {} MiB", limit >> 20))
        }
        Ended::Died(words) => Some(words.clone()),
    };
    if let Some(words) = ended {
        report.at_best(Outcome::Failed);
        report.find(Kind::Failed, words);
    }
    for line in &record.serial.unreadable {
        report.find(Kind::RecordIncomplete, format!("a kernel wrote an event that cannot be read: {line}"));
    }
    if report.outcome == Outcome::Completed {
        complete(report);
    }
}

/// What a completed run must hold.
fn complete(report: &mut Report) {
    let (asked, done) = (u64::from(report.asked.updates), report.updates.len() as u64);
    if done != asked {
        report.at_best(Outcome::Failed);
        report
            .find(Kind::Failed, format!("{} took place where {asked} was asked for", count(done, "update")));
    }
    for update in report.updates.clone() {
        if update.jump_ns == 0 || update.adopted_ns == 0 {
            let Update { outgoing, incoming, .. } = update;
            report.find(
                Kind::RecordIncomplete,
                format!("{outgoing} to {incoming}: no position at jump or adoption"),
            );
        }
    }
    for (audit, words) in
        [(&report.audit.before_jump, "before the jump"), (&report.audit.after_jump, "after the jump")]
            .map(|(audit, words)| (audit.checked.iter().map(|c| c.count).sum::<u64>(), words))
    {
        if audit == 0 {
            report.find(Kind::AuditMissing, format!("the audit {words} checked nothing"));
        }
    }
    if report.preserved.is_empty() {
        report.find(Kind::RecordIncomplete, "no requester was preserved");
    }
}
