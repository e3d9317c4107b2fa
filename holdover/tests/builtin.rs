//! The whole update on the built-in machine, as a user runs it.

mod common;

use common::{Ran, command, update};
use holdover::report::{FaultRecord, Kind, Outcome, PageRequests, PasidCutOff, Stream};
use holdover::scenarios::{self, Scenario};
use scenario::story::Mode;
use std::time::{Duration, Instant};

fn run(arguments: &[&str]) -> Ran {
    update([&["--machine", "builtin"], arguments].concat())
}

#[test]
fn an_update_completes_on_every_machine_that_can_be_asked_for() {
    for width in ["39", "48"] {
        for memory in ["512M", "6G"] {
            let ran = run(&["--address-width", width, "--memory", memory]);
            ran.assert_clean();
            assert_eq!(ran.report.machine, "builtin");
        }
    }
}

#[test]
fn an_update_takes_less_than_two_seconds() {
    let start = Instant::now();
    run(&[]).assert_clean();
    // The bound is for a release build; this one is slower, and shares its processor with other tests.
    let allowed = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 2 });
    assert!(start.elapsed() < allowed, "{:?}", start.elapsed());
}

#[test]
fn an_update_completes_whatever_the_seed() {
    for seed in 2..10 {
        run(&["--seed", &seed.to_string()]).assert_clean();
    }
}

#[test]
fn the_same_seed_gives_the_same_result_and_another_seed_another() {
    let [first, second] = [(); 2].map(|()| run(&["--seed", "7"]));
    assert_eq!(first.text, second.text);
    assert_ne!(run(&["--seed", "8"]).report.timeline, first.report.timeline);
}

#[test]
fn two_updates_in_a_row_complete() {
    let ran = run(&["--updates", "2"]);
    ran.assert_clean();
    assert_eq!(ran.report.updates.len(), 2);
}

#[test]
fn every_mistake_is_found_and_told_apart() {
    Mode::ALL.into_iter().for_each(every_mistake);
}

fn every_mistake(mode: Mode) {
    eprintln!("{mode}");
    let run = |arguments: &[&str]| run(&[&["--mode", mode.name()], arguments].concat());
    let off = run(&["--mutant", "translation-off"]);
    off.assert_found(&[Kind::TranslationOff, Kind::SoundBroken], &[Kind::CaptureLost, Kind::TransferLost]);
    let left_out = run(&["--mutant", "no-cut-off"]);
    left_out.assert_found(
        &[Kind::NotCutOff],
        &[Kind::MemoryChanged, Kind::AuditViolation, Kind::CutOffUnconfirmed],
    );
    run(&["--mutant", "poisoned-page"]).assert_found(&[Kind::SoundBroken, Kind::ContentChanged], &[]);
    run(&["--mutant", "missing-invalidation"])
        .assert_found(&[Kind::StaleTranslation, Kind::MemoryChanged], &[]);
    let refused = run(&["--mutant", "stray-leaf"]);
    refused.assert_found(&[Kind::Refused, Kind::AuditViolation], &[]);
    assert_eq!(refused.report.outcome, Outcome::Refused);
    let late = run(&["--mutant", "late-stray-leaf"]);
    late.assert_found(
        &[Kind::AuditViolation, Kind::DomainBlocked, Kind::TransferLost],
        // The domain's requester is blocked like any other.
        &[Kind::PreservedFault],
    );
    let broken = run(&["--mutant", "broken-handover"]);
    assert_eq!((broken.status, broken.report.outcome), (1, Outcome::Failed));
    assert!(broken.report.findings.iter().any(|f| f.kind == Kind::Failed && f.words.contains("digest")));
    assert!(broken.report.translation_enabled_throughout);
}

#[test]
fn a_successor_for_another_mode_is_refused_at_the_freeze_and_everything_goes_on() {
    for mode in Mode::ALL {
        let ran = run(&["--mode", mode.name(), "--mutant", "legacy-successor"]);
        if !mode.is_scalable() {
            ran.assert_clean();
            continue;
        }
        ran.assert_refused_for_its_mode();
    }
}

#[test]
fn no_interrupt_of_a_preserved_device_is_lost_and_one_that_was_cut_off_gets_none_through() {
    let ran = run(&["--updates", "2"]);
    ran.assert_clean();
    let i = ran.report.interrupts;
    assert_eq!((i.sent, i.delivered_before, i.delivered_in_gap, i.delivered_after), (16, 8, 2, 6));
    assert_eq!((i.lost, i.misdirected), (0, 0));
    let cut = &ran.report.cut_off[0].requester;
    let blocked = ran.report.evidence.faults.iter().filter(|f| f.reason == 0x22 && f.requester == *cut);
    assert_eq!(blocked.count(), 2, "one for each update");
}

