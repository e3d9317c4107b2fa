//! The invalidation queue: descriptors in, a status word back (VT-d 6.5.2).
//!
//! Every batch ends with a wait descriptor whose status is seen before [`Queue::submit`] returns, so the queue is empty
//! between batches and head and tail are read from hardware each time. Descriptors have 128 bits, or 256 in a wide queue,
//! which scalable mode is meant to have; a unit that has none says so when it is asked for one.
//!
//! Three things can go wrong on the way (VT-d 6.5.2.10), each mended in a bounded number of steps and noted in
//! [`QueueErrors`]. A descriptor that hardware refuses stops the queue at it (FSTS.IQE): a wait takes its place, what
//! follows is carried out, and the batch is handed in again. A device that does not answer stops it too (FSTS.ITE), and
//! hardware drops the waits that it had fetched: the bit is cleared and the batch handed in again. An answer that
//! nobody waits for (FSTS.ICE) is only noted. What fails again and again is an error.

use crate::Hal;
use crate::queue_errors::QueueErrors;
use crate::registers::{Patience, Registers};
use core::cell::Cell;
use liveupdate::host::TimedOut;
use spec::invalidation::{Wait, kind};
use spec::regs::{Fsts, Gcmd, Gsts, Iqa, offset};
use spec::{Extent, PAGE_SIZE, PhysAddr, SourceId};

/// Frames that a queue is made of: one of descriptors, one for the status word.
pub const FRAMES: u64 = 2;
/// Bytes of a descriptor in a queue that is not wide.
const DESCRIPTOR: u64 = 16;
/// Errors that are mended in one batch, or in a predecessor's queue, before it is given up.
const REPAIRS: u32 = 16;
/// How often a batch is handed in.
const ATTEMPTS: u32 = 3;
/// Head and tail are byte offsets in bits 18:4.
const OFFSET_MASK: u64 = 0x7_fff0;

/// A descriptor. In a wide queue 128 zeroes follow it.
pub type Descriptor = [u64; 2];

/// A queue of our own that a unit works on.
#[derive(Debug)]
pub struct Queue {
    base: PhysAddr,
    status: PhysAddr,
    sequence: Cell<u32>,
    wide: Cell<bool>,
    errors: QueueErrors,
}

/// What became of a batch whose last wait was seen done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All of it was carried out.
    Done,
    /// All but at least one descriptor, which hardware refused.
    Refused,
    /// Some device did not answer, and hardware dropped waits; the device, where hardware says which.
    Unanswered(Option<SourceId>),
}

impl Queue {
    /// A queue in `frames`, which are [`FRAMES`] many and zeroed.
    #[must_use]
    pub fn new(frames: Extent) -> Self {
        let status = frames.start().plus(PAGE_SIZE);
        let errors = QueueErrors::default();
        Self { base: frames.start(), status, sequence: Cell::new(0), wide: Cell::new(false), errors }
    }

    /// What went wrong in this queue, and in the predecessor's while it was drained, and was mended.
    #[must_use]
    pub const fn errors(&self) -> &QueueErrors {
        &self.errors
    }

