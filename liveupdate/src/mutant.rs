//! Mistakes that others paid for, to be put back one at a time.
//!
//! Each [`Mutant`] is one of the design's lessons turned round. In a build with the feature `mutants`, for tests alone, the
//! variable `HOLDOVER_MUTANT` switches one on by its name, and the test that bears the lesson's number must fail:
//! `cargo xtask mutants` sees to that. In any other build `on` is `false` while compiling, and nothing of it is left.

use crate::book::{Book, Region};
use crate::host::{Atomic, Host, MaySleep, NoMemory, Unit};
use crate::mode::{Context, Mode};
use crate::open::OpenError;
use crate::walk::{self, Visit};
use spec::Extent;

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = ($lesson:literal, $name:literal),)*) => {
        /// A mistake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant { $($(#[$doc])* $variant,)* }

        impl Mutant {
            /// Every mistake, by lesson.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The lesson that it breaks, 1 to 19: tests named `lesson_NN_...` are there to notice.
            #[must_use]
            pub const fn lesson(self) -> u8 {
                match self { $(Self::$variant => $lesson,)* }
            }
        }
    };
}

mutants! {
    /// Only requesters that the host has on its list of PCI functions are cut off.
    DeviceList = (1, "device-list"),
    /// Frames are marked under the lock without having been reserved before.
    NoReserve = (2, "no-reserve"),
    /// What could not be reserved is released all the same.
    UndoTooMuch = (3, "undo-too-much"),
    /// What a freeze switched off stays off when it fails.
    NoResume = (3, "no-resume"),
    /// The highest token stands for whatever comes first.
    MinusOne = (4, "minus-one"),
    /// What a host leaves out counts as done.
    AbsentIsDone = (5, "absent-is-done"),
    /// A domain is taken back by its tables of today.
    UndoToday = (6, "undo-today"),
    /// Context tables that appeared since the preserve stay.
    LateTables = (7, "late-tables"),
    /// A domain's id counts on every unit.
    IdEverywhere = (8, "id-everywhere"),
    /// One frame of a PASID directory is wiped, however large it is.
    OneFrame = (9, "one-frame"),
    /// A requester is given out as often as somebody asks.
    Twice = (10, "twice"),
    /// A blocked requester is attached to another domain.
    DefaultDomain = (11, "default-domain"),
    /// The version is looked at after everything else.
    VersionLast = (12, "version-last"),
    /// The preserved-memory map is followed however long it is.
    NoBound = (12, "no-bound"),
    /// Half of a token is lost on the way.
    TokenCut = (13, "token-cut"),
    /// A unit that is found in another mode is switched off.
    ModeOff = (14, "mode-off"),
    /// Hardware is not told to forget.
    NoInvalidation = (15, "no-invalidation"),
    /// A device is not made to forget a PASID that is cut off while its requester goes on.
    PasidInDevice = (15, "pasid-in-device"),
    /// A whole entry is cleared at once.
    WholeEntry = (15, "whole-entry"),
    /// A unit stays in the handover although its last requester was taken back.
    LeftBehind = (16, "left-behind"),
    /// A slot that was used is not used again.
    SlotsLost = (17, "slots-lost"),
    /// Reserved memory is mapped in the default domain alone: nobody asks for it in a preserved one.
    DefaultIdentity = (18, "default-identity"),
    /// Each region of a handover is compared with every other.
    Quadratic = (19, "quadratic"),
}

/// Whether `mutant` is switched on.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn on(_: Mutant) -> bool {
    false
}

/// Whether `mutant` is switched on.
///
/// # Panics
/// For a name that is no mutant's: a run that proves nothing must not pass for one.
#[cfg(feature = "mutants")]
pub(crate) fn on(mutant: Mutant) -> bool {
    extern crate std;
    static CURRENT: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    let current = CURRENT.get_or_init(|| {
        let name = std::env::var("HOLDOVER_MUTANT").ok()?;
        let known = Mutant::ALL.iter().find(|m| m.name() == name);
        Some(*known.unwrap_or_else(|| panic!("HOLDOVER_MUTANT={name} is no mutant's name")))
    });
    *current == Some(mutant)
}

/// [`Mutant::UndoToday`]: releases whatever tables a domain has by now, and forgets those that were recorded.
pub(crate) fn release_todays_tables<H: Host>(
    host: &H,
    ctx: &mut MaySleep,
    book: &mut Book<'_>,
    domain: usize,
) {
    let Some(tree) = book.domains.get(domain).map(|d| book.tree(d)) else { return };
    let stray = |_| NoMemory { at: tree.top };
    let _ = walk::walk(host, tree, walk::LARGEST_TREE, stray, &mut |visit| {
        if let Visit::Table(at) = visit {
            host.release(ctx, Extent::one(at.frame()));
        }
        Ok(())
    });
    book.tables.retain(|t| t.domain != domain);
}

/// [`Mutant::ModeOff`] and [`Mutant::DefaultDomain`]: what a kernel does that cannot bear to leave anybody without DMA.
pub(crate) fn fall_back<H: Host>(host: &H, book: &Book<'_>, index: usize, unit: &H::Unit, atomic: &Atomic) {
    if on(Mutant::ModeOff) && unit.root().ttm() != 0 {
        let _ = unit.disable(atomic);
    }
    if on(Mutant::DefaultDomain) {
        let Some((_, default)) = book.requesters.iter().find(|(i, _)| book.is_any_sound(*i)) else { return };
        for (n, blocked) in book.requesters.iter().filter(|(_, k)| k.unit == index) {
            let run = book.context_for(index, blocked.requester.source).filter(|_| !book.is_any_sound(n));
            let (Some((_, run)), Context::Legacy(entry)) = (run, default.entry) else { continue };
            let at = Mode::Legacy.entry_at(run.table, blocked.requester.source.devfn());
            for (offset, word) in [0, 8].into_iter().zip(entry.raw()) {
                let _ = host.write(at.plus(offset), word);
            }
        }
    }
}

/// [`Mutant::Quadratic`]: looks for regions that overlap, each with each.
pub(crate) fn compare_all(book: &Book<'_>) -> Result<(), OpenError> {
    let others = |r: &Region| book.regions.iter().filter(|o| o.extent.overlaps(r.extent)).count();
    match book.regions.iter().find(|r| others(r) > 1) {
        Some(region) => Err(OpenError::Overlap(region.extent)),
        None => Ok(()),
    }
}
