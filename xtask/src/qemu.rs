//! `cargo xtask qemu`: finds a QEMU that will do, or fetches one.
//!
//! An installed `qemu-system-x86_64` is used as it is when it is new enough; else a prefix that was fetched
//! before; else one is fetched ([`crate::prefix`]). A release that is asked for by number always comes from
//! a prefix, so that tests know what they run on.

use crate::apt::Suite;
use crate::prefix;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const PROGRAM: &str = "qemu-system-x86_64";

/// A version of QEMU: major, minor, patch level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) [u32; 3]);

impl Version {
    /// Reads the first line of `qemu-system-x86_64 --version`.
    fn parse(banner: &str) -> Option<Self> {
        let rest = banner.lines().next()?.strip_prefix("QEMU emulator version ")?;
        let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = number.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        Some(Self([major, minor, patch]))
    }

    /// Whether both differ in their patch level at most.
    pub(crate) fn same_minor(self, other: Self) -> bool {
        self.0[..2] == other.0[..2]
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The releases that can be fetched. Tests run on the first two unless they are told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Release {
    /// Debian 12's own
    #[value(name = "7.2")]
    V7_2,
    /// Debian 12's backports; the one taken when nothing else is asked for
    #[value(name = "10.0.2")]
    V10_0_2,
    /// Debian 13's backports
    #[value(name = "11.1.3")]
    V11_1_3,
}

impl Release {
    /// The oldest release that is supported.
    pub(crate) const OLDEST: Self = Self::V7_2;
    const PREFERRED: Self = Self::V10_0_2;

    /// The version it had when support for it was written; Debian may be some patch levels ahead.
    pub(crate) fn version(self) -> Version {
        match self {
            Self::V7_2 => Version([7, 2, 0]),
            Self::V10_0_2 => Version([10, 0, 2]),
            Self::V11_1_3 => Version([11, 1, 3]),
        }
    }

    /// Where in Debian it is found.
    pub(crate) fn suite(self) -> Suite {
        match self {
            Self::V7_2 => Suite::Bookworm,
            Self::V10_0_2 => Suite::BookwormBackports,
            Self::V11_1_3 => Suite::TrixieBackports,
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V7_2 => "7.2",
            Self::V10_0_2 => "10.0.2",
            Self::V11_1_3 => "11.1.3",
        })
    }
}

/// The command: prints the path alone on stdout, so that scripts can use it.
pub(crate) fn run(release: Option<Release>) -> Result<ExitCode> {
    let program = match release {
        Some(release) => prefix::ensure(release)?,
        None => any()?,
    };
    eprintln!("QEMU {}", version_of(&program)?);
    println!("{}", program.display());
    Ok(ExitCode::SUCCESS)
}

/// Any QEMU that will do: installed, fetched before, or fetched now.
pub(crate) fn any() -> Result<PathBuf> {
    if let Some(program) = installed() {
        return Ok(program);
    }
    let fetched =
        [Release::PREFERRED, Release::V11_1_3, Release::OLDEST].into_iter().find_map(prefix::existing);
    fetched.map_or_else(|| prefix::ensure(Release::PREFERRED), Ok)
}

/// The version that a program says it is.
pub(crate) fn version_of(program: &Path) -> Result<Version> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let banner = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{} --version: {}: {}", program.display(), output.status, complaint.trim());
    }
    Version::parse(&banner)
        .with_context(|| format!("{} does not speak like QEMU: {banner:?}", program.display()))
}

/// The QEMU on `PATH`, if it is new enough; says so when it is not.
fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let program =
        std::env::split_paths(&path).map(|directory| directory.join(PROGRAM)).find(|p| p.is_file())?;
    let oldest = Release::OLDEST.version();
    match version_of(&program) {
        Ok(version) if version >= oldest => return Some(program),
        Ok(version) => eprintln!("passing over {}: {version} is older than {oldest}", program.display()),
        Err(error) => eprintln!("passing over the installed QEMU: {error:#}"),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_banners_of_real_builds() {
        for (banner, version) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright", [10, 0, 2]),
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", [7, 2, 22]),
            ("QEMU emulator version 8.2", [8, 2, 0]),
            ("QEMU emulator version 9.1.50-dirty", [9, 1, 50]),
        ] {
            assert_eq!(Version::parse(banner), Some(Version(version)), "{banner}");
        }
    }

    #[test]
    fn what_is_not_a_version_banner_is_not_read_as_one() {
        for banner in ["", "QEMU emulator version ", "QEMU emulator version x.y", "qemu-img version 10.0.2"] {
            assert_eq!(Version::parse(banner), None, "{banner}");
        }
    }

    #[test]
    fn versions_compare_by_number_and_not_by_text() {
        assert!(Version([10, 0, 2]) > Version([7, 2, 22]));
        assert!(Version([7, 2, 0]) >= Release::OLDEST.version());
        assert!(Version([7, 1, 9]) < Release::OLDEST.version());
        assert!(Version([10, 0, 2]).same_minor(Version([10, 0, 9])));
        assert!(!Version([10, 0, 2]).same_minor(Version([10, 1, 2])));
    }

    #[test]
    fn a_release_prints_as_it_is_asked_for() {
        for release in Release::value_variants() {
            assert_eq!(Release::from_str(&release.to_string(), false).as_ref(), Ok(release));
        }
    }
}
