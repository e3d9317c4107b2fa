//! Requesters that firmware reserved memory for (RMRR, VT-d 8.4): reduced to exactly that memory.
//!
//! A management controller or an integrated display goes on using its reserved memory while kernels change. When it is not
//! preserved as it is, it is moved to a domain of its own that maps the reserved memory at its own addresses and nothing
//! else; that domain and the requester are then preserved like any other.

use crate::Hal;
use crate::domain::DomainHandle;
use crate::driver::Iommu;
use crate::error::{AttachError, DomainError, MapError};
use crate::pasid::Attachment;
use crate::table::format::Access;
use core::fmt;
use liveupdate::host::{MaySleep, Unit};
use spec::{Extent, Iova, Requester, SourceId};

/// Why a requester could not be reduced. It is attached as it was, unless the error is [`ReduceError::Lost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceError {
    /// No unit watches the requester, or it has no domain: it reaches nothing, and is not given more than it had.
    NotAttached(Requester),
    /// No domain could be made.
    Domain(DomainError),
    /// The reserved memory could not be mapped.
    Map(MapError),
    /// It could not be moved.
    Attach(AttachError),
    /// It could be attached neither to the new domain nor to the old one again: it reaches nothing.
    Lost(AttachError),
}

impl fmt::Display for ReduceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAttached(r) => write!(f, "{r} has no domain that it could be reduced from"),
            Self::Domain(e) => e.fmt(f),
            Self::Map(e) => e.fmt(f),
            Self::Attach(e) => e.fmt(f),
            Self::Lost(e) => write!(f, "the requester is detached for good: {e}"),
        }
    }
}
impl core::error::Error for ReduceError {}

impl<H: Hal> Iommu<'_, H> {
    /// Moves a requester to a domain that maps `regions` at their own addresses and nothing else.
    ///
    /// # Errors
    /// [`ReduceError`].
    pub fn reduce(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        regions: &[Extent],
    ) -> Result<DomainHandle, ReduceError> {
        let unit = self.unit_of(requester).ok_or(ReduceError::NotAttached(requester))?.id();
        // In scalable mode its other PASIDs go: the reserved memory is for requests without PASID.
        let before = self.pasids(requester);
        if before.is_empty() {
            return Err(ReduceError::NotAttached(requester));
        }
        let domain = self.create_domain(ctx, &[unit], None).map_err(ReduceError::Domain)?;
        let moved = self.map_reserved(ctx, domain, regions).and_then(|()| {
            self.detach(ctx, requester).map_err(ReduceError::Attach)?;
            self.attach(ctx, requester, aliases, domain).map_err(|why| {
                let back = before.iter().try_for_each(|&(pasid, what)| match what {
                    Attachment::Domain(domain) if pasid == 0 => self.attach(ctx, requester, aliases, domain),
                    _ => self.attach_as(ctx, requester, aliases, pasid, what),
                });
                back.map_or_else(ReduceError::Lost, |()| ReduceError::Attach(why))
            })
        });
        match moved {
            Ok(()) => Ok(domain),
            Err(why) => {
                // Nobody is attached to it: at worst its frames stay booked.
                let _ = self.destroy_domain(ctx, domain);
                Err(why)
            }
        }
    }

    fn map_reserved(
        &self,
        ctx: &mut MaySleep,
        domain: DomainHandle,
        regions: &[Extent],
    ) -> Result<(), ReduceError> {
        let access = Access { read: true, write: true };
        for region in regions {
            let at = Iova::new(region.start().get());
            self.map(ctx, domain, at, region.start(), region.bytes(), access).map_err(ReduceError::Map)?;
        }
        Ok(())
    }
}
