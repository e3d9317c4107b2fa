//! The machine's own account of a run: what every DMA met, what the units did, where the kernels left marks.
//!
//! The kernels have no hand in it. Whether translation stayed on, and what was blocked, is judged from here.

use crate::device_tlb::DevicePages;
use scenario::platform::Mark;
use spec::fault::Reason;
use spec::{Segment, SourceId, UnitId};

/// What a unit was made to forget. Which domain ids, sources and pages, as the command named them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// Every context entry.
    Contexts,
    /// Context entries with this domain id.
    ContextsOfDomain(u16),
    /// Context entries of the sources that agree with `source` but for the function bits of `mask` (0 to 3 low bits of
    /// the function number from the top), and that have this domain id.
    ContextOf {
        /// Domain id of the entry.
        domain: u16,
        /// The source.
        source: SourceId,
        /// How many function bits are ignored (VT-d 6.5.2.1, FM).
        mask: u8,
    },
    /// Every translation.
    Translations,
    /// Translations of this domain.
    TranslationsOfDomain(u16),
    /// Translations of `2^order` pages of a domain.
    Pages {
        /// The domain.
        domain: u16,
        /// First byte, aligned to the size.
        start: u64,
        /// Binary logarithm of the number of pages.
        order: u8,
        /// Cached non-leaf entries may stay (IH).
        leaf_only: bool,
    },
    /// Every PASID entry.
    Pasids,
    /// PASID entries with this domain id.
    PasidsOfDomain(u16),
    /// PASID entries of one PASID with this domain id.
    PasidOf {
        /// Domain id of the entry.
        domain: u16,
        /// The PASID.
        pasid: u32,
    },
    /// First-stage and nested translations of one PASID.
    TranslationsOfPasid {
        /// The domain.
        domain: u16,
        /// The PASID.
        pasid: u32,
    },
    /// First-stage and nested translations of `2^order` pages of one PASID.
    PagesOfPasid {
        /// The domain.
        domain: u16,
        /// The PASID.
        pasid: u32,
        /// First byte, aligned to the size.
        start: u64,
        /// Binary logarithm of the number of pages.
        order: u8,
    },
    /// Interrupt remapping entries: all, or `2^order` from an index on.
    InterruptEntries(Option<(u16, u8)>),
    /// Translations that a device keeps.
    DeviceTlb(DevicePages),
}

/// One fact of the trace. `at` is in nanoseconds of the machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // fields of a variant are named by its own line
pub enum TraceLine {
    /// A DMA within one page was translated; with the PASID that it carried, if any. QEMU: `vtd_dmar_translate`.
    Translated {
        at: u64,
        unit: UnitId,
        source: SourceId,
        pasid: Option<u32>,
        iova: u64,
        output: u64,
        bytes: u64,
        write: bool,
    },
    /// A DMA was refused; `recorded` when the unit kept it in a fault record. QEMU: `vtd_dmar_fault`, `vtd_frr_new`.
    Faulted {
        at: u64,
        unit: UnitId,
        source: SourceId,
        pasid: Option<u32>,
        iova: u64,
        reason: Reason,
        write: bool,
        recorded: bool,
    },
    /// A DMA went to physical memory as it was: translation is off, or no unit watches the source.
    Untranslated { at: u64, segment: Segment, source: SourceId, address: u64, bytes: u64, write: bool },
    /// A DMA was dropped silently: protected memory, or a request for the interrupt range.
    Dropped { at: u64, source: SourceId, address: u64, write: bool },
    /// An interrupt request passed; with the vector that came of it, unless it was posted and nobody is notified now.
    Interrupt { at: u64, unit: UnitId, source: SourceId, vector: Option<u8> },
    /// An interrupt request was blocked; `recorded` when the unit kept that in a fault record. QEMU: `vtd_ir_*`.
    InterruptBlocked { at: u64, unit: UnitId, source: SourceId, index: u32, reason: Reason, recorded: bool },
    /// IRES changed.
    InterruptsRemapped { at: u64, unit: UnitId, on: bool },
    /// TES changed. QEMU: `vtd_dmar_enable`.
    TranslationEnabled { at: u64, unit: UnitId, on: bool },
    /// A root table took effect. QEMU: `vtd_reg_dmar_root`.
    RootSet { at: u64, unit: UnitId, table: u64 },
    /// Queued invalidation changed.
    QueueEnabled { at: u64, unit: UnitId, on: bool },
    /// An invalidation took effect. QEMU: `vtd_inv_desc_*`.
    Invalidated { at: u64, unit: UnitId, what: Invalidation },
    /// A wait descriptor completed.
    Waited { at: u64, unit: UnitId },
    /// The queue stopped on a bad descriptor or tail; `info` is IQERCD.IQEI.
    QueueError { at: u64, unit: UnitId, info: u8 },
    /// The queue stopped because a device did not answer an invalidation.
    Unanswered { at: u64, unit: UnitId, source: SourceId },
    /// A device answered an invalidation that it was not sent.
    Unexpected { at: u64, unit: UnitId, source: SourceId },
    /// Protected memory was switched.
    ProtectionEnabled { at: u64, unit: UnitId, on: bool },
    /// Software broke a rule of the programming interface. Hardware need not notice; this machine does.
    Misuse { at: u64, unit: UnitId, rule: &'static str },
    /// A device was told to do what it cannot do.
    DeviceMisuse { at: u64, source: SourceId, what: &'static str },
    /// A device asked for a page, in a group of its own.
    PageAsked { at: u64, source: SourceId, group: u16 },
    /// A device was answered; `success`: the page is there; `open`: it had asked and not been answered yet.
    PageAnswered { at: u64, source: SourceId, group: u16, success: bool, open: bool },
    /// A kernel left a mark.
    Mark { at: u64, mark: Mark },
}

impl TraceLine {
    /// When it happened.
    #[must_use]
    pub fn at(&self) -> u64 {
        match *self {
            Self::Translated { at, .. }
            | Self::Faulted { at, .. }
            | Self::Untranslated { at, .. }
            | Self::Dropped { at, .. }
            | Self::Interrupt { at, .. }
            | Self::InterruptBlocked { at, .. }
            | Self::InterruptsRemapped { at, .. }
            | Self::TranslationEnabled { at, .. }
            | Self::RootSet { at, .. }
            | Self::QueueEnabled { at, .. }
            | Self::Invalidated { at, .. }
            | Self::Waited { at, .. }
            | Self::QueueError { at, .. }
            | Self::Unanswered { at, .. }
            | Self::Unexpected { at, .. }
            | Self::ProtectionEnabled { at, .. }
            | Self::Misuse { at, .. }
            | Self::DeviceMisuse { at, .. }
            | Self::PageAsked { at, .. }
            | Self::PageAnswered { at, .. }
            | Self::Mark { at, .. } => at,
        }
    }
}
