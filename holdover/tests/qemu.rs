//! The whole update on QEMU, as a user runs it. `HOLDOVER_QEMU` names the QEMU; without it every test fails.

mod common;

use common::{Ran, command, update};
use holdover::report::{Kind, Outcome};
use holdover::scenarios::{self, Scenario};
use scenario::story::Mode;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One machine at a time: a QEMU that does not get its share of the processor plays late.
static MACHINE: Mutex<()> = Mutex::new(());

fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn qemu() -> PathBuf {
    let name = std::env::var_os("HOLDOVER_QEMU");
    name.expect("HOLDOVER_QEMU names the QEMU to test on, e.g. `cargo xtask qemu`'s answer").into()
}

fn run(arguments: &[&str]) -> Ran {
    let _one = machine();
    run_locked(arguments)
}

fn run_locked(arguments: &[&str]) -> Ran {
    let qemu = qemu();
    let mut all = vec!["--machine", "qemu", "--qemu", qemu.to_str().unwrap()];
    all.extend_from_slice(arguments);
    update(all)
}

fn completes(arguments: &[&str]) {
    completes_in(Mode::Legacy, arguments);
}

fn completes_in(mode: Mode, arguments: &[&str]) {
    let ran = run(&[&["--mode", mode.name()], arguments].concat());
    ran.assert_clean();
    assert_eq!(ran.report.machine, "qemu");
    assert_eq!(ran.report.mode, mode.name());
    let samples = ran.report.witness.samples;
    assert!(samples >= 150_000, "only {samples} samples were heard");
}

/// The modes that this QEMU has: first-stage tables came with 10.0.
fn modes() -> &'static [Mode] {
    let output = command_of_qemu(&["--version"]);
    let version =
        output.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    if version.expect("a version") >= 10 { &Mode::ALL } else { &[Mode::Legacy, Mode::SecondStage] }
}

