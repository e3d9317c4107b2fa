//! The audio controller with two codecs: resets and commands take their time, streams move with the clock and really copy.

use super::{Device, Ram};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

const RESET_NS: u64 = 20_000;
const CODECS_APPEAR_NS: u64 = 300_000;
const COMMAND_NS: u64 = 40_000;
const STREAM_RESET_NS: u64 = 5_000;
/// Nanoseconds for a frame of 4 bytes, times 3.
const THREE_FRAMES_NS: u64 = 62_500;

/// Status of a stream, in the top byte of its control register.
const FIFO_READY: u32 = 1 << 29;

/// What a test can see and turn from outside.
#[derive(Clone, Default)]
pub(crate) struct Strings {
    /// All bytes that were played.
    pub(crate) played: Rc<RefCell<Vec<u8>>>,
    /// The controller does not leave reset.
    pub(crate) stuck: Rc<Cell<bool>>,
    /// Codecs that do not answer, one bit each.
    pub(crate) dumb: Rc<Cell<u16>>,
    /// Streams do not move.
    pub(crate) frozen: Rc<Cell<bool>>,
    /// Accesses that change something.
    pub(crate) writes: Rc<Cell<u64>>,
}

#[derive(Clone, Copy, Default)]
struct Codec {
    address: u8,
    node: u8,
    tag: u8,
    format: u16,
}

#[derive(Clone, Default)]
struct Stream {
    ctl: u32,
    reset_done: u64,
    lpib: u32,
    cbl: u32,
    lvi: u16,
    format: u16,
    list: u64,
    /// Read once, when the stream starts.
    entries: Vec<(u64, u32)>,
    /// Time until which the stream has been moved.
    moved: u64,
}

/// The controller.
pub(crate) struct FakeHda {
    strings: Strings,
    gctl: u32,
    gctl_done: u64,
    codecs_at: u64,
    command: u32,
    response: u32,
    command_status: u16,
    command_done: Option<u64>,
    positions: u64,
    streams: [Stream; 8],
    codecs: [Codec; 2],
    captured: u32,
}

impl FakeHda {
    pub(crate) fn new() -> (Self, Strings) {
        let strings = Strings::default();
        let output = Codec { address: 0, node: 2, ..Codec::default() };
        let micro = Codec { address: 1, node: 4, ..Codec::default() };
        let controller = Self {
            strings: strings.clone(),
            gctl: 0,
            gctl_done: 0,
            codecs_at: u64::MAX,
            command: 0,
            response: 0,
            command_status: 0,
            command_done: None,
            positions: 0,
            streams: Default::default(),
            codecs: [output, micro],
            captured: 0,
        };
        (controller, strings)
    }

    fn in_reset(&self) -> bool {
        self.gctl & 1 == 0
    }

    fn advance(&mut self, ram: &Ram, now: u64) {
        if self.command_done.is_some_and(|done| done <= now) {
            self.command_done = None;
            self.answer();
        }
        for number in 0..self.streams.len() {
            let stream = &self.streams[number];
            let tag = (stream.ctl >> 20 & 0xf) as u8;
            let codec = self.codecs[usize::from(number < 4)];
            let connected = tag != 0 && codec.tag == tag << 4 && codec.format == stream.format;
            if stream.ctl & 2 == 0 || !connected || self.strings.frozen.get() {
                self.streams[number].moved = now;
                continue;
            }
            let frames = (now - stream.moved) * 3 / THREE_FRAMES_NS;
            self.streams[number].moved += frames * THREE_FRAMES_NS / 3;
            for _ in 0..frames {
                self.move_frame(ram, number);
            }
            if self.positions & 1 != 0 {
                let at = (self.positions & !0x7f) + 8 * number as u64;
                let _ = ram.write(at, &self.streams[number].lpib.to_le_bytes());
            }
        }
    }

    fn move_frame(&mut self, ram: &Ram, number: usize) {
        let stream = &mut self.streams[number];
        let mut offset = stream.lpib;
        let entry = stream.entries.iter().find(|(_, bytes)| {
            let here = offset < *bytes;
            offset -= if here { 0 } else { *bytes };
            here
        });
        let &(address, _) = entry.expect("a position outside of the ring");
        let at = address + u64::from(offset);
        if number < 4 {
            self.captured += 1;
            let _ = ram.write(at, &self.captured.to_le_bytes());
        } else {
            let mut frame = [0; 4];
            let _ = ram.read(at, &mut frame);
            self.strings.played.borrow_mut().extend(frame);
        }
        stream.lpib = (stream.lpib + 4) % stream.cbl;
    }

    fn answer(&mut self) {
        let (address, node) = ((self.command >> 28) as u8, (self.command >> 20) as u8 & 0x7f);
        if self.strings.dumb.get() >> address & 1 != 0 {
            return; // Stays busy for ever, as in QEMU.
        }
        let codec = self.codecs.iter_mut().find(|codec| codec.address == address && codec.node == node);
        let codec = codec.unwrap_or_else(|| panic!("no node {node} in codec {address}"));
        match (self.command >> 16 & 0xf, self.command >> 8 & 0xfff) {
            (2, _) => codec.format = self.command as u16,
            (3, _) => {}
            (_, 0x706) => codec.tag = self.command as u8,
            _ => panic!("unknown command {:#010x}", self.command),
        }
        self.response = 0;
        self.command_status = 2;
    }

