//! Configuration space of one function: bits that can be written, and BARs that show their size.

use alloc::vec;
use alloc::vec::Vec;

const COMMAND: u16 = 0x04;
/// I/O, memory, bus master.
const COMMAND_WRITABLE: u32 = 7;

/// One function.
pub(crate) struct FakeFunction {
    words: [u32; 64],
    /// Bits of each word that keep what is written.
    writable: [u32; 64],
    /// Stores of all ones to a BAR while decoding was on: for that moment the device was somewhere else.
    pub(crate) moved_while_decoding: u32,
    /// Stores of ones into status bits, which clear them.
    pub(crate) status_cleared: u32,
    /// What was written to the command register, in order.
    pub(crate) commands: Vec<u16>,
}

impl FakeFunction {
    /// An endpoint with this vendor, device and 24-bit class.
    pub(crate) fn endpoint(vendor: u16, device: u16, class: u32) -> Self {
        let mut function = Self {
            words: [0; 64],
            writable: [0; 64],
            moved_while_decoding: 0,
            status_cleared: 0,
            commands: vec![],
        };
        function.words[0] = u32::from(device) << 16 | u32::from(vendor);
        function.words[2] = class << 8;
        function.writable[1] = COMMAND_WRITABLE;
        function
    }

    /// A bridge to `secondary`, with the buses up to `subordinate` behind it.
    pub(crate) fn bridge(primary: u8, secondary: u8, subordinate: u8) -> Self {
        Self::endpoint(0x1b36, 0x000e, 0x06_04_00)
            .word(0x0c, 1 << 16)
            .word(0x18, u32::from(subordinate) << 16 | u32::from(secondary) << 8 | u32::from(primary))
    }

    /// The word at `offset` replaced.
    pub(crate) fn word(mut self, offset: u16, value: u32) -> Self {
        self.words[usize::from(offset / 4)] = value;
        self
    }

    /// A list of capabilities: (offset, 32-bit word).
    pub(crate) fn capabilities(mut self, list: &[(u8, u32)]) -> Self {
        self.words[1] |= 1 << 20;
        self.words[0x34 / 4] = list[0].0.into();
        list.iter().fold(self, |function, &(offset, word)| function.word(offset.into(), word))
    }

    /// PCI Express of this port type at 0x40, alone in the list.
    pub(crate) fn express(self, port_type: u32) -> Self {
        self.capabilities(&[(0x40, port_type << 20 | 2 << 16 | 0x10)])
    }

    /// A BAR with its low (type) bits, of `bytes` bytes (a power of two).
    pub(crate) fn bar(mut self, index: usize, content: u64, bytes: u64) -> Self {
        let kept = !(bytes - 1);
        self.words[4 + index] = content as u32;
        self.writable[4 + index] = kept as u32;
        if content & 7 == 4 {
            self.words[5 + index] = (content >> 32) as u32;
            self.writable[5 + index] = (kept >> 32) as u32;
        }
        self
    }

    pub(crate) fn read(&self, offset: u16) -> u32 {
        self.words[usize::from(offset / 4)]
    }

    pub(crate) fn write(&mut self, offset: u16, value: u32) {
        let index = usize::from(offset / 4);
        if offset == COMMAND {
            self.commands.push(value as u16);
            self.status_cleared += u32::from(value >> 16 != 0);
        }
        let is_bar = (0x10..0x28).contains(&offset);
        if is_bar && value == u32::MAX && self.words[1] & 3 != 0 {
            self.moved_while_decoding += 1;
        }
        self.words[index] = self.words[index] & !self.writable[index] | value & self.writable[index];
    }
}
