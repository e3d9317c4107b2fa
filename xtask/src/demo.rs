//! `cargo xtask demo`: a live update shown with one command.
//!
//! Gets QEMU if there is none, builds the `holdover` command, and runs `holdover update` with a report and a
//! WAV in `target/demo/`. Where QEMU can neither be found nor fetched, the built-in machine takes its place,
//! and the first line says so. Options that the user gives win over those chosen here.

use crate::process::{cargo_command, phase, remove_tree, target};
use crate::qemu;
use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The command: ends with the exit status of `holdover update`.
pub(crate) fn run(user: &[String]) -> Result<ExitCode> {
    let directory = target().join("demo");
    remove_tree(&directory)?;
    fs::create_dir_all(&directory)?;
    let machine = if gives(user, "--machine") || gives(user, "--qemu") { Machine::User } else { choose() };
    let args = arguments(user, &machine, &directory);

    phase("building the holdover command", || {
        let status = cargo_command(&["build", "--release", "--package", "holdover"]).status()?;
        if !status.success() {
            bail!("the holdover command does not build");
        }
        Ok(())
    })?;

    eprintln!("==> holdover {}", args.join(" "));
    let mut command = cargo_command(&["run", "--release", "--quiet", "--package", "holdover", "--"]);
    let status = command.args(&args).status()?;
    for file in [report(&directory), wav(&directory)] {
        if file.exists() {
            eprintln!("    wrote {}", file.display());
        }
    }
    // Ended by a signal, it has no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What the update runs on.
enum Machine {
    /// A QEMU that was found or fetched.
    Qemu(PathBuf),
    /// The simulated machine.
    BuiltIn,
    /// Whatever the user's own options say.
    User,
}

fn choose() -> Machine {
    match qemu::any() {
        Ok(program) => Machine::Qemu(program),
        Err(error) => {
            eprintln!("no QEMU: {error:#}");
            eprintln!("==> running on the built-in machine instead");
            Machine::BuiltIn
        }
    }
}

/// The arguments of the `holdover` command: ours where the user gave none, then the user's.
fn arguments(user: &[String], machine: &Machine, directory: &Path) -> Vec<String> {
    let mut args = vec!["update".to_owned()];
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    match machine {
        Machine::Qemu(program) => {
            add("--machine", "qemu".into());
            add("--qemu", program.display().to_string());
        }
        Machine::BuiltIn => add("--machine", "builtin".into()),
        Machine::User => {}
    }
    for (option, file) in [("--report", report(directory)), ("--wav", wav(directory))] {
        if !gives(user, option) {
            add(option, file.display().to_string());
        }
    }
    args.extend_from_slice(user);
    args
}

/// Whether the user gave an option, as `--option value` or `--option=value`.
fn gives(user: &[String], option: &str) -> bool {
    user.iter()
        .any(|arg| arg.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

fn report(directory: &Path) -> PathBuf {
    directory.join("report.html")
}

fn wav(directory: &Path) -> PathBuf {
    directory.join("witness.wav")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_demo_asks_for_a_report_and_a_wav_on_the_qemu_that_was_found() {
        let machine = Machine::Qemu("/opt/qemu".into());
        let args = arguments(&words("--memory 6G"), &machine, Path::new("out"));
        assert_eq!(
            args,
            words(
                "update --machine qemu --qemu /opt/qemu --report out/report.html --wav out/witness.wav \
                 --memory 6G"
            )
        );
    }

    #[test]
    fn without_qemu_the_demo_asks_for_the_built_in_machine() {
        let args = arguments(&[], &Machine::BuiltIn, Path::new("out"));
        assert!(args.join(" ").starts_with("update --machine builtin --report"), "{args:?}");
    }

    #[test]
    fn options_of_the_user_replace_those_of_the_demo() {
        let user = words("--machine=builtin --wav mine.wav");
        let args = arguments(&user, &Machine::User, Path::new("out"));
        assert_eq!(args, words("update --report out/report.html --machine=builtin --wav mine.wav"));
        assert!(!gives(&words("--qemu-arg x"), "--qemu"), "an option is not given by one that starts alike");
    }
}
