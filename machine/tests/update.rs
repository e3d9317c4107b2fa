//! The whole story on the built-in machine: on many kinds of hardware, with many seeds, with mistakes put in.

mod common;

use common::{assert_good, blocked, broken_rules, failures, machine, play, traced, update};
use holdover_machine::devices::Habits;
use holdover_machine::{
    Boot, Capture, Kernel, Machine, MachineConfig, RunConfig, Scope, TraceLine, UnitConfig, pci, run,
};
use scenario::event::Event;
use scenario::platform::{Adoptable, Mark};
use scenario::story::{self, End, Mutant, Verdict};
use spec::fault::Reason;
use spec::{Extent, PhysAddr, SourceId};

const BASE: u64 = 0xfed9_0000;

#[test]
fn an_update_completes_on_every_kind_of_unit() {
    let plain = || UnitConfig::plain(BASE, 48);
    let units = [
        ("39 bits", UnitConfig::qemu_like(39)),
        ("coherent", plain()),
        ("without a queue", plain().without_queue()),
        ("without a queue, not coherent", plain().without_queue().with_ecap(|e| e.with_c(false))),
        ("caching mode", plain().with_cap(|c| c.with_cm(true))),
        ("write buffer", plain().with_cap(|c| c.with_rwbf(true))),
        ("one fault record", plain().with_fault_records(1)),
        ("small pages only", plain().with_cap(|c| c.with_sslps(0))),
        ("no page-selective invalidation", plain().with_cap(|c| c.with_psi(false))),
        ("16 domain ids", plain().with_cap(|c| c.with_nd(0))),
    ];
    for (what, unit) in units {
        let mut config = machine(7);
        config.host_width = unit.cap.mgaw() as u8 + 1;
        config.units = vec![unit];
        assert_good(&update(config), what);
    }
}

#[test]
fn an_update_completes_in_scalable_mode_with_either_stage() {
    for mode in ["second-stage", "first-stage"] {
        for seed in 0..3 {
            let mut config = machine(seed);
            config.units = config.units.into_iter().map(UnitConfig::with_scalable_mode).collect();
            let run = play(&RunConfig::new(config, 2).with_option("mode", mode));
            assert_good(&run, &format!("{mode}, seed {seed}"));
            assert_eq!(run.handovers.len(), 2);
        }
    }
}

/// The first unit for `sources`, the second, without a queue, for the rest.
fn two_units(sources: &[SourceId]) -> MachineConfig {
    let mut rest = UnitConfig::plain(BASE, 48).without_queue();
    rest.scope = Scope::Rest;
    let mut config = machine(3);
    config.units = vec![UnitConfig::plain(BASE + 0x1000, 48).for_sources(sources), rest];
    config
}

#[test]
fn an_update_completes_with_two_units_that_share_the_devices() {
    assert_good(&update(two_units(&[pci::AUDIO])), "audio alone");
    assert_good(&update(two_units(&[pci::EDU_A, pci::BRIDGE])), "one of each");
}

#[test]
fn a_unit_with_nothing_preserved_is_switched_off_and_the_other_one_is_not() {
    let run = update(two_units(&[pci::EDU_B, pci::BRIDGE]));
    assert_eq!(run.verdict, Verdict::Completed, "{:#?}", failures(&run));
    assert_eq!(broken_rules(&run), []);
    let mut within = None;
    let mut off = Vec::new();
    for line in run.machine.trace() {
        match line {
            TraceLine::Mark { mark, .. } => within = Some(mark),
            TraceLine::TranslationEnabled { unit, on: false, .. } => {
                assert_eq!(within, Some(Mark::CutOffBegin));
                off.push(unit.register_base);
            }
            _ => {}
        }
    }
    assert_eq!(off, [BASE + 0x1000]);
}

#[test]
fn an_update_completes_for_every_seed_and_with_memory_above_4_gib() {
    for seed in 0..12 {
        assert_good(&update(machine(seed)), &format!("seed {seed}"));
    }
    assert_good(&update(MachineConfig::qemu_like(1, 6 << 30, 48)), "6 GiB");
    assert_good(&update(MachineConfig::qemu_like(1, 256 << 20, 39)), "256 MiB");
}

#[test]
fn two_updates_in_a_row_complete() {
    for seed in 0..4 {
        let run = play(&RunConfig::new(machine(seed), 2));
        assert_good(&run, &format!("seed {seed}"));
        assert_eq!(run.handovers.len(), 2);
        let boots = run.events().iter().filter(|e| matches!(e, Event::Boot { .. })).count();
        assert_eq!(boots, 3);
    }
}

