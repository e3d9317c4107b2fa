//! The tune that is played while the kernel is replaced: something that an ear recognises and a judge can check frame by
//! frame.
//!
//! It is the first phrase of the Ode to Joy, made out of integers alone, so that every machine makes the same. The upper
//! twelve bits of each sample are music. The lower four carry a mark: any [`WINDOW`] frames in a row say by their marks
//! where in the tune they are ([`key`], [`Locator`]), so that a frame lost, repeated or read from elsewhere shows. The
//! tune is cyclic: its last frames and its first form windows too.

use alloc::vec::Vec;

/// Frames in the tune: 5.46 s, 1 MiB.
pub const FRAMES: u32 = 1 << 18;
/// Bytes in a frame: left and right sample, 16 bits each, little-endian.
pub const FRAME_BYTES: usize = 4;
/// Bytes of the whole tune.
pub const BYTES: usize = FRAMES as usize * FRAME_BYTES;
/// How many frames in a row say where in the tune they are.
pub const WINDOW: usize = 4;

/// One frame: left and right sample.
pub type Frame = [i16; 2];

const RATE: u64 = 48_000;
/// Bits of a sample that carry the mark.
const MARK: i16 = 0xf;
/// The first seed for which no two windows have the same marks; a test looks at all of them.
const SEED: u32 = 1309;
/// Frames in an eighth note.
const EIGHTH: u32 = FRAMES / 32;

/// A note: pitch in millihertz, length in eighths.
struct Note(u32, u32);

const G2: u32 = 97_999;
const C3: u32 = 130_813;
const C4: u32 = 261_626;
const D4: u32 = 293_665;
const E4: u32 = 329_628;
const F4: u32 = 349_228;
const G4: u32 = 391_995;

const MELODY: [Note; 15] = [
    Note(E4, 2),
    Note(E4, 2),
    Note(F4, 2),
    Note(G4, 2),
    Note(G4, 2),
    Note(F4, 2),
    Note(E4, 2),
    Note(D4, 2),
    Note(C4, 2),
    Note(C4, 2),
    Note(D4, 2),
    Note(E4, 2),
    Note(E4, 3),
    Note(D4, 1),
    Note(D4, 4),
];
const BASS: [Note; 8] =
    [Note(C3, 4), Note(C3, 4), Note(G2, 4), Note(G2, 4), Note(C3, 4), Note(C3, 4), Note(C3, 4), Note(G2, 4)];

/// Frame `index` of the tune, counted on beyond its end.
#[must_use]
pub fn frame(index: u32) -> Frame {
    let index = index % FRAMES;
    let (pitch, age, length) = playing(&MELODY, index);
    let melody = envelope(age, length)
        * (harmonic(pitch, age, 1) * 20 + harmonic(pitch, age, 2) * 7 + harmonic(pitch, age, 3) * 3)
        / (64 << 15);
    let (pitch, age, length) = playing(&BASS, index);
    let bass = envelope(age, length) * harmonic(pitch, age, 1) * 14 / (64 << 15);
    let mark = i16::from(mark(index));
    let left = (melody + bass * 3 / 4) as i16;
    let right = (melody * 3 / 4 + bass) as i16;
    [left & !MARK | mark >> 4, right & !MARK | mark & MARK]
}

/// Frame `index` as it lies in memory.
#[must_use]
pub fn frame_bytes(index: u32) -> [u8; FRAME_BYTES] {
    let [left, right] = frame(index).map(i16::to_le_bytes);
    [left[0], left[1], right[0], right[1]]
}

/// The marks of [`WINDOW`] frames in a row, first frame in the uppermost bits.
#[must_use]
pub fn key(window: &[Frame; WINDOW]) -> u32 {
    window.iter().fold(0, |key, [left, right]| key << 8 | ((left & MARK) << 4 | right & MARK) as u32)
}

/// The [`key`] of the window that begins at frame `index`.
#[must_use]
pub fn key_at(index: u32) -> u32 {
    (0..WINDOW as u32).fold(0, |key, offset| key << 8 | u32::from(mark((index + offset) % FRAMES)))
}

/// The mark of a frame: upper half on the left, lower half on the right.
fn mark(index: u32) -> u8 {
    let mut x = (index ^ SEED << 18).wrapping_mul(0x9e37_79b1);
    x = (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d);
    x = (x ^ x >> 12).wrapping_mul(0x297a_2d39);
    (x >> 24) as u8
}

