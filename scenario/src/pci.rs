//! PCI as far as an update needs it: which functions there are, how to switch them on, and which source-ids their
//! requests carry when they reach a remapping unit.
//!
//! [`Topology::discover`] walks segment 0 from its root buses through the bridges that firmware numbered. The result
//! answers, without touching configuration space again, who is on the list ([`Topology::is_listed`]), what a request may
//! carry ([`Topology::aliases_of`]) and which function a scope of the DMAR means ([`Topology::resolve`]). The free
//! functions work on configuration space: [`probe_bars`], [`bar_address`], [`enable`], [`capability`].
//!
//! Bus numbers, header types and capability pointers are foreign: every bus is scanned once, every list is bounded.

pub mod ats;
mod config;

use crate::platform::Platform;
use alloc::vec::Vec;
use config::reg;
pub use config::{
    Bar, CAP_EXPRESS, bar_address, capability, disable_bus_master, enable, extended_capability, probe_bars,
    set_message,
};
use core::fmt;
use spec::SourceId;

/// How a bridge changes the source-id of requests that pass through it upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeKind {
    /// A PCI Express port: source-ids pass unchanged.
    Port,
    /// PCI Express to PCI: requests from behind carry secondary bus, device 0, function 0 (VT-d 3.4.1).
    ExpressToPci,
    /// A conventional bridge, or one from PCI to PCI Express: requests from behind carry the bridge's own id.
    Conventional,
    /// The capability list is damaged: either of the two must be expected.
    Unknown,
}

/// What a function's header says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Header type 0.
    Endpoint,
    /// Header type 1.
    Bridge {
        /// The bus behind it.
        secondary: u8,
        /// The highest bus behind it.
        subordinate: u8,
        /// What it does to source-ids.
        kind: BridgeKind,
    },
    /// Another header type: listed, never driven.
    Other {
        /// The header type.
        header: u8,
    },
}

/// One function of segment 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub source: SourceId,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface in bits 23:16, 15:8 and 7:0.
    pub class: u32,
    /// What its header says.
    pub kind: Kind,
    /// The bridge above it; `None` on a root bus.
    pub parent: Option<SourceId>,
    /// How many of the upper bits of its function number its requests may change, as phantom functions (PCI Express
    /// 7.5.3.3, 7.5.3.4): 0 unless these are switched on.
    pub phantom_bits: u8,
}

/// Something in the topology that was not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// A bridge whose secondary bus is not above its own bus, or not within what the bridge above it forwards.
    BusOutside {
        /// The bridge.
        bridge: SourceId,
        /// The number it has.
        secondary: u8,
    },
    /// Two ways lead to the same bus; the first one was followed.
    BusTwice {
        /// The second bridge.
        bridge: SourceId,
        /// The bus.
        secondary: u8,
    },
    /// A capability list that cannot be walked.
    Capabilities(PciError),
}

/// Why a function could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PciError {
    /// The capability list comes back to an entry: it has more than fit.
    CapabilityCycle {
        /// The function.
        function: SourceId,
        /// A part of the cycle.
        offset: u16,
    },
    /// A capability pointer into the header.
    CapabilityOutside {
        /// The function.
        function: SourceId,
        /// The pointer.
        offset: u16,
    },
    /// No such memory BAR: the index is too large, the BAR is for ports, unassigned or of a reserved type.
    NoMemoryBar {
        /// The function.
        function: SourceId,
        /// Index of the BAR.
        index: u8,
        /// Its content.
        raw: u32,
    },
    /// The command register did not take what was written.
    CommandRefused {
        /// The function.
        function: SourceId,
        /// What was written.
        wanted: u16,
        /// What it reads.
        found: u16,
    },
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CapabilityCycle { function, offset } => {
                write!(f, "the capability list of {function} has a cycle through {offset:#04x}")
            }
            Self::CapabilityOutside { function, offset } => {
                write!(f, "a capability pointer of {function} is {offset:#04x}, inside the header")
            }
            Self::NoMemoryBar { function, index, raw } => {
                write!(f, "BAR {index} of {function} is no assigned memory BAR (it reads {raw:#010x})")
            }
            Self::CommandRefused { function, wanted, found } => {
                write!(
                    f,
                    "the command register of {function} reads {found:#06x} after {wanted:#06x} was written"
                )
            }
        }
    }
}

impl core::error::Error for PciError {}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BusOutside { bridge, secondary } => {
                write!(
                    f,
                    "bridge {bridge} has secondary bus {secondary:#04x}, which cannot be behind it: not followed"
                )
            }
            Self::BusTwice { bridge, secondary } => {
                write!(
                    f,
                    "bridge {bridge} leads to bus {secondary:#04x}, which was reached before: not followed"
                )
            }
            Self::Capabilities(error) => error.fmt(f),
        }
    }
}

