//! Requesters in scalable mode that a predecessor left attached: their entries are read, compared and booked.

use crate::Hal;
use crate::driver::{Attached, Books, Iommu, PasidUse};
use crate::error::{AttachError, DomainError};
use crate::ids::Owner;
use crate::pasid::{Attachment, Directory};
use crate::requesters::distinct;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use liveupdate::host::{MaySleep, Unit};
use spec::scalable::{PasidEntry, PasidTranslation, ScalableContextEntry};
use spec::{DomainId, PhysAddr, Requester, SourceId};

impl<H: Hal> Iommu<'_, H> {
    /// Books a requester whose entries a predecessor wrote, with all its PASIDs. Its context entries, its directory and its
    /// PASID entries are compared, not written; a PASID that is present and not named is a mismatch. A requester in
    /// pass-through cannot be taken over. Its directory and tables are given to the host when it is detached.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn import_pasids(
        &self,
        _ctx: &mut MaySleep,
        requester: Requester,
        aliases: &[SourceId],
        attachments: &[(u32, Attachment)],
    ) -> Result<(), AttachError> {
        let unit = self.scalable_unit(requester)?;
        let mut books = self.books.borrow_mut();
        if books.requesters.contains_key(&requester) {
            return Err(AttachError::Attached(requester));
        }
        let sources = distinct(requester, aliases);
        let mut directory = self.directory_of(unit, requester, &sources)?;
        let mut there = BTreeMap::new();
        directory.read(self.hal(), &mut |pasid, entry| _ = there.insert(pasid, entry))?;
        let tables: BTreeSet<PhysAddr> = directory.tables.values().copied().collect();
        if tables.len() != directory.tables.len() || attachments.is_empty() {
            return Err(AttachError::Mismatch { requester, source: requester.source });
        }
        let mut pasids = BTreeMap::new();
        for &(pasid, what) in attachments {
            let mismatch = AttachError::PasidMismatch { requester, pasid };
            let entry = *there.get(&pasid).ok_or(mismatch)?;
            let id = entry.domain_id();
            let expected = self.pasid_entry(&books, unit, requester, what, id)?;
            let named = match what {
                Attachment::Domain(domain) => books.domains.get(&domain).and_then(|d| d.id_on(unit)),
                Attachment::Nested { .. } => Some(id),
                Attachment::PassThrough => None,
            };
            if !same_translation(entry, expected) || named != Some(id) || pasids.contains_key(&pasid) {
                return Err(mismatch);
            }
            pasids.insert(pasid, PasidUse { what, id });
        }
        let others = |pasid: &&u32| {
            !pasids.contains_key(*pasid) && books.shared(requester, directory.at(), **pasid).is_none()
        };
        if let Some(&pasid) = there.keys().find(others) {
            return Err(AttachError::PasidMismatch { requester, pasid });
        }
        books.claim_nested(self.units()[unit].id(), unit, requester, directory.at(), &pasids)?;
        let at = directory.at();
        books.directories.insert(at, directory);
        books.requesters.insert(requester, Attached { unit, sources, pasids, directory: Some(at) });
        Ok(())
    }

    /// The directory that the context entries of all `sources` lead to, as they are in memory.
    fn directory_of(
        &self,
        unit: usize,
        requester: Requester,
        sources: &[SourceId],
    ) -> Result<Directory, AttachError> {
        let unit = &self.units()[unit];
        let mut first: Option<ScalableContextEntry> = None;
        for &source in sources {
            let there = unit.scalable_context_entry(source)?.unwrap_or_default();
            // Who may fault silently, and what the device may do beside, is the predecessor's choice.
            let bare = there.with_fpd(false).with_dte(false).with_pre(false).with_paside(false).with_pdts(0);
            let plain = ScalableContextEntry::ZERO.with_present(true).with_pasiddirptr(there.pasiddirptr());
            let same = first.is_none_or(|first| first == there);
            if bare.with_rid_priv(false) != plain || !same {
                return Err(AttachError::Mismatch { requester, source });
            }
            first = Some(there);
        }
        first.map(Directory::of).ok_or(AttachError::NotAttached(requester))
    }
}

/// Whether two PASID entries of one domain id translate the same: everything else is the choice of who wrote them.
fn same_translation(one: PasidEntry, other: PasidEntry) -> bool {
    let (first, second) = match one.translation() {
        PasidTranslation::FirstStage => (true, false),
        PasidTranslation::SecondStage => (false, true),
        PasidTranslation::Nested => (true, true),
        _ => return false,
    };
    one.pgtt() == other.pgtt()
        && (!first || (one.fsptptr() == other.fsptptr() && one.fspm() == other.fspm()))
        && (!second || (one.ssptptr() == other.ssptptr() && one.aw() == other.aw()))
}

impl Books {
    /// Claims the ids of nested attachments that are imported: all or none.
    fn claim_nested(
        &mut self,
        id: spec::UnitId,
        unit: usize,
        requester: Requester,
        at: PhysAddr,
        pasids: &BTreeMap<u32, PasidUse>,
    ) -> Result<(), AttachError> {
        let mut claimed: Vec<(DomainId, bool)> = Vec::new();
        let mut nested: Vec<PasidUse> = Vec::new();
        for (&pasid, used) in pasids {
            let shared = self.shared(requester, at, pasid).is_some_and(|other| other.what == used.what);
            if shared || !matches!(used.what, Attachment::Nested { .. }) {
                continue;
            }
            // One id for the same tables, whoever nests them.
            if self.nested(unit).any(|other| other == used) || nested.contains(used) {
                continue;
            }
            nested.push(*used);
            let reserved = self.ids[unit].owner(used.id).is_some();
            if self.ids[unit].claim(used.id, Owner::Attachment) {
                claimed.push((used.id, reserved));
                continue;
            }
            for (id, reserved) in claimed {
                if reserved { self.ids[unit].shelve(id) } else { self.ids[unit].release(id) }
            }
            return Err(DomainError::DomainIdTaken { unit: id, id: used.id }.into());
        }
        Ok(())
    }
}
