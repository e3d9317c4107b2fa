//! Runs the kernels on QEMU: finds it, builds its command line, reads its serial line while it runs, and gathers what it
//! leaves behind.
//!
//! QEMU runs as a child that cannot outlive this process, for a bounded time and with a bounded trace. Its serial line is
//! read live; sound and trace are files in a directory of their own, read when it has ended.

mod arguments;
mod child;
mod keep;
mod qmp;

pub(crate) use arguments::Property;
pub use arguments::{Devices, Files, arguments};

use crate::images;
use crate::record::{Ended, Record, Serial};
use crate::settings::Settings;
use crate::{sound, trace};
use anyhow::{Context, bail};
use child::{Child, Line};
use scenario::event::Event;
use scenario::story::{Mode, Mutant};
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What is looked for where no program was named.
const PROGRAM: &str = "qemu-system-x86_64";
/// The oldest release that the kernels were tried on.
const OLDEST: (u32, u32) = (7, 2);
/// Largest trace, in bytes. A storm of faults writes some 40 MB a second.
const TRACE_BYTES_MAX: u64 = 1 << 30;
/// How often limits are looked at while nothing comes over the serial line.
const TICK: Duration = Duration::from_millis(100);
/// How long QEMU may take to end after its serial line has closed, or after it was told to.
const GRACE: Duration = Duration::from_secs(10);

/// A QEMU that can be run.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Version, as it names itself: `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub version: String,
}

