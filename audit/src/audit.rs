//! The audit as a whole: its parts in order, and what they share.

use crate::collect::collect;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, What};
use crate::handover::Handover;
use crate::image::Image;
use crate::index::{Index, Reader};
use crate::kho::PreservedMap;
use crate::report::{Report, Sink};
use crate::scratch::{Scratch, Work};
use spec::regs::{Cap, Ecap, Gsts, Irta, RootAddr};
use spec::{PhysAddr, UnitId};

/// A unit's registers, read from hardware by the caller just before the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitState {
    /// Which unit.
    pub id: UnitId,
    /// Capability.
    pub cap: Cap,
    /// Extended capability.
    pub ecap: Ecap,
    /// Global status.
    pub status: Gsts,
    /// Root table address.
    pub root: RootAddr,
    /// Interrupt remapping table address; `None` where the host does not use interrupt remapping.
    pub interrupts: Option<Irta>,
}

/// At which point of an update the audit happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// In the outgoing kernel, sealed but not yet cut off: present entries that no preserved requester owns are counted
    /// as what the cut-off will clear, and unit digests are computed over the tables as they will be then.
    Sealed,
    /// In the incoming kernel, before adoption: such entries are violations, and tables are taken as they are.
    Arrived,
}

/// Audits the handover whose KHO tree is at `fdt`, against `units` as hardware has them.
///
/// Each violation is passed to `findings` as it is found. The audit goes on after a violation; it does not walk what is
/// declared wrongly (an undeclared table is reported, not entered). Time is linear in tables, records and runs of
/// preserved memory; the stack holds no table.
///
/// # Errors
/// [`Unreadable`] when the container itself cannot be read. Findings passed on before that stand.
pub fn audit<I: Image + ?Sized>(
    image: &I,
    fdt: PhysAddr,
    units: &[UnitState],
    stage: Stage,
    scratch: &mut Scratch<'_>,
    findings: &mut dyn FnMut(Finding),
) -> Result<Report, Unreadable> {
    let handover = Handover::locate(image, fdt)?;
    let counts = handover.verify()?;
    let (parts, work) = scratch.carve(&counts)?;
    let map = PreservedMap::open(image, handover.map())?;
    let mut sink = Sink::new(findings);
    let index = collect(&handover, &counts, units, parts, &mut sink)?;
    let reader = Reader { handover, index };
    let mut audit = Audit { image, reader, map, units, stage, work, sink };
    audit.memory()?;
    audit.units()?;
    audit.domain_ids();
    audit.entries();
    audit.attachments();
    audit.unit_digests();
    audit.interrupts()?;
    audit.domains()?;
    Ok(audit.sink.report())
}

/// What the parts of an audit share.
pub(crate) struct Audit<'a, 's, 'f, I: ?Sized> {
    pub(crate) image: &'a I,
    pub(crate) reader: Reader<'a, 's, I>,
    pub(crate) map: PreservedMap<'a, I>,
    pub(crate) units: &'a [UnitState],
    pub(crate) stage: Stage,
    pub(crate) work: Work<'s>,
    pub(crate) sink: Sink<'f>,
}

impl<'s, I: Image + ?Sized> Audit<'_, 's, '_, I> {
    pub(crate) const fn index(&self) -> Index<'s> {
        self.reader.index
    }

    /// The registers of the unit with this ordinal.
    pub(crate) fn state(&self, unit: u32) -> Option<UnitState> {
        self.units.get(self.index().state(unit)?).copied()
    }

    /// A finding that concerns no requester, domain or unit.
    pub(crate) fn found(&mut self, invariant: Invariant, at: u64, what: What) {
        self.found_in(invariant, None, at, what);
    }

    /// A finding that concerns a domain.
    pub(crate) fn found_in(&mut self, invariant: Invariant, domain: Option<u64>, at: u64, what: What) {
        self.sink.found(Finding { invariant, requester: None, domain, unit: None, at, what });
    }

    /// A finding that concerns a unit.
    pub(crate) fn found_on(&mut self, invariant: Invariant, unit: UnitId, at: u64, what: What) {
        self.sink.found(Finding { invariant, requester: None, domain: None, unit: Some(unit), at, what });
    }
}
