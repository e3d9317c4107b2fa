//! Reads the machine's own apt sources and picks the Debian mirror out of them.
//!
//! Both spellings are understood: one-line (`*.list`) and deb822 (`*.sources`). The text of each file becomes
//! [`Source`]s; [`mirrors`] then tells the Debian archive from other people's repositories. Nothing here
//! touches the network, and a line that makes no sense is passed over, as apt itself will complain about it.

use std::path::Path;

/// Environment variable that names the Debian mirror, for machines whose own sources name none.
pub(crate) const MIRROR_VARIABLE: &str = "HOLDOVER_DEBIAN_MIRROR";

/// One place that binary packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
}

/// Where Debian's packages are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    /// The archive itself, with the suites of every release: `bookworm`, `bookworm-updates`, `bookworm-backports`.
    pub(crate) main: String,
    /// The security archive, where the machine names one.
    pub(crate) security: Option<String>,
}

/// The mirrors of this machine: [`MIRROR_VARIABLE`], else the sources below `etc_apt`.
pub(crate) fn of_machine(etc_apt: &Path) -> Option<Mirrors> {
    if let Ok(main) = std::env::var(MIRROR_VARIABLE) {
        return Some(Mirrors { main, security: None });
    }
    mirrors(&read(etc_apt))
}

/// All sources below an apt configuration directory (`/etc/apt`). Files that cannot be read are left out.
fn read(etc_apt: &Path) -> Vec<Source> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_list(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// Parses the one-line format: `deb [option=value ...] uri suite component ...`.
fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { uri: words.next()?, suite: words.next()?, components: words.collect() })
}

/// Parses the deb822 format: stanzas of `Field: value` with continuation lines, one source for each pair of
/// URI and suite.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza = Stanza::default();
    // The empty line at the end closes the last stanza.
    for line in text.lines().filter(|line| !line.starts_with('#')).chain([""]) {
        if line.trim().is_empty() {
            std::mem::take(&mut stanza).append_to(&mut sources);
        } else if line.starts_with([' ', '\t']) {
            stanza.add_words(line);
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.field = field.trim().to_ascii_lowercase();
            stanza.add_words(value);
        }
    }
    sources
}

/// The fields of one deb822 stanza that matter here, and the field that continuation lines belong to.
#[derive(Default)]
struct Stanza {
    field: String,
    enabled: Vec<String>,
    types: Vec<String>,
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
}

impl Stanza {
    fn add_words(&mut self, value: &str) {
        let words = match self.field.as_str() {
            "enabled" => &mut self.enabled,
            "types" => &mut self.types,
            "uris" => &mut self.uris,
            "suites" => &mut self.suites,
            "components" => &mut self.components,
            _ => return,
        };
        words.extend(value.split_whitespace().map(str::to_owned));
    }

    fn append_to(self, sources: &mut Vec<Source>) {
        let disabled = ["no", "false", "without", "off", "disable"];
        if self.enabled.iter().any(|word| disabled.contains(&word.as_str()))
            || !self.types.iter().any(|word| word == "deb")
        {
            return;
        }
        for uri in &self.uris {
            for suite in &self.suites {
                let (uri, suite) = (uri.clone(), suite.clone());
                sources.push(Source { uri, suite, components: self.components.clone() });
            }
        }
    }
}

