//! Images of Linux 7.3.4 in many modes, each with what that kernel itself wrote about its tables, and two of a jump.
//!
//! `image.pages.zst` carries the unit's registers along; `linux-debugfs.txt.zst` holds the kernel's files, each after a line
//! `## PATH`. What was looked at is the command's own output, as a person gets it.

mod common;

use clap::Parser;
use common::{folder, text};
use holdover_inspect::cli::{self, Command, Status};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Every image, and how many leaves the kernel printed of it (shared page tables once for each device).
const IMAGES: [(&str, usize); 20] = [
    ("bridges-legacy", 1331),
    ("bridges-scalable", 1331),
    ("caching-mode-scalable", 260),
    ("caching-mode-strict", 415),
    ("extended-interrupts", 475),
    ("first-stage", 415),
    ("first-stage-large-pages", 1460),
    ("identity-by-group", 133),
    ("legacy-39-bits", 415),
    ("legacy-39-bits-large-pages", 5043),
    ("legacy-large-pages", 5837),
    ("legacy-on-scalable-hardware", 415),
    ("more-than-4-gib", 415),
    ("no-dma-translation", 0),
    ("no-interrupt-remapping", 415),
    ("pass-through-legacy", 0),
    ("pass-through-scalable", 0),
    ("qemu-7.2-scalable", 415),
    ("second-stage-large-pages", 1463),
    ("unbound-and-removed", 133),
];

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn run(image: &str, before: &str, after: &str) -> (Status, String) {
    let path = folder("linux").join(image).join("image.pages.zst").display().to_string();
    let words = ["holdover", before, &path].into_iter().chain(after.split_whitespace());
    let line = Line::try_parse_from(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = cli::run(&line.command, &mut out, &mut err);
    assert!(err.is_empty(), "{image}: {}", String::from_utf8_lossy(&err));
    (status, String::from_utf8(out).unwrap())
}

fn json(image: &str, command: &str, after: &str) -> (Status, Value) {
    let (status, out) = run(image, command, &format!("{after} --json"));
    (status, serde_json::from_str(&out).unwrap())
}

/// The files of a text: content by name. Names are the lines `## NAME`.
fn files(text: &str) -> BTreeMap<&str, String> {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        match line.strip_prefix("## ") {
            Some(next) => {
                name = next;
                files.entry(name).or_default();
            }
            None => *files.entry(name).or_default() += &format!("{line}\n"),
        }
    }
    files
}

/// The device of a file about one, without its segment.
fn device(name: &str) -> Option<&str> {
    name.strip_prefix("/sys/kernel/debug/iommu/intel/0000:")?.strip_suffix("/domain_translation_struct")
}

#[test]
fn every_file_of_every_mode_is_what_the_kernel_wrote() {
    for (image, leaves) in IMAGES {
        let kernel = text(&folder("linux").join(image), "linux-debugfs.txt");
        let (status, ours) = run(image, "inspect", "--format debugfs");
        assert_eq!(status, Status::Good, "{image}");
        let (theirs, ours) = (files(&kernel), files(&ours));
        for (name, content) in &theirs {
            let Some(source) = device(name) else {
                assert_eq!(ours.get(name), Some(content), "{image}: {name}");
                continue;
            };
            // The kernel keeps a file for each device it knows, those without any entry too.
            let one = format!("--format debugfs --file domain_translation_struct -s {source}");
            assert_eq!(&run(image, "inspect", &one).1, content, "{image}: {name}");
            assert_eq!(ours.get(name).map_or("", String::as_str), content, "{image}: {name}");
        }
        // Nothing has a table of ours that has none of theirs, but for the alias of a bridge.
        let extra: Vec<&str> = ours.keys().filter(|name| !theirs.contains_key(*name)).copied().collect();
        let alias = ["/sys/kernel/debug/iommu/intel/0000:03:00.0/domain_translation_struct"];
        assert_eq!(extra, if image == "bridges-legacy" { &alias[..] } else { &[] }, "{image}");
        let printed = kernel.lines().filter(|line| line.contains(" |\t")).count();
        assert_eq!(printed, leaves, "{image}");
    }
}

