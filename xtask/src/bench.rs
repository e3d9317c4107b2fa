//! `cargo xtask bench`: what takes minutes and prints times.

use crate::process::{cargo_command, phase};
use anyhow::{Result, ensure};
use clap::ValueEnum;
use std::process::ExitCode;

/// What is measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Bench {
    /// A domain of 1 TiB in 4 KiB leaves, verified, beside summing the same 2 GiB of tables
    Verify,
}

/// The command: fails when what is measured is wrong, or much slower than it should be.
pub(crate) fn run(bench: Bench) -> Result<ExitCode> {
    let (package, test) = match bench {
        Bench::Verify => ("holdover-machine", "large"),
    };
    phase(&format!("{bench:?}"), || {
        let arguments =
            ["test", "--package", package, "--release", "--test", test, "--", "--ignored", "--nocapture"];
        ensure!(cargo_command(&arguments).status()?.success(), "{bench:?} failed");
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
