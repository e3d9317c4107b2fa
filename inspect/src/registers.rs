//! A unit's registers, as somebody wrote them down.
//!
//! Three forms are read ([`parse`]): the raw register window, the text of Linux's `iommu_regset`, and the lines of words
//! that QEMU's monitor prints (`xp`). What a form does not say stays unknown; nothing defaults to zero. [`Registers::set`]
//! puts single registers in by hand.

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
    /// A raw window must hold whole words, and RTADDR at least.
    Window {
        /// Its length in bytes.
        bytes: usize,
    },
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
                write!(f, "{bytes} bytes are no register window: it has 0x28 bytes at least, a multiple of 4")
            }
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
        if window.len() < 0x28 || !window.len().is_multiple_of(4) {
            return Err(RegistersError::Window { bytes: window.len() });
        }
        let mut registers = Self::unknown(name, base);
        for (index, word) in window.chunks_exact(4).take(WINDOW_LIMIT / 4).enumerate() {
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
        return Ok(vec![Registers::from_window("dmar0".into(), base, bytes)?]);
    };
    let regset = parse_regset(text)?;
    if !regset.is_empty() {
        return Ok(regset);
    }
    let words = parse_words(text)?;
    if words.is_empty() { Err(RegistersError::Nothing) } else { Ok(words) }
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
        for (index, word) in words.split_whitespace().enumerate() {
            let value = hex(word)
                .and_then(|value| u32::try_from(value).ok())
                .ok_or(RegistersError::Line { line: number + 1 })?;
            unit.words.insert((address - base) + 4 * index as u64, value);
        }
    }
    Ok(units)
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
