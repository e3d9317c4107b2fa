//! What can go wrong with the audio controller, in words and with the facts.

use super::ring::{ALIGNMENT, ENTRIES};
use crate::platform::NoMemory;
use core::fmt;
use spec::{Iova, PhysAddr};

/// Why the controller or a stream could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HdaError {
    /// No controller, or one without a descriptor for each direction.
    NotHda {
        /// Where its registers should be.
        base: PhysAddr,
        /// Its global capabilities.
        gcap: u16,
    },
    /// The controller is in reset where a running one was expected.
    InReset,
    /// The controller did not enter or leave reset.
    ResetStuck {
        /// Whether it was to leave reset.
        leaving: bool,
    },
    /// No codec at an address.
    NoCodec {
        /// The address.
        codec: u8,
        /// Codecs present, one bit for each address.
        present: u16,
    },
    /// A codec did not answer.
    NoAnswer {
        /// The command: codec in bits 31:28, node in 27:20, verb and payload below.
        command: u32,
    },
    /// A ring that the controller cannot work on.
    BadRing {
        /// Its entries.
        entries: u16,
        /// Its length in bytes.
        bytes: u32,
    },
    /// An address that is not aligned, or too high for the controller.
    BadAddress {
        /// The address.
        address: Iova,
    },
    /// A stream descriptor did not enter or leave reset, or did not stop.
    StreamStuck {
        /// Number of the descriptor.
        stream: u8,
        /// Its control and status.
        ctl: u32,
    },
    /// A stream that was to be taken over does not run.
    NotRunning {
        /// Number of the descriptor.
        stream: u8,
        /// Its control and status.
        ctl: u32,
    },
    /// A stream that was to be taken over is another one.
    OtherStream {
        /// Number of the descriptor.
        stream: u8,
        /// Its tag.
        tag: u8,
        /// Its format.
        format: u16,
    },
    /// A stream did not move.
    StandsStill {
        /// Number of the descriptor.
        stream: u8,
        /// Its position in the ring, in bytes.
        at: u32,
    },
    /// No memory where a list or a position buffer should be.
    NoMemory {
        /// First address without memory.
        at: PhysAddr,
    },
}

impl From<NoMemory> for HdaError {
    fn from(error: NoMemory) -> Self {
        Self::NoMemory { at: error.at }
    }
}

impl fmt::Display for HdaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotHda { base, gcap } => {
                write!(f, "no usable audio controller at {base} (GCAP reads {gcap:#06x})")
            }
            Self::InReset => {
                write!(f, "the audio controller is in reset: nothing runs that could be taken over")
            }
            Self::ResetStuck { leaving } => {
                write!(f, "the audio controller did not {} reset", if leaving { "leave" } else { "enter" })
            }
            Self::NoCodec { codec, present } => {
                write!(f, "no codec at address {codec} (present: {present:#06x}): is the codec device there?")
            }
            Self::NoAnswer { command } => write!(f, "no answer to codec command {command:#010x}"),
            Self::BadRing { entries, bytes } => write!(
                f,
                "a ring of {bytes} bytes in {entries} entries: {} to {} entries of equal length, each a multiple of {ALIGNMENT}",
                ENTRIES.start(),
                ENTRIES.end()
            ),
            Self::BadAddress { address } => {
                write!(
                    f,
                    "the audio controller cannot use {address}: unaligned, or above what it can address"
                )
            }
            Self::StreamStuck { stream, ctl } => {
                write!(f, "audio stream {stream} does not follow its control register (it reads {ctl:#010x})")
            }
            Self::NotRunning { stream, ctl } => {
                write!(f, "audio stream {stream} does not run (its control register reads {ctl:#010x})")
            }
            Self::OtherStream { stream, tag, format } => {
                write!(f, "audio stream {stream} is another one: tag {tag}, format {format:#06x}")
            }
            Self::StandsStill { stream, at } => write!(f, "audio stream {stream} stands still at byte {at}"),
            Self::NoMemory { at } => write!(f, "no memory at {at}"),
        }
    }
}

impl core::error::Error for HdaError {}
