//! The driver as a whole: all units, domains and requesters of a machine.
//!
//! All methods take `&self`; books are kept in a cell, for kernels of one processor. A callback that is handed borrowed
//! books ([`Iommu::domain_tables`]) may ask, but not change.
//!
//! Each change goes the same way: find every reason to refuse, set memory aside, change tables, make hardware forget, book
//! it. What fails on the way is undone in reverse.

use crate::Hal;
use crate::device_tlb::DeviceTlb;
use crate::domain::{Domain, DomainHandle, Shape};
use crate::error::{DomainError, MapError, UnitError};
use crate::faults::{Fault, FaultSummary};
use crate::forget::Tag;
use crate::ids::{DomainIds, Owner};
use crate::pasid::{Attachment, Directory};
use crate::scope::{Topology, UnitDescription, unit_of, units_of};
use crate::table::format::{Access, Stage};
use crate::unit::{Config, Origin, VtdUnit};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::RefCell;
use liveupdate::host::{Forget, MaySleep, TimedOut, Unit};
use spec::dmar::{Dmar, DmarError};
use spec::{DomainId, Extent, Iova, PAGE_SIZE, PhysAddr, Requester, SourceId, UnitId};

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

impl<'h> Setup<'h> {
    /// The setup that a DMAR table describes.
    ///
    /// # Errors
    /// The table's first defect.
    pub fn from_dmar(dmar: &Dmar<'_>, topology: &'h dyn Topology, config: Config) -> Result<Self, DmarError> {
        Ok(Self { units: units_of(dmar)?, host_address_bits: dmar.address_bits(), topology, config })
    }
}

/// A requester that is attached to a domain.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    /// Index of its unit.
    pub(crate) unit: usize,
    /// Its source-id and those of its aliases, each once.
    pub(crate) sources: Vec<SourceId>,
    /// What its PASIDs lead to; in legacy mode there is only PASID 0.
    pub(crate) pasids: BTreeMap<u32, PasidUse>,
    /// Its PASID directory in scalable mode.
    pub(crate) directory: Option<PhysAddr>,
}

/// What one PASID leads to, and the domain id in its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PasidUse {
    pub(crate) what: Attachment,
    pub(crate) id: DomainId,
}

impl Attached {
    /// The domain of requests without PASID.
    pub(crate) fn domain(&self) -> Option<DomainHandle> {
        match self.pasids.get(&0)?.what {
            Attachment::Domain(domain) => Some(domain),
            _ => None,
        }
    }
    /// Whether hardware walks the domain's tables for it.
    pub(crate) fn uses(&self, domain: DomainHandle) -> bool {
        self.pasids.values().any(|used| used.what.domain() == Some(domain))
    }
}

/// What the driver knows beside what hardware holds.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) domains: BTreeMap<DomainHandle, Domain>,
    pub(crate) requesters: BTreeMap<Requester, Attached>,
    /// Of each unit.
    pub(crate) ids: Vec<DomainIds>,
    /// PASID directories by their address. Requesters that share an alias share one.
    pub(crate) directories: BTreeMap<PhysAddr, Directory>,
    /// Requesters that may keep translations.
    pub(crate) device_tlbs: BTreeMap<Requester, DeviceTlb>,
    /// Those of them that were cut off because they did not answer, until somebody asks.
    pub(crate) silent: Vec<Requester>,
    next: u64,
}

impl Books {
    fn add(&mut self, domain: Domain) -> DomainHandle {
        let handle = DomainHandle(self.next);
        self.next += 1;
        self.domains.insert(handle, domain);
        handle
    }
    fn at(&self, top_table: PhysAddr) -> Option<DomainHandle> {
        self.domains.iter().find(|(_, domain)| domain.top() == top_table).map(|(handle, _)| *handle)
    }

    /// How hardware tags what it caches of a domain, by the index of the unit.
    fn tags(&self, handle: DomainHandle) -> Vec<(usize, Tag)> {
        let mut tags = Vec::new();
        for (domain, &(unit, id)) in
            self.domains.get(&handle).into_iter().flat_map(|d| d.ids().iter().map(move |id| (d, id)))
        {
            match domain.shape().stage {
                Stage::Second => tags.push((unit, Tag::Pages(id))),
                // A requester that the predecessor attached may not have been imported yet.
                Stage::First if domain.is_imported() => tags.push((unit, Tag::Domain(id))),
                Stage::First => {}
            }
        }
        for attached in self.requesters.values() {
            for (&pasid, used) in &attached.pasids {
                let tag = match used.what {
                    Attachment::Nested { parent, .. } if parent == handle => Tag::Domain(used.id),
                    Attachment::Domain(domain) if domain == handle => Tag::Pasid(used.id, pasid),
                    _ => continue,
                };
                let first = self.domains.get(&handle).is_some_and(|d| d.shape().stage == Stage::First);
                let known = tags.contains(&(attached.unit, tag))
                    || tags.contains(&(attached.unit, Tag::Domain(used.id)));
                if !known && (first || matches!(tag, Tag::Domain(_))) {
                    tags.push((attached.unit, tag));
                }
            }
        }
        tags
    }
}

