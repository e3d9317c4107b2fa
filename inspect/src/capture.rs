//! This machine, as a page file of a few kilobytes: the tables that its remapping hardware reads, and its registers.
//!
//! Needs root. Memory comes from `/proc/kcore`, whose program headers say where physical memory lies, or from `/dev/mem`
//! (`memory`); the units from the DMAR table in sysfs; their registers from `iommu_regset` in debugfs, or where that is not there from the hardware itself
//! (`registers`). The kernel goes on meanwhile: what it changes in these moments may be caught half done.

mod memory;
mod registers;

use crate::extract;
use crate::model::{FindKho, Limits, Model};
use crate::registers::{self as known, Registers};
use crate::tables::Hardware;
use spec::dmar::{Dmar, Structure};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where things are found on a running Linux.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Memory, as an ELF core, or the same as `devices`. Unless said: `/proc/kcore`, or `devices` where there is none.
    pub memory: Option<PathBuf>,
    /// Which physical addresses are RAM, when memory is read through `devices`.
    pub ram: PathBuf,
    /// The DMAR table.
    pub dmar: PathBuf,
    /// Registers in the kernel's own words.
    pub regset: PathBuf,
    /// Physical addresses: for registers that the kernel does not show, and for memory without `/proc/kcore`.
    pub devices: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            memory: None,
            ram: "/proc/iomem".into(),
            dmar: "/sys/firmware/acpi/tables/DMAR".into(),
            regset: "/sys/kernel/debug/iommu/intel/iommu_regset".into(),
            devices: "/dev/mem".into(),
        }
    }
}

/// What was caught.
#[derive(Debug)]
pub struct Captured {
    /// The units' registers.
    pub units: Vec<Registers>,
    /// What the memory says.
    pub model: Model,
    /// Pages written.
    pub pages: usize,
}

fn named(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Captures this machine into `out`.
///
/// # Errors
/// In words: what could not be read, and what to do about it.
pub fn capture(sources: &Sources, find: FindKho, out: &mut dyn Write) -> Result<Captured, String> {
    let table = std::fs::read(&sources.dmar)
        .map_err(|error| format!("{} (no remapping hardware, or not root)", named(&sources.dmar, error)))?;
    let (bases, address_bits) = units_of(&table).map_err(|error| named(&sources.dmar, error))?;
    let units = all_registers(sources, &bases)?;
    let memory = memory::open(sources)?;
    let snoop_control = units.iter().any(|unit| unit.ecap().is_none_or(|ecap| ecap.sc()));
    let hardware = Hardware { address_bits, snoop_control };
    let model = Model::build(&memory, units.clone(), hardware, find, Limits::default());
    let pages = extract::write(out, &memory, &model).map_err(|error| format!("cannot write: {error}"))?;
    Ok(Captured { units, model, pages })
}

/// Register bases and width of addresses.
fn units_of(table: &[u8]) -> Result<(Vec<u64>, u32), String> {
    let table = Dmar::parse(table).map_err(|error| error.to_string())?;
    let mut bases = Vec::new();
    for structure in table.structures() {
        if let Structure::Drhd { drhd, .. } = structure.map_err(|error| error.to_string())? {
            bases.push(drhd.register_base.get());
        }
    }
    if bases.is_empty() { Err("it names no unit".into()) } else { Ok((bases, table.address_bits())) }
}

/// The registers of every unit: in the kernel's words as far as it has some, else from hardware.
fn all_registers(sources: &Sources, bases: &[u64]) -> Result<Vec<Registers>, String> {
    let text = std::fs::read(&sources.regset).ok();
    let mut units = text.and_then(|text| known::parse(&text, 0).ok()).unwrap_or_default();
    for (number, &base) in bases.iter().enumerate() {
        if units.iter().any(|unit| unit.base == base) {
            continue;
        }
        let window = registers::window(&sources.devices, base).map_err(|error| {
            format!(
                "registers at {base:#x}: {} does not have them, and {}; a kernel with IOMMU_DEBUGFS shows them, and one \
                 booted with iomem=relaxed lets root read them",
                sources.regset.display(),
                named(&sources.devices, error)
            )
        })?;
        let unit = Registers::from_window(format!("dmar{number}"), base, &window);
        units.push(unit.map_err(|error| error.to_string())?);
    }
    Ok(units)
}
