//! One address space: a page table, the frames it is made of, and its id on each unit that uses it.
//!
//! A domain changes tables in memory only; making hardware forget is up to the [`crate::driver`], which knows the units.
//! Hence unmapping has two ends: [`Domain::unmap`] takes tables out, and [`Domain::settle`] gets their frames back when
//! no unit can walk them any more.

use crate::Hal;
use crate::arena::{Arena, DOMAIN_CHUNK};
use crate::error::{DomainError, MapError};
use crate::table::format::{Access, Format, Stage, Staged};
use crate::table::walk::{self, Mapping};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, NoMemory, TableMemory};
use spec::{DomainId, Extent, Iova, PAGE_SIZE, PhysAddr};

/// Writes to this range are interrupts, whatever a table says (VT-d 3.14).
const INTERRUPTS: core::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Names a domain of one driver. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainHandle(pub(crate) u64);

/// What the tables of a domain may look like, for all its units to be able to walk them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Which kind of tables.
    pub stage: Stage,
    /// Levels: 3 to 5 in the second stage, 4 or 5 in the first.
    pub levels: u8,
    /// Large leaves, as in CAP.SSLPS: bit 0 2 MiB, bit 1 1 GiB.
    pub sslps: u64,
    /// Width of an I/O virtual address in bits.
    pub input_bits: u32,
    /// Width of a host address in bits.
    pub output_bits: u32,
}

/// An address space.
#[derive(Debug)]
pub struct Domain {
    shape: Shape,
    format: Staged,
    top: PhysAddr,
    arena: Arena,
    held: bool,
    /// Built by a predecessor: its ids are kept until it is destroyed.
    imported: bool,
    /// Its id on units, by their index; at most one for each.
    ids: Vec<(usize, DomainId)>,
}

/// What [`Domain::unmap`] did.
#[derive(Debug)]
pub struct Unmapped {
    /// Bytes that were mapped.
    pub bytes: u64,
    /// Tables taken out, for [`Domain::settle`].
    pub removed: Vec<PhysAddr>,
}

impl Domain {
    /// An empty domain.
    ///
    /// # Errors
    /// [`DomainError::OutOfMemory`].
    pub fn new<H: Hal>(hal: &H, ctx: &mut MaySleep, shape: Shape) -> Result<Self, DomainError> {
        Self::with_chunks(hal, ctx, shape, DOMAIN_CHUNK)
    }

    pub(crate) fn with_chunks<H: Hal>(
        hal: &H,
        ctx: &mut MaySleep,
        shape: Shape,
        chunk: u64,
    ) -> Result<Self, DomainError> {
        let mut arena = Arena::new(chunk);
        let none = DomainError::OutOfMemory { frames: 1 };
        arena.reserve(hal, ctx, 1).map_err(|_| none)?;
        let top = arena.take().ok_or(none)?;
        Ok(Self::around(top, arena, shape, false))
    }

    /// A domain that a predecessor built, in the frames of `tables`. Its mappings are held.
    ///
    /// # Errors
    /// [`DomainError::TopTable`] when the top table is not among the frames; [`DomainError::NoMemory`].
    pub fn import<M: TableMemory>(
        memory: &M,
        shape: Shape,
        top: PhysAddr,
        tables: &[Extent],
    ) -> Result<Self, DomainError> {
        if !top.is_aligned(PAGE_SIZE) || !tables.iter().any(|run| run.contains(top.frame())) {
            return Err(DomainError::TopTable(top));
        }
        memory.read(top)?;
        Ok(Self::around(top, Arena::around(tables, DOMAIN_CHUNK), shape, true))
    }

    fn around(top: PhysAddr, arena: Arena, shape: Shape, imported: bool) -> Self {
        let format = Staged::new(shape.stage, shape.levels, shape.sslps);
        Self { shape, format, top, arena, held: imported, imported, ids: Vec::new() }
    }