/// Why a path of a DMAR scope leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// A path without elements.
    Empty,
    /// An element before the last is no bridge that is on the list.
    NoBridge {
        /// The element.
        at: SourceId,
    },
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a device scope has an empty path"),
            Self::NoBridge { at } => write!(f, "a device scope leads through {at}, which is no bridge"),
        }
    }
}

impl core::error::Error for PathError {}

/// The functions of segment 0, as they were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    functions: Vec<Function>,
    oddities: Vec<Oddity>,
}

/// A bus to be scanned.
struct Bus {
    number: u8,
    /// The highest bus that the bridge above it forwards.
    limit: u8,
    parent: Option<SourceId>,
}

impl Topology {
    /// Walks from bus 0 and the further root buses in `roots` through all bridges. Reads configuration space only.
    pub fn discover<P: Platform + ?Sized>(platform: &P, roots: &[u8]) -> Self {
        let mut topology = Self::default();
        let mut reached = [false; 256];
        let mut waiting = Vec::new();
        for &number in core::iter::once(&0).chain(roots) {
            if !core::mem::replace(&mut reached[usize::from(number)], true) {
                waiting.push(Bus { number, limit: 0xff, parent: None });
            }
        }
        // Each bus enters the list at most once, so this ends after at most 256 rounds.
        while let Some(bus) = waiting.pop() {
            let first_new = topology.functions.len();
            topology.scan(platform, &bus);
            for index in first_new..topology.functions.len() {
                let Function { source: bridge, kind, .. } = topology.functions[index];
                let Kind::Bridge { secondary, subordinate, .. } = kind else { continue };
                if secondary <= bus.number || secondary > bus.limit {
                    topology.oddities.push(Oddity::BusOutside { bridge, secondary });
                } else if core::mem::replace(&mut reached[usize::from(secondary)], true) {
                    topology.oddities.push(Oddity::BusTwice { bridge, secondary });
                } else {
                    let limit = subordinate.clamp(secondary, bus.limit);
                    waiting.push(Bus { number: secondary, limit, parent: Some(bridge) });
                }
            }
        }
        topology.functions.sort_by_key(|function| function.source);
        topology
    }

    fn scan<P: Platform + ?Sized>(&mut self, platform: &P, bus: &Bus) {
        for device in 0..32 {
            for number in 0..8 {
                let source = SourceId::new(bus.number, device, number);
                let id = platform.config_read32(source, reg::ID);
                if absent(id) {
                    if number == 0 {
                        break; // A device has a function 0, or is not there.
                    }
                    continue;
                }
                let header = (platform.config_read32(source, reg::HEADER) >> 16) as u8;
                self.add(platform, source, id, header & 0x7f, bus.parent);
                if number == 0 && header & 0x80 == 0 {
                    break; // One function only.
                }
            }
        }
    }

    fn add<P: Platform + ?Sized>(
        &mut self,
        platform: &P,
        source: SourceId,
        id: u32,
        header: u8,
        parent: Option<SourceId>,
    ) {
        let kind = match header {
            0 => Kind::Endpoint,
            1 => {
                let buses = platform.config_read32(source, reg::BUSES);
                let kind = bridge_kind(platform, source).unwrap_or_else(|error| {
                    self.oddities.push(Oddity::Capabilities(error));
                    BridgeKind::Unknown
                });
                Kind::Bridge { secondary: (buses >> 8) as u8, subordinate: (buses >> 16) as u8, kind }
            }
            header => Kind::Other { header },
        };
        let class = platform.config_read32(source, reg::CLASS) >> 8;
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        let phantom_bits = config::phantom_bits(platform, source).unwrap_or_else(|error| {
            // A bridge's list has been found fault with already.
            if !matches!(kind, Kind::Bridge { .. }) {
                self.oddities.push(Oddity::Capabilities(error));
            }
            0
        });
        self.functions.push(Function { source, vendor, device, class, kind, parent, phantom_bits });
    }

    /// All functions, ascending by source-id.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// What was found and not followed: report it.
    #[must_use]
    pub fn oddities(&self) -> &[Oddity] {
        &self.oddities
    }

    /// The function at `source`.
    #[must_use]
    pub fn function(&self, source: SourceId) -> Option<&Function> {
        self.functions
            .binary_search_by_key(&source, |function| function.source)
            .ok()
            .map(|i| &self.functions[i])
    }

