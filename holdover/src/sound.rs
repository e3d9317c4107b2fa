//! What was heard: the recording of the playing stream, compared with the tune that it should hold.
//!
//! The tune is known frame by frame and repeats for ever. [`Tune::listen`] finds where in the tune a recording begins and
//! from there on expects each frame to be the successor of the one before. Where one is not, a break begins; it ends where
//! a run of [`WINDOW`] frames is recognised again. So a hole, a repetition, foreign bytes and silence all show, and none
//! hides what comes after it.

use anyhow::{Context, bail, ensure};
use std::io::Cursor;
use std::path::Path;

/// One stereo sample.
pub type Frame = [i16; 2];

/// Frames a second.
pub const RATE: u32 = 48_000;
/// Frames that must agree for a place in the tune to be recognised.
pub const WINDOW: usize = 64;
/// Frames at the beginning of a window by which it is looked up.
const KEY: usize = 4;
/// Most breaks that are kept; all are counted.
const BREAKS_KEPT: usize = 64;
/// Largest recording that is read.
const BYTES_MAX: u64 = 512 << 20;
/// Bytes of the header that QEMU writes.
const HEADER_BYTES: usize = 44;

/// The tune that is played cyclically, with an index of its windows.
#[derive(Debug, Clone)]
pub struct Tune {
    frames: Vec<Frame>,
    /// The first [`KEY`] frames of each window and where it begins, ascending.
    windows: Vec<([Frame; KEY], u32)>,
}

/// A place where a frame is not the successor of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    /// Index in the recording of the first frame that is not the expected one.
    pub at: usize,
    /// Frames that belong nowhere, until the tune was recognised again or the recording ended.
    pub wrong: usize,
    /// They are all zero.
    pub silent: bool,
    /// By how many frames the tune jumped ahead, modulo its length; none when it was not recognised again.
    pub skipped: Option<usize>,
}

/// What was heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Index in the recording of the first frame of the tune; none when no tune was recognised.
    pub start: Option<usize>,
    /// Which frame of the tune that is.
    pub phase: usize,
    /// Frames from there up to the silence at the end.
    pub samples: usize,
    /// Breaks, all of them.
    pub discontinuities: u64,
    /// Frames in breaks.
    pub wrong: u64,
    /// The first breaks.
    pub breaks: Vec<Break>,
    /// Frames of silence before the tune and after it.
    pub silence: [usize; 2],
}

impl Tune {
    /// A tune of at least [`WINDOW`] frames, which repeats after its last one.
    ///
    /// # Panics
    /// When it is shorter.
    #[must_use]
    pub fn new(frames: Vec<Frame>) -> Self {
        assert!(frames.len() >= WINDOW, "a tune of {} frames cannot be recognised", frames.len());
        let at = |index: usize| frames[index % frames.len()];
        let mut windows: Vec<_> = (0..frames.len())
            .filter(|&index| (1..WINDOW).any(|i| at(index + i) != at(index)))
            .map(|index| (std::array::from_fn(|i| at(index + i)), index as u32))
            .collect();
        windows.sort_unstable();
        Self { frames, windows }
    }

    /// The tune that the kernels of the scenario play.
    #[must_use]
    pub fn of_the_scenario() -> Self {
        Self::new((0..scenario::tune::FRAMES).map(scenario::tune::frame).collect())
    }

    /// The frame with this number, counted from the tune's start on through its repetitions.
    #[must_use]
    pub fn frame(&self, number: usize) -> Frame {
        self.frames[number % self.frames.len()]
    }

    /// Compares a recording with the tune.
    #[must_use]
    pub fn listen(&self, recording: &[Frame]) -> Heard {
        let leading = recording.iter().take_while(|f| **f == [0, 0]).count();
        let trailing = recording[leading..].iter().rev().take_while(|f| **f == [0, 0]).count();
        let end = recording.len() - trailing;
        let Some((mut at, mut phase)) = self.recognise(&recording[..end], leading, 0) else {
            return Heard { silence: [leading, trailing], ..Heard::default() };
        };
        // Frames before the recognised one may belong to the tune as well: its first ones may be silent.
        while at > 0 && recording[at - 1] == self.frame(phase + self.frames.len() - 1) && phase > 0 {
            (at, phase) = (at - 1, phase - 1);
        }
        let mut heard =
            Heard { start: Some(at), phase, samples: end - at, silence: [at, trailing], ..Heard::default() };
        if at > leading {
            // Something sounded before the tune was recognised.
            heard.note(Break { at: leading, wrong: at - leading, silent: false, skipped: None });
            heard.silence[0] = leading;
        }
        while at < end {
            if recording[at] == self.frame(phase) {
                (at, phase) = (at + 1, phase + 1);
                continue;
            }
            let (resumed, next) = self.recognise(&recording[..end], at, phase).unwrap_or((end, 0));
            let expected = phase + (resumed - at);
            let skipped = (resumed < end)
                .then(|| (next + self.frames.len() - expected % self.frames.len()) % self.frames.len());
            let silent = recording[at..resumed].iter().all(|f| *f == [0, 0]);
            heard.note(Break { at, wrong: resumed - at, silent, skipped });
            (at, phase) = (resumed, next);
        }
        heard
    }