#[test]
fn an_interrupt_that_is_posted_in_the_gap_is_delivered_after_adoption() {
    let ran = run(&["--scenario", "posted-interrupts", "--updates", "2"]);
    ran.assert_clean();
    let i = ran.report.interrupts;
    assert_eq!((i.sent, i.delivered_in_gap, i.lost, i.misdirected), (16, 2, 0, 0));
    let lost = run(&["--scenario", "posted-interrupts", "--mutant", "interrupt-table-lost"]);
    lost.assert_found(&[Kind::InterruptLost], &[Kind::PreservedFault]);
}

#[test]
fn interrupts_for_a_processor_with_an_id_of_32_bits_are_counted_over_the_jump() {
    let ran = run(&["--scenario", "x2apic", "--updates", "2"]);
    ran.assert_clean();
    let i = ran.report.interrupts;
    assert_eq!((i.sent, i.delivered_in_gap, i.lost, i.misdirected), (16, 2, 0, 0));
    let lost = run(&["--scenario", "x2apic", "--mutant", "interrupt-table-lost"]);
    lost.assert_found(&[Kind::InterruptLost], &[Kind::PreservedFault]);
}

#[test]
fn an_interrupt_entry_that_is_gone_while_the_kernel_leaves_is_an_interrupt_lost() {
    let ran = run(&["--mutant", "interrupt-table-lost"]);
    ran.assert_found(&[Kind::InterruptLost], &[Kind::PreservedFault]);
    assert_eq!((ran.report.interrupts.lost, ran.report.interrupts.delivered_in_gap), (1, 0));
}

#[test]
fn every_page_request_is_answered_once_over_an_update() {
    for (mode, updates) in [("second-stage", "1"), ("first-stage", "2")] {
        let ran = run(&["--scenario", "page-requests", "--mode", mode, "--updates", updates]);
        ran.assert_clean();
        let p = ran.report.page_requests;
        assert!(p.answered_before >= 24 && p.answered_after >= 24, "{p:?}");
        assert_eq!((p.raised, p.lost, p.answered_twice), (p.answered_before + p.answered_after, 0, 0));
    }
    assert_eq!(run(&[]).report.page_requests, PageRequests::default());
}

#[test]
fn page_requests_that_nobody_answers_are_found_and_a_refused_update_loses_none() {
    let run = |mutant| run(&["--scenario", "page-requests", "--mode", "second-stage", "--mutant", mutant]);
    let dropped = run("dropped-page-requests");
    dropped.assert_found(&[Kind::PageRequestLost], &[]);
    assert!(dropped.report.page_requests.lost > 0);
    let refused = run("stray-leaf");
    refused.assert_found(&[Kind::Refused, Kind::AuditViolation], &[]);
    let p = refused.report.page_requests;
    assert!(p.answered_before >= 48, "they were on again: {p:?}");
    assert_eq!((p.raised, p.answered_after, p.lost, p.answered_twice), (p.answered_before, 0, 0, 0));
}

/// Every scenario with each mode that it has.
fn scenarios() -> impl Iterator<Item = (&'static str, Mode)> {
    scenarios::ALL.iter().flat_map(|scenario| scenario.modes.iter().map(|mode| (scenario.name, *mode)))
}