fn command_of_qemu(arguments: &[&str]) -> String {
    let output = std::process::Command::new(qemu()).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_update_completes_in_every_mode_that_this_qemu_has() {
    for &mode in modes().iter().filter(|mode| mode.is_scalable()) {
        completes_in(mode, &[]);
        completes_in(mode, &["--memory", "6G"]);
        let ran = run(&["--mode", mode.name(), "--updates", "2"]);
        ran.assert_clean();
        assert_eq!((ran.report.updates.len(), ran.report.mode.as_str()), (2, mode.name()));
    }
    completes_in(Mode::SecondStage, &["--address-width", "39"]);
}

#[test]
fn a_mode_that_this_qemu_lacks_is_refused_with_what_to_do() {
    let (qemu, lacking) = (qemu(), !modes().contains(&Mode::FirstStage));
    let width = if lacking { "48" } else { "39" };
    let output = command()
        .args(["--machine", "qemu", "--mode", "first-stage", "--address-width", width, "--qemu"])
        .arg(qemu)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    let told = if lacking { ["x-flts", "--qemu"] } else { ["48 bits", "--address-width"] };
    assert!(told.iter().all(|word| errors.contains(word)), "{errors}");
}

#[test]
fn mistakes_are_found_in_every_mode_that_this_qemu_has() {
    for &mode in modes().iter().filter(|mode| mode.is_scalable()) {
        let run = |mutant| run(&["--mode", mode.name(), "--mutant", mutant]);
        run("no-cut-off").assert_found(
            &[Kind::NotCutOff],
            &[Kind::MemoryChanged, Kind::AuditViolation, Kind::CutOffUnconfirmed],
        );
        run("missing-invalidation").assert_found(&[Kind::StaleTranslation, Kind::MemoryChanged], &[]);
        run("late-stray-leaf").assert_found(
            &[Kind::AuditViolation, Kind::DomainBlocked, Kind::TransferLost],
            &[Kind::PreservedFault],
        );
    }
}

#[test]
fn a_successor_for_another_mode_is_refused_at_the_freeze_and_everything_goes_on() {
    for &mode in modes().iter().filter(|mode| mode.is_scalable()) {
        run(&["--mode", mode.name(), "--mutant", "legacy-successor"]).assert_refused_for_its_mode();
    }
    run(&["--mutant", "legacy-successor"]).assert_clean();
}

#[test]
fn every_scenario_that_qemu_has_completes() {
    let modes = modes();
    // These have tests of their own.
    let fit = |scenario: &&Scenario| {
        scenario.refusal(scenario.modes[0], None, true).is_none()
            && !["demo", "x2apic"].contains(&scenario.name)
    };
    for (turn, scenario) in scenarios::ALL.iter().filter(fit).enumerate() {
        let own: Vec<_> = scenario.modes.iter().filter(|mode| modes.contains(mode)).collect();
        let mode = own[turn % own.len()];
        eprintln!("{}, {mode}", scenario.name);
        run(&["--scenario", scenario.name, "--mode", mode.name()]).assert_clean_as(scenario.name);
    }
}

#[test]
fn an_update_completes_with_48_bits_and_512_mib() {
    completes(&["--address-width", "48", "--memory", "512M"]);
}

#[test]
fn an_update_completes_with_39_bits_and_512_mib() {
    completes(&["--address-width", "39", "--memory", "512M"]);
}

#[test]
fn an_update_completes_with_48_bits_and_6_gib() {
    completes(&["--address-width", "48", "--memory", "6G"]);
}

#[test]
fn an_update_completes_with_39_bits_and_6_gib() {
    completes(&["--address-width", "39", "--memory", "6G"]);
}

#[test]
fn an_update_completes_without_poison() {
    completes(&["--no-poison"]);
}

#[test]
fn two_updates_in_a_row_complete() {
    let ran = run(&["--updates", "2"]);
    ran.assert_clean();
    let kernels: Vec<_> = ran.report.updates.iter().map(|u| (&u.outgoing[..], &u.incoming[..])).collect();
    let last = |name: &str| name.rsplit('-').next().unwrap_or_default().to_owned();
    let letters: Vec<_> = kernels.iter().map(|(from, to)| (last(from), last(to))).collect();
    assert_eq!(letters, [("a".into(), "b".into()), ("b".into(), "c".into())]);
}

#[test]
fn no_interrupt_of_a_preserved_device_is_lost_and_one_that_was_cut_off_gets_none_through() {
    let ran = run(&["--updates", "2"]);
    ran.assert_clean();
    let i = ran.report.interrupts;
    assert_eq!((i.sent, i.delivered_before, i.delivered_in_gap, i.delivered_after), (16, 8, 2, 6));
    assert_eq!((i.lost, i.misdirected), (0, 0));
    // QEMU records blocked interrupts from version 8 on; 7.2 says so on its standard error alone.
    let cut = &ran.report.cut_off[0].requester;
    let blocked = ran.report.evidence.faults.iter().filter(|f| f.reason == 0x22 && f.requester == *cut);
    let recorded = if ran.report.machine_version.starts_with("7.") { 0 } else { 2 };
    assert_eq!(blocked.count(), recorded, "one for each update");
}

#[test]
fn interrupts_are_counted_in_x2apic_mode_over_the_jump_or_a_qemu_without_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("kept");
    let asked = ["--scenario", "x2apic", "--updates", "2"];
    if command_of_qemu(&["--version"]).contains("version 7.") {
        let output =
            command().args(["--machine", "qemu", "--qemu"]).arg(qemu()).args(asked).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("eim=on") && errors.contains("--qemu"), "{errors}");
        return;
    }
    let ran = run(&[&asked[..], &["--keep", keep.to_str().unwrap()]].concat());
    ran.assert_clean_as("x2apic");
    let i = ran.report.interrupts;
    assert_eq!((i.sent, i.delivered_before, i.delivered_in_gap, i.delivered_after), (16, 8, 2, 6));
    assert_eq!((i.lost, i.misdirected), (0, 0));
    // The first kernel's entry names a set of processors, in all 32 bits: in xAPIC mode it would name none.
    let shown = look(&keep, &["inspect"]).1;
    let table = &shown["units"][0]["interrupts"];
    assert_eq!(table["extended"], true, "{table:#}");
    assert_eq!(table["entries"][0]["destination"], 1, "{table:#}");
}

