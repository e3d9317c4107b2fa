//! Where things are in the devices' address spaces, and what they are called across the update.

use super::drive;
use crate::platform::Platform;
use liveupdate::Token;
use spec::{Iova, PAGE_SIZE, SourceId};

/// A token out of eight letters: all 64 bits count.
const fn named(name: [u8; 8]) -> Token {
    Token(u64::from_be_bytes(name))
}

/// The region with the tune, the lists of buffers and the position buffer.
pub(crate) const SOUND: Token = named(*b"sound   ");
/// The region that the capturing stream writes to.
pub(crate) const CAPTURE: Token = named(*b"capture ");
/// The region that the preserved transfer writes to.
pub(crate) const TRANSFER: Token = named(*b"transfer");
/// The region that the requesters aim at that will be cut off.
pub(crate) const TARGETS: Token = named(*b"targets ");
/// The region with the notes.
pub(crate) const NOTES: Token = named(*b"notes   ");
/// The audio controller's domain.
pub(crate) const AUDIO_DOMAIN: Token = named(*b"audio-io");
/// The audio controller.
pub(crate) const AUDIO: Token = named(*b"audio   ");
/// The preserved edu with this number: the first has no digit in its name.
pub(crate) const fn edu(number: usize) -> Token {
    numbered(*b"edu     ", number)
}

/// The domain of the preserved edu with this number.
pub(crate) const fn edu_domain(number: usize) -> Token {
    numbered(*b"edu-io  ", number)
}

const fn numbered(mut name: [u8; 8], number: usize) -> Token {
    if number > 0 {
        name[7] = b'0' + number as u8;
    }
    named(name)
}

/// The name of what belongs to a requester that is reduced to its reserved memory: `kind` is `b'd'` for its domain, `b'r'`
/// for itself, a digit for each region.
pub(crate) const fn reduced(kind: u8, source: SourceId) -> Token {
    Token(u64::from_be_bytes(*b"rmrr\0\0\0\0") | (kind as u64) << 16 | source.raw() as u64)
}

/// The memory of the streams.
pub(crate) const STREAMS: Token = named(*b"streams ");
/// The streaming device.
pub(crate) const STREAMER: Token = named(*b"streamer");

/// The domain of a stream; of a nested one, the host's.
pub(crate) const fn stream_domain(number: usize) -> Token {
    numbered(*b"strm-io ", number)
}

/// The guest's tables of a nested stream.
pub(crate) const fn guest(number: usize) -> Token {
    numbered(*b"guest   ", number)
}

/// What a token is called in events.
pub(crate) fn name(token: Token) -> alloc::string::String {
    crate::text::token(token.0)
}

/// Bytes of the sound region when no more memory is to be had: the tune in its first half, lists in its second.
pub(crate) const SOUND_BYTES: u64 = 2 << 20;
/// Where the list of playing buffers is in the sound region.
pub(crate) const PLAY_LIST: u64 = 1 << 20;
/// Where the list of capturing buffers is in the sound region.
pub(crate) const CAPTURE_LIST: u64 = PLAY_LIST + PAGE_SIZE;
/// Where the position buffer is in the sound region.
pub(crate) const POSITIONS: u64 = CAPTURE_LIST + PAGE_SIZE;
/// Bytes of the capture ring: 341 ms.
pub(crate) const CAPTURE_BYTES: u64 = 64 << 10;

/// Where the audio controller sees the sound region: 1 GiB, so that the largest leaf fits.
pub(crate) const SOUND_IOVA: Iova = Iova::new(1 << 30);
/// Where the audio controller sees the capture region: above 4 GiB, in pages of 4 KiB.
pub(crate) const CAPTURE_IOVA: Iova = Iova::new(0x1_4000_5000);
/// Where each queue of the streaming device sees its ring.
pub(crate) const STREAM_IOVA: Iova = Iova::new(0x12_3456_0000);
/// What is added to addresses that devices of 64 bits use where tables have 5 levels: no table of 4 levels leads there, and
/// the first stage counts it to the lower half.
const HIGH: u64 = 0x005a_8000_0000_0000;

/// An address for a device that drives 64 bits.
pub(crate) fn high<P: Platform + ?Sized>(platform: &P, iova: Iova) -> Iova {
    if drive::levels(platform) == Some(5) { iova.plus(HIGH) } else { iova }
}

/// Where each edu sees its page of memory; below the 28 bits that the device drives.
pub(crate) const EDU_IOVA: Iova = Iova::new(0x0900_3000);
/// What edu `index` writes.
pub(crate) const fn pattern(index: usize) -> u64 {
    let half = 0xa1a1_0001_u64.wrapping_add(0x1111_0001 * index as u64) & 0xffff_ffff;
    half << 32 | half
}
/// Bytes of one transfer.
pub(crate) const TRANSFER_BYTES: u64 = 2048;
/// Where in the page the transfer that is under way at the jump writes.
pub(crate) const TRANSFER_OFFSET: u64 = 1024;

/// What the capture ring is filled with before the device is seen to overwrite it.
pub(crate) const UNHEARD: u64 = 0xbbbb_bbbb_bbbb_bbbb;
/// What memory of those who are cut off holds.
pub(crate) const UNTOUCHED: u64 = 0x5afe_5afe_5afe_5afe;
/// What memory that nobody preserved is overwritten with.
pub(crate) const POISON: u64 = 0xdead_f00d_dead_f00d;
/// Frames that must have been played before the witness is judged.
pub(crate) const FRAMES_TO_PLAY: u64 = 168_000;
