//! What a machine can have beside the devices of every machine: bridges, educational devices behind them or with phantom
//! functions, and devices that no enumeration of PCI finds.

use spec::{Requester, SourceId};

/// Something more in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// A bridge of segment 0, with its buses numbered by firmware.
    Bridge {
        /// Where it is.
        at: SourceId,
        /// The bus behind it.
        secondary: u8,
        /// The highest bus behind it.
        subordinate: u8,
        /// What it does to source-ids.
        kind: BridgeKind,
    },
    /// An educational device as a function of segment 0.
    Function {
        /// Where it is.
        at: SourceId,
        /// Its BAR, at a multiple of 1 MiB.
        registers: u32,
        /// How many upper bits of its function number its requests change, as phantom functions: 0 to 3.
        phantom_bits: u8,
    },
    /// A streaming device as a function of segment 0 (`scenario::streamer`).
    Streamer {
        /// Where it is.
        at: SourceId,
        /// Its BAR, at a multiple of 1 MiB.
        registers: u32,
    },
    /// An educational device that is no function that configuration space of segment 0 tells of.
    Fixed {
        /// What its requests carry.
        requester: Requester,
        /// Its registers, at a multiple of 1 MiB.
        registers: u64,
        /// As what DMAR names it, in the scopes of its unit.
        named: Option<Named>,
    },
}

/// How a bridge changes the source-ids of requests from behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeKind {
    /// A root port: not at all.
    Port,
    /// PCI Express to PCI: to its secondary bus, device 0, function 0 (VT-d 3.4.1).
    ExpressToPci,
    /// Conventional: to its own.
    Conventional,
}

/// As what DMAR names a requester that is no PCI function (VT-d 8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// An IOAPIC.
    Ioapic,
    /// An HPET that sends messages.
    Hpet,
    /// A device of the ACPI namespace, with an ANDD structure of its own.
    Namespace,
}
