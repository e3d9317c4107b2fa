//! How units are driven: what the host chooses, and what capabilities leave of that choice.

use crate::registers::Patience;
use crate::table::format::Stage;
use core::fmt;
use spec::regs::{Cap, Ecap, table_mode};

/// Translation mode of all units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Legacy root and context tables, second-stage page tables.
    #[default]
    Legacy,
    /// Scalable mode; domains have second-stage page tables unless asked for otherwise.
    SecondStage,
    /// Scalable mode; domains have first-stage page tables unless asked for otherwise.
    FirstStage,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::SecondStage, Self::FirstStage];

    /// Its name on command lines and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::SecondStage => "second-stage",
            Self::FirstStage => "first-stage",
        }
    }
    /// RTADDR.TTM of the mode (VT-d 11.4.5).
    #[must_use]
    pub const fn table_mode(self) -> u64 {
        match self {
            Self::Legacy => table_mode::LEGACY,
            Self::SecondStage | Self::FirstStage => table_mode::SCALABLE,
        }
    }
    /// Whether requesters have PASID directories.
    #[must_use]
    pub const fn is_scalable(self) -> bool {
        !matches!(self, Self::Legacy)
    }
    /// The stage of domains when nobody says otherwise.
    #[must_use]
    pub const fn stage(self) -> Stage {
        match self {
            Self::Legacy | Self::SecondStage => Stage::Second,
            Self::FirstStage => Stage::First,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Largest value of PDTS.
const LARGEST_DIRECTORY: u8 = 7;

/// How a unit is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// Bound of every wait for hardware.
    pub patience: Patience,
    /// Leave the invalidation queue alone and invalidate by registers, as on hardware without a queue. Not in scalable
    /// mode.
    pub registers_only: bool,
    /// Translation mode.
    pub mode: Mode,
    /// Size of the PASID directories that the driver makes, as PDTS of the context entry: `2^(n + 7)` entries, for PASIDs
    /// below `2^(n + 13)`. 0 to 7; larger values count as 7.
    pub pasid_directory: u8,
    /// In scalable mode, keep to descriptors of 128 bits where hardware would take those of 256. All caches are then
    /// invalidated whole. For QEMU: the specification wants 256 bits in scalable mode, and a unit may insist.
    pub narrow_queue: bool,
}

impl Config {
    /// PDTS of new directories.
    #[must_use]
    pub fn pdts(&self) -> u8 {
        self.pasid_directory.min(LARGEST_DIRECTORY)
    }
}

/// How the driver came by a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Set up anew: an empty root table.
    SetUp,
    /// Taken over while it ran, with the predecessor's tables.
    TakenOver,
}

/// Something that a unit may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Scalable mode, ECAP.SMTS.
    ScalableMode,
    /// Second stage in scalable mode, ECAP.SSTS.
    SecondStage,
    /// First stage, ECAP.FSTS.
    FirstStage,
    /// Nested translation, ECAP.NEST with both stages.
    Nested,
    /// Pass-through, ECAP.PT.
    PassThrough,
    /// Requests with PASID, ECAP.PASID.
    Pasid,
    /// Device-TLBs, ECAP.DT.
    DeviceTlb,
    /// Page requests: ECAP.PRS in scalable mode, a queue for them, and a device-TLB.
    PageRequests,
    /// An invalidation queue, ECAP.QI, that the host lets the driver use.
    Queue,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScalableMode => "scalable mode (ECAP.SMTS)",
            Self::SecondStage => "the second stage in scalable mode (ECAP.SSTS)",
            Self::FirstStage => "the first stage (ECAP.FSTS)",
            Self::Nested => "nested translation (ECAP.NEST, SSTS, FSTS)",
            Self::PassThrough => "pass-through (ECAP.PT)",
            Self::Pasid => "requests with PASID (ECAP.PASID)",
            Self::DeviceTlb => "device-TLBs (ECAP.DT)",
            Self::PageRequests => "page requests (ECAP.PRS in scalable mode, a queue, a device-TLB)",
            Self::Queue => {
                "an invalidation queue (ECAP.QI, and not registers_only), which scalable mode and device-TLBs need"
            }
        })
    }
}

