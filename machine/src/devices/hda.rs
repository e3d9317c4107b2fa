//! The audio controller: two codecs, eight streams, immediate commands. A running stream moves memory by itself at 192 bytes a
//! millisecond for ever, and what the output codec was given is kept: it is what the machine played.
//!
//! Registers are handled as aligned 32-bit slots with a mask of the bits that an access touches.

use super::codec::Codec;
use crate::config::Capture;
use crate::dma::Port;
use crate::trace::TraceLine;

/// Bytes of sound per second: 48 kHz, 16 bits, two channels.
const BYTES_PER_SECOND: u64 = 192_000;
const FRAME: u64 = 4;
/// How often a running stream moves a piece, in nanoseconds.
const TICK: (u64, u64) = (250_000, 420_000);
const STREAMS: usize = 8;
const FIRST_OUTPUT: usize = 4;
const FORMAT: u32 = 0x0011;

const CTL_RESET: u32 = 1;
const CTL_RUN: u32 = 2;
const STS_COMPLETE: u32 = 1 << 26;
const STS_FIFO_READY: u32 = 1 << 29;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    address: u64,
    bytes: u32,
    interrupt: bool,
}

#[derive(Debug, Clone)]
struct Stream {
    /// Control below, status in the top byte.
    ctl: u32,
    lpib: u32,
    cbl: u32,
    lvi: u32,
    format: u32,
    list: u64,
    entries: Vec<Entry>,
    entry: usize,
    offset: u32,
    started_at: u64,
    moved: u64,
    due: Option<u64>,
}

impl Stream {
    fn new() -> Self {
        Self {
            ctl: STS_FIFO_READY,
            lpib: 0,
            cbl: 0,
            lvi: 0,
            format: 0,
            list: 0,
            entries: Vec::new(),
            entry: 0,
            offset: 0,
            started_at: 0,
            moved: 0,
            due: None,
        }
    }

    fn tag(&self) -> u8 {
        (self.ctl >> 20 & 0xf) as u8
    }

    fn runs(&self) -> bool {
        self.ctl & CTL_RUN != 0
    }
}

/// The controller.
#[derive(Debug)]
pub struct Hda {
    gctl: u32,
    state_status: u32,
    codecs_at: Option<u64>,
    immediate: (u32, u32, u32),
    answer_at: Option<u64>,
    position_base: u64,
    streams: Vec<Stream>,
    codecs: [Codec; 2],
    capture: Capture,
    captured_frames: u32,
    played: Vec<u8>,
}

impl Hda {
    /// A controller in reset.
    #[must_use]
    pub fn new(capture: Capture) -> Self {
        Self {
            gctl: 0,
            state_status: 0,
            codecs_at: None,
            immediate: (0, 0, 0),
            answer_at: None,
            position_base: 0,
            streams: vec![Stream::new(); STREAMS],
            codecs: [Codec::new(true), Codec::new(false)],
            capture,
            captured_frames: 0,
            played: Vec::new(),
        }
    }

    /// What the output codec was given so far: frames of two little-endian 16-bit samples.
    #[must_use]
    pub fn played(&self) -> &[u8] {
        &self.played
    }

    pub(crate) fn read(&mut self, at: u64, bytes: u64, port: &mut Port<'_>) -> u64 {
        if bytes > 4 || !at.is_multiple_of(bytes) {
            return u64::MAX;
        }
        let slot = u64::from(self.slot(at & !3, port.fabric.now)) >> (8 * (at % 4));
        slot & (u64::MAX >> (64 - 8 * bytes))
    }

    pub(crate) fn write(&mut self, at: u64, bytes: u64, value: u64, port: &mut Port<'_>) {
        if bytes > 4 || !at.is_multiple_of(bytes) {
            return;
        }
        let shift = 8 * (at % 4);
        let mask = ((u64::MAX >> (64 - 8 * bytes)) << shift) as u32;
        self.write_slot(at & !3, (value << shift) as u32 & mask, mask, port);
    }

    fn slot(&self, at: u64, now: u64) -> u32 {
        match at {
            // GCAP: four streams each way, 64-bit addresses; version 1.0.
            0x00 => 0x0100_4401,
            0x04 => 0x001d_003c,
            0x08 => self.gctl,
            0x0c => self.state_status << 16,
            0x30 => (u128::from(now) * 24 / 1000) as u32,
            0x60 => self.immediate.0,
            0x64 => self.immediate.1,
            0x68 => self.immediate.2,
            0x70 => self.position_base as u32,
            0x74 => (self.position_base >> 32) as u32,
            0x80..0x180 => self.stream_slot(&self.streams[((at - 0x80) / 0x20) as usize], at % 0x20),
            _ => 0,
        }
    }

