//! Configuration space of the functions that the machine has, as firmware left it: BARs assigned, buses numbered.

use crate::extra::{BridgeKind, Extra};
use crate::vtd::interrupts::Message;
use scenario::streamer;
use spec::SourceId;

/// The host bridge.
pub const HOST_BRIDGE: SourceId = SourceId::new(0, 0, 0);
/// The audio controller.
pub const AUDIO: SourceId = SourceId::new(0, 2, 0);
/// The first educational device.
pub const EDU_A: SourceId = SourceId::new(0, 3, 0);
/// The second educational device.
pub const EDU_B: SourceId = SourceId::new(0, 4, 0);
/// The bridge to bus 1.
pub const BRIDGE: SourceId = SourceId::new(0, 5, 0);
/// The educational device behind the bridge.
pub const EDU_C: SourceId = SourceId::new(1, 3, 0);
/// What requests from behind the bridge carry: no function answers to it (VT-d 3.4.1).
pub const BEHIND_BRIDGE: SourceId = SourceId::new(1, 0, 0);

const COMMAND: usize = 1;
const BAR0: usize = 4;
const BUSES: usize = 6;
/// The ATS capability, where a function has it.
const ATS: usize = 0x100 / 4;
/// The page request capability, in the same functions.
const PRI: usize = 0x110 / 4;
const PRI_STOPPED: u32 = 1 << 24;
const COMMAND_WRITABLE: u32 = 0x0547;
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
/// Register of the MSI capability.
const MSI: usize = 16;
const MSI_ENABLE: u32 = 1 << 16;
const PHANTOM_ENABLE: u32 = 1 << 9;

/// One function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Where it is.
    pub at: SourceId,
    /// 64 registers, or 1024 of a function of PCI Express.
    config: Vec<u32>,
    /// Size of BAR 0 in bytes; zero when there is none.
    bar_bytes: u32,
}

impl Function {
    fn new(at: SourceId, vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let mut config = vec![0; 64];
        config[0] = u32::from(device) << 16 | u32::from(vendor);
        // Firmware switched on ports, memory and SERR#; mastering is for the driver.
        config[COMMAND] = 0x0103;
        config[2] = class << 8 | u32::from(revision);
        Self { at, config, bar_bytes: 0 }
    }

    fn with_bar(mut self, address: u32, bytes: u32) -> Self {
        self.config[BAR0] = address;
        self.bar_bytes = bytes;
        self
    }

    /// Header type 1, with a PCI Express capability that says what kind of port it is, unless it is conventional.
    fn into_bridge(mut self, secondary: u8, subordinate: u8, kind: BridgeKind) -> Self {
        self.config[COMMAND] |= MASTER;
        self.config[3] = 1 << 16;
        self.config[BUSES] =
            u32::from(subordinate) << 16 | u32::from(secondary) << 8 | u32::from(self.at.bus());
        match kind {
            BridgeKind::Conventional => self,
            BridgeKind::Port => self.with_express(4),
            BridgeKind::ExpressToPci => self.with_express(7),
        }
    }

    fn with_express(mut self, port_type: u32) -> Self {
        self.config[COMMAND] |= 1 << 20;
        self.config[13] = 0x40;
        self.config[16] = 0x0002_0010 | port_type << 20;
        self
    }

    /// PCI Express and ATS capabilities (PCIe 7.5.3, 10.5.1).
    fn add_ats(&mut self, queue_depth: u8) {
        const ENDPOINT: u32 = 0x0002_0010;
        const ALIGNED: u32 = 1 << 5;
        self.config.resize(1024, 0);
        self.config[COMMAND] |= 1 << 20;
        // Behind the MSI capability, where there is one.
        if self.has_msi() {
            self.config[MSI] |= 0x60 << 8;
        } else {
            self.config[13] = 0x60;
        }
        self.config[24] = ENDPOINT;
        self.config[ATS] = 0x1101_000f;
        self.config[PRI] = 0x0001_0013;
        self.config[PRI + 1] = PRI_STOPPED;
        self.config[PRI + 2] = 64;
        self.config[ATS + 1] = u32::from(queue_depth % 32) | ALIGNED;
    }

    /// Asks for pages.
    #[must_use]
    pub fn has_pri_on(&self) -> bool {
        self.config.len() > PRI && self.config[PRI] as u16 == 0x13 && self.config[PRI + 1] & 1 == 1
    }

    /// Keeps translations of its own.
    #[must_use]
    pub fn has_ats_on(&self) -> bool {
        self.config.len() > ATS && self.config[ATS] as u16 == 0xf && self.config[ATS + 1] >> 31 == 1
    }

    /// Phantom functions, which firmware switched on, of a function with MSI.
    fn with_phantoms(self, bits: u8) -> Self {
        if bits == 0 {
            return self;
        }
        let mut function = self;
        function.config[MSI] |= 0x60 << 8;
        function.config[24] = 0x0002_0010;
        function.config[25] = u32::from(bits) << 3;
        function.config[26] = PHANTOM_ENABLE;
        function
    }

