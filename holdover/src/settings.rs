//! What a run is asked for, whatever machine it runs on.

use crate::report::Asked;
use crate::scenarios::Scenario;
use scenario::story::{Mode, Mutant};
use std::ffi::OsString;
use std::path::PathBuf;

/// Least memory that the kernels live in, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 256 << 20;
/// Most memory that a run may ask for, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// Everything that a run depends on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which machine, and what is done on it.
    pub scenario: &'static Scenario,
    /// Translation mode of all units.
    pub mode: Mode,
    /// Bytes of memory, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// Bits of an input address: 39 or 48.
    pub address_width: u8,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Whether the incoming kernel poisons memory that it does not own.
    pub poison: bool,
    /// Updates in a row: 1 or 2.
    pub updates: u8,
    /// Whether the machine counts instructions, so that runs repeat bit for bit.
    pub icount: bool,
    /// A mistake to put in.
    pub mutant: Option<Mutant>,
    /// Seconds that the machine may take.
    pub timeout_seconds: u64,
    /// Further arguments for QEMU.
    pub qemu_arguments: Vec<OsString>,
    /// Where the recording goes.
    pub wav: Option<PathBuf>,
    /// Where everything else goes.
    pub keep: Option<PathBuf>,
}

impl Settings {
    /// What of it belongs into the result.
    #[must_use]
    pub fn asked(&self) -> Asked {
        Asked {
            memory_bytes: self.memory_bytes,
            address_width: self.address_width,
            seed: self.seed,
            poison: self.poison,
            updates: self.updates,
            icount: self.icount,
            mutant: self.mutant.map(|m| m.name().to_owned()),
            mode: self.mode.name().to_owned(),
            scenario: self.scenario.name.to_owned(),
        }
    }

    /// What every kernel of the run is told, as keys and values. Each hands it on to its successor.
    #[must_use]
    pub fn kernel_options(&self) -> Vec<(&'static str, &'static str)> {
        let mut options = vec![("mode", self.mode.name())];
        options.extend(self.scenario.options);
        if !self.poison {
            options.push(("no-poison", ""));
        }
        options.extend(self.mutant.map(|mutant| ("mutant", mutant.name())));
        options
    }
}

/// Reads a size: a number with an optional suffix `K`, `M`, `G` or `T`; without one it counts MiB, as QEMU's does.
///
/// # Errors
/// In words, when it is no size, no multiple of 1 MiB, or out of range.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "K" => 10,
        "" | "M" => 20,
        "G" => 30,
        "T" => 40,
        other => return Err(format!("{other:?} is no unit; use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is no number"))?;
    let bytes = number.checked_mul(1 << shift).ok_or("that is more than fits")?;
    if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
        return Err("memory must be 256M to 1T".to_owned());
    }
    if !bytes.is_multiple_of(1 << 20) {
        return Err("memory must be a whole number of MiB".to_owned());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("512", 512 << 20),
            ("6G", 6 << 30),
            ("6gib", 6 << 30),
            ("524288k", 512 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "x",
            "6X",
            "-1G",
            "1M",
            "2T",
            "99999999999999999999",
            "18446744073709551615T",
            "262145K",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