    fn stream_slot(&self, stream: &Stream, register: u64) -> u32 {
        match register {
            0x00 => stream.ctl,
            0x04 => stream.lpib,
            0x08 => stream.cbl,
            0x0c => stream.lvi,
            0x10 => 192 | stream.format << 16,
            0x18 => stream.list as u32,
            0x1c => (stream.list >> 32) as u32,
            _ => 0,
        }
    }

    fn write_slot(&mut self, at: u64, value: u32, mask: u32, port: &mut Port<'_>) {
        match at {
            0x08 => self.write_gctl(value & mask | self.gctl & !mask, port),
            // A reset controller takes nothing else.
            _ if self.gctl & 1 == 0 => {}
            0x0c => self.state_status &= !(value >> 16),
            0x60 => self.immediate.0 = value & mask | self.immediate.0 & !mask,
            0x68 => self.write_immediate_status(value, port),
            0x70 => self.position_base = self.position_base & !0xffff_ffff | u64::from(value & 0xffff_ff81),
            0x74 => self.position_base = self.position_base & 0xffff_ffff | u64::from(value) << 32,
            0x80..0x180 => self.write_stream(((at - 0x80) / 0x20) as usize, at % 0x20, value, mask, port),
            _ => {}
        }
    }

    fn write_gctl(&mut self, value: u32, port: &mut Port<'_>) {
        let was = self.gctl & 1;
        self.gctl = value & 0x103;
        if self.gctl & 1 == 0 {
            let (played, frames) = (std::mem::take(&mut self.played), self.captured_frames);
            *self = Self { played, captured_frames: frames, ..Self::new(self.capture) };
        } else if was == 0 {
            self.codecs_at = Some(port.fabric.now + port.fabric.dice.between(100_000, 500_000));
        }
    }

    fn write_immediate_status(&mut self, value: u32, port: &mut Port<'_>) {
        // Result valid is cleared by a one; busy starts a command.
        self.immediate.2 &= !(value & 2);
        if value & 1 != 0 && self.immediate.2 & 1 == 0 {
            self.immediate.2 |= 1;
            self.answer_at = Some(port.fabric.now + port.fabric.dice.between(2_000, 40_000));
        }
    }

