//! Hardware's conditions (docs/conditions.md): each put on demand under a whole update, and each seen to have been met.

mod common;

use common::{assert_good, failures, machine, play, traced, update};
use holdover_machine::devices::Habits;
use holdover_machine::{
    Invalidation, MachineConfig, Protected, QueueFault, QueueFaultKind, RunConfig, Strike, TraceLine,
    UnitConfig, pci,
};
use scenario::event::Event;
use scenario::platform::Mark;
use spec::{Extent, PhysAddr, SourceId};

const BASE: u64 = 0xfed9_0000;
const STRANGER: SourceId = SourceId::new(0, 9, 0);

fn plain() -> UnitConfig {
    UnitConfig::plain(BASE, 48)
}

fn with(seed: u64, unit: UnitConfig) -> MachineConfig {
    MachineConfig { units: vec![unit], ..machine(seed) }
}

fn extent(start: u64, bytes: u64) -> Extent {
    Extent::from_bytes(PhysAddr::new(start), bytes).expect("whole pages")
}

/// What the kernels said of invalidation queues.
fn told(run: &holdover_machine::Run) -> Vec<String> {
    let words = |event| match event {
        Event::QueueError { words, .. } => Some(words),
        _ => None,
    };
    run.events().into_iter().filter_map(words).collect()
}

/// How many descriptors a whole update has fetched.
fn fetches(unit: &UnitConfig) -> u64 {
    let run = update(with(1, unit.clone()));
    let done = |line: &&TraceLine| matches!(line, TraceLine::Invalidated { .. } | TraceLine::Waited { .. });
    run.machine.trace().iter().filter(done).count() as u64
}

/// One row of the table: a fault of the queue, what the machine's trace shows of it, and what the kernel says.
struct Row {
    kind: QueueFaultKind,
    met: fn(&TraceLine) -> bool,
    words: &'static str,
}

const ROWS: [Row; 3] = [
    Row {
        kind: QueueFaultKind::Refused,
        met: |line| matches!(line, TraceLine::QueueError { .. }),
        words: "refused",
    },
    Row {
        kind: QueueFaultKind::Unanswered(pci::EDU_B),
        met: |line| matches!(line, TraceLine::Unanswered { source: pci::EDU_B, .. }),
        words: "did not answer an invalidation of its device-TLB",
    },
    Row {
        kind: QueueFaultKind::Unexpected(STRANGER),
        met: |line| matches!(line, TraceLine::Unexpected { source: STRANGER, .. }),
        words: "answered an invalidation that nobody waits for",
    },
];

#[test]
fn an_update_survives_every_error_of_the_invalidation_queue_wherever_it_strikes_and_names_it() {
    // QEMU raises no other error than the first.
    let units = [("by the manual", plain(), &ROWS[..]), ("like QEMU", UnitConfig::qemu_like(48), &ROWS[..1])];
    for (name, unit, rows) in units {
        let all = fetches(&unit);
        assert!(all > 10, "{name}: {all} descriptors");
        for row in rows {
            for fetch in 0..all {
                let mut config = with(fetch, unit.clone());
                config.faults.queues = vec![QueueFault { when: Strike::Fetch(fetch), kind: row.kind }];
                let what = format!("{name}, {:?} at {fetch}", row.kind);
                let run = update(config);
                assert_good(&run, &what);
                assert_eq!(run.machine.trace().into_iter().filter(row.met).count(), 1, "{what}");
                let told = told(&run);
                let in_cut_off = |words: &String| words.contains("during the cut-off");
                assert!(told.iter().any(|w| w.contains(row.words) || in_cut_off(w)), "{what}: {told:?}");
                assert_eq!(told.len(), 1, "{what}: {told:?}");
            }
        }
    }
}

#[test]
fn errors_of_the_queue_come_in_crowds_and_the_update_survives_or_says_that_it_did_not() {
    for seed in 0..6 {
        let mut config = with(seed, plain());
        let kinds = ROWS.map(|row| row.kind);
        config.faults.queues = (0..8)
            .map(|i| QueueFault {
                when: Strike::Fetch(seed + 9 * i),
                kind: kinds[(seed + i) as usize % kinds.len()],
            })
            .collect();
        assert_good(&update(config), &format!("seed {seed}"));
    }
}

#[test]
fn a_unit_that_refuses_whatever_it_is_given_is_named_and_nothing_hangs() {
    let mut config = with(2, plain());
    let always =
        (0..100_000).map(|fetch| QueueFault { when: Strike::Fetch(fetch), kind: QueueFaultKind::Refused });
    config.faults.queues = always.collect();
    let run = update(config);
    let failures = failures(&run);
    assert!(
        failures.iter().any(|why| why.contains("invalidation queue") || why.contains("wait")),
        "{failures:?}"
    );
    assert!(run.machine.now() < 20_000_000_000, "took {} ns", run.machine.now());
}

