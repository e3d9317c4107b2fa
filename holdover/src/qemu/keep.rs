//! What `--keep` leaves in its directory: the serial log, events, QEMU's trace and messages, and images taken at the
//! moment when a handover has been sealed.
//!
//! The machine stands still while an image is taken, and its clock with it.

use super::arguments::Files;
use super::qmp::Qmp;
use crate::record::Serial;
use anyhow::Context;
use scenario::event::Event;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a unit's register set that are kept.
const REGISTER_BYTES: u64 = 0x230;
/// Bytes of the device tree of a handover.
const FDT_BYTES: u64 = 4096;
/// How long QEMU may take to open its control socket: it finds its memory first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Watches a run for handovers.
pub(super) struct Keeper {
    directory: PathBuf,
    qmp: Qmp,
    units: Vec<u64>,
    handovers: u32,
}

impl Keeper {
    /// Connects to the QEMU that was just started; none when it ends before it listens.
    pub(super) fn new(
        directory: &Path,
        socket: &Path,
        running: &mut dyn FnMut() -> bool,
    ) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let directory = directory.canonicalize()?;
        let start = Instant::now();
        loop {
            match Qmp::connect(socket) {
                Ok(qmp) => return Ok(Some(Self { directory, qmp, units: Vec::new(), handovers: 0 })),
                Err(_) if !running() => return Ok(None),
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Takes images when the event says that a handover has been sealed.
    pub(super) fn look(&mut self, event: &Event) -> anyhow::Result<()> {
        match event {
            Event::Unit { unit, .. } => {
                let base = unit.split_once("@0x").and_then(|(_, base)| u64::from_str_radix(base, 16).ok());
                self.units.extend(base.filter(|b| !self.units.contains(b)));
                Ok(())
            }
            Event::Handover { fdt, blob_start, blob_bytes, .. } => {
                self.handovers += 1;
                self.qmp.command("stop", json!({}))?;
                let taken = self.images(*fdt, *blob_start, *blob_bytes);
                self.qmp.command("cont", json!({}))?;
                taken.context("cannot take images of the handover")
            }
            _ => Ok(()),
        }
    }

    fn images(&mut self, fdt: u64, blob_start: u64, blob_bytes: u64) -> anyhow::Result<()> {
        let number = self.handovers;
        for (name, start, bytes) in [("fdt", fdt, FDT_BYTES), ("handover", blob_start, blob_bytes)] {
            let file = self.directory.join(format!("{name}-{number}.bin"));
            self.qmp.command("pmemsave", json!({"val": start, "size": bytes, "filename": file}))?;
        }
        for base in self.units.clone() {
            let file = self.directory.join(format!("registers-{number}-{base:x}.bin"));
            let words = self.qmp.human(&format!("xp /{}wx {base:#x}", REGISTER_BYTES / 4))?;
            fs::write(file, words_of_monitor(&words))?;
        }
        let file = self.directory.join(format!("memory-{number}.elf"));
        let protocol = format!("file:{}", file.display());
        self.qmp.command("dump-guest-memory", json!({"paging": false, "protocol": protocol}))?;
        Ok(())
    }

    /// Puts everything else beside the images.
    pub(super) fn collect(self, serial: &Serial, messages: &str, files: &Files) -> anyhow::Result<()> {
        let into = |name: &str| self.directory.join(name);
        serial.keep(&self.directory)?;
        fs::write(into("qemu.log"), messages)?;
        for (from, name) in [(&files.trace, "trace.log"), (&files.sound, "witness.wav")] {
            if from.exists() {
                fs::copy(from, into(name)).with_context(|| format!("cannot keep {name}"))?;
            }
        }
        Ok(())
    }
}

/// The bytes behind lines like `00000000fed90000: 0x00000010 0x00000000`.
fn words_of_monitor(text: &str) -> Vec<u8> {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .flat_map(|(_, words)| words.split_ascii_whitespace())
        .filter_map(|word| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .flat_map(u32::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::words_of_monitor;

    #[test]
    fn words_of_the_monitor_become_bytes() {
        let text = "00000000fed90000: 0x00000010 0x01000000\r\n00000000fed90008: 0x04030201\r\n";
        assert_eq!(words_of_monitor(text), [0x10, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]);
    }
}
