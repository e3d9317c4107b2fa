//! House style that no compiler or linter knows, checked over the files of the checkout.
//!
//! Files are read one by one, each yields violations as `path:line: what is wrong`. Rust files stay short and
//! open by saying what they are for; the crates that a kernel links keep out std and unsafe code; no text
//! names places of the machine it was written on.

use anyhow::Result;
use std::path::Path;
use walkdir::WalkDir;

/// The most lines that a Rust file may have.
const LONGEST: usize = 600;
/// Directories with generated content, and those of version control.
const SKIPPED_DIRECTORIES: [&str; 2] = ["target", ".git"];
/// Generated; it names the registry of every package.
const SKIPPED_FILE: &str = "Cargo.lock";

/// Text that must not appear in any file: directories of one machine, hosts of package registries. Put
/// together from halves so that this file may be read too.
const FORBIDDEN: [&str; 8] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/."),
    concat!("/ho", "me/"),
    concat!("deb.deb", "ian.org"),
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("py", "pi.org"),
    concat!("registry.npm", "js"),
];

/// What the crate root of a library must declare.
const DECLARATIONS: [(&str, &[&str]); 6] = [
    ("spec/src/lib.rs", &["#![no_std]", "#![forbid(unsafe_code)]"]),
    ("audit/src/lib.rs", &["#![no_std]", "#![forbid(unsafe_code)]"]),
    ("liveupdate/src/lib.rs", &["#![no_std]", "#![forbid(unsafe_code)]"]),
    ("iommu/src/lib.rs", &["#![no_std]", "#![forbid(unsafe_code)]"]),
    ("scenario/src/lib.rs", &["#![no_std]", "#![forbid(unsafe_code)]"]),
    ("machine/src/lib.rs", &["#![forbid(unsafe_code)]"]),
];

/// Where an operation that does nothing is a mistake (lesson 5): one that is not needed is absent, and its absence has a
/// meaning.
const OPERATIONS: [&str; 4] = ["spec/src/", "audit/src/", "liveupdate/src/", "iommu/src/"];

/// All violations below `root`, sorted by path.
pub(crate) fn check_tree(root: &Path) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    let skipped = |name: &str| SKIPPED_DIRECTORIES.contains(&name);
    let walk = WalkDir::new(root).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| !entry.file_name().to_str().is_some_and(skipped)) {
        let entry = entry?;
        if !entry.file_type().is_file() || entry.file_name() == SKIPPED_FILE {
            continue;
        }
        // What is not UTF-8 is a picture or another binary file.
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let path = entry.path().strip_prefix(root)?.display().to_string();
        violations.extend(check_file(&path, &text));
    }
    Ok(violations)
}

fn check_file(path: &str, text: &str) -> Vec<String> {
    let mut violations = forbidden_text(path, text);
    if path.ends_with(".rs") {
        violations.extend(rust_file(path, text));
    }
    violations.extend(missing_declarations(path, text));
    if OPERATIONS.iter().any(|place| path.starts_with(place)) {
        violations.extend(empty_operations(path, text));
    }
    violations
}

fn empty_operations(path: &str, text: &str) -> Vec<String> {
    let code = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.starts_with("//"));
    let empty = code.filter(|(_, line)| line.contains("fn ") && line.ends_with("{}"));
    empty
        .map(|(n, _)| format!("{path}:{n}: an operation that does nothing: leave it out (lesson 5)"))
        .collect()
}

fn forbidden_text(path: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
            violations.push(format!("{path}:{number}: `{word}` belongs to one machine, not to the project"));
        }
    }
    violations
}

fn rust_file(path: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let length = text.lines().count();
    if length > LONGEST {
        violations.push(format!("{path}:{length}: longer than {LONGEST} lines; split it"));
    }
    if !text.starts_with("//!") {
        violations.push(format!("{path}:1: must open with `//!` and what the module is for"));
    }
    violations
}

fn missing_declarations(path: &str, text: &str) -> Vec<String> {
    let wanted = DECLARATIONS.iter().filter(|(file, _)| *file == path).flat_map(|(_, wanted)| *wanted);
    let missing = wanted.filter(|wanted| !text.lines().any(|line| line.trim() == **wanted));
    missing.map(|wanted| format!("{path}:1: must declare `{wanted}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tidy_file_has_no_violation() {
        assert!(check_file("a/src/b.rs", "//! What it is for.\n\nfn f() {}\n").is_empty());
    }

    #[test]
    fn a_file_may_have_600_lines_and_not_one_more() {
        let mut text = "//! Long.\n".repeat(LONGEST);
        assert!(check_file("a.rs", &text).is_empty());
        text.push_str("//\n");
        assert_eq!(check_file("a.rs", &text), ["a.rs:601: longer than 600 lines; split it"]);
        assert!(check_file("a.md", &text).is_empty(), "only Rust files have a limit");
    }

    #[test]
    fn a_rust_file_must_open_with_what_it_is_for() {
        for text in ["", "use std::fmt;\n", "// plain comment\n", "\n//! too late\n"] {
            assert_eq!(check_file("a.rs", text).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn places_of_one_machine_are_found_with_their_line_in_any_kind_of_file() {
        let text = format!("first\nsee {}x and http://{}/\n", FORBIDDEN[0], FORBIDDEN[3]);
        let found = check_file("docs/a.md", &text);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|violation| violation.starts_with("docs/a.md:2: ")), "{found:?}");
    }

    #[test]
    fn a_core_crate_root_must_keep_std_and_unsafe_code_out() {
        assert_eq!(check_file("spec/src/lib.rs", "//! Layouts.\n#![no_std]\n").len(), 1);
        assert_eq!(check_file("machine/src/lib.rs", "//! Machine.\n").len(), 1);
        assert!(check_file("holdover/src/main.rs", "//! Command.\n").is_empty());
    }

    #[test]
    fn lesson_05_an_operation_of_the_core_that_does_nothing_is_found() {
        let text = "//! Operations.\n/// fn shown() {}\nfn freeze(&self) {}\nfn thaw(&self) {\n}\n";
        let found = check_file("liveupdate/src/a.rs", text);
        assert_eq!(found, ["liveupdate/src/a.rs:3: an operation that does nothing: leave it out (lesson 5)"]);
        assert!(check_file("scenario/src/a.rs", text).is_empty(), "a fake may be deaf");
    }

    #[test]
    fn generated_directories_and_binary_files_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["target", "kernel/target", "src"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
            std::fs::write(root.path().join(directory).join("a.rs"), "no opening line\n").unwrap();
        }
        std::fs::write(root.path().join("picture.png"), [0x89, 0x50, 0xff]).unwrap();
        assert_eq!(check_tree(root.path()).unwrap().len(), 1);
    }
}
