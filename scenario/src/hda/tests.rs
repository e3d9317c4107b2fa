//! The driver against a controller that takes its time and really copies.

use super::*;
use crate::fake::{FakeHda, Machine};
use alloc::vec::Vec;

const BASE: u64 = 0xfeb0_0000;
const LIST: u64 = 0x1000;
const CAPTURE_LIST: u64 = 0x2000;
const POSITIONS: u64 = 0x3000;
const TUNE: u64 = 0x1_0000;
const CAPTURED: u64 = 0x3_0000;
const RING_BYTES: u32 = 0x1_0000;
const MS: u64 = 1_000_000;

macro_rules! machine {
    ($machine:ident, $strings:ident) => {
        let (device, $strings) = FakeHda::new();
        let $machine = Machine::new(0x10_0000).with_device(BASE, 0x4000, device);
    };
}

fn base() -> PhysAddr {
    PhysAddr::new(BASE)
}

fn ring(machine: &Machine, list: u64, buffer: u64) -> Ring {
    let ring = Ring::new(Iova::new(list), 16, RING_BYTES).unwrap();
    ring.write(machine, PhysAddr::new(list), Iova::new(buffer)).unwrap();
    ring
}

/// The 16-bit counter that the ring is filled with, one a frame.
fn fill(machine: &Machine) {
    for frame in 0..RING_BYTES / 4 {
        machine.write(PhysAddr::new(TUNE + u64::from(frame) * 4), &frame.to_le_bytes()).unwrap();
    }
}

fn played(strings: &[u8]) -> Vec<u32> {
    strings.chunks_exact(4).map(|frame| u32::from_le_bytes(frame.try_into().unwrap())).collect()
}

#[test]
fn a_stream_plays_the_ring_over_and_over_without_a_break() {
    machine!(machine, strings);
    fill(&machine);
    let controller = Controller::reset(&machine, base()).unwrap();
    let mut stream = controller.start(Path::PLAYBACK, ring(&machine, LIST, TUNE)).unwrap();
    stream.wait_until_it_moves(10 * MS).unwrap();
    machine.sleep(1000 * MS);
    let position = stream.position();
    let played = played(&strings.played.borrow());
    assert!(played.len() as u64 > 47_000 && position.frames.abs_diff(played.len() as u64) < 2);
    assert!(played.iter().enumerate().all(|(n, &frame)| frame == n as u32 % (RING_BYTES / 4)));
}

#[test]
fn capture_and_playback_run_side_by_side_and_report_where_they_are() {
    machine!(machine, _strings);
    let controller = Controller::reset(&machine, base()).unwrap();
    controller.set_position_buffer(Some(Iova::new(POSITIONS))).unwrap();
    assert_eq!(controller.position_buffer(), Some(Iova::new(POSITIONS)));
    let play = controller.start(Path::PLAYBACK, ring(&machine, LIST, TUNE)).unwrap();
    let capture = controller.start(Path::CAPTURE, ring(&machine, CAPTURE_LIST, CAPTURED)).unwrap();
    machine.sleep(10 * MS);
    for (stream, path) in [(&play, Path::PLAYBACK), (&capture, Path::CAPTURE)] {
        let at = stream.bytes_into_ring();
        let written = controller.written_position(PhysAddr::new(POSITIONS), path).unwrap();
        assert!(at > 1000 && at.abs_diff(written) <= 8, "{path:?}: {at}, {written}");
    }
    let first = machine.read64(PhysAddr::new(CAPTURED)).unwrap();
    assert_eq!(first, 2 << 32 | 1, "the first two frames that the codec heard");
    controller.set_position_buffer(None).unwrap();
    assert_eq!(controller.position_buffer(), None);
}

