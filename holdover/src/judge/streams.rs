//! Streams of one requester, with and without PASID: those that were preserved have no hole, those that were not are blocked
//! from the cut-off on. Kernels and device tell of the numbers, the machine's trace of the requests.

use super::count;
use super::machine::still_present;
use crate::record::Record;
use crate::report::{Kind, Outcome, PasidCutOff, Report, Stream};
use crate::trace::Account;
use scenario::event::Event;

pub(super) fn judge(report: &mut Report, record: &Record) {
    for event in &record.serial.events {
        heard(report, event);
    }
    if let Ok(account) = &record.account {
        preserved(report, account);
        cut_off(report, record, account);
    }
}

/// A stream as people call it.
fn name(requester: &str, pasid: Option<u32>) -> String {
    match pasid {
        Some(pasid) => format!("{requester} with PASID {pasid}"),
        None => requester.to_owned(),
    }
}

fn heard(report: &mut Report, event: &Event) {
    match event {
        Event::PreservedPasid { requester, pasid, through, token } => {
            let stream = stream(report, requester, Some(*pasid), through);
            stream.token.clone_from(token);
        }
        Event::Stream { requester, pasid, through, sent, sent_in_gap, lost, complete, grown } => {
            let stream = stream(report, requester, *pasid, through);
            stream.sent = *sent;
            stream.sent_in_gap += sent_in_gap;
            stream.lost = *lost;
            stream.complete &= complete;
            stream.grown = match (stream.grown, grown) {
                (Some(before), Some(now)) => Some(before && *now),
                (before, now) => now.or(before),
            };
            let who = name(requester, *pasid);
            if *lost > 0 || !complete {
                let numbers = count(*lost, "number");
                let ring = if *complete { "" } else { ", and its ring has a hole" };
                let words = format!("the stream of {who} was broken: {numbers} not found again{ring}");
                report.find(Kind::TransferLost, words);
            }
            if *sent_in_gap == 0 {
                report.find(Kind::TransferIdle, format!("the stream of {who} wrote nothing in the gap"));
            }
            if *grown == Some(false) {
                let words = format!("{who} did not get through to memory that was mapped after adoption");
                report.find(Kind::TransferLost, words);
            }
        }
        Event::PasidToCutOff { requester, pasid, through, .. }
            if !report.pasids_cut_off.iter().any(|c| (&c.requester, c.pasid) == (requester, *pasid)) =>
        {
            report.pasids_cut_off.push(PasidCutOff {
                requester: requester.clone(),
                pasid: *pasid,
                through: through.clone(),
                attempts_blocked: 0,
                attempts_let_through: 0,
                memory_intact: true,
            });
        }
        Event::PasidTarget { requester, pasid, intact: false, first_difference } => {
            let same = |c: &&mut PasidCutOff| (&c.requester, c.pasid) == (requester, *pasid);
            report.pasids_cut_off.iter_mut().filter(same).for_each(|c| c.memory_intact = false);
            let place = first_difference.map(|at| format!(", first at {at:#x}")).unwrap_or_default();
            let who = name(requester, Some(*pasid));
            let words = format!("memory that {who} aimed at changed after the cut-off{place}");
            report.find(Kind::MemoryChanged, words);
        }
        _ => {}
    }
}

/// The stream's place in the report.
fn stream<'r>(report: &'r mut Report, requester: &str, pasid: Option<u32>, through: &str) -> &'r mut Stream {
    let same = |s: &Stream| s.requester == requester && s.pasid == pasid;
    let index = report.streams.iter().position(same).unwrap_or_else(|| {
        report.streams.push(Stream {
            requester: requester.to_owned(),
            pasid,
            through: through.to_owned(),
            token: String::new(),
            sent: 0,
            sent_in_gap: 0,
            lost: 0,
            complete: true,
            grown: None,
        });
        report.streams.len() - 1
    });
    &mut report.streams[index]
}

/// What the trace says of streams with PASID that were preserved; the others are requests of their requester like any.
fn preserved(report: &mut Report, account: &Account) {
    let mut blocked = 0;
    for Stream { requester, pasid, sent, .. } in report.streams.clone() {
        let Some(pasid) = pasid else { continue };
        let traffic = account.of_running_pasid(&requester, pasid);
        let who = name(&requester, Some(pasid));
        blocked += traffic.blocked;
        if let Some((iova, reason)) = traffic.first_blocked {
            let times = count(traffic.blocked, "request");
            let words = format!(
                "{times} of preserved {who} blocked by the machine's trace; first {iova:#x}, reason {reason:#x}"
            );
            report.find(Kind::PreservedFault, words);
        }
        if (sent == 0 || traffic.translated == 0) && report.outcome == Outcome::Completed {
            report.find(Kind::RecordIncomplete, format!("nothing was heard of the stream of {who}"));
        }
    }
    report.faults.preserved = report.faults.preserved.max(blocked);
}

fn cut_off(report: &mut Report, record: &Record, account: &Account) {
    if account.marks(scenario::platform::Mark::CutOffDone) == 0 {
        return;
    }
    for index in 0..report.pasids_cut_off.len() {
        let PasidCutOff { requester, pasid, .. } = report.pasids_cut_off[index].clone();
        let traffic = account.of_cut_off_pasid(&requester, pasid);
        report.pasids_cut_off[index].attempts_blocked = traffic.blocked;
        report.pasids_cut_off[index].attempts_let_through = traffic.translated;
        let who = name(&requester, Some(pasid));
        if let Some((iova, to)) = traffic.first_translated {
            let (kind, why) = if cleared(record, &requester, pasid) && !still_present(report, &requester) {
                (Kind::StaleTranslation, "though its entry is gone: hardware was not made to forget it")
            } else {
                (Kind::NotCutOff, "out of an entry that was never cleared")
            };
            let times = count(traffic.translated, "request");
            report.find(
                kind,
                format!("{times} of {who} went through after the cut-off, {why}; first {iova:#x} to {to:#x}"),
            );
        } else if traffic.blocked == 0 && report.outcome == Outcome::Completed {
            report.find(Kind::NoAttempt, format!("{who} made no attempt after the cut-off"));
        }
        let told = report.faults.overflows > 0
            || report
                .evidence
                .faults
                .iter()
                .any(|f| f.who == "cut_off" && f.requester == requester && f.pasid == Some(pasid));
        // Whoever went through is told of above.
        let only_blocked = traffic.blocked > 0 && traffic.translated == 0;
        if only_blocked && !told && report.outcome == Outcome::Completed {
            let blocked = count(traffic.blocked, "request");
            let words = format!("{blocked} of {who} blocked, and no kernel reported it with its PASID");
            report.find(Kind::FaultUnreported, words);
        }
    }
}

/// Whether the outgoing kernel says that it cleared the PASID's entry.
fn cleared(record: &Record, requester: &str, pasid: u32) -> bool {
    let this = |(who, cleared): &(String, u32)| who == requester && *cleared == pasid;
    let says = |e: &Event| matches!(e, Event::CutOff { pasids, .. } if pasids.iter().any(this));
    record.serial.events.iter().any(says)
}
