//! A Linux to look at, in `target/guest/`: Debian's own kernel, one driver of it, and a static busybox.
//!
//! Fetched and unpacked as QEMU is ([`crate::prefix`]), nothing is installed. `holdover/tests/guest.rs` boots it on QEMU,
//! captures the machine from inside and looks at it from outside.

use crate::apt::{self, Apt, Suite};
use crate::process::{phase, remove_tree, target};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use walkdir::WalkDir;

/// Changes whenever the layout of the directory does.
const LAYOUT: &str = "holdover guest, layout 1";
const STAMP: &str = "packages.txt";
/// The package that depends on the kernel of the day.
const KERNEL: &str = "linux-image-amd64";
const BUSYBOX: &str = "busybox-static";

/// What is taken out of the packages: the name it gets, and the start and end of its path.
const FILES: [(&str, &str, &str); 3] = [
    ("vmlinuz", "boot/vmlinuz-", ""),
    ("e1000.ko", "lib/modules/", "/e1000.ko"),
    ("busybox", "bin/busybox", ""),
];

/// The command: prints the directory.
pub(crate) fn run() -> Result<ExitCode> {
    println!("{}", ensure()?.display());
    Ok(ExitCode::SUCCESS)
}

/// The directory, fetched now unless it is there already.
pub(crate) fn ensure() -> Result<PathBuf> {
    let directory = target().join("guest");
    let partial = target().join("guest.partial");
    fs::create_dir_all(target())?;
    let lock = File::create(target().join("guest.lock"))?;
    lock.lock()?;
    if is_there(&directory) {
        return Ok(directory);
    }
    remove_tree(&partial)?;
    phase(&format!("a Linux into {}", directory.display()), || {
        let built = build(&partial)
            .context("Debian's kernel could not be fetched: give this machine access to a Debian mirror")?;
        remove_tree(&directory)?;
        fs::rename(&built, &directory)?;
        remove_tree(&partial)
    })?;
    Ok(directory)
}

fn is_there(directory: &Path) -> bool {
    fs::read_to_string(directory.join(STAMP)).is_ok_and(|stamp| stamp.lines().next() == Some(LAYOUT))
}

fn build(partial: &Path) -> Result<PathBuf> {
    let (scratch, root, guest) = (partial.join("apt"), partial.join("root"), partial.join("guest"));
    for directory in [&scratch, &root, &guest] {
        fs::create_dir_all(directory)?;
    }
    let apt = Apt::new(&scratch, Suite::Bookworm)?;
    apt.update()?;
    let kernel = kernel_of(&apt.depends(KERNEL)?)
        .with_context(|| format!("{KERNEL} depends on no kernel of its own"))?;
    let mut stamp = format!("{LAYOUT}\n");
    for name in [kernel.as_str(), BUSYBOX] {
        let package = apt.download_alone(name)?;
        apt::unpack(&package, &root)?;
        stamp += &format!("{}\n", package.file_name().unwrap_or_default().to_string_lossy());
    }
    for (name, start, end) in FILES {
        let found = find(&root, start, end)?;
        fs::copy(&found, guest.join(name)).with_context(|| format!("cannot copy {}", found.display()))?;
    }
    fs::write(guest.join(STAMP), stamp)?;
    Ok(guest)
}

/// The first file below `root` whose path starts and ends like this. Only what is unpacked is looked at.
fn find(root: &Path, start: &str, end: &str) -> Result<PathBuf> {
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry?;
        let path = entry.path().strip_prefix(root)?.to_string_lossy().into_owned();
        // Debian may move /lib into /usr/lib one day.
        let path = path.strip_prefix("usr/").unwrap_or(&path);
        if entry.file_type().is_file() && path.starts_with(start) && path.ends_with(end) {
            return Ok(entry.into_path());
        }
    }
    bail!("the packages hold no {start}*{end}")
}

/// The kernel among the dependencies that `apt-cache depends` lists.
fn kernel_of(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_among_what_the_package_depends_on() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-51-amd64\n  Suggests: firmware-linux\n";
        assert_eq!(kernel_of(text).as_deref(), Some("linux-image-6.1.0-51-amd64"));
        assert_eq!(kernel_of("linux-image-amd64\n"), None);
    }

    #[test]
    fn files_are_found_whether_usr_is_merged_or_not() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["usr/lib/modules/7.3.4/kernel/e1000.ko", "boot/vmlinuz-7.3.4"] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let root = directory.path();
        assert!(find(root, "lib/modules/", "/e1000.ko").unwrap().ends_with("kernel/e1000.ko"));
        assert!(find(root, "boot/vmlinuz-", "").unwrap().ends_with("vmlinuz-7.3.4"));
        assert!(find(root, "bin/busybox", "").unwrap_err().to_string().contains("bin/busybox"));
    }
}
