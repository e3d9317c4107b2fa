//! A unit's registers, as somebody wrote them down.
//!
//! Three forms are read ([`parse`]): the raw register window, the text of Linux's `iommu_regset`, and the lines of words of
//! 32 or 64 bits that QEMU's monitor prints (`xp`). What a form does not say stays unknown; nothing defaults to zero.
//! [`Registers::set`] puts single registers in by hand.

use spec::Segment;
use spec::regs::{
    Cap, Ecap, FaultRecord, Gsts, Iqa, Iqh, Iqt, Irta, REGISTERS, Register, RootAddr, Version, offset,
};
use std::collections::BTreeMap;
use std::fmt;

/// Where QEMU puts its unit: taken for a window that does not say where it was.
pub const USUAL_BASE: u64 = 0xfed9_0000;
/// Bytes of a raw window that are looked at.
pub const WINDOW_LIMIT: usize = 0x4000;

/// Bytes that it has at least: RTADDR is the last register in them.
const WINDOW_LEAST: usize = 0x28;

/// The registers of one unit, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// What the unit is called.
    pub name: String,
    /// Physical address of the register set.
    pub base: u64,
    /// Segment of its requesters: 0 unless a DMAR table says otherwise.
    pub segment: Segment,
    words: BTreeMap<u64, u32>,
}

/// Why text or bytes are no registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistersError {
    /// A raw window must hold whole words, RTADDR at least, and no more than [`WINDOW_LIMIT`].
    Window {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A raw window that does not begin with a version register (VT-d 11.4.1).
    Version {
        /// What it begins with.
        word: u32,
    },
    /// A raw window of nothing but zeroes.
    Zero,
    /// Text without a single register in it.
    Nothing,
    /// A line that starts like one with registers and goes on otherwise.
    Line {
        /// Its number, from 1.
        line: usize,
    },
}

impl fmt::Display for RegistersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window { bytes } => {
                write!(
                    f,
                    "{bytes} bytes are no register window: it has {:#x} to {WINDOW_LIMIT:#x} bytes, a multiple of 4",
                    WINDOW_LEAST
                )
            }
            Self::Version { word: u32::MAX } => {
                f.write_str("no register window: it reads all ones, as where no unit is")
            }
            Self::Version { word } => write!(
                f,
                "no register window: it begins with {word:#010x}, and no version register has more than 8 bits"
            ),
            Self::Zero => f.write_str("no register window: all of it is zero"),
            Self::Nothing => f.write_str(
                "no registers in it: neither a window, nor text of iommu_regset, nor lines \"ADDRESS: WORD WORD\"",
            ),
            Self::Line { line } => write!(f, "line {line} cannot be read as registers"),
        }
    }
}
impl std::error::Error for RegistersError {}

impl Registers {
    /// A unit of which nothing is known.
    #[must_use]
    pub fn unknown(name: String, base: u64) -> Self {
        Self { name, base, segment: Segment(0), words: BTreeMap::new() }
    }

