//! Address translation services of a function (PCIe 10.5.1): whether it keeps translations of its own.

use super::PciError;
use super::config::extended_capability;
use crate::platform::Platform;
use spec::SourceId;

/// Extended capability id of ATS.
const CAP_ATS: u16 = 0x0f;
/// Control is the high half of the second register.
const ENABLE: u32 = 1 << 31;
const CONTROL: u32 = 0xffff_0000;
const DEPTH: u32 = 0x1f;
/// The register after the capability's header.
const REGISTER: u16 = 4;

/// The ATS capability of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ats {
    /// The function.
    pub function: SourceId,
    /// Invalidations that it queues, 1 to 32.
    pub queue_depth: u8,
    /// Offset of its control register's word.
    offset: u16,
}

impl Ats {
    /// The capability of `function`; `None` where it has none, or none can be reached.
    ///
    /// # Errors
    /// [`PciError`] when the list of extended capabilities has no end.
    pub fn find<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<Option<Self>, PciError> {
        let Some(at) = extended_capability(platform, function, CAP_ATS)? else { return Ok(None) };
        let offset = at + REGISTER;
        let depth = platform.config_read32(function, offset) & DEPTH;
        let queue_depth = if depth == 0 { 32 } else { depth as u8 };
        Ok(Some(Self { function, queue_depth, offset }))
    }

    /// Whether it is on.
    pub fn is_enabled<P: Platform + ?Sized>(&self, platform: &P) -> bool {
        platform.config_read32(self.function, self.offset) & ENABLE != 0
    }

    /// Switches it on, with 4 KiB as the smallest translation. The requester's entry allows it already.
    pub fn enable<P: Platform + ?Sized>(&self, platform: &P) {
        platform.config_write32(self.function, self.offset, ENABLE);
    }

    /// Switches it off: the function asks for no more translations, and uses none. What it keeps is still to be
    /// invalidated.
    pub fn disable<P: Platform + ?Sized>(&self, platform: &P) {
        let control = platform.config_read32(self.function, self.offset) & CONTROL;
        platform.config_write32(self.function, self.offset, control & !ENABLE);
    }
}

/// Extended capability id of page requests (PCIe 10.5.2).
const CAP_PRI: u16 = 0x13;
/// Control is the low half of the second register; status, whose bits a one clears, the high half.
const PRI_ENABLE: u32 = 1;
/// Requests that may be open at once, after the control register.
const ALLOCATION: u16 = 12;
const CAPACITY: u16 = 8;

/// The page request capability of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pri {
    /// The function.
    pub function: SourceId,
    offset: u16,
}

impl Pri {
    /// The capability of `function`; `None` where it has none, or none can be reached.
    ///
    /// # Errors
    /// [`PciError`] when the list of extended capabilities has no end.
    pub fn find<P: Platform + ?Sized>(platform: &P, function: SourceId) -> Result<Option<Self>, PciError> {
        let found = extended_capability(platform, function, CAP_PRI)?;
        Ok(found.map(|offset| Self { function, offset }))
    }

    /// Whether it is on.
    pub fn is_enabled<P: Platform + ?Sized>(&self, platform: &P) -> bool {
        platform.config_read32(self.function, self.offset + REGISTER) & PRI_ENABLE != 0
    }

    /// Switches it on, with as many open requests as the function can have. The requester's entry allows it already.
    pub fn enable<P: Platform + ?Sized>(&self, platform: &P) {
        let capacity = platform.config_read32(self.function, self.offset + CAPACITY);
        platform.config_write32(self.function, self.offset + ALLOCATION, capacity);
        platform.config_write32(self.function, self.offset + REGISTER, PRI_ENABLE);
    }

    /// Switches it off: the function asks for nothing more. What it asked for is still to be answered.
    pub fn disable<P: Platform + ?Sized>(&self, platform: &P) {
        platform.config_write32(self.function, self.offset + REGISTER, 0);
    }
}
