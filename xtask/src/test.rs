//! `cargo xtask test`: every test there is, and one line that sums them up.
//!
//! Five kinds of suites: the workspace (which includes the built-in machine), the kernel's own library on the host, the
//! tests of lessons with mistakes put back, a few seconds of foreign bytes, and the tests on QEMU (the kernels alone, its
//! VT-d against the simulated one, whole updates), once for each release, with one update on the newest. A suite's output
//! is shown as it comes while its result lines are added up. A suite that cannot run, because QEMU could not be fetched for
//! instance, is a failure; leaving it out is a decision that the user makes on the command line.

use crate::process::{cargo_command, phase, root};
use crate::qemu::Release;
use crate::tally::Tally;
use crate::{fuzz, guest, mutants, prefix, qemu};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// Names the QEMU that the tests in `tests/qemu.rs` of `kernel`, `differential` and `holdover` run, and those in
/// `differential/tests/queue.rs`.
const QEMU_VARIABLE: &str = "HOLDOVER_QEMU";
/// Names the directory with the Linux that `holdover/tests/guest.rs` boots.
const GUEST_VARIABLE: &str = "HOLDOVER_GUEST";
/// Names a directory with reference data (dumps of real tables, layouts) that some tests compare with.
const SHARED_VARIABLE: &str = "HOLDOVER_SHARED";

/// The release that gets a single update where its suites were not asked for, and the test that runs it.
const NEWEST: (Release, &str) = (Release::V11_1_3, "an_update_completes_with_48_bits_and_512_mib");

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The releases of QEMU to test on; on 11.1.3 one update is run in any case
    #[arg(long, value_name = "VERSION", value_delimiter = ',', default_values_t = [Release::V10_0_2, Release::V7_2])]
    qemu_versions: Vec<Release>,
    /// Leave the tests on QEMU out
    #[arg(long, conflicts_with = "qemu_versions")]
    no_qemu: bool,
    /// Leave the seconds of fuzzing out, which need a C++ compiler; the corpus is replayed all the same
    #[arg(long)]
    no_fuzz: bool,
}

/// The command: fails when any test did.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut results = vec![
        suite("workspace", cargo_command(&["test", "--workspace", "--no-fail-fast"])),
        suite("kernel library", cargo_command(&["test", "--manifest-path", "kernel/Cargo.toml", "--lib"])),
    ];
    results.push(mistakes());
    if !options.no_fuzz {
        results.push(fuzz::short());
    }
    if !options.no_qemu {
        results.extend(options.qemu_versions.iter().flat_map(|&release| on_qemu(release)));
        results.extend(options.qemu_versions.first().map(|&release| linux_on_qemu(release)));
        let newest = Some(NEWEST.0).filter(|newest| !options.qemu_versions.contains(newest));
        results.extend(newest.map(newest_qemu));
    }

    if is_ci() && std::env::var_os(SHARED_VARIABLE).is_none() && shared().is_none() {
        eprintln!(
            "error: reference dumps are not beside the checkout (../shared), nor named by {SHARED_VARIABLE}"
        );
        results.push(("reference dumps".to_owned(), Tally::one_failure()));
    }

    println!();
    let mut sum = Tally::default();
    for (name, tally) in &results {
        println!("{name:<26} {tally}");
        sum += *tally;
    }
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A release of QEMU, fetched if need be; otherwise says why there is none.
fn fetched(release: Release) -> Option<PathBuf> {
    let program = prefix::ensure(release).and_then(|program| qemu::version_of(&program).map(|_| program));
    program
        .inspect_err(|error| {
            eprintln!("error: {error:#}\n(`cargo xtask test --no-qemu` leaves the tests on QEMU out)");
        })
        .ok()
}

/// One update on a release, to see that it still runs there.
fn newest_qemu(release: Release) -> (String, Tally) {
    let name = format!("one update, QEMU {release}");
    let Some(program) = fetched(release) else { return (name, Tally::one_failure()) };
    let mut command = cargo_command(&["test", "--package", "holdover", "--release", "--test", "qemu"]);
    command.args(["--", "--exact", NEWEST.1]).env(QEMU_VARIABLE, program);
    suite(&name, command)
}

