//! Mode continuity (I10): what is handed over, held against what a kernel says that it can adopt ([`Adoptable`]).
//!
//! The outgoing kernel asks before it seals: what its successor cannot drive is refused by name while everything can still
//! go on. The incoming kernel asks again of what it opened: when its predecessor did not, it fails closed.

use crate::book::{Attached, Book, Domain, Stage, Token};
use crate::host::Adoptable;
use crate::mode::Mode;
use core::fmt;
use spec::{Requester, UnitId};

impl Adoptable {
    const fn has_mode(&self, mode: Mode) -> bool {
        match mode {
            Mode::Legacy => self.legacy,
            Mode::Scalable => self.scalable,
        }
    }

    fn has_tables(&self, stage: Stage, levels: u8) -> bool {
        let depths = match stage {
            Stage::Second => self.second_stage,
            Stage::First => self.first_stage,
        };
        levels < u8::BITS as u8 && depths >> levels & 1 == 1
    }
}

/// What a kernel cannot adopt of what is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotAdoptable {
    /// A unit runs in a mode that it does not drive.
    Mode {
        /// The unit.
        unit: UnitId,
        /// Its mode.
        mode: Mode,
    },
    /// A domain has tables that it does not walk.
    Tables {
        /// The domain.
        domain: Token,
        /// Which kind of tables.
        stage: Stage,
        /// How many levels of them.
        levels: u8,
    },
    /// A domain lies below another, which it does not drive.
    Nested(Token),
    /// A requester has PASIDs, which it does not drive.
    Pasid {
        /// Who.
        requester: Requester,
        /// One of its PASIDs.
        pasid: u32,
    },
}

impl fmt::Display for NotAdoptable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode { unit, mode } => write!(f, "it cannot adopt unit {unit} in {mode}"),
            Self::Tables { domain, stage, levels } => {
                let stage = if *stage == Stage::First { "first" } else { "second" };
                write!(f, "it cannot walk domain {domain}: {stage}-stage tables of {levels} levels")
            }
            Self::Nested(domain) => write!(f, "it cannot adopt domain {domain}, which is nested"),
            Self::Pasid { requester, pasid } => {
                write!(f, "it cannot adopt PASID {pasid:#x} of {requester}: it drives no PASIDs")
            }
        }
    }
}
impl core::error::Error for NotAdoptable {}

impl Book<'_> {
    /// That a kernel which can adopt `able` can adopt all of this.
    pub(crate) fn adoptable_by(&self, able: &Adoptable) -> Result<(), NotAdoptable> {
        if let Some((_, unit)) = self.units.find(|u| !able.has_mode(u.mode)) {
            return Err(NotAdoptable::Mode { unit: unit.id, mode: unit.mode });
        }
        for (_, &Domain { token, stage, levels, parent, .. }) in self.domains.iter() {
            if !able.has_tables(stage, levels) {
                return Err(NotAdoptable::Tables { domain: token, stage, levels });
            }
            if parent.is_some() && !able.nested {
                return Err(NotAdoptable::Nested(token));
            }
        }
        let more = |a: &Attached| self.requesters.get(a.requester).filter(|k| k.rid_pasid() != a.pasid);
        let mut pasids = self.attachments.iter().filter_map(|(_, a)| Some((a.pasid, more(a)?)));
        match pasids.next().filter(|_| !able.pasids) {
            Some((pasid, kept)) => Err(NotAdoptable::Pasid { requester: kept.requester, pasid }),
            None => Ok(()),
        }
    }
}
