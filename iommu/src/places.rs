//! Who has which PASID of which directory, as it is booked: where a requester can be attached, what others of its directory
//! have, and which domain ids come and go with that.

use crate::driver::{Attached, Books, PasidUse};
use crate::error::{AttachError, DomainError};
use crate::forget::Gone;
use crate::ids::Owner;
use crate::pasid::Attachment;
use crate::table::format::Stage;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use spec::scalable::PasidTranslation;
use spec::{DomainId, PhysAddr, Requester, SourceId};

/// Where a requester is to be attached: those of its source-ids that have no context entry yet, and the directory that the
/// others lead to.
pub(crate) struct Place {
    pub(crate) fresh: Vec<SourceId>,
    pub(crate) directory: Option<PhysAddr>,
    /// Another requester of that directory has the PASID already.
    pub(crate) shared: Option<PasidUse>,
}

impl Books {
    /// Where a requester is to be attached.
    pub(crate) fn place(
        &self,
        requester: Requester,
        sources: &[SourceId],
        pasid: u32,
        what: Attachment,
    ) -> Result<Place, AttachError> {
        let mut place = Place { fresh: Vec::new(), directory: None, shared: None };
        if let Some(attached) = self.requesters.get(&requester) {
            if attached.pasids.contains_key(&pasid) {
                return Err(match pasid {
                    0 => AttachError::Attached(requester),
                    _ => AttachError::PasidInUse { requester, pasid },
                });
            }
            let set = |sources: &[SourceId]| sources.iter().copied().collect::<BTreeSet<_>>();
            if set(sources) != set(&attached.sources) {
                return Err(AttachError::Aliases(requester));
            }
            place.directory = attached.directory;
        }
        for &source in sources {
            let occupied = AttachError::Occupied { requester, source };
            for user in self.users(requester, source) {
                if place.directory.is_some() && user.directory != place.directory {
                    return Err(occupied);
                }
                place.directory = user.directory;
            }
            let own = self.requesters.contains_key(&requester);
            if !own && self.users(requester, source).next().is_none() {
                place.fresh.push(source);
            }
            place.shared = place.directory.and_then(|at| self.shared(requester, at, pasid));
            if place.shared.is_some_and(|used| used.what != what) {
                return Err(occupied);
            }
        }
        Ok(place)
    }

    /// What another requester of the directory at `at` means by a PASID.
    pub(crate) fn shared(&self, requester: Requester, at: PhysAddr, pasid: u32) -> Option<PasidUse> {
        let others = self.requesters.iter().filter(|(r, a)| **r != requester && a.directory == Some(at));
        others.filter_map(|(_, attached)| attached.pasids.get(&pasid)).next().copied()
    }

    /// The id for a new attachment, and whether it was taken just now.
    pub(crate) fn id_for(
        &mut self,
        id: spec::UnitId,
        unit: usize,
        what: Attachment,
    ) -> Result<(DomainId, bool), DomainError> {
        let owner = match what {
            Attachment::Domain(domain) => {
                if let Some(id) = self.domains.get(&domain).and_then(|d| d.id_on(unit)) {
                    return Ok((id, false));
                }
                Owner::Domain(domain)
            }
            Attachment::Nested { .. } => {
                // The same tables under two ids would be two domains, and a handover knows each domain by one id.
                if let Some(used) = self.nested(unit).find(|used| used.what == what) {
                    return Ok((used.id, false));
                }
                Owner::Attachment
            }
            Attachment::PassThrough => Owner::Attachment,
        };
        Ok((self.ids[unit].allocate_for(owner).ok_or(DomainError::NoDomainId(id))?, true))
    }

    /// What guests' tables are nested on a unit for, and under which ids.
    pub(crate) fn nested(&self, unit: usize) -> impl Iterator<Item = &PasidUse> {
        let on_unit = self.requesters.values().filter(move |attached| attached.unit == unit);
        let used = on_unit.flat_map(|attached| attached.pasids.values());
        used.filter(|used| matches!(used.what, Attachment::Nested { .. }))
    }

    /// A PASID entry that is about to go.
    pub(crate) fn gone(&self, attached: &Attached, pasid: u32) -> Option<Gone> {
        let used = attached.pasids.get(&pasid)?;
        let translation = match used.what {
            Attachment::Domain(domain) => match self.domains.get(&domain)?.shape().stage {
                Stage::Second => PasidTranslation::SecondStage,
                Stage::First => PasidTranslation::FirstStage,
            },
            Attachment::Nested { .. } => PasidTranslation::Nested,
            Attachment::PassThrough => PasidTranslation::PassThrough,
        };
        Some(Gone { id: used.id, pasid, translation })
    }

    /// A PASID's entry is gone and forgotten: its id is free again, unless its domain is in use on the unit elsewhere, or
    /// came with it.
    pub(crate) fn let_go(&mut self, unit: usize, used: PasidUse) {
        let Attachment::Domain(handle) = used.what else {
            if !self.nested(unit).any(|other| *other == used) {
                self.ids[unit].release(used.id);
            }
            return;
        };
        let direct = |a: &Attached| a.pasids.values().any(|used| used.what == Attachment::Domain(handle));
        let in_use = self.requesters.values().any(|a| a.unit == unit && direct(a));
        let id = match self.domains.get_mut(&handle) {
            Some(domain) if !in_use && !domain.is_imported() => {
                let id = domain.id_on(unit);
                domain.remove_id(unit);
                id
            }
            _ => None,
        };
        id.into_iter().for_each(|id| self.ids[unit].release(id));
    }
}
