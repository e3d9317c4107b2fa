//! QEMU as a child process: its serial line read line by line, its messages kept, and an end to it in every case.
//!
//! The child is ended when this process ends, for whatever reason (a parent-death signal), and when its [`Child`] is
//! dropped. Two threads read its standard output, which is the serial line, and its standard error; so neither pipe fills.

use crate::record::LINE_BYTES_MAX;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that may wait for their reader; beyond that the serial line waits.
const LINES_WAITING_MAX: usize = 10_000;
/// Most bytes of messages that are kept.
const MESSAGES_BYTES_MAX: u64 = 256 << 10;

/// A running QEMU.
pub(super) struct Child {
    process: process::Child,
    lines: Receiver<String>,
    messages: Option<JoinHandle<String>>,
}

/// What came over the serial line.
pub(super) enum Line {
    /// One line.
    Text(String),
    /// Nothing within the time.
    Nothing,
    /// The line was closed.
    End,
}

impl Child {
    /// Starts QEMU. Must be called on a thread that lives as long as the run: its end would end QEMU.
    pub(super) fn start(program: &Path, arguments: &[OsString]) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_parent(&mut command);
        let mut process = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let (Some(out), Some(err)) = (process.stdout.take(), process.stderr.take()) else {
            bail!("QEMU has no output");
        };
        let (sender, lines) = sync_channel(LINES_WAITING_MAX);
        std::thread::spawn(move || forward(out, &sender));
        let messages = Some(std::thread::spawn(move || first_bytes(err)));
        Ok(Self { process, lines, messages })
    }

    /// The next line, waiting no longer than `patience`.
    pub(super) fn line(&self, patience: Duration) -> Line {
        match self.lines.recv_timeout(patience) {
            Ok(text) => Line::Text(text),
            Err(RecvTimeoutError::Timeout) => Line::Nothing,
            Err(RecvTimeoutError::Disconnected) => Line::End,
        }
    }

    /// Whether QEMU has not ended yet.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for QEMU to end by itself, then kills it. Gives the status with which it ended by itself.
    pub(super) fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(status);
            }
            if start.elapsed() >= patience {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        None
    }

    /// What QEMU wrote to its standard error. Only after its end.
    pub(super) fn messages(&mut self) -> String {
        self.kill();
        self.messages.take().and_then(|t| t.join().ok()).unwrap_or_default()
    }

    fn kill(&mut self) {
        // Both fail only when the process has ended and was waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the child killed when the thread that starts it ends.
#[expect(unsafe_code, reason = "the only way to have the kernel end a child with its parent")]
fn end_with_parent(command: &mut Command) {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // A parent that ended before the line above took effect has been replaced by another.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}

/// Sends lines on, each of a bounded length.
fn forward(from: impl Read, to: &SyncSender<String>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if to.send(String::from_utf8_lossy(&line).into_owned()).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Keeps the beginning of what is read, and reads the rest.
fn first_bytes(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    // A pipe that cannot be read any more has no more to say.
    let _ = from.by_ref().take(MESSAGES_BYTES_MAX).read_to_end(&mut kept);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Child::start(Path::new("/bin/sh"), &["-c".into(), script.into()]).unwrap()
    }

    #[test]
    fn lines_arrive_in_order_and_the_status_and_messages_after_them() {
        let mut child = shell("echo one; echo two; echo oops >&2; exit 33");
        let mut lines = Vec::new();
        loop {
            match child.line(Duration::from_secs(10)) {
                Line::Text(line) => lines.push(line),
                Line::Nothing => panic!("nothing for ten seconds"),
                Line::End => break,
            }
        }
        assert_eq!(lines, ["one\n", "two\n"]);
        assert_eq!(child.end(Duration::from_secs(10)).and_then(|s| s.code()), Some(33));
        assert_eq!(child.messages(), "oops\n");
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let mut child = shell("exec sleep 1000");
        assert!(child.is_running());
        assert_eq!(child.end(Duration::from_millis(20)), None);
        assert!(!child.is_running());
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let child = shell("exec sleep 1000");
        let id = child.process.id();
        drop(child);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let id = std::thread::spawn(|| {
            let child = shell("exec sleep 1000");
            let id = child.process.id();
            std::mem::forget(child);
            id
        })
        .join()
        .unwrap();
        let start = Instant::now();
        // Nobody waits for it, so it stays as a zombie.
        let state = || std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        while !state().contains(") Z ") {
            assert!(start.elapsed() < Duration::from_secs(10), "{}", state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
