//! What the outgoing kernel writes down for the next one, in a preserved frame of its own: where the streams stood, what
//! memory holds, what the cut-off did. Past the point of no return nothing may allocate, so nothing is printed there: the
//! next kernel reports for both.
//!
//! The frame's content is foreign data to whoever reads it: a magic number and a digest come first.

use crate::hda::Position;
use crate::platform::{NoMemory, Platform};
use liveupdate::CutOffEvent;
use spec::xxh64::Hasher;
use spec::{Extent, PhysAddr, Requester, Segment, SourceId};

/// First word of the notes.
const MAGIC: u64 = u64::from_le_bytes(*b"witness1");
/// Words of the notes.
const WORDS: usize = 208;
/// Where the lists start, behind the words that are there once.
const LISTS: usize = 18;
/// Most requesters that are noted of either kind.
const MOST: usize = 48;

/// Most PASIDs that are noted, and most streams.
const MOST_PASIDS: usize = 16;
/// Where the PASIDs are, and the beats of streams.
const PASIDS: usize = LISTS + 3 * MOST;
const BEATS: usize = PASIDS + MOST_PASIDS;

/// PASIDs that were cleared, each with its requester; what does not fit is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pasids {
    list: [u64; MOST_PASIDS],
    count: usize,
}

impl Pasids {
    const EMPTY: Self = Self { list: [0; MOST_PASIDS], count: 0 };

    fn push(&mut self, requester: Requester, pasid: u32) {
        if let Some(slot) = self.list.get_mut(self.count) {
            let who = u64::from(requester.segment.0) << 16 | u64::from(requester.source.raw());
            *slot = who << 32 | u64::from(pasid);
        }
        self.count += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Requester, u32)> + '_ {
        self.list.iter().take(self.count).map(|word| {
            let (segment, source) = (Segment((word >> 48) as u16), SourceId::from_raw((word >> 32) as u16));
            (Requester::new(segment, source), *word as u32)
        })
    }
}

/// A list of requesters of a fixed size; what does not fit is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Requesters {
    list: [Requester; MOST],
    count: usize,
}

impl Requesters {
    const EMPTY: Self = Self { list: [Requester::new(Segment(0), SourceId::from_raw(0)); MOST], count: 0 };

    fn push(&mut self, requester: Requester) {
        if let Some(slot) = self.list.get_mut(self.count) {
            *slot = requester;
        }
        self.count += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Requester> + '_ {
        self.list.iter().take(self.count).copied()
    }
}

/// The notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Where the playing stream stood at the last instruction.
    pub(crate) playing: Position,
    /// Where the capturing stream stood.
    pub(crate) capturing: Position,
    /// XXH64 of the tune in memory.
    pub(crate) tune: u64,
    /// Which preserved transfers were under way at the jump: a bit for each.
    pub(crate) busy: u64,
    /// When the cut-off began and how long it took, in nanoseconds.
    pub(crate) cut_off: (u64, u64),
    /// Units that confirmed that they forgot, and units that did not.
    pub(crate) confirmed: (u32, u32),
    /// Errors of invalidation queues that were mended meanwhile.
    pub(crate) queue_errors: u32,
    /// Interrupts that the preserved device raised after the cut-off.
    pub(crate) interrupts: u32,
    /// Who was cut off.
    pub(crate) cleared: Requesters,
    /// Who stays.
    pub(crate) stays: Requesters,
    /// Whose devices did not answer that they forgot.
    pub(crate) silent: Requesters,
    /// PASIDs that were cut off though their requesters stay.
    pub(crate) pasids: Pasids,
    /// Beats of streams, at the last instruction.
    pub(crate) beats: [u64; MOST_PASIDS],
}

impl Notes {
    pub(crate) const EMPTY: Self = Self {
        playing: Position { frames: 0, at: 0 },
        capturing: Position { frames: 0, at: 0 },
        tune: 0,
        busy: 0,
        cut_off: (0, 0),
        confirmed: (0, 0),
        interrupts: 0,
        queue_errors: 0,
        cleared: Requesters::EMPTY,
        stays: Requesters::EMPTY,
        silent: Requesters::EMPTY,
        pasids: Pasids::EMPTY,
        beats: [0; MOST_PASIDS],
    };

