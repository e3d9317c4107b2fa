//! The `debugfs` format against the text of the kernels themselves.

mod common;

use common::{folders, model_of, text};
use holdover_inspect::format::debugfs;
use std::collections::BTreeMap;

/// The files of a text: content by name. Names are the lines `## NAME`.
fn files(text: &str) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        match line.strip_prefix("## ") {
            Some(next) => name = next.to_owned(),
            None => *files.entry(name.clone()).or_default() += &format!("{line}\n"),
        }
    }
    files
}

#[test]
fn every_file_that_the_kernel_printed_is_reproduced_without_a_difference() {
    for image in ["min-legacy", "min-sm-sl"] {
        for folder in folders(image) {
            let (memory, model) = model_of(&folder, "reach.pages.zst");
            let mut ours = Vec::new();
            debugfs::all(&mut ours, &memory, &model).unwrap();
            let ours = files(&String::from_utf8(ours).unwrap());
            let mut theirs = files(&text(&folder, "linux-debugfs.txt"));
            // Not of tables: timing, and the list of the folder.
            theirs.remove("dmar_perf_latency");
            theirs.remove("debugfs ls");
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{image}");
            assert_eq!(theirs.len(), 4 + 7, "{image}");
            for (name, content) in &theirs {
                for (number, (a, b)) in ours[name].lines().zip(content.lines()).enumerate() {
                    assert_eq!(a, b, "{image}: {name}, line {}", number + 1);
                }
                assert_eq!(&ours[name], content, "{image}: {name}");
            }
        }
    }
}