    /// Whether descriptors have 256 bits.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.wide.get()
    }

    /// Puts the queue in and switches it on. The unit's queue must be off.
    ///
    /// # Errors
    /// [`TimedOut`] when the unit does not take it, or a first wait descriptor does not come back.
    pub fn start<H: Hal>(&self, registers: &Registers<'_, H>) -> Result<(), TimedOut> {
        self.start_with(registers, Iqa::ZERO.with_iqa(self.base.frame().number()))
    }

    /// As [`Self::start`], with descriptors of 256 bits if the unit takes such (VT-d 11.4.9.3); otherwise of 128.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_wide<H: Hal>(&self, registers: &Registers<'_, H>) -> Result<(), TimedOut> {
        self.start_with(registers, Iqa::ZERO.with_iqa(self.base.frame().number()).with_dw(true))
    }

    fn start_with<H: Hal>(&self, registers: &Registers<'_, H>, iqa: Iqa) -> Result<(), TimedOut> {
        let errors = Fsts::ZERO.with_iqe(true).with_ice(true).with_ite(true);
        registers.write32(offset::FSTS, errors.raw());
        // Hardware zeroes the head when the queue is switched on, never the tail.
        registers.write64(offset::IQT, 0);
        registers.write64(offset::IQA, iqa.raw());
        // The bit reads zero where it does not exist. QEMU 7.2 heeds it all the same: it must not stay written.
        self.wide.set(iqa.dw() && Iqa::from_raw(registers.read64(offset::IQA)).dw());
        if iqa.dw() && !self.is_wide() {
            registers.write64(offset::IQA, iqa.with_dw(false).raw());
        }
        registers.command("switching the invalidation queue on", |c| c.with_qie(true), Gsts::qies)?;
        self.submit(registers, "the first wait descriptor", &[])
    }

    /// Has hardware do `descriptors`, and waits until it has.
    ///
    /// # Errors
    /// [`TimedOut`], naming `what`, or saying that hardware refuses a descriptor, or drops waits, again and again.
    pub fn submit<H: Hal>(
        &self,
        registers: &Registers<'_, H>,
        what: &'static str,
        descriptors: &[Descriptor],
    ) -> Result<(), TimedOut> {
        let mut outcome = Outcome::Done;
        for _ in 0..ATTEMPTS {
            outcome = self.hand_in(registers, what, descriptors)?;
            if outcome == Outcome::Done {
                return Ok(());
            }
        }
        let what = match outcome {
            Outcome::Unanswered(_) => "devices that answer invalidations",
            _ => "a descriptor that the invalidation queue accepts",
        };
        Err(TimedOut { unit: registers.id, what, waited: 0 })
    }

    /// As [`Self::submit`], once; says whether hardware carried out all descriptors.
    ///
    /// # Errors
    /// [`TimedOut`], naming `what`.
    pub fn offer<H: Hal>(
        &self,
        registers: &Registers<'_, H>,
        what: &'static str,
        descriptors: &[Descriptor],
    ) -> Result<bool, TimedOut> {
        Ok(self.hand_in(registers, what, descriptors)? == Outcome::Done)
    }

    /// Has hardware carry one invalidation to the device of `source`. Says whether the device answered.
    ///
    /// # Errors
    /// [`TimedOut`] when the unit did not say either in time, or refused the descriptor, or other devices were silent.
    pub fn ask<H: Hal>(
        &self,
        registers: &Registers<'_, H>,
        source: SourceId,
        descriptor: Descriptor,
    ) -> Result<bool, TimedOut> {
        let what = "device-TLB invalidation";
        for _ in 0..ATTEMPTS {
            match self.hand_in(registers, what, &[descriptor])? {
                Outcome::Done => return Ok(true),
                Outcome::Unanswered(silent) if silent.is_none_or(|silent| silent == source) => {
                    return Ok(false);
                }
                Outcome::Refused | Outcome::Unanswered(_) => {}
            }
        }
        Err(TimedOut { unit: registers.id, what, waited: 0 })
    }

    /// Waits until every page request that was on its way is in its queue (VT-d 7.8): what a wait descriptor with PD proves.
    /// Without ECAP.PDS, that everything before it is done is all there is to see.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub fn drain_page_requests<H: Hal>(&self, registers: &Registers<'_, H>) -> Result<(), TimedOut> {
        if !registers.ecap().pds() {
            return self.submit(registers, "a wait after page requests", &[]);
        }
        let drain = Wait::ZERO.with_kind(kind::WAIT).with_pd(true).raw();
        self.submit(registers, "the drain of page requests", &[drain])
    }

    /// Hands a batch in, waits for its end, and mends what stops the queue on the way.
    fn hand_in<H: Hal>(
        &self,
        registers: &Registers<'_, H>,
        what: &'static str,
        descriptors: &[Descriptor],
    ) -> Result<Outcome, TimedOut> {
        let mut sequence = self.put(registers, descriptors)?;
        let mut outcome = Outcome::Done;
        for _ in 0..REPAIRS {
            let stopped = |status: Fsts| status.iqe() || status.ite();
            registers
                .wait(what, || self.completed(registers, sequence) || stopped(registers.fault_status()))?;
            self.errors.clear_unexpected(registers);
            let status = registers.fault_status();
            if status.ite() {
                // Our wait may be among those that were dropped.
                outcome = Outcome::Unanswered(self.errors.clear_unanswered(registers));
                sequence = self.put(registers, &[])?;
            } else if self.completed(registers, sequence) {
                return Ok(outcome);
            } else if status.iqe() {
                // Our wait may be what was refused.
                replace_refused(registers, self.status, &self.errors)?;
                outcome = Outcome::Refused;
                sequence = self.put(registers, &[])?;
            }
        }
        Err(TimedOut { unit: registers.id, what, waited: 0 })
    }

    /// Puts a batch and a wait behind it into the queue. Says what the wait will write.
    fn put<H: Hal>(&self, registers: &Registers<'_, H>, descriptors: &[Descriptor]) -> Result<u32, TimedOut> {
        let stride = if self.is_wide() { 2 * DESCRIPTOR } else { DESCRIPTOR };
        let needed = descriptors.len() as u64 + 1;
        let tail = registers.read64(offset::IQT) & OFFSET_MASK;
        registers.wait("room in the invalidation queue", || {
            let head = registers.read64(offset::IQH) & OFFSET_MASK;
            let used = (tail.wrapping_sub(head) % PAGE_SIZE) / stride;
            used + needed < PAGE_SIZE / stride
        })?;
        let sequence = self.sequence.get().wrapping_add(1).max(1);
        self.sequence.set(sequence);
        let wait = wait_descriptor(self.status, sequence);
        let mut at = tail;
        for descriptor in descriptors.iter().chain([&wait]) {
            store(registers, self.base.plus(at), *descriptor)?;
            if self.is_wide() {
                store(registers, self.base.plus(at + DESCRIPTOR), [0; 2])?;
            }
            at = (at + stride) % PAGE_SIZE;
        }
        registers.write64(offset::IQT, at);
        Ok(sequence)
    }

    fn completed<H: Hal>(&self, registers: &Registers<'_, H>, sequence: u32) -> bool {
        registers.hal.read(self.status).is_ok_and(|word| word as u32 == sequence)
    }
}

