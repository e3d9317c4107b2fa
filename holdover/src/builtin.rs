//! Runs the update on the built-in machine, in this process: the same story, on a model of the hardware that is written
//! from the specification. Its trace is finer than QEMU's; what both have in common goes into the account.

use crate::record::{Ended, Record, Serial};
use crate::settings::Settings;
use crate::sound;
use crate::trace::{Account, Entry};
use anyhow::Context;
use machine::{Machine, RunConfig, TraceLine};
use scenario::event::Event;
use scenario::platform::Adoptable;
use scenario::story::{Mutant, Verdict};
use spec::{PhysAddr, Requester};
use std::fs;
use std::path::Path;

/// Version of the kernels and of the machine: they are built together.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Bytes of the device tree of a handover.
const FDT_BYTES: usize = 4096;
/// Largest handover that is kept, in bytes.
const BLOB_BYTES_MAX: u64 = 64 << 20;

/// Runs the update.
///
/// # Errors
/// When files cannot be written.
pub fn run(settings: &Settings) -> anyhow::Result<Record> {
    let mut kept = Ok(());
    let mut handovers = 0;
    let run = machine::run(&config(settings), &mut |machine, fdt| {
        handovers += 1;
        if let Some(directory) = &settings.keep {
            let images = keep_images(directory, handovers, machine, fdt);
            kept = std::mem::replace(&mut kept, Ok(())).and(images);
        }
    });
    kept.context("cannot keep images of the handover")?;
    let trace = run.machine.trace();
    let record = Record {
        machine: "builtin".to_owned(),
        machine_version: VERSION.to_owned(),
        serial: serial(&run.machine),
        ended: if run.verdict == Verdict::Completed { Ended::Well } else { Ended::Badly },
        sound: Ok(run.sound()),
        account: Ok(account(&trace)),
    };
    if let Some(directory) = &settings.keep {
        keep(directory, &record, &trace).context("cannot keep the run's records")?;
    }
    Ok(record)
}

fn config(settings: &Settings) -> RunConfig {
    let mut config = RunConfig::new(settings.scenario.machine(settings), settings.updates);
    for release in &mut config.releases {
        release.name = format!("{VERSION}-{}", release.name);
    }
    if settings.mutant == Some(Mutant::LegacySuccessor) {
        let successor = &mut config.releases[1];
        successor.name += "-legacy";
        successor.adopts = Some(Adoptable::LEGACY.to_words());
    }
    settings.kernel_options().into_iter().fold(config, |config, (key, value)| config.with_option(key, value))
}

fn serial(machine: &Machine) -> Serial {
    let mut serial = Serial::default();
    for line in machine.serial() {
        match line.content {
            machine::Serial::Event(event) => serial.events.push(event),
            machine::Serial::Log(words) => {
                serial.line(&format!(
                    "[{:>5}.{:06}] {words}",
                    line.at / 1_000_000_000,
                    line.at / 1000 % 1_000_000
                ));
            }
        }
    }
    serial
}

fn account(trace: &[TraceLine]) -> Account {
    let mut account = Account::default();
    trace.iter().filter_map(entry).for_each(|entry| account.note(entry));
    account
}

/// What a line of the machine's trace means. None for lines that no judgement needs.
fn entry(line: &TraceLine) -> Option<Entry> {
    Some(match *line {
        TraceLine::Translated { unit, source, pasid, iova, output, .. } => {
            Entry::Translated { unit, who: Requester::new(unit.segment, source), pasid, iova, to: output }
        }
        TraceLine::Faulted { unit, source, pasid, iova, reason, write, .. } => {
            Entry::Blocked { who: Requester::new(unit.segment, source), pasid, iova, write, reason: reason.0 }
        }
        TraceLine::Untranslated { segment, source, address, .. } => {
            Entry::Untranslated { who: Requester::new(segment, source), address }
        }
        TraceLine::TranslationEnabled { unit, on, .. } => Entry::Enable { unit, on },
        TraceLine::PageAsked { .. } => Entry::PageAsked,
        TraceLine::PageAnswered { success, open, .. } => Entry::PageAnswered { success, open },
        TraceLine::RootSet { table, .. } => Entry::Root(table),
        TraceLine::Misuse { rule, .. } | TraceLine::DeviceMisuse { what: rule, .. } => Entry::Misuse(rule),
        TraceLine::Mark { mark, .. } => Entry::Mark(mark),
        _ => return None,
    })
}

fn keep_images(directory: &Path, number: u32, machine: &Machine, fdt: PhysAddr) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let image = |start: u64, bytes: usize| {
        let mut image = vec![0; bytes];
        machine
            .peek(start, &mut image)
            .map(|()| image)
            .map_err(|_| anyhow::anyhow!("no memory at {start:#x}"))
    };
    fs::write(directory.join(format!("fdt-{number}.bin")), image(fdt.get(), FDT_BYTES)?)?;
    let blob = machine.serial().into_iter().rev().find_map(|line| match line.content {
        machine::Serial::Event(Event::Handover { blob_start, blob_bytes, .. }) => {
            Some((blob_start, blob_bytes))
        }
        _ => None,
    });
    if let Some((start, bytes)) = blob.filter(|(_, bytes)| *bytes <= BLOB_BYTES_MAX) {
        fs::write(directory.join(format!("handover-{number}.bin")), image(start, bytes as usize)?)?;
    }
    Ok(())
}

fn keep(directory: &Path, record: &Record, trace: &[TraceLine]) -> anyhow::Result<()> {
    record.serial.keep(directory)?;
    if let Ok(recording) = &record.sound {
        sound::write(&directory.join("witness.wav"), recording)?;
    }
    let lines: String = trace.iter().map(|line| format!("{line:?}\n")).collect();
    fs::write(directory.join("trace.log"), lines)?;
    Ok(())
}
