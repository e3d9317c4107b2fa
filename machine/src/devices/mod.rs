//! Device models: what issues DMA by itself. Registers as QEMU's devices have them.

pub mod chatter;
mod codec;
pub mod edu;
pub mod hda;
pub mod streamer;

use crate::dma::Port;

pub use chatter::{Chatter, Habits};
pub use edu::Edu;
pub use hda::Hda;
pub use streamer::Streamer;

/// A device behind its registers.
#[derive(Debug)]
pub enum Device {
    /// The educational device.
    Edu(Edu),
    /// The audio controller.
    Hda(Box<Hda>),
    /// The streaming device.
    Streamer(Box<Streamer>),
    /// A requester without registers.
    Chatter(Chatter),
}

impl Device {
    pub(crate) fn read(&mut self, at: u64, bytes: u64, port: &mut Port<'_>) -> u64 {
        match self {
            Self::Edu(edu) => edu.read(at, bytes),
            Self::Hda(hda) => hda.read(at, bytes, port),
            Self::Streamer(streamer) => streamer.read(at, bytes),
            Self::Chatter(_) => u64::MAX,
        }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: u64, value: u64, port: &mut Port<'_>) {
        match self {
            Self::Edu(edu) => edu.write(at, bytes, value, port),
            Self::Hda(hda) => hda.write(at, bytes, value, port),
            Self::Streamer(streamer) => streamer.write(at, bytes, value, port),
            Self::Chatter(_) => {}
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        match self {
            Self::Edu(edu) => edu.next_due(),
            Self::Hda(hda) => hda.next_due(),
            Self::Streamer(streamer) => streamer.next_due(),
            Self::Chatter(chatter) => chatter.next_due(),
        }
    }

    pub(crate) fn run(&mut self, port: &mut Port<'_>) {
        match self {
            Self::Edu(edu) => edu.run(port),
            Self::Hda(hda) => hda.run(port),
            Self::Streamer(streamer) => streamer.run(port),
            Self::Chatter(chatter) => chatter.run(port),
        }
    }
}
