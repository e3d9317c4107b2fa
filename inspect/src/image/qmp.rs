//! The memory of a running QEMU, asked for through its monitor socket (QMP).
//!
//! Pages are fetched as they are read (`pmemsave` into a file that both sides reach) and kept, so that one look sees each
//! page once. Which addresses are memory is what QEMU's own map says (`info mtree`); the rest is missing. The machine is
//! stopped while somebody looks, unless it stood still already, and goes on afterwards.

use super::open::OpenError;
use super::store::{Asked, CHUNK, Live, Store, by_chunks};
use super::{Form, Memory, Run};
use crate::registers::{self, Registers};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long QEMU may take for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that an answer may have.
const ANSWER: u64 = 64 << 20;
/// Lines that may come before an answer: events.
const EVENTS: usize = 10_000;
/// Chunks kept at most; then all are dropped.
const KEPT: usize = 16384;

/// A connection to a monitor.
#[derive(Debug)]
struct Monitor {
    stream: BufReader<UnixStream>,
    /// The machine was running before, and shall run again.
    resume: bool,
    kept: HashMap<u64, Box<[u8]>>,
    file: PathBuf,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

impl Monitor {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let name = format!("holdover-qmp-{}-{:p}", std::process::id(), &raw const stream);
        let mut monitor = Self {
            stream: BufReader::new(stream),
            resume: false,
            kept: HashMap::new(),
            file: std::env::temp_dir().join(name),
        };
        if monitor.line()?.get("QMP").is_none() {
            return Err(wrong("the socket is no QEMU monitor"));
        }
        monitor.ask("qmp_capabilities", &json!({}))?;
        if monitor.ask("query-status", &json!({}))?["running"] == true {
            monitor.ask("stop", &json!({}))?;
            monitor.resume = true;
        }
        Ok(monitor)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        io::Read::take(&mut self.stream, ANSWER).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(wrong("QEMU closed the connection, or said too much"));
        }
        serde_json::from_slice(&line).map_err(|error| wrong(format!("QEMU said no JSON: {error}")))
    }

    /// Asks, and passes over events until the answer comes.
    fn ask(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        let mut question = json!({ "execute": command, "arguments": arguments }).to_string();
        question.push('\n');
        self.stream.get_mut().write_all(question.as_bytes())?;
        for _ in 0..EVENTS {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(wrong(format!("QEMU refused {command}: {}", error["desc"])));
            }
        }
        Err(wrong(format!("QEMU did not answer {command}")))
    }

    /// What the monitor for people says.
    fn say(&mut self, line: &str) -> io::Result<String> {
        let answer = self.ask("human-monitor-command", &json!({ "command-line": line }))?;
        answer.as_str().map(str::to_owned).ok_or_else(|| wrong("QEMU's answer is no text"))
    }

    fn chunk(&mut self, address: u64) -> io::Result<&[u8]> {
        if !self.kept.contains_key(&address) {
            let file = self.file.display().to_string();
            let result = self.ask("pmemsave", &json!({ "val": address, "size": CHUNK, "filename": file }));
            let bytes = result.and_then(|_| std::fs::read(&self.file));
            // Whether it could be removed changes nothing about what was read.
            let _ = std::fs::remove_file(&self.file);
            if self.kept.len() >= KEPT {
                self.kept.clear();
            }
            self.kept.insert(address, bytes?.into_boxed_slice());
        }
        Ok(self.kept.get(&address).map_or(&[][..], |bytes| bytes))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if self.resume {
            let _ = self.ask("cont", &json!({}));
        }
    }
}

impl Live for Monitor {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> bool {
        by_chunks(offset, out, |number, within, out| {
            let chunk = self.chunk(number * CHUNK).ok();
            let part = chunk.and_then(|chunk| chunk.get(within..within + out.len()));
            part.is_some_and(|part| {
                out.copy_from_slice(part);
                true
            })
        })
    }
}

/// The memory of the machine behind `socket`, and the registers of its units at `bases`.
///
/// # Errors
/// When the monitor cannot be reached or does not answer as one.
pub fn open_qmp(socket: &Path, bases: &[u64]) -> Result<(Memory, Vec<Registers>), OpenError> {
    let mut monitor = Monitor::connect(socket).map_err(OpenError::Qmp)?;
    let map = monitor.say("info mtree -f").map_err(OpenError::Qmp)?;
    let runs = memory_of(&map);
    if runs.is_empty() {
        return Err(OpenError::Qmp(wrong("QEMU's map shows no memory")));
    }
    let mut units = Vec::new();
    for (number, base) in bases.iter().enumerate() {
        let lines = monitor.say(&format!("xp /140wx {base:#x}")).map_err(OpenError::Qmp)?;
        let found = registers::parse(lines.as_bytes(), *base);
        let found = found.map_err(|error| OpenError::Qmp(wrong(error.to_string())))?;
        // Without a unit QEMU reads ones or zeroes there: no version is either.
        let real =
            |unit: &Registers| unit.version().is_some_and(|version| !matches!(version.raw(), 0 | u32::MAX));
        units.extend(found.into_iter().filter(real).map(|mut unit| {
            unit.name = format!("dmar{number}");
            unit
        }));
    }
    let store = Store::Live(Asked(std::cell::RefCell::new(Box::new(monitor))));
    Ok((Memory::new(store, runs, Form::Live, Vec::new()), units))
}

/// The memory in the flat map of `info mtree -f`, first view that has some: lines `START-END (prio 0, ram): NAME`.
fn memory_of(map: &str) -> Vec<Run> {
    let mut runs = Vec::new();
    for line in map.lines() {
        if line.starts_with("FlatView") && !runs.is_empty() {
            break;
        }
        let Some((range, rest)) = line.trim_start().split_once(' ') else { continue };
        let is_memory = rest.contains(", ram)") && !rest.contains("vga") && !rest.contains("rom");
        let Some((start, end)) = range.split_once('-').filter(|_| is_memory) else { continue };
        let number = |text| u64::from_str_radix(text, 16).ok();
        if let (Some(start), Some(end)) = (number(start), number(end))
            && let Some(bytes) = end.checked_sub(start).and_then(|bytes| bytes.checked_add(1))
        {
            runs.push(Run { start, bytes, offset: start });
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_everything_else_on_the_map() {
        let map = "FlatView #0\n AS \"I/O\", root: io\n Root memory region: io\n  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\n\n\
                   FlatView #1\n AS \"memory\", root: system\n\
                   \x20 0000000000000000-000000000009ffff (prio 0, ram): pc.ram\n\
                   \x20 00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\n\
                   \x20 00000000000c0000-00000000000fffff (prio 1, rom): pc.ram @00000000000c0000\n\
                   \x20 0000000000100000-0000000007ffffff (prio 0, ram): pc.ram @0000000000100000\n\n\
                   FlatView #2\n  0000000000000000-000000000009ffff (prio 0, ram): pc.ram\n";
        let runs: Vec<(u64, u64)> = memory_of(map).iter().map(|run| (run.start, run.bytes)).collect();
        assert_eq!(runs, [(0, 0xa_0000), (0x10_0000, 0x7f0_0000)]);
    }
}