/// The driver of all units of a machine.
pub struct Iommu<'h, H: Hal> {
    hal: &'h H,
    units: Vec<VtdUnit<'h, H>>,
    setup: Setup<'h>,
    pub(crate) books: RefCell<Books>,
}

impl<'h, H: Hal> Iommu<'h, H> {
    /// Sets all units up anew ([`VtdUnit::set_up`]). Translation is off until [`Self::enable`].
    ///
    /// # Errors
    /// The first unit's error.
    pub fn probe(hal: &'h H, ctx: &mut MaySleep, setup: Setup<'h>) -> Result<Self, UnitError> {
        Self::start(hal, ctx, setup, Origin::SetUp)
    }

    /// Takes over all units that translate ([`VtdUnit::take_over`]), and sets up those that do not: see
    /// [`VtdUnit::origin`].
    ///
    /// # Errors
    /// The first unit's error. Units that translate go on translating.
    pub fn take_over(hal: &'h H, ctx: &mut MaySleep, setup: Setup<'h>) -> Result<Self, UnitError> {
        Self::start(hal, ctx, setup, Origin::TakenOver)
    }

    fn start(hal: &'h H, ctx: &mut MaySleep, setup: Setup<'h>, how: Origin) -> Result<Self, UnitError> {
        let mut units = Vec::with_capacity(setup.units.len());
        let mut books = Books::default();
        for UnitDescription { id, .. } in &setup.units {
            let unit = match how {
                Origin::SetUp => VtdUnit::set_up(hal, ctx, *id, setup.config)?,
                Origin::TakenOver => match VtdUnit::take_over(hal, ctx, *id, setup.config) {
                    Err(UnitError::NotRunning { .. }) => VtdUnit::set_up(hal, ctx, *id, setup.config)?,
                    other => other?,
                },
            };
            books.ids.push(DomainIds::new(unit.cap().domain_ids()));
            units.push(unit);
        }
        Ok(Self { hal, units, setup, books: RefCell::new(books) })
    }

    /// Switches translation on in every unit where it is off.
    ///
    /// # Errors
    /// The first unit's error.
    pub fn enable(&self, ctx: &mut MaySleep) -> Result<(), UnitError> {
        for unit in self.units.iter().filter(|unit| !unit.status().tes()) {
            unit.locked(ctx, |atomic| unit.enable(atomic))?;
        }
        Ok(())
    }

