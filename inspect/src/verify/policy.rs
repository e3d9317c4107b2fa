//! What the judge is told: who is meant to go on, and where they may reach.

use crate::translate::parse_source;
use serde::Deserialize;
use spec::SourceId;
use std::fmt;

/// A policy: JSON with these fields, each of which may be missing.
///
/// ```json
/// {
///   "preserved_requesters": ["00:02.0"],
///   "scratch": [{ "start": "0x8000000", "bytes": "0xa000000" }],
///   "targets": [{ "start": "0xfeb00000", "bytes": "0x1000" }]
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Requesters that are meant to go on through the jump.
    pub preserved: Vec<SourceId>,
    /// Memory that the next kernel boots in: first and last address.
    pub scratch: Vec<(u64, u64)>,
    /// Ranges that may be targets of DMA although they are not preserved, such as BARs: first and last address.
    pub targets: Vec<(u64, u64)>,
}

/// Why a policy is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError(String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl std::error::Error for PolicyError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    preserved_requesters: Vec<String>,
    #[serde(default)]
    scratch: Vec<WrittenRange>,
    #[serde(default)]
    targets: Vec<WrittenRange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRange {
    start: String,
    bytes: String,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// In words: where it is no JSON, which field is unknown, which address is none.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        // An object: a list would be taken for the fields in their order, and an empty one for no field at all.
        let object: serde_json::Map<_, _> =
            serde_json::from_slice(text).map_err(|error| PolicyError(error.to_string()))?;
        let written: Written = serde_json::from_value(serde_json::Value::Object(object))
            .map_err(|error| PolicyError(error.to_string()))?;
        let preserved: Result<_, _> =
            written.preserved_requesters.iter().map(|text| parse_source(text)).collect();
        Ok(Self {
            preserved: preserved.map_err(PolicyError)?,
            scratch: ranges(&written.scratch)?,
            targets: ranges(&written.targets)?,
        })
    }
}

fn ranges(written: &[WrittenRange]) -> Result<Vec<(u64, u64)>, PolicyError> {
    let number = |text: &str| {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        u64::from_str_radix(digits, 16).map_err(|_| PolicyError(format!("{text:?} is no number in hex")))
    };
    let range = |range: &WrittenRange| {
        let (start, bytes) = (number(&range.start)?, number(&range.bytes)?);
        let last = bytes.checked_sub(1).and_then(|more| start.checked_add(more));
        last.map(|last| (start, last))
            .ok_or_else(|| PolicyError(format!("no range: {bytes:#x} bytes at {start:#x}")))
    };
    written.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_whole_or_not_at_all() {
        let text = br#"{ "preserved_requesters": ["00:02.0"], "targets": [{ "start": "0xfeb00000", "bytes": "0x1000" }] }"#;
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy.preserved, [SourceId::new(0, 2, 0)]);
        assert_eq!(policy.targets, [(0xfeb0_0000, 0xfeb0_0fff)]);
        for bad in [
            &b"{"[..],
            b"[]",
            br#"{ "scratches": [] }"#,
            br#"{ "scratch": [{ "start": "0", "bytes": "0" }] }"#,
        ] {
            assert!(Policy::parse(bad).is_err());
        }
    }
}
