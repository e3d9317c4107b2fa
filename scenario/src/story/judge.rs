//! What the witnesses say, as far as a kernel can see it. The command hears and sees more: the sound, the trace.

use super::plan;
use super::scene::Scene;
use super::trouble::Trouble;
use super::update::target_difference;
use crate::event::Event;
use crate::hda::{FRAME_BYTES, RATE};
use crate::platform::Platform;
use crate::text;
use alloc::string::ToString;
use liveupdate::host::MaySleep;
use spec::Extent;

/// Longest wait for a stream to get where it must, in nanoseconds.
const LIMIT: u64 = 20_000_000_000;
/// Frames by which a stream may be ahead of what it has written or read.
const SLACK: u64 = 4096;

/// Judges one update, in the kernel that arrived by it.
pub(crate) fn update<P: Platform + ?Sized>(
    scene: &mut Scene<'_, '_, P>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let platform = scene.platform();
    scene.wait_for_edus()?;
    let busy = scene.arrived_with.map_or(0, |n| n.busy);
    for index in 0..scene.cast.kept() {
        let (busy_at_jump, correct) = (busy >> index & 1 == 1, scene.written(index)?);
        let requester = text::requester(scene.cast.edus[index].requester);
        platform.event(&Event::Transfer {
            requester,
            busy_at_jump,
            complete: !scene.edus[index].busy(),
            correct,
        });
    }
    for index in scene.cast.kept()..scene.cast.edus.len() {
        let (who, first_difference) = target_difference(scene, index)?;
        let (requester, intact) = (text::requester(who), first_difference.is_none());
        platform.event(&Event::Target { requester, intact, first_difference });
    }
    if let Some(streams) = &scene.streams {
        streams.judge(scene.kernel, ctx)?;
    }
    capture(scene)?;
    let intact = scene.arrived_with.map(|n| n.tune) == Some(scene.tune_hash()?);
    platform.event(&Event::Content { token: plan::name(plan::SOUND), intact });
    scene.watch();
    scene.report_faults();
    Ok(())
}

/// Whether the capturing stream goes on: its whole ring is overwritten by us, and must be overwritten by the device.
fn capture<P: Platform + ?Sized>(scene: &mut Scene<'_, '_, P>) -> Result<(), Trouble> {
    let platform = scene.platform();
    let ring: Extent = scene.memory.capture;
    platform.fill(ring, plan::UNHEARD).map_err(Trouble::at("fill the capture ring"))?;
    let before = scene.capturing.position().frames;
    let lap = plan::CAPTURE_BYTES / u64::from(FRAME_BYTES);
    let start = platform.now();
    while scene.capturing.position().frames < before + lap + SLACK {
        scene.watch();
        platform.relax();
        if platform.now().saturating_sub(start) > LIMIT {
            break;
        }
    }
    let frames = scene.capturing.position().frames - before;
    let unheard = (0..ring.bytes())
        .step_by(8)
        .find(|offset| platform.read64(ring.start().plus(*offset)).is_ok_and(|word| word == plan::UNHEARD));
    let (requester, complete) = (text::source(scene.cast.audio), unheard.is_none() && frames >= lap);
    platform.event(&Event::Capture { requester, frames, complete });
    Ok(())
}

/// Lets the tune play until there is enough of it to judge, and for a second more however long the update took: what
/// happened to memory must have been heard.
pub(crate) fn performance<P: Platform + ?Sized>(scene: &mut Scene<'_, '_, P>) -> Result<(), Trouble> {
    let platform = scene.platform();
    let start = platform.now();
    let enough = plan::FRAMES_TO_PLAY.max(scene.playing.position().frames + RATE);
    loop {
        let position = scene.playing.position();
        if position.frames >= enough {
            break;
        }
        if platform.now().saturating_sub(start) > LIMIT {
            return Err(Trouble::new("let the tune play", "the stream stands still"));
        }
        scene.watch();
        platform.relax();
    }
    scene.report_faults();
    let position = scene.playing.position();
    let moment = "over".to_string();
    platform.event(&Event::Position { moment, frames: position.frames, at: position.at });
    Ok(())
}
