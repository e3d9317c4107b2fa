//! The commands of this crate by themselves: `cargo run -p holdover-inspect --example look -- inspect IMAGE ...`.

use clap::Parser;
use holdover_inspect::cli::{self, Command};
use std::process::ExitCode;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let line = Line::parse();
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    ExitCode::from(cli::run(&line.command, &mut out, &mut err) as u8)
}
