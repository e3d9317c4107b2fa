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
}

impl Mode {
    /// Bits of an address, as CAP.MGAW and the host's width.
    #[must_use]
    pub fn width(self) -> u8 {
        match self {
            Self::Legacy39 => 39,
            Self::Legacy48 => 48,
        }
    }

    /// QEMU's device with this configuration.
    #[must_use]
    pub fn qemu_device(self) -> String {
        format!("intel-iommu,intremap=on,aw-bits={}", self.width())
    }

    /// The simulated unit with this configuration.
    #[must_use]
    pub fn unit(self, caching: Caching) -> UnitConfig {
        UnitConfig { caching, ..UnitConfig::qemu_like(self.width()) }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy39 => "legacy, 39 bits",
            Self::Legacy48 => "legacy, 48 bits",
        })
    }
}
