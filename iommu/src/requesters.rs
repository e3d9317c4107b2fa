//! Requesters: attached to domains with all their aliases, detached, and taken over from a predecessor.
//!
//! Several requesters may arrive under one source-id (functions behind a bridge). Its entry exists once: written for the
//! first of them, cleared with the last, and all of them must be in one domain.
//!
//! What is said here of entries is legacy mode; in scalable mode, being attached is to have PASID 0 attached, see
//! [`crate::attachments`].

use crate::Hal;
use crate::domain::{Domain, DomainHandle};
use crate::driver::{Attached, Books, Iommu, PasidUse};
use crate::error::{AttachError, DomainError};
use crate::pasid::Attachment;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, Unit};
use spec::context::ContextEntry;
use spec::{DomainId, Requester, SourceId};

impl<H: Hal> Iommu<'_, H> {
    /// Attaches a requester and all its aliases to a domain: from now on their requests are translated by it.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed (I7).
    pub fn attach(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        domain: DomainHandle,
    ) -> Result<(), AttachError> {
        let unit = self.unit_index(requester).ok_or(AttachError::NoUnit(requester))?;
        if self.units()[unit].config().mode.is_scalable() {
            return self.attach_pasid(ctx, requester, aliases, 0, domain);
        }
        let mut books = self.books.borrow_mut();
        let sources = distinct(requester, aliases);
        let fresh = books.fresh(requester, &sources, domain)?;
        let found = books.domains.get(&domain).ok_or(AttachError::NoDomain(requester))?;
        self.suits(unit, found.shape())?;
        let (id, new) = match found.id_on(unit) {
            Some(id) => (id, false),
            None => {
                let none = DomainError::NoDomainId(self.units()[unit].id());
                (books.ids[unit].allocate(domain).ok_or(none)?, true)
            }
        };
        let entry = books.domains.get(&domain).map(|domain| entry_for(domain, id)).unwrap_or_default();
        if let Err(e) = self.units()[unit].attach_entries(ctx, &fresh, entry) {
            match e {
                _ if !new => {}
                // Hardware may have cached under this id.
                AttachError::TimedOut(_) => books.ids[unit].shelve(id),
                _ => books.ids[unit].release(id),
            }
            return Err(match e {
                AttachError::Occupied { source, .. } => AttachError::Occupied { requester, source },
                other => other,
            });
        }
        books.book(requester, Attached::legacy(unit, sources, domain, id), new);
        Ok(())
    }

    /// Detaches a requester, with all its PASIDs, and those of its aliases that no other requester uses. The domain keeps its
    /// id on the unit while others are attached there, or if it came with one.
    ///
    /// # Errors
    /// [`AttachError`]. After [`AttachError::TimedOut`] the entries are not present, but the requester counts as attached:
    /// detach again to try again.
    pub fn detach(&self, ctx: &mut MaySleep, requester: Requester) -> Result<(), AttachError> {
        self.detach_then_forget(ctx, requester, None, |ctx| self.detach_requester(ctx, requester))
    }

    fn detach_requester(&self, ctx: &mut MaySleep, requester: Requester) -> Result<(), AttachError> {
        let mut books = self.books.borrow_mut();
        let attached = books.requesters.get(&requester).ok_or(AttachError::NotAttached(requester))?.clone();
        if attached.directory.is_some() {
            let pasids: Vec<u32> = attached.pasids.keys().copied().collect();
            drop(books);
            return self.detach_pasids(ctx, requester, &pasids);
        }
        let shared = |source: &SourceId| books.users(requester, *source).next().is_some();
        let last: Vec<SourceId> = attached.sources.iter().copied().filter(|source| !shared(source)).collect();
        self.units()[attached.unit].detach_entries(ctx, &last)?;
        books.requesters.remove(&requester);
        let Some(domain) = attached.domain() else { return Ok(()) };
        let in_use = books.requesters.values().any(|a| a.unit == attached.unit && a.uses(domain));
        if let Some(domain) = books.domains.get_mut(&domain).filter(|d| !in_use && !d.is_imported()) {
            // Each entry's invalidation took the domain's translations along: the id can be used again.
            if let Some(id) = domain.id_on(attached.unit) {
                domain.remove_id(attached.unit);
                books.ids[attached.unit].release(id);
            }
        }
        Ok(())
    }

    /// Books a requester whose entries a predecessor wrote. They are compared, not written. In scalable mode the domain is
    /// that of PASID 0, and the requester has no other; see [`Self::import_pasids`].
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn import_requester(
        &self,
        ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        domain: DomainHandle,
    ) -> Result<(), AttachError> {
        let unit = self.unit_index(requester).ok_or(AttachError::NoUnit(requester))?;
        if self.units()[unit].config().mode.is_scalable() {
            return self.import_pasids(ctx, requester, aliases, &[(0, Attachment::Domain(domain))]);
        }
        let mut books = self.books.borrow_mut();
        let sources = distinct(requester, aliases);
        books.fresh(requester, &sources, domain)?;
        let found = books.domains.get(&domain).ok_or(AttachError::NoDomain(requester))?;
        for &source in &sources {
            let there = self.units()[unit].context_entry(source)?;
            let expected = found.id_on(unit).map(|id| entry_for(found, id));
            // Who may fault silently, and whether the device may hold translations, is the predecessor's choice.
            if there.map(|e| e.with_fpd(false).with_tt(0).raw()) != expected.map(ContextEntry::raw) {
                return Err(AttachError::Mismatch { requester, source });
            }
            let pass_through = there.is_some_and(|e| e.tt() > 1);
            if expected.is_none() || pass_through {
                return Err(AttachError::Mismatch { requester, source });
            }
        }
        let id = found.id_on(unit).unwrap_or_default();
        books.requesters.insert(requester, Attached::legacy(unit, sources, domain, id));
        Ok(())
    }

    /// The domain that a requester is attached to: in scalable mode, that of its requests without PASID.
    #[must_use]
    pub fn domain_of(&self, requester: Requester) -> Option<DomainHandle> {
        self.books.borrow().requesters.get(&requester).and_then(Attached::domain)
    }

    /// All attached requesters with their domains, in ascending order. In scalable mode only those whose requests without
    /// PASID have a domain.
    #[must_use]
    pub fn requesters(&self) -> Vec<(Requester, DomainHandle)> {
        self.books
            .borrow()
            .requesters
            .iter()
            .filter_map(|(requester, attached)| Some((*requester, attached.domain()?)))
            .collect()
    }
}

