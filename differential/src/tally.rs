//! Counts of what was compared.

use spec::fault::Reason;
use std::collections::BTreeMap;
use std::fmt;

/// What came of the requests of one mode.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that both got.
    pub requests: u64,
    /// Those that reached memory.
    pub translated: u64,
    /// Those for the interrupt range.
    pub interrupts: u64,
    /// Those that were refused, by reason, and recorded.
    pub faulted: BTreeMap<u8, u64>,
    /// Those that were refused and, by FPD, not recorded.
    pub quiet: u64,
    /// Those that were answered out of a cache while memory said something else.
    pub stale: u64,
    /// Those that a known difference explains, by its name.
    pub known: BTreeMap<&'static str, u64>,
    /// Descriptions of those that nothing explains.
    pub disagreements: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faulted: u64 = self.faulted.values().sum();
        writeln!(
            f,
            "{} requests: {} translated ({} out of stale caches), {faulted} faulted, {} refused silently, {} interrupt \
             messages; {} disagreements",
            self.requests,
            self.translated,
            self.stale,
            self.quiet,
            self.interrupts,
            self.disagreements.len()
        )?;
        for (&code, count) in &self.faulted {
            writeln!(f, "  {code:#04x} {:<42} {count:>6}", Reason(code).words().unwrap_or("?"))?;
        }
        for (name, count) in &self.known {
            writeln!(f, "  known: {name}: {count}")?;
        }
        Ok(())
    }
}
