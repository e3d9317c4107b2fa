//! What the machine's own trace says: whether translation stayed on, and who was let through or blocked.

use super::count;
use crate::record::Record;
use crate::report::{Kind, Outcome, Report};
use crate::trace::{Account, Segment, source_of};
use scenario::event::Event;
use scenario::platform::Mark;
use spec::SourceId;
use std::collections::BTreeMap;

pub(super) fn judge(report: &mut Report, record: &Record) {
    let account = match &record.account {
        Ok(account) => account,
        Err(why) => {
            return report.find(Kind::RecordIncomplete, format!("there is no trace of the machine: {why}"));
        }
    };
    report.evidence.traffic = account.traffic();
    translation(report, account);
    cut_off(report, record, account);
    preserved(report, account);
    for rule in account.misuse() {
        report.find(Kind::Misuse, format!("a kernel broke a rule of the programming interface: {rule}"));
    }
}

fn translation(report: &mut Report, account: &Account) {
    let running = account.running();
    if account.overfull() {
        report.find(Kind::RecordIncomplete, "the trace holds more marks than are told apart");
    }
    let Some(first) = running.first() else {
        let words = "the trace has no mark that devices were running";
        return report.find(Kind::RecordIncomplete, words);
    };
    let mut enabled = true;
    let preserved: Vec<_> = report.preserved.iter().filter_map(|p| source_of(&p.requester)).collect();
    let carriers = account.units_of(&preserved);
    if first.enabled_at_start.is_empty() || !carriers.is_subset(&first.enabled_at_start) {
        enabled = false;
        report.find(Kind::TranslationOff, "translation was off when the devices were running");
    }
    for segment in running {
        // A unit with nothing preserved is switched off with the cut-off, as in any shutdown; no other, and at no other time.
        let legal = |unit| {
            segment.mark == Some(Mark::CutOffBegin) && !carriers.contains(unit) && !carriers.is_empty()
        };
        for (_, &times) in segment.switched_off.iter().filter(|(unit, _)| !legal(*unit)) {
            enabled = false;
            report.find(
                Kind::TranslationOff,
                format!(
                    "translation was switched off {} while devices were running, {}",
                    if times == 1 { "once".into() } else { count(times, "time") },
                    moment(segment)
                ),
            );
        }
    }
    let past = untranslated(account);
    if let Some((who, requests)) = past.first_key_value() {
        enabled = false;
        report.find(
            Kind::TranslationOff,
            format!("{} of 0000:{who} reached memory untranslated", count(*requests, "request")),
        );
    }
    let missing = missing_mark(report, account);
    if let Some(mark) = missing {
        report
            .find(Kind::RecordIncomplete, format!("the trace has no mark {mark:?} where there must be one"));
    }
    report.translation_enabled_throughout = enabled && missing.is_none() && !account.overfull();
}

/// Requests that went past translation while devices were running, by requester.
fn untranslated(account: &Account) -> BTreeMap<SourceId, u64> {
    let mut all = BTreeMap::new();
    for (source, traffic) in account.running().iter().flat_map(|s| &s.sources) {
        if traffic.untranslated > 0 {
            *all.entry(*source).or_default() += traffic.untranslated;
        }
    }
    all
}

/// The first mark that a completed run must hold and this one does not.
fn missing_mark(report: &Report, account: &Account) -> Option<Mark> {
    if report.outcome != Outcome::Completed {
        return None;
    }
    let updates = usize::from(report.asked.updates);
    [Mark::CutOffBegin, Mark::CutOffDone, Mark::Jump, Mark::Arrived, Mark::Adopted, Mark::Finished]
        .into_iter()
        .find(|m| account.marks(*m) < updates)
        .or_else(|| (account.marks(Mark::Over) == 0).then_some(Mark::Over))
}

/// Where in an update a segment lies.
fn moment(segment: &Segment) -> &'static str {
    match segment.mark {
        None => "before the devices were seen working",
        Some(Mark::Running) => "before the cut-off",
        Some(Mark::CutOffBegin) => "during the cut-off",
        Some(Mark::CutOffDone) => "between the cut-off and the jump",
        Some(Mark::Jump) => "on the way to the incoming kernel",
        Some(Mark::Arrived) => "in the incoming kernel before adoption",
        Some(Mark::Adopted) => "between adoption and finish",
        Some(Mark::Finished) => "after finish",
        Some(Mark::Rearm) => "before the next cut-off",
        Some(Mark::Over) => "after the end",
    }
}

fn cut_off(report: &mut Report, record: &Record, account: &Account) {
    if account.marks(Mark::CutOffDone) == 0 {
        return;
    }
    for index in 0..report.cut_off.len() {
        let requester = report.cut_off[index].requester.clone();
        let Some(source) = source_of(&requester) else { continue };
        let traffic = account.of_cut_off(source);
        report.cut_off[index].attempts_blocked = traffic.blocked;
        report.cut_off[index].attempts_let_through = traffic.translated;
        if traffic.translated > 0 {
            let (kind, why) = if cleared(record, &requester) && !still_present(report, &requester) {
                (Kind::StaleTranslation, "though its entries are gone: hardware was not made to forget them")
            } else {
                (Kind::NotCutOff, "out of an entry that was never cleared")
            };
            let (iova, to) = traffic.first_translated.unwrap_or_default();
            let times = count(traffic.translated, "request");
            let words = format!(
                "{times} of {requester} went through after the cut-off, {why}; first {iova:#x} to {to:#x}"
            );
            report.find(kind, words);
        } else if traffic.blocked == 0 && report.outcome == Outcome::Completed {
            report.find(Kind::NoAttempt, format!("{requester} made no attempt after the cut-off"));
        }
        // A unit that says it lost records has told of the fault, if not whose it was.
        let told = report.faults.overflows > 0
            || report.evidence.faults.iter().any(|f| f.requester == requester && f.who == "cut_off");
        if traffic.blocked > 0 && !told && report.outcome == Outcome::Completed {
            let blocked = count(traffic.blocked, "request");
            report.find(
                Kind::FaultUnreported,
                format!("{blocked} of {requester} blocked, and no kernel reported it"),
            );
        }
    }
}

/// Whether the outgoing kernel says that it cleared the requester's entry.
fn cleared(record: &Record, requester: &str) -> bool {
    record
        .serial
        .events
        .iter()
        .any(|e| matches!(e, Event::CutOff { cleared, .. } if cleared.iter().any(|c| c == requester)))
}

/// Whether the audit after the jump found that the requester still has an entry.
fn still_present(report: &Report, requester: &str) -> bool {
    report.audit.after_jump.violations.iter().any(|v| v.invariant == "I2" && v.requester == requester)
}

fn preserved(report: &mut Report, account: &Account) {
    let mut blocked = 0;
    for index in 0..report.preserved.len() {
        let requester = report.preserved[index].requester.clone();
        let Some(source) = source_of(&requester) else { continue };
        let traffic = account.of_running(source);
        blocked += traffic.blocked;
        if let Some((iova, reason)) = traffic.first_blocked {
            let times = count(traffic.blocked, "request");
            let words = format!(
                "{times} of preserved {requester} blocked by the machine's trace; first {iova:#x}, reason {reason:#x}"
            );
            report.find(Kind::PreservedFault, words);
        }
        if traffic.translated == 0 && report.outcome == Outcome::Completed {
            report
                .find(Kind::RecordIncomplete, format!("the trace holds no request of preserved {requester}"));
        }
    }
    report.faults.preserved = report.faults.preserved.max(blocked);
}