/// Every scenario once, in its modes by turns.
fn by_turns() -> impl Iterator<Item = (&'static str, Mode)> {
    let turn =
        |(i, scenario): (usize, &'static Scenario)| (scenario.name, scenario.modes[i % scenario.modes.len()]);
    scenarios::ALL.iter().enumerate().map(turn)
}

fn play(name: &str, mode: Mode, more: &[&str]) -> Ran {
    eprintln!("{name}, {mode}");
    run(&[&["--scenario", name, "--mode", mode.name()], more].concat())
}

#[test]
fn every_scenario_completes_in_every_mode_that_it_has() {
    for (name, mode) in scenarios() {
        let ran = play(name, mode, &[]);
        ran.assert_clean_as(name);
        assert_eq!((ran.report.asked.scenario.as_str(), ran.report.mode.as_str()), (name, mode.name()));
    }
}

#[test]
fn every_scenario_completes_twice_in_a_row() {
    for (name, mode) in by_turns() {
        play(name, mode, &["--updates", "2", "--seed", "3"]).assert_clean_as(name);
    }
}

#[test]
fn requests_of_phantom_functions_come_through_under_every_id() {
    let ran = run(&["--scenario", "phantom"]);
    for function in ["0", "2", "4", "6"] {
        let id = format!("0000:00:08.{function}");
        let traffic = ran.report.evidence.traffic.iter().find(|t| t.requester == id);
        assert!(traffic.is_some_and(|t| t.translated > 0 && t.blocked == 0), "{id}: {traffic:?}");
    }
    assert_eq!(ran.report.preserved[1].aliases, ["0000:00:08.2", "0000:00:08.4", "0000:00:08.6"]);
}

#[test]
fn a_requester_that_is_reduced_goes_on_reaching_its_reserved_memory_and_nothing_else() {
    let ran = run(&["--scenario", "reserved"]);
    let [reduced] = &ran.report.reduced[..] else { panic!("{:?}", ran.report.reduced) };
    assert_eq!((reduced.requester.as_str(), reduced.attempts_outside), ("0000:00:04.0", 0));
    assert!(reduced.attempts_within > 100, "{reduced:?}");
}

#[test]
fn a_unit_with_one_fault_record_says_that_it_lost_one() {
    assert!(run(&["--scenario", "one-fault-record"]).report.faults.overflows > 0);
}

#[test]
fn mistakes_are_found_in_every_scenario() {
    for (name, mode) in by_turns() {
        play(name, mode, &["--mutant", "no-cut-off"]).assert_found(
            &[Kind::NotCutOff],
            &[Kind::MemoryChanged, Kind::AuditViolation, Kind::CutOffUnconfirmed],
        );
        play(name, mode, &["--mutant", "missing-invalidation"])
            .assert_found(&[Kind::StaleTranslation, Kind::MemoryChanged], &[]);
    }
}

#[test]
fn a_unit_with_nothing_preserved_goes_off_and_comes_back_empty() {
    let ran = run(&["--scenario", "units", "--updates", "2"]);
    ran.assert_clean();
    assert_eq!(ran.report.evidence.units.len(), 3);
}

#[test]
fn a_run_leaves_its_report_and_recording() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let (page, wav) = (file("report.html"), file("witness.wav"));
    run(&["--report", page.to_str().unwrap(), "--wav", wav.to_str().unwrap()]).assert_clean();
    assert!(std::fs::read_to_string(page).unwrap().contains("verdict good"));
    assert!(std::fs::metadata(wav).unwrap().len() > 10_000);
}

#[test]
fn without_a_qemu_the_built_in_machine_takes_its_place_and_says_so() {
    let empty = tempfile::tempdir().unwrap();
    let output = command().arg("--json").env("PATH", empty.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("running on the built-in machine"), "{errors}");
    assert_eq!(output.status.code(), Some(0), "{errors}");
}

/// The stream with a PASID, or without one.
fn stream(ran: &Ran, pasid: Option<u32>) -> &Stream {
    ran.report.streams.iter().find(|s| s.pasid == pasid).unwrap_or_else(|| panic!("no stream {pasid:?}"))
}

#[test]
fn each_preserved_pasid_streams_over_the_jump_without_a_hole_and_no_other_gets_through() {
    for mode in [Mode::SecondStage, Mode::FirstStage] {
        let ran = play("pasids", mode, &["--updates", "2"]);
        ran.assert_clean_as("pasids");
        let through: Vec<_> = ran.report.streams.iter().map(|s| (s.pasid, s.through.as_str())).collect();
        let own = mode.name();
        for expected in
            [(None, own), (Some(5), "first-stage"), (Some(4070), "second-stage"), (Some(300), "nested")]
        {
            assert!(through.contains(&expected), "{through:?}");
        }
        for stream in &ran.report.streams {
            assert!(stream.sent_in_gap > 100 && stream.lost == 0 && stream.complete, "{stream:?}");
        }
        assert_eq!(stream(&ran, Some(300)).grown, Some(true), "a page mapped after adoption");
        let cut: Vec<_> = ran.report.pasids_cut_off.iter().map(|c| (c.pasid, c.through.as_str())).collect();
        assert_eq!(cut, [(9, "second-stage"), (77, "pass-through")]);
        for cut in &ran.report.pasids_cut_off {
            assert!(
                cut.attempts_blocked > 0 && cut.attempts_let_through == 0 && cut.memory_intact,
                "{cut:?}"
            );
            let told = |f: &&FaultRecord| f.pasid == Some(cut.pasid) && f.who == "cut_off";
            assert!(ran.report.evidence.faults.iter().any(|f| told(&f)), "{cut:?}");
        }
    }
}