    fn with_many_functions(mut self) -> Self {
        self.config[3] |= 0x80 << 16;
        self
    }

    /// A capability for one MSI, with an address of 64 bits.
    fn with_msi(mut self) -> Self {
        self.config[COMMAND] |= 1 << 20;
        self.config[13] = MSI as u32 * 4;
        self.config[MSI] = 0x0080_0005;
        self
    }

    fn has_msi(&self) -> bool {
        self.config[13] == MSI as u32 * 4 && self.config[MSI] & 0xff == 5
    }

    /// The message that the function sends; `None` while MSI is off.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        let on = self.has_msi() && self.config[MSI] & MSI_ENABLE != 0 && self.config[MSI + 2] == 0;
        on.then(|| Message { address: self.config[MSI + 1], data: self.config[MSI + 3] & 0xffff })
    }

    fn read(&self, register: usize) -> u32 {
        self.config.get(register).copied().unwrap_or(u32::MAX)
    }

    fn write(&mut self, register: usize, value: u32) {
        let bridge = self.config[3] >> 16 & 0x7f == 1;
        match register {
            COMMAND => {
                let status = self.config[COMMAND] & 0xffff_0000;
                self.config[COMMAND] = status | (value & COMMAND_WRITABLE);
            }
            BAR0 if self.bar_bytes != 0 => self.config[BAR0] = value & !(self.bar_bytes - 1),
            BUSES if bridge => self.config[BUSES] = value,
            _ if register == ATS + 1 && self.config.len() > ATS => {
                self.config[register] = self.config[register] & 0xffff | value & 0x801f_0000;
            }
            MSI if self.has_msi() => {
                self.config[MSI] = self.config[MSI] & !MSI_ENABLE | value & MSI_ENABLE;
            }
            17..=19 if self.has_msi() => self.config[register] = value,
            _ if register == PRI + 1 && self.config.len() > PRI => {
                let on = value & 1;
                self.config[register] = on | if on == 1 { 0 } else { PRI_STOPPED };
            }
            _ if register == PRI + 3 && self.config.len() > PRI => self.config[register] = value.min(64),
            15 => self.config[15] = (self.config[15] & !0xff) | (value & 0xff),
            _ => {}
        }
    }

    /// The bus behind a bridge.
    fn secondary(&self) -> Option<u8> {
        (self.config[3] >> 16 & 0x7f == 1).then_some((self.config[BUSES] >> 8) as u8)
    }

    /// May issue DMA.
    #[must_use]
    pub fn masters(&self) -> bool {
        self.config[COMMAND] & MASTER != 0
    }

    /// Whether `address` lies in BAR 0 and memory decoding is on; the offset then.
    #[must_use]
    pub fn decodes(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(u64::from(self.config[BAR0]))?;
        let on = self.config[COMMAND] & MEMORY != 0;
        (on && offset < u64::from(self.bar_bytes)).then_some(offset)
    }
}

fn edu(at: SourceId, registers: u32) -> Function {
    Function::new(at, 0x1234, 0x11e8, 0x00_ff00, 0x10).with_bar(registers, 1 << 20).with_msi()
}

/// All functions of segment 0.
#[derive(Debug)]
pub struct Pci {
    functions: Vec<Function>,
}

impl Pci {
    /// The functions of QEMU's q35 with the scenario's devices.
    #[must_use]
    pub fn scenario() -> Self {
        let chipset =
            |function, device, class| Function::new(SourceId::new(0, 31, function), 0x8086, device, class, 2);
        Self {
            functions: vec![
                Function::new(HOST_BRIDGE, 0x8086, 0x29c0, 0x06_0000, 0),
                Function::new(AUDIO, 0x8086, 0x2668, 0x04_0300, 1).with_bar(0xfebf_0000, 16 << 10),
                edu(EDU_A, 0xfea0_0000),
                edu(EDU_B, 0xfe90_0000),
                Function::new(BRIDGE, 0x1b36, 0x000e, 0x06_0400, 0).into_bridge(
                    1,
                    1,
                    BridgeKind::ExpressToPci,
                ),
                chipset(0, 0x2918, 0x06_0100).with_many_functions(),
                chipset(2, 0x2922, 0x01_0601),
                chipset(3, 0x2930, 0x0c_0500),
                edu(EDU_C, 0xfe80_0000),
            ],
        }
    }

    /// Gives a function an ATS capability. Nothing happens where there is no such function.
    pub(crate) fn add_ats(&mut self, at: SourceId, queue_depth: u8) {
        self.functions.iter_mut().filter(|f| f.at == at).for_each(|f| f.add_ats(queue_depth));
    }

