//! The machine's remapping units, out of its DMAR table.

use super::host::Buses;
use super::trouble::Trouble;
use crate::acpi;
use crate::pci::Topology;
use crate::platform::Platform;
use alloc::vec::Vec;
use iommu::driver::Setup;
use iommu::{Config, UnitDescription};
use spec::dmar::{Dmar, Structure};
use spec::{Extent, SourceId, UnitId};

/// What the DMAR says of the units.
pub(crate) struct Units {
    descriptions: Vec<UnitDescription>,
    host_address_bits: u32,
    /// Memory that firmware reserved, and for whom.
    reserved: Vec<(SourceId, Extent)>,
}

impl Units {
    /// Memory that firmware reserved, and for whom (VT-d 8.4).
    pub(crate) fn reserved(&self) -> &[(SourceId, Extent)] {
        &self.reserved
    }

    /// Which units there are.
    pub(crate) fn ids(&self) -> impl Iterator<Item = UnitId> + '_ {
        self.descriptions.iter().map(|d| d.id)
    }

    /// What the driver is told.
    pub(crate) fn setup<'h>(&self, buses: &'h Buses, config: Config) -> Setup<'h> {
        let (units, host_address_bits) = (self.descriptions.clone(), self.host_address_bits);
        Setup { units, host_address_bits, topology: buses, config }
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
    let reserved = reserved(platform, &dmar)?;
    Ok(Units { descriptions, host_address_bits: dmar.address_bits(), reserved })
}

/// Reserved memory of functions of segment 0.
fn reserved<P: Platform + ?Sized>(platform: &P, dmar: &Dmar<'_>) -> Result<Vec<(SourceId, Extent)>, Trouble> {
    let mut found = Vec::new();
    let mut structures =
        dmar.structures().filter_map(Result::ok).filter(|s| matches!(s, Structure::Rmrr { .. })).peekable();
    if structures.peek().is_none() {
        return Ok(found);
    }
    let buses = Topology::discover(platform, &[]);
    for structure in structures {
        let Structure::Rmrr { rmrr, scopes } = structure else { continue };
        let Some(extent) = rmrr.extent() else {
            platform.log(format_args!("a reserved region that is empty or no whole pages is ignored"));
            continue;
        };
        for scope in scopes {
            let scope = scope.map_err(Trouble::at("read a reserved region's device scopes"))?;
            let path: Vec<_> = scope.path().iter().map(|hop| (hop.device, hop.function)).collect();
            match buses.resolve(scope.header.start_bus, &path) {
                Ok(source) => found.push((source, extent)),
                Err(error) => platform.log(format_args!("a reserved region for nobody: {error}")),
            }
        }
    }
    Ok(found)
}
