//! The `edu` device: one transfer at a time between its own buffer and memory, 100 ms after it was asked for.

use crate::dma::Port;
use crate::trace::TraceLine;

/// Where the device's buffer lies in the addresses of its source and destination registers.
const BUFFER: u64 = 0x4_0000;
const BUFFER_BYTES: u64 = 4096;
const IDENTITY: u64 = 0x0100_00ed;
/// Addresses of DMA have 28 bits.
const DMA_MASK: u64 = (1 << 28) - 1;
const DELAY_NS: u64 = 100_000_000;

const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Raise an interrupt when the transfer is over.
const RAISE: u64 = 4;
const DMA_DONE: u32 = 0x100;

/// One device.
#[derive(Debug)]
pub struct Edu {
    inverted: u32,
    /// Interrupts that were raised and not acknowledged.
    interrupts: u32,
    factorial: u64,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    buffer: Box<[u8; BUFFER_BYTES as usize]>,
    due: Option<u64>,
}

impl Default for Edu {
    fn default() -> Self {
        let buffer = Box::new([0; BUFFER_BYTES as usize]);
        Self {
            inverted: 0,
            interrupts: 0,
            factorial: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            buffer,
            due: None,
        }
    }
}

impl Edu {
    pub(crate) fn read(&mut self, at: u64, bytes: u64) -> u64 {
        let wide = bytes == 8;
        match at {
            // Registers below 0x80 are 4 bytes wide, those above 4 or 8.
            0x00 if bytes == 4 => IDENTITY,
            0x04 if bytes == 4 => u64::from(!self.inverted),
            0x08 if bytes == 4 => self.factorial,
            0x20 if bytes == 4 => 0,
            0x24 if bytes == 4 => u64::from(self.interrupts),
            0x80 if wide || bytes == 4 => self.source,
            0x88 if wide || bytes == 4 => self.destination,
            0x90 if wide || bytes == 4 => self.count,
            0x98 if wide || bytes == 4 => self.command,
            _ => u64::MAX,
        }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: u64, value: u64, port: &mut Port<'_>) {
        if bytes < 4 || (at < 0x80 && bytes != 4) {
            return;
        }
        if at >= 0x80 && self.command & RUN != 0 {
            // While a transfer runs its registers do not change.
            return;
        }
        match at {
            0x04 => self.inverted = value as u32,
            0x08 => {
                self.factorial =
                    (1..=value & 0xffff_ffff).take(64).fold(1, |f: u32, n| f.wrapping_mul(n as u32)).into()
            }
            0x60 => self.raise(value as u32, port),
            0x64 => self.interrupts &= !(value as u32),
            0x80 => self.source = value,
            0x88 => self.destination = value,
            0x90 => self.count = value,
            0x98 if value & RUN != 0 => {
                self.command = value;
                self.due = Some(port.fabric.now + DELAY_NS + port.fabric.dice.between(0, 2_000_000));
            }
            _ => {}
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due
    }

    pub(crate) fn run(&mut self, port: &mut Port<'_>) {
        if self.due.is_none_or(|due| due > port.fabric.now) {
            return;
        }
        self.due = None;
        let to_memory = self.command & TO_MEMORY != 0;
        let (inside, outside) =
            if to_memory { (self.source, self.destination) } else { (self.destination, self.source) };
        match self.part(inside) {
            Some(part) if to_memory => {
                // Refused or not, the device notices nothing.
                let _ = port.write(outside & DMA_MASK, &self.buffer[part]);
            }
            Some(part) => {
                let _ = port.read(outside & DMA_MASK, &mut self.buffer[part]);
            }
            None => {
                let (at, source) = (port.fabric.now, port.source(0));
                let what = "edu: a transfer beyond the device's buffer";
                port.fabric.trace.push(TraceLine::DeviceMisuse { at, source, what });
            }
        }
        self.command &= !RUN;
        if self.command & RAISE != 0 {
            self.raise(DMA_DONE, port);
        }
    }

    /// Each raising sends a message, whether one was acknowledged or not.
    fn raise(&mut self, which: u32, port: &mut Port<'_>) {
        self.interrupts |= which;
        if self.interrupts != 0 {
            port.interrupt();
        }
    }

    /// The part of the buffer that a transfer names. A transfer of the whole buffer counts as out of bounds, as it does in
    /// QEMU 7.2.
    fn part(&self, address: u64) -> Option<std::ops::Range<usize>> {
        let start = address.checked_sub(BUFFER)?;
        let end = start.checked_add(self.count)?;
        (start < BUFFER_BYTES && end < BUFFER_BYTES).then_some(start as usize..end as usize)
    }
}