    /// The first place at or after `from` where the tune is recognised, and which frame of it that is. Of several frames
    /// that fit, the one is taken that `expected` (the frame expected at `from`) leads to, else the first.
    fn recognise(&self, recording: &[Frame], from: usize, expected: usize) -> Option<(usize, usize)> {
        recording.get(from..)?.windows(WINDOW).enumerate().find_map(|(offset, window)| {
            let wanted = (expected + offset) % self.frames.len();
            let mut first = None;
            for start in self.alike(window.first_chunk()?) {
                if window.iter().enumerate().all(|(i, f)| *f == self.frame(start + i)) {
                    if start == wanted {
                        return Some((from + offset, start));
                    }
                    first = first.or(Some(start));
                }
            }
            Some((from + offset, first?))
        })
    }

    /// Where windows begin that begin with these frames.
    fn alike(&self, key: &[Frame; KEY]) -> impl Iterator<Item = usize> {
        let first = self.windows.partition_point(|(k, _)| k < key);
        self.windows[first..].iter().take_while(move |(k, _)| k == key).map(|(_, at)| *at as usize)
    }
}

impl Heard {
    fn note(&mut self, found: Break) {
        self.discontinuities += 1;
        self.wrong += found.wrong as u64;
        if self.breaks.len() < BREAKS_KEPT {
            self.breaks.push(found);
        }
    }
}

/// Reads a recording: 16 bit, two channels, [`RATE`] frames a second.
///
/// # Errors
/// When there is none, or when it has another form.
pub fn read(file: &Path) -> anyhow::Result<Vec<Frame>> {
    let bytes = std::fs::metadata(file).with_context(|| format!("no recording at {}", file.display()))?.len();
    ensure!(
        bytes <= BYTES_MAX,
        "the recording {} has {bytes} bytes, at most {BYTES_MAX} are read",
        file.display()
    );
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(bytes).with_context(|| format!("{} is no recording that can be compared", file.display()))
}

