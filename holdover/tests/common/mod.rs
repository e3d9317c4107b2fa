//! Runs the command as a user would, and reads its result.

#![allow(dead_code)]

pub(crate) mod archive;

use holdover::report::{Kind, Outcome, Report};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::process::{Command, Output};

/// The streaming device, where a scenario has one.
pub(crate) const STREAMER: &str = "0000:00:0a.0";

/// What a run of the command gave.
pub(crate) struct Ran {
    /// Exit status.
    pub(crate) status: i32,
    /// Standard output, as it is.
    pub(crate) text: String,
    /// Standard error.
    pub(crate) errors: String,
    /// The result.
    pub(crate) report: Report,
}

/// The command, ready for arguments.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdover"));
    command.arg("update");
    command
}

/// Runs `holdover update --json` with these arguments.
pub(crate) fn update<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ran {
    let output = command().arg("--json").args(arguments).output().expect("the command runs");
    let Output { status, stdout, stderr } = output;
    let (text, errors) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr).into_owned());
    let report = serde_json::from_str(&text).unwrap_or_else(|e| panic!("no result ({e}):\n{text}\n{errors}"));
    Ran { status: status.code().unwrap_or(-1), text, errors, report }
}

impl Ran {
    /// The run was clean: what the issue asks of the demo.
    pub(crate) fn assert_clean(&self) {
        self.assert_clean_with(
            &["0000:00:02.0", "0000:00:03.0"],
            &[("0000:00:04.0", true), ("0000:01:00.0", false)],
        );
    }

    /// The run was clean, with these requesters preserved and these cut off, each with whether it is on a list.
    pub(crate) fn assert_clean_with(&self, kept: &[&str], cut: &[(&str, bool)]) {
        let Report { outcome, witness, faults, cut_off, audit, updates, .. } = &self.report;
        assert_eq!(self.report.findings, [], "{}", self.errors);
        assert_eq!((self.status, *outcome), (0, Outcome::Completed));
        assert_eq!(witness.discontinuities, 0);
        assert!(updates.iter().all(|u| u.samples_in_gap() > 0), "{updates:?}");
        assert_eq!((faults.preserved, faults.unattributed), (0, 0));
        let requesters: Vec<_> = cut_off.iter().map(|c| (c.requester.as_str(), c.listed)).collect();
        assert_eq!(requesters, cut);
        for c in cut_off {
            assert!(c.attempts_blocked >= 1 && c.attempts_let_through == 0 && c.memory_intact, "{c:?}");
            // A machine that is held up may get both faults at once; a unit with one record then says that it lost one.
            let told = faults.overflows > 0
                || self
                    .report
                    .evidence
                    .faults
                    .iter()
                    .any(|f| f.requester == c.requester && f.who == "cut_off");
            assert!(told, "no kernel reported the fault of {}", c.requester);
        }
        let preserved: Vec<_> = self.report.preserved.iter().map(|p| p.requester.as_str()).collect();
        assert_eq!(preserved, kept);
        let edus = kept[1..].iter().filter(|who| **who != STREAMER).count();
        assert_eq!(self.report.evidence.transfers.len(), edus * updates.len());
        assert!(self.report.translation_enabled_throughout);
        for audit in [&audit.before_jump, &audit.after_jump] {
            assert!(!audit.checked.is_empty() && audit.violations.is_empty(), "{audit:?}");
        }
        assert!(self.report.gap_ns > 0);
    }

    /// The run was clean, as one of this scenario is.
    pub(crate) fn assert_clean_as(&self, scenario: &str) {
        let (bus_1, edu_b) = (("0000:01:00.0", false), ("0000:00:04.0", true));
        let (audio, edu_a) = ("0000:00:02.0", "0000:00:03.0");
        match scenario {
            "segments" => self
                .assert_clean_with(&[audio, edu_a, "0001:00:03.0"], &[edu_b, ("0001:00:04.0", false), bus_1]),
            "bridge" => self
                .assert_clean_with(&[audio, edu_a, "0000:04:01.0"], &[edu_b, ("0000:00:06.0", true), bus_1]),
            "pasids" | "nested" | "five-level" => {
                self.assert_clean_with(&[audio, edu_a, STREAMER], &[edu_b, bus_1]);
            }
            "phantom" => {
                self.assert_clean_with(&[audio, "0000:00:08.0", edu_a], &[("0000:00:09.0", true), edu_b]);
            }
            "platform" => self.assert_clean_with(
                &[audio, edu_a],
                &[("0000:f0:1e.1", false), ("0000:f0:1f.0", false), ("0000:f0:1f.7", false), edu_b],
            ),
            "one-fault-record" => self.assert_clean_with(
                &[audio, edu_a],
                &[edu_b, ("0000:00:08.0", true), ("0000:00:09.0", true), ("0000:00:0a.0", true), bus_1],
            ),
            // Who comes late is told last.
            "comings-and-goings" => self.assert_clean_with(&[audio, edu_a], &[bus_1, edu_b]),
            _ => self.assert_clean(),
        }
    }

    /// The freeze was refused because the successor is for legacy mode alone: nothing else is wrong, and the devices go on.
    pub(crate) fn assert_refused_for_its_mode(&self) {
        self.assert_found(&[Kind::Refused], &[]);
        assert_eq!(self.report.outcome, Outcome::Refused);
        let words = &self.report.findings[0].words;
        assert!(words.contains("freeze") && words.contains("cannot adopt unit"), "{words}");
        assert!(self.report.translation_enabled_throughout);
        assert_eq!(self.report.witness.discontinuities, 0, "the devices went on");
        assert!(self.report.updates.is_empty(), "{:?}", self.report.updates);
        assert!(self.report.cut_off.iter().all(|c| c.attempts_blocked == 0), "{:?}", self.report.cut_off);
        assert!(self.report.faults.cut_off == 0 && self.report.faults.preserved == 0);
    }

    /// The run found something: all of `required`, and nothing but that and `allowed`.
    pub(crate) fn assert_found(&self, required: &[Kind], allowed: &[Kind]) {
        assert_eq!(self.status, 1, "{}", self.errors);
        let kinds: BTreeSet<Kind> = self.report.findings.iter().map(|f| f.kind).collect();
        for kind in required {
            assert!(kinds.contains(kind), "{kind:?} is missing: {:#?}", self.report.findings);
        }
        for kind in &kinds {
            let expected = required.contains(kind) || allowed.contains(kind);
            assert!(expected, "{kind:?} is no part of this mistake: {:#?}", self.report.findings);
        }
    }
}
