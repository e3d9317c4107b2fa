//! What the core must know of a device that keeps translations of its own (PCIe ATS).

use spec::SourceId;

/// A device-TLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTlb {
    /// The physical function: of a virtual function the one that it belongs to, otherwise the function itself.
    pub physical_function: SourceId,
    /// How many invalidations it queues, 1 to 32: Invalidate Queue Depth of its ATS capability, where 0 stands for 32.
    pub queue_depth: u8,
}
