//! Each way in which a run can be wrong gives exactly its own finding.

use super::*;
use crate::record::Ended;
use crate::samples;
use crate::trace::{self, Account, Entry};
use scenario::event::{Event, Violation};
use scenario::platform::Mark;
use spec::{Requester, Segment as PciSegment, SourceId, UnitId};

/// The unit that translates for everybody.
const UNIT: UnitId = UnitId { segment: PciSegment(0), register_base: 0xfed9_0000 };

fn who(bus: u8, device: u8) -> Requester {
    Requester::new(PciSegment(0), SourceId::new(bus, device, 0))
}

fn enable(on: bool) -> Entry {
    Entry::Enable { unit: UNIT, on }
}

fn report(change: impl FnOnce(&mut Record)) -> Report {
    let mut record = samples::record();
    change(&mut record);
    judge(&samples::settings().asked(), &record, &samples::tune()).report
}

/// The kinds of findings, each once.
fn kinds(change: impl FnOnce(&mut Record)) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = report(change).findings.iter().map(|f| f.kind).collect();
    kinds.dedup();
    kinds
}

fn events(change: impl Fn(&mut Event)) -> impl FnOnce(&mut Record) {
    move |record| record.serial.events.iter_mut().for_each(change)
}

fn without(gone: impl Fn(&Event) -> bool) -> impl FnOnce(&mut Record) {
    move |record| record.serial.events.retain(|e| !gone(e))
}

/// The trace of the clean run with an entry put in right after a mark.
fn after(mark: Mark, entries: &[Entry]) -> Account {
    let mut account = Account::default();
    account.note(enable(true));
    let (hda, edu, b, c) = (who(0, 2), who(0, 3), who(0, 4), who(1, 0));
    for at in 0x1001..=0x1008 {
        let now = trace::mark(at).unwrap();
        account.note(Entry::Mark(now));
        for who in [hda, edu] {
            account.note(Entry::Translated { unit: UNIT, who, pasid: None, iova: 0x1000, to: 0x2000 });
        }
        if now == Mark::Arrived {
            for who in [b, c] {
                account.note(Entry::Blocked { who, pasid: None, iova: 0x1000, write: true, reason: 2 });
            }
        }
        if now == mark {
            entries.iter().for_each(|e| account.note(*e));
        }
    }
    account
}

fn trace_with(mark: Mark, entries: &[Entry]) -> impl FnOnce(&mut Record) {
    let account = after(mark, entries);
    move |record| record.account = Ok(account)
}

#[test]
fn a_clean_run_is_judged_as_in_the_schema() {
    let report = report(|_| {});
    assert!(report.clean(), "{:?}", report.findings);
    insta::assert_json_snapshot!(report);
}

#[test]
fn a_result_survives_being_written_and_read() {
    let report = samples::dirty();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn translation_that_goes_off_in_the_gap_is_found_and_told_where() {
    let report = report(trace_with(Mark::Arrived, &[enable(false), enable(true)]));
    assert!(!report.translation_enabled_throughout);
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].kind, Kind::TranslationOff);
    assert!(report.findings[0].words.contains("in the incoming kernel before adoption"));
    assert_eq!(report.outcome, Outcome::Completed);
}

#[test]
fn translation_that_goes_off_after_the_end_is_no_concern() {
    assert_eq!(kinds(trace_with(Mark::Over, &[enable(false)])), []);
}

#[test]
fn a_unit_with_nothing_preserved_may_go_off_with_the_cut_off_and_at_no_other_time() {
    let idle = Entry::Enable { unit: UnitId { register_base: 0xfed9_1000, ..UNIT }, on: false };
    assert_eq!(kinds(trace_with(Mark::CutOffBegin, &[idle])), []);
    assert_eq!(kinds(trace_with(Mark::CutOffBegin, &[enable(false)])), [Kind::TranslationOff]);
    for mark in [Mark::Running, Mark::CutOffDone, Mark::Arrived, Mark::Adopted] {
        assert_eq!(kinds(trace_with(mark, &[idle])), [Kind::TranslationOff], "{mark:?}");
    }
}

#[test]
fn a_unit_in_another_mode_than_was_asked_for_is_found() {
    let other = |event: &mut Event| {
        if let Event::Unit { mode, .. } = event {
            *mode = "second-stage".into();
        }
    };
    assert_eq!(kinds(events(other)), [Kind::WrongMode]);
}

#[test]
fn a_request_that_goes_past_translation_is_found() {
    let past = Entry::Untranslated { who: who(0, 4), address: 5 };
    assert_eq!(kinds(trace_with(Mark::Jump, &[past])), [Kind::TranslationOff]);
}