#[test]
fn a_running_stream_is_taken_over_without_a_single_write() {
    machine!(machine, strings);
    fill(&machine);
    let known = {
        let controller = Controller::reset(&machine, base()).unwrap();
        let mut stream = controller.start(Path::PLAYBACK, ring(&machine, LIST, TUNE)).unwrap();
        machine.sleep(500 * MS); // More than one lap of 341 ms.
        stream.position()
    };
    let writes = strings.writes.get();
    machine.sleep(3000 * MS); // Several laps with nobody looking.
    let controller = Controller::running(&machine, base()).unwrap();
    let mut stream = controller.take_over(Path::PLAYBACK, known).unwrap();
    let position = stream.position();
    assert_eq!(strings.writes.get(), writes);
    assert_eq!(stream.ring(), Ring { descriptors: Iova::new(LIST), entries: 16, bytes: RING_BYTES });
    let frames = strings.played.borrow().len() as u64 / 4;
    assert!(position.frames.abs_diff(frames) < 2, "{position:?}, {frames}");
    assert!(stream.runs());
    stream.stop().unwrap();
    let stopped = strings.played.borrow().len();
    machine.sleep(100 * MS);
    assert!(Controller::running(&machine, base()).is_ok());
    assert_eq!(strings.played.borrow().len(), stopped);
}

#[test]
fn what_does_not_run_or_is_another_stream_is_not_taken_over() {
    machine!(machine, _strings);
    assert!(matches!(Controller::running(&machine, base()), Err(HdaError::InReset)));
    let controller = Controller::reset(&machine, base()).unwrap();
    let none = controller.take_over(Path::PLAYBACK, Position::default());
    assert!(matches!(none, Err(HdaError::NotRunning { stream: 4, .. })));
    let stream = controller.start(Path::PLAYBACK, ring(&machine, LIST, TUNE)).unwrap();
    let other = Path { tag: 3, ..Path::PLAYBACK };
    let refused = controller.take_over(other, Position::default());
    assert!(matches!(refused, Err(HdaError::OtherStream { stream: 4, tag: 1, format: 0x0011 })));
    stream.stop().unwrap();
    let stopped = controller.take_over(Path::PLAYBACK, Position::default());
    assert!(matches!(stopped, Err(HdaError::NotRunning { .. })));
}

#[test]
fn a_reset_stops_what_runs_first_and_can_be_done_again() {
    machine!(machine, strings);
    let controller = Controller::reset(&machine, base()).unwrap();
    controller.start(Path::PLAYBACK, ring(&machine, LIST, TUNE)).unwrap();
    controller.start(Path::CAPTURE, ring(&machine, CAPTURE_LIST, CAPTURED)).unwrap();
    let controller = Controller::reset(&machine, base()).unwrap();
    let before = strings.played.borrow().len();
    machine.sleep(10 * MS);
    controller.stop_all().unwrap();
    assert_eq!(strings.played.borrow().len(), before);
}

#[test]
fn a_controller_that_sticks_in_reset_is_an_error_also_when_the_clock_stands_still() {
    for tick in [500, 0] {
        machine!(machine, strings);
        strings.stuck.set(true);
        machine.tick.set(tick);
        let stuck = Controller::reset(&machine, base()).map(drop);
        assert_eq!(stuck, Err(HdaError::ResetStuck { leaving: true }));
    }
}

#[test]
fn a_codec_that_is_not_there_or_does_not_answer_is_named() {
    machine!(machine, strings);
    let controller = Controller::reset(&machine, base()).unwrap();
    let ring = ring(&machine, LIST, TUNE);
    let absent = controller.start(Path { codec: 5, ..Path::PLAYBACK }, ring).map(drop);
    assert_eq!(absent, Err(HdaError::NoCodec { codec: 5, present: 3 }));
    strings.dumb.set(1);
    for attempt in 0..2 {
        // The second finds the controller busy with the first.
        let dumb = controller.start(Path::PLAYBACK, ring).map(drop);
        assert_eq!(dumb, Err(HdaError::NoAnswer { command: 0x0022_0011 }), "attempt {attempt}");
    }
}

