//! XXH64: the digest of the handover and of the tables it names.
//!
//! Bytes go in at any split, 32 at a time through four lanes; the sum over all of them comes out. The digest finds
//! damage and mix-ups; it is no defence against somebody who forges a handover on purpose.
//!
//! [`hash`] is for bytes that lie in one piece, [`Hasher`] for those that come in several. Both give the same value.

use zerocopy::IntoBytes;

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;

/// Bytes that the four lanes take in one step.
const STRIPE: usize = 32;

/// XXH64 of `bytes` under `seed`.
#[must_use]
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut hasher = Hasher::new(seed);
    hasher.update(bytes);
    hasher.finish()
}

/// XXH64 over bytes that come in pieces.
#[derive(Debug, Clone)]
pub struct Hasher {
    seed: u64,
    lanes: [u64; 4],
    /// All bytes so far; `total % 32` of them wait in `rest`.
    total: u64,
    rest: [u8; STRIPE],
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let lanes =
            [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        Self { seed, lanes, total: 0, rest: [0; STRIPE] }
    }

    /// Takes in `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        let held = self.held();
        self.total = self.total.wrapping_add(bytes.len() as u64);
        let mut bytes = bytes;
        if held > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(STRIPE - held));
            self.rest[held..held + now.len()].copy_from_slice(now);
            if held + now.len() < STRIPE {
                return;
            }
            let full = self.rest;
            self.lanes = stripe(self.lanes, &full);
            bytes = later;
        }
        let mut stripes = bytes.chunks_exact(STRIPE);
        let mut lanes = self.lanes;
        for chunk in &mut stripes {
            lanes = stripe(lanes, chunk);
        }
        self.lanes = lanes;
        let tail = stripes.remainder();
        self.rest[..tail.len()].copy_from_slice(tail);
    }

    /// Takes in `words`, each as its eight bytes in little-endian order: table entries as they lie in memory.
    pub fn update_words(&mut self, words: &[u64]) {
        if cfg!(target_endian = "little") {
            self.update(words.as_bytes());
        } else {
            for word in words {
                self.update(&word.to_le_bytes());
            }
        }
    }

    /// The digest of everything taken in. The hasher can go on afterwards.
    #[must_use]
    pub fn finish(&self) -> u64 {
        let sum = if self.total < STRIPE as u64 { self.seed.wrapping_add(P5) } else { merge(self.lanes) };
        let sum = absorb_tail(sum.wrapping_add(self.total), &self.rest[..self.held()]);
        avalanche(sum)
    }

    fn held(&self) -> usize {
        (self.total % STRIPE as u64) as usize
    }
}

/// One step of the four lanes over 32 bytes.
#[inline]
fn stripe(lanes: [u64; 4], bytes: &[u8]) -> [u64; 4] {
    [
        round(lanes[0], word(&bytes[0..8])),
        round(lanes[1], word(&bytes[8..16])),
        round(lanes[2], word(&bytes[16..24])),
        round(lanes[3], word(&bytes[24..32])),
    ]
}

/// Folds the lanes into one sum.
fn merge(lanes: [u64; 4]) -> u64 {
    let mut sum = lanes[0]
        .rotate_left(1)
        .wrapping_add(lanes[1].rotate_left(7))
        .wrapping_add(lanes[2].rotate_left(12))
        .wrapping_add(lanes[3].rotate_left(18));
    for lane in lanes {
        sum = (sum ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
    }
    sum
}

/// The last bytes, fewer than a stripe: by eight, by four, one by one.
fn absorb_tail(mut sum: u64, tail: &[u8]) -> u64 {
    let mut eights = tail.chunks_exact(8);
    for chunk in &mut eights {
        sum = (sum ^ round(0, word(chunk))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let mut tail = eights.remainder();
    if let Some((four, after)) = tail.split_first_chunk::<4>() {
        let value = u64::from(u32::from_le_bytes(*four));
        sum = (sum ^ value.wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        tail = after;
    }
    for &byte in tail {
        sum = (sum ^ u64::from(byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    sum
}

/// Spreads every bit of the sum over the whole word.
const fn avalanche(mut sum: u64) -> u64 {
    sum = (sum ^ sum >> 33).wrapping_mul(P2);
    sum = (sum ^ sum >> 29).wrapping_mul(P3);
    sum ^ sum >> 32
}

#[inline]
const fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

/// The little-endian word in the first eight bytes; zero when there are fewer, which no caller offers.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight))
}
