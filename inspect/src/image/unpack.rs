//! Unpacking: files packed with zstd, of one frame or of several, into memory.
//!
//! What repeats is kept once, so that the empty parts of a memory image, and a file made to fill all memory, cost next to
//! nothing. A frame that is damaged, cut short or followed by something else is an error: half an image would look whole.

use super::open::OpenError;
use super::store::{CHUNK, by_chunks};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufReader, Read};
use std::sync::Arc;

/// First bytes of a zstd frame.
const FRAME: u32 = 0xfd2f_b528;
/// First bytes of a frame that holds nothing, but for the lowest four bits.
const EMPTY_FRAME: u32 = 0x184d_2a50;

/// Bytes that every frame has before its first block.
const FIRST: u64 = 6;
/// Bytes that a frame may look back to, all of which the decoder keeps: as many as zstd itself takes without being asked.
const WINDOW: u64 = 128 << 20;

/// How far the frame that begins with `first` looks back (RFC 8878, 3.1.1.1.2); `None` when it does over all of its content.
fn window(first: &[u8]) -> Option<u64> {
    let [_, _, _, _, descriptor, window] = first else { return Some(0) };
    if descriptor & 1 << 5 != 0 {
        return None;
    }
    let base = 1 << (10 + (window >> 3));
    Some(base + base / 8 * u64::from(window & 7))
}

/// Whether a file that begins with `first` is packed with zstd.
pub(crate) fn is_packed(first: &[u8]) -> bool {
    let magic = first.first_chunk().map(|magic| u32::from_le_bytes(*magic));
    magic.is_some_and(|magic| magic == FRAME || magic & !0xf == EMPTY_FRAME)
}

/// What was packed.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// All of [`CHUNK`] bytes but the last.
    chunks: Vec<Arc<[u8]>>,
    bytes: u64,
}

impl Unpacked {
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> bool {
        by_chunks(offset, out, |chunk, within, part| {
            let chunk = usize::try_from(chunk).ok().and_then(|chunk| self.chunks.get(chunk));
            chunk.and_then(|chunk| chunk.get(within..within + part.len())).is_some_and(|bytes| {
                part.copy_from_slice(bytes);
                true
            })
        })
    }

    fn add(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        let chunk = match self.chunks.last() {
            Some(last) if **last == *chunk => Arc::clone(last),
            _ => chunk.into(),
        };
        self.chunks.push(chunk);
    }
}

/// Unpacks all frames of `packed`, at most `limit` bytes.
pub(crate) fn unpack(packed: impl Read, limit: u64) -> Result<Unpacked, OpenError> {
    let (packed, decoder) = (BufReader::new(packed), FrameDecoder::new());
    let most = limit.clamp(8 << 20, WINDOW);
    let mut frames = Frames { packed, decoder, most, begun: false, inside: false, got: 0 };
    let mut unpacked = Unpacked::default();
    let mut chunk = [0; CHUNK as usize];
    loop {
        let mut filled = 0;
        while filled < chunk.len() {
            match frames.read(&mut chunk[filled..]).map_err(OpenError::Packed)? {
                0 => break,
                got => filled += got,
            }
        }
        if filled as u64 > limit.saturating_sub(unpacked.bytes) {
            return Err(OpenError::TooLarge { limit });
        }
        if filled > 0 {
            unpacked.add(&chunk[..filled]);
        }
        if filled < chunk.len() {
            return Ok(unpacked);
        }
    }
}

/// What all frames hold, one after another.
struct Frames<R> {
    packed: BufReader<R>,
    decoder: FrameDecoder,
    /// Bytes that a frame may look back to.
    most: u64,
    /// There was a frame already.
    begun: bool,
    /// A frame was begun and has not ended.
    inside: bool,
    /// Bytes that came out of this frame.
    got: u64,
}

impl<R: Read> Frames<R> {
    /// Begins the next frame; `false` when there is none.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let mut first = Vec::new();
            (&mut self.packed).take(FIRST).read_to_end(&mut first)?;
            if first.is_empty() {
                return Ok(false);
            }
            let window = window(&first);
            // A decoder that is used again takes memory for the whole window at once.
            self.decoder = FrameDecoder::new();
            match self.decoder.reset(first.chain(&mut self.packed)) {
                Ok(()) if window.unwrap_or(self.decoder.content_size()) > self.most => {
                    return Err(io::Error::other("it wants too much memory: unpack it with zstd -d first"));
                }
                Ok(()) => {
                    (self.inside, self.got, self.begun) = (true, 0, true);
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(error)) => match error {
                    ReadFrameHeaderError::SkipFrame { length, .. } => {
                        let skipped = io::copy(&mut (&mut self.packed).take(length.into()), &mut io::sink())?;
                        if skipped < u64::from(length) {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    ReadFrameHeaderError::BadMagicNumber(_) if self.begun => {
                        return Err(io::Error::other("something that is no frame follows the last one"));
                    }
                    error => return Err(io::Error::other(error)),
                },
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Holds what came out of a frame against what the frame says about it.
    fn end(&mut self) -> io::Result<()> {
        self.inside = false;
        let (said, was) = (self.decoder.content_size(), self.got);
        if said != 0 && said != was {
            return Err(io::Error::other(format!("a frame says {said} bytes and holds {was}")));
        }
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(said), Some(was)) if said != was => {
                Err(io::Error::other("a frame's checksum does not match"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.inside || self.begin()? {
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let block = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.packed, block).map_err(io::Error::other)?;
                continue;
            }
            let got = self.decoder.read(out)?;
            self.got += got as u64;
            if got > 0 {
                return Ok(got);
            }
            self.end()?;
        }
        Ok(0)
    }
}

/// Unpacks the few bytes in `packed`; `None` when that fails, or they are more than `limit`.
pub(crate) fn small(packed: &[u8], limit: u64) -> Option<Vec<u8>> {
    let unpacked = unpack(packed, limit).ok()?;
    let mut bytes = vec![0; usize::try_from(unpacked.bytes).ok()?];
    unpacked.read_at(0, &mut bytes).then_some(bytes)
}