#[test]
fn a_stream_that_was_stopped_starts_again_from_the_beginning() {
    machine!(machine, strings);
    fill(&machine);
    let controller = Controller::reset(&machine, base()).unwrap();
    let ring = ring(&machine, LIST, TUNE);
    let first = controller.start(Path::PLAYBACK, ring).unwrap();
    machine.sleep(10 * MS);
    first.stop().unwrap();
    strings.played.borrow_mut().clear();
    let mut second = controller.start(Path::PLAYBACK, ring).unwrap();
    machine.sleep(10 * MS);
    assert!(second.position().frames.abs_diff(480) < 10);
    assert_eq!(played(&strings.played.borrow())[..3], [0, 1, 2]);
}

#[test]
fn a_stream_that_stands_still_is_noticed() {
    machine!(machine, strings);
    let controller = Controller::reset(&machine, base()).unwrap();
    strings.frozen.set(true);
    let stream = controller.start(Path::PLAYBACK, ring(&machine, LIST, TUNE)).unwrap();
    assert_eq!(stream.wait_until_it_moves(MS), Err(HdaError::StandsStill { stream: 4, at: 0 }));
}

#[test]
fn rings_that_the_controller_cannot_work_on_are_refused() {
    let list = Iova::new(LIST);
    for (entries, bytes) in
        [(0, 4096), (1, 4096), (257, 257 * 128), (3, 4096), (2, 0), (2, 128), (16, 16 * 64)]
    {
        assert_eq!(Ring::new(list, entries, bytes), Err(HdaError::BadRing { entries, bytes }));
    }
    assert!(Ring::new(list, 256, 1 << 20).is_ok());
    let address = Iova::new(LIST + 64);
    assert_eq!(Ring::new(address, 2, 4096), Err(HdaError::BadAddress { address }));
    let machine = Machine::new(0x1000);
    let ring = Ring::new(list, 2, 4096).unwrap();
    assert_eq!(ring.write(&machine, PhysAddr::new(0xf00), address), Err(HdaError::BadAddress { address }));
    let outside = ring.write(&machine, PhysAddr::new(0x1000), list);
    assert_eq!(outside, Err(HdaError::NoMemory { at: PhysAddr::new(0x1000) }));
}

#[test]
fn what_is_no_controller_is_not_driven() {
    struct Nothing;
    impl crate::fake::Device for Nothing {
        fn read(&mut self, _: &crate::fake::Ram, _: u64, _: u64, _: u32) -> u64 {
            u64::MAX
        }
        fn write(&mut self, _: &crate::fake::Ram, _: u64, _: u64, _: u32, _: u64) {
            panic!("written to");
        }
    }
    let machine = Machine::new(0).with_device(BASE, 0x4000, Nothing);
    let refused = Controller::reset(&machine, base()).map(drop);
    assert_eq!(refused, Err(HdaError::NotHda { base: base(), gcap: 0xffff }));
}

#[test]
fn a_position_is_the_one_nearest_to_what_the_clock_says() {
    let known = Position { frames: 250_000, at: 7_000_000_000 };
    let lap = 262_144;
    for (seconds_later, skew) in [(0, 0), (1, 0), (1, -2000), (5, 2000), (60, 100_000), (60, -100_000)] {
        let truth = known.frames + (seconds_later * RATE).saturating_add_signed(skew);
        let now = known.at + seconds_later * 1_000_000_000;
        let found = known.advanced(truth % lap, lap, now);
        assert_eq!(found, Position { frames: truth, at: now }, "{seconds_later} s, {skew} frames");
    }
}

#[test]
fn a_position_never_goes_back_and_never_overflows() {
    let known = Position { frames: 1000, at: 5 };
    assert_eq!(known.advanced(900, 262_144, 5).frames, 1000);
    assert_eq!(known.advanced(900, 0, 0).frames, 1000);
    let far = Position { frames: u64::MAX - 5, at: 0 };
    assert!(far.advanced(3, 262_144, u64::MAX).frames >= far.frames);
}
