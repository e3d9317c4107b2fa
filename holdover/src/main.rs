//! The command line. Exit status: 0 when the update was clean, 1 when something is wrong with it, 2 when it could not be
//! run.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "holdover",
    version,
    about = "Replace a kernel under running devices, and prove that nothing was lost"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a live update on QEMU or on the built-in machine, and show what happened
    Update(holdover::update::Options),
}

fn main() -> ExitCode {
    let Command::Update(options) = Arguments::parse().command;
    match holdover::update::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
