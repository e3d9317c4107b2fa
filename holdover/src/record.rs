//! What one run left behind, whatever machine it ran on: the kernels' events, the sound, the machine's own account.
//!
//! Both machines fill a [`Record`]; [`crate::judge`] makes a result of it. The serial line carries two things: lines that
//! begin with `@` hold one event each, all others are for people and go to the log.

use crate::sound::Frame;
use crate::trace::Account;
use anyhow::Context;
use scenario::event::Event;
use std::fs;
use std::path::Path;

/// Most bytes of log that are kept. The end matters most, so the beginning goes first.
const LOG_BYTES_MAX: usize = 4 << 20;
/// Most events that are kept.
const EVENTS_MAX: usize = 100_000;
/// Longest line that is taken as one.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Everything that is known of a run.
#[derive(Debug, Clone)]
pub struct Record {
    /// `"qemu"` or `"builtin"`.
    pub machine: String,
    /// Version of the machine, as it names itself.
    pub machine_version: String,
    /// What came over the serial line.
    pub serial: Serial,
    /// How the machine ended.
    pub ended: Ended,
    /// The recording, or why there is none.
    pub sound: Result<Vec<Frame>, String>,
    /// The trace, or why there is none.
    pub account: Result<Account, String>,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The kernel switched it off and says that all went well.
    Well,
    /// The kernel switched it off and says that something was refused or failed; its events say what.
    Badly,
    /// It took longer than allowed and was stopped.
    TimedOut {
        /// Seconds that were allowed.
        after: u64,
    },
    /// Its trace grew beyond the limit and it was stopped.
    TraceFull {
        /// The limit in bytes.
        limit: u64,
    },
    /// It ended in another way, in these words.
    Died(String),
}

/// What came over the serial line.
#[derive(Debug, Clone, Default)]
pub struct Serial {
    /// Events in the order of happening.
    pub events: Vec<Event>,
    /// Lines that should hold an event and do not, cut short; and events beyond the limit.
    pub unreadable: Vec<String>,
    /// All other lines.
    pub log: String,
}

impl Serial {
    /// Takes a line in, without its end. Gives the event that it holds.
    pub fn line(&mut self, line: &str) -> Option<&Event> {
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(json) = line.strip_prefix('@') else {
            self.log(line);
            return None;
        };
        match serde_json::from_str(json) {
            Ok(event) if self.events.len() < EVENTS_MAX => {
                self.events.push(event);
                self.events.last()
            }
            _ => {
                self.log(line);
                if self.unreadable.len() < 16 {
                    self.unreadable.push(line.chars().take(200).collect());
                }
                None
            }
        }
    }

    fn log(&mut self, line: &str) {
        self.log.push_str(line);
        self.log.push('\n');
        if self.log.len() > LOG_BYTES_MAX {
            let mut cut = self.log.len() - LOG_BYTES_MAX / 2;
            while !self.log.is_char_boundary(cut) {
                cut += 1;
            }
            self.log.drain(..cut);
        }
    }

    /// Writes the log and the events into a directory, which is made if need be.
    ///
    /// # Errors
    /// When that fails.
    pub fn keep(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        fs::write(directory.join("serial.log"), &self.log)?;
        let mut events = String::new();
        for event in &self.events {
            events.push_str(&serde_json::to_string(event)?);
            events.push('\n');
        }
        fs::write(directory.join("events.jsonl"), events)?;
        Ok(())
    }

    /// The last lines of the log.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_words_for_people_are_told_apart() {
        let mut serial = Serial::default();
        assert!(serial.line("hello\r").is_none());
        let event = serial.line(r#"@{"event":"done","kernel":"b","update":1,"at":7}"#).cloned();
        assert_eq!(event, Some(Event::Done { kernel: "b".into(), update: 1, at: 7 }));
        assert_eq!(serial.log, "hello\n");
        assert_eq!(serial.events.len(), 1);
    }

    #[test]
    fn a_torn_event_is_not_lost_without_a_word() {
        let mut serial = Serial::default();
        assert!(serial.line(r#"@{"event":"done","kernel":"b","#).is_none());
        assert!(serial.line(r#"@{"event":"unheard_of"}"#).is_none());
        assert_eq!(serial.unreadable.len(), 2);
        assert!(serial.log.contains("unheard_of"));
    }

    #[test]
    fn an_endless_log_keeps_its_end_and_a_bounded_size() {
        let mut serial = Serial::default();
        let line = "é".repeat(5000);
        for _ in 0..2000 {
            serial.line(&line);
        }
        serial.line("the end");
        assert!(serial.log.len() <= LOG_BYTES_MAX);
        assert_eq!(serial.tail(1), "the end");
    }

    #[test]
    fn a_region_names_its_memory_and_every_event_survives_the_line() {
        let event = Event::PreservedRegion { token: "tune".into(), start: u64::MAX, bytes: 1 };
        let mut serial = Serial::default();
        let line = format!("@{}", serde_json::to_string(&event).unwrap());
        assert_eq!(serial.line(&line), Some(&event));
    }
}