    /// The raw window that starts at the unit's base.
    ///
    /// # Errors
    /// [`RegistersError::Window`].
    pub fn from_window(name: String, base: u64, window: &[u8]) -> Result<Self, RegistersError> {
        if !(WINDOW_LEAST..=WINDOW_LIMIT).contains(&window.len()) || !window.len().is_multiple_of(4) {
            return Err(RegistersError::Window { bytes: window.len() });
        }
        let mut registers = Self::unknown(name, base);
        for (index, word) in window.chunks_exact(4).enumerate() {
            registers.words.insert(4 * index as u64, u32::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        Ok(registers)
    }

    /// The 32-bit word at `offset`.
    #[must_use]
    pub fn read32(&self, offset: u64) -> Option<u32> {
        self.words.get(&offset).copied()
    }

    /// The 64-bit register at `offset`.
    #[must_use]
    pub fn read64(&self, offset: u64) -> Option<u64> {
        Some(u64::from(self.read32(offset + 4)?) << 32 | u64::from(self.read32(offset)?))
    }

    /// Writes a register down.
    pub fn set(&mut self, register: Register, value: u64) {
        self.words.insert(register.offset, value as u32);
        if register.bits == 64 {
            self.words.insert(register.offset + 4, (value >> 32) as u32);
        }
    }

    /// Version.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.read32(offset::VER).map(Version::from_raw)
    }
    /// Capability.
    #[must_use]
    pub fn cap(&self) -> Option<Cap> {
        self.read64(offset::CAP).map(Cap::from_raw)
    }
    /// Extended capability.
    #[must_use]
    pub fn ecap(&self) -> Option<Ecap> {
        self.read64(offset::ECAP).map(Ecap::from_raw)
    }
    /// Global status.
    #[must_use]
    pub fn gsts(&self) -> Option<Gsts> {
        self.read32(offset::GSTS).map(Gsts::from_raw)
    }
    /// Root table address.
    #[must_use]
    pub fn rtaddr(&self) -> Option<RootAddr> {
        self.read64(offset::RTADDR).map(RootAddr::from_raw)
    }
    /// Interrupt remapping table address.
    #[must_use]
    pub fn irta(&self) -> Option<Irta> {
        self.read64(offset::IRTA).map(Irta::from_raw)
    }
    /// Invalidation queue address.
    #[must_use]
    pub fn iqa(&self) -> Option<Iqa> {
        self.read64(offset::IQA).map(Iqa::from_raw)
    }
    /// Invalidation queue head.
    #[must_use]
    pub fn iqh(&self) -> Option<Iqh> {
        self.read64(offset::IQH).map(Iqh::from_raw)
    }
    /// Invalidation queue tail.
    #[must_use]
    pub fn iqt(&self) -> Option<Iqt> {
        self.read64(offset::IQT).map(Iqt::from_raw)
    }
    /// The fault records that hold a fault, with their numbers, as far as they are known.
    #[must_use]
    pub fn faults(&self) -> Vec<(u64, FaultRecord)> {
        let Some(cap) = self.cap() else { return Vec::new() };
        let record = |number| {
            let at = cap.fault_record_offset(number);
            let record = FaultRecord::from_raw([self.read64(at)?, self.read64(at + 8)?]);
            record.f().then_some((number, record))
        };
        (0..cap.fault_records()).filter_map(record).collect()
    }
}

/// The register of that name.
#[must_use]
pub fn named(name: &str) -> Option<Register> {
    REGISTERS.iter().find(|register| register.name == name).copied()
}

/// The registers in `bytes`, whatever form they have; text may hold several units. `base` is where a raw window lies.
///
/// # Errors
/// See [`RegistersError`].
pub fn parse(bytes: &[u8], base: u64) -> Result<Vec<Registers>, RegistersError> {
    // A raw window opens with the version register, whose upper three bytes are zero: no text does.
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let Some(text) = text else {
        return Ok(vec![window(base, bytes)?]);
    };
    let regset = parse_regset(text)?;
    if !regset.is_empty() {
        return Ok(regset);
    }
    let words = parse_words(text)?;
    if words.is_empty() { Err(RegistersError::Nothing) } else { Ok(words) }
}

/// A raw window out of a file, which may be any other file.
fn window(base: u64, bytes: &[u8]) -> Result<Registers, RegistersError> {
    let registers = Registers::from_window("dmar0".into(), base, bytes)?;
    let word = registers.read32(offset::VER).unwrap_or(0);
    if word > 0xff {
        return Err(RegistersError::Version { word });
    }
    if bytes.iter().all(|byte| *byte == 0) { Err(RegistersError::Zero) } else { Ok(registers) }
}

/// Linux's text: `IOMMU: NAME Register Base Address: HEX`, then `NAME OFFSET CONTENTS`. Other lines are passed over, so that
/// a file with more in it than registers will do.
fn parse_regset(text: &str) -> Result<Vec<Registers>, RegistersError> {
    let mut units: Vec<Registers> = Vec::new();
    let mut within = false;
    for (number, line) in text.lines().enumerate() {
        let error = RegistersError::Line { line: number + 1 };
        if let Some(rest) = line.strip_prefix("IOMMU: ") {
            let Some((name, base)) = rest.split_once(" Register Base Address: ") else { continue };
            let base = u64::from_str_radix(base.trim(), 16).map_err(|_| error)?;
            // A later section about the same unit (Linux prints such a line in other files too) adds to it.
            within = true;
            if let Some(known) = units.iter().position(|unit| unit.base == base) {
                let known = units.remove(known);
                units.push(known);
            } else {
                units.push(Registers::unknown(name.to_owned(), base));
            }
            continue;
        }
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(unit), [_, at, value]) = (units.last_mut().filter(|_| within), fields.as_slice()) else {
            within &= !line.is_empty();
            continue;
        };
        let (Some(at), Some(value)) = (hex(at), hex(value)) else { continue };
        let known = REGISTERS.iter().find(|register| register.offset == at);
        // Memory type ranges are the ones not in the list; all have 64 bits.
        let bits = known.map_or(64, |register| register.bits);
        unit.set(Register { name: "", offset: at, bits }, value);
    }
    units.retain(|unit| !unit.words.is_empty());
    Ok(units)
}

