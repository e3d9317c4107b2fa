//! What the whole-update tests share: a machine, a run of it, and what a correct update looks like from outside.
#![allow(dead_code)] // each test binary uses its part

pub(crate) mod host;
pub(crate) mod port;

use holdover_machine::{MachineConfig, Run, RunConfig, TraceLine, pci, run};
use scenario::event::Event;
use scenario::platform::Mark;
use scenario::story::Verdict;
use spec::fault::Reason;

/// A machine like QEMU's with one unit.
pub(crate) fn machine(seed: u64) -> MachineConfig {
    MachineConfig::qemu_like(seed, 512 << 20, 48)
}

/// A run to its end.
pub(crate) fn play(config: &RunConfig) -> Run {
    run(config, &mut |_, _| ())
}

/// One update on `machine`.
pub(crate) fn update(machine: MachineConfig) -> Run {
    play(&RunConfig::new(machine, 1))
}

/// What kernels said that failed or was refused.
pub(crate) fn failures(run: &Run) -> Vec<String> {
    let bad = |event: Event| match event {
        Event::Failed { step, why } | Event::Refused { step, why } => Some(format!("{step}: {why}")),
        _ => None,
    };
    run.events().into_iter().filter_map(bad).collect()
}

/// Rules that software broke.
pub(crate) fn broken_rules(run: &Run) -> Vec<TraceLine> {
    let broken = |line: &TraceLine| matches!(line, TraceLine::Misuse { .. } | TraceLine::DeviceMisuse { .. });
    run.machine.trace().into_iter().filter(broken).collect()
}

/// What a correct update looks like from outside.
pub(crate) fn assert_good(run: &Run, what: &str) {
    assert_eq!(run.verdict, Verdict::Completed, "{what}: {:#?}", failures(run));
    assert_eq!(broken_rules(run), [], "{what}");
    assert!(run.sound().len() >= 150_000, "{what}: {} frames", run.sound().len());
    let events = run.events();
    let spoilt = |event: &&Event| match event {
        Event::Target { intact, .. } | Event::Content { intact, .. } => !intact,
        Event::Transfer { complete, correct, .. } => !complete || !correct,
        Event::Capture { complete, .. } => !complete,
        Event::Audit { violations, .. } => !violations.is_empty(),
        Event::Fault { who, .. } => who != "cut_off",
        Event::CutOff { confirmed, .. } => !confirmed,
        Event::Blocked { .. } => true,
        _ => false,
    };
    assert_eq!(events.iter().find(spoilt), None, "{what}");
    assert!(events.iter().filter(|e| matches!(e, Event::Target { .. })).count() >= 2, "{what}");
    assert_isolated(run, what);
}

/// After each cut-off the two requesters reach nothing until the next kernel lets them; translation stays on.
pub(crate) fn assert_isolated(run: &Run, what: &str) {
    let blocked = blocked(run, what);
    assert!(blocked >= 2, "{what}: {blocked} attempts were blocked");
}

/// How many attempts were blocked after a cut-off. None may have got through, and nobody else may have been refused.
pub(crate) fn blocked(run: &Run, what: &str) -> u64 {
    let cut_off = [pci::EDU_B, pci::BEHIND_BRIDGE];
    let (mut cut, mut shut, mut started, mut blocked) = (false, false, false, 0);
    for line in run.machine.trace() {
        match line {
            TraceLine::Mark { mark: Mark::Running, .. } => started = true,
            TraceLine::Mark { mark: Mark::CutOffDone, .. } => (cut, shut) = (true, true),
            // From here on the kernel may attach them anew.
            TraceLine::Mark { mark: Mark::Finished, .. } => shut = false,
            TraceLine::Mark { mark: Mark::Over, .. } => break,
            TraceLine::TranslationEnabled { .. } => assert!(!started, "{what}: {line:?}"),
            TraceLine::Untranslated { .. } => panic!("{what}: {line:?}"),
            TraceLine::Translated { source, .. } if shut => {
                assert!(!cut_off.contains(&source), "{what}: {line:?}")
            }
            TraceLine::Faulted { source, reason, .. } if cut => {
                assert!(cut_off.contains(&source), "{what}: {line:?}");
                // Any other reason: a table was walked that should have been out of reach.
                let gone = [Reason::ROOT_NOT_PRESENT, Reason::CONTEXT_NOT_PRESENT];
                assert!(gone.contains(&reason), "{what}: {line:?}");
                blocked += 1;
            }
            _ => {}
        }
    }
    blocked
}

/// Whether the machine's trace has such a line.
pub(crate) fn traced(run: &Run, wanted: fn(&TraceLine) -> bool) -> bool {
    run.machine.trace().iter().any(wanted)
}
