//! A private apt: resolves and downloads packages of Debian without root and without changing the system.
//!
//! Configuration, lists, caches and the package status all live in one scratch directory. The status is empty,
//! so that apt resolves the whole dependency closure down to the C library and the result does not depend on
//! what the machine happens to have installed. From the system come only the address of the Debian mirror
//! (see [`crate::sources`]), the archive's keyring, and how to reach the network (proxies).

use crate::sources::{self, Mirrors};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Settings of the machine that say how the network is reached. Everything else (hooks, pins, languages) stays
/// out: hooks would act on the system.
const NETWORK_SETTINGS: [&str; 5] =
    ["Acquire::http", "Acquire::https", "Acquire::Proxy", "Acquire::Check-", "Acquire::ForceIPv"];

/// Which part of the archive packages are taken from, whatever release of Debian the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Debian 12 with its updates.
    Bookworm,
    /// The same, with newer versions from its backports preferred.
    BookwormBackports,
    /// Debian 13 with its updates, with newer versions from its backports preferred.
    TrixieBackports,
}

impl Suite {
    /// The release, as the archive calls it.
    fn codename(self) -> &'static str {
        match self {
            Self::Bookworm | Self::BookwormBackports => "bookworm",
            Self::TrixieBackports => "trixie",
        }
    }

    /// The suite with the backports, where they are wanted.
    fn backports(self) -> Option<String> {
        (self != Self::Bookworm).then(|| format!("{}-backports", self.codename()))
    }
}

/// An apt that has a directory of its own.
pub(crate) struct Apt {
    directory: PathBuf,
    suite: Suite,
}