/// Lines `ADDRESS: 0xWORD ...` of 32-bit words. Units are told apart by page.
fn parse_words(text: &str) -> Result<Vec<Registers>, RegistersError> {
    let mut units: Vec<Registers> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((address, words)) = line.split_once(':') else { continue };
        let Ok(address) = u64::from_str_radix(address.trim().trim_start_matches("0x"), 16) else { continue };
        let base = address & !0xfff;
        if units.last().is_none_or(|unit| unit.base != base) {
            units.push(Registers::unknown(format!("dmar{}", units.len()), base));
        }
        let Some(unit) = units.last_mut() else { continue };
        let mut at = address - base;
        let bytes = width(words).ok_or(RegistersError::Line { line: number + 1 })?;
        for word in words.split_whitespace() {
            let value = hex(word).filter(|value| bytes == 8 || *value <= u64::from(u32::MAX));
            let value = value.ok_or(RegistersError::Line { line: number + 1 })?;
            unit.set(Register { name: "", offset: at, bits: 8 * bytes as u32 }, value);
            at += bytes;
        }
    }
    Ok(units)
}

/// Bytes of each of these words, 4 or 8: the monitor fills words up with zeroes (`xp /wx`, `xp /gx`). Of bytes and words of
/// 16 bits it prints eight in a line; nobody writes registers like that.
fn width(words: &str) -> Option<u64> {
    let longest = words.split_whitespace().map(str::len).max().unwrap_or(0);
    let count = words.split_whitespace().count();
    match longest {
        0..=6 if count >= 8 => None,
        0..=10 => Some(4),
        _ => Some(8),
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGSET: &str = include_str!("../tests/data/min-legacy/regset.txt");
    const WINDOW: &[u8] = include_bytes!("../tests/data/min-legacy/vtd-regs.bin");
    const WORDS: &str = include_str!("../tests/data/min-legacy/vtd-regs.txt");

    #[test]
    fn window_and_words_say_the_same() {
        assert_eq!(parse(WINDOW, USUAL_BASE), parse(WORDS.as_bytes(), 0));
    }

    #[test]
    fn the_kernels_text_agrees_with_the_window_wherever_it_speaks() {
        let text = parse(REGSET.as_bytes(), 0).unwrap().remove(0);
        let window = parse(WINDOW, USUAL_BASE).unwrap().remove(0);
        assert_eq!((text.name.as_str(), text.base), ("dmar0", USUAL_BASE));
        for register in [offset::CAP, offset::ECAP, offset::RTADDR, offset::IQA, offset::IRTA, 0x218] {
            assert_eq!(text.read64(register), window.read64(register), "{register:#x}");
        }
        assert_eq!(text.rtaddr().map(|r| r.table().get()), Some(0x829000));
        assert!(text.gsts().unwrap().tes());
        assert_eq!(text.read32(offset::IECTL), None, "what the text leaves out stays unknown");
    }

    #[test]
    fn bytes_that_are_no_registers_are_refused() {
        assert_eq!(parse(b"", 0), Err(RegistersError::Nothing));
        assert_eq!(parse(&[0; 16], 0), Err(RegistersError::Window { bytes: 16 }));
        assert_eq!(parse(b"fed90000: 0x10 spam", 0), Err(RegistersError::Line { line: 1 }));
    }

    #[test]
    fn a_window_may_be_shorter_or_longer_and_is_none_without_a_version() {
        let whole = parse(WINDOW, USUAL_BASE).unwrap().remove(0);
        let short = parse(&WINDOW[..0x28], USUAL_BASE).unwrap().remove(0);
        assert_eq!((short.rtaddr(), short.iqa(), short.faults()), (whole.rtaddr(), None, Vec::new()));
        let page = [WINDOW, &[0; 0x1000 - 0x230]].concat();
        let page = parse(&page, USUAL_BASE).unwrap().remove(0);
        assert_eq!((page.rtaddr(), page.read32(0xffc)), (whole.rtaddr(), Some(0)));
        for bytes in [0x24, 0x22e, 0x4004] {
            let other = [WINDOW, &[0; 0x4000]].concat()[..bytes].to_vec();
            assert_eq!(parse(&other, 0), Err(RegistersError::Window { bytes }));
        }
        assert_eq!(parse(&[0xff; 0x1000], 0), Err(RegistersError::Version { word: u32::MAX }));
        assert_eq!(parse(&[0; 0x1000], 0), Err(RegistersError::Zero));
        let image = [b"VTDPAGE1\x01\0\0\0\0\0\0\0".as_slice(), &[0; 0x1008]].concat();
        assert_eq!(parse(&image, 0), Err(RegistersError::Version { word: 0x5044_5456 }));
    }

    #[test]
    fn words_of_64_bits_say_the_same_as_words_of_32_and_bytes_are_refused() {
        let words: Vec<u64> =
            WINDOW.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        let line = |(n, two): (usize, &[u64])| {
            let words: String = two.iter().map(|word| format!(" {word:#018x}")).collect();
            format!("{:016x}:{words}\n", USUAL_BASE + 16 * n as u64)
        };
        let text: String = words.chunks(2).enumerate().map(line).collect();
        assert_eq!(parse(text.as_bytes(), 0), parse(WINDOW, USUAL_BASE));
        let bytes = b"00000000fed90000: 0x10 0x00 0x00 0x00 0x00 0x00 0x00 0x00\n";
        assert_eq!(parse(bytes, 0), Err(RegistersError::Line { line: 1 }));
        let by_hand = parse(b"fed90020: 0x829000\n", 0).unwrap().remove(0);
        assert_eq!((by_hand.read32(0x20), by_hand.read32(0x24)), (Some(0x82_9000), None));
    }

    #[test]
    fn text_may_hold_several_units() {
        let text = "IOMMU: dmar1 Register Base Address: fed91000\nRTADDR \t0x20\t0x1000\n\n\
                    IOMMU: dmar0 Register Base Address: fed90000\nRTADDR \t0x20\t0x2000\n";
        let units = parse(text.as_bytes(), 0).unwrap();
        assert_eq!(
            units.iter().map(|u| (u.base, u.read64(0x20))).collect::<Vec<_>>(),
            [(0xfed9_1000, Some(0x1000)), (0xfed9_0000, Some(0x2000))]
        );
    }
}