/// Finds windows in the tune. Takes 2 MiB.
#[derive(Debug, Clone)]
pub struct Locator {
    /// Key and position of every window, ascending.
    windows: Vec<(u32, u32)>,
}

impl Default for Locator {
    fn default() -> Self {
        Self::new()
    }
}

impl Locator {
    /// Reads the whole tune once.
    #[must_use]
    pub fn new() -> Self {
        let mut windows: Vec<_> = (0..FRAMES).map(|index| (key_at(index), index)).collect();
        windows.sort_unstable();
        Self { windows }
    }

    /// The position of the frame with which `heard` begins, when all of `heard` is a piece of the tune. `None` also for
    /// fewer than [`WINDOW`] frames, which do not say where they are.
    #[must_use]
    pub fn locate(&self, heard: &[Frame]) -> Option<u32> {
        let start = self.find(key(heard.first_chunk()?))?;
        heard.iter().zip(start..).all(|(heard, index)| *heard == frame(index)).then_some(start)
    }

    /// The position of the window with this key.
    #[must_use]
    pub fn find(&self, key: u32) -> Option<u32> {
        let at = self.windows.binary_search_by_key(&key, |&(key, _)| key).ok()?;
        Some(self.windows[at].1)
    }
}

/// The pitch that sounds at frame `index`, how many frames it has sounded, and how many it sounds in all.
fn playing(notes: &[Note], index: u32) -> (u32, u32, u32) {
    let mut start = 0;
    for &Note(pitch, eighths) in notes {
        let length = eighths * EIGHTH;
        if index - start < length {
            return (pitch, index - start, length);
        }
        start += length;
    }
    (0, 0, 1)
}

/// Loudness of a note of `length` frames after `age` frames, 0 to 2^15: a soft start, a slow decay, a soft end.
fn envelope(age: u32, length: u32) -> i64 {
    const ATTACK: u32 = 512;
    const RELEASE: u32 = 1024;
    let rising = i64::from(age.min(ATTACK)) << 15;
    let falling = i64::from((length - age).min(RELEASE)) << 15;
    let decay = (1 << 15) - i64::from(age) * (5 << 12) / i64::from(length);
    let ends = ((rising / i64::from(ATTACK)) * (falling / i64::from(RELEASE))) >> 15;
    (ends * decay) >> 15
}

/// A harmonic of `pitch`, `age` frames after its start, -32767 to 32767.
fn harmonic(pitch: u32, age: u32, number: u32) -> i64 {
    let step = ((u64::from(pitch * number) << 32) / (RATE * 1000)) as u32;
    sine(step.wrapping_mul(age)).into()
}

/// Sine of `phase`, where 2^32 is a full turn, times 32767.
fn sine(phase: u32) -> i16 {
    let step = (phase >> 20 & 0x3ff) as usize;
    match phase >> 30 {
        0 => QUARTER[step],
        1 => QUARTER[1024 - step],
        2 => -QUARTER[step],
        _ => -QUARTER[1024 - step],
    }
}

/// A quarter turn of the sine in 1024 steps.
const QUARTER: [i16; 1025] = quarter();