    fn reset(&mut self) {
        assert!(self.streams.iter().all(|stream| stream.ctl & 2 == 0), "reset under a running stream");
        self.streams = Default::default();
        self.positions = 0;
        self.codecs_at = u64::MAX;
        for codec in &mut self.codecs {
            (codec.tag, codec.format) = (0, 0);
        }
    }

    fn write_ctl(&mut self, ram: &Ram, now: u64, number: usize, value: u32) {
        assert!(value >> 24 == 0, "a one clears a status bit");
        let stream = &mut self.streams[number];
        if value & 1 != stream.ctl & 1 {
            stream.reset_done = now + STREAM_RESET_NS;
        }
        assert!(value & 3 != 3, "run in reset");
        let starts = value & 2 != 0 && stream.ctl & 2 == 0;
        assert!(
            !starts || (stream.ctl & 1 == 0 && stream.reset_done <= now),
            "started before reset was left"
        );
        if value & 1 != 0 {
            *stream = Stream { ctl: 1, reset_done: stream.reset_done, ..Stream::default() };
            return;
        }
        stream.ctl = value & 0x00f0_0002;
        if starts {
            stream.moved = now;
            stream.entries.clear();
            for index in 0..=u64::from(stream.lvi) {
                let mut entry = [0; 16];
                ram.read(stream.list + 16 * index, &mut entry).expect("no list of descriptors");
                let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = entry;
                let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                stream.entries.push((address, u32::from_le_bytes([i, j, k, l])));
            }
            let total: u32 = stream.entries.iter().map(|entry| entry.1).sum();
            assert_eq!(total, stream.cbl, "the list does not add up to the ring's length");
        }
    }
}

impl Device for FakeHda {
    fn read(&mut self, ram: &Ram, now: u64, offset: u64, width: u32) -> u64 {
        self.advance(ram, now);
        match (offset, width) {
            (0x00, 2) => return 0x4401,
            (0x08, 4) => {
                let old = now < self.gctl_done;
                return if self.strings.stuck.get() { 0 } else { u64::from(self.gctl ^ u32::from(old)) };
            }
            _ => assert!(!self.in_reset() && now >= self.gctl_done, "access to {offset:#x} in reset"),
        }
        match (offset, width) {
            (0x0e, 2) => return if now >= self.codecs_at { 3 } else { 0 },
            (0x64, 4) => return self.response.into(),
            (0x68, 2) => return self.command_status.into(),
            (0x70, 4) => return self.positions & 0xffff_ffff,
            (0x74, 4) => return self.positions >> 32,
            (0x80..0x180, _) => {}
            _ => panic!("hda: {width} byte read at {offset:#x}"),
        }
        let stream = &self.streams[(offset - 0x80) as usize / 0x20];
        match (offset & 0x1f, width) {
            (0x00, 4) => (FIFO_READY | stream.ctl ^ u32::from(now < stream.reset_done)).into(),
            (0x04, 4) => stream.lpib.into(),
            (0x08, 4) => stream.cbl.into(),
            (0x0c, 2) => stream.lvi.into(),
            (0x12, 2) => stream.format.into(),
            (0x18, 4) => stream.list & 0xffff_ffff,
            (0x1c, 4) => stream.list >> 32,
            _ => panic!("hda: {width} byte read at {offset:#x}"),
        }
    }

    fn write(&mut self, ram: &Ram, now: u64, offset: u64, width: u32, value: u64) {
        self.strings.writes.set(self.strings.writes.get() + 1);
        self.advance(ram, now);
        if (offset, width) == (0x08, 4) {
            if value & 1 == 0 {
                self.reset();
            } else if self.in_reset() {
                self.codecs_at = now + RESET_NS + CODECS_APPEAR_NS;
            }
            self.gctl_done = now + if value as u32 & 1 == self.gctl & 1 { 0 } else { RESET_NS };
            self.gctl = value as u32 & 1;
            return;
        }
        assert!(!self.in_reset() && now >= self.gctl_done, "access to {offset:#x} in reset");
        match (offset, width) {
            (0x60, 4) => self.command = value as u32,
            (0x68, 2) => {
                assert!(self.command_status & 1 == 0, "a command while another is under way");
                self.command_status = self.command_status & !(value as u16 & 2) | value as u16 & 1;
                self.command_done = (value & 1 != 0).then_some(now + COMMAND_NS);
            }
            (0x70, 4) => self.positions = self.positions & !0xffff_ffff | value & 0xffff_ff81,
            (0x74, 4) => self.positions = self.positions & 0xffff_ffff | value << 32,
            (0x80..0x180, _) => {
                let number = (offset - 0x80) as usize / 0x20;
                if (offset & 0x1f, width) == (0, 4) {
                    return self.write_ctl(ram, now, number, value as u32);
                }
                let stream = &mut self.streams[number];
                assert!(stream.ctl & 3 == 0, "a stream's registers are written while it runs or is in reset");
                match (offset & 0x1f, width) {
                    (0x08, 4) => stream.cbl = value as u32,
                    (0x0c, 2) => stream.lvi = value as u16,
                    (0x12, 2) => stream.format = value as u16,
                    (0x18, 4) => stream.list = stream.list & !0xffff_ffff | value & 0xffff_ff80,
                    (0x1c, 4) => stream.list = stream.list & 0xffff_ffff | value << 32,
                    _ => panic!("hda: {width} byte write at {offset:#x}"),
                }
            }
            _ => panic!("hda: {width} byte write at {offset:#x}"),
        }
    }
}
