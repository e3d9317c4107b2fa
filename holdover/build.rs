//! Builds the freestanding kernels and tells the compiler where their images lie.
//!
//! The kernels are a workspace of their own (docs/decisions/0002-kernel-workspace.md) with a target directory of their own
//! below this build's output directory, so neither build waits for the other or sees its features.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// What the kernels are made of.
const SOURCES: [&str; 6] = ["kernel", "spec", "liveupdate", "audit", "iommu", "scenario"];

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = here.parent().unwrap_or(&here);
    let target = PathBuf::from(variable("OUT_DIR")).join("kernel");
    for source in SOURCES {
        for part in ["src", "Cargo.toml", "build.rs", "link.ld", "Cargo.lock"] {
            let path = root.join(source).join(part);
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
    build(root, &target);
    for name in ["a", "b", "b-legacy", "c"] {
        let image = target.join("release").join(format!("kernel-{name}"));
        println!(
            "cargo:rustc-env=HOLDOVER_KERNEL_{}={}",
            name.to_uppercase().replace('-', "_"),
            image.display()
        );
    }
    println!("cargo:rustc-env=HOLDOVER_KERNEL_VERSION={}", version(&root.join("kernel/Cargo.toml")));
}

fn build(root: &Path, target: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--bins", "--manifest-path"]).arg(root.join("kernel/Cargo.toml"));
    cargo.arg("--target-dir").arg(target);
    // Flags and wrappers of this build are for the host: coverage, sanitizers or the linter would not link into a kernel.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
    ] {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the kernels do not build ({status})")),
        Err(error) => fail(&format!("cannot run cargo for the kernels: {error}")),
    }
}

/// The version in the kernels' manifest: its first line that sets one.
fn version(manifest: &Path) -> String {
    let Ok(text) = std::fs::read_to_string(manifest) else {
        fail(&format!("cannot read {}", manifest.display()))
    };
    let quoted = text.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    quoted.map(str::to_owned).unwrap_or_else(|| fail("the kernels' manifest has no version"))
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| fail(&format!("cargo did not set {name}")))
}

fn fail(words: &str) -> ! {
    eprintln!("{words}");
    exit(1)
}
