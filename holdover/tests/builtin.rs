//! The whole update on the built-in machine, as a user runs it.

mod common;

use common::{Ran, command, update};
use holdover::report::{Kind, Outcome};
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
fn an_interrupt_entry_that_is_gone_while_the_kernel_leaves_is_an_interrupt_lost() {
    let ran = run(&["--mutant", "interrupt-table-lost"]);
    ran.assert_found(&[Kind::InterruptLost], &[Kind::PreservedFault]);
    assert_eq!((ran.report.interrupts.lost, ran.report.interrupts.delivered_in_gap), (1, 0));
}

/// Scenarios that are played in legacy mode.
fn scenarios() -> impl Iterator<Item = &'static str> {
    let legacy = |scenario: &&Scenario| scenario.modes.contains(&Mode::Legacy);
    scenarios::ALL.iter().filter(legacy).map(|scenario| scenario.name)
}

#[test]
fn every_scenario_completes() {
    for name in scenarios() {
        let ran = run(&["--scenario", name]);
        eprintln!("{name}");
        ran.assert_clean();
        assert_eq!((ran.report.asked.scenario.as_str(), ran.report.mode.as_str()), (name, "legacy"));
    }
}

#[test]
fn mistakes_are_found_in_every_scenario() {
    for name in scenarios() {
        eprintln!("{name}");
        run(&["--scenario", name, "--mutant", "no-cut-off"]).assert_found(
            &[Kind::NotCutOff],
            &[Kind::MemoryChanged, Kind::AuditViolation, Kind::CutOffUnconfirmed],
        );
        run(&["--scenario", name, "--mutant", "missing-invalidation"])
            .assert_found(&[Kind::StaleTranslation, Kind::MemoryChanged], &[]);
        run(&["--scenario", name, "--mutant", "stray-leaf"])
            .assert_found(&[Kind::Refused, Kind::AuditViolation], &[]);
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
