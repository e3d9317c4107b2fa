//! What the devices show: the sound, memory that transfers aimed at, faults that units recorded.

use super::count;
use crate::record::Record;
use crate::report::{
    Capture, Content, CutOff, FaultRecord, Interrupts, Kind, Outcome, Report, Transfer, Update, Witness,
};
use crate::sound::Heard;
use crate::table;
use scenario::event::Event;

pub(super) fn judge(report: &mut Report, record: &Record, heard: &Heard) {
    for event in &record.serial.events {
        cut_off(report, event);
        faults(report, event);
        memory(report, event);
    }
    interrupts(report, record);
    sound(report, record, heard);
}

fn interrupts(report: &mut Report, record: &Record) {
    let mut sum = Interrupts::default();
    for event in &record.serial.events {
        let Event::Interrupts {
            sent, delivered_before, delivered_in_gap, delivered_after, misdirected, ..
        } = event
        else {
            continue;
        };
        sum.sent += sent;
        sum.delivered_before += delivered_before;
        sum.delivered_in_gap += delivered_in_gap;
        sum.delivered_after += delivered_after;
        sum.misdirected += misdirected;
    }
    sum.lost = sum.sent.saturating_sub(sum.delivered_before + sum.delivered_in_gap + sum.delivered_after);
    if sum.lost > 0 {
        report.find(Kind::InterruptLost, format!("{} never delivered", count(sum.lost, "interrupt")));
    }
    if sum.misdirected > 0 {
        let words = format!("{} delivered that nobody should have had", count(sum.misdirected, "interrupt"));
        report.find(Kind::InterruptMisdirected, words);
    }
    report.interrupts = sum;
}

fn cut_off(report: &mut Report, event: &Event) {
    match event {
        Event::ToCutOff { requester, aliases, listed, .. }
            if !report.cut_off.iter().any(|c| c.requester == *requester) =>
        {
            report.cut_off.push(CutOff {
                requester: requester.clone(),
                aliases: aliases.clone(),
                listed: *listed,
                attempts_blocked: 0,
                memory_intact: true,
                attempts_let_through: 0,
            });
        }
        Event::CutOff { unit, confirmed: false, .. } => report.find(
            Kind::CutOffUnconfirmed,
            format!("unit {unit}: hardware did not confirm that it forgot what was cut off"),
        ),
        Event::Target { requester, intact: false, first_difference } => {
            for known in report.cut_off.iter_mut().filter(|c| c.requester == *requester) {
                known.memory_intact = false;
            }
            let place = first_difference.map(|at| format!(", first at {at:#x}")).unwrap_or_default();
            report.find(
                Kind::MemoryChanged,
                format!("memory that {requester} aimed at changed after the cut-off{place}"),
            );
        }
        _ => {}
    }
}

fn faults(report: &mut Report, event: &Event) {
    match event {
        Event::Fault { requester, pasid, address, reason, words, write, who, in_gap, .. } => {
            let what = format!("{requester} at {address:#x}: {words}");
            match who.as_str() {
                "preserved" => {
                    report.faults.preserved += 1;
                    report.find(Kind::PreservedFault, format!("a unit blocked preserved {what}"));
                }
                "cut_off" => report.faults.cut_off += 1,
                _ => {
                    report.faults.unattributed += 1;
                    report.find(Kind::UnattributedFault, format!("a unit blocked unknown {what}"));
                }
            }
            report.evidence.faults.push(FaultRecord {
                requester: requester.clone(),
                pasid: *pasid,
                address: format!("{address:#x}"),
                reason: *reason,
                words: words.clone(),
                write: *write,
                who: who.clone(),
                in_gap: *in_gap,
            });
        }
        Event::FaultOverflow { times, .. } => report.faults.overflows += times,
        _ => {}
    }
}

fn memory(report: &mut Report, event: &Event) {
    match event {
        Event::Transfer { requester, busy_at_jump, complete, correct } => {
            let (busy, complete, correct) = (*busy_at_jump, *complete, *correct);
            if !busy {
                report.find(
                    Kind::TransferIdle,
                    format!("the transfer of {requester} was not in flight at the jump"),
                );
            }
            if !complete {
                report.find(Kind::TransferLost, format!("the transfer of {requester} did not end"));
            } else if !correct {
                report.find(Kind::TransferLost, format!("what {requester} transferred is not what arrived"));
            }
            let requester = requester.clone();
            report.evidence.transfers.push(Transfer { requester, busy_at_jump: busy, complete, correct });
        }
        Event::Capture { requester, frames, complete } => {
            if !complete {
                report.find(Kind::CaptureLost, format!("what {requester} captured has a hole"));
            } else if *frames == 0 {
                report.find(
                    Kind::CaptureLost,
                    format!("{requester} captured nothing under the incoming kernel"),
                );
            }
            let capture = Capture { requester: requester.clone(), frames: *frames, complete: *complete };
            report.evidence.captures.push(capture);
        }
        Event::Content { token, intact } => {
            if !intact {
                report.find(
                    Kind::ContentChanged,
                    format!("preserved memory {} is not as it was left", table::token(token)),
                );
            }
            report.evidence.contents.push(Content { token: token.clone(), intact: *intact });
        }
        _ => {}
    }
}

fn sound(report: &mut Report, record: &Record, heard: &Heard) {
    report.witness = Witness {
        samples: heard.samples as u64,
        samples_in_gap: report.updates.iter().map(Update::samples_in_gap).sum(),
        discontinuities: heard.discontinuities,
        samples_wrong: heard.wrong,
        silence: heard.silence.map(|s| s as u64),
    };
    if let Err(why) = &record.sound {
        return report.find(Kind::SoundMissing, format!("there is no recording: {why}"));
    }
    if heard.start.is_none() {
        return report.find(Kind::SoundMissing, "the tune is nowhere in the recording");
    }
    if let Some(first) = heard.breaks.first() {
        let what = match (first.wrong, first.silent) {
            (0, _) => "a jump within the tune".to_owned(),
            (wrong, true) => format!("{} of silence", count(wrong as u64, "sample")),
            (wrong, false) => format!("{} that belong nowhere", count(wrong as u64, "sample")),
        };
        report.find(
            Kind::SoundBroken,
            format!(
                "the tune is broken {}, {} in all wrong; first at sample {} ({what})",
                if heard.discontinuities == 1 { "once".into() } else { count(heard.discontinuities, "time") },
                count(heard.wrong, "sample"),
                table::thousands(first.at as u64),
            ),
        );
    }
    if report.outcome != Outcome::Completed {
        return;
    }
    for update in report.updates.clone() {
        let Update { outgoing, incoming, frames_at_adoption, .. } = &update;
        if update.samples_in_gap() == 0 {
            let words = format!("no sample was played in the gap from {outgoing} to {incoming}");
            report.find(Kind::SoundMissing, words);
        } else if *frames_at_adoption > (heard.samples + heard.phase) as u64 {
            let words = format!("the recording ends before {incoming} adopted the hardware");
            report.find(Kind::SoundMissing, words);
        }
    }
}
