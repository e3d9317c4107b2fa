//! `cargo xtask mutants`: the mistakes that the tests are there for, put back one at a time.
//!
//! The tests that bear a lesson's number are built once, with the feature `mutants`. They must pass as they are; with
//! each mistake switched on, a test that bears its lesson's number must fail, or hang. One that passes is a test that
//! cannot fail.

use crate::process::{cargo_command, phase};
use crate::tally::Tally;
use anyhow::{Context, Result, bail, ensure};
use liveupdate::mutant::Mutant;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Switches a mistake on in a build with the feature `mutants`.
const VARIABLE: &str = "HOLDOVER_MUTANT";
/// A test that takes longer than this with a mistake in it hangs; without, all of them take seconds.
const LIMIT: Duration = Duration::from_secs(15);
/// What to put back.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only these mistakes (default: every one)
    #[arg(long = "mutant", value_name = "NAME", value_parser = named)]
    only: Vec<Mutant>,
}

fn named(name: &str) -> Result<Mutant, String> {
    let known = || Mutant::ALL.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
    Mutant::ALL
        .iter()
        .find(|m| m.name() == name)
        .copied()
        .ok_or_else(|| format!("no such mistake; there are {}", known()))
}

/// The command: fails when a mistake goes unnoticed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let tally = phase("mutants", || all(options))?;
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the tests once as they are and once per mistake; each counts as one test.
pub(crate) fn all(options: &Options) -> Result<Tally> {
    let suite = build()?;
    let whole = lessons(&suite, None)?;
    ensure!(whole.passed, "the tests of lessons fail without any mistake in them");
    let mutants = if options.only.is_empty() { Mutant::ALL } else { &options.only };
    let mut tally = Tally { passed: 1, failed: 0, ignored: 0 };
    for mutant in mutants {
        let outcome = lessons(&suite, Some(*mutant))?;
        let noticed = outcome.notices(mutant.lesson());
        let (name, lesson) = (mutant.name(), mutant.lesson());
        println!(
            "lesson {lesson:2}, {name}: {}",
            if noticed { outcome.words(lesson) } else { "NOT NOTICED".into() }
        );
        tally += Tally { passed: noticed.into(), failed: (!noticed).into(), ignored: 0 };
    }
    Ok(tally)
}

/// Builds the tests with the mistakes in them, and says where they lie.
fn build() -> Result<PathBuf> {
    let mut command = cargo_command(&["test", "--package", "holdover-liveupdate", "--test", "update"]);
    command.args(["--features", "mutants", "--no-run", "--message-format", "json"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "the tests do not build with the feature `mutants`");
    let text = String::from_utf8_lossy(&output.stdout);
    executable(&text).context("cargo does not say where the tests lie")
}

/// The executable of the tests in what cargo says.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_tests = |m: &Value| m["target"]["name"] == "update" && m["target"]["kind"][0] == "test";
    let mut found = messages.filter(of_tests).filter_map(|m| m["executable"].as_str().map(PathBuf::from));
    found.next()
}

/// Whether the test of that name bears the lesson's number.
fn bears(name: &str, lesson: u8) -> bool {
    name.contains(&format!("lesson_{lesson:02}_"))
}

/// How the tests of lessons went.
struct Outcome {
    passed: bool,
    hung: bool,
    failed: BTreeSet<String>,
}

impl Outcome {
    /// Whether a test with that number failed, or the whole hung.
    fn notices(&self, lesson: u8) -> bool {
        !self.passed && (self.hung || self.failed.iter().any(|name| bears(name, lesson)))
    }

    fn words(&self, lesson: u8) -> String {
        if self.hung {
            return format!("hangs, stopped after {} s", LIMIT.as_secs());
        }
        let name = |n: &String| n.rsplit("::").next().unwrap_or(n).to_owned();
        let own: Vec<_> = self.failed.iter().filter(|n| bears(n, lesson)).map(name).collect();
        match self.failed.len() - own.len() {
            0 => format!("fails {}", own.join(", ")),
            others => format!("fails {} and {others} of other lessons", own.join(", ")),
        }
    }
}

/// Runs the tests of lessons, with a mistake or without.
fn lessons(suite: &Path, mutant: Option<Mutant>) -> Result<Outcome> {
    let mut command = Command::new(suite);
    command.arg("lesson_").env_remove(VARIABLE).stdin(Stdio::null());
    if let Some(mutant) = mutant {
        command.env(VARIABLE, mutant.name());
    }
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start the tests")?;
    let mut stdout = child.stdout.take().context("the tests have no output")?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text)
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let Ok(text) = reader.join() else { bail!("the tests' output cannot be read") };
    let failed = failures(&String::from_utf8_lossy(&text?));
    Ok(Outcome { passed: status.is_some_and(|s| s.success()), hung: status.is_none(), failed })
}

/// The tests that failed, by what the harness prints.
fn failures(output: &str) -> BTreeSet<String> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(output: &str) -> Outcome {
        let failed = failures(output);
        Outcome { passed: failed.is_empty(), hung: false, failed }
    }

    #[test]
    fn a_mistake_is_noticed_by_a_test_of_its_own_lesson_alone() {
        let output = "running 2 tests\ntest a::lesson_01_x ... FAILED\ntest b::lesson_11_y ... ok\n";
        assert!(outcome(output).notices(1));
        assert!(!outcome(output).notices(11));
        assert!(!outcome("test a::lesson_01_x ... ok").notices(1));
    }

    #[test]
    fn the_executable_of_the_tests_is_found_among_what_cargo_says() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"x\",\"kind\":[\"lib\"]},\"executable\":null}\n\
                        {\"target\":{\"name\":\"update\",\"kind\":[\"test\"]},\"executable\":\"/t/update-1\"}\nnoise";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/update-1")));
        assert_eq!(executable("noise"), None);
    }

    #[test]
    fn every_lesson_has_a_mistake() {
        let lessons: BTreeSet<_> = Mutant::ALL.iter().map(|m| m.lesson()).collect();
        assert_eq!(lessons, (1..=19).collect());
    }
}
