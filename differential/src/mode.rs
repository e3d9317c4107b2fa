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

    /// Whether it is compared with QEMU of this major version. 7.2 has no first stage; 11.1.3 looks into its IOTLB before it
    /// looks at PASID entries, which the simulated unit does not, and that does not explain all of the differences.
    #[must_use]
    pub fn is_in(self, qemu_major: u32) -> bool {
        match self {
            Self::Legacy39 | Self::Legacy48 => true,
            Self::SecondStage => qemu_major < 11,
            Self::FirstStage => qemu_major == 10,
        }
    }

    /// Whether requests find their tables through PASID tables.
    #[must_use]
    pub fn is_scalable(self) -> bool {
        matches!(self, Self::SecondStage | Self::FirstStage)
    }

    /// QEMU's device with this configuration; `help` is what QEMU says of the device's properties, which were experimental
    /// and had other names once.
    #[must_use]
    pub fn qemu_device(self, help: &str) -> String {
        let mut device = format!("intel-iommu,intremap=on,aw-bits={}", self.width());
        for (wanted, now, once) in [
            (self.is_scalable(), "scalable-mode", "x-scalable-mode"),
            (self == Self::FirstStage, "fsts", "x-flts"),
        ] {
            let name = if help.contains(&format!(" {once}=")) { once } else { now };
            if wanted {
                device += &format!(",{name}=on");
            }
        }
        device
    }

    /// The simulated unit with this configuration, departing from the specification where QEMU of a major version does.
    /// `esrtps` is CAP.ESRTPS, which newer ones have.
    #[must_use]
    pub fn unit(self, caching: Caching, qemu_major: u32, esrtps: bool) -> UnitConfig {
        let mut unit = UnitConfig { caching, ..UnitConfig::qemu_like(self.width()) };
        unit.cap = unit.cap.with_esrtps(esrtps);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_asked_for_by_the_names_that_its_help_has() {
        let old = "  x-flts=<bool>\n  x-scalable-mode=<bool>\n";
        let new = "  fsts=<bool>\n  scalable-mode=<bool>\n";
        assert!(Mode::FirstStage.qemu_device(old).ends_with(",x-scalable-mode=on,x-flts=on"));
        assert!(Mode::FirstStage.qemu_device(new).ends_with("=48,scalable-mode=on,fsts=on"));
        assert!(Mode::SecondStage.qemu_device(new).ends_with("=48,scalable-mode=on"));
        assert_eq!(Mode::Legacy39.qemu_device(new), Mode::Legacy39.qemu_device(old));
    }
}
