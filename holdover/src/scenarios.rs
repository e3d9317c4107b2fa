//! What can be shown: each scenario is a machine and what happens on it while the kernel is replaced.
//!
//! The story is the same in all of them ([`scenario::story`]); a scenario changes the machine under it, and what its
//! kernels are told. [`Scenario::refusal`] says beforehand where one cannot be played. The list is what
//! `holdover scenarios` prints.

use crate::qemu::Property;
use crate::settings::Settings;
use machine::devices::Habits;
use machine::{Ats, BridgeKind, Extra, MachineConfig, Named, Scope, UnitConfig};
use scenario::story::{Mode, Mutant};
use serde::Serialize;
use spec::{Extent, PhysAddr, Requester, Segment, SourceId, UnitId};
use std::fmt::Write;

/// Name and version of the schema of `holdover scenarios --json`.
pub const SCHEMA: &str = "holdover.scenarios/1";

const BASE: u64 = 0xfed9_0000;

/// Bytes of each region that firmware reserves, at the end of low memory.
const RESERVED_BYTES: u64 = 0x4000;

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
    /// Mistakes that make sense in it, and in no scenario that does not name them.
    pub mutants: &'static [Mutant],
    /// What the kernels are told, as keys and values.
    pub(crate) options: &'static [(&'static str, &'static str)],
    qemu: OnQemu,
    change: fn(&mut MachineConfig),
}