/// Finds QEMU: the program that was named, else the one on the search path.
///
/// # Errors
/// When it cannot be run, or is too old.
pub fn find(named: Option<&Path>) -> anyhow::Result<Qemu> {
    let program = named.unwrap_or(Path::new(PROGRAM));
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(version) = text.lines().find_map(|l| l.strip_prefix("QEMU emulator version ")) else {
        bail!(
            "{} does not say which version of QEMU it is: {}{}",
            program.display(),
            text.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    };
    if numbers(version).is_none_or(|n| n < OLDEST) {
        bail!("{} is QEMU {version}; {}.{} or newer is needed", program.display(), OLDEST.0, OLDEST.1);
    }
    Ok(Qemu { program: program.to_owned(), version: version.to_owned() })
}

impl Qemu {
    /// The devices that differ from one QEMU to another, as the settings ask for them and by the names that this one has.
    ///
    /// # Errors
    /// What it lacks, and what to do; or that it cannot be asked.
    pub fn devices(&self, settings: &Settings) -> anyhow::Result<Devices> {
        let unit = self.unit(settings)?;
        let timer = self.properties("hda-output")?.iter().any(|name| name == "use-timer");
        Ok(Devices { unit, codec_without_timer: timer })
    }

    /// Its remapping unit.
    fn unit(&self, settings: &Settings) -> anyhow::Result<String> {
        let mode = settings.mode;
        if mode == Mode::FirstStage && settings.address_width != 48 {
            bail!(
                "first-stage tables on QEMU have addresses of 48 bits: leave --address-width {} out",
                settings.address_width
            );
        }
        let known = self.properties("intel-iommu")?;
        let mut unit = format!("intel-iommu,intremap=on,aw-bits={}", settings.address_width);
        for names in arguments::properties(mode).iter().chain(settings.scenario.qemu_unit()) {
            let Some(name) = names.iter().find(|name| known.iter().any(|known| known == *name)) else {
                bail!(
                    "the remapping unit of QEMU {} has no {}, which --mode {mode} with scenario {} needs: name a newer \
                     QEMU with --qemu (`cargo xtask qemu --version 10.0.2` fetches one), choose another mode, or run with \
                     --machine builtin",
                    self.version,
                    names.join(" or "),
                    settings.scenario.name
                );
            };
            unit.push_str(&format!(",{name}=on"));
        }
        if !settings.scenario.qemu_unit().is_empty() {
            self.try_out(&unit)?;
        }
        Ok(unit)
    }

    /// Starts a machine with this unit and ends it at once: some properties are there, and yet refused.
    fn try_out(&self, unit: &str) -> anyhow::Result<()> {
        let machine =
            ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-S", "-nodefaults", "-no-user-config"];
        let rest = ["-display", "none", "-monitor", "stdio", "-device", unit];
        let mut child = Command::new(&self.program)
            .args(machine)
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if let Some(mut monitor) = child.stdin.take() {
            // A QEMU that has ended already does not listen.
            let _ = monitor.write_all(b"quit\n");
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "QEMU {} has no such remapping unit ({}): name a newer QEMU with --qemu (`cargo xtask qemu --version 10.0.2` \
                 fetches one), or run with --machine builtin",
                self.version,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// The properties that a kind of device has.
    fn properties(&self, device: &str) -> anyhow::Result<Vec<String>> {
        let output = Command::new(&self.program)
            .args(["-machine", "none", "-device", &format!("{device},help")])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let properties: Vec<_> = text
            .lines()
            .filter_map(|line| line.trim_start().split_once("=<"))
            .map(|(name, _)| name.to_owned())
            .collect();
        if properties.is_empty() {
            bail!(
                "{} has no device {device}: {}",
                self.program.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(properties)
    }
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Runs the update and calls `watch` with each event as it arrives. `devices` is what
/// [`Qemu::devices`] gave.
///
/// # Errors
/// When QEMU cannot be started, or a file cannot be written. Whatever goes wrong inside is in the record.
pub fn run(
    qemu: &Qemu,
    settings: &Settings,
    devices: &Devices,
    watch: &mut dyn FnMut(&Event),
) -> anyhow::Result<Record> {
    let directory =
        tempfile::Builder::new().prefix("holdover-").tempdir().context("no temporary directory")?;
    let files = Files::within(directory.path());
    std::fs::write(&files.kernel, images::KERNEL_A).context("cannot write the first kernel")?;
    let legacy = settings.mutant == Some(Mutant::LegacySuccessor);
    std::fs::write(&files.bundle, images::bundle(settings.updates, legacy))
        .context("cannot write the bundle")?;

    let mut run = Run { settings, files: &files, serial: Serial::default(), keeper: None };
    let mut child = Child::start(&qemu.program, &arguments(settings, devices, &files))?;
    if let Some(keep) = &settings.keep {
        run.keeper = keep::Keeper::new(keep, &files.qmp, &mut || child.is_running())?;
    }
    let ended = run.attend(&mut child, watch)?;
    let messages = child.messages();
    drop(child);
    let Run { serial, keeper, .. } = run;

    if let Some(keeper) = keeper {
        keeper.collect(&serial, &messages, &files)?;
    }
    if let Some(wav) = settings.wav.as_ref().filter(|_| files.sound.exists()) {
        std::fs::copy(&files.sound, wav).with_context(|| format!("cannot write {}", wav.display()))?;
    }
    let ended = match ended {
        Ended::Died(words) if !messages.trim().is_empty() => {
            Ended::Died(format!("{words}: {}", messages.trim().lines().last().unwrap_or_default()))
        }
        other => other,
    };
    Ok(Record {
        machine: "qemu".to_owned(),
        machine_version: qemu.version.clone(),
        serial,
        ended,
        sound: sound::read(&files.sound).map_err(|e| format!("{e:#}")),
        account: account(&files.trace),
    })
}

fn account(file: &Path) -> Result<trace::Account, String> {
    let open = File::open(file).map_err(|e| format!("QEMU wrote none: {e}"))?;
    trace::read(BufReader::with_capacity(1 << 20, open)).map_err(|e| format!("it cannot be read: {e}"))
}

/// A run that goes on.
struct Run<'a> {
    settings: &'a Settings,
    files: &'a Files,
    serial: Serial,
    keeper: Option<keep::Keeper>,
}

impl Run<'_> {
    /// Reads lines until QEMU has ended, or must be ended.
    fn attend(&mut self, child: &mut Child, watch: &mut dyn FnMut(&Event)) -> anyhow::Result<Ended> {
        let start = Instant::now();
        let allowed = Duration::from_secs(self.settings.timeout_seconds);
        let stopped = loop {
            match child.line(TICK) {
                Line::Text(line) => {
                    if let Some(event) = self.serial.line(&line) {
                        watch(event);
                        // Without a QEMU there is nothing to take images of; its end is told further down.
                        if let Some(keeper) = &mut self.keeper
                            && let Err(error) = keeper.look(event)
                            && child.is_running()
                        {
                            return Err(error);
                        }
                    }
                }
                Line::Nothing => {}
                Line::End => break None,
            }
            if start.elapsed() > allowed {
                break Some(Ended::TimedOut { after: self.settings.timeout_seconds });
            }
            if std::fs::metadata(&self.files.trace).is_ok_and(|m| m.len() > TRACE_BYTES_MAX) {
                break Some(Ended::TraceFull { limit: TRACE_BYTES_MAX });
            }
        };
        if let Some(ended) = stopped {
            // Asked to quit, QEMU closes its files in order. One that no longer listens is killed by `end`.
            let asked = qmp::Qmp::connect(&self.files.qmp).and_then(|mut q| q.quit());
            drop(asked);
            child.end(GRACE / 5);
            return Ok(ended);
        }
        Ok(match child.end(GRACE) {
            Some(status) => arguments::ended(status),
            None => Ended::Died("QEMU closed its serial line and did not end".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that answers `--version` as given.
    fn pretender(directory: &Path, answer: &str) -> PathBuf {
        let file = directory.join("pretender");
        std::fs::write(&file, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn a_qemu_says_its_version_and_an_old_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let new = pretender(directory.path(), "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)");
        assert_eq!(find(Some(&new)).unwrap().version, "10.0.2 (Debian 1:10.0.2+ds-2)");
        let old = pretender(directory.path(), "QEMU emulator version 7.1.50");
        assert!(find(Some(&old)).unwrap_err().to_string().contains("7.2 or newer"));
    }

    #[test]
    fn properties_of_the_unit_go_by_the_names_that_this_qemu_has() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { mode: Mode::FirstStage, ..crate::samples::settings() };
        for (listed, unit) in [
            ("  x-flts=<bool>\n  x-scalable-mode=<bool>", Some(",x-scalable-mode=on,x-flts=on")),
            ("  fsts=<bool> - on/off\n  scalable-mode=<bool>", Some(",scalable-mode=on,fsts=on")),
            ("  x-scalable-mode=<bool>", None),
        ] {
            let program = pretender(directory.path(), listed);
            let answer = Qemu { program, version: "0".to_owned() }.unit(&settings);
            match (answer, unit) {
                (Ok(answer), Some(unit)) => {
                    assert_eq!(answer, format!("intel-iommu,intremap=on,aw-bits=48{unit}"));
                }
                (Err(error), None) => assert!(error.to_string().contains("no fsts or x-flts"), "{error}"),
                (answer, _) => panic!("{listed}: {answer:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_qemu_or_not_there_is_refused_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let other = pretender(directory.path(), "bochs 2.7");
        assert!(find(Some(&other)).unwrap_err().to_string().contains("pretender"));
        let none = find(Some(&directory.path().join("none"))).unwrap_err();
        assert!(none.to_string().contains("none"));
    }
}