/// The tests on one release of QEMU.
fn on_qemu(release: Release) -> Vec<(String, Tally)> {
    let name = format!("QEMU {release}");
    let Some(program) = fetched(release) else { return vec![(name, Tally::one_failure())] };
    let kernel =
        ["test", "--manifest-path", "kernel/Cargo.toml", "--release", "--no-fail-fast", "--test", "qemu"];
    let args = ["test", "--package", "holdover", "--release", "--no-fail-fast", "--test", "qemu"];
    let differential =
        "test --package holdover-differential --release --no-fail-fast --test qemu --test queue";
    let differential: Vec<_> = differential.split(' ').collect();
    [
        (format!("kernel, {name}"), cargo_command(&kernel)),
        (format!("differential, {name}"), cargo_command(&differential)),
        (name, cargo_command(&args)),
    ]
    .map(|(name, mut command)| {
        command.env(QEMU_VARIABLE, &program);
        suite(&name, command)
    })
    .into()
}

/// The tests that look at a Linux from inside and outside. One release of QEMU will do: it is Linux that differs.
fn linux_on_qemu(release: Release) -> (String, Tally) {
    let name = format!("Linux, QEMU {release}");
    let both = prefix::ensure(release).and_then(|program| Ok((program, guest::ensure()?)));
    match both {
        Ok((program, guest)) => {
            let args = ["test", "--package", "holdover", "--release", "--no-fail-fast", "--test", "guest"];
            let mut command = cargo_command(&args);
            command.env(QEMU_VARIABLE, program).env(GUEST_VARIABLE, guest);
            suite(&name, command)
        }
        Err(error) => {
            eprintln!("error: {error:#}\n(`cargo xtask test --no-qemu` leaves the tests on QEMU out)");
            (name, Tally::one_failure())
        }
    }
}

/// The tests of lessons, with each mistake put back.
fn mistakes() -> (String, Tally) {
    let tally = phase("tests: mistakes put back", || mutants::all(&mutants::Options::default()));
    let tally = tally.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Tally::one_failure()
    });
    ("mistakes put back".to_owned(), tally)
}

/// Runs one suite and judges it.
fn suite(name: &str, mut command: Command) -> (String, Tally) {
    if let Some(shared) = shared() {
        command.env(SHARED_VARIABLE, shared);
    }
    let mut tally = Tally::default();
    let outcome = phase(&format!("tests: {name}"), || {
        tally = run_and_count(&mut command, &mut std::io::stdout())?;
        ensure!(tally.failed == 0, "{name}: {tally}");
        Ok(())
    });
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
        tally = tally.judged(false);
    }
    (name.to_owned(), tally)
}

/// Runs `cargo test`, passing its output on to `echo` and adding up its result lines.
fn run_and_count(command: &mut Command, echo: &mut impl Write) -> Result<Tally> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            echo.write_all(&line)?;
            if let Some(more) = Tally::of_line(&String::from_utf8_lossy(&line)) {
                tally += more;
            }
            line.clear();
        }
    }
    Ok(tally.judged(child.wait()?.success()))
}

/// Where changes are judged, nothing is left out for want of data.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}

/// Reference data beside the checkout, unless the environment already names some.
fn shared() -> Option<PathBuf> {
    if std::env::var_os(SHARED_VARIABLE).is_some() {
        return None;
    }
    let beside = root().parent()?.join("shared");
    // Any directory may be called so; ours holds dumps.
    beside.join("dumps").is_dir().then_some(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(script: &str) -> Tally {
        run_and_count(Command::new("sh").args(["-c", script]), &mut Vec::new()).unwrap()
    }

    #[test]
    fn result_lines_of_several_binaries_are_added_up_whatever_else_is_printed() {
        let script = "printf 'running\\n\\377\\ntest result: ok. 2 passed; 0 failed\\n'; \
                      printf 'test result: ok. 3 passed; 0 failed; 1 ignored'";
        assert_eq!(count(script), Tally { passed: 5, failed: 0, ignored: 1 });
    }

    #[test]
    fn a_suite_that_exits_with_an_error_fails_even_if_its_lines_are_good() {
        assert_eq!(count("echo 'test result: ok. 2 passed; 0 failed'; exit 101").failed, 1);
    }
}