#[test]
fn a_real_kernel_gives_no_cause_for_complaint() {
    for (image, leaves) in IMAGES {
        let (status, value) = json(image, "inspect", "");
        assert_eq!((status, value["problems"].as_array().map(Vec::len)), (Status::Good, Some(0)), "{image}");
        let (_, page) = run(image, "inspect", "--format html");
        assert!(page.ends_with("</html>"), "{image}");
        let (_, all) = run(image, "inspect", "-v");
        assert!(!all.contains("PROBLEM"), "{image}: {all}");
        let (status, verdict) = json(image, "verify", "");
        assert_eq!(status, Status::Bad, "{image}: nothing is preserved");
        for line in verdict["invariants"].as_array().unwrap() {
            let violations = line["violations"].as_u64().unwrap_or(0);
            let fine = match line["invariant"].as_str().unwrap() {
                "I5" | "I10" => true,
                "I8" => image != "no-dma-translation",
                _ => continue,
            };
            assert_eq!(violations == 0, fine, "{image}: {line}");
        }
        assert_eq!(verdict["holds"], false, "{image}, {leaves} leaves");
    }
}

#[test]
fn translations_end_where_the_kernels_own_leaves_lead() {
    let mut sizes = BTreeSet::new();
    for (image, _) in IMAGES {
        let kernel = text(&folder("linux").join(image), "linux-debugfs.txt");
        for (name, content) in files(&kernel) {
            let Some(source) = device(name) else { continue };
            let lines: Vec<&str> = content.lines().filter(|line| line.contains(" |\t")).collect();
            let of = |columns| lines.iter().filter(move |line| line.split('\t').count() == columns);
            let ends = lines.first().into_iter().chain(lines.last());
            for line in ends.chain(of(5).take(2)).chain(of(4).take(2)) {
                let words: Vec<u64> = line
                    .split(['\t', ' ', '|'])
                    .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
                    .collect();
                // The frame, then PML5E, PML4E, PDPE and what is below; the last is the leaf.
                let bytes = 4096_u64 << (9 * (6 - words.len()));
                sizes.insert(bytes);
                let (iova, leaf) = ((words[0] << 12) + 0x123, words[words.len() - 1]);
                let target = (leaf & 0xf_ffff_ffff_f000 & !(bytes - 1)) + 0x123;
                let asked = format!("{source} {iova:#x}");
                let (status, value) = json(image, "translate", &asked);
                let found = value["outcome"]["target"].as_str().unwrap_or_default();
                assert_eq!(
                    (status, found),
                    (Status::Good, format!("{target:#x}").as_str()),
                    "{image}: {asked}"
                );
                let (_, reached) = json(image, "reach", &format!("{target:#x}"));
                assert!(reached.to_string().contains(source), "{image}: {asked} reaches {target:#x}");
            }
        }
    }
    assert_eq!(sizes, BTreeSet::from([1 << 12, 1 << 21, 1 << 30]));
}

#[test]
fn a_handover_of_many_sessions_is_read_as_it_was_made() {
    let (status, value) = json("handover-many-sessions", "inspect", "");
    assert_eq!(status, Status::Good);
    let [kho] = value["handovers"].as_array().unwrap().as_slice() else { panic!("{value}") };
    let sessions = kho["luo"]["sessions"].as_array().unwrap();
    let mut made = vec![("first".to_owned(), vec![4096, 64, 0])];
    made.push(("second".into(), [vec![16], vec![8; 20], vec![12288]].concat()));
    made.extend((0..40).map(|number| (format!("many-{number}"), vec![8])));
    made.push(("empty".into(), Vec::new()));
    let mut token = 0x1000;
    let mut positions = BTreeSet::new();
    for (session, (name, files)) in sessions.iter().zip(&made) {
        assert_eq!(session["name"], name.as_str());
        let found = session["files"].as_array().unwrap();
        assert_eq!(found.len(), files.len(), "{name}");
        for (file, kib) in found.iter().zip(files) {
            let own = if name.starts_with("many") { token } else { token * 7 };
            assert_eq!(file["token"], format!("{own:#x}"), "{name}");
            let memfd = &file["memfd"];
            assert_eq!(memfd["bytes"], kib * 1024_u64);
            assert_eq!(memfd["folios"], kib / 4);
            assert_eq!(memfd["not_preserved"], 0);
            positions.insert(memfd["position"].as_u64().unwrap());
            token += 1;
        }
    }
    assert_eq!((sessions.len(), positions), (43, BTreeSet::from([0, 1234])));
    let (status, value) = json("handover-without-sessions", "inspect", "");
    let kho = &value["handovers"][0];
    assert_eq!((status, &kho["preserved_frames"]), (Status::Good, &Value::from(4)));
    assert_eq!(kho["luo"]["sessions"].as_array().map(Vec::len), Some(0));
}