#[test]
fn a_translation_after_the_cut_off_is_stale_where_entries_were_cleared_and_a_left_out_cut_off_else() {
    let through = [Entry::Translated { unit: UNIT, who: who(0, 4), pasid: None, iova: 1, to: 2 }];
    for mark in [Mark::CutOffDone, Mark::Jump, Mark::Arrived, Mark::Adopted, Mark::Finished] {
        assert_eq!(kinds(trace_with(mark, &through)), [Kind::StaleTranslation], "{mark:?}");
    }
    for mark in [Mark::Running, Mark::CutOffBegin, Mark::Over] {
        assert_eq!(kinds(trace_with(mark, &through)), [], "{mark:?}");
    }
    let uncleared = |record: &mut Record| {
        trace_with(Mark::Jump, &through)(record);
        without(|e| matches!(e, Event::CutOff { .. }))(record);
    };
    assert_eq!(kinds(uncleared), [Kind::NotCutOff]);
    let present = |record: &mut Record| {
        trace_with(Mark::Jump, &through)(record);
        events(|e| {
            if let Event::Audit { when, violations, .. } = e
                && when == "after_jump"
            {
                violations.push(Violation {
                    invariant: "I2".into(),
                    requester: "0000:00:04.0".into(),
                    address: 0,
                    words: "present".into(),
                });
            }
        })(record);
    };
    assert_eq!(kinds(present), [Kind::NotCutOff, Kind::AuditViolation]);
}

#[test]
fn a_fault_of_a_preserved_requester_is_found_even_when_no_kernel_tells() {
    let blocked = Entry::Blocked { who: who(0, 2), pasid: None, iova: 1, write: false, reason: 6 };
    let report = report(trace_with(Mark::Adopted, &[blocked]));
    assert_eq!(report.faults.preserved, 1);
    assert_eq!(report.findings[0].kind, Kind::PreservedFault);
}

#[test]
fn a_blocked_attempt_that_no_kernel_reports_is_found() {
    let gone = without(|e| matches!(e, Event::Fault { requester, .. } if requester == "0000:01:00.0"));
    assert_eq!(kinds(gone), [Kind::FaultUnreported]);
}

#[test]
fn a_unit_that_says_it_lost_records_has_told_of_the_fault() {
    let lost = |record: &mut Record| {
        without(|e| matches!(e, Event::Fault { requester, .. } if requester == "0000:01:00.0"))(record);
        record.serial.events.push(Event::FaultOverflow { unit: "0000@0xfed90000".into(), times: 1 });
    };
    let report = report(lost);
    assert_eq!(report.findings, []);
    assert_eq!(report.faults.overflows, 1);
}

#[test]
fn a_requester_that_never_tried_shows_nothing() {
    let gone = |record: &mut Record| {
        let mut account = Account::default();
        account.note(enable(true));
        for at in 0x1001..=0x1008 {
            account.note(Entry::Mark(trace::mark(at).unwrap()));
            for device in [2, 3] {
                account.note(Entry::Translated {
                    unit: UNIT,
                    who: who(0, device),
                    pasid: None,
                    iova: 1,
                    to: 2,
                });
            }
        }
        record.account = Ok(account);
    };
    assert_eq!(kinds(gone), [Kind::NoAttempt]);
}

#[test]
fn sound_that_breaks_or_is_missing_is_found() {
    assert_eq!(kinds(|r| _ = r.sound.as_mut().unwrap().remove(5000)), [Kind::SoundBroken]);
    assert_eq!(kinds(|r| r.sound = Err("none".into())), [Kind::SoundMissing]);
    assert_eq!(kinds(|r| r.sound = Ok(vec![[0, 0]; 9000])), [Kind::SoundMissing]);
    assert_eq!(kinds(|r| r.sound.as_mut().unwrap().truncate(8000)), [Kind::SoundMissing]);
}

#[test]
fn a_gap_without_a_sample_shows_nothing() {
    let still = events(|e| {
        if let Event::Position { frames, .. } = e {
            *frames = 7200;
        }
    });
    assert_eq!(kinds(still), [Kind::SoundMissing]);
}

#[test]
fn whatever_memory_shows_is_found() {
    type Change = fn(&mut Event);
    let cases: [(Change, Kind); 6] = [
        (
            |e| {
                if let Event::Target { intact, .. } = e {
                    *intact = false;
                }
            },
            Kind::MemoryChanged,
        ),
        (
            |e| {
                if let Event::Content { intact, .. } = e {
                    *intact = false;
                }
            },
            Kind::ContentChanged,
        ),
        (
            |e| {
                if let Event::Transfer { correct, .. } = e {
                    *correct = false;
                }
            },
            Kind::TransferLost,
        ),
        (
            |e| {
                if let Event::Transfer { busy_at_jump, .. } = e {
                    *busy_at_jump = false;
                }
            },
            Kind::TransferIdle,
        ),
        (
            |e| {
                if let Event::Capture { complete, .. } = e {
                    *complete = false;
                }
            },
            Kind::CaptureLost,
        ),
        (
            |e| {
                if let Event::CutOff { confirmed, .. } = e {
                    *confirmed = false;
                }
            },
            Kind::CutOffUnconfirmed,
        ),
    ];
    for (change, kind) in cases {
        assert_eq!(kinds(events(change)), [kind]);
    }
}

