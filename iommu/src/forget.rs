//! Making a unit forget: context cache, PASID cache, IOTLB, always in this order and each seen done before the next
//! (VT-d 6.5.3): a translation cached in between would be tagged by an old entry.
//!
//! In legacy mode an invalidation names a requester, a domain, or pages. In scalable mode there is a PASID cache too, and
//! first-stage translations are known by PASID. Not every unit that offers scalable mode does what the specification says
//! there: QEMU before 10 takes the descriptors of PASID cache and PASID-based IOTLB and ignores them, later versions refuse
//! the latter in a queue of 128-bit descriptors. What every one of them does is to forget all contexts and all
//! translations. Hence [`Invalidation`]: by PASID on units that take 256-bit descriptors, which those versions do not;
//! whole caches on the others.

use crate::Hal;
use crate::command;
use crate::config::Mode;
use crate::queue::{Descriptor, Queue};
use crate::registers::Registers;
use crate::unit::VtdUnit;
use liveupdate::host::{Atomic, Forget, TimedOut};
use spec::invalidation::{
    ContextInvalidate, IotlbInvalidate, PasidCacheInvalidate, PasidIotlbInvalidate, granularity, kind,
    pasid_cache_granularity, pasid_iotlb_granularity,
};
use spec::regs::{Ccmd, IotlbCommand, Iva};
use spec::scalable::PasidTranslation;
use spec::{DomainId, Iova, PAGE_SIZE, SourceId};

/// How a unit is made to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// Legacy mode: requesters, domains and pages by name.
    Legacy,
    /// Scalable mode: requesters, domains, PASIDs and pages by name.
    ByPasid,
    /// Scalable mode: whole caches.
    Whole {
        /// Whether the unit takes descriptors for the PASID cache.
        pasid_cache: bool,
    },
}

/// How hardware tags the translations of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Second stage: by the domain's id and the page.
    Pages(DomainId),
    /// First stage: by id, PASID and page.
    Pasid(DomainId, u32),
    /// By id, but under addresses that are not the domain's own, or under PASIDs that are not known.
    Domain(DomainId),
}

/// A PASID entry that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) id: DomainId,
    pub(crate) pasid: u32,
    pub(crate) translation: PasidTranslation,
}

/// Which translations.
#[derive(Debug, Clone, Copy)]
enum Reach {
    Everything,
    Domain(DomainId),
    Pages(DomainId, Iova, u8),
    Pasid(DomainId, u32),
    PasidPages(DomainId, u32, Iova, u8),
}

/// Which entries of the PASID cache.
#[derive(Debug, Clone, Copy)]
enum Pasids {
    Everything,
    One(DomainId, u32),
}

impl Invalidation {
    /// Finds out how a unit with this queue is to be made to forget. Its root table is set.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub(crate) fn probe<H: Hal>(
        registers: &Registers<'_, H>,
        queue: Option<&Queue>,
        mode: Mode,
    ) -> Result<Self, TimedOut> {
        let (Some(queue), true) = (queue, mode.is_scalable()) else { return Ok(Self::Legacy) };
        let what = "the first PASID cache invalidation";
        let pasid_cache = queue.offer(registers, what, &[pasid_cache_descriptor(Pasids::Everything)])?;
        Ok(if queue.is_wide() && pasid_cache { Self::ByPasid } else { Self::Whole { pasid_cache } })
    }
}

