//! QEMU as a child process that speaks the qtest protocol over its standard input and output: one command a line, one
//! answer a line.

use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

/// The first number of QEMU's version.
///
/// # Errors
/// When the program cannot be run or does not say it.
pub fn major_version(program: &Path) -> Result<u32> {
    let output = Command::new(program).arg("--version").output()?;
    let banner = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = banner.split_whitespace().find_map(|word| word.split_once('.')?.0.parse().ok());
    number.with_context(|| format!("{} does not say its version: {banner:?}", program.display()))
}

/// What QEMU says of the properties of its remapping unit.
///
/// # Errors
/// When the program cannot be run.
pub fn unit_help(program: &Path) -> Result<String> {
    let help = ["-machine", "none", "-device", "intel-iommu,help"];
    let output = Command::new(program).args(help).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Commands that are sent together.
#[derive(Debug, Default)]
pub struct Commands {
    text: String,
    count: usize,
}

impl Commands {
    /// Reads 4 or 8 bytes of an address space where devices answer.
    pub fn read(&mut self, address: u64, bytes: u64) -> &mut Self {
        self.line(format_args!("read{} {address:#x}", suffix(bytes)))
    }
    /// Writes 4 or 8 bytes.
    pub fn write(&mut self, address: u64, bytes: u64, value: u64) -> &mut Self {
        self.line(format_args!("write{} {address:#x} {value:#x}", suffix(bytes)))
    }
    /// Writes 4 bytes to a port.
    pub fn out(&mut self, port: u16, value: u32) -> &mut Self {
        self.line(format_args!("outl {port:#x} {value:#x}"))
    }
    fn line(&mut self, line: std::fmt::Arguments<'_>) -> &mut Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
        self.count += 1;
        self
    }
}

fn suffix(bytes: u64) -> char {
    if bytes == 8 { 'q' } else { 'l' }
}

/// A running QEMU.
pub struct Client {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    messages: ChildStderr,
}

impl Client {
    /// Starts QEMU with `arguments`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(program: &Path, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .args(["-qtest", "stdio", "-qtest-log", "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(to), Some(from), Some(messages)) => {
                Ok(Self { child, to, from: BufReader::new(from), messages })
            }
            _ => bail!("QEMU has no input or output"),
        }
    }

    /// Sends commands; gives the value of each answer, 0 where it has none.
    ///
    /// # Errors
    /// When QEMU ended or answered with an error; what it said on its standard error is part of the message.
    pub fn exchange(&mut self, commands: &Commands) -> Result<Vec<u64>> {
        let outcome = self.attempt(commands);
        outcome.map_err(|error| {
            let _ = self.child.kill();
            let mut said = String::new();
            let _ = (&mut self.messages).take(16 << 10).read_to_string(&mut said);
            error.context(format!("QEMU said: {said}"))
        })
    }

    fn attempt(&mut self, commands: &Commands) -> Result<Vec<u64>> {
        self.to.write_all(commands.text.as_bytes())?;
        self.to.flush()?;
        let mut values = Vec::with_capacity(commands.count);
        let mut line = String::new();
        while values.len() < commands.count {
            line.clear();
            ensure!(self.from.read_line(&mut line)? > 0, "QEMU ended");
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                // Interrupt lines are reported as they change.
                (Some("IRQ"), _) => {}
                (Some("OK"), None) => values.push(0),
                (Some("OK"), Some(value)) => values.push(number(value)?),
                _ => bail!("QEMU answered {line:?}"),
            }
        }
        Ok(values)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only when the process has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).with_context(|| format!("{text:?} is no number"))
}
