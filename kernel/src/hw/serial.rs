//! The first serial port: where events and messages go.

use super::port;
use core::fmt::{self, Write};
use scenario::event::Event;

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const FIFO: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const MODEM_CONTROL: u16 = DATA + 4;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Polls per byte before it is dropped: a dead port must not hold the kernel up.
const PATIENCE: u32 = 100_000;

/// The port as a place to write text to. It has no state of ours, so there may be any number of these.
#[derive(Debug, Clone, Copy)]
pub struct Serial;

impl Serial {
    /// Sets 115200 baud, 8 bits, no parity, no interrupts.
    pub fn initialise() {
        port::write8(INTERRUPT_ENABLE, 0);
        port::write8(LINE_CONTROL, 0x80);
        port::write8(DATA, 1);
        port::write8(INTERRUPT_ENABLE, 0);
        port::write8(LINE_CONTROL, 0x03);
        port::write8(FIFO, 0x07);
        port::write8(MODEM_CONTROL, 0x03);
    }

    /// Sends one byte.
    pub fn send(byte: u8) {
        for _ in 0..PATIENCE {
            if port::read8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                port::write8(DATA, byte);
                return;
            }
        }
    }
}

/// Reports an event: one line `@{json}`, which is what the command reads.
pub fn event(event: &Event) {
    let _ = match serde_json::to_string(event) {
        Ok(json) => writeln!(Serial, "@{json}"),
        Err(error) => writeln!(Serial, "an event was lost: {error}"),
    };
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                Self::send(b'\r');
            }
            Self::send(byte);
        }
        Ok(())
    }
}