impl<H: Hal> VtdUnit<'_, H> {
    /// How the unit is made to forget.
    #[must_use]
    pub const fn invalidation(&self) -> Invalidation {
        self.invalidation
    }

    pub(crate) fn forget_what(&self, what: Forget) -> Result<(), TimedOut> {
        match self.invalidation {
            Invalidation::Legacy => match what {
                Forget::Everything => {
                    self.forget_context(None)?;
                    self.forget_translations(Reach::Everything)
                }
                Forget::Requester { source, domain } => {
                    self.forget_context(Some((source, domain)))?;
                    self.forget_translations(Reach::Domain(domain))
                }
                Forget::Domain(domain) => self.forget_translations(Reach::Domain(domain)),
                Forget::Pages { domain, start, order } => {
                    self.forget_translations(Reach::Pages(domain, start, order))
                }
            },
            Invalidation::Whole { .. } => self.forget_whole(),
            Invalidation::ByPasid => match what {
                Forget::Everything => self.forget_whole(),
                Forget::Requester { source, domain } => {
                    // Under which PASIDs it was known is not said.
                    self.forget_context(Some((source, DomainId(0))))?;
                    self.forget_pasids(Pasids::Everything)?;
                    self.forget_translations(Reach::Domain(domain))
                }
                // Nor is it for these; by domain, translations of all PASIDs go.
                Forget::Domain(domain) | Forget::Pages { domain, .. } => {
                    self.forget_translations(Reach::Domain(domain))
                }
            },
        }
    }

    /// Forgets all contexts and all translations, as [`Forget::Everything`] does, but no PASID entries: what a driver makes of it
    /// that knows legacy mode alone. Entries that are cached serve on. For showing that mistake.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn forget_all_but_pasids(&self, _atomic: &Atomic) -> Result<(), TimedOut> {
        self.forget_context(None)?;
        self.forget_translations(Reach::Everything)
    }

    /// All caches, whole.
    fn forget_whole(&self) -> Result<(), TimedOut> {
        self.forget_context(None)?;
        if self.invalidation != (Invalidation::Whole { pasid_cache: false }) {
            self.forget_pasids(Pasids::Everything)?;
        }
        self.forget_translations(Reach::Everything)
    }

    /// Scalable mode: forgets the context entries of `sources`, and the PASID entries that are `gone` with all
    /// translations under them.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub(crate) fn forget_entries(
        &self,
        _atomic: &Atomic,
        sources: &[SourceId],
        gone: &[Gone],
    ) -> Result<(), TimedOut> {
        if self.invalidation != Invalidation::ByPasid {
            return self.forget_whole();
        }
        // Context entries of scalable mode have no domain id.
        sources.iter().try_for_each(|source| self.forget_context(Some((*source, DomainId(0)))))?;
        gone.iter().try_for_each(|g| self.forget_pasids(Pasids::One(g.id, g.pasid)))?;
        gone.iter().try_for_each(|g| {
            self.forget_translations(match g.translation {
                PasidTranslation::FirstStage | PasidTranslation::PassThrough => Reach::Pasid(g.id, g.pasid),
                _ => Reach::Domain(g.id),
            })
        })
    }

    /// Forgets `2^order` pages of a domain, from an address aligned to that size.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub(crate) fn forget_pages(
        &self,
        _atomic: &Atomic,
        tag: Tag,
        start: Iova,
        order: u8,
    ) -> Result<(), TimedOut> {
        if matches!(self.invalidation, Invalidation::Whole { .. }) {
            return self.forget_whole();
        }
        self.forget_translations(match tag {
            Tag::Pages(domain) => Reach::Pages(domain, start, order),
            Tag::Pasid(domain, pasid) => Reach::PasidPages(domain, pasid, start, order),
            Tag::Domain(domain) => Reach::Domain(domain),
        })
    }

    /// Makes a new context entry known: with caching mode hardware remembered that there was none, under domain id 0
    /// (VT-d 6.1).
    pub(crate) fn announce(
        &self,
        _atomic: &Atomic,
        source: SourceId,
        domain: DomainId,
    ) -> Result<(), TimedOut> {
        if !self.registers.cap().cm() {
            return self.flush_write_buffer();
        }
        self.forget_what(Forget::Requester { source, domain: DomainId(0) })?;
        self.forget_what(Forget::Domain(domain))
    }

    /// Makes a new PASID entry known, and the new context entries of `sources` that lead to it. With caching mode hardware
    /// remembered that there was none, and all of that PASID cache goes, whatever absent entries are tagged with.
    pub(crate) fn announce_pasid(
        &self,
        _atomic: &Atomic,
        sources: &[SourceId],
        domain: DomainId,
    ) -> Result<(), TimedOut> {
        if !self.registers.cap().cm() {
            return self.flush_write_buffer();
        }
        if self.invalidation != Invalidation::ByPasid {
            return self.forget_whole();
        }
        sources.iter().try_for_each(|source| self.forget_context(Some((*source, DomainId(0)))))?;
        self.forget_pasids(Pasids::Everything)?;
        self.forget_translations(Reach::Domain(DomainId(0)))?;
        self.forget_translations(Reach::Domain(domain))
    }

    /// Invalidates context entries: all, or those of one source-id.
    fn forget_context(&self, one: Option<(SourceId, DomainId)>) -> Result<(), TimedOut> {
        let (g, source, domain) = match one {
            None => (granularity::GLOBAL, 0, 0),
            Some((source, domain)) => (granularity::SELECTIVE, u64::from(source.raw()), u64::from(domain.0)),
        };
        match &self.queue {
            Some(queue) => {
                let descriptor = ContextInvalidate::ZERO.with_kind(kind::CONTEXT).with_g(g);
                let descriptor = descriptor.with_sid(source).with_did(domain).raw();
                queue.submit(&self.registers, "context cache invalidation", &[descriptor])
            }
            None => {
                command::context(&self.registers, Ccmd::ZERO.with_cirg(g).with_sid(source).with_did(domain))
            }
        }
    }

    fn forget_pasids(&self, which: Pasids) -> Result<(), TimedOut> {
        // Scalable mode is not entered without a queue.
        let Some(queue) = &self.queue else { return Ok(()) };
        queue.submit(&self.registers, "PASID cache invalidation", &[pasid_cache_descriptor(which)])
    }

    /// Invalidates translations, and drains requests under way where hardware can.
    fn forget_translations(&self, reach: Reach) -> Result<(), TimedOut> {
        let cap = self.registers.cap();
        let selective = |order: u8| cap.psi() && u64::from(order) <= cap.mamv();
        let page = |start: Iova, order: u8| (start.get() / PAGE_SIZE) >> order << order;
        let (g, domain, pages) = match reach {
            Reach::Everything => (granularity::GLOBAL, 0, None),
            Reach::Pages(domain, start, order) if selective(order) => {
                (granularity::SELECTIVE, domain.0, Some((page(start, order), u64::from(order))))
            }
            Reach::Domain(domain) | Reach::Pages(domain, ..) => (granularity::DOMAIN, domain.0, None),
            Reach::PasidPages(domain, pasid, start, order) if selective(order) => {
                return self.forget_pasid_translations(domain, pasid, Some((page(start, order), order)));
            }
            Reach::Pasid(domain, pasid) | Reach::PasidPages(domain, pasid, ..) => {
                return self.forget_pasid_translations(domain, pasid, None);
            }
        };
        let (page, order) = pages.unwrap_or((0, 0));
        match &self.queue {
            Some(queue) => {
                let descriptor =
                    IotlbInvalidate::ZERO.with_kind(kind::IOTLB).with_g(g).with_did(u64::from(domain));
                let descriptor =
                    descriptor.with_dw(cap.dwd()).with_dr(cap.drd()).with_am(order).with_addr(page);
                queue.submit(&self.registers, "IOTLB invalidation", &[descriptor.raw()])
            }
            None => {
                let command = IotlbCommand::ZERO.with_iirg(g).with_did(u64::from(domain));
                let command = command.with_dw(cap.dwd()).with_dr(cap.drd());
                let pages = pages.map(|_| Iva::ZERO.with_am(order).with_addr(page));
                command::iotlb(&self.registers, command, pages)
            }
        }
    }

    /// Translations of one PASID: of a run of `2^order` pages, or all.
    fn forget_pasid_translations(
        &self,
        domain: DomainId,
        pasid: u32,
        pages: Option<(u64, u8)>,
    ) -> Result<(), TimedOut> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let descriptor = PasidIotlbInvalidate::ZERO.with_kind(kind::PASID_IOTLB);
        let descriptor = descriptor.with_did(u64::from(domain.0)).with_pasid(u64::from(pasid));
        let descriptor = match pages {
            Some((page, order)) => {
                descriptor.with_g(pasid_iotlb_granularity::PAGE).with_am(u64::from(order)).with_addr(page)
            }
            None => descriptor.with_g(pasid_iotlb_granularity::PASID),
        };
        queue.submit(&self.registers, "PASID-based IOTLB invalidation", &[descriptor.raw()])
    }
}

fn pasid_cache_descriptor(which: Pasids) -> Descriptor {
    let descriptor = PasidCacheInvalidate::ZERO.with_kind(kind::PASID_CACHE);
    match which {
        Pasids::Everything => descriptor.with_g(pasid_cache_granularity::GLOBAL).raw(),
        Pasids::One(domain, pasid) => {
            let descriptor = descriptor.with_g(pasid_cache_granularity::PASID);
            descriptor.with_did(u64::from(domain.0)).with_pasid(u64::from(pasid)).raw()
        }
    }
}
