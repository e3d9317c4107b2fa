//! Domain ids of one unit: who has which (I5).

use crate::domain::DomainHandle;
use alloc::collections::BTreeMap;
use spec::DomainId;

/// Why an id is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Kept from being given out: it belongs to a domain that is not here (yet), or hardware did not confirm that it
    /// forgot the last one.
    Reserved,
    /// A domain of this driver.
    Domain(DomainHandle),
    /// A PASID of a requester that leads to no domain's own tables: nested, or pass-through.
    Attachment,
}

/// The ids of one unit.
#[derive(Debug)]
pub struct DomainIds {
    /// How many ids the unit tells apart; ids are 0 to this, exclusively.
    limit: u32,
    /// No id below this one is free.
    low: u32,
    owners: BTreeMap<u16, Owner>,
}

impl DomainIds {
    /// The ids of a unit that tells `limit` apart (CAP.ND). None has an owner.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        Self { limit, low: 1, owners: BTreeMap::new() }
    }

    /// Gives `id` to `owner`. Id 0 is never given: with caching mode hardware tags absent entries with it.
    #[must_use]
    pub fn claim(&mut self, id: DomainId, owner: Owner) -> bool {
        let free = match (self.owners.get(&id.0), owner) {
            (None, _) | (Some(Owner::Reserved), Owner::Domain(_) | Owner::Attachment) => true,
            (Some(_), _) => false,
        };
        let valid = id.0 != 0 && u32::from(id.0) < self.limit;
        if valid && free {
            self.owners.insert(id.0, owner);
        }
        valid && free
    }

    /// The lowest free id, given to `domain` now.
    pub fn allocate(&mut self, domain: DomainHandle) -> Option<DomainId> {
        self.allocate_for(Owner::Domain(domain))
    }

    /// The lowest free id, given to `owner` now.
    pub fn allocate_for(&mut self, owner: Owner) -> Option<DomainId> {
        let free = |id: &u16| !self.owners.contains_key(id);
        let id = (self.low..self.limit).filter_map(|id| u16::try_from(id).ok()).find(free)?;
        self.low = u32::from(id) + 1;
        self.owners.insert(id, owner);
        Some(DomainId(id))
    }

    /// Who has `id`.
    #[must_use]
    pub fn owner(&self, id: DomainId) -> Option<Owner> {
        self.owners.get(&id.0).copied()
    }

    /// The id is free again. Hardware must have forgotten it.
    pub fn release(&mut self, id: DomainId) {
        self.owners.remove(&id.0);
        self.low = self.low.min(u32::from(id.0).max(1));
    }

    /// The id's domain is gone, but hardware may not have forgotten it: kept from being given out.
    pub fn shelve(&mut self, id: DomainId) {
        self.owners.insert(id.0, Owner::Reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: DomainHandle = DomainHandle(1);
    const TWO: DomainHandle = DomainHandle(2);

    #[test]
    fn the_lowest_free_id_is_given_and_zero_never() {
        let mut ids = DomainIds::new(16);
        assert_eq!(ids.allocate(ONE), Some(DomainId(1)));
        assert!(ids.claim(DomainId(2), Owner::Reserved));
        assert_eq!(ids.allocate(TWO), Some(DomainId(3)));
        ids.release(DomainId(1));
        assert_eq!(ids.allocate(TWO), Some(DomainId(1)));
        assert!(!ids.claim(DomainId(0), Owner::Reserved));
    }

    #[test]
    fn ids_end_where_the_unit_no_longer_tells_them_apart() {
        let mut ids = DomainIds::new(16);
        for id in 1..16 {
            assert_eq!(ids.allocate(ONE), Some(DomainId(id)));
        }
        assert_eq!(ids.allocate(ONE), None);
        assert!(!ids.claim(DomainId(16), Owner::Reserved));
        let mut all = DomainIds::new(1 << 16);
        assert!((1..=u16::MAX).all(|_| all.allocate(ONE).is_some()));
        assert_eq!(all.allocate(ONE), None);
    }

    #[test]
    fn a_reserved_id_goes_to_one_domain_and_to_no_second() {
        let mut ids = DomainIds::new(16);
        assert!(ids.claim(DomainId(7), Owner::Reserved));
        assert!(!ids.claim(DomainId(7), Owner::Reserved));
        assert!(ids.claim(DomainId(7), Owner::Domain(ONE)));
        assert!(!ids.claim(DomainId(7), Owner::Domain(TWO)));
        assert_eq!(ids.owner(DomainId(7)), Some(Owner::Domain(ONE)));
    }
}