    /// These functions, and more.
    #[must_use]
    pub fn with(mut self, more: &[Extra]) -> Self {
        for extra in more {
            match *extra {
                Extra::Bridge { at, secondary, subordinate, kind } => {
                    let bridge = Function::new(at, 0x1b36, 0x000c, 0x06_0400, 0);
                    self.functions.push(bridge.into_bridge(secondary, subordinate, kind));
                }
                Extra::Function { at, registers, phantom_bits } => {
                    self.functions.push(edu(at, registers).with_phantoms(phantom_bits));
                }
                Extra::Streamer { at, registers } => {
                    let streamer = Function::new(at, streamer::VENDOR, streamer::DEVICE, 0x00_ff00, 1);
                    self.functions.push(streamer.with_bar(registers, streamer::REGISTER_BYTES as u32));
                }
                Extra::Fixed { .. } => {}
            }
        }
        self.functions.sort_by_key(|function| function.at);
        self
    }

    /// The bridges above a bus, nearest first, as firmware numbered the buses.
    #[must_use]
    pub fn above(&self, bus: u8) -> Vec<SourceId> {
        let (mut bus, mut bridges) = (bus, Vec::new());
        // A bridge leads to a bus with a higher number than its own.
        while let Some(bridge) =
            self.functions.iter().find(|f| f.secondary() == Some(bus) && f.at.bus() < bus)
        {
            bridges.push(bridge.at);
            bus = bridge.at.bus();
        }
        bridges
    }

    /// What requests of the function at `at` carry when they arrive at a unit.
    #[must_use]
    pub fn carried(&self, at: SourceId) -> SourceId {
        let mut carried = at;
        for bridge in self.above(at.bus()).into_iter().filter_map(|bridge| self.function(bridge)) {
            carried = match (bridge.config[16] >> 20 & 0xf, bridge.config[13]) {
                (_, 0) => bridge.at,
                (7, _) => SourceId::new(bridge.secondary().unwrap_or_default(), 0, 0),
                _ => carried,
            };
        }
        carried
    }

    /// Whether there is a bridge at `at`.
    #[must_use]
    pub fn is_bridge(&self, at: SourceId) -> bool {
        self.function(at).is_some_and(|f| f.secondary().is_some())
    }

    /// The function at `at`.
    #[must_use]
    pub fn function(&self, at: SourceId) -> Option<&Function> {
        self.functions.iter().find(|f| f.at == at)
    }

    /// Functions of the root bus, ascending, with whether each is a bridge.
    pub fn root_bus(&self) -> impl Iterator<Item = (SourceId, bool)> + '_ {
        self.functions.iter().filter(|f| f.at.bus() == 0).map(|f| (f.at, f.secondary().is_some()))
    }

    /// A read of the 32-bit register at `offset`.
    #[must_use]
    pub fn read(&self, at: SourceId, offset: u16) -> u32 {
        self.function(at).map_or(u32::MAX, |f| f.read(usize::from(offset / 4)))
    }

    /// A write of the 32-bit register at `offset`.
    pub fn write(&mut self, at: SourceId, offset: u16, value: u32) {
        if let Some(function) = self.functions.iter_mut().find(|f| f.at == at) {
            function.write(usize::from(offset / 4), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_its_size_when_written_with_ones_and_takes_an_address_back() {
        let mut pci = Pci::scenario();
        pci.write(AUDIO, 0x10, u32::MAX);
        assert_eq!(pci.read(AUDIO, 0x10), 0xffff_c000);
        pci.write(AUDIO, 0x10, 0xfebf_0000);
        assert_eq!(pci.function(AUDIO).unwrap().decodes(0xfebf_3fff), Some(0x3fff));
        assert_eq!(pci.function(AUDIO).unwrap().decodes(0xfebf_4000), None);
    }

    #[test]
    fn an_absent_function_reads_as_ones_as_does_the_source_behind_the_bridge() {
        assert_eq!(Pci::scenario().read(BEHIND_BRIDGE, 0), u32::MAX);
        assert_eq!(Pci::scenario().read(SourceId::new(0, 9, 0), 0), u32::MAX);
    }

    #[test]
    fn a_message_is_sent_once_the_capability_is_on() {
        let mut pci = Pci::scenario();
        assert_eq!(pci.read(EDU_A, 0x34), 0x40);
        pci.write(EDU_A, 0x44, 0xfee0_0010);
        pci.write(EDU_A, 0x4c, 0x1234);
        assert_eq!(pci.function(EDU_A).unwrap().message(), None);
        pci.write(EDU_A, 0x40, 1 << 16);
        assert_eq!(pci.read(EDU_A, 0x40), 0x0081_0005);
        let message = Message { address: 0xfee0_0010, data: 0x1234 };
        assert_eq!(pci.function(EDU_A).unwrap().message(), Some(message));
        assert_eq!(pci.function(AUDIO).unwrap().message(), None);
    }

    #[test]
    fn mastering_is_off_until_a_driver_asks_for_it() {
        let mut pci = Pci::scenario();
        assert!(!pci.function(EDU_A).unwrap().masters());
        pci.write(EDU_A, 4, 6);
        assert!(pci.function(EDU_A).unwrap().masters());
    }
}
