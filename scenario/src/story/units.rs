//! The machine's remapping units, out of its DMAR table.

use super::host::Buses;
use super::trouble::Trouble;
use crate::acpi;
use crate::platform::Platform;
use alloc::vec::Vec;
use iommu::driver::Setup;
use iommu::scope::{Scope, ScopeKind};
use iommu::{Config, UnitDescription};
use spec::UnitId;
use spec::dmar::{Dmar, Structure, scope_kind};

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
        Setup {
            units: self.descriptions.clone(),
            host_address_bits: self.host_address_bits,
            topology: buses,
            config: Config::default(),
        }
    }
}

/// Finds the DMAR and reads its units.
pub(crate) fn find<P: Platform + ?Sized>(platform: &P) -> Result<Units, Trouble> {
    let found = acpi::dmar(platform).map_err(Trouble::at("find the DMAR table"))?;
    for ignored in &found.ignored {
        platform.log(format_args!("a second DMAR table at {ignored} is ignored"));
    }
    let dmar = Dmar::parse(&found.table.bytes).map_err(Trouble::at("read the DMAR table"))?;
    let mut units = Units { descriptions: Vec::new(), host_address_bits: dmar.address_bits() };
    for structure in dmar.structures() {
        match structure.map_err(Trouble::at("read the DMAR table"))? {
            Structure::Drhd { drhd, scopes } => {
                let scopes = scopes.map(|scope| scope.map(|s| description(&s))).collect::<Result<_, _>>();
                units.descriptions.push(UnitDescription {
                    id: drhd.unit(),
                    catch_all: drhd.includes_all(),
                    scopes: scopes.map_err(Trouble::at("read a unit's device scopes"))?,
                });
            }
            Structure::Unknown { kind, .. } => {
                platform.log(format_args!("the DMAR table has a structure of unknown kind {kind}"));
            }
            _ => {}
        }
    }
    if units.descriptions.is_empty() {
        return Err(Trouble::new("read the DMAR table", "it names no remapping unit"));
    }
    Ok(units)
}

fn description(scope: &spec::dmar::Scope<'_>) -> Scope {
    let kind = match scope.header.kind {
        scope_kind::PCI_ENDPOINT => ScopeKind::Endpoint,
        scope_kind::PCI_SUB_HIERARCHY => ScopeKind::Bridge,
        _ => ScopeKind::SourceId,
    };
    let path = scope.path().iter().map(|hop| (hop.device, hop.function)).collect();
    Scope { kind, start_bus: scope.header.start_bus, path }
}
