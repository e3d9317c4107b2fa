//! The command line. Exit status: 0 when the update was clean or what was looked at is whole, 1 when something is wrong
//! with it, 2 when it could not be run or looked at.

use clap::{CommandFactory, Parser, Subcommand};
use std::path::{Path, PathBuf};
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
    /// List what `update --scenario` can show, one line each
    Scenarios {
        /// Print one JSON object instead
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Look(inspect::cli::Command),
    /// Write manual pages, one for each command
    Man {
        /// The directory that they are written to; it is made if need be
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print what a shell needs to complete command lines
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let options = match Arguments::parse().command {
        Command::Update(options) => options,
        Command::Scenarios { json } => return list(json),
        Command::Look(command) => return look(&command),
        Command::Man { out } => return man(&out),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "holdover", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    match holdover::update::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn list(json: bool) -> ExitCode {
    let text = if json {
        holdover::scenarios::json().map(|text| text + "\n")
    } else {
        Ok(holdover::scenarios::text())
    };
    match text {
        Ok(text) => {
            anstream::print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn man(out: &Path) -> ExitCode {
    let written =
        std::fs::create_dir_all(out).and_then(|()| clap_mangen::generate_to(Arguments::command(), out));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("error: {}: {error}", out.display());
            ExitCode::from(2)
        }
    }
}

fn look(command: &inspect::cli::Command) -> ExitCode {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let status = inspect::cli::run(command, &mut out, &mut anstream::stderr());
    // What is left goes out here; whoever closed the pipe has seen enough.
    drop(out);
    ExitCode::from(status as u8)
}