/// Sums the series of the sine in fixed point, 2^30 being 1.
const fn quarter() -> [i16; 1025] {
    const HALF_PI: i64 = 1_686_629_713;
    let mut table = [0; 1025];
    let mut step = 0;
    while step <= 1024 {
        let x = HALF_PI * step as i64 / 1024;
        let square = (x * x) >> 30;
        let (mut term, mut sum, mut n) = (x, 0, 1);
        while n < 16 {
            sum += term;
            term = -((term * square) >> 30) / ((n + 1) * (n + 2));
            n += 2;
        }
        table[step] = ((sum * 32767 + (1 << 29)) >> 30) as i16;
        step += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    fn piece(start: u32, frames: u32) -> Vec<Frame> {
        (start..start + frames).map(frame).collect()
    }

    #[test]
    fn no_two_windows_of_the_cyclic_tune_have_the_same_marks() {
        let locator = Locator::new();
        assert_eq!(locator.windows.len(), FRAMES as usize);
        assert!(locator.windows.windows(2).all(|pair| pair[0].0 != pair[1].0));
    }

    #[test]
    fn the_marks_are_in_the_frames_as_they_are_played() {
        for index in (0..FRAMES).step_by(97).chain(FRAMES - 5..FRAMES) {
            let window = [0, 1, 2, 3].map(|offset| frame(index + offset));
            assert_eq!(key(&window), key_at(index), "frame {index}");
        }
    }

    #[test]
    fn any_piece_of_the_tune_is_located_also_across_its_end() {
        let locator = Locator::new();
        for start in [0, 1, 77_777, FRAMES - 3, FRAMES - 1] {
            assert_eq!(locator.locate(&piece(start, 64)), Some(start));
        }
        assert_eq!(locator.locate(&piece(5, 3)), None, "three frames do not say where they are");
    }

    #[test]
    fn a_piece_with_a_frame_lost_repeated_or_changed_is_not_located() {
        let locator = Locator::new();
        let damages: [fn(&mut Vec<Frame>); 4] = [
            |piece| piece.copy_within(31.., 30),
            |piece| piece.insert(30, piece[29]),
            |piece| piece[30][0] ^= 1 << 8,
            |piece| piece[30] = [0, 0],
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let mut piece = piece(1000, 64);
            damage(&mut piece);
            assert_eq!(locator.locate(&piece), None, "damage {number}");
        }
    }

    #[test]
    fn the_sine_table_is_the_sine() {
        for (step, &value) in QUARTER.iter().enumerate() {
            let exact = (std::f64::consts::FRAC_PI_2 * step as f64 / 1024.0).sin() * 32767.0;
            assert!((f64::from(value) - exact).abs() < 0.6, "step {step}: {value}, {exact}");
        }
    }

    #[test]
    fn the_notes_of_both_voices_fill_the_tune_exactly() {
        for voice in [&MELODY[..], &BASS[..]] {
            assert_eq!(voice.iter().map(|note| note.1).sum::<u32>() * EIGHTH, FRAMES);
        }
    }

    #[test]
    fn the_tune_is_loud_never_clips_and_never_clicks_not_even_where_it_begins_again() {
        let mut loudest = 0;
        let mut before = frame(FRAMES - 1);
        for index in 0..FRAMES {
            let now = frame(index);
            for channel in 0..2 {
                loudest = loudest.max(now[channel].unsigned_abs());
                let step = now[channel].abs_diff(before[channel]);
                assert!(step < 2500, "a step of {step} at frame {index}");
            }
            before = now;
        }
        assert!((16_000..32_000).contains(&loudest), "{loudest}");
    }

    #[test]
    fn pitches_are_those_of_the_equal_temperament() {
        for (millihertz, semitones_from_a4) in
            [(G2, -26), (C3, -21), (C4, -9), (D4, -7), (E4, -5), (F4, -4), (G4, -2)]
        {
            let exact = 440_000.0 * (f64::from(semitones_from_a4) / 12.0).exp2();
            assert!((f64::from(millihertz) - exact).abs() < 1.0, "{millihertz}, {exact}");
        }
    }

    #[test]
    fn each_note_sounds_at_its_pitch() {
        let mut start = 0;
        for &Note(pitch, eighths) in &MELODY {
            // The strength of a pitch in the middle of the note, by correlation with a turning pointer.
            let strength = |millihertz: u32| {
                let turn = std::f64::consts::TAU * f64::from(millihertz) / 48e6;
                let (mut re, mut im) = (0.0, 0.0);
                for index in 0..6000 {
                    let sample = f64::from(frame(start + 1000 + index)[0]);
                    re += sample * (turn * f64::from(index)).cos();
                    im += sample * (turn * f64::from(index)).sin();
                }
                re * re + im * im
            };
            let loudest =
                [C4, D4, E4, F4, G4].into_iter().max_by(|&a, &b| strength(a).total_cmp(&strength(b)));
            assert_eq!(loudest, Some(pitch), "the note at frame {start}");
            start += eighths * EIGHTH;
        }
    }

    #[test]
    fn a_frame_lies_in_memory_left_sample_first_and_little_endian() {
        let [left, right] = frame(4711);
        let bytes = frame_bytes(4711);
        assert_eq!(
            [i16::from_le_bytes([bytes[0], bytes[1]]), i16::from_le_bytes([bytes[2], bytes[3]])],
            [left, right]
        );
    }
}
