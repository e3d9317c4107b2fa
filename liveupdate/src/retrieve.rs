//! The incoming side, adopted: everything that was handed over is taken by its token, domains before requesters.

use crate::book::{Attached, Book, Domain, DomainState, Stage, Token};
use crate::host::{DeviceTlb, Host};
use crate::interrupts;
use crate::mutant::{self, Mutant};
use crate::open::Opened;
use spec::scalable::PasidEntry;
use spec::{DomainId, Extent, PhysAddr, Requester, SourceId, UnitId};

/// A retrieved domain: its tables are the host's from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrievedDomain {
    /// Its name.
    pub token: Token,
    /// Its top table.
    pub top_table: PhysAddr,
    /// Which kind of tables it has.
    pub stage: Stage,
    /// Levels of its tables.
    pub levels: u8,
    /// Name of the second stage that they lie below (nested).
    pub parent: Option<Token>,
}

/// A retrieved requester: its driver takes the device over without reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrievedRequester {
    /// Its name.
    pub token: Token,
    /// Who it is.
    pub requester: Requester,
    /// The unit.
    pub unit: UnitId,
    /// Name of the domain of its requests without PASID, which was retrieved before, and the domain's id on the unit.
    /// `None` when that domain is blocked and other PASIDs go on.
    pub domain: Option<(Token, DomainId)>,
    /// Its device keeps translations: its driver goes on invalidating them.
    pub device_tlb: Option<DeviceTlb>,
    /// Its device asked for pages until the freeze: to be switched on again, once the unit has a queue for them.
    pub page_requests: bool,
}

/// A PASID of a retrieved requester: the driver's from now on. In legacy mode there is one, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrievedPasid {
    /// The PASID.
    pub pasid: u32,
    /// Name of the domain whose tables its entry leads to, of a nested entry that of the first stage. It was retrieved
    /// before.
    pub domain: Token,
    /// Of a nested entry, name of the domain of the second stage, retrieved before too.
    pub parent: Option<Token>,
    /// The domain id in the entry.
    pub domain_id: DomainId,
    /// The entry; zero in legacy mode. A nested one points to the first stage with an address of the second.
    pub entry: PasidEntry,
}

/// Why something cannot be retrieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetrieveError {
    /// Nothing of this kind was handed over under that token.
    Unknown(Token),
    /// It was retrieved before.
    Twice(Token),
    /// It failed its checks and was blocked.
    Blocked(Token),
    /// The requester's domain comes first.
    DomainFirst {
        /// The requester.
        requester: Requester,
        /// Its domain.
        domain: Token,
    },
}

impl core::fmt::Display for RetrieveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unknown(t) => write!(f, "nothing of this kind was handed over under token {t}"),
            Self::Twice(t) => write!(f, "{t} was retrieved before"),
            Self::Blocked(t) => write!(f, "{t} failed its checks and is blocked"),
            Self::DomainFirst { requester, domain } => {
                write!(f, "retrieve domain {domain} before its requester {requester}")
            }
        }
    }
}
impl core::error::Error for RetrieveError {}

/// An adopted handover, until [`Incoming::finish`].
#[derive(Debug)]
pub struct Incoming<'h, 's, H: Host> {
    pub(crate) host: &'h H,
    pub(crate) opened: Opened<'s>,
    /// Every unit confirmed that it forgot what adoption cleared.
    pub(crate) forgotten: bool,
}

