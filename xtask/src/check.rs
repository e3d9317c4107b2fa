//! `cargo xtask check`: everything about the sources that needs no test to run.
//!
//! Formatting, lints, documentation, house style, and that the core crates stay what a kernel can link: built
//! alone, with `zerocopy` as their only foreign dependency, and with the Rust release they promise. Every step
//! runs even when an earlier one failed, so that one run names all there is to mend.

use crate::process::{cargo, phase, root, shell};
use crate::style;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::ExitCode;
use xshell::cmd;

/// The oldest Rust that the core crates promise to build with.
const CORE_RUST: &str = "1.85";
const KERNEL: &str = "kernel/Cargo.toml";

/// A crate that a kernel links.
struct Core {
    name: &'static str,
    /// The crates of ours that it may use: arrows only towards `spec`.
    may_use: &'static [&'static str],
}

const CORES: [Core; 4] = [
    Core { name: "holdover-spec", may_use: &[] },
    Core { name: "holdover-audit", may_use: &["holdover-spec"] },
    Core { name: "holdover-liveupdate", may_use: &["holdover-spec", "holdover-audit"] },
    Core { name: "holdover-iommu", may_use: &["holdover-spec", "holdover-audit", "holdover-liveupdate"] },
];

/// The one foreign dependency of the core crates, and what its derive macros need while compiling.
const FOREIGN: [&str; 6] = ["zerocopy", "zerocopy-derive", "proc-macro2", "quote", "syn", "unicode-ident"];

/// The command: fails when any step did, after all of them ran.
pub(crate) fn run() -> Result<ExitCode> {
    type Step = (&'static str, fn() -> Result<()>);
    let steps: [Step; 6] = [
        ("house style", house_style),
        ("formatting", formatting),
        ("core crates alone", core_crates),
        ("core crates: what they use and promise", core_promises),
        ("lints", lints),
        ("documentation", documentation),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        if let Err(error) = phase(name, step) {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("failed: {}", failed.join("; "));
    Ok(ExitCode::FAILURE)
}

fn house_style() -> Result<()> {
    let violations = style::check_tree(&root())?;
    if !violations.is_empty() {
        bail!("{}", violations.join("\n"));
    }
    Ok(())
}

fn formatting() -> Result<()> {
    let (sh, cargo) = (shell()?, cargo());
    let workspace = cmd!(sh, "{cargo} fmt --all --check").run();
    let kernel = cmd!(sh, "{cargo} fmt --manifest-path {KERNEL} --check").run();
    workspace.and(kernel).context("`cargo fmt` has not been run")
}

/// Builds each core crate without the rest, so that no other member's features or dependencies help it.
fn core_crates() -> Result<()> {
    let (sh, cargo) = (shell()?, cargo());
    for Core { name, .. } in CORES {
        cmd!(sh, "{cargo} build --package {name}").run()?;
    }
    Ok(())
}

fn core_promises() -> Result<()> {
    let (sh, cargo) = (shell()?, cargo());
    let mut violations = Vec::new();
    let format = "{p}";
    for core in &CORES {
        let name = core.name;
        let tree =
            cmd!(sh, "{cargo} tree --package {name} --edges normal,build --prefix none --format {format}")
                .quiet()
                .read()?;
        violations.extend(foreign_dependencies(core, &tree));
    }
    let metadata = cmd!(sh, "{cargo} metadata --no-deps --format-version 1").quiet().read()?;
    violations.extend(wrong_rust_versions(&serde_json::from_str(&metadata)?));
    if !violations.is_empty() {
        bail!("{}", violations.join("\n"));
    }
    Ok(())
}

/// The dependencies in the output of `cargo tree` that a core crate must not have.
fn foreign_dependencies(core: &Core, tree: &str) -> Vec<String> {
    let names: BTreeSet<_> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let allowed = |name: &str| name == core.name || core.may_use.contains(&name) || FOREIGN.contains(&name);
    let foreign = names.into_iter().filter(|name| !allowed(name));
    foreign.map(|name| format!("{} must not depend on {name}", core.name)).collect()
}

/// The core crates that `cargo metadata` does not show with the Rust release they should promise.
fn wrong_rust_versions(metadata: &Value) -> Vec<String> {
    let promised = |name: &str| {
        let packages = metadata["packages"].as_array()?;
        packages.iter().find(|package| package["name"] == name)?["rust_version"].as_str()
    };
    let wrong = CORES.iter().filter(|core| promised(core.name) != Some(CORE_RUST));
    wrong.map(|core| format!("{} must declare rust-version = \"{CORE_RUST}\"", core.name)).collect()
}

fn lints() -> Result<()> {
    let (sh, cargo) = (shell()?, cargo());
    // In the core crates, what is newer than the Rust they promise is an error even where a manifest forgot
    // to ask for the workspace's lints.
    let cores = CORES.iter().flat_map(|core| ["--package", core.name]);
    let too_new = "clippy::incompatible_msrv";
    let core = cmd!(sh, "{cargo} clippy {cores...} -- --deny warnings --deny {too_new}").run();
    let workspace = cmd!(sh, "{cargo} clippy --workspace --all-targets -- --deny warnings").run();
    // Out of the default set, because it needs QEMU to run; see holdover/Cargo.toml.
    let on_qemu =
        cmd!(sh, "{cargo} clippy --package holdover --test qemu --test guest -- --deny warnings").run();
    // Not --all-targets: the kernel's binaries have no test harness, see kernel/Cargo.toml.
    let kernel =
        cmd!(sh, "{cargo} clippy --manifest-path {KERNEL} --lib --bins --tests -- --deny warnings").run();
    core.and(workspace).and(on_qemu).and(kernel).context("clippy has something to say")
}

fn documentation() -> Result<()> {
    let (sh, cargo) = (shell()?, cargo());
    let _strict = sh.push_env("RUSTDOCFLAGS", "-D warnings");
    let workspace = cmd!(sh, "{cargo} doc --workspace --no-deps").run();
    let kernel = cmd!(sh, "{cargo} doc --manifest-path {KERNEL} --no-deps").run();
    workspace.and(kernel).context("the documentation does not build cleanly")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_core_crate_may_use_zerocopy_and_the_crates_below_it_alone() {
        let [_, audit, ..] = &CORES;
        let good = "holdover-audit v0.1.0 (path)\nholdover-spec v0.1.0 (path)\nzerocopy v0.8.31\n\
                    zerocopy-derive v0.8.31 (proc-macro)\nsyn v2.0.1\nzerocopy v0.8.31 (*)";
        assert!(foreign_dependencies(audit, good).is_empty());

        let bad = format!("{good}\nbitflags v2.9.0\nholdover-iommu v0.1.0 (path)");
        assert_eq!(
            foreign_dependencies(audit, &bad),
            [
                "holdover-audit must not depend on bitflags",
                "holdover-audit must not depend on holdover-iommu"
            ]
        );
    }

    #[test]
    fn a_core_crate_with_another_or_no_rust_version_is_named() {
        let package = |name: &str, rust: Value| json!({"name": name, "rust_version": rust});
        let metadata = json!({"packages": [
            package("holdover-spec", json!("1.85")),
            package("holdover-audit", json!("1.95")),
            package("holdover-liveupdate", Value::Null),
        ]});
        let wrong = wrong_rust_versions(&metadata);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong.iter().all(|line| !line.contains("holdover-spec")));
    }
}
