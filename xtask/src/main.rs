//! What people type: `cargo xtask demo`, `test`, `check`, `fuzz`, `bench`, `qemu`
//! and `guest`.
//!
//! Every command is a module of the same name; this file only reads the command line and turns an error into
//! an exit status. Results go to stdout, progress and errors to stderr. Nothing is written outside the
//! checkout's `target/` and cargo's own target directories.

mod apt;
mod bench;
mod check;
mod demo;
mod fuzz;
mod guest;
mod mutants;
mod prefix;
mod process;
mod qemu;
mod sources;
mod style;
mod tally;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Demo, tests, checks, and the QEMU they run on")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a live update: get QEMU if there is none, build everything, run it, leave a report and a WAV
    Demo {
        /// Passed on to `holdover update`, e.g. --memory 6G --address-width 48 --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run all tests, on the built-in machine and on QEMU; ends with `N passed, N failed`
    Test(test::Options),
    /// Put the mistakes back that others paid for, one at a time: a test must notice each
    Mutants(mutants::Options),
    /// Formatting, lints, documentation, the core crates alone, house style
    Check,
    /// Give foreign bytes to everything that reads them, for as long as you like
    Fuzz(fuzz::Options),
    /// Find QEMU or fetch it into target/qemu; prints its path
    Qemu {
        /// Fetch exactly this release, also where another one is installed
        #[arg(long = "version", value_name = "VERSION")]
        release: Option<qemu::Release>,
    },
    /// Measure what takes minutes
    Bench {
        /// What
        #[arg(value_enum)]
        what: bench::Bench,
    },
    /// Fetch the Linux that tests boot into target/guest; prints its path
    Guest,
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Demo { args } => demo::run(&args),
        Command::Test(options) => test::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Check => check::run(),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Qemu { release } => qemu::run(release),
        Command::Bench { what } => bench::run(what),
        Command::Guest => guest::run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
