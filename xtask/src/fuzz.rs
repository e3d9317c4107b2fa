//! `cargo xtask fuzz`: foreign bytes against everything that reads them, for as long as one likes.
//!
//! Builds the programs of `fuzz/` with the compiler's own coverage counters, which stable Rust has, and lets libFuzzer
//! (which the crate `libfuzzer-sys` brings along; it wants a C++ compiler) run them one after another. Inputs that reach
//! something new are kept in `target/fuzz/found`, inputs that break a promise in `target/fuzz/broken`. With `--minimise`
//! the corpus in the repository becomes the smallest set that reaches what is known to be reachable.

use crate::process::{cargo_command, phase, root, target};
use crate::tally::Tally;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The targets, as `fuzz/src/lib.rs` has them, and the longest input of each in bytes.
const TARGETS: [(&str, u32); 7] = [
    ("page_file", 32 << 10),
    ("elf", 8 << 10),
    ("dmar", 2 << 10),
    ("fdt", 4 << 10),
    ("radix", 1 << 10),
    ("handover", 2 << 10),
    ("walk", 2 << 10),
];
/// Counters at every edge, and where they belong: what libFuzzer asks of a compiler. Overflow shall be noticed.
const FLAGS: &str = "-Cdebug-assertions -Coverflow-checks \
                     -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table";
/// No input may take longer, in seconds.
const SLOWEST: u32 = 20;
/// Memory of a program, in MiB.
const MEMORY: u32 = 1500;
/// Seconds for each target in `cargo xtask test`.
const SHORT: u64 = 5;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The target; all, one after another, unless one is named
    #[arg(value_parser = TARGETS.map(|(name, _)| name))]
    target: Option<String>,
    /// How long, for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Executions for each target, instead of a time
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Afterwards put the smallest set of inputs that reaches as much into fuzz/corpus
    #[arg(long)]
    minimise: bool,
}

/// When a run ends.
#[derive(Clone, Copy)]
enum Until {
    Seconds(u64),
    Runs(u64),
}

/// The command: fails when a promise was broken.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let until = options.runs.map_or(Until::Seconds(options.seconds), Until::Runs);
    let programs = build()?;
    let mut good = true;
    for (name, longest) in TARGETS {
        if options.target.as_deref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let program = programs.join(name);
        match phase(name, || fuzz(&program, name, longest, until)) {
            Ok(executions) => println!("{name}: {executions} executions, nothing found"),
            Err(error) => {
                eprintln!("error: {error:#}");
                good = false;
            }
        }
        if good && options.minimise {
            minimise(&program, name, longest)?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A few seconds for each target: a suite of as many tests.
pub(crate) fn short() -> (String, Tally) {
    let mut tally = Tally::default();
    let outcome = phase("tests: fuzz, a few seconds each", || {
        let programs = build()?;
        for (name, longest) in TARGETS {
            match fuzz(&programs.join(name), name, longest, Until::Seconds(SHORT)) {
                Ok(executions) => {
                    println!("{name}: {executions} executions, nothing found");
                    tally.passed += 1;
                }
                Err(error) => {
                    eprintln!("error: {error:#}");
                    tally.failed += 1;
                }
            }
        }
        Ok(())
    });
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}\n(`cargo xtask test --no-fuzz` leaves these out)");
    }
    ("fuzz, seconds".to_owned(), tally.judged(outcome.is_ok()))
}

/// Builds the programs; says where they are.
fn build() -> Result<PathBuf> {
    phase("building the fuzz targets", || {
        let triple = host()?;
        let directory = target().join("fuzz");
        let mut command = cargo_command(&[
            "build",
            "--release",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--features",
            "engine",
        ]);
        command.args(["--target", &triple]).arg("--target-dir").arg(&directory).env("RUSTFLAGS", FLAGS);
        ensure!(command.status()?.success(), "the fuzz targets do not build; libFuzzer wants a C++ compiler");
        Ok(directory.join(triple).join("release"))
    })
}

/// The triple of this machine. Named, so that build scripts are built without counters.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).context("rustc does not say what machine this is")
}

fn directory(kind: &str, name: &str) -> Result<PathBuf> {
    let path = target().join("fuzz").join(kind).join(name);
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

fn corpus(name: &str) -> PathBuf {
    root().join("fuzz/corpus").join(name)
}

/// Runs a target, and says how many executions that were.
fn fuzz(program: &Path, name: &str, longest: u32, until: Until) -> Result<u64> {
    let (found, broken) = (directory("found", name)?, directory("broken", name)?);
    let mut command = libfuzzer(program, longest);
    command.arg(match until {
        Until::Seconds(seconds) => format!("-max_total_time={seconds}"),
        // Those of the corpus are counted in.
        Until::Runs(runs) => format!("-runs={runs}"),
    });
    command.arg(format!("-artifact_prefix={}/", broken.display())).arg("-print_final_stats=1");
    command.arg(found).arg(corpus(name)).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let (mut executions, mut last) = (None, Vec::new());
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            executions = executions_of(&line).or(executions);
            last.push(line);
            if last.len() > 400 {
                last.drain(..200);
            }
        }
    }
    if !child.wait()?.success() {
        bail!("{name}: a promise was broken; the input is in {}\n{}", broken.display(), last.join("\n"));
    }
    executions
        .with_context(|| format!("{name}: libFuzzer does not say how often it ran\n{}", last.join("\n")))
}

fn libfuzzer(program: &Path, longest: u32) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    let options = [("max_len", longest), ("timeout", SLOWEST), ("rss_limit_mb", MEMORY)];
    command.args(options.map(|(name, value)| format!("-{name}={value}")));
    command
}

/// The line of libFuzzer's closing statistics that counts.
fn executions_of(line: &str) -> Option<u64> {
    line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok()
}

/// Replaces the corpus in the repository by the fewest inputs that reach as much as it and what was found.
fn minimise(program: &Path, name: &str, longest: u32) -> Result<()> {
    phase(&format!("{name}: the smallest corpus"), || {
        let small = directory("minimised", name)?;
        crate::process::remove_tree(&small)?;
        std::fs::create_dir_all(&small)?;
        let mut command = libfuzzer(program, longest);
        command.arg("-merge=1").arg(&small).arg(directory("found", name)?).arg(corpus(name));
        ensure!(command.stderr(Stdio::null()).status()?.success(), "libFuzzer could not merge the inputs");
        let target = corpus(name);
        crate::process::remove_tree(&target)?;
        std::fs::create_dir_all(&target)?;
        for entry in std::fs::read_dir(&small)? {
            let path = entry?.path();
            let file = path.file_name().context("a file has a name")?;
            std::fs::copy(&path, target.join(file))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_read_off_the_closing_statistics_alone() {
        assert_eq!(executions_of("stat::number_of_executed_units: 127272"), Some(127_272));
        assert_eq!(executions_of("#127272\tDONE   cov: 4843 ft: 18143"), None);
        assert_eq!(executions_of("stat::average_exec_per_sec:     7954"), None);
    }

    #[test]
    fn the_targets_are_those_of_the_crate() {
        let text = std::fs::read_to_string(root().join("fuzz/src/lib.rs")).unwrap();
        for (name, longest) in TARGETS {
            let line = format!("name: \"{name}\", longest: {} << 10,", longest >> 10);
            assert!(text.contains(&line), "{line}");
        }
        assert_eq!(text.matches("Target { name: ").count(), TARGETS.len());
    }
}