#[test]
fn an_audit_that_is_left_out_is_found() {
    let gone = without(|e| matches!(e, Event::Audit { when, .. } if when == "after_jump"));
    assert_eq!(kinds(gone), [Kind::AuditMissing]);
}

#[test]
fn a_refusal_and_a_failure_are_outcomes_of_their_own() {
    let refused = report(|r| {
        r.serial.events.truncate(8);
        r.serial.events.push(Event::Refused { step: "freeze".into(), why: "I3".into() });
        r.ended = Ended::Badly;
    });
    assert_eq!(refused.outcome, Outcome::Refused);
    assert_eq!(refused.findings.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Refused]);
    let failed =
        report(|r| r.serial.events.push(Event::Failed { step: "open".into(), why: "digest".into() }));
    assert_eq!(failed.outcome, Outcome::Failed);
}

#[test]
fn a_machine_that_ends_early_is_a_failure_however_it_ended() {
    for ended in [
        Ended::Well,
        Ended::Badly,
        Ended::TimedOut { after: 120 },
        Ended::TraceFull { limit: 1 },
        Ended::Died("QEMU was ended by signal 6".into()),
    ] {
        let report = report(|r| {
            r.serial.events.truncate(10);
            r.ended = ended.clone();
        });
        assert_eq!(report.outcome, Outcome::Failed, "{ended:?}");
        assert_eq!(report.findings.iter().filter(|f| f.kind == Kind::Failed).count(), 1, "{ended:?}");
    }
}

#[test]
fn fewer_updates_than_asked_for_are_a_failure() {
    let mut asked = samples::settings().asked();
    asked.updates = 2;
    let report = judge(&asked, &samples::record(), &samples::tune()).report;
    assert_eq!(report.outcome, Outcome::Failed);
}

#[test]
fn an_empty_record_is_a_failure_and_not_a_panic() {
    let report = report(|r| {
        r.serial.events.clear();
        r.sound = Ok(vec![]);
        r.account = Ok(Account::default());
    });
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(!report.translation_enabled_throughout);
}

#[test]
fn a_second_update_is_told_apart_from_the_first() {
    let mut record = samples::record();
    let second: Vec<Event> = record
        .serial
        .events
        .iter()
        .filter_map(|e| match e.clone() {
            Event::Position { moment, frames, at } => {
                Some(Event::Position { moment, frames: frames + 4000, at: at + 300_000_000 })
            }
            Event::Boot { update: 1, home_start, home_bytes, memory_bytes, at, .. } => Some(Event::Boot {
                kernel: "0.1.0-c".into(),
                update: 2,
                home_start,
                home_bytes,
                memory_bytes,
                at,
            }),
            _ => None,
        })
        .collect();
    record.serial.events.extend(second);
    let report = judge(&samples::settings().asked(), &record, &samples::tune()).report;
    assert_eq!(report.updates.len(), 2);
    assert_eq!(
        (report.updates[1].outgoing.as_str(), report.updates[1].incoming.as_str()),
        ("0.1.0-b", "0.1.0-c")
    );
    assert_eq!(report.witness.samples_in_gap, 1800);
    assert_eq!(report.gap_ns, 2 * report.updates[0].gap_ns());
    assert_eq!(report.releases.incoming, "0.1.0-c");
}

/// The user's page on the command.
const PAGE: &str = include_str!("../../../docs/update.md");

#[test]
fn every_field_of_the_result_is_documented() {
    let mut waiting = vec![serde_json::to_value(samples::dirty()).unwrap()];
    while let Some(value) = waiting.pop() {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let found = ["`", "."].iter().any(|before| {
                        ["`", "[]`", ".", "[]."]
                            .iter()
                            .any(|after| PAGE.contains(&format!("{before}{name}{after}")))
                    });
                    assert!(found, "{name} is not documented");
                    waiting.push(value);
                }
            }
            serde_json::Value::Array(values) => waiting.extend(values),
            _ => {}
        }
    }
}

#[test]
fn every_kind_of_finding_and_every_mistake_is_documented() {
    for kind in Kind::ALL {
        assert!(PAGE.contains(&format!("`{}`", kind.name())), "{kind:?} is not documented");
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
    for mutant in scenario::story::Mutant::ALL {
        assert!(PAGE.contains(&format!("| `{}` |", mutant.name())), "{mutant:?} is not documented");
    }
}