/// What QEMU has of a scenario.
#[derive(Debug, Clone, Copy)]
enum OnQemu {
    /// All of it, with these properties of the unit switched on, and these devices after those of every machine.
    Plays(&'static [Property], &'static [&'static str]),
    /// Nothing, and why.
    Lacks(&'static str),
}

const NOTHING: OnQemu = OnQemu::Plays(&[], &[]);
const ONE_UNIT: OnQemu = OnQemu::Lacks("QEMU has one remapping unit");
const NO_PASIDS: OnQemu = OnQemu::Lacks("no device of QEMU sends PASIDs, and its unit nests no tables");
const STREAMER: Extra = Extra::Streamer { at: SourceId::new(0, 10, 0), registers: 0xfe70_0000 };
const LEGACY: &[Mode] = &[Mode::Legacy];
const SCALABLE: &[Mode] = &[Mode::SecondStage, Mode::FirstStage];

/// The plain update.
pub const DEMO: &Scenario = &Scenario {
    name: "demo",
    about: "sound, capture and a transfer go on; a listed and an unlisted requester are cut off",
    witness: "sound, memory, faults, the machine's trace, both audits",
    modes: &Mode::ALL,
    mutants: &[],
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
        name: "segments",
        about: "two segments with a unit each, and requesters with the same source-ids on both",
        witness: "transfers of both segments' preserved devices; nobody is taken for his namesake",
        options: &[(
            "cast",
            "00:03.0/kept,0001:00:03.0@0xfe700000/kept,00:04.0/cut,0001:00:04.0@0xfe600000/cut,01:03.0/cut",
        )],
        qemu: OnQemu::Lacks("QEMU has one segment"),
        change: |machine| {
            let mut second = machine.units[0].clone();
            second.id = UnitId { segment: Segment(1), register_base: BASE + 0x1000 };
            second.scope = Scope::Rest;
            machine.units.push(second);
            for (device, registers) in [(3, 0xfe70_0000), (4, 0xfe60_0000)] {
                let requester = Requester::new(Segment(1), SourceId::new(0, device, 0));
                machine.more.push(Extra::Fixed { requester, registers, named: None });
            }
        },
        ..*DEMO
    },
    Scenario {
        name: "bridge",
        about: "devices behind bridges of every kind, two levels deep; one appears late, on a bus without a context table",
        witness: "the transfer of a device whose requests carry a bridge's id; blocked attempts under such ids",
        mutants: &[Mutant::ForgottenAlias],
        options: &[("cast", "00:03.0/kept,04:01.0/kept,00:04.0/cut,02:02.0/cut,01:03.0/late")],
        qemu: OnQemu::Plays(
            &[],
            &[
                "i82801b11-bridge,id=old,addr=6",
                "edu,bus=old,addr=2",
                "pcie-root-port,id=express,addr=7,chassis=1,slot=1",
                "pcie-pci-bridge,id=deep,bus=express",
                "edu,bus=deep,addr=1",
            ],
        ),
        change: |machine| {
            let (port, deep) = (SourceId::new(0, 7, 0), SourceId::new(3, 0, 0));
            let bridge =
                |at, secondary, subordinate, kind| Extra::Bridge { at, secondary, subordinate, kind };
            let edu = |at, registers| Extra::Function { at, registers, phantom_bits: 0 };
            machine.more = vec![
                bridge(SourceId::new(0, 6, 0), 2, 2, BridgeKind::Conventional),
                edu(SourceId::new(2, 2, 0), 0xfe70_0000),
                bridge(port, 3, 4, BridgeKind::Port),
                bridge(deep, 4, 4, BridgeKind::ExpressToPci),
                edu(SourceId::new(4, 1, 0), 0xfe60_0000),
            ];
            // One unit for what is behind the inner bridge, found by a path through the outer one.
            let mut inner = machine.units[0].clone().for_sources(&[deep]);
            inner.id.register_base = BASE + 0x1000;
            machine.units[0].scope = Scope::Rest;
            machine.units.insert(0, inner);
        },
        ..*DEMO
    },
    Scenario {
        name: "phantom",
        about: "functions whose requests carry the ids of phantom functions by turns",
        witness: "transfers of which every 256 bytes come under another id",
        mutants: &[Mutant::ForgottenAlias],
        options: &[("cast", "00:08.0/kept,00:03.0/kept,00:09.0/cut,00:04.0/cut")],
        qemu: OnQemu::Lacks("QEMU's devices have no phantom functions"),
        change: |machine| {
            machine.more = [(8, 0xfe70_0000, 2), (9, 0xfe60_0000, 1)]
                .map(|(device, registers, phantom_bits)| Extra::Function {
                    at: SourceId::new(0, device, 0),
                    registers,
                    phantom_bits,
                })
                .to_vec();
        },
        ..*DEMO
    },
    Scenario {
        name: "comings-and-goings",
        about: "between preserve and freeze a device appears on a bus without a context table, and another goes",
        witness: "blocked attempts of both",
        options: &[("cast", "00:03.0/kept,00:04.0/leaving,01:03.0/late")],
        ..*DEMO
    },
    Scenario {
        name: "platform",
        about: "requesters that are no PCI functions: of the ACPI namespace (ANDD), an HPET, an IOAPIC",
        witness: "blocked attempts of all three, though they are on no list of functions",
        options: &[(
            "cast",
            "00:03.0/kept,f0:1e.1@0xfe700000/cut,f0:1f.0@0xfe600000/cut,f0:1f.7@0xfe500000/cut,00:04.0/cut",
        )],
        qemu: OnQemu::Lacks("QEMU translates for PCI functions alone"),
        change: |machine| {
            let fixed = |device, function, registers, named| Extra::Fixed {
                requester: Requester::new(Segment(0), SourceId::new(0xf0, device, function)),
                registers,
                named: Some(named),
            };
            machine.more = vec![
                fixed(0x1e, 1, 0xfe70_0000, Named::Namespace),
                fixed(0x1f, 0, 0xfe60_0000, Named::Hpet),
                fixed(0x1f, 7, 0xfe50_0000, Named::Ioapic),
            ];
        },
        ..*DEMO
    },
    Scenario {
        name: "reserved",
        about: "two requesters have reserved memory (RMRR): a preserved one keeps it, the other one is reduced to it",
        witness: "requests for reserved memory that never end; blocked attempts at all else",
        qemu: OnQemu::Lacks("QEMU's firmware declares no reserved memory"),
        change: |machine| {
            for (number, source) in [(1, machine::pci::EDU_A), (2, machine::pci::EDU_B)] {
                let start = machine.low_end() - number * RESERVED_BYTES;
                machine
                    .reserved
                    .extend(Extent::from_bytes(PhysAddr::new(start), RESERVED_BYTES).map(|at| (source, at)));
                let addresses = vec![start, start + RESERVED_BYTES - 8];
                machine.chatter.push(Habits { source, addresses, pause: (100_000, 900_000) });
            }
        },
        ..*DEMO
    },
    Scenario {
        name: "one-fault-record",
        about: "those who are cut off fault all at once, on a unit with one fault record (CAP.NFR)",
        witness: "the unit says that it lost records, and its kernel says so",
        options: &[
            ("crowd", ""),
            ("cast", "00:03.0/kept,00:04.0/cut,00:08.0/cut,00:09.0/cut,00:0a.0/cut,01:03.0/cut"),
        ],
        qemu: OnQemu::Plays(&[], &["edu,addr=8", "edu,addr=9", "edu,addr=0xa"]),
        change: |machine| {
            machine.more = [(8, 0xfe70_0000), (9, 0xfe60_0000), (10, 0xfe50_0000)]
                .map(|(device, registers)| Extra::Function {
                    at: SourceId::new(0, device, 0),
                    registers,
                    phantom_bits: 0,
                })
                .to_vec();
        },
        ..*DEMO
    },
    Scenario {
        name: "caching-mode",
        about: "the unit caches what is not present (CAP.CM): a new entry is announced as well",
        witness: "sound and transfers, through entries that were looked up too early",
        qemu: OnQemu::Plays(&[&["caching-mode"]], &[]),
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
        name: "x2apic",
        about: "the processor is in x2APIC mode, and interrupt entries name it by 32 bits (ECAP.EIM)",
        witness: "the count of interrupts, sent to a logical destination before the update and to an id after it",
        options: &[("x2apic", "")],
        qemu: OnQemu::Plays(&[&["eim"]], &[]),
        change: |machine| {
            machine.x2apic_id = Some(0x1_0203);
            each_unit(machine, |unit| UnitConfig { ecap: unit.ecap.with_eim(true), ..unit });
        },
        ..*DEMO
    },
    Scenario {
        name: "page-requests",
        about: "the preserved device keeps translations and asks for pages (ATS, PRI), all the time",
        witness: "every page request answered once, before the update or after it",
        modes: SCALABLE,
        mutants: &[Mutant::DroppedPageRequests],
        qemu: OnQemu::Lacks("QEMU's devices ask for no pages"),
        change: |machine| {
            each_unit(machine, |unit| unit.with_device_tlbs().with_page_requests());
            let function = machine::pci::EDU_A;
            machine.ats.push(Ats { function, queue_depth: 8, answers: None });
            let addresses = (0..8).map(|page| 0x0900_0000 + 0x1000 * page).collect();
            machine.page_requests.push(Habits { source: function, addresses, pause: (10_000, 200_000) });
        },
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
        name: "pasids",
        about: "one requester streams with several PASIDs through both stages, one below the other too; two PASIDs are not preserved",
        witness: "numbers that each PASID writes and reads back without end; blocked attempts of the PASIDs that are cut off",
        modes: SCALABLE,
        mutants: &[Mutant::ForgottenPasid, Mutant::StalePasid],
        options: &[("streams", "own,5:first,4070:second,300:nested,2000:own,9:second/cut,77:all/cut")],
        qemu: NO_PASIDS,
        change: with_streamer,
    },
    Scenario {
        name: "nested",
        about: "two guests' own first-stage tables nested in the host's second stage; a third one's PASID is not preserved",
        witness: "numbers streamed through both stages, and through a page that the host gives each guest after adoption",
        modes: SCALABLE,
        mutants: &[Mutant::GuestRemaps],
        options: &[("streams", "own,300:nested,301:nested,302:nested/cut")],
        qemu: NO_PASIDS,
        change: with_streamer,
    },
    Scenario {
        name: "five-level",
        about: "tables of 5 levels, and addresses beyond what 4 levels reach: second stage, first stage, nested",
        witness: "sound and streams at addresses above 2^54",
        mutants: &[Mutant::FourLevels],
        options: &[("levels", "5"), ("streams", "own,5:first,6:second,300:nested,9:first/cut")],
        qemu: OnQemu::Lacks("QEMU's tables have 3 or 4 levels"),
        change: |machine| {
            with_streamer(machine);
            each_unit(machine, UnitConfig::with_five_levels);
        },
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
    /// Why it cannot be played in this mode, with this mistake, or on QEMU, and what can be done about it.
    #[must_use]
    pub fn refusal(&self, mode: Mode, mutant: Option<Mutant>, on_qemu: bool) -> Option<String> {
        let name = self.name;
        let playing: Vec<_> = ALL.iter().filter(|s| mutant.is_some_and(|m| s.mutants.contains(&m))).collect();
        if let Some(mutant) = mutant.filter(|m| !playing.is_empty() && !self.mutants.contains(m)) {
            let scenarios = playing.iter().map(|s| s.name).collect::<Vec<_>>().join(" or --scenario ");
            let mutant = mutant.name();
            return Some(format!(
                "scenario {name} has no mistake {mutant}: run it with --scenario {scenarios}"
            ));
        }
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
    pub(crate) fn qemu_unit(&self) -> &'static [Property] {
        match self.qemu {
            OnQemu::Plays(properties, _) => properties,
            OnQemu::Lacks(_) => &[],
        }
    }

    /// Devices of QEMU beside those of every machine.
    pub(crate) fn qemu_devices(&self) -> &'static [&'static str] {
        match self.qemu {
            OnQemu::Plays(_, devices) => devices,
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

/// A device that streams with PASIDs, and units that can record the faults of several at once.
fn with_streamer(machine: &mut MachineConfig) {
    machine.more = vec![STREAMER];
    each_unit(machine, |unit| unit.with_fault_records(8));
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
            OnQemu::Plays(..) => None,
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
        let machine =
            if matches!(scenario.qemu, OnQemu::Plays(..)) { "builtin qemu" } else { "builtin     " };
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
        assert_eq!(DEMO.refusal(Mode::FirstStage, None, true), None);
        let units = named("units").unwrap();
        assert!(units.refusal(Mode::Legacy, None, true).unwrap().contains("--machine builtin"));
        assert_eq!(units.refusal(Mode::Legacy, None, false), None);
        let narrow = named("narrow-queue").unwrap().refusal(Mode::Legacy, None, false).unwrap();
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