    /// Notes what the cut-off reports. Neither allocates nor sleeps.
    pub(crate) fn note(&mut self, event: CutOffEvent) {
        match event {
            CutOffEvent::Cleared { requester, .. } => self.cleared.push(requester),
            CutOffEvent::DeviceSilent { requester, .. } => self.silent.push(requester),
            CutOffEvent::Stays(requester) => self.stays.push(requester),
            CutOffEvent::Confirmed(_) | CutOffEvent::SwitchedOff(_) | CutOffEvent::InterruptsOff(_) => {
                self.confirmed.0 += 1;
            }
            CutOffEvent::InterruptCleared { .. } => {}
            // The requester stays: its other PASIDs go on.
            CutOffEvent::PasidCleared { requester, pasid, .. } => self.pasids.push(requester, pasid),
            CutOffEvent::NotConfirmed(_) | CutOffEvent::Unreachable(_) => self.confirmed.1 += 1,
        }
    }

    /// Writes the notes into `frame`. Neither allocates nor sleeps.
    pub(crate) fn write<P: Platform + ?Sized>(&self, platform: &P, frame: Extent) -> Result<(), NoMemory> {
        for (i, word) in self.words().iter().enumerate() {
            platform.write64(frame.start().plus(8 * i as u64), *word)?;
        }
        Ok(())
    }

    /// Reads notes out of `frame`; `None` when none are there.
    pub(crate) fn read<P: Platform + ?Sized>(platform: &P, frame: Extent) -> Option<Self> {
        let mut w = [0; WORDS];
        for (i, word) in w.iter_mut().enumerate() {
            *word = platform.read64(PhysAddr::new(frame.start().get() + 8 * i as u64)).ok()?;
        }
        if w[0] != MAGIC || w[1] != digest(&w) {
            return None;
        }
        let requesters = |word: u64, from: usize| {
            let mut list = Requesters::EMPTY;
            for raw in w[from..].iter().take((word as usize).min(MOST)) {
                list.push(Requester::new(Segment((raw >> 16) as u16), SourceId::from_raw(*raw as u16)));
            }
            list.count = word as usize;
            list
        };
        Some(Self {
            playing: Position { frames: w[2], at: w[3] },
            capturing: Position { frames: w[4], at: w[5] },
            tune: w[6],
            busy: w[7],
            cut_off: (w[8], w[9]),
            confirmed: (w[10] as u32, w[11] as u32),
            queue_errors: w[14] as u32,
            interrupts: w[15] as u32,
            cleared: requesters(w[12], LISTS),
            stays: requesters(w[13], LISTS + MOST),
            silent: requesters(w[16], LISTS + 2 * MOST),
            pasids: Pasids {
                list: core::array::from_fn(|i| w[PASIDS + i]),
                count: (w[17] as usize).min(MOST_PASIDS),
            },
            beats: core::array::from_fn(|i| w[BEATS + i]),
        })
    }

    fn words(&self) -> [u64; WORDS] {
        let mut w = [0; WORDS];
        w[0] = MAGIC;
        let fixed = [
            self.playing.frames,
            self.playing.at,
            self.capturing.frames,
            self.capturing.at,
            self.tune,
            self.busy,
            self.cut_off.0,
            self.cut_off.1,
            self.confirmed.0.into(),
            self.confirmed.1.into(),
            self.cleared.count as u64,
            self.stays.count as u64,
            self.queue_errors.into(),
            self.interrupts.into(),
            self.silent.count as u64,
            self.pasids.count as u64,
        ];
        w[2..LISTS].copy_from_slice(&fixed);
        let lists = [(&self.cleared, 0), (&self.stays, 1), (&self.silent, 2)];
        for (list, from) in lists.map(|(list, number)| (list, LISTS + number * MOST)) {
            for (word, requester) in w[from..].iter_mut().zip(list.iter()) {
                *word = u64::from(requester.segment.0) << 16 | u64::from(requester.source.raw());
            }
        }
        w[PASIDS..BEATS].copy_from_slice(&self.pasids.list);
        w[BEATS..][..MOST_PASIDS].copy_from_slice(&self.beats);
        w[1] = digest(&w);
        w
    }
}

const _: () = assert!(BEATS + MOST_PASIDS <= WORDS);

fn digest(words: &[u64; WORDS]) -> u64 {
    let mut hasher = Hasher::new(0);
    hasher.update_words(&words[2..]);
    hasher.finish()
}