#[test]
fn a_pasid_that_nobody_preserved_is_a_stream_that_breaks() {
    let ran = play("pasids", Mode::SecondStage, &["--mutant", "forgotten-pasid"]);
    // Its faults without end leave no room in the unit's record of the requester for those of its other PASIDs.
    ran.assert_found(&[Kind::TransferLost, Kind::PreservedFault], &[Kind::FaultUnreported]);
    let broken: Vec<_> = ran.report.streams.iter().filter(|s| s.lost > 0).map(|s| s.pasid).collect();
    assert_eq!(broken, [Some(5)], "the others go on");
}

#[test]
fn a_cut_off_without_the_pasid_cache_lets_a_pasid_through_whose_entry_is_gone() {
    for mode in [Mode::SecondStage, Mode::FirstStage] {
        let ran = play("pasids", mode, &["--mutant", "stale-pasid"]);
        ran.assert_found(&[Kind::StaleTranslation, Kind::MemoryChanged], &[]);
        let through = |c: &PasidCutOff| c.attempts_let_through > 0 && !c.memory_intact;
        assert!(
            ran.report.cut_off.iter().all(|c| c.attempts_let_through == 0),
            "their entries were forgotten"
        );
        // The tables of the other one are poisoned by the time of its attempt.
        assert!(ran.report.pasids_cut_off.iter().any(through), "{:?}", ran.report.pasids_cut_off);
    }
}

#[test]
fn guests_tables_stay_nested_in_the_hosts_which_maps_more_after_every_update() {
    let ran = play("nested", Mode::FirstStage, &["--updates", "2"]);
    ran.assert_clean_as("nested");
    for pasid in [300, 301] {
        let stream = stream(&ran, Some(pasid));
        assert_eq!((stream.through.as_str(), stream.grown, stream.lost), ("nested", Some(true), 0));
    }
}

#[test]
fn a_guest_that_changes_its_tables_after_the_seal_is_blocked_alone() {
    let ran = play("nested", Mode::SecondStage, &["--mutant", "guest-remaps"]);
    ran.assert_found(
        &[Kind::AuditViolation, Kind::DomainBlocked, Kind::TransferLost, Kind::PreservedFault],
        &[Kind::FaultUnreported],
    );
    let broken: Vec<_> = ran.report.streams.iter().filter(|s| s.lost > 0).map(|s| s.pasid).collect();
    assert_eq!(broken, [Some(300)], "the other guest and its host go on");
}

#[test]
fn a_device_whose_aliases_were_forgotten_is_a_transfer_lost() {
    for name in ["bridge", "phantom"] {
        for mode in Mode::ALL {
            let ran = play(name, mode, &["--mutant", "forgotten-alias"]);
            // Behind the bridge nothing came through since the devices were seen working.
            ran.assert_found(&[Kind::TransferLost, Kind::PreservedFault], &[Kind::RecordIncomplete]);
        }
    }
}

#[test]
fn tables_of_five_levels_are_walked_to_the_end_by_both_kernels() {
    for mode in Mode::ALL {
        let ran = play("five-level", mode, &[]);
        ran.assert_clean_as("five-level");
        assert!(ran.report.streams.iter().all(|s| s.sent_in_gap > 100));
        let lost = play("five-level", mode, &["--mutant", "four-levels"]);
        lost.assert_found(
            &[Kind::AuditViolation, Kind::TransferLost, Kind::PreservedFault],
            &[Kind::DomainBlocked, Kind::FaultUnreported],
        );
    }
}

#[test]
fn a_scenario_is_refused_where_mode_machine_or_mistake_do_not_suit_it() {
    for (arguments, words) in [
        (&["--scenario", "pasids"][..], "--mode second-stage or --mode first-stage"),
        (&["--scenario", "nested", "--mode", "legacy"], "--mode second-stage or --mode first-stage"),
        (&["--mutant", "forgotten-pasid"], "--scenario pasids"),
        (&["--scenario", "five-level", "--mutant", "stale-pasid"], "--scenario pasids"),
    ] {
        let output = command().args(["--machine", "builtin"]).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
}
