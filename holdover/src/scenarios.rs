//! What can be shown: each scenario is a machine and what happens on it while the kernel is replaced.
//!
//! The story is the same in all of them ([`scenario::story`]); a scenario changes the machine under it, and what its
//! kernels are told. [`Scenario::refusal`] says beforehand where one cannot be played. The list is what
//! `holdover scenarios` prints.

use crate::settings::Settings;
use machine::{MachineConfig, Scope, UnitConfig};
use scenario::story::Mode;
use serde::Serialize;
use spec::SourceId;
use std::fmt::Write;

/// Name and version of the schema of `holdover scenarios --json`.
pub const SCHEMA: &str = "holdover.scenarios/1";

const BASE: u64 = 0xfed9_0000;

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name on command lines.
    pub name: &'static str,
    /// What is special about it, in a line.
    pub about: &'static str,
    /// Who bears witness to what is special; everything that the plain update judges is judged besides.
    pub witness: &'static str,
    /// The translation modes that it can be played in.
    pub modes: &'static [Mode],
    /// What the kernels are told, as keys and values.
    pub(crate) options: &'static [(&'static str, &'static str)],
    qemu: OnQemu,
    change: fn(&mut MachineConfig),
}

/// What QEMU has of a scenario.
#[derive(Debug, Clone, Copy)]
enum OnQemu {
    /// All of it, with these properties of the unit switched on.
    Plays(&'static [&'static str]),
    /// Nothing, and why.
    Lacks(&'static str),
}

const NOTHING: OnQemu = OnQemu::Plays(&[]);
const ONE_UNIT: OnQemu = OnQemu::Lacks("QEMU has one remapping unit");
const LEGACY: &[Mode] = &[Mode::Legacy];
const SCALABLE: &[Mode] = &[Mode::SecondStage, Mode::FirstStage];

/// The plain update.
pub const DEMO: &Scenario = &Scenario {
    name: "demo",
    about: "sound, capture and a transfer go on; a listed and an unlisted requester are cut off",
    witness: "sound, memory, faults, the machine's trace, both audits",
    modes: &Mode::ALL,
    options: &[],
    qemu: NOTHING,
    change: |_| {},
};

/// All of them, in the order in which they are listed.
pub const ALL: &[Scenario] = &[
    *DEMO,
    Scenario {
        name: "units",
        about: "three units: one by name, one with nothing preserved, one for all the rest",
        witness: "translation stays on in the units that carry on; the idle one is off between cut-off and adoption",
        qemu: ONE_UNIT,
        change: |machine| machine.units = units(&machine.units[0]),
        ..*DEMO
    },
    Scenario {
        name: "caching-mode",
        about: "the unit caches what is not present (CAP.CM): a new entry is announced as well",
        witness: "sound and transfers, through entries that were looked up too early",
        qemu: OnQemu::Plays(&["caching-mode"]),
        change: |machine| each_unit(machine, |unit| unit.with_cap(|cap| cap.with_cm(true))),
        ..*DEMO
    },
    Scenario {
        name: "write-buffer",
        about: "stores reach the unit when its write buffer is flushed (CAP.RWBF)",
        witness: "sound and transfers, through entries that were flushed in time",
        qemu: OnQemu::Lacks("QEMU's unit has no write buffer"),
        change: |machine| each_unit(machine, |unit| unit.with_cap(|cap| cap.with_rwbf(true))),
        ..*DEMO
    },
    Scenario {
        name: "coherent",
        about: "walks see the processor's caches, and eight fault records hold what comes (ECAP.C, CAP.NFR)",
        witness: "the same as of the plain update, on a unit that keeps to the manual",
        qemu: OnQemu::Lacks("QEMU's unit has ECAP.C = 0 and one fault record"),
        change: |machine| {
            each_unit(machine, |unit| UnitConfig {
                cap: unit.cap.with_nfr(7),
                ecap: unit.ecap.with_c(true),
                quirks: Default::default(),
                ..unit
            });
        },
        ..*DEMO
    },
    Scenario {
        name: "few-domain-ids",
        about: "the unit has 16 domain ids (CAP.ND)",
        witness: "the same as of the plain update",
        qemu: OnQemu::Lacks("QEMU's unit has 65536 domain ids"),
        change: |machine| each_unit(machine, |unit| unit.with_cap(|cap| cap.with_nd(0))),
        ..*DEMO
    },
    Scenario {
        name: "posted-interrupts",
        about: "the preserved device's interrupts are posted to memory (CAP.PI); the unit records eight faults",
        witness: "the count of interrupts, one of them posted in the gap",
        qemu: OnQemu::Lacks("QEMU's unit posts no interrupts"),
        change: |machine| each_unit(machine, |unit| unit.with_cap(|cap| cap.with_pi(true).with_nfr(7))),
        ..*DEMO
    },
    Scenario {
        name: "registers-only",
        about: "invalidation by registers, as on hardware without a queue (ECAP.QI)",
        witness: "who was cut off, and that hardware forgot it",
        modes: LEGACY,
        options: &[("registers-only", "")],
        change: |machine| each_unit(machine, UnitConfig::without_queue),
        ..*DEMO
    },
    Scenario {
        name: "narrow-queue",
        about: "scalable mode with descriptors of 128 bits, which cannot name a PASID",
        witness: "who was cut off, and that hardware forgot it",
        modes: SCALABLE,
        options: &[("narrow-queue", "")],
        ..*DEMO
    },
];

