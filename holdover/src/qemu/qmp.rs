//! QEMU's control protocol, as little of it as is needed: one JSON object a line, each command answered in turn, events
//! in between.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take. A dump of memory is the slowest.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most lines that may come before an answer.
const LINES_MAX: usize = 1000;

/// A connection to a running QEMU. There can be one at a time.
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation behind.
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).context("QEMU does not listen on its control socket")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        let greeting = qmp.receive()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub(super) fn command(&mut self, name: &str, arguments: Value) -> anyhow::Result<Value> {
        let line = format!("{}\n", json!({"execute": name, "arguments": arguments}));
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot ask QEMU for {name}"))?;
        for _ in 0..LINES_MAX {
            let mut answer = self.receive().with_context(|| format!("no answer to {name}"))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {name}: {}", error["desc"].as_str().unwrap_or("without a reason"));
            }
        }
        bail!("QEMU does not answer {name}")
    }

    /// A command of the human monitor, and its answer.
    pub(super) fn human(&mut self, line: &str) -> anyhow::Result<String> {
        let answer = self.command("human-monitor-command", json!({"command-line": line}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Asks QEMU to end.
    pub(super) fn quit(&mut self) -> anyhow::Result<()> {
        self.command("quit", json!({})).map(drop)
    }

    fn receive(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