impl Apt {
    /// Lays out a private apt in `directory`, which must be an absolute path to an empty directory.
    pub(crate) fn new(directory: &Path, suite: Suite) -> Result<Self> {
        require_debian_tools()?;
        let Some(mirrors) = sources::of_machine(Path::new("/etc/apt")) else {
            bail!(
                "the apt sources of this machine name no Debian mirror; set {} to the address of one",
                sources::MIRROR_VARIABLE
            );
        };
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("state/status"), "")?;
        fs::write(directory.join("sources.list"), source_list(&mirrors, suite))?;
        fs::write(directory.join("apt.conf"), configuration(directory, &network_settings()))?;
        Ok(Self { directory: directory.to_owned(), suite })
    }

    /// Fetches the archive's package lists.
    pub(crate) fn update(&self) -> Result<()> {
        self.apt_get(&["update"]).context("cannot fetch Debian's package lists")
    }

    /// Downloads `package` and all it depends on; returns the files, sorted by name.
    pub(crate) fn download(&self, package: &str) -> Result<Vec<PathBuf>> {
        let mut args = vec!["install", "--yes", "--no-install-recommends", "--download-only", package];
        let backports = self.suite.backports();
        if let Some(backports) = &backports {
            args.extend(["--target-release", backports]);
        }
        self.apt_get(&args).with_context(|| format!("cannot download {package}"))?;

        let mut files = Vec::new();
        for entry in fs::read_dir(self.directory.join("cache/archives"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Downloads `package` and nothing that it depends on.
    pub(crate) fn download_alone(&self, package: &str) -> Result<PathBuf> {
        self.apt_get(&["download", package]).with_context(|| format!("cannot download {package}"))?;
        let start = format!("{package}_");
        let named =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start));
        let mut files = fs::read_dir(&self.directory)?.flatten().map(|entry| entry.path());
        files.find(named).with_context(|| format!("apt-get downloaded no {package}"))
    }

    /// What `package` depends on, in apt's words.
    pub(crate) fn depends(&self, package: &str) -> Result<String> {
        let output = Command::new("apt-cache")
            .args(["depends", package])
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("LC_ALL", "C")
            .output()
            .context("cannot start apt-cache")?;
        if !output.status.success() {
            bail!("apt-cache depends {package}: {}", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs apt-get, showing its latest line on a terminal and its complaints in the error.
    fn apt_get(&self, args: &[&str]) -> Result<()> {
        let log = self.directory.join("apt.err");
        let mut child = Command::new("apt-get")
            .args(args)
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("LC_ALL", "C")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start apt-get")?;
        if let Some(stdout) = child.stdout.take() {
            show_lines(BufReader::new(stdout));
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("apt-get {}: {status}\n{}", args[0], complaints(&fs::read_to_string(&log)?));
        }
        Ok(())
    }
}

/// Unpacks a package into `root` without running anything of it.
pub(crate) fn unpack(package: &Path, root: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb").arg("--extract").args([package, root]).output()?;
    if !output.status.success() {
        bail!("cannot unpack {}: {}", package.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn require_debian_tools() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("QEMU can be fetched on x86_64 Linux only");
    }
    for tool in ["apt-get", "dpkg-deb"] {
        if Command::new(tool).arg("--version").output().is_err() {
            bail!("QEMU is fetched with Debian's own tools, and there is no {tool} here");
        }
    }
    if !Path::new(KEYRING).exists() {
        bail!(
            "there is no {KEYRING} to check packages with; it comes with the package debian-archive-keyring"
        );
    }
    Ok(())
}

/// The sources that the private apt reads.
fn source_list(mirrors: &Mirrors, suite: Suite) -> String {
    let codename = suite.codename();
    let mut suites = vec![codename.to_owned(), format!("{codename}-updates")];
    suites.extend(suite.backports());
    let mut text = String::new();
    for suite in suites {
        text += &format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirrors.main);
    }
    if let Some(security) = &mirrors.security {
        text += &format!("deb [signed-by={KEYRING}] {security} {codename}-security main\n");
    }
    text
}

/// The configuration of the private apt: the machine's network settings, then ours, so that ours win.
fn configuration(directory: &Path, network: &str) -> String {
    let at = |part: &str| directory.join(part).display().to_string();
    let settings = [
        ("Dir::Etc::main", "/dev/null".into()),
        ("Dir::Etc::parts", "/dev/null".into()),
        ("Dir::Etc::sourcelist", at("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::Etc::preferences", "/dev/null".into()),
        ("Dir::Etc::preferencesparts", "/dev/null".into()),
        ("Dir::State", at("state")),
        ("Dir::State::status", at("state/status")),
        ("Dir::State::lists", at("lists")),
        ("Dir::Cache", at("cache")),
        ("Dir::Log", at("log")),
        ("APT::Architecture", "amd64".into()),
        ("APT::Architectures", "amd64".into()),
        // Nothing runs as another user, so the same directories work for root and for anybody.
        ("APT::Sandbox::User", "root".into()),
        // Without it, lists that could not be fetched are only a warning.
        ("APT::Update::Error-Mode", "any".into()),
        ("Acquire::Languages", "none".into()),
        ("Acquire::Retries", "2".into()),
        ("Acquire::http::Timeout", "20".into()),
        ("Acquire::https::Timeout", "20".into()),
        // The lock of the system's dpkg is not ours to take: nothing is installed.
        ("Debug::NoLocking", "true".into()),
    ];
    let mut text = network.to_owned();
    for (key, value) in settings {
        text += &format!("{key} \"{value}\";\n");
    }
    text
}

/// What the machine's own apt configuration says about reaching the network, in apt's syntax.
fn network_settings() -> String {
    let dump = Command::new("apt-config").arg("dump").output();
    dump.map(|output| keep_network_settings(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
}

fn keep_network_settings(dump: &str) -> String {
    let wanted = |line: &&str| NETWORK_SETTINGS.iter().any(|prefix| line.starts_with(prefix));
    dump.lines().filter(wanted).flat_map(|line| [line, "\n"]).collect()
}

/// Shows the latest line beside a spinner; a stderr that is no terminal stays quiet.
fn show_lines(lines: impl BufRead) {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    for line in lines.lines().map_while(Result::ok) {
        bar.set_message(line);
    }
    bar.finish_and_clear();
}

/// The first few errors and warnings of an apt run.
fn complaints(stderr: &str) -> String {
    let lines: Vec<_> = stderr.lines().filter(|line| !line.trim().is_empty()).take(8).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(security: Option<&str>) -> Mirrors {
        Mirrors { main: "http://mirror.example/debian".into(), security: security.map(Into::into) }
    }

    #[test]
    fn backports_appear_in_the_sources_only_when_asked_for() {
        let stable = source_list(&mirrors(None), Suite::Bookworm);
        assert_eq!(stable.lines().count(), 2);
        assert!(!stable.contains("backports"));
        for (suite, name) in [(Suite::BookwormBackports, "bookworm"), (Suite::TrixieBackports, "trixie")] {
            let backports = source_list(&mirrors(Some("http://mirror.example/security")), suite);
            assert_eq!(backports.lines().count(), 4);
            assert!(backports.contains(&format!("http://mirror.example/debian {name}-backports main")));
            assert!(backports.contains(&format!("http://mirror.example/security {name}-security main")));
            assert!(backports.lines().all(|line| line.starts_with("deb [signed-by=/usr/share/keyrings/")));
            assert!(
                backports.lines().all(|line| line.contains(&format!(" {name}"))),
                "releases are not mixed"
            );
        }
    }

    #[test]
    fn proxies_of_the_machine_are_kept_and_its_hooks_are_not() {
        let dump = "APT::Update::Post-Invoke:: \"rm -f /var/cache/apt/*.bin\";\n\
                    Acquire::http::Proxy \"http://proxy.example:3128\";\n\
                    Acquire::Check-Valid-Until \"false\";\n\
                    Acquire::Languages:: \"de\";\n";
        assert_eq!(
            keep_network_settings(dump),
            "Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::Check-Valid-Until \"false\";\n"
        );
    }

    #[test]
    fn every_directory_that_apt_writes_to_is_private() {
        let text = configuration(Path::new("/private"), "Acquire::Languages \"de\";\n");
        for key in ["Dir::State", "Dir::State::status", "Dir::State::lists", "Dir::Cache", "Dir::Log"] {
            assert!(text.contains(&format!("\n{key} \"/private/")), "{key} leads outside");
        }
        assert!(text.find("\"de\"") < text.find("\"none\""), "our settings must come last to win");
    }
}