    /// The top table.
    #[must_use]
    pub const fn top(&self) -> PhysAddr {
        self.top
    }
    /// What its tables may look like.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }
    /// Whether map and unmap are refused.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held
    }
    /// Whether a predecessor built it.
    #[must_use]
    pub const fn is_imported(&self) -> bool {
        self.imported
    }
    /// Refuses map and unmap from now on, or no longer.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }
    /// Its ids, with the index of the unit.
    #[must_use]
    pub fn ids(&self) -> &[(usize, DomainId)] {
        &self.ids
    }
    /// Its id on a unit.
    #[must_use]
    pub fn id_on(&self, unit: usize) -> Option<DomainId> {
        self.ids.iter().find(|(u, _)| *u == unit).map(|(_, id)| *id)
    }
    /// Books its id on a unit.
    pub fn add_id(&mut self, unit: usize, id: DomainId) {
        self.ids.push((unit, id));
    }
    /// It has no id on this unit any more.
    pub fn remove_id(&mut self, unit: usize) {
        self.ids.retain(|(u, _)| *u != unit);
    }
    /// Calls `f` with runs of frames that hold all its tables.
    pub fn tables(&self, f: &mut dyn FnMut(Extent)) {
        self.arena.extents(f);
    }
    /// Number of frames that its tables take.
    #[must_use]
    pub fn table_frames(&self) -> u64 {
        self.arena.in_use()
    }

    /// Where `iova` leads.
    ///
    /// # Errors
    /// [`NoMemory`] when a table lies where there is none.
    pub fn translate<M: TableMemory>(
        &self,
        memory: &M,
        iova: Iova,
    ) -> Result<Option<(PhysAddr, Access)>, NoMemory> {
        if iova.get() >> self.shape.input_bits != 0 {
            return Ok(None);
        }
        walk::translate(memory, self.format, self.top, iova)
    }

    /// Writes a mapping. Units with caching mode must be told.
    ///
    /// # Errors
    /// [`MapError`]; memory and arena are as they were (I7).
    pub fn map<H: Hal>(
        &mut self,
        hal: &H,
        ctx: &mut MaySleep,
        iova: Iova,
        phys: PhysAddr,
        bytes: u64,
        access: Access,
    ) -> Result<(), MapError> {
        let end = self.check(iova, bytes)?;
        if !phys.is_aligned(PAGE_SIZE) {
            return Err(MapError::Misaligned { iova, bytes });
        }
        within(phys.get(), bytes, self.shape.output_bits)?;
        if iova.get() < INTERRUPTS.end && end > INTERRUPTS.start {
            return Err(MapError::InterruptRange);
        }
        if !access.read && !access.write {
            return Err(MapError::NoAccess);
        }
        if !self.format.can_grant(access) {
            return Err(MapError::WriteOnly);
        }
        let mapping = Mapping { iova: iova.get(), phys, bytes, access };
        let tables = walk::plan_map(hal, self.format, self.top, &mapping)?;
        self.reserve(hal, ctx, tables)?;
        let arena = &mut self.arena;
        let mut take = || arena.take().expect("reserved by the plan");
        let written = walk::map(hal, self.format, self.top, &mapping, &mut take);
        if written.is_err() {
            // The range was empty. Removed tables stay booked: hardware may have seen them.
            let _ = self.unmap(hal, ctx, iova, bytes);
        }
        Ok(written?)
    }

    /// Clears whatever is mapped in the range. Units must forget it before anything of it is used again; then
    /// [`Self::settle`].
    ///
    /// # Errors
    /// [`MapError`]; nothing has changed.
    pub fn unmap<H: Hal>(
        &mut self,
        hal: &H,
        ctx: &mut MaySleep,
        iova: Iova,
        bytes: u64,
    ) -> Result<Unmapped, MapError> {
        let range = (iova.get(), self.check(iova, bytes)?);
        let tables = walk::plan_unmap(hal, self.format, self.top, range.0, range.1)?;
        self.reserve(hal, ctx, tables)?;
        let arena = &mut self.arena;
        let mut take = || arena.take().expect("reserved by the plan");
        let mut removed = Vec::new();
        let bytes = walk::unmap(hal, self.format, self.top, range, &mut take, &mut removed)?;
        Ok(Unmapped { bytes, removed })
    }

    /// Gets the frames of removed tables back: every unit has forgotten them.
    pub fn settle<H: Hal>(&mut self, hal: &H, ctx: &mut MaySleep, removed: Vec<PhysAddr>) {
        for table in removed {
            // A table that is in no arena came with an imported domain and was not declared: it is left alone.
            self.arena.give(table);
        }
        self.arena.trim(hal, ctx);
    }

    /// Gives all table frames back to the host. Every unit has forgotten the domain.
    pub fn dissolve<H: Hal>(self, hal: &H, ctx: &mut MaySleep) {
        self.arena.dissolve(hal, ctx);
    }

    /// Checks what map and unmap have in common. The end of the range.
    fn check(&self, iova: Iova, bytes: u64) -> Result<u64, MapError> {
        if self.held {
            return Err(MapError::Frozen);
        }
        if bytes == 0 || bytes % PAGE_SIZE != 0 || iova.get() % PAGE_SIZE != 0 {
            return Err(MapError::Misaligned { iova, bytes });
        }
        within(iova.get(), bytes, self.shape.input_bits)
    }

    fn reserve<H: Hal>(&mut self, hal: &H, ctx: &mut MaySleep, frames: u64) -> Result<(), MapError> {
        self.arena.reserve(hal, ctx, frames).map_err(|e| MapError::OutOfMemory { frames: e.frames })
    }
}

/// The end of `start..start + bytes`, which must lie within `bits` bits. `bytes` is not zero.
fn within(start: u64, bytes: u64, bits: u32) -> Result<u64, MapError> {
    let last = start.saturating_add(bytes - 1);
    if last >> bits != 0 {
        return Err(MapError::OutOfRange { bits, last });
    }
    Ok(last + 1)
}

impl Shape {
    /// Bits that tables of `levels` levels translate.
    #[must_use]
    pub const fn table_bits(levels: u8) -> u32 {
        12 + 9 * levels as u32
    }
    /// Bits of the addresses that tables of `levels` levels are used for here. First-stage addresses must be canonical
    /// (VT-d 3.6): the upper half of the tables lies at the far end of 64 bits, and only the lower half is given out.
    #[must_use]
    pub const fn address_bits(stage: Stage, levels: u8) -> u32 {
        match stage {
            Stage::Second => Self::table_bits(levels),
            Stage::First => Self::table_bits(levels) - 1,
        }
    }
    /// Whether the shape's tables have the format's own number of levels (they do unless out of 3 to 5, or 4 to 5 in the
    /// first stage).
    #[must_use]
    pub fn is_valid(&self) -> bool {
        Staged::new(self.stage, self.levels, self.sslps).levels() == self.levels
    }
}
