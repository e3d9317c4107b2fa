//! From arguments to a model: which image, which registers, which hardware.

use super::Failure;
use crate::image::{self, Memory, Options};
use crate::model::{FindKho, Limits, Model};
use crate::registers::{self, Registers, USUAL_BASE, named};
use crate::tables::Hardware;
use clap::Args;
use spec::dmar::{Dmar, Structure};
use spec::{PhysAddr, Segment};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Files of registers and DMAR tables have no more bytes than this.
const SMALL: u64 = 16 << 20;
/// Bytes of registers that are taken out of an image.
const WINDOW: usize = 0x230;

/// An image, and how its tables are found.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Look at a running QEMU through its monitor socket (QMP) instead of an image; it is stopped meanwhile
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// The image is raw memory that starts at this physical address
    #[arg(long, value_name = "ADDRESS", value_parser = number)]
    base: Option<u64>,
    /// Raw memory leaves these addresses out, as the memory of a QEMU does below 4 GiB: the file goes on at END after START
    #[arg(long, value_name = "START-END", value_parser = hole, requires = "base")]
    hole: Option<(u64, u64)>,
    /// Registers of the units: a raw window, text of Linux's iommu_regset, or lines of words. BASE is where a raw window
    /// lies [default: 0xfed90000]
    #[arg(long, value_name = "[BASE=]FILE")]
    registers: Vec<String>,
    /// The image itself holds the registers of a unit at this address
    #[arg(long, value_name = "ADDRESS", value_parser = number)]
    registers_at: Vec<u64>,
    /// Root table address register, by hand
    #[arg(long, value_name = "VALUE", value_parser = number)]
    rtaddr: Option<u64>,
    /// Interrupt remapping table address register, by hand
    #[arg(long, value_name = "VALUE", value_parser = number)]
    irta: Option<u64>,
    /// Invalidation queue address register, by hand
    #[arg(long, value_name = "VALUE", value_parser = number)]
    iqa: Option<u64>,
    /// Capability register, by hand
    #[arg(long, value_name = "VALUE", value_parser = number)]
    cap: Option<u64>,
    /// Extended capability register, by hand
    #[arg(long, value_name = "VALUE", value_parser = number)]
    ecap: Option<u64>,
    /// Global status register, by hand
    #[arg(long, value_name = "VALUE", value_parser = number)]
    gsts: Option<u64>,
    /// The machine's DMAR table: how wide host addresses are, and where units have their registers
    #[arg(long, value_name = "FILE")]
    dmar: Option<PathBuf>,
    /// Where the handover's root tree lies: an address, "scan" to look in every frame, "no" not to look
    #[arg(long, value_name = "WHERE", default_value = "auto", value_parser = parse_kho)]
    kho: FindKho,
}

/// An image and what it says.
#[derive(Debug)]
pub struct Loaded {
    /// The memory.
    pub memory: Memory,
    /// What it says.
    pub model: Model,
}

/// Parses a number in hex, with or without `0x`.
pub(super) fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text).replace('_', "");
    u64::from_str_radix(&digits, 16).map_err(|_| format!("{text:?} is no number in hex"))
}

/// Parses a hole in raw memory.
fn hole(text: &str) -> Result<(u64, u64), String> {
    let (start, end) = text.split_once('-').ok_or_else(|| format!("{text:?} is not START-END"))?;
    Ok((number(start)?, number(end)?))
}

/// Parses where a handover is to be looked for.
pub(super) fn parse_kho(text: &str) -> Result<FindKho, String> {
    Ok(match text {
        "auto" => FindKho::Auto,
        "scan" => FindKho::Scan,
        "no" => FindKho::No,
        address => FindKho::At(PhysAddr::new(number(address)?)),
    })
}

/// The bytes of a file that is small by nature.
pub(super) fn small_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(SMALL + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > SMALL {
        return Err(format!("{}: more than {} MiB", path.display(), SMALL >> 20));
    }
    Ok(bytes)
}

impl ImageArgs {
    /// The arguments for a second image; with the registers of this one when `registers` is `None`.
    pub(super) fn other(&self, registers: Option<&[String]>, base: Option<u64>) -> Self {
        let mut other = Self { base, hole: base.and(self.hole), qmp: None, ..self.clone() };
        if let Some(registers) = registers {
            other.registers = registers.to_vec();
            (other.rtaddr, other.irta, other.iqa) = (None, None, None);
            (other.cap, other.ecap, other.gsts) = (None, None, None);
        }
        other
    }

    /// Whether a running QEMU is looked at, so that no image is named.
    pub(super) const fn is_live(&self) -> bool {
        self.qmp.is_some()
    }