#[test]
fn a_seed_fixes_everything_and_another_seed_changes_it() {
    let outcome = |seed| {
        let run = update(machine(seed));
        (run.machine.trace(), run.machine.serial(), run.machine.played(), run.machine.now())
    };
    let (first, second, other) = (outcome(5), outcome(5), outcome(6));
    assert!(first == second);
    assert_ne!(first.0, other.0);
    assert_ne!(first.3, other.3);
}

#[test]
fn a_capture_that_counts_its_frames_is_taken_as_well() {
    let mut config = machine(2);
    config.capture = Capture::Counter;
    assert_good(&update(config), "counter");
}

#[test]
fn whoever_is_attached_nowhere_reaches_nothing_and_meets_no_rubbish() {
    let strangers =
        [SourceId::new(0, 31, 2), SourceId::new(0, 2, 1), SourceId::new(1, 0, 7), SourceId::new(9, 1, 0)];
    for seed in 0..3 {
        let mut config = machine(seed);
        // The domains' own addresses, and some that are no one's.
        let addresses = vec![0x0900_3000, 3 << 30, 0x1_4000_5000, 0, 0x7fff_f000];
        config.chatter = strangers
            .map(|source| Habits { source, addresses: addresses.clone(), pause: (20_000, 2_000_000) })
            .to_vec();
        let run = update(config);
        for line in run.machine.trace() {
            match line {
                TraceLine::Translated { source, .. } => assert!(!strangers.contains(&source), "{line:?}"),
                TraceLine::Faulted { reason, .. } => {
                    let absent = [Reason::ROOT_NOT_PRESENT, Reason::CONTEXT_NOT_PRESENT];
                    assert!(absent.contains(&reason), "{line:?}");
                }
                TraceLine::Mark { mark: Mark::Over, .. } => break,
                _ => {}
            }
        }
    }
}

#[test]
fn an_allocation_that_fails_lets_nobody_through() {
    let mut verdicts = Vec::new();
    for number in 0..16 {
        let mut config = machine(4);
        config.faults.fail_allocation = Some(number);
        let run = update(config);
        blocked(&run, &format!("allocation {number}"));
        assert_eq!(broken_rules(&run), [], "allocation {number}");
        assert_eq!(run.verdict == Verdict::Completed, failures(&run).is_empty(), "allocation {number}");
        verdicts.push(run.verdict);
    }
    assert!(verdicts.contains(&Verdict::Refused) && verdicts.contains(&Verdict::Failed));
}

#[test]
fn mistakes_show_from_outside() {
    let run_with = |mutant: Mutant| play(&RunConfig::new(machine(9), 1).with_option("mutant", mutant.name()));

    let off = run_with(Mutant::TranslationOff);
    assert!(traced(&off, |l| matches!(l, TraceLine::TranslationEnabled { on: false, .. })));
    assert!(traced(&off, |l| matches!(l, TraceLine::Untranslated { source: pci::AUDIO, .. })));

    for mutant in [Mutant::NoCutOff, Mutant::MissingInvalidation] {
        let run = run_with(mutant);
        let trace = run.machine.trace();
        let cut =
            trace.iter().position(|l| matches!(l, TraceLine::Mark { mark: Mark::CutOffDone, .. })).unwrap();
        let reached = |l: &TraceLine| {
            matches!(l, TraceLine::Translated { source: pci::EDU_B | pci::BEHIND_BRIDGE, write: true, .. })
        };
        assert!(trace[cut..].iter().any(reached), "{mutant:?} goes unnoticed");
        let told = |e: &Event| matches!(e, Event::Target { intact: false, .. } | Event::Failed { .. });
        assert!(run.events().iter().any(told), "{mutant:?} is not told of");
    }

    let poisoned = run_with(Mutant::PoisonedPage);
    let noticed = |e: &Event| matches!(e, Event::Content { intact: false, .. } | Event::Failed { .. });
    assert!(poisoned.events().iter().any(noticed));

    let stray = run_with(Mutant::StrayLeaf);
    assert_eq!(stray.verdict, Verdict::Refused);
}