/// A wait descriptor that writes `sequence` to `status`.
fn wait_descriptor(status: PhysAddr, sequence: u32) -> Descriptor {
    Wait::ZERO
        .with_kind(kind::WAIT)
        .with_sw(true)
        .with_stdata(u64::from(sequence))
        .with_staddr(status.get() / 4)
        .raw()
}

fn store<H: Hal>(registers: &Registers<'_, H>, at: PhysAddr, words: Descriptor) -> Result<(), TimedOut> {
    let gone = |_| TimedOut { unit: registers.id, what: "memory under the invalidation queue", waited: 0 };
    registers.hal.write(at, words[0]).map_err(gone)?;
    registers.hal.write(at.plus(8), words[1]).map_err(gone)
}

fn load<H: Hal>(registers: &Registers<'_, H>, at: PhysAddr) -> Result<Descriptor, TimedOut> {
    let gone = |_| TimedOut { unit: registers.id, what: "memory under the invalidation queue", waited: 0 };
    Ok([registers.hal.read(at).map_err(gone)?, registers.hal.read(at.plus(8)).map_err(gone)?])
}

/// Where the queue that the unit works on now has its head, its tail, and how it is made.
struct Present {
    iqa: Iqa,
    head: u64,
    tail: u64,
}

impl Present {
    fn look<H: Hal>(registers: &Registers<'_, H>) -> Self {
        Self {
            iqa: Iqa::from_raw(registers.read64(offset::IQA)),
            head: registers.read64(offset::IQH) & OFFSET_MASK,
            tail: registers.read64(offset::IQT) & OFFSET_MASK,
        }
    }
    const fn address(&self, at: u64) -> PhysAddr {
        PhysAddr::new(self.iqa.iqa() << 12).plus(at)
    }
    const fn bytes(&self) -> u64 {
        PAGE_SIZE << self.iqa.qs()
    }
    const fn descriptor(&self) -> u64 {
        if self.iqa.dw() { 2 * DESCRIPTOR } else { DESCRIPTOR }
    }
    /// Puts a wait descriptor at `at`; returns what was there. The second half of a wide one is all zeroes.
    fn put_wait<H: Hal>(
        &self,
        registers: &Registers<'_, H>,
        at: u64,
        status: PhysAddr,
        sequence: u32,
    ) -> Result<[Descriptor; 2], TimedOut> {
        let mut saved = [[0; 2]; 2];
        for (half, words) in (0..self.descriptor()).step_by(DESCRIPTOR as usize).zip(&mut saved) {
            *words = load(registers, self.address(at + half))?;
        }
        self.restore(registers, at, [wait_descriptor(status, sequence), [0; 2]])?;
        Ok(saved)
    }
    /// Stores a descriptor at `at`. Whose memory a predecessor's queue is by now nobody knows: it is left as it was.
    fn restore<H: Hal>(
        &self,
        registers: &Registers<'_, H>,
        at: u64,
        words: [Descriptor; 2],
    ) -> Result<(), TimedOut> {
        let mut halves = (0..self.descriptor()).step_by(DESCRIPTOR as usize).zip(words);
        halves.try_for_each(|(half, words)| store(registers, self.address(at + half), words))
    }
}