impl Books {
    /// Requesters other than `requester` that arrive under `source` too.
    pub(crate) fn users(&self, requester: Requester, source: SourceId) -> impl Iterator<Item = &Attached> {
        let others =
            self.requesters.iter().filter(move |(r, _)| **r != requester && r.segment == requester.segment);
        others.map(|(_, attached)| attached).filter(move |attached| attached.sources.contains(&source))
    }

    /// Those of `sources` that no attached requester uses yet.
    fn fresh(
        &self,
        requester: Requester,
        sources: &[SourceId],
        domain: DomainHandle,
    ) -> Result<Vec<SourceId>, AttachError> {
        if self.requesters.contains_key(&requester) {
            return Err(AttachError::Attached(requester));
        }
        let mut fresh = Vec::new();
        for &source in sources {
            let mut users = self.users(requester, source).peekable();
            if users.peek().is_none() {
                fresh.push(source);
            } else if users.any(|attached| attached.domain() != Some(domain)) {
                return Err(AttachError::Occupied { requester, source });
            }
        }
        Ok(fresh)
    }

    fn book(&mut self, requester: Requester, attached: Attached, new: bool) {
        for used in attached.pasids.values().filter(|_| new) {
            let domain = used.what.domain().and_then(|domain| self.domains.get_mut(&domain));
            domain.into_iter().for_each(|domain| domain.add_id(attached.unit, used.id));
        }
        self.requesters.insert(requester, attached);
    }
}

impl Attached {
    fn legacy(unit: usize, sources: Vec<SourceId>, domain: DomainHandle, id: DomainId) -> Self {
        let used = PasidUse { what: Attachment::Domain(domain), id };
        Self { unit, sources, pasids: BTreeMap::from([(0, used)]), directory: None }
    }
}

/// A requester's own source-id and its aliases, each once.
pub(crate) fn distinct(requester: Requester, aliases: &[SourceId]) -> Vec<SourceId> {
    let mut sources = Vec::with_capacity(1 + aliases.len());
    sources.push(requester.source);
    for &alias in aliases {
        if !sources.contains(&alias) {
            sources.push(alias);
        }
    }
    sources
}

/// The context entry that leads into a domain.
fn entry_for(domain: &Domain, id: DomainId) -> ContextEntry {
    let entry = ContextEntry::ZERO.with_present(true).with_ssptptr(domain.top().frame().number());
    entry.with_aw(u64::from(domain.shape().levels) - 2).with_did(u64::from(id.0))
}
