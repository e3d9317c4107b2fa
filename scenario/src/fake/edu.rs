//! The edu device: one transfer at a time, copied when its time has come, not before.

use super::{Device, Ram};

const TRANSFER_NS: u64 = 100_000_000;
const BUFFER: u64 = 0x4_0000;

/// The device's registers and buffer.
pub(crate) struct FakeEdu {
    id: u64,
    buffer: [u8; 4096],
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    due: Option<u64>,
}

impl FakeEdu {
    pub(crate) fn new() -> Self {
        Self::with_id(0x0100_00ed)
    }

    /// A device that identifies itself differently.
    pub(crate) fn with_id(id: u64) -> Self {
        Self { id, buffer: [0; 4096], source: 0, destination: 0, count: 0, command: 0, due: None }
    }

    fn inside(&self, address: u64) -> core::ops::Range<usize> {
        let start = address.checked_sub(BUFFER).expect("below the device's buffer");
        assert!(start + self.count < 4096, "QEMU aborts here: the transfer touches the end of the buffer");
        start as usize..(start + self.count) as usize
    }

    /// Ends the transfer when it is due.
    fn advance(&mut self, ram: &Ram, now: u64) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        self.due = None;
        // The device drives 28 address bits. Memory errors go unnoticed.
        if self.command & 2 != 0 {
            let range = self.inside(self.source);
            let _ = ram.write(self.destination & 0xfff_ffff, &self.buffer[range]);
        } else {
            let range = self.inside(self.destination);
            let _ = ram.read(self.source & 0xfff_ffff, &mut self.buffer[range]);
        }
        self.command &= !1;
    }
}

impl Device for FakeEdu {
    fn read(&mut self, ram: &Ram, now: u64, offset: u64, width: u32) -> u64 {
        self.advance(ram, now);
        match (offset, width) {
            (0, 4) => self.id,
            (0x80, 8) => self.source,
            (0x88, 8) => self.destination,
            (0x90, 8) => self.count,
            (0x98, 8) => self.command,
            _ => panic!("edu: {width} byte read at {offset:#x}"),
        }
    }

    fn write(&mut self, ram: &Ram, now: u64, offset: u64, width: u32, value: u64) {
        self.advance(ram, now);
        assert!(self.command & 1 == 0, "edu: a store at {offset:#x} while busy is lost");
        match (offset, width) {
            (0x80, 8) => self.source = value,
            (0x88, 8) => self.destination = value,
            (0x90, 8) => self.count = value,
            (0x98, 8) => {
                self.command = value;
                self.due = (value & 1 != 0).then_some(now + TRANSFER_NS);
            }
            _ => panic!("edu: {width} byte write at {offset:#x}"),
        }
    }
}
