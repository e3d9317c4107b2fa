//! What is compared: one configuration of QEMU's unit and the same of the simulated one.

use machine::{Caching, UnitConfig};
use std::fmt;

/// One configuration of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Legacy mode, tables of three levels.
    Legacy39,
    /// Legacy mode, tables of three and four levels.
    Legacy48,
    /// Scalable mode, second-stage tables of three and four levels.
    SecondStage,
    /// Scalable mode, first-stage tables of four levels.
    FirstStage,
}

impl Mode {
    /// Bits of an address, as CAP.MGAW and the host's width.
    #[must_use]
    pub fn width(self) -> u8 {
        match self {
            Self::Legacy39 => 39,
            Self::Legacy48 | Self::SecondStage | Self::FirstStage => 48,
        }
    }

    /// Whether QEMU of this major version has it.
    #[must_use]
    pub fn is_in(self, qemu_major: u32) -> bool {
        self != Self::FirstStage || qemu_major >= 10
    }

    /// Whether requests find their tables through PASID tables.
    #[must_use]
    pub fn is_scalable(self) -> bool {
        matches!(self, Self::SecondStage | Self::FirstStage)
    }

    /// QEMU's device with this configuration.
    #[must_use]
    pub fn qemu_device(self) -> String {
        let scalable = match self {
            Self::Legacy39 | Self::Legacy48 => "",
            Self::SecondStage => ",x-scalable-mode=on",
            Self::FirstStage => ",x-scalable-mode=on,x-flts=on",
        };
        format!("intel-iommu,intremap=on,aw-bits={}{scalable}", self.width())
    }

    /// The simulated unit with this configuration, departing from the specification where QEMU of a major version does.
    #[must_use]
    pub fn unit(self, caching: Caching, qemu_major: u32) -> UnitConfig {
        let mut unit = UnitConfig { caching, ..UnitConfig::qemu_like(self.width()) };
        let is_old = qemu_major < 10;
        unit.quirks.one_pasid_reason = is_old;
        unit.quirks.second_stage_only = is_old;
        match self {
            Self::Legacy39 | Self::Legacy48 => unit,
            Self::SecondStage => unit.with_ecap(|e| e.with_smts(true).with_ssts(true).with_srs(true)),
            Self::FirstStage => {
                unit.with_ecap(|e| e.with_smts(true).with_fsts(true)).with_cap(|c| c.with_fs1gp(true))
            }
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy39 => "legacy, 39 bits",
            Self::Legacy48 => "legacy, 48 bits",
            Self::SecondStage => "scalable, second stage",
            Self::FirstStage => "scalable, first stage",
        })
    }
}