#[test]
fn an_interrupt_entry_that_is_gone_while_the_kernel_leaves_is_an_interrupt_lost() {
    let ran = run(&["--mutant", "interrupt-table-lost"]);
    ran.assert_found(&[Kind::InterruptLost], &[Kind::PreservedFault]);
    assert_eq!((ran.report.interrupts.lost, ran.report.interrupts.delivered_in_gap), (1, 0));
}

#[test]
fn translation_that_is_off_for_30_ms_in_the_gap_is_reported() {
    let ran = run(&["--mutant", "translation-off"]);
    // Devices read and write at untranslated addresses meanwhile, so whatever they do then is lost.
    ran.assert_found(&[Kind::TranslationOff, Kind::SoundBroken], &[Kind::CaptureLost, Kind::TransferLost]);
    assert!(!ran.report.translation_enabled_throughout);
}

#[test]
fn a_cut_off_that_is_left_out_is_reported() {
    let ran = run(&["--mutant", "no-cut-off"]);
    ran.assert_found(
        &[Kind::NotCutOff],
        &[Kind::MemoryChanged, Kind::AuditViolation, Kind::CutOffUnconfirmed],
    );
    assert!(ran.report.cut_off.iter().any(|c| c.attempts_let_through > 0));
}

#[test]
fn a_preserved_page_that_is_poisoned_is_reported() {
    let ran = run(&["--mutant", "poisoned-page"]);
    ran.assert_found(&[Kind::SoundBroken, Kind::ContentChanged], &[]);
    assert!(ran.report.translation_enabled_throughout);
}

#[test]
fn an_invalidation_that_is_left_out_is_reported() {
    let ran = run(&["--mutant", "missing-invalidation"]);
    ran.assert_found(&[Kind::StaleTranslation, Kind::MemoryChanged], &[]);
    assert_eq!(ran.report.witness.discontinuities, 0);
}

#[test]
fn a_leaf_that_leaves_preserved_memory_is_refused_before_the_jump() {
    let ran = run(&["--mutant", "stray-leaf"]);
    ran.assert_found(&[Kind::Refused, Kind::AuditViolation], &[]);
    assert_eq!(ran.report.outcome, Outcome::Refused);
    assert!(ran.report.translation_enabled_throughout);
    assert_eq!(ran.report.witness.discontinuities, 0, "the devices went on");
}

#[test]
fn a_domain_that_is_bent_after_the_seal_is_blocked_alone() {
    let late = run(&["--mutant", "late-stray-leaf"]);
    late.assert_found(
        &[Kind::AuditViolation, Kind::DomainBlocked, Kind::TransferLost],
        // The domain's requester is blocked like any other.
        &[Kind::PreservedFault],
    );
    assert_eq!(late.report.outcome, Outcome::Completed);
    assert_eq!(late.report.witness.discontinuities, 0, "the others go on");
}

#[test]
fn a_handover_that_cannot_be_read_leaves_translation_on_and_everything_blocked() {
    let broken = run(&["--mutant", "broken-handover"]);
    assert_eq!((broken.status, broken.report.outcome), (1, Outcome::Failed));
    assert!(broken.report.findings.iter().any(|f| f.kind == Kind::Failed && f.words.contains("digest")));
    assert!(broken.report.translation_enabled_throughout);
    assert!(broken.report.cut_off.iter().all(|c| c.attempts_let_through == 0 && c.memory_intact));
}

#[test]
fn two_runs_that_count_instructions_are_the_same_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["1.wav", "2.wav"].map(|name| {
        let wav = directory.path().join(name);
        let ran = run(&["--icount", "--wav", wav.to_str().unwrap()]);
        ran.assert_clean();
        (ran.text, std::fs::read(wav).unwrap())
    });
    assert_eq!(first.0, second.0, "the results differ");
    assert!(first.1 == second.1, "the recordings differ");
}

