//! Where the checkout is, how cargo is called, and the lines on stderr that tell how far we are.
//!
//! Commands run in the root of the checkout whatever directory the user stands in.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use xshell::Shell;

/// Root of the checkout: the directory above this package.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// The directory that `qemu` and `demo` write to: always `target/` of the checkout, also where
/// `CARGO_TARGET_DIR` sends cargo's own output elsewhere.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// A shell that stands in the root of the checkout.
pub(crate) fn shell() -> Result<Shell> {
    let shell = Shell::new()?;
    shell.change_dir(root());
    Ok(shell)
}

/// The cargo that started us, so that nested calls use the same toolchain.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A cargo command in the root of the checkout.
pub(crate) fn cargo_command(args: &[&str]) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(args);
    command
}

/// Runs `work` between a line that says what begins and one that says how long it took.
pub(crate) fn phase<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let result = work();
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("    {what}: {verdict}, {:.1} s", start.elapsed().as_secs_f64());
    result
}

/// Removes a directory tree, which may be absent.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
