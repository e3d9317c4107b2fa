//! Mistakes that can be put in on purpose, to see that the witnesses notice.
//!
//! None of them is in the core: they sit in the seam between core and hardware, in the incoming kernel before it has
//! adopted anything, or in what the platform has the outgoing kernel load. A run with one of them must end with exactly the
//! finding that belongs to it.

use crate::platform::Platform;
use spec::regs::{Gsts, offset};
use spec::{PhysAddr, UnitId};

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The incoming kernel switches translation off for 30 ms before it adopts.
    TranslationOff,
    /// The cut-off does nothing: stores are lost and hardware is not told to forget.
    NoCutOff,
    /// The incoming kernel overwrites one preserved page together with what was not preserved.
    PoisonedPage,
    /// The cut-off clears the entries, but hardware is not told to forget.
    MissingInvalidation,
    /// A leaf of a preserved domain is bent, behind the driver's back, to memory that nobody preserved.
    StrayLeaf,
    /// The same after the seal, when nothing can be refused any more.
    LateStrayLeaf,
    /// One bit of the handover's records is flipped after the seal.
    BrokenHandover,
    /// While the outgoing kernel leaves, the preserved device's interrupt entry is not in its table.
    InterruptTableLost,
    /// The successor is a kernel that drives units in legacy mode only, as its image says. No mistake where the update
    /// is one in legacy mode.
    LegacySuccessor,
    /// One PASID that streams is not preserved, though its domain is.
    ForgottenPasid,
    /// The cut-off makes hardware forget contexts and translations, as a driver for legacy mode would: not PASID entries.
    StalePasid,
    /// After the seal, the streaming device's entry says that its tables have four levels.
    FourLevels,
    /// After the seal, a guest changes the tables that its device's requests go through.
    GuestRemaps,
    /// Requesters are preserved under their own ids alone, without their aliases.
    ForgottenAlias,
    /// At the freeze the page requests that the unit's queue holds are passed over, and nobody answers them.
    DroppedPageRequests,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::TranslationOff,
        Self::NoCutOff,
        Self::PoisonedPage,
        Self::MissingInvalidation,
        Self::StrayLeaf,
        Self::LateStrayLeaf,
        Self::BrokenHandover,
        Self::InterruptTableLost,
        Self::LegacySuccessor,
        Self::ForgottenPasid,
        Self::StalePasid,
        Self::FourLevels,
        Self::GuestRemaps,
        Self::ForgottenAlias,
        Self::DroppedPageRequests,
    ];

    /// Its name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TranslationOff => "translation-off",
            Self::NoCutOff => "no-cut-off",
            Self::PoisonedPage => "poisoned-page",
            Self::MissingInvalidation => "missing-invalidation",
            Self::StrayLeaf => "stray-leaf",
            Self::LateStrayLeaf => "late-stray-leaf",
            Self::BrokenHandover => "broken-handover",
            Self::InterruptTableLost => "interrupt-table-lost",
            Self::LegacySuccessor => "legacy-successor",
            Self::ForgottenPasid => "forgotten-pasid",
            Self::StalePasid => "stale-pasid",
            Self::FourLevels => "four-levels",
            Self::GuestRemaps => "guest-remaps",
            Self::ForgottenAlias => "forgotten-alias",
            Self::DroppedPageRequests => "dropped-page-requests",
        }
    }

    /// The mutant that `platform` was told to be, by the option `mutant=NAME`.
    pub(crate) fn of<P: Platform + ?Sized>(platform: &P) -> Option<Self> {
        let name = platform.option("mutant")?;
        Self::ALL.into_iter().find(|m| m.name() == name)
    }
}

/// How long [`Mutant::TranslationOff`] leaves translation off, in nanoseconds.
const OFF_NS: u64 = 30_000_000;

/// Switches translation of a unit off and on again.
pub(crate) fn blink<P: Platform + ?Sized>(platform: &P, unit: UnitId) {
    let at = |offset| PhysAddr::new(unit.register_base).plus(offset);
    let status = Gsts::from_raw(platform.mmio_read32(at(offset::GSTS)));
    platform.mmio_write32(at(offset::GCMD), status.as_command().with_te(false).raw());
    let start = platform.now();
    while platform.now().saturating_sub(start) < OFF_NS {
        platform.relax();
    }
    platform.mmio_write32(at(offset::GCMD), status.as_command().with_te(true).raw());
}

const _: () = {
    // A variant that ALL lacks would be a mistake that nobody can ask for.
    let mut i = 0;
    while i < Mutant::ALL.len() {
        assert!(Mutant::ALL[i] as usize == i);
        i += 1;
    }
    assert!(Mutant::DroppedPageRequests as usize + 1 == Mutant::ALL.len());
};