impl<'s, H: Host> Incoming<'_, 's, H> {
    /// The memory region under `token`.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub fn retrieve_region(&mut self, token: Token) -> Result<Extent, RetrieveError> {
        let index = self.opened.book.region_named(token);
        let region = index.and_then(|i| self.opened.book.regions.get_mut(i));
        let region = region.ok_or(RetrieveError::Unknown(token))?;
        if region.retrieved {
            return Err(RetrieveError::Twice(token));
        }
        region.retrieved = true;
        Ok(region.extent)
    }

    /// The domain under `token`. [`Self::tables_of`] and [`Self::domain_ids_of`] say what it is made of.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub fn retrieve_domain(&mut self, token: Token) -> Result<RetrievedDomain, RetrieveError> {
        let book = &mut self.opened.book;
        let index = book.domains.find(|d| d.token == token).map(|(i, _)| i);
        let index = index.ok_or(RetrieveError::Unknown(token))?;
        let domain = book.domains.get_mut(index).ok_or(RetrieveError::Unknown(token))?;
        match domain.state {
            DomainState::Kept => domain.state = DomainState::Retrieved,
            DomainState::Retrieved => return Err(RetrieveError::Twice(token)),
            DomainState::Blocked => return Err(RetrieveError::Blocked(token)),
        }
        let Domain { top_table, stage, levels, parent, .. } = *domain;
        let parent = parent.and_then(|parent| book.domains.get(parent)).map(|p| p.token);
        Ok(RetrievedDomain { token, top_table, stage, levels, parent })
    }

    /// Every run of table frames of the domain under `token`. None, when it was not retrieved.
    pub fn tables_of(&self, token: Token) -> impl Iterator<Item = Extent> {
        let book = &self.opened.book;
        let index = book.retrieved_domain(token);
        book.tables.iter().filter(move |t| Some(t.domain) == index).map(|t| t.extent)
    }

    /// The id of the domain under `token` on each unit where a requester uses it. None, when it was not retrieved.
    pub fn domain_ids_of(&self, token: Token) -> impl Iterator<Item = (UnitId, DomainId)> {
        let book = &self.opened.book;
        let index = book.retrieved_domain(token);
        book.units.iter().filter_map(move |(unit_index, unit)| {
            let (_, user) = book.attachments.find(|a| a.unit == unit_index && Some(a.domain) == index)?;
            Some((unit.id, user.domain_id))
        })
    }

    /// The requester under `token`, with those of its PASIDs whose domains were retrieved: [`Self::aliases_of`] and
    /// [`Self::pasids_of`] name them. Its other PASIDs are cut off when this is finished; a driver that compares entries when
    /// it takes a requester over does so afterwards.
    ///
    /// # Errors
    /// [`RetrieveError`].
    pub fn retrieve_requester(&mut self, token: Token) -> Result<RetrievedRequester, RetrieveError> {
        let book = &mut self.opened.book;
        let any = mutant::on(Mutant::MinusOne) && token.0 == u64::MAX;
        let found = book.requesters.find(|k| k.token == token || any).map(|(i, k)| (i, *k));
        let (index, kept) = found.ok_or(RetrieveError::Unknown(token))?;
        if kept.retrieved && !mutant::on(Mutant::Twice) {
            return Err(RetrieveError::Twice(token));
        }
        if !book.is_any_sound(index) {
            return Err(RetrieveError::Blocked(token));
        }
        let without_pasid = book.attachments_of(index).find(|(_, a)| a.pasid == kept.rid_pasid());
        let without_pasid = without_pasid.map(|(_, a)| *a).filter(|a| book.is_sound(a));
        let missing = without_pasid.and_then(|a| book.not_retrieved(&a));
        if let Some(domain) = missing {
            return Err(RetrieveError::DomainFirst { requester: kept.requester, domain });
        }
        book.requesters.get_mut(index).into_iter().for_each(|k| k.retrieved = true);
        for slot in 0..book.attachments.capacity() {
            let attached = book.attachments.get(slot).copied().filter(|a| a.requester == index);
            let sound = attached.is_some_and(|a| book.is_sound(&a) && book.not_retrieved(&a).is_none());
            book.attachments.get_mut(slot).into_iter().filter(|_| sound).for_each(|a| a.retrieved = true);
        }
        Ok(RetrievedRequester {
            token,
            requester: kept.requester,
            unit: book.units.get(kept.unit).map(|u| u.id).unwrap_or_default(),
            domain: without_pasid.map(|a| (book.name_of(a.domain), a.domain_id)),
            device_tlb: kept.device_tlb,
            page_requests: kept.page_requests,
        })
    }

    /// The aliases of the requester under `token`: further source-ids of its requests. None, when it was not retrieved.
    pub fn aliases_of(&self, token: Token) -> impl Iterator<Item = SourceId> {
        let book = &self.opened.book;
        let index = book.retrieved_requester(token);
        book.aliases.iter().filter(move |(_, a)| Some(a.requester) == index).map(|(_, a)| a.source)
    }

    /// The PASIDs that were retrieved with the requester under `token`. None, when it was not.
    pub fn pasids_of(&self, token: Token) -> impl Iterator<Item = RetrievedPasid> {
        let book = &self.opened.book;
        let index = book.retrieved_requester(token);
        let retrieved =
            book.attachments.iter().filter(move |(_, a)| Some(a.requester) == index && a.retrieved);
        retrieved.map(|(_, attached)| RetrievedPasid {
            pasid: attached.pasid,
            domain: book.name_of(attached.domain),
            parent: attached.parent.map(|parent| book.name_of(parent)),
            domain_id: attached.domain_id,
            entry: attached.entry,
        })
    }

    /// Calls `f` with the index and the words of every interrupt entry of the requester under `token`, which was retrieved
    /// before: they are in place and in use. Says how many there are.
    ///
    /// # Errors
    /// [`RetrieveError::Unknown`], also of a requester that was not retrieved.
    pub fn retrieve_interrupts(
        &self,
        token: Token,
        f: &mut dyn FnMut(u16, [u64; 2]),
    ) -> Result<u32, RetrieveError> {
        let book = &self.opened.book;
        let found = book.requesters.find(|k| k.token == token && k.retrieved);
        let (index, kept) = found.ok_or(RetrieveError::Unknown(token))?;
        Ok(interrupts::of_requester(self.host, book, index, kept.unit, f))
    }

    /// Calls `f` with the tokens of everything handed over: regions, domains, requesters.
    pub fn for_each_token(&self, f: &mut dyn FnMut(Token)) {
        self.opened.book.regions.iter().for_each(|r| f(r.token));
        self.opened.book.domains.iter().for_each(|(_, d)| f(d.token));
        self.opened.book.requesters.iter().for_each(|(_, k)| f(k.token));
    }

    /// What was opened: regions, domains, requesters, units, as they were handed over.
    #[must_use]
    pub fn opened(&self) -> &Opened<'s> {
        &self.opened
    }

    /// Whether the domain under `token` failed its checks.
    #[must_use]
    pub fn is_blocked(&self, token: Token) -> bool {
        self.opened.book.domains.find(|d| d.token == token && d.state == DomainState::Blocked).is_some()
    }
}

impl Book<'_> {
    fn retrieved_domain(&self, token: Token) -> Option<usize> {
        let kept = |d: &Domain| d.token == token && d.state == DomainState::Retrieved;
        self.domains.find(kept).map(|(index, _)| index)
    }

    fn retrieved_requester(&self, token: Token) -> Option<usize> {
        self.requesters.find(|k| k.token == token && k.retrieved).map(|(index, _)| index)
    }

    /// The name of the domain at `index`, which is one.
    fn name_of(&self, index: usize) -> Token {
        self.domains.get(index).map_or(Token(0), |d| d.token)
    }

    /// The first domain of a PASID that nobody retrieved yet.
    fn not_retrieved(&self, attached: &Attached) -> Option<Token> {
        let domains = attached.parent.into_iter().chain([attached.domain]);
        let mut domains = domains.filter_map(|index| self.domains.get(index));
        domains.find(|d| d.state != DomainState::Retrieved).map(|d| d.token)
    }
}