    /// Functions with this vendor and device id, ascending by source-id.
    pub fn find(&self, vendor: u16, device: u16) -> impl Iterator<Item = &Function> + '_ {
        self.functions.iter().filter(move |function| function.vendor == vendor && function.device == device)
    }

    /// Whether configuration space has a function at `source`. Requests may carry ids of which this is false.
    #[must_use]
    pub fn is_listed(&self, source: SourceId) -> bool {
        self.function(source).is_some()
    }

    /// Every source-id that requests of the function at `source` may carry, without repetition: its own first, then those
    /// of its phantom functions, then those that the bridges above it put in its place, nearest first. What lives or
    /// dies, does so with all of them.
    #[must_use]
    pub fn aliases_of(&self, source: SourceId) -> Vec<SourceId> {
        let mut aliases = alloc::vec![source];
        let phantom_bits = self.function(source).map_or(0, |function| function.phantom_bits);
        let phantoms = (1..1u8 << phantom_bits).map(|upper| {
            let function = source.function() | upper << (3 - phantom_bits);
            SourceId::new(source.bus(), source.device(), function)
        });
        for alias in phantoms.chain(self.replacing(source)) {
            if !aliases.contains(&alias) {
                aliases.push(alias);
            }
        }
        aliases
    }

    /// What the bridges above the function at `source` put in its place, nearest first, without repetition.
    fn replacing(&self, source: SourceId) -> Vec<SourceId> {
        let mut aliases = Vec::new();
        let mut add = |alias| {
            if !aliases.contains(&alias) {
                aliases.push(alias);
            }
        };
        let mut above = self.function(source).and_then(|function| function.parent);
        // A parent has a lower bus number than its children, so this ends.
        while let Some(bridge) = above.and_then(|bridge| self.function(bridge)) {
            if let Kind::Bridge { secondary, kind, .. } = bridge.kind {
                if matches!(kind, BridgeKind::ExpressToPci | BridgeKind::Unknown) {
                    add(SourceId::new(secondary, 0, 0));
                }
                if matches!(kind, BridgeKind::Conventional | BridgeKind::Unknown) {
                    add(bridge.source);
                }
            }
            above = bridge.parent;
        }
        aliases
    }

    /// The source-id that requests of the function at `source` carry when they arrive at the remapping unit: what the
    /// last bridge puts in its place, or its own (beside those of phantom functions).
    #[must_use]
    pub fn carried_by(&self, source: SourceId) -> SourceId {
        self.replacing(source).last().copied().unwrap_or(source)
    }

    /// The source-id that a device scope of the DMAR means (VT-d 8.3.1): `path` holds (device, function) pairs, each but
    /// the last naming a bridge. The result need not be on the list (IOAPIC, HPET, a bus without functions).
    ///
    /// # Errors
    /// [`PathError`] when the path is empty or leads through something that is no bridge.
    pub fn resolve(&self, start_bus: u8, path: &[(u8, u8)]) -> Result<SourceId, PathError> {
        let (&(device, function), bridges) = path.split_last().ok_or(PathError::Empty)?;
        let mut bus = start_bus;
        for &(device, function) in bridges {
            let at = SourceId::new(bus, device, function);
            let Some(Kind::Bridge { secondary, .. }) = self.function(at).map(|bridge| bridge.kind) else {
                return Err(PathError::NoBridge { at });
            };
            bus = secondary;
        }
        Ok(SourceId::new(bus, device, function))
    }

    /// All functions below the bridge at `source`, at any depth, ascending: what a scope of type 2 covers besides it.
    pub fn below(&self, source: SourceId) -> impl Iterator<Item = &Function> + '_ {
        self.functions.iter().filter(move |function| {
            let mut above = function.parent;
            while let Some(bridge) = above {
                if bridge == source {
                    return true;
                }
                above = self.function(bridge).and_then(|bridge| bridge.parent);
            }
            false
        })
    }
}

/// No function answers: all ones, or a vendor id of all ones or zero.
fn absent(id: u32) -> bool {
    matches!(id as u16, 0xffff | 0)
}

fn bridge_kind<P: Platform + ?Sized>(platform: &P, source: SourceId) -> Result<BridgeKind, PciError> {
    let Some(offset) = capability(platform, source, CAP_EXPRESS)? else {
        return Ok(BridgeKind::Conventional);
    };
    // PCI Express capabilities register: device/port type in bits 7:4 (PCI Express 7.5.3.2).
    let port_type = platform.config_read32(source, offset.into()) >> 20 & 0xf;
    Ok(match port_type {
        7 => BridgeKind::ExpressToPci,
        8 => BridgeKind::Conventional,
        _ => BridgeKind::Port,
    })
}

#[cfg(test)]
mod tests;
