//! How this kernel drives the units: the translation mode and the driver's habits, as the command line says.
//!
//! Every kernel of a run is given the same command line, so the incoming kernel keeps the mode of the outgoing one. It
//! refuses to take a unit over that runs in another.

use super::trouble::Trouble;
use crate::platform::Platform;
use iommu::{Config, Mode};
use liveupdate::host::Adoptable;

/// The options `mode=NAME`, `registers-only` and `narrow-queue`.
pub(crate) fn config<P: Platform + ?Sized>(platform: &P) -> Result<Config, Trouble> {
    let mode = match platform.option("mode") {
        Some(name) => Mode::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| Trouble {
            step: "read the option mode",
            why: alloc::format!("there is no mode {name:?}"),
        })?,
        None => Mode::default(),
    };
    Ok(Config {
        mode,
        registers_only: platform.option("registers-only").is_some(),
        narrow_queue: platform.option("narrow-queue").is_some(),
        ..Config::default()
    })
}

/// The option `levels=5`: tables have 5 levels, and devices of 64 bits use addresses that need them. Else the driver chooses.
pub(crate) fn levels<P: Platform + ?Sized>(platform: &P) -> Option<u8> {
    platform.option("levels").and_then(|levels| levels.parse().ok())
}

/// What a kernel that drives its units in `mode` can take over: units in that mode, with tables of either stage that
/// the mode has.
pub(crate) fn adoptable(mode: Mode) -> Adoptable {
    match mode {
        Mode::Legacy => Adoptable::LEGACY,
        Mode::SecondStage | Mode::FirstStage => Adoptable { legacy: false, ..Adoptable::EVERYTHING },
    }
}
