//! Requesters that firmware reserved memory for (RMRR, VT-d 8.4): a management controller, integrated graphics. Their DMA to
//! that memory goes on whatever the operating system does, so that somebody has to think of each before the jump.
//!
//! One that is preserved must reach its reserved memory under the same addresses in its own domain, not in some default
//! domain that it left. One that is not preserved was reduced to its reserved memory, or is cut off by choice.

use crate::book::Domain;
use crate::error::FreezeError;
use crate::host::{Host, MaySleep, Unit};
use crate::mode::Mode;
use crate::mutant::{self, Mutant};
use crate::outgoing::Outgoing;
use crate::roots;
use crate::walk::{self, LARGEST_TREE, Visit};
use spec::{Extent, PAGE_SIZE, Requester};

/// Every requester that firmware reserved memory for, one entry per region, and what becomes of those that have a domain
/// and that nobody preserved. With a plain shutdown their DMA went on, because translation went off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservedMemory<'a> {
    /// They were reduced: attached to a domain that maps nothing but their reserved memory, and preserved so. A requester
    /// of this list that has a domain and is not preserved refuses the freeze: somebody must think of it.
    Reduced(&'a [(Requester, Extent)]),
    /// They are cut off like everybody else.
    CutOff(&'a [(Requester, Extent)]),
}

impl<H: Host> Outgoing<'_, '_, H> {
    /// That every preserved requester reaches its reserved memory, and that nobody was forgotten.
    pub(crate) fn check_reserved(
        &self,
        ctx: &mut MaySleep,
        reserved: ReservedMemory<'_>,
    ) -> Result<(), FreezeError> {
        let (ReservedMemory::Reduced(list) | ReservedMemory::CutOff(list)) = reserved;
        let forgotten_refuses = matches!(reserved, ReservedMemory::Reduced(_));
        for (requester, region) in list.iter().copied() {
            let mut owners = self.book.owners(requester.segment, requester.source);
            let owner = owners.next().and_then(|(_, kept)| self.book.domains.get(kept.domain));
            match owner {
                Some(domain) => self.check_identity(requester, region, domain)?,
                None if forgotten_refuses => self.check_thought_of(ctx, requester, region)?,
                None => {}
            }
        }
        Ok(())
    }

    /// That a requester that is not preserved reaches nothing, or that nothing is preserved behind its unit.
    fn check_thought_of(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        region: Extent,
    ) -> Result<(), FreezeError> {
        let kept = |unit: &&H::Unit| self.book.units.find(|k| k.id == unit.id()).is_some();
        let Some(unit) = self.host.unit_for(requester).filter(kept) else { return Ok(()) };
        let Some(mode) = Mode::of(unit.root()) else { return Ok(()) };
        let found =
            unit.locked(ctx, |_| roots::find(self.host, mode, unit.root().table(), requester.source))?;
        match found {
            Some((_, entry)) if entry.present() => Err(FreezeError::Reserved { requester, region }),
            _ => Ok(()),
        }
    }

    /// That `domain` maps the whole of `region` to itself. Below a second stage that must do so too.
    fn check_identity(
        &self,
        requester: Requester,
        region: Extent,
        domain: &Domain,
    ) -> Result<(), FreezeError> {
        let parent = domain.parent.and_then(|index| self.book.domains.get(index));
        for domain in core::iter::once(domain).chain(parent) {
            let mut mapped = 0;
            let stray = |_| FreezeError::ReservedNotMapped { requester, region };
            walk::walk(self.host, self.book.tree(domain), LARGEST_TREE, stray, &mut |visit| {
                if let Visit::Leaf(from, to) = visit {
                    let identity = from.get() / PAGE_SIZE == to.first().number();
                    mapped += if identity { shared_frames(to, region) } else { 0 };
                }
                Ok(())
            })?;
            if mapped != region.count() && !mutant::on(Mutant::DefaultIdentity) {
                return Err(FreezeError::ReservedNotMapped { requester, region });
            }
        }
        Ok(())
    }
}

/// How many frames two runs have in common.
fn shared_frames(a: Extent, b: Extent) -> u64 {
    let (first, end) = (a.first().max(b.first()), a.end().min(b.end()));
    end.number().saturating_sub(first.number())
}