    fn write_stream(&mut self, i: usize, register: u64, value: u32, mask: u32, port: &mut Port<'_>) {
        let stream = &mut self.streams[i];
        let merged = |old: u32| value & mask | old & !mask;
        match register {
            0x00 => self.write_ctl(i, value, mask, port),
            0x08 => stream.cbl = merged(stream.cbl),
            0x0c => stream.lvi = merged(stream.lvi) & 0xff,
            0x10 => stream.format = merged(stream.format << 16) >> 16 & 0x7f7f,
            0x18 => stream.list = stream.list & !0xffff_ffff | u64::from(value & 0xffff_ff80),
            0x1c => stream.list = stream.list & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    fn write_ctl(&mut self, i: usize, value: u32, mask: u32, port: &mut Port<'_>) {
        let stream = &mut self.streams[i];
        let was = stream.runs();
        let control_mask = mask & 0x00ff_001f;
        // Status bits are cleared by ones.
        stream.ctl &= !(value & mask & 0x1c00_0000);
        stream.ctl = value & control_mask | stream.ctl & !control_mask;
        if stream.ctl & CTL_RESET != 0 {
            *stream = Stream { ctl: STS_FIFO_READY | CTL_RESET, ..Stream::new() };
            return;
        }
        match (was, stream.runs()) {
            (false, true) => self.start(i, port),
            (true, false) => self.streams[i].due = None,
            _ => {}
        }
    }

    /// The descriptor list is read once, when the stream starts.
    fn start(&mut self, i: usize, port: &mut Port<'_>) {
        let stream = &mut self.streams[i];
        stream.entries.clear();
        for n in 0..=u64::from(stream.lvi) {
            let mut raw = [0; 16];
            // An entry that cannot be read is one of length zero.
            let _ = port.read(stream.list + 16 * n, &mut raw);
            let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
            let address = u64::from(word(4)) << 32 | u64::from(word(0));
            stream.entries.push(Entry { address, bytes: word(8), interrupt: word(12) & 1 != 0 });
        }
        let now = port.fabric.now;
        (stream.lpib, stream.entry, stream.offset, stream.moved) = (0, 0, 0, 0);
        stream.started_at = now;
        stream.due = Some(now + port.fabric.dice.between(TICK.0, TICK.1));
        if stream.format != FORMAT {
            let what = "hda: a stream format other than 48 kHz, 16 bits, two channels";
            port.fabric.trace.push(TraceLine::DeviceMisuse { at: now, source: port.source(0), what });
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        let streams = self.streams.iter().map(|stream| stream.due);
        streams.chain([self.codecs_at, self.answer_at]).flatten().min()
    }

    pub(crate) fn run(&mut self, port: &mut Port<'_>) {
        let now = port.fabric.now;
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        if due(self.codecs_at) {
            self.codecs_at = None;
            self.state_status |= 0b11;
        }
        if due(self.answer_at) {
            self.answer_at = None;
            self.answer();
        }
        for i in 0..STREAMS {
            if due(self.streams[i].due) {
                self.streams[i].due = Some(now + port.fabric.dice.between(TICK.0, TICK.1));
                self.tick(i, port);
            }
        }
    }

    fn answer(&mut self) {
        let (command, ..) = self.immediate;
        let codec = (command >> 28) as usize;
        // A codec that is not there leaves the controller busy.
        if let Some(codec) = self.codecs.get_mut(codec) {
            self.immediate.1 = codec.command(command);
            self.immediate.2 = 2 | (command >> 28) << 4;
        }
    }

    /// Moves what the clock says is due.
    fn tick(&mut self, i: usize, port: &mut Port<'_>) {
        let plays = i >= FIRST_OUTPUT;
        let tag = self.streams[i].tag();
        let listening = self.codecs.iter().any(|c| c.plays == plays && c.tag == tag && c.is_set_up());
        let elapsed = u128::from(port.fabric.now - self.streams[i].started_at);
        let wanted = (elapsed * u128::from(BYTES_PER_SECOND) / 1_000_000_000) as u64 / FRAME * FRAME;
        let bytes = wanted - self.streams[i].moved;
        if tag == 0 || !listening || bytes == 0 {
            return;
        }
        let mut sound = vec![0; bytes as usize];
        if !plays {
            self.record(&mut sound);
        }
        self.transfer(i, &mut sound, port);
        self.streams[i].moved = wanted;
        if plays {
            self.played.extend_from_slice(&sound);
        }
    }

    fn record(&mut self, sound: &mut [u8]) {
        for frame in sound.chunks_mut(FRAME as usize) {
            self.captured_frames += 1;
            if self.capture == Capture::Counter {
                frame.copy_from_slice(&self.captured_frames.to_le_bytes());
            }
        }
    }

    /// Moves one piece between the ring and `sound`, entry by entry, and reports the position after each.
    fn transfer(&mut self, i: usize, sound: &mut [u8], port: &mut Port<'_>) {
        let stream = &mut self.streams[i];
        let mut done = 0;
        let mut empty = 0;
        while done < sound.len() && empty <= stream.entries.len() {
            let Some(&entry) = stream.entries.get(stream.entry) else { return };
            let left_in_entry = entry.bytes.saturating_sub(stream.offset);
            let n =
                left_in_entry.min(stream.cbl.saturating_sub(stream.lpib)).min((sound.len() - done) as u32);
            let part = &mut sound[done..done + n as usize];
            let address = entry.address + u64::from(stream.offset);
            // The stream goes on whether memory answers or not; what did not come is silence.
            let _ = if i >= FIRST_OUTPUT { port.read(address, part) } else { port.write(address, part) };
            stream.lpib += n;
            stream.offset += n;
            done += n as usize;
            empty = if n == 0 { empty + 1 } else { 0 };
            if stream.offset >= entry.bytes {
                stream.ctl |= if entry.interrupt { STS_COMPLETE } else { 0 };
                stream.offset = 0;
                stream.entry = (stream.entry + 1) % stream.entries.len();
            }
            if stream.lpib >= stream.cbl {
                stream.lpib = 0;
            }
        }
        if self.position_base & 1 != 0 {
            let at = (self.position_base & !0x7f) + 8 * i as u64;
            let _ = port.write(at, &stream.lpib.to_le_bytes());
        }
    }
}