fn parse(mut bytes: Vec<u8>) -> anyhow::Result<Vec<Frame>> {
    close_header(&mut bytes);
    let reader = hound::WavReader::new(Cursor::new(bytes))?;
    let form = reader.spec();
    if (form.channels, form.sample_rate, form.bits_per_sample) != (2, RATE, 16) {
        bail!(
            "{} channels of {} bits at {} frames a second instead of 2 of 16 at {RATE}",
            form.channels,
            form.bits_per_sample,
            form.sample_rate
        );
    }
    let samples: Vec<i16> = reader.into_samples::<i16>().collect::<Result<_, _>>()?;
    Ok(samples.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
}

/// Fills the lengths in, when QEMU was stopped before it could.
fn close_header(bytes: &mut Vec<u8>) {
    if bytes.len() < HEADER_BYTES || &bytes[36..40] != b"data" || bytes[40..44] != [0; 4] {
        return;
    }
    bytes.truncate(HEADER_BYTES + (bytes.len() - HEADER_BYTES) / 4 * 4);
    let length = (bytes.len() - HEADER_BYTES) as u32;
    bytes[4..8].copy_from_slice(&(length + HEADER_BYTES as u32 - 8).to_le_bytes());
    bytes[40..44].copy_from_slice(&length.to_le_bytes());
}

/// Writes a recording.
///
/// # Errors
/// When the file cannot be written.
pub fn write(file: &Path, recording: &[Frame]) -> anyhow::Result<()> {
    let form = hound::WavSpec {
        channels: 2,
        sample_rate: RATE,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer =
        hound::WavWriter::create(file, form).with_context(|| format!("cannot write {}", file.display()))?;
    for sample in recording.iter().flatten() {
        writer.write_sample(*sample)?;
    }
    writer.finalize()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 1000;

    fn tune() -> Tune {
        Tune::new((0..LENGTH).map(|i| [(i * i % 7919) as i16, (i * 31 % 997) as i16]).collect())
    }

    /// Silence, then the tune from `phase` on, then silence.
    fn played(tune: &Tune, phase: usize, count: usize) -> Vec<Frame> {
        let mut recording = vec![[0, 0]; 300];
        recording.extend((phase..phase + count).map(|i| tune.frame(i)));
        recording.extend([[0, 0]; 40]);
        recording
    }

    #[test]
    fn a_tune_without_a_break_is_heard_whole_wherever_it_begins() {
        let tune = tune();
        for phase in [2, 500, LENGTH - 1] {
            let heard = tune.listen(&played(&tune, phase, 5000));
            assert_eq!((heard.start, heard.phase, heard.samples), (Some(300), phase, 5000));
            assert_eq!((heard.discontinuities, heard.silence), (0, [300, 40]));
        }
    }

    #[test]
    fn silent_first_frames_of_the_tune_belong_to_it() {
        let tune = tune();
        assert_eq!(tune.frame(0), [0, 0]);
        let heard = tune.listen(&played(&tune, 0, 3000));
        assert_eq!((heard.start, heard.phase, heard.samples, heard.discontinuities), (Some(300), 0, 3000, 0));
    }

    #[test]
    fn a_lost_frame_a_repeated_frame_and_a_changed_frame_are_each_one_break() {
        let tune = tune();
        let mut lost = played(&tune, 1, 5000);
        lost.remove(2300);
        let heard = tune.listen(&lost);
        assert_eq!((heard.discontinuities, heard.wrong), (1, 0));
        assert_eq!(heard.breaks[0], Break { at: 2300, wrong: 0, silent: true, skipped: Some(1) });

        let mut repeated = played(&tune, 1, 5000);
        repeated.insert(2300, repeated[2299]);
        let heard = tune.listen(&repeated);
        assert_eq!((heard.discontinuities, heard.breaks[0].wrong), (1, 0));
        assert_eq!(heard.breaks[0].skipped, Some(LENGTH - 1));

        let mut changed = played(&tune, 1, 5000);
        changed[2300][1] ^= 1;
        let heard = tune.listen(&changed);
        assert_eq!(heard.breaks, [Break { at: 2300, wrong: 1, silent: false, skipped: Some(0) }]);
    }

    #[test]
    fn foreign_bytes_and_silence_in_the_middle_are_breaks_with_their_length() {
        let tune = tune();
        for (frame, silent) in [([0x5555, 0x5555], false), ([0, 0], true)] {
            let mut recording = played(&tune, 1, 5000);
            recording[1000..1900].fill(frame);
            let heard = tune.listen(&recording);
            assert_eq!(heard.breaks, [Break { at: 1000, wrong: 900, silent, skipped: Some(0) }]);
            assert_eq!(heard.wrong, 900);
        }
    }

    #[test]
    fn a_tune_that_never_comes_back_is_one_break_to_the_end() {
        let tune = tune();
        let mut recording = played(&tune, 1, 5000);
        recording.truncate(4000);
        recording[2000..].fill([7, 7]);
        let heard = tune.listen(&recording);
        assert_eq!(heard.breaks, [Break { at: 2000, wrong: 2000, silent: false, skipped: None }]);
    }

    #[test]
    fn noise_before_the_tune_is_a_break_and_a_recording_of_nothing_holds_no_tune() {
        let tune = tune();
        let mut recording = played(&tune, 1, 2000);
        recording[290] = [9, 9];
        assert_eq!(tune.listen(&recording).discontinuities, 1);
        for nothing in [vec![], vec![[0, 0]; 500], vec![[3, 4]; 500]] {
            assert_eq!(tune.listen(&nothing).start, None);
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.wav");
        let recording: Vec<Frame> = (0..100).map(|i| [i, -i]).collect();
        write(&file, &recording).unwrap();
        assert_eq!(read(&file).unwrap(), recording);
        assert!(read(&directory.path().join("b.wav")).is_err());
    }

    #[test]
    fn a_recording_whose_header_was_never_closed_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.wav");
        write(&file, &[[1, 2], [3, 4]]).unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        assert_eq!(bytes.len(), HEADER_BYTES + 8);
        bytes[4..8].fill(0);
        bytes[40..44].fill(0);
        bytes.push(5);
        assert_eq!(parse(bytes).unwrap(), [[1, 2], [3, 4]]);
    }

    #[test]
    fn a_recording_of_another_form_is_refused_by_its_form() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.wav");
        let form = hound::WavSpec {
            channels: 1,
            sample_rate: 44_100,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        hound::WavWriter::create(&file, form).unwrap().finalize().unwrap();
        assert!(format!("{:#}", read(&file).unwrap_err()).contains("44100"));
    }
}
