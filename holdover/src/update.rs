//! `holdover update`: runs a live update, judges it, and presents the result.

use crate::judge::{Judgement, judge};
use crate::progress::Progress;
use crate::record::{Ended, Record};
use crate::report::Outcome;
use crate::scenarios::{self, Scenario};
use crate::settings::{self, Settings};
use crate::sound::Tune;
use crate::{builtin, html, qemu, sound, table};
use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use scenario::story::{Mode, Mutant};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

/// Lines of the serial log that are shown when a run failed.
const TAIL_LINES: usize = 30;

/// Options of `holdover update`.
#[derive(Debug, Args)]
pub struct Options {
    /// Where to run: QEMU, the built-in machine, or QEMU if there is one
    #[arg(long, value_enum, default_value_t = Machine::Auto)]
    machine: Machine,
    /// What happens, and on which machine: `holdover scenarios` lists them
    #[arg(long, value_name = "NAME", default_value = "demo", value_parser = all_scenarios(), hide_possible_values = true)]
    scenario: &'static Scenario,
    /// Translation mode of the remapping hardware
    #[arg(long, value_name = "MODE", default_value = "legacy", value_parser = modes())]
    mode: Mode,
    /// Seed of everything that is drawn; the same seed gives the same run on the built-in machine
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The QEMU to run instead of `qemu-system-x86_64` on the search path
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// A further argument for QEMU; may be repeated
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_args: Vec<OsString>,
    /// Memory of the machine, e.g. 512M or 6G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = settings::size)]
    memory: u64,
    /// Bits of an address that devices use
    #[arg(long, value_name = "BITS", default_value = "48", value_parser = ["39", "48"])]
    address_width: String,
    /// Leave memory that is neither scratch nor preserved as it is
    #[arg(long)]
    no_poison: bool,
    /// Updates in a row
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    updates: u8,
    /// Count instructions on QEMU, so that a run repeats bit for bit
    #[arg(long)]
    icount: bool,
    /// Put a mistake in, to see that it is found
    #[arg(long, value_name = "NAME", value_parser = mutants())]
    mutant: Option<Mutant>,
    /// Seconds that the machine may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Write the result as a page
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write what was heard
    #[arg(long, value_name = "FILE")]
    wav: Option<PathBuf>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
    /// Leave logs, trace, handover and memory images in a directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Machine {
    /// QEMU if there is one, else the built-in machine
    Auto,
    /// QEMU
    Qemu,
    /// The built-in machine
    Builtin,
}

/// Names of the mistakes that can be put in.
fn mutants() -> impl TypedValueParser<Value = Mutant> {
    PossibleValuesParser::new(Mutant::ALL.map(Mutant::name))
        .try_map(|name| Mutant::ALL.into_iter().find(|m| m.name() == name).ok_or("no such mistake"))
}

fn modes() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(Mode::ALL.map(Mode::name))
        .try_map(|name| Mode::ALL.into_iter().find(|m| m.name() == name).ok_or("no such mode"))
}

fn all_scenarios() -> impl TypedValueParser<Value = &'static Scenario> {
    PossibleValuesParser::new(scenarios::ALL.iter().map(|scenario| scenario.name))
        .try_map(|name| scenarios::named(&name).ok_or("no such scenario"))
}

/// Runs the command. Gives whether the update was clean.
///
/// # Errors
/// When the run could not take place, or its result could not be written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let settings = options.settings()?;
    let record = record(options, &settings)?;
    let judgement = judge(&settings.asked(), &record, &Tune::of_the_scenario());
    if let Some(file) = &options.report {
        let page = html::page(&judgement, record.sound.as_deref().unwrap_or_default());
        std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    }
    explain(&record, &judgement);
    print(options, &judgement)?;
    Ok(judgement.report.clean())
}

impl Options {
    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings {
            scenario: self.scenario,
            mode: self.mode,
            memory_bytes: self.memory,
            address_width: self.address_width.parse()?,
            seed: self.seed,
            poison: !self.no_poison,
            updates: self.updates,
            icount: self.icount,
            mutant: self.mutant,
            timeout_seconds: self.timeout,
            qemu_arguments: self.qemu_args.clone(),
            wav: self.wav.clone(),
            keep: self.keep.clone(),
        })
    }

    /// The QEMU to run on, or none for the built-in machine.
    fn choose(&self) -> anyhow::Result<Option<qemu::Qemu>> {
        match self.machine {
            Machine::Builtin if self.qemu.is_some() => {
                bail!("--qemu names a QEMU and --machine builtin asks for none")
            }
            Machine::Builtin if self.icount => {
                bail!("--icount is for QEMU; the built-in machine always repeats")
            }
            Machine::Builtin => Ok(None),
            Machine::Qemu => qemu::find(self.qemu.as_deref()).map(Some),
            // Whoever names a QEMU does not want another machine in its place.
            Machine::Auto if self.qemu.is_some() => qemu::find(self.qemu.as_deref()).map(Some),
            Machine::Auto => match qemu::find(None) {
                Ok(found) => Ok(Some(found)),
                Err(error) if self.icount => Err(error),
                Err(error) => {
                    anstream::eprintln!("no QEMU ({error:#}): running on the built-in machine");
                    Ok(None)
                }
            },
        }
    }
}

fn record(options: &Options, settings: &Settings) -> anyhow::Result<Record> {
    let machine = options.choose()?;
    if let Some(why) = settings.scenario.refusal(settings.mode, settings.mutant, machine.is_some()) {
        bail!(why);
    }
    match machine {
        Some(found) => {
            let devices = found.devices(settings)?;
            let mut progress = Progress::begin(&format!("QEMU {}", found.version));
            qemu::run(&found, settings, &devices, &mut |event| progress.note(event))
        }
        None => {
            let record = builtin::run(settings)?;
            if let (Some(file), Ok(recording)) = (&settings.wav, &record.sound) {
                sound::write(file, recording)?;
            }
            Ok(record)
        }
    }
}

/// Says on standard error what a result cannot hold: the end of the log of a run that failed.
fn explain(record: &Record, judgement: &Judgement) {
    if judgement.report.outcome == Outcome::Failed || record.ended != Ended::Well {
        let tail = record.serial.tail(TAIL_LINES);
        if tail.is_empty() {
            anstream::eprintln!("The kernels wrote nothing.");
        } else {
            anstream::eprintln!("The kernels wrote last:\n{tail}\n");
        }
    }
}

fn print(options: &Options, judgement: &Judgement) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    let written = if options.json {
        let text = serde_json::to_string_pretty(&judgement.report)?;
        writeln!(out, "{text}")
    } else {
        write!(out, "{}", table::render(&judgement.report))
    };
    written.and_then(|()| out.flush()).context("cannot write the result")
}
