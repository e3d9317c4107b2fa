//! A device of our own with several queues, each with a PASID or without: it reads back what it wrote a lap ago and writes the
//! next number, beat by beat, for ever. It never waits: what is refused is counted, and leaves a hole in the ring.
//!
//! Registers of 64 bits. Those of queue `n` lie at `0x100 * (n + 1)`; the driver is `scenario::streamer`.

use crate::dma::Port;
use scenario::streamer::{CARRIES_PASID, IDENTITY, QUEUES, RUN, reg, value};

/// One queue.
#[derive(Debug, Clone, Copy, Default)]
struct Queue {
    ring: u64,
    slots: u64,
    period: u64,
    pasid: u64,
    running: bool,
    sent: u64,
    lost: u64,
    due: u64,
}

/// One device.
#[derive(Debug, Clone, Default)]
pub struct Streamer {
    queues: [Queue; QUEUES],
}

impl Streamer {
    pub(crate) fn read(&mut self, at: u64, bytes: u64) -> u64 {
        if at == reg::ID {
            return IDENTITY;
        }
        let Some((queue, register)) = self.queue(at).filter(|_| bytes == 8) else { return u64::MAX };
        match register {
            reg::RING => queue.ring,
            reg::SLOTS => queue.slots,
            reg::PERIOD => queue.period,
            reg::PASID => queue.pasid,
            reg::CONTROL => u64::from(queue.running),
            reg::SENT => queue.sent,
            reg::LOST => queue.lost,
            _ => u64::MAX,
        }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: u64, value: u64, port: &mut Port<'_>) {
        let now = port.fabric.now;
        let Some((queue, register)) = self.queue(at).filter(|_| bytes == 8) else { return };
        match register {
            reg::CONTROL => {
                let starts = value & RUN != 0 && !queue.running && queue.slots > 0 && queue.period > 0;
                if starts {
                    (queue.sent, queue.lost, queue.due) = (0, 0, now + queue.period);
                }
                queue.running = value & RUN != 0 && (starts || queue.running);
            }
            // While a queue runs its registers do not change.
            _ if queue.running => {}
            reg::RING => queue.ring = value,
            reg::SLOTS => queue.slots = value,
            reg::PERIOD => queue.period = value,
            reg::PASID => queue.pasid = value,
            _ => {}
        }
    }

    fn queue(&mut self, at: u64) -> Option<(&mut Queue, u64)> {
        let index = (at / reg::STRIDE).checked_sub(1)?;
        Some((self.queues.get_mut(index as usize)?, at % reg::STRIDE))
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.queues.iter().filter(|queue| queue.running).map(|queue| queue.due).min()
    }

    pub(crate) fn run(&mut self, port: &mut Port<'_>) {
        let now = port.fabric.now;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if queue.running && queue.due <= now {
                queue.beat(index, port);
                queue.due = now + queue.period;
            }
        }
    }
}

impl Queue {
    /// Reads a slot back and writes its next number, whatever comes of either.
    fn beat(&mut self, index: usize, port: &mut Port<'_>) {
        port.pasid = (self.pasid & CARRIES_PASID != 0).then_some(self.pasid as u32);
        let at = self.ring.wrapping_add(8 * (self.sent % self.slots));
        let mut there = [0; 8];
        let read = port.read(at, &mut there);
        let before = self.sent.checked_sub(self.slots).map(|beat| value(index, beat));
        let as_it_was = before.is_none_or(|before| u64::from_le_bytes(there) == before);
        if read.is_err() || !as_it_was {
            self.lost += 1;
        }
        // A write has no answer: the next lap tells.
        let _ = port.write(at, &value(index, self.sent).to_le_bytes());
        self.sent += 1;
        port.pasid = None;
    }
}
