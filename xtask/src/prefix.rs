//! A QEMU of our own in `target/qemu/<release>/`, unpacked out of Debian's packages.
//!
//! Apt fetches the packages into a scratch directory, they are unpacked beside it, a wrapper script is written
//! and tried, and only then does one rename put the whole prefix in its place: a prefix that is there is
//! complete. The wrapper runs QEMU with the prefix's own loader, C library, firmware and modules, relative to
//! where the script lies, so a prefix can be moved and works on any x86_64 Linux.

use crate::apt::{self, Apt};
use crate::process::{phase, remove_tree, target};
use crate::qemu::{Release, Version, version_of};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Changes whenever the layout of a prefix does; prefixes with another stamp are built anew.
const LAYOUT: &str = "holdover qemu prefix, layout 1";
const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "qemu-system-x86_64";
const STAMP: &str = "packages.txt";

const WRAPPER: &str = r#"#!/bin/sh
# Runs the QEMU of this directory with its own loader, libraries, modules and firmware.
here=$(dirname "$(readlink -f "$0")")
root=$here/root
libraries=$root/usr/lib/x86_64-linux-gnu
# Up to Debian 12 the C library lies outside /usr.
[ -d "$root/lib" ] && base=$root/lib/x86_64-linux-gnu || base=$libraries
QEMU_MODULE_DIR=$libraries/qemu
export QEMU_MODULE_DIR
exec "$base/ld-linux-x86-64.so.2" \
    --argv0 "$0" \
    --library-path "$libraries:$base:$libraries/pulseaudio" \
    "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu" \
    "$@"
"#;

/// The wrapper of a release that was fetched before, if it is there, complete and of today's layout.
pub(crate) fn existing(release: Release) -> Option<PathBuf> {
    let directory = directory(release);
    let stamp = fs::read_to_string(directory.join(STAMP)).ok()?;
    (stamp.lines().next() == Some(LAYOUT)).then(|| directory.join(PROGRAM))
}

/// The wrapper of a release, fetched now unless it is there already.
pub(crate) fn ensure(release: Release) -> Result<PathBuf> {
    if let Some(program) = existing(release) {
        return Ok(program);
    }
    let parent = parent();
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // One at a time: whoever waited here finds the other's prefix. The lock goes with the file handle.
    let lock = File::create(parent.join(".lock"))?;
    lock.lock()?;
    if let Some(program) = existing(release) {
        return Ok(program);
    }
    let partial = parent.join(".partial");
    remove_tree(&partial)?;
    let built = phase(&format!("QEMU {release} into {}", directory(release).display()), || {
        let built = build(release, &partial)?;
        remove_tree(&directory(release))?;
        fs::rename(&built, directory(release))?;
        Ok(directory(release).join(PROGRAM))
    });
    let removed = remove_tree(&partial);
    let program = built.with_context(|| advice(release))?;
    removed?;
    Ok(program)
}

/// Builds a complete prefix below `partial` and returns its directory.
fn build(release: Release, partial: &Path) -> Result<PathBuf> {
    let scratch = partial.join("apt");
    let prefix = partial.join("prefix");
    let root = prefix.join("root");
    fs::create_dir_all(&scratch)?;
    fs::create_dir_all(&root)?;

    eprintln!("    fetching Debian's package lists");
    let apt = Apt::new(&scratch, release.suite())?;
    apt.update()?;
    eprintln!("    downloading {PACKAGE} and what it depends on");
    let packages = apt.download(PACKAGE)?;
    eprintln!("    unpacking {} packages", packages.len());
    for package in &packages {
        apt::unpack(package, &root)?;
    }

    let program = prefix.join(PROGRAM);
    fs::write(&program, WRAPPER)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let version = version_of(&program).context("the unpacked QEMU does not start")?;
    check_release(version, release)?;
    fs::write(prefix.join(STAMP), stamp(version, &packages))?;
    Ok(prefix)
}

/// Debian updates a release in place: a newer patch level is welcome, another minor release is not.
fn check_release(version: Version, release: Release) -> Result<()> {
    if !version.same_minor(release.version()) {
        bail!("the mirror offers QEMU {version} where {release} was expected");
    }
    Ok(())
}

/// What lies in the prefix: layout, version, one package a line.
fn stamp(version: Version, packages: &[PathBuf]) -> String {
    let names = packages.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy());
    let lines = [LAYOUT.into(), format!("QEMU {version}").into()].into_iter().chain(names);
    lines.flat_map(|line| [line, "\n".into()]).collect()
}

fn advice(release: Release) -> String {
    format!(
        "QEMU {release} could not be fetched: either install {PACKAGE} {} or newer yourself, or give this \
         machine access to a Debian mirror and try again",
        Release::OLDEST.version()
    )
}

fn parent() -> PathBuf {
    target().join("qemu")
}

fn directory(release: Release) -> PathBuf {
    parent().join(release.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_stamp_opens_with_the_layout_and_lists_the_packages() {
        let packages = [PathBuf::from("/x/libc6_2.36_amd64.deb"), PathBuf::from("/x/seabios_1.16_all.deb")];
        let text = stamp(Version([7, 2, 22]), &packages);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, [LAYOUT, "QEMU 7.2.22", "libc6_2.36_amd64.deb", "seabios_1.16_all.deb"]);
    }

    #[test]
    fn another_minor_release_than_the_one_asked_for_is_refused() {
        assert!(check_release(Version([10, 0, 8]), Release::V10_0_2).is_ok());
        let error = check_release(Version([7, 2, 22]), Release::V10_0_2).unwrap_err().to_string();
        assert!(error.contains("7.2.22") && error.contains("10.0.2"), "{error}");
    }

    #[test]
    fn the_wrapper_finds_its_root_through_a_symbolic_link_and_passes_arguments_on() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().canonicalize().unwrap();
        let home = directory.join("a b");
        let loader = home.join("root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        fs::create_dir_all(loader.parent().unwrap()).unwrap();
        // In the loader's place, a program that shows what it was given.
        symlink("/bin/echo", &loader).unwrap();
        fs::write(home.join(PROGRAM), WRAPPER).unwrap();
        symlink(home.join(PROGRAM), directory.join("link")).unwrap();

        let args = [directory.join("link"), "-machine".into(), "q35,x=y z".into()];
        let output = std::process::Command::new("sh").args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let program = home.join("root/usr/bin").join(PROGRAM);
        assert!(text.contains(&format!(" {} -L ", program.display())), "{text}");
        assert!(text.ends_with(" -machine q35,x=y z\n"), "{text}");
    }
}
