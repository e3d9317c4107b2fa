//! What the machine's own trace says: whether translation stayed on, and who was let through or blocked.

use super::count;
use crate::record::Record;
use crate::report::{Kind, Outcome, PageRequests, Reduced, Report};
use crate::trace::{Account, Segment, Traffic};
use scenario::event::Event;
use scenario::platform::Mark;
use spec::{PAGE_SIZE, Requester, SourceId};
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
    reduced(report, account);
    preserved(report, account);
    page_requests(report, account);
    for rule in account.misuse() {
        report.find(Kind::Misuse, format!("a kernel broke a rule of the programming interface: {rule}"));
    }
}

/// Page requests: raised and answered, each once.
fn page_requests(report: &mut Report, account: &Account) {
    let mut sum = PageRequests::default();
    let mut jumped = false;
    for segment in account.segments() {
        jumped |= segment.mark == Some(Mark::Jump);
        sum.raised += segment.pages_raised;
        *if jumped { &mut sum.answered_after } else { &mut sum.answered_before } += segment.pages_answered;
        sum.answered_twice += segment.pages_answered_twice;
    }
    sum.lost = sum.raised.saturating_sub(sum.answered_before + sum.answered_after);
    if sum.lost > 0 {
        let words = format!("{} not answered by a kernel", count(sum.lost, "page request"));
        report.find(Kind::PageRequestLost, words);
    }
    if sum.raised > 0 && jumped && sum.answered_after == 0 {
        report.find(Kind::PageRequestLost, "page requests were not switched on again after adoption");
    }
    if sum.answered_twice > 0 {
        let words = format!("{} to page requests that were not open", count(sum.answered_twice, "answer"));
        report.find(Kind::PageRequestTwice, words);
    }
    report.page_requests = sum;
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
    let preserved: Vec<_> = report.preserved.iter().flat_map(|p| ids(&p.requester, &p.aliases)).collect();
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
            format!("{} of {who} reached memory untranslated", count(*requests, "request")),
        );
    }
    let missing = missing_mark(report, account);
    if let Some(mark) = missing {
        report
            .find(Kind::RecordIncomplete, format!("the trace has no mark {mark:?} where there must be one"));
    }
    report.translation_enabled_throughout = enabled && missing.is_none() && !account.overfull();
}

/// The ids of a requester and its aliases.
fn ids(requester: &str, aliases: &[String]) -> Vec<Requester> {
    let all = [requester].into_iter().chain(aliases.iter().map(String::as_str));
    all.filter_map(|text| scenario::text::parse_requester(text).ok()).collect()
}

/// Requests that went past translation while devices were running, by requester.
fn untranslated(account: &Account) -> BTreeMap<Requester, u64> {
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
        let who = ids(&requester, &report.cut_off[index].aliases);
        let mut traffic = account.of_cut_off(&who);
        if let Some(reduced) = report.reduced.iter().find(|r| r.requester == requester) {
            traffic = beside(reduced, traffic);
        }
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
            || report.evidence.faults.iter().any(|f| {
                let found = scenario::text::parse_requester(&f.requester);
                f.who == "cut_off" && found.is_ok_and(|found| who.contains(&found))
            });
        if traffic.blocked > 0 && !told && report.outcome == Outcome::Completed {
            let blocked = count(traffic.blocked, "request");
            report.find(
                Kind::FaultUnreported,
                format!("{blocked} of {requester} blocked, and no kernel reported it"),
            );
        }
    }
}

/// What a requester did beside reaching its reserved memory.
fn beside(reduced: &Reduced, mut traffic: Traffic) -> Traffic {
    traffic.translated -= within(reduced, &traffic.pages);
    traffic.first_translated =
        traffic.first_translated.filter(|(_, to)| !is_reserved(reduced, to / PAGE_SIZE));
    traffic
}

/// How many of the requests were for reserved memory.
fn within(reduced: &Reduced, pages: &BTreeMap<u64, u64>) -> u64 {
    pages.iter().filter(|(page, _)| is_reserved(reduced, **page)).map(|(_, times)| times).sum()
}

fn is_reserved(reduced: &Reduced, page: u64) -> bool {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_default();
    reduced
        .regions
        .iter()
        .any(|[start, bytes]| (page * PAGE_SIZE).wrapping_sub(number(start)) < number(bytes))
}

/// Whoever was reduced to its reserved memory goes on reaching it.
fn reduced(report: &mut Report, account: &Account) {
    for index in 0..report.reduced.len() {
        let reduced = &report.reduced[index];
        let requester = reduced.requester.clone();
        let traffic = account.of_cut_off(&ids(&requester, &[]));
        let (inside, refused) = (within(reduced, &traffic.pages), within(reduced, &traffic.blocked_pages));
        report.reduced[index].attempts_within = inside;
        report.reduced[index].attempts_outside = traffic.translated - inside;
        if refused > 0 {
            let words =
                format!("{} of {requester} for its reserved memory blocked", count(refused, "request"));
            report.find(Kind::PreservedFault, words);
        } else if inside == 0 && report.outcome == Outcome::Completed {
            let words = format!("{requester} made no use of its reserved memory after the cut-off");
            report.find(Kind::NoAttempt, words);
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

/// Whether the audit after the jump found that the requester still has an entry. A root entry that should be gone is
/// reported for all of its bus, by the bus's first function.
pub(super) fn still_present(report: &Report, requester: &str) -> bool {
    let Ok(who) = scenario::text::parse_requester(requester) else { return false };
    let first = SourceId::new(who.source.bus(), 0, 0);
    let violations = report.audit.after_jump.violations.iter().filter(|v| v.invariant == "I2");
    violations
        .filter_map(|v| scenario::text::parse_requester(&v.requester).ok())
        .any(|found| found.segment == who.segment && (found.source == who.source || found.source == first))
}

fn preserved(report: &mut Report, account: &Account) {
    let mut blocked = 0;
    for index in 0..report.preserved.len() {
        let requester = report.preserved[index].requester.clone();
        let traffic = account.of_running(&ids(&requester, &report.preserved[index].aliases));
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