/// After FSTS.IQE: puts a wait descriptor in the place of the refused one and lets the queue go on.
///
/// Hardware fetches again when the tail is written; QEMU needs that write, others do it when the bit is cleared.
fn replace_refused<H: Hal>(
    registers: &Registers<'_, H>,
    status: PhysAddr,
    errors: &QueueErrors,
) -> Result<(), TimedOut> {
    let queue = Present::look(registers);
    let saved = queue.put_wait(registers, queue.head, status, 0)?;
    errors.refused(registers, saved[0]);
    registers.write32(offset::FSTS, Fsts::ZERO.with_iqe(true).raw());
    registers.write64(offset::IQT, queue.tail);
    let moved = registers.wait("going on after a refused descriptor", || {
        registers.read64(offset::IQH) & OFFSET_MASK != queue.head || registers.fault_status().iqe()
    });
    queue.restore(registers, queue.head, saved)?;
    moved
}

/// Switches off a queue that somebody else put in: drained first, repaired if it is stuck. `status` is a word of our own
/// that wait descriptors may write to; what goes wrong is noted in `errors`.
///
/// # Errors
/// [`TimedOut`]; the old queue is still on then.
pub fn retire<H: Hal>(
    registers: &Registers<'_, H>,
    status: PhysAddr,
    errors: &QueueErrors,
) -> Result<(), TimedOut> {
    let idle = || {
        let queue = Present::look(registers);
        queue.head == queue.tail
    };
    let stopped = |status: Fsts| status.iqe() || status.ite();
    for _ in 0..REPAIRS {
        let what = "the predecessor's invalidation queue";
        registers.wait(what, || idle() || stopped(registers.fault_status()))?;
        errors.clear_unexpected(registers);
        // A set error bit keeps the queue from fetching, also when nothing is left to fetch now.
        if registers.fault_status().ite() {
            let _ = errors.clear_unanswered(registers);
        } else if idle() {
            break;
        } else {
            replace_refused(registers, status, errors)?;
        }
    }
    registers.write32(offset::FSTS, Fsts::ZERO.with_iqe(true).raw());
    let off = |c: Gcmd| c.with_qie(false);
    let what = "switching the predecessor's invalidation queue off";
    // QEMU refuses unless the last descriptor was a wait. Ours always is, and so is Linux's: try without touching the
    // predecessor's memory, and only then put a wait there.
    let patience = Patience {
        nanoseconds: registers.patience.nanoseconds / 10,
        looks: registers.patience.looks.div_ceil(10),
    };
    let hasty = Registers { patience, ..*registers };
    if hasty.command(what, off, |s| !s.qies()).is_ok() {
        return Ok(());
    }
    append_wait(registers, status)?;
    registers.command(what, off, |s| !s.qies())
}

/// Has the present queue, whoever made it, do one wait descriptor. Leaves the queue's memory as it was.
fn append_wait<H: Hal>(registers: &Registers<'_, H>, status: PhysAddr) -> Result<(), TimedOut> {
    let queue = Present::look(registers);
    let sequence = registers.hal.read(status).map_or(1, |word| (word as u32).wrapping_add(1).max(1));
    let saved = queue.put_wait(registers, queue.tail, status, sequence)?;
    registers.write64(offset::IQT, (queue.tail + queue.descriptor()) % queue.bytes());
    let done = registers.wait("a wait descriptor in the predecessor's queue", || {
        registers.hal.read(status).is_ok_and(|word| word as u32 == sequence)
    });
    queue.restore(registers, queue.tail, saved)?;
    done
}