#[test]
fn a_successor_is_held_to_what_its_image_says_before_anything_is_changed() {
    let [version, every] = Adoptable::EVERYTHING.to_words();
    let legacy = Adoptable::LEGACY.to_words();
    let run_with = |adopts| {
        let units = vec![UnitConfig::plain(BASE, 48).with_scalable_mode()];
        let config = MachineConfig { units, ..machine(9) };
        let mut config = RunConfig::new(config, 1).with_option("mode", "second-stage");
        config.releases[1].adopts = adopts;
        play(&config)
    };
    for (adopts, step, why) in [
        (None, "load the successor", "does not say what it can adopt"),
        (Some([version + 1, every]), "load the successor", "is written in version"),
        (Some([version, every & !2]), "load the successor", "but not scalable mode"),
        (Some(legacy), "freeze", "cannot adopt unit"),
    ] {
        let run = run_with(adopts);
        assert_eq!(run.verdict, Verdict::Refused, "{why}");
        assert_eq!(run.handovers, [], "{why}");
        let events = run.events();
        let told =
            |e: &&Event| matches!(e, Event::Refused { step: s, why: w } if s == step && w.contains(why));
        assert_eq!(events.iter().filter(told).count(), 1, "{why}");
        let preserved = events.iter().any(|e| matches!(e, Event::Preserved { .. }));
        assert_eq!(preserved, step == "freeze", "{why}");
        assert_eq!(failures(&run).len(), 1, "{why}");
        let blocked = traced(&run, |l| matches!(l, TraceLine::Faulted { .. }));
        assert!(!blocked, "{why}: nobody is cut off");
    }
}

#[test]
fn a_kernel_that_was_jumped_into_against_its_word_fails_closed() {
    let config =
        MachineConfig { units: vec![UnitConfig::plain(BASE, 48).with_scalable_mode()], ..machine(9) };
    let machine = Machine::new(&config);
    let areas = holdover_machine::run::areas(config.memory);
    let every = Some(Adoptable::EVERYTHING.to_words());
    let boot = |own: usize, adopts, successor_adopts| Boot {
        release: ["a", "b"][own].into(),
        adopts,
        home: areas[own],
        successor_home: (own == 0).then_some(areas[1]),
        successor_adopts,
        areas: areas.to_vec(),
        options: vec![("mode".into(), "second-stage".into())],
    };
    // What arrives is another kernel than the one whose image was read.
    let End::Jump { fdt } = story::run(&Kernel::new(&machine, boot(0, every, every)), None, 0) else {
        panic!("there was no jump")
    };
    let arrived = Kernel::new(&machine, boot(1, Some(Adoptable::LEGACY.to_words()), None));
    assert_eq!(story::run(&arrived, Some(fdt), 1), End::Over(Verdict::Failed));
    assert!(!machine.trace().iter().any(|l| matches!(l, TraceLine::TranslationEnabled { on: false, .. })));
    assert_eq!(machine.request(pci::EDU_A, 0x0900_0000, true), None, "nobody reaches anything");
}

/// Firmware's reserved memory in these tests: the last 16 KiB of a machine of 512 MiB.
fn reserved_memory() -> Extent {
    Extent::from_bytes(PhysAddr::new((512 << 20) - 0x4000), 0x4000).expect("whole pages")
}

#[test]
fn a_requester_that_is_not_preserved_keeps_exactly_its_reserved_memory() {
    let memory = reserved_memory();
    let (first, last) = (memory.start().get(), memory.end().start().get() - 8);
    let reserved = vec![(pci::EDU_B, memory)];
    let reaches = |machine: &Machine, iova| machine.request(pci::EDU_B, iova, true);
    let mut at_jump = Vec::new();
    let config = RunConfig::new(MachineConfig { reserved, ..machine(5) }, 1);
    let run = run(&config, &mut |machine, _| {
        at_jump = [first, last, first - 8, last + 8, 0x0900_3000].map(|iova| reaches(machine, iova)).into();
    });
    assert_eq!(run.verdict, Verdict::Completed, "{:#?}", failures(&run));
    assert_eq!(at_jump, [Some(first), Some(last), None, None, None], "at the jump");
    assert_eq!(reaches(&run.machine, first), Some(first), "under the incoming kernel");
    assert_eq!(reaches(&run.machine, first - 8), None, "under the incoming kernel");
    let intact = |e: &Event| matches!(e, Event::Target { intact: true, .. });
    assert_eq!(run.events().iter().filter(|e| intact(e)).count(), 2);
}

#[test]
fn a_requester_with_reserved_memory_of_its_own_is_reduced_again_in_the_next_update() {
    let config = MachineConfig { reserved: vec![(pci::EDU_B, reserved_memory())], ..machine(6) };
    let run = play(&RunConfig::new(config, 2));
    assert_eq!(run.verdict, Verdict::Completed, "{:#?}", failures(&run));
    let first = reserved_memory().start().get();
    assert_eq!(run.machine.request(pci::EDU_B, first, true), Some(first));
}