/// What the driver makes of a unit's capabilities (VT-d 11.4.2, 11.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// Invalidation by queue; otherwise by registers.
    pub queue: bool,
    /// Levels of second-stage tables that nobody chose levels for; `None` where hardware walks none of 3 to 5 levels.
    pub second_stage_levels: Option<u8>,
    /// Large second-stage leaves: bit 0 2 MiB, bit 1 1 GiB. Never 1 GiB alone.
    pub second_stage_leaves: u64,
    /// Most levels of first-stage tables; `None` without a first stage.
    pub first_stage_levels: Option<u8>,
    /// Large first-stage leaves, as above.
    pub first_stage_leaves: u64,
    /// Modes that the unit can be run in.
    pub modes: Modes,
    /// Nested translation.
    pub nested: bool,
    /// Pass-through.
    pub pass_through: bool,
    /// Width of the PASIDs that requests may carry, in bits; 0 where none may. At most 20.
    pub pasid_bits: u32,
    /// Domain ids are below this.
    pub domain_ids: u32,
    /// Fault records.
    pub fault_records: u64,
    /// The largest run of pages that can be forgotten by itself, as a binary logarithm; `None`: only whole domains.
    pub page_order: Option<u8>,
}

/// Modes that a unit can be run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// [`Mode::Legacy`].
    pub legacy: bool,
    /// [`Mode::SecondStage`].
    pub second_stage: bool,
    /// [`Mode::FirstStage`].
    pub first_stage: bool,
}

impl Choices {
    /// What the capabilities leave to choose.
    #[must_use]
    pub fn of(cap: Cap, ecap: Ecap) -> Self {
        let scalable = ecap.smts() && ecap.qi();
        let second_stage_levels = [4, 3, 5].into_iter().find(|&levels| cap.supports_levels(levels));
        let first_stage = scalable && ecap.fsts();
        let second_stage = scalable && ecap.ssts() && second_stage_levels.is_some();
        Self {
            queue: ecap.qi(),
            second_stage_levels,
            second_stage_leaves: if cap.sslps() & 1 == 0 { 0 } else { cap.sslps() & 3 },
            first_stage_levels: first_stage.then_some(if cap.fs5lp() { 5 } else { 4 }),
            first_stage_leaves: match (first_stage, cap.fs1gp()) {
                (false, _) => 0,
                (true, false) => 1,
                (true, true) => 3,
            },
            modes: Modes { legacy: second_stage_levels.is_some(), second_stage, first_stage },
            nested: first_stage && second_stage && ecap.nest(),
            pass_through: ecap.pt(),
            pasid_bits: if ecap.smts() && ecap.pasid() { (ecap.pss() as u32 + 1).min(20) } else { 0 },
            domain_ids: cap.domain_ids(),
            fault_records: cap.fault_records(),
            page_order: cap.psi().then_some(cap.mamv() as u8),
        }
    }

    /// Whether tables of `stage` with `levels` levels can be walked.
    #[must_use]
    pub fn walks(&self, cap: Cap, stage: Stage, levels: u8) -> bool {
        match stage {
            Stage::Second => (3..=5).contains(&levels) && cap.supports_levels(levels),
            Stage::First => self.first_stage_levels.is_some_and(|most| (4..=most).contains(&levels)),
        }
    }

    /// Large leaves of a stage: bit 0 2 MiB, bit 1 1 GiB.
    #[must_use]
    pub const fn leaves(&self, stage: Stage) -> u64 {
        match stage {
            Stage::Second => self.second_stage_leaves,
            Stage::First => self.first_stage_leaves,
        }
    }
}

/// What a unit lacks for `mode`, if anything but table widths.
#[must_use]
pub fn lacks(ecap: Ecap, mode: Mode) -> Option<Capability> {
    let wanted: &[(bool, Capability)] = match mode {
        Mode::Legacy => &[],
        Mode::SecondStage => &[
            (ecap.smts(), Capability::ScalableMode),
            (ecap.ssts(), Capability::SecondStage),
            (ecap.qi(), Capability::Queue),
        ],
        Mode::FirstStage => &[
            (ecap.smts(), Capability::ScalableMode),
            (ecap.fsts(), Capability::FirstStage),
            (ecap.qi(), Capability::Queue),
        ],
    };
    wanted.iter().find(|(there, _)| !there).map(|(_, what)| *what)
}
