//! The driver as a whole: all units, domains and requesters of a machine.
//!
//! All methods take `&self`; books are kept in cells, for kernels of one processor. Methods must not be called from
//! callbacks that hand out borrowed books ([`Iommu::domain_tables`] may be given a reader, not a writer).

use crate::Hal;
use crate::domain::DomainHandle;
use crate::error::{AttachError, DomainError, MapError, UnitError};
use crate::scope::{Topology, UnitDescription};
use crate::table::format::Access;
use crate::unit::{Config, VtdUnit};
use alloc::vec::Vec;
use liveupdate::host::MaySleep;
use spec::{DomainId, Extent, Iova, PhysAddr, Requester, SourceId, UnitId};

/// What the driver is told when it starts.
pub struct Setup<'h> {
    /// The machine's units.
    pub units: Vec<UnitDescription>,
    /// Width of host addresses in bits (DMAR.HAW + 1).
    pub host_address_bits: u32,
    /// The machine's buses.
    pub topology: &'h dyn Topology,
    /// How units are driven.
    pub config: Config,
}

/// The driver of all units of a machine.
pub struct Iommu<'h, H: Hal> {
    units: Vec<VtdUnit<'h, H>>,
}

impl<'h, H: Hal> Iommu<'h, H> {
    /// Sets all units up anew ([`VtdUnit::set_up`]). Translation is off until [`Self::enable`].
    ///
    /// # Errors
    /// The first unit's error.
    pub fn probe(_hal: &'h H, _ctx: &mut MaySleep, _setup: Setup<'h>) -> Result<Self, UnitError> {
        todo!()
    }
    /// Takes over all units that translate ([`VtdUnit::take_over`]), and sets up those that do not: see
    /// [`VtdUnit::origin`].
    ///
    /// # Errors
    /// The first unit's error. Units that translate go on translating.
    pub fn take_over(_hal: &'h H, _ctx: &mut MaySleep, _setup: Setup<'h>) -> Result<Self, UnitError> {
        todo!()
    }
    /// Switches translation on in every unit where it is off.
    ///
    /// # Errors
    /// The first unit's error.
    pub fn enable(&self, _ctx: &mut MaySleep) -> Result<(), UnitError> {
        todo!()
    }
    /// All units, in the order of the DMAR table.
    #[must_use]
    pub fn units(&self) -> &[VtdUnit<'h, H>] {
        &self.units
    }
    /// The unit with this id.
    #[must_use]
    pub fn unit(&self, _id: UnitId) -> Option<&VtdUnit<'h, H>> {
        todo!()
    }
    /// The unit that watches a requester.
    #[must_use]
    pub fn unit_of(&self, _requester: Requester) -> Option<&VtdUnit<'h, H>> {
        todo!()
    }
    /// Makes an empty domain whose tables all of `units` can walk. `levels`: 3, 4 or 5, or `None` for the driver's choice.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn create_domain(
        &self,
        _ctx: &mut MaySleep,
        _units: &[UnitId],
        _levels: Option<u8>,
    ) -> Result<DomainHandle, DomainError> {
        todo!()
    }
    /// Frees a domain that no requester is attached to.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn destroy_domain(&self, _ctx: &mut MaySleep, _domain: DomainHandle) -> Result<(), DomainError> {
        todo!()
    }
    /// Maps `bytes` from `iova` on to `phys` and on, with the largest leaves that fit.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed (I7).
    pub fn map(
        &self,
        _ctx: &mut MaySleep,
        _domain: DomainHandle,
        _iova: Iova,
        _phys: PhysAddr,
        _bytes: u64,
        _access: Access,
    ) -> Result<(), MapError> {
        todo!()
    }
    /// Unmaps whatever is mapped in the range; says how many bytes were. Large leaves that reach out of the range are
    /// split.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn unmap(
        &self,
        _ctx: &mut MaySleep,
        _domain: DomainHandle,
        _iova: Iova,
        _bytes: u64,
    ) -> Result<u64, MapError> {
        todo!()
    }
    /// Where `iova` leads in a domain.
    #[must_use]
    pub fn translate(&self, _domain: DomainHandle, _iova: Iova) -> Option<(PhysAddr, Access)> {
        todo!()
    }
    /// Attaches a requester and all its aliases to a domain.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed (I7).
    pub fn attach(
        &self,
        _ctx: &mut MaySleep,
        _requester: Requester,
        _aliases: &[SourceId],
        _domain: DomainHandle,
    ) -> Result<(), AttachError> {
        todo!()
    }
    /// Detaches a requester and those of its aliases that no other requester uses.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn detach(&self, _ctx: &mut MaySleep, _requester: Requester) -> Result<(), AttachError> {
        todo!()
    }
    /// From now on map and unmap are refused in the domain with this top table; or no longer. Whether there is such a
    /// domain.
    pub fn hold_mappings(&self, _top_table: PhysAddr, _held: bool) -> bool {
        todo!()
    }
    /// Calls `f` with runs of frames that hold all of the domain's tables: few, as tables lie in arenas.
    ///
    /// # Errors
    /// [`DomainError::NoDomain`].
    pub fn domain_tables(
        &self,
        _domain: DomainHandle,
        _f: &mut dyn FnMut(Extent),
    ) -> Result<(), DomainError> {
        todo!()
    }
    /// The domain's top table.
    #[must_use]
    pub fn top_table(&self, _domain: DomainHandle) -> Option<PhysAddr> {
        todo!()
    }
    /// The domain with this top table.
    #[must_use]
    pub fn domain_at(&self, _top_table: PhysAddr) -> Option<DomainHandle> {
        todo!()
    }
    /// Levels of the domain's tables.
    #[must_use]
    pub fn levels(&self, _domain: DomainHandle) -> Option<u8> {
        todo!()
    }
    /// The domain's id on a unit, while it has one there: from the first attached requester to the last.
    #[must_use]
    pub fn domain_id(&self, _domain: DomainHandle, _unit: UnitId) -> Option<DomainId> {
        todo!()
    }
    /// The domain that a requester is attached to.
    #[must_use]
    pub fn domain_of(&self, _requester: Requester) -> Option<DomainHandle> {
        todo!()
    }
    /// Keeps a domain id of a unit from being given out (I5), until an imported domain claims it.
    ///
    /// # Errors
    /// [`DomainError::DomainIdTaken`], [`DomainError::NoUnit`].
    pub fn reserve_domain_id(&self, _unit: UnitId, _id: DomainId) -> Result<(), DomainError> {
        todo!()
    }
    /// Gives a reserved id that no domain claimed back.
    ///
    /// # Errors
    /// [`DomainError::DomainIdTaken`] when it is not merely reserved, [`DomainError::NoUnit`].
    pub fn release_domain_id(&self, _unit: UnitId, _id: DomainId) -> Result<(), DomainError> {
        todo!()
    }
    /// Takes over a domain that a predecessor built. Its mappings are held until [`Self::hold_mappings`] lets them go.
    /// Its ids are kept for as long as the domain lives.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn import_domain(
        &self,
        _ctx: &mut MaySleep,
        _top_table: PhysAddr,
        _levels: u8,
        _ids: &[(UnitId, DomainId)],
        _tables: &[Extent],
    ) -> Result<DomainHandle, DomainError> {
        todo!()
    }
    /// Books a requester whose entries a predecessor wrote. They are compared, not written.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn import_requester(
        &self,
        _ctx: &mut MaySleep,
        _requester: Requester,
        _aliases: &[SourceId],
        _domain: DomainHandle,
    ) -> Result<(), AttachError> {
        todo!()
    }
}