    /// Opens the image, or reaches the machine, and reads it.
    ///
    /// # Errors
    /// In words.
    pub fn load(&self, image: Option<&Path>, err: &mut dyn Write) -> Result<Loaded, Failure> {
        let (places, address_bits) = self.dmar()?;
        let usual = match places.is_empty() {
            true => vec![USUAL_BASE],
            false => places.iter().map(|place| place.base).collect(),
        };
        let named = |path: &Path, error| format!("{}: {error}", path.display());
        let (memory, live) = match (image, &self.qmp) {
            (None, Some(socket)) => image::open_qmp(socket, &usual).map_err(|error| named(socket, error))?,
            (Some(path), None) => {
                let options = Options { base: self.base, hole: self.hole, ..Options::default() };
                let opened = image::open(path, options);
                (opened.map_err(|error| named(path, error))?, Vec::new())
            }
            (Some(_), Some(_)) => return Err("either an image or --qmp, not both".into()),
            (None, None) => return Err("name an image, or a running QEMU with --qmp".into()),
        };
        for note in memory.notes() {
            // What cannot be said is not what was asked for.
            let _ = writeln!(err, "note: {note}");
        }
        let mut units = self.read_registers()?;
        if units.is_empty() {
            units = live;
        }
        let in_image = self.registers_at.iter().copied();
        if units.is_empty() && in_image.len() == 0 && memory.form() == image::Form::Pages {
            // A page file may carry the registers along.
            units.extend(usual.iter().filter_map(|base| window(&memory, *base, 0).ok()));
        }
        for base in in_image {
            units.push(window(&memory, base, units.len())?);
        }
        self.by_hand(&mut units);
        put_in_place(&mut units, &places);
        let snoop_control = units.iter().any(|unit| unit.ecap().is_none_or(|ecap| ecap.sc()));
        let hardware = Hardware { address_bits: address_bits.unwrap_or(52), snoop_control };
        let model = Model::build(&memory, units, hardware, self.kho, Limits::default());
        Ok(Loaded { memory, model })
    }

    /// Where units are and the width of addresses, by the DMAR table.
    fn dmar(&self) -> Result<(Vec<Place>, Option<u32>), Failure> {
        let Some(path) = &self.dmar else { return Ok((Vec::new(), None)) };
        let bytes = small_file(path)?;
        let table = Dmar::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut places = Vec::new();
        for structure in table.structures() {
            if let Structure::Drhd { drhd, .. } =
                structure.map_err(|error| format!("{}: {error}", path.display()))?
            {
                let (base, segment) = (drhd.register_base.get(), Segment(drhd.segment.get()));
                places.push(Place { base, segment, catches_all: drhd.includes_all() });
            }
        }
        Ok((places, Some(table.address_bits())))
    }

    fn read_registers(&self) -> Result<Vec<Registers>, Failure> {
        let mut units: Vec<Registers> = Vec::new();
        for argument in &self.registers {
            let split = argument.split_once('=').filter(|(base, _)| number(base).is_ok());
            let (base, path) =
                split.map_or((Ok(USUAL_BASE), argument.as_str()), |(b, path)| (number(b), path));
            let (bytes, base) = (small_file(Path::new(path))?, base?);
            let found = registers::parse(&bytes, base).map_err(|error| format!("{path}: {error}"))?;
            if let (Some(_), Some(other)) = (split, found.iter().find(|unit| unit.base != base)) {
                return Err(format!(
                    "{path}: it says itself that its unit lies at {:#x}, not at {base:#x}",
                    other.base
                ));
            }
            for mut unit in found {
                if units.iter().any(|known| known.base == unit.base) {
                    return Err(format!("{path}: registers of the unit at {:#x} twice", unit.base));
                }
                if units.iter().any(|known| known.name == unit.name) {
                    unit.name = format!("dmar{}", units.len());
                }
                units.push(unit);
            }
        }
        Ok(units)
    }

    /// Puts what was given by hand into the first unit, or into one of its own.
    fn by_hand(&self, units: &mut Vec<Registers>) {
        let given = [
            ("RTADDR", self.rtaddr),
            ("IRTA", self.irta),
            ("IQA", self.iqa),
            ("CAP", self.cap),
            ("ECAP", self.ecap),
            ("GSTS", self.gsts),
        ];
        for (name, value) in given {
            let (Some(value), Some(register)) = (value, named(name)) else { continue };
            if units.is_empty() {
                units.push(Registers::unknown("dmar0".into(), USUAL_BASE));
            }
            units[0].set(register, value);
        }
    }
}

/// What the DMAR table says about a unit.
#[derive(Debug, Clone, Copy)]
struct Place {
    base: u64,
    segment: Segment,
    /// Every device of the segment that no other unit names is its own.
    catches_all: bool,
}

/// Gives units the names and the order that they have in Linux: names are numbered as in the table, and the list is gone
/// through from the back, but for the units that catch all, which follow.
fn put_in_place(units: &mut [Registers], places: &[Place]) {
    for unit in &mut *units {
        if let Some(number) = places.iter().position(|place| place.base == unit.base) {
            (unit.name, unit.segment) = (format!("dmar{number}"), places[number].segment);
        }
    }
    let turn = |unit: &Registers| {
        let number = places.iter().position(|place| place.base == unit.base)?;
        let last = places[number].catches_all;
        Some((last, if last { number } else { places.len() - number }))
    };
    // Units that the table does not know stay in front.
    units.sort_by_key(turn);
}

/// The registers that the image holds at `base`.
fn window(memory: &Memory, base: u64, number: usize) -> Result<Registers, Failure> {
    let mut bytes = vec![0; WINDOW];
    memory.read_bytes(PhysAddr::new(base), &mut bytes).map_err(|error| format!("no registers: {error}"))?;
    Registers::from_window(format!("dmar{number}"), base, &bytes).map_err(|error| error.to_string())
}