/// The scenario with this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Why it cannot be played in this mode, or on QEMU, and what can be done about it.
    #[must_use]
    pub fn refusal(&self, mode: Mode, on_qemu: bool) -> Option<String> {
        let name = self.name;
        if !self.modes.contains(&mode) {
            let modes = names(self.modes).join(" or --mode ");
            return Some(format!("scenario {name} has no {mode} mode: run it with --mode {modes}"));
        }
        match self.qemu {
            OnQemu::Lacks(why) if on_qemu => Some(format!(
                "scenario {name} cannot be played on QEMU ({why}): run it with --machine builtin"
            )),
            _ => None,
        }
    }

    /// Properties of QEMU's unit that it switches on.
    pub(crate) fn qemu_unit(&self) -> &'static [&'static str] {
        match self.qemu {
            OnQemu::Plays(properties) => properties,
            OnQemu::Lacks(_) => &[],
        }
    }

    /// The built-in machine that it is played on.
    #[must_use]
    pub fn machine(&self, settings: &Settings) -> MachineConfig {
        let mut machine =
            MachineConfig::qemu_like(settings.seed, settings.memory_bytes, settings.address_width);
        if settings.mode.is_scalable() {
            each_unit(&mut machine, UnitConfig::with_scalable_mode);
        }
        (self.change)(&mut machine);
        machine
    }
}

fn names(modes: &[Mode]) -> Vec<&'static str> {
    modes.iter().map(|mode| mode.name()).collect()
}

fn each_unit(machine: &mut MachineConfig, change: impl Fn(UnitConfig) -> UnitConfig) {
    for unit in &mut machine.units {
        *unit = change(unit.clone());
    }
}

/// One unit for the audio controller by name, one for a function that nobody drives, one for all the rest.
fn units(like: &UnitConfig) -> Vec<UnitConfig> {
    let at = |number: u64| {
        let mut unit = like.clone();
        unit.id.register_base = BASE + 0x1000 * number;
        unit
    };
    // Firmware's disk controller, which no kernel here drives.
    let idle = SourceId::new(0, 31, 2);
    let rest = UnitConfig { scope: Scope::Rest, ..at(0) };
    vec![at(1).for_sources(&[machine::pci::AUDIO]), at(2).for_sources(&[idle]), rest]
}

/// One scenario as `holdover scenarios --json` shows it.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    about: &'static str,
    witness: &'static str,
    machines: &'static [&'static str],
    not_on_qemu: Option<&'static str>,
    modes: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct List {
    schema: &'static str,
    scenarios: Vec<Listed>,
}

/// All scenarios as one JSON object.
///
/// # Errors
/// None: strings always serialize.
pub fn json() -> serde_json::Result<String> {
    let scenarios = ALL.iter().map(|scenario| {
        let not_on_qemu = match scenario.qemu {
            OnQemu::Plays(_) => None,
            OnQemu::Lacks(why) => Some(why),
        };
        let machines: &[_] = if not_on_qemu.is_none() { &["builtin", "qemu"] } else { &["builtin"] };
        let Scenario { name, about, witness, .. } = *scenario;
        Listed { name, about, witness, machines, not_on_qemu, modes: names(scenario.modes) }
    });
    serde_json::to_string_pretty(&List { schema: SCHEMA, scenarios: scenarios.collect() })
}

/// All scenarios, a line each: name, machines, modes that are not all, and what is special.
#[must_use]
pub fn text() -> String {
    let mut out = String::new();
    let width = ALL.iter().map(|scenario| scenario.name.len()).max().unwrap_or_default();
    for scenario in ALL {
        let machine = if matches!(scenario.qemu, OnQemu::Plays(_)) { "builtin qemu" } else { "builtin     " };
        let _ = write!(out, "{:width$}  {machine}  {}", scenario.name, scenario.about);
        if scenario.modes.len() < Mode::ALL.len() {
            let _ = write!(out, " ({} only)", names(scenario.modes).join(", "));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_line_of_its_own_and_a_name_that_finds_it() {
        for scenario in ALL {
            assert_eq!(
                ALL.iter().filter(|other| other.name == scenario.name).count(),
                1,
                "{}",
                scenario.name
            );
            assert_eq!(named(scenario.name).map(|found| found.about), Some(scenario.about));
            assert!(!scenario.about.contains('\n') && !scenario.modes.is_empty(), "{}", scenario.name);
        }
        assert_eq!(text().lines().count(), ALL.len());
        assert_eq!(named("nothing").map(|found| found.name), None);
    }

    #[test]
    fn a_scenario_says_where_it_cannot_be_played_and_what_to_do() {
        assert_eq!(DEMO.refusal(Mode::FirstStage, true), None);
        let units = named("units").unwrap();
        assert!(units.refusal(Mode::Legacy, true).unwrap().contains("--machine builtin"));
        assert_eq!(units.refusal(Mode::Legacy, false), None);
        let narrow = named("narrow-queue").unwrap().refusal(Mode::Legacy, false).unwrap();
        assert!(narrow.contains("--mode second-stage"), "{narrow}");
    }

    #[test]
    fn every_scenario_is_documented() {
        let page = include_str!("../../docs/update.md");
        for scenario in ALL {
            assert!(page.contains(&format!("| `{}` |", scenario.name)), "{}", scenario.name);
        }
    }
}
