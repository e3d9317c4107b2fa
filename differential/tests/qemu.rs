//! The comparison on the QEMU that `HOLDOVER_QEMU` names, mode by mode.

use holdover_differential::compare::Comparison;
use holdover_differential::mode::Mode;
use holdover_differential::qtest::major_version;
use std::path::PathBuf;

/// Requests in every mode.
const REQUESTS: u64 = 10_000;

fn compare(mode: Mode) {
    let qemu = std::env::var_os("HOLDOVER_QEMU").map(PathBuf::from);
    let qemu = qemu.expect("HOLDOVER_QEMU names the QEMU to compare with");
    let number = |name, default| std::env::var(name).map_or(default, |n: String| n.parse().expect(name));
    let requests = number("HOLDOVER_REQUESTS", REQUESTS);
    if !mode.is_in(major_version(&qemu).unwrap()) {
        println!("{mode}: not compared with this QEMU");
        return;
    }
    let comparison = Comparison::new(&qemu, mode, number("HOLDOVER_SEED", 1)).unwrap();
    let tally = comparison.run(requests).unwrap();
    println!("{mode}: {tally}");
    assert!(tally.disagreements.is_empty(), "{}", tally.disagreements.join("\n"));
    assert!(tally.requests >= requests);
}

#[test]
fn three_level_tables_in_legacy_mode() {
    compare(Mode::Legacy39);
}

#[test]
fn three_and_four_level_tables_in_legacy_mode() {
    compare(Mode::Legacy48);
}

#[test]
fn second_stage_tables_in_scalable_mode() {
    compare(Mode::SecondStage);
}

#[test]
fn first_stage_tables_in_scalable_mode() {
    compare(Mode::FirstStage);
}