#[test]
fn a_run_leaves_its_report_recording_logs_and_images() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let (page, wav, keep) = (file("report.html"), file("witness.wav"), file("kept"));
    let ran = run(&[
        "--report",
        page.to_str().unwrap(),
        "--wav",
        wav.to_str().unwrap(),
        "--keep",
        keep.to_str().unwrap(),
    ]);
    ran.assert_clean();
    assert!(std::fs::read_to_string(page).unwrap().contains("verdict good"));
    assert!(std::fs::metadata(wav).unwrap().len() > 4 * 150_000);
    let long = |name: &str| std::fs::metadata(keep.join(name)).map_or(0, |m| m.len());
    for name in ["serial.log", "events.jsonl", "trace.log", "witness.wav", "handover-1.bin", "fdt-1.bin"] {
        assert!(long(name) > 0, "{name} is missing or empty");
    }
    assert!(long("memory-1.elf") > 512 << 20);
    assert_eq!(long("registers-1-fed90000.bin"), 0x230);
    judged_as_the_kernel_judged(&keep);
}

/// What a command of `holdover` says of the kept image.
fn look(keep: &Path, words: &[&str]) -> (Option<i32>, serde_json::Value) {
    let [memory, registers] =
        ["memory-1.elf", "registers-1-fed90000.bin"].map(|name| keep.join(name).display().to_string());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_holdover"));
    let output = command.args(words).args([&memory, "--registers", &registers, "--json"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), value)
}

/// The kept image, looked at: every invariant holds at the seal, and the cut-off has not happened yet.
fn judged_as_the_kernel_judged(keep: &Path) {
    let look = |words: &[&str]| look(keep, words);
    let (status, sealed) = look(&["verify"]);
    assert_eq!((status, &sealed["holds"]), (Some(0), &serde_json::Value::from(true)), "{sealed:#}");
    let items = |number: &str| {
        let lines = sealed["invariants"].as_array().unwrap();
        lines.iter().find(|line| line["invariant"] == number).unwrap()["items"].as_u64().unwrap()
    };
    assert!(["I1", "I2", "I3", "I4", "I5", "I9"].iter().all(|number| items(number) > 0), "{sealed:#}");
    let (status, arrived) = look(&["verify", "--stage", "arrived"]);
    assert_eq!((status, &arrived["holds"]), (Some(1), &serde_json::Value::from(false)));
    let (status, shown) = look(&["inspect"]);
    assert_eq!((status, &shown["whole"]), (Some(0), &serde_json::Value::from(true)), "{}", shown["units"]);
    assert_eq!(shown["handovers"][0]["records"]["sound"], true);
}

#[test]
fn an_image_kept_in_scalable_mode_is_judged_as_the_kernel_judged() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("kept");
    run(&["--mode", "second-stage", "--keep", keep.to_str().unwrap()]).assert_clean();
    judged_as_the_kernel_judged(&keep);
}

#[test]
fn a_run_that_takes_longer_than_allowed_is_stopped_and_says_so() {
    let ran = run(&["--timeout", "1"]);
    assert_eq!((ran.status, ran.report.outcome), (1, Outcome::Failed));
    assert!(
        ran.report.findings.iter().any(|f| f.words.contains("stopped after 1 second")),
        "{:?}",
        ran.report.findings
    );
    assert!(ran.errors.contains("The kernels wrote"), "{}", ran.errors);
}

#[test]
fn a_qemu_that_does_not_start_is_a_failed_run_with_its_own_words() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("kept");
    for more in [&[][..], &["--keep", keep.to_str().unwrap()]] {
        let ran = run(&[&["--qemu-arg", "-no-such-option"], more].concat());
        assert_eq!((ran.status, ran.report.outcome), (1, Outcome::Failed));
        let told = ran.report.findings.iter().any(|f| f.words.contains("no-such-option"));
        assert!(told, "{:?}", ran.report.findings);
    }
}

#[test]
fn no_qemu_outlives_the_command() {
    let _one = machine();
    let mut parent = command()
        .args(["--machine", "qemu", "--qemu"])
        .arg(qemu())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let child = wait_for(|| child_of(parent.id()));
    // Let the wrapper, if it is one, become QEMU.
    std::thread::sleep(Duration::from_millis(300));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for(|| (!Path::new(&format!("/proc/{child}")).exists() || is_zombie(child)).then_some(()));
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nothing for ten seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn child_of(parent: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn is_zombie(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|s| s.contains(") Z "))
}