#[test]
fn where_setting_a_table_invalidates_nothing_else_does_and_where_it_does_not_everything_is() {
    for own in [false, true] {
        let unit = plain().with_cap(|c| c.with_esrtps(own).with_esirtps(own));
        let run = update(with(3, unit));
        assert_good(&run, &format!("ESRTPS {own}"));
        let trace = run.machine.trace();
        let root = trace.iter().position(|l| matches!(l, TraceLine::RootSet { .. })).expect("a root table");
        let on = trace.iter().position(|l| matches!(l, TraceLine::TranslationEnabled { on: true, .. }));
        let between: Vec<_> = trace[root..on.expect("translation")]
            .iter()
            .filter_map(|line| match line {
                TraceLine::Invalidated { what, .. } => Some(*what),
                _ => None,
            })
            .collect();
        let everything =
            [Invalidation::Contexts, Invalidation::Translations, Invalidation::InterruptEntries(None)];
        let expected: &[Invalidation] = if own { &[] } else { &everything };
        assert_eq!(between, expected, "ESRTPS and ESIRTPS {own}");
    }
}

#[test]
fn firmwares_protected_memory_ends_after_translation_began_and_never_comes_back() {
    // All of memory that devices use, as tboot and some firmware leave it.
    let (low, high) = (extent(2 << 20, 510 << 20), extent(4 << 30, 2 << 20));
    let unit = plain().protecting(low, high);
    assert_eq!(unit.protected, Some(Protected { low, high }));
    let mut config = with(4, unit);
    let asks = Habits { source: STRANGER, addresses: vec![16 << 20, 64 << 20], pause: (2_000, 90_000) };
    config.chatter = vec![asks];
    let run = update(config);
    assert_eq!(run.verdict, scenario::story::Verdict::Completed, "{:#?}", failures(&run));
    let switched: Vec<_> = run
        .machine
        .trace()
        .iter()
        .filter_map(|line| match *line {
            TraceLine::TranslationEnabled { on, .. } => Some(("translation", on)),
            TraceLine::ProtectionEnabled { on, .. } => Some(("protection", on)),
            _ => None,
        })
        .collect();
    assert_eq!(switched, [("translation", true), ("protection", false)]);
    assert!(traced(&run, |l| matches!(l, TraceLine::Dropped { source: STRANGER, .. })), "nobody tried");
    assert!(!traced(&run, |l| matches!(
        l,
        TraceLine::Untranslated { .. } | TraceLine::Translated { source: STRANGER, .. }
    )));
}

#[test]
fn a_fault_log_that_overflows_is_told_of_and_cleared_and_the_faults_in_it_are_attributed() {
    for records in [1, 2] {
        let mut config = with(5, plain().with_fault_records(records));
        let strangers = [STRANGER, SourceId::new(0, 10, 0), SourceId::new(3, 1, 2), SourceId::new(0, 11, 7)];
        config.chatter = strangers
            .map(|source| Habits {
                source,
                addresses: vec![0x0900_3000, 0x1000],
                pause: (200_000, 3_000_000),
            })
            .to_vec();
        let run = update(config);
        assert_eq!(run.verdict, scenario::story::Verdict::Completed, "{:#?}", failures(&run));
        let events = run.events();
        let overflows: u64 =
            events.iter().map(|e| if let Event::FaultOverflow { times, .. } = e { *times } else { 0 }).sum();
        assert!(overflows > 1, "{records} records: {overflows} overflows: cleared once, it overflows again");
        for source in strangers {
            let words = format!("0000:{:02x}:{:02x}.{}", source.bus(), source.device(), source.function());
            let named = |e: &Event| matches!(e, Event::Fault { requester, .. } if *requester == words);
            assert!(events.iter().any(named), "{words} faulted and was not named");
        }
    }
}

#[test]
fn a_queue_that_stopped_in_the_gap_is_mended_by_the_next_kernel_which_says_so() {
    for row in &ROWS {
        let mut config = with(6, plain());
        config.faults.queues = vec![QueueFault { when: Strike::Mark(Mark::Jump), kind: row.kind }];
        let run = update(config);
        assert_good(&run, row.words);
        assert_eq!(run.machine.trace().into_iter().filter(row.met).count(), 1, "{}", row.words);
        // A queue that stopped with nothing left to refuse has nothing to be named.
        let expected = usize::from(row.kind != QueueFaultKind::Refused);
        let told = told(&run);
        assert_eq!(told.iter().filter(|words| words.contains(row.words)).count(), expected, "{told:?}");
        assert_eq!(told.len(), expected, "{told:?}");
    }
}

#[test]
fn a_run_with_a_condition_is_no_longer_than_one_without_by_more_than_its_waits() {
    let quiet = play(&RunConfig::new(with(8, plain()), 1));
    let mut config = with(8, plain());
    config.faults.queues = vec![QueueFault { when: Strike::Fetch(11), kind: QueueFaultKind::Refused }];
    let mended = play(&RunConfig::new(config, 1));
    let (quiet, mended) = (quiet.machine.now(), mended.machine.now());
    assert!(mended < quiet + 100_000_000, "{quiet} and {mended}");
}