    /// The machine.
    #[must_use]
    pub const fn hal(&self) -> &'h H {
        self.hal
    }

    /// All units, in the order of the DMAR table.
    #[must_use]
    pub fn units(&self) -> &[VtdUnit<'h, H>] {
        &self.units
    }

    /// The unit with this id.
    #[must_use]
    pub fn unit(&self, id: UnitId) -> Option<&VtdUnit<'h, H>> {
        self.units.iter().find(|unit| unit.id() == id)
    }

    /// The unit that watches a requester.
    #[must_use]
    pub fn unit_of(&self, requester: Requester) -> Option<&VtdUnit<'h, H>> {
        self.unit_index(requester).map(|i| &self.units[i])
    }

    pub(crate) fn unit_index(&self, requester: Requester) -> Option<usize> {
        unit_of(&self.setup.units, requester, self.setup.topology)
    }

    /// Reads, attributes and clears the faults of all units. `overflow` and `pending` of the sum are those of any unit.
    pub fn faults(&self, f: &mut dyn FnMut(Fault)) -> FaultSummary {
        self.units.iter().map(|unit| unit.faults(f)).fold(FaultSummary::default(), |sum, one| FaultSummary {
            recorded: sum.recorded + one.recorded,
            overflow: sum.overflow || one.overflow,
            pending: sum.pending || one.pending,
        })
    }

    /// Makes an empty domain whose tables all of `units` can walk, of the stage that the configured mode is for. `levels`:
    /// 3, 4 or 5, or `None` for the driver's choice: 4 where all can, else what all can.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn create_domain(
        &self,
        ctx: &mut MaySleep,
        units: &[UnitId],
        levels: Option<u8>,
    ) -> Result<DomainHandle, DomainError> {
        self.create_staged_domain(ctx, self.setup.config.mode.stage(), units, levels)
    }

    /// As [`Self::create_domain`], of the stage named. The first stage has 4 or 5 levels.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn create_staged_domain(
        &self,
        ctx: &mut MaySleep,
        stage: Stage,
        units: &[UnitId],
        levels: Option<u8>,
    ) -> Result<DomainHandle, DomainError> {
        let levels = match levels {
            Some(levels) => levels,
            None => {
                units.iter().try_for_each(|id| self.check_stage(*id, stage))?;
                let all = |levels: u8| units.iter().all(|id| self.shape(&[*id], stage, levels).is_ok());
                [4, 3, 5].into_iter().find(|&l| all(l)).ok_or(DomainError::NoCommonLevels)?
            }
        };
        let domain = Domain::new(self.hal, ctx, self.shape(units, stage, levels)?)?;
        Ok(self.books.borrow_mut().add(domain))
    }

    /// Whether a unit, in the mode it runs in, walks tables of a stage at all.
    fn check_stage(&self, id: UnitId, stage: Stage) -> Result<(), DomainError> {
        let unit = self.unit(id).ok_or(DomainError::NoUnit(id))?;
        let modes = unit.choices().modes;
        let walks = match (unit.config().mode.is_scalable(), stage) {
            (false, stage) => stage == Stage::Second,
            (true, Stage::Second) => modes.second_stage,
            (true, Stage::First) => modes.first_stage,
        };
        if walks { Ok(()) } else { Err(DomainError::Stage { unit: id, stage }) }
    }

    /// What tables of `levels` levels may look like on all of `units`.
    fn shape(&self, units: &[UnitId], stage: Stage, levels: u8) -> Result<Shape, DomainError> {
        let output_bits = self.setup.host_address_bits.clamp(12, 52);
        let input_bits = Shape::address_bits(stage, levels);
        let mut shape = Shape { stage, levels, sslps: 3, input_bits, output_bits };
        for &id in units {
            self.check_stage(id, stage)?;
            let unit = self.unit(id).ok_or(DomainError::NoUnit(id))?;
            let choices = unit.choices();
            if !shape.is_valid() || !choices.walks(unit.cap(), stage, levels) {
                return Err(DomainError::Levels { unit: id, levels });
            }
            shape.sslps &= choices.leaves(stage);
            shape.input_bits = shape.input_bits.min(unit.cap().mgaw() as u32 + 1);
        }
        if shape.is_valid() { Ok(shape) } else { Err(DomainError::NoCommonLevels) }
    }

    /// Whether a unit can walk a domain that was made for others.
    pub(crate) fn suits(&self, unit: usize, shape: Shape) -> Result<(), DomainError> {
        let id = self.units[unit].id();
        let own = self.shape(&[id], shape.stage, shape.levels)?;
        if shape.sslps & !own.sslps != 0 || shape.input_bits > own.input_bits {
            return Err(DomainError::Levels { unit: id, levels: shape.levels });
        }
        Ok(())
    }

    /// Frees a domain that no requester is attached to.
    ///
    /// # Errors
    /// [`DomainError`]; the domain is still there.
    pub fn destroy_domain(&self, ctx: &mut MaySleep, domain: DomainHandle) -> Result<(), DomainError> {
        let mut books = self.books.borrow_mut();
        let found = books.domains.get(&domain).ok_or(DomainError::NoDomain)?;
        if let Some((requester, _)) = books.requesters.iter().find(|(_, attached)| attached.uses(domain)) {
            return Err(DomainError::InUse(*requester));
        }
        if found.is_held() {
            return Err(DomainError::Frozen);
        }
        // Ids that outlived the last requester are those of imported domains.
        for &(unit, id) in found.ids() {
            let unit = &self.units[unit];
            let _ = unit.locked(ctx, |atomic| unit.forget(atomic, Forget::Domain(id)))?;
        }
        if let Some(gone) = books.domains.remove(&domain) {
            gone.ids().iter().for_each(|&(unit, id)| books.ids[unit].release(id));
            gone.dissolve(self.hal, ctx);
        }
        Ok(())
    }

    /// Maps `bytes` from `iova` on to `phys` and on, with the largest leaves that fit.
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed (I7).
    pub fn map(
        &self,
        ctx: &mut MaySleep,
        domain: DomainHandle,
        iova: Iova,
        phys: PhysAddr,
        bytes: u64,
        access: Access,
    ) -> Result<(), MapError> {
        let mut books = self.books.borrow_mut();
        let tags = books.tags(domain);
        let domain = books.domains.get_mut(&domain).ok_or(MapError::NoDomain)?;
        domain.map(self.hal, ctx, iova, phys, bytes, access)?;
        let announced = tags.into_iter().try_for_each(|(unit, tag)| {
            if self.units[unit].cap().cm() {
                self.forget_range(ctx, unit, tag, iova, bytes)
            } else {
                self.units[unit].flush_write_buffer()
            }
        });
        if announced.is_err() {
            // The range was empty before, so clearing it restores the tables. Table frames that were taken out are not
            // settled: hardware may have seen them.
            let _ = domain.unmap(self.hal, ctx, iova, bytes);
        }
        Ok(announced?)
    }

    /// Unmaps whatever is mapped in the range; says how many bytes were. Large leaves that reach out of the range are
    /// split. A device that keeps translations and does not answer is cut off: see [`Self::take_silent`].
    ///
    /// # Errors
    /// [`MapError`].
    pub fn unmap(
        &self,
        ctx: &mut MaySleep,
        domain: DomainHandle,
        iova: Iova,
        bytes: u64,
    ) -> Result<u64, MapError> {
        let mut books = self.books.borrow_mut();
        let tags = books.tags(domain);
        let devices = books.device_tlbs_of(domain);
        let found = books.domains.get_mut(&domain).ok_or(MapError::NoDomain)?;
        let unmapped = found.unmap(self.hal, ctx, iova, bytes)?;
        if unmapped.bytes == 0 {
            return Ok(0);
        }
        drop(books);
        let mut forgotten = Ok(());
        for (unit, tag) in tags {
            forgotten = forgotten.and(self.forget_range(ctx, unit, tag, iova, bytes));
        }
        // Devices last: what they forgot before, they would ask for again and be told out of the IOTLB.
        forgotten.and_then(|()| self.forget_in_devices(ctx, &devices, cover(iova, bytes)))?;
        if let Some(domain) = self.books.borrow_mut().domains.get_mut(&domain) {
            domain.settle(self.hal, ctx, unmapped.removed);
        }
        Ok(unmapped.bytes)
    }

    /// Makes a unit forget a range of a domain, by one invalidation that covers it.
    fn forget_range(
        &self,
        ctx: &mut MaySleep,
        unit: usize,
        tag: Tag,
        iova: Iova,
        bytes: u64,
    ) -> Result<(), TimedOut> {
        let (start, order) = cover(iova, bytes);
        let unit = &self.units[unit];
        unit.locked(ctx, |atomic| unit.forget_pages(atomic, tag, start, order))
    }

    /// Where `iova` leads in a domain.
    #[must_use]
    pub fn translate(&self, domain: DomainHandle, iova: Iova) -> Option<(PhysAddr, Access)> {
        self.books.borrow().domains.get(&domain)?.translate(self.hal, iova).ok().flatten()
    }

    /// From now on map and unmap are refused in the domain with this top table; or no longer. Whether there is such a
    /// domain.
    pub fn hold_mappings(&self, top_table: PhysAddr, held: bool) -> bool {
        let mut books = self.books.borrow_mut();
        let Some(domain) = books.at(top_table).and_then(|handle| books.domains.get_mut(&handle)) else {
            return false;
        };
        domain.hold(held);
        true
    }

    /// Calls `f` with runs of frames that hold all of the domain's tables: few, as tables lie in arenas.
    ///
    /// # Errors
    /// [`DomainError::NoDomain`].
    pub fn domain_tables(&self, domain: DomainHandle, f: &mut dyn FnMut(Extent)) -> Result<(), DomainError> {
        self.books.borrow().domains.get(&domain).ok_or(DomainError::NoDomain)?.tables(f);
        Ok(())
    }

    /// The domain's top table.
    #[must_use]
    pub fn top_table(&self, domain: DomainHandle) -> Option<PhysAddr> {
        self.books.borrow().domains.get(&domain).map(Domain::top)
    }

    /// The domain with this top table.
    #[must_use]
    pub fn domain_at(&self, top_table: PhysAddr) -> Option<DomainHandle> {
        self.books.borrow().at(top_table)
    }

    /// Which kind of tables the domain has.
    #[must_use]
    pub fn stage(&self, domain: DomainHandle) -> Option<Stage> {
        self.books.borrow().domains.get(&domain).map(|domain| domain.shape().stage)
    }

    /// Levels of the domain's tables.
    #[must_use]
    pub fn levels(&self, domain: DomainHandle) -> Option<u8> {
        self.books.borrow().domains.get(&domain).map(|domain| domain.shape().levels)
    }

    /// The domain's id on a unit, while it has one there: from the first attached requester to the last.
    #[must_use]
    pub fn domain_id(&self, domain: DomainHandle, unit: UnitId) -> Option<DomainId> {
        let unit = self.units.iter().position(|u| u.id() == unit)?;
        self.books.borrow().domains.get(&domain)?.id_on(unit)
    }

    /// Keeps a domain id of a unit from being given out (I5), until an imported domain claims it.
    ///
    /// # Errors
    /// [`DomainError::DomainIdTaken`], [`DomainError::NoUnit`].
    pub fn reserve_domain_id(&self, unit: UnitId, id: DomainId) -> Result<(), DomainError> {
        let index = self.index_of(unit)?;
        let claimed = self.books.borrow_mut().ids[index].claim(id, Owner::Reserved);
        if claimed { Ok(()) } else { Err(DomainError::DomainIdTaken { unit, id }) }
    }

    /// Gives a reserved id that no domain claimed back. Hardware must have forgotten it.
    ///
    /// # Errors
    /// [`DomainError::DomainIdTaken`] when it is not merely reserved, [`DomainError::NoUnit`].
    pub fn release_domain_id(&self, unit: UnitId, id: DomainId) -> Result<(), DomainError> {
        let index = self.index_of(unit)?;
        let ids = &mut self.books.borrow_mut().ids[index];
        if ids.owner(id) != Some(Owner::Reserved) {
            return Err(DomainError::DomainIdTaken { unit, id });
        }
        ids.release(id);
        Ok(())
    }

    /// Takes over a domain that a predecessor built, of the stage that the configured mode is for. Its mappings are held
    /// until [`Self::hold_mappings`] lets them go. Its ids, reserved before or free, are kept for as long as the domain
    /// lives.
    ///
    /// # Errors
    /// [`DomainError`]; nothing has changed.
    pub fn import_domain(
        &self,
        ctx: &mut MaySleep,
        top_table: PhysAddr,
        levels: u8,
        ids: &[(UnitId, DomainId)],
        tables: &[Extent],
    ) -> Result<DomainHandle, DomainError> {
        self.import_staged_domain(ctx, self.setup.config.mode.stage(), top_table, levels, ids, tables)
    }

    /// As [`Self::import_domain`], of the stage named.
    ///
    /// # Errors
    /// [`DomainError`]; nothing has changed.
    pub fn import_staged_domain(
        &self,
        _ctx: &mut MaySleep,
        stage: Stage,
        top_table: PhysAddr,
        levels: u8,
        ids: &[(UnitId, DomainId)],
        tables: &[Extent],
    ) -> Result<DomainHandle, DomainError> {
        let units: Vec<UnitId> = ids.iter().map(|(unit, _)| *unit).collect();
        let mut domain = Domain::import(self.hal, self.shape(&units, stage, levels)?, top_table, tables)?;
        let mut books = self.books.borrow_mut();
        if books.at(top_table).is_some() {
            return Err(DomainError::TopTable(top_table));
        }
        for &(unit, id) in ids {
            let index = self.index_of(unit)?;
            let free = matches!(books.ids[index].owner(id), None | Some(Owner::Reserved));
            let zero_or_beyond = id.0 == 0 || u32::from(id.0) >= self.units[index].cap().domain_ids();
            if !free || zero_or_beyond || domain.id_on(index).is_some() {
                return Err(DomainError::DomainIdTaken { unit, id });
            }
            domain.add_id(index, id);
        }
        let handle = books.add(domain);
        for &(unit, id) in ids {
            let claimed = books.ids[self.index_of(unit)?].claim(id, Owner::Domain(handle));
            debug_assert!(claimed, "checked above");
        }
        Ok(handle)
    }

    fn index_of(&self, unit: UnitId) -> Result<usize, DomainError> {
        self.units.iter().position(|u| u.id() == unit).ok_or(DomainError::NoUnit(unit))
    }
}

/// The smallest aligned run of `2^order` pages that covers a range.
fn cover(iova: Iova, bytes: u64) -> (Iova, u8) {
    let first = iova.get() / PAGE_SIZE;
    let last = (iova.get() + (bytes - 1)) / PAGE_SIZE;
    // Bits in which first and last differ, and all below.
    let order = (u64::BITS - (first ^ last).leading_zeros()) as u8;
    (Iova::new((first >> order << order) * PAGE_SIZE), order)
}
