//! The machine's remapping units, out of its DMAR table.

use super::host::Buses;
use super::trouble::Trouble;
use crate::acpi;
use crate::platform::Platform;
use alloc::vec::Vec;
use iommu::driver::Setup;
use iommu::{Config, UnitDescription};
use spec::UnitId;
use spec::dmar::{Dmar, Structure};

/// What the DMAR says of the units.
pub(crate) struct Units {
    descriptions: Vec<UnitDescription>,
    host_address_bits: u32,
}

impl Units {
    /// Which units there are.
    pub(crate) fn ids(&self) -> impl Iterator<Item = UnitId> + '_ {
        self.descriptions.iter().map(|d| d.id)
    }

    /// What the driver is told.
    pub(crate) fn setup<'h>(&self, buses: &'h Buses) -> Setup<'h> {
        let (units, host_address_bits) = (self.descriptions.clone(), self.host_address_bits);
        Setup { units, host_address_bits, topology: buses, config: Config::default() }
    }
}

/// Finds the DMAR and reads its units.
pub(crate) fn find<P: Platform + ?Sized>(platform: &P) -> Result<Units, Trouble> {
    let found = acpi::dmar(platform).map_err(Trouble::at("find the DMAR table"))?;
    for ignored in &found.ignored {
        platform.log(format_args!("a second DMAR table at {ignored} is ignored"));
    }
    let dmar = Dmar::parse(&found.table.bytes).map_err(Trouble::at("read the DMAR table"))?;
    for structure in dmar.structures() {
        if let Ok(Structure::Unknown { kind, .. }) = structure {
            platform.log(format_args!("the DMAR table has a structure of unknown kind {kind}"));
        }
    }
    let descriptions = iommu::scope::units_of(&dmar).map_err(Trouble::at("read the DMAR table"))?;
    if descriptions.is_empty() {
        return Err(Trouble::new("read the DMAR table", "it names no remapping unit"));
    }
    Ok(Units { descriptions, host_address_bits: dmar.address_bits() })
}
