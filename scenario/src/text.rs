//! How requesters and tokens are written in events and on command lines, and read back.
//!
//! A requester is `0000:00:02.0` (segment, bus, device, function; the segment may be left out). A token is 64 bits in
//! hexadecimal, always all sixteen digits: `0x00000000deadbeef`.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use spec::{Requester, Segment, SourceId};

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextError {
    /// Not a requester.
    NoRequester(String),
    /// Not a token.
    NoToken(String),
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRequester(text) => write!(f, "{text:?} is no requester: write it like 0000:00:02.0"),
            Self::NoToken(text) => write!(f, "{text:?} is no token: write it like 0x0123456789abcdef"),
        }
    }
}

impl core::error::Error for TextError {}

/// `requester` as text.
#[must_use]
pub fn requester(requester: Requester) -> String {
    requester.to_string()
}

/// The function at `source` on segment 0 as text.
#[must_use]
pub fn source(source: SourceId) -> String {
    requester(Requester::new(Segment(0), source))
}

/// `token` as text.
#[must_use]
pub fn token(token: u64) -> String {
    format!("{token:#018x}")
}

/// Reads what [`requester`] wrote, also without its segment, which is 0 then.
///
/// # Errors
/// [`TextError::NoRequester`].
pub fn parse_requester(text: &str) -> Result<Requester, TextError> {
    read_requester(text).ok_or_else(|| TextError::NoRequester(text.into()))
}

/// Reads what [`token`] wrote: one to sixteen hexadecimal digits, with or without `0x`.
///
/// # Errors
/// [`TextError::NoToken`], also for more than 64 bits: a token is never cut.
pub fn parse_token(text: &str) -> Result<u64, TextError> {
    hexadecimal(text.strip_prefix("0x").unwrap_or(text), 16).ok_or_else(|| TextError::NoToken(text.into()))
}

fn read_requester(text: &str) -> Option<Requester> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (segment, bus) = match rest.rsplit_once(':') {
        Some((segment, bus)) => (hexadecimal(segment, 4)?, bus),
        None => (0, rest),
    };
    let (bus, device, function) = (hexadecimal(bus, 2)?, hexadecimal(device, 2)?, hexadecimal(function, 1)?);
    if device > 0x1f || function > 7 {
        return None;
    }
    let source = SourceId::new(bus as u8, device as u8, function as u8);
    Some(Requester::new(Segment(segment as u16), source))
}

/// One to `most` hexadecimal digits and nothing else (no sign, which `from_str_radix` would take).
fn hexadecimal(text: &str, most: usize) -> Option<u64> {
    let fits = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if fits { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requester_reads_back_as_it_was_written() {
        for raw in [0, 0x0010, 0x0100, 0xff1f, 0xffff] {
            let written = Requester::new(Segment(raw ^ 0x1234), SourceId::from_raw(raw));
            assert_eq!(parse_requester(&requester(written)), Ok(written));
        }
        assert_eq!(source(SourceId::new(0, 2, 0)), "0000:00:02.0");
        assert_eq!(parse_requester("01:00.0"), Ok(Requester::new(Segment(0), SourceId::from_raw(0x100))));
    }

    #[test]
    fn what_names_no_requester_is_refused_and_not_folded_into_one() {
        for text in [
            "",
            ".",
            ":.",
            "00:02",
            "00:20.0",
            "00:02.8",
            "0:0:02.0.0",
            "00:+2.0",
            "100:00.0",
            "x:00:02.0",
            "00:02.0 ",
        ] {
            assert_eq!(parse_requester(text), Err(TextError::NoRequester(text.into())), "{text:?}");
        }
    }

    #[test]
    fn a_token_keeps_all_its_64_bits() {
        for value in [0, 1, u64::from(u32::MAX) + 1, u64::MAX, 0xdead_beef_0000_0001] {
            assert_eq!(token(value).len(), 18);
            assert_eq!(parse_token(&token(value)), Ok(value));
        }
    }

    #[test]
    fn a_token_of_more_than_64_bits_is_refused() {
        for text in ["", "0x", "0x10000000000000000", "-1", "0xg", "0x0x1"] {
            assert_eq!(parse_token(text), Err(TextError::NoToken(text.into())), "{text:?}");
        }
    }
}