/// Tells the Debian archive from other repositories: it has a component `main`, and either both a suite and
/// that suite's `-updates`, or a path that ends in `/debian`. The first of those with the most signs wins.
fn mirrors(sources: &[Source]) -> Option<Mirrors> {
    let usable = |source: &&Source| {
        !source.uri.starts_with("cdrom:") && source.components.iter().any(|component| component == "main")
    };
    let is_security =
        |source: &&Source| source.suite.ends_with("-security") || source.suite.ends_with("/updates");
    let signs = |source: &Source| {
        let updates = format!("{}-updates", source.suite);
        let has_updates = sources.iter().any(|other| other.uri == source.uri && other.suite == updates);
        u8::from(has_updates) * 2 + u8::from(source.uri.trim_end_matches('/').ends_with("/debian"))
    };

    let candidates = sources.iter().filter(usable).filter(|source| !is_security(source));
    // `max_by_key` returns the last of equals; the machine's own order should win, so go backwards.
    let main = candidates.rev().max_by_key(|source| signs(source)).filter(|source| signs(source) > 0)?;
    let security = sources.iter().filter(usable).find(|source| is_security(source));
    Some(Mirrors { main: main.uri.clone(), security: security.map(|source| source.uri.clone()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suite: &str, components: &[&str]) -> Source {
        let components = components.iter().map(|&component| component.to_owned()).collect();
        Source { uri: uri.into(), suite: suite.into(), components }
    }

    const ONE_LINE: &str = "\
# deb http://old.example/debian bullseye main
deb http://mirror.example/debian bookworm main contrib # trailing words
deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] https://vendor.example/apt stable main
deb-src http://mirror.example/debian bookworm main
deb\thttp://mirror.example/debian\tbookworm-updates\tmain
deb
nonsense
";

    #[test]
    fn one_line_sources_are_read_with_and_without_options() {
        assert_eq!(
            parse_list(ONE_LINE),
            [
                source("http://mirror.example/debian", "bookworm", &["main", "contrib"]),
                source("https://vendor.example/apt", "stable", &["main"]),
                source("http://mirror.example/debian", "bookworm-updates", &["main"]),
            ]
        );
    }

    const DEB822: &str = "\
Types: deb deb-src
# a comment between fields
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

types: deb
uris: http://mirror.example/debian-security
suites: bookworm-security
components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main";

    #[test]
    fn deb822_sources_are_read_with_comments_continuations_and_disabled_stanzas() {
        assert_eq!(
            parse_deb822(DEB822),
            [
                source("http://mirror.example/debian", "bookworm", &["main"]),
                source("http://mirror.example/debian", "bookworm-updates", &["main"]),
                source("http://mirror.example/debian-security", "bookworm-security", &["main"]),
            ]
        );
    }

    #[test]
    fn the_archive_is_told_from_other_repositories() {
        let sources = [
            source("https://vendor.example/linux/debian", "bookworm", &["stable"]),
            source("https://tools.example/packages", "stable", &["main"]),
            source("http://security.example/debian-security", "bookworm-security", &["main"]),
            source("https://other.example/debian", "bookworm", &["main"]),
            source("mirror+file:/etc/apt/mirrors/debian.list", "bookworm", &["main"]),
            source("mirror+file:/etc/apt/mirrors/debian.list", "bookworm-updates", &["main"]),
        ];
        assert_eq!(
            mirrors(&sources),
            Some(Mirrors {
                main: "mirror+file:/etc/apt/mirrors/debian.list".into(),
                security: Some("http://security.example/debian-security".into()),
            })
        );
    }

    #[test]
    fn the_first_of_two_equal_mirrors_is_taken() {
        let sources = [
            source("http://near.example/debian/", "bookworm", &["main"]),
            source("http://far.example/debian", "bookworm", &["main"]),
        ];
        assert_eq!(mirrors(&sources).map(|mirrors| mirrors.main), Some("http://near.example/debian/".into()));
    }

    #[test]
    fn a_machine_without_a_debian_archive_has_no_mirror() {
        let sources = [
            source("cdrom:[Debian 12]/debian", "bookworm", &["main"]),
            source("https://tools.example/packages", "stable", &["main"]),
        ];
        assert_eq!(mirrors(&sources), None);
    }

    #[test]
    fn both_kinds_of_files_below_etc_apt_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let parts = directory.path().join("sources.list.d");
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(directory.path().join("sources.list"), ONE_LINE).unwrap();
        std::fs::write(parts.join("debian.sources"), DEB822).unwrap();
        std::fs::write(parts.join("debian.sources.bak"), "deb http://no.example/debian x main").unwrap();
        assert_eq!(read(directory.path()).len(), 6);
    }
}
