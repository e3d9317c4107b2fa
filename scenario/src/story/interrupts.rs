//! Interrupts of the scene: the preserved edu's message goes through the unit's interrupt table, before the update, in the
//! gap, and after it; the edu that is cut off must be blocked.
//!
//! Every message is waited for before the next is sent, but for the one that the outgoing kernel has raised past the point
//! of no return: it waits in the processor's controller until the incoming kernel, which has taken the entry over, lets it
//! in. Only then is the entry pointed to another vector. On a platform whose kernel only polls nothing of this happens.
//!
//! Where the unit posts interrupts (CAP.PI), the preserved device's are posted: to a descriptor that lies in preserved memory,
//! beside the notes, with a notification that waits over the jump as a vector would.
//!
//! With the option `x2apic` the processor's controller is in x2APIC mode and the table in extended mode (ECAP.EIM). Entries then
//! name the processor by 32 bits: odd vectors, and so the first kernel's, as a set in logical mode; even ones by its id.

use super::devices::{Cast, Part, requester};
use super::host::{Kernel, Machine};
use super::scene::{Memory, Scene};
use super::trouble::Trouble;
use super::{Mutant, plan};
use crate::event::Event;
use crate::pci;
use crate::platform::{LocalInterrupts, NoMemory, Platform};
use alloc::string::ToString;
use iommu::{Asker, InterruptEntry, InterruptSetup, Message, VtdUnit};
use liveupdate::Incoming;
use liveupdate::host::{Atomic, ForgetInterrupts, InterruptRemapping, MaySleep, TableMemory, Unit};
use spec::interrupt::{ENTRY_BYTES, PostedDescriptor, PostedEntry, RemappedEntry};
use spec::{PhysAddr, SourceId};

/// Vector of the preserved device in the first kernel; each later one takes the next.
const FIRST_VECTOR: u8 = 0x51;
/// Vector of the notification that something was posted.
const NOTIFICATION: u8 = 0xf1;
/// Where the descriptor lies in the frame of the notes.
const DESCRIPTOR: u64 = 2048;
/// The word of a descriptor whose first bit says that a notification is under way (VT-d 9.12).
const OUTSTANDING: u64 = 4;
/// Vector of the device that will be cut off.
const CUT_VECTOR: u8 = 0x91;
/// Messages that are sent before an update, and again after it.
const MESSAGES: u64 = 3;
/// Longest wait for a message to arrive, in nanoseconds.
const LIMIT: u64 = 200_000_000;
/// How long an interrupt that must not arrive is waited for.
const QUIET: u64 = 5_000_000;

/// The preserved edu's interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interrupts {
    index: u16,
    vector: u8,
    /// The descriptor that it is posted to.
    posted: Option<PhysAddr>,
}

impl Interrupts {
    /// The entry of the device at `source`.
    fn entry(self, source: SourceId, local: &dyn LocalInterrupts) -> InterruptEntry {
        let (Self { vector, posted, .. }, asker) = (self, Asker::Exactly(source));
        match (posted, local.logical().filter(|_| vector % 2 == 1)) {
            (Some(descriptor), _) => InterruptEntry::Posted { vector, descriptor, urgent: false, asker },
            (None, Some(destination)) => InterruptEntry::Remapped {
                vector,
                destination,
                logical: true,
                level: false,
                delivery: 0,
                asker,
            },
            (None, None) => InterruptEntry::msi(source, vector, local.id()),
        }
    }
}

/// A processor's controller and what it had delivered when counting began.
struct Count<'c> {
    local: &'c dyn LocalInterrupts,
    before: u64,
    expected: u64,
}

impl<'c> Count<'c> {
    fn new(local: &'c dyn LocalInterrupts) -> Self {
        Self { local, before: total(local), expected: 0 }
    }

    /// Lets in what waits until `interrupt` has come once more; says whether it did, in time.
    fn await_one<P: Platform + ?Sized>(&mut self, platform: &P, interrupt: Interrupts) -> bool {
        let vector = interrupt.posted.map_or(interrupt.vector, |_| NOTIFICATION);
        let (before, start) = (self.local.delivered(vector), platform.now());
        loop {
            self.local.take_pending();
            if self.local.delivered(vector) > before {
                self.expected += 1;
                return interrupt.posted.is_none_or(|at| take_posted(platform, at, interrupt.vector));
            }
            if platform.now().saturating_sub(start) > LIMIT {
                return false;
            }
            platform.relax();
        }
    }

    /// What came beside the expected.
    fn misdirected(&self) -> u64 {
        total(self.local).saturating_sub(self.before + self.expected)
    }
}

/// Takes a vector out of a descriptor; says whether it was there. The outstanding bit goes first: what is posted from then on
/// notifies again.
fn take_posted<P: Platform + ?Sized>(platform: &P, at: PhysAddr, vector: u8) -> bool {
    let (outstanding, requests) = (at.plus(8 * OUTSTANDING), at.plus(8 * u64::from(vector / 64)));
    let clear = |at, bit: u64| {
        let word = platform.read64(at)?;
        platform.write64(at, word & !bit)?;
        Ok::<_, NoMemory>(word & bit != 0)
    };
    clear(outstanding, 1).and_then(|_| clear(requests, 1 << (vector % 64))) == Ok(true)
}

fn total(local: &dyn LocalInterrupts) -> u64 {
    (0..=u8::MAX).map(|vector| local.delivered(vector)).sum()
}

type TheUnit<'k, 'p, P> = VtdUnit<'k, Machine<'p, P>>;
/// A unit, and the controller that it sends interrupts to.
type Connection<'k, 'p, P> = (&'k TheUnit<'k, 'p, P>, &'k dyn LocalInterrupts);

/// The unit that watches a function, with an interrupt table in use; `None` where there is none, or nobody to interrupt.
fn unit_of<'k, 'p, P: Platform + ?Sized>(
    kernel: &Kernel<'k, 'p, P>,
    ctx: &mut MaySleep,
    source: SourceId,
) -> Result<Option<Connection<'k, 'p, P>>, Trouble> {
    let unit = kernel.iommu.unit_of(requester(source)).filter(|unit| unit.can_remap_interrupts());
    let (Some(unit), Some(local)) = (unit, kernel.platform().interrupts()) else { return Ok(None) };
    let extended = local.logical().is_some();
    if !extended && kernel.platform().option("x2apic").is_some() {
        return Err(Trouble::new("remap interrupts", "the processor's controller is not in x2APIC mode"));
    }
    if unit.interrupt_table_in_use().is_none() {
        let on = unit.remap_interrupts(ctx, InterruptSetup { extended, ..InterruptSetup::default() });
        on.map_err(Trouble::at("remap interrupts"))?;
    }
    Ok(Some((unit, local)))
}

/// Gives a function an entry and has it send the message that asks for it. The interrupt is posted to `descriptor`, if there
/// is one and the unit posts.
fn connect<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    source: SourceId,
    vector: u8,
    descriptor: Option<PhysAddr>,
) -> Result<Option<Interrupts>, Trouble> {
    let Some((unit, local)) = unit_of(kernel, ctx, source)? else { return Ok(None) };
    let platform = kernel.platform();
    let index = unit.allocate_interrupts(0).map_err(Trouble::at("take an interrupt entry"))?;
    let carried = kernel.buses.0.carried_by(source);
    let interrupt = Interrupts { index, vector, posted: descriptor.filter(|_| unit.cap().pi()) };
    if let Some(at) = interrupt.posted {
        // In xAPIC mode the id is in the second byte of the field.
        let shift = if local.logical().is_some() { 0 } else { 8 };
        let to = u64::from(local.id()) << shift;
        let empty = PostedDescriptor::ZERO.with_nv(NOTIFICATION.into()).with_ndst(to);
        for (n, word) in (0..).zip(empty.raw()) {
            platform.write64(at.plus(8 * n), word).map_err(Trouble::at("write a descriptor"))?;
        }
    }
    let set = unit.set_interrupt(ctx, index, interrupt.entry(carried, local));
    set.map_err(Trouble::at("set an interrupt entry"))?;
    let message = Message::to(index);
    let sends = pci::set_message(platform, source, message.address, message.data);
    match sends.map_err(Trouble::at("set a device's message"))? {
        true => Ok(Some(interrupt)),
        false => Ok(None),
    }
}

/// First kernel: the preserved device gets an entry.
pub(crate) fn start<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    ctx: &mut MaySleep,
    cast: &Cast,
    memory: Memory,
) -> Result<Option<Interrupts>, Trouble> {
    let Some((_, kept)) = cast.interrupter(Part::Kept) else { return Ok(None) };
    connect(kernel, ctx, kept, FIRST_VECTOR, Some(memory.notes.start().plus(DESCRIPTOR)))
}

/// Incoming kernel: takes the entry of the preserved device over.
pub(crate) fn retrieve<'k, 'p, P: Platform + ?Sized>(
    kernel: &'k Kernel<'k, 'p, P>,
    incoming: &Incoming<'k, '_, Kernel<'k, 'p, P>>,
    cast: &Cast,
) -> Result<Option<Interrupts>, Trouble> {
    let kept = cast.interrupter(Part::Kept).map(|(_, source)| requester(source));
    let Some(unit) = kept.and_then(|kept| kernel.iommu.unit_of(kept)) else { return Ok(None) };
    let mut found = None;
    let entries = incoming.retrieve_interrupts(plan::edu(0), &mut |index, words| {
        let (entry, posted) = (RemappedEntry::from_raw(words), PostedEntry::from_raw(words));
        // Both formats have the vector in the same place.
        let (vector, posted) = (entry.v() as u8, entry.im().then(|| posted.descriptor()));
        found.get_or_insert(Interrupts { index, vector, posted });
    });
    entries.map_err(Trouble::at("retrieve interrupts"))?;
    if let Some(Interrupts { index, .. }) = found {
        unit.claim_interrupt(index).map_err(Trouble::at("take an interrupt entry over"))?;
    }
    Ok(found)
}

/// The edu that is cut off and interrupts. One that is reduced to its reserved memory keeps its interrupts with it.
fn cut_off<P: Platform + ?Sized>(scene: &Scene<'_, '_, P>) -> Option<(usize, SourceId)> {
    let reduced = |source| scene.reserved.iter().any(|(who, _)| *who == source);
    scene.cast.interrupter(Part::Cut).filter(|(_, source)| !reduced(*source))
}

/// Outgoing kernel, before the update: both devices interrupt, each by its own vector.
pub(crate) fn before<P: Platform + ?Sized>(
    scene: &Scene<'_, '_, P>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let platform = scene.platform();
    let (Some(kept), Some(local)) = (scene.interrupts, platform.interrupts()) else { return Ok(()) };
    let cut = match cut_off(scene) {
        Some((edu, source)) => connect(scene.kernel, ctx, source, CUT_VECTOR, None)?.map(|cut| (edu, cut)),
        None => None,
    };
    let mut count = Count::new(local);
    let mut delivered = 0;
    let messages = (0..MESSAGES).map(|_| (0, kept)).chain(cut);
    let mut sent = 0;
    for (edu, interrupt) in messages {
        scene.edus[edu].raise();
        sent += 1;
        delivered += u64::from(count.await_one(platform, interrupt));
        scene.edus[edu].acknowledge();
    }
    platform.event(&Event::Interrupts {
        kernel: platform.release().to_string(),
        sent,
        delivered_before: delivered,
        delivered_in_gap: 0,
        delivered_after: 0,
        misdirected: count.misdirected(),
    });
    Ok(())
}

/// Past the point of no return: the preserved device raises its interrupt once. Says how often. Neither allocates nor
/// sleeps.
pub(crate) fn in_gap<P: Platform + ?Sized>(
    scene: &Scene<'_, '_, P>,
    atomic: &Atomic,
    mutant: Option<Mutant>,
) -> u32 {
    let Some(Interrupts { index, .. }) = scene.interrupts else { return 0 };
    let unit = scene.kernel.iommu.unit_of(scene.cast.edus[0].requester);
    let table = unit.and_then(VtdUnit::interrupt_table_in_use);
    let at = table.map(|irta| irta.table().plus(ENTRY_BYTES * u64::from(index)));
    let at = at.filter(|_| mutant == Some(Mutant::InterruptTableLost));
    let machine = scene.kernel.machine;
    let entry = at.and_then(|at| Some((at, machine.read(at).ok()?)));
    let put = |low: u64, at| {
        let _ = machine.write(at, low);
        let _ = unit.map(|unit| unit.forget_interrupts(atomic, ForgetInterrupts::Everything));
    };
    entry.into_iter().for_each(|(at, _)| put(0, at));
    scene.edus[0].raise();
    entry.into_iter().for_each(|(at, low)| put(low, at));
    1
}

/// Incoming kernel, after adoption: what waits is let in, then the entry is pointed to another vector and used. The device
/// that was cut off must not get through.
pub(crate) fn after<P: Platform + ?Sized>(
    scene: &mut Scene<'_, '_, P>,
    ctx: &mut MaySleep,
) -> Result<(), Trouble> {
    let platform = scene.platform();
    let (Some(kept), Some(local)) = (scene.interrupts, platform.interrupts()) else { return Ok(()) };
    let mut count = Count::new(local);
    let raised = u64::from(scene.arrived_with.map_or(0, |notes| notes.interrupts));
    let in_gap = (0..raised).filter(|_| count.await_one(platform, kept)).count() as u64;
    scene.edus[0].acknowledge();
    let again = Interrupts { vector: kept.vector + 1, ..kept };
    let who = scene.cast.edus[0].requester;
    let unit = scene.kernel.iommu.unit_of(who);
    let unit = unit.ok_or(Trouble::new("re-point an interrupt", "no unit watches the device"))?;
    let carried = scene.kernel.buses.0.carried_by(who.source);
    let entry = again.entry(carried, local);
    unit.set_interrupt(ctx, kept.index, entry).map_err(Trouble::at("re-point an interrupt"))?;
    scene.interrupts = Some(again);
    let mut delivered = 0;
    for _ in 0..MESSAGES {
        scene.edus[0].raise();
        delivered += u64::from(count.await_one(platform, again));
        scene.edus[0].acknowledge();
    }
    blocked(scene, local);
    platform.event(&Event::Interrupts {
        kernel: platform.release().to_string(),
        sent: raised + MESSAGES,
        delivered_before: 0,
        delivered_in_gap: in_gap,
        delivered_after: delivered,
        misdirected: count.misdirected(),
    });
    Ok(())
}

/// The device that was cut off raises its interrupt, which nothing may come of but a fault.
fn blocked<P: Platform + ?Sized>(scene: &mut Scene<'_, '_, P>, local: &dyn LocalInterrupts) {
    let platform = scene.platform();
    let Some((edu, source)) = cut_off(scene) else { return };
    let unit = scene.kernel.iommu.unit_of(requester(source));
    // A unit with nothing preserved remaps nothing any more: there messages pass as they are.
    if unit.is_none_or(|unit| unit.interrupt_table_in_use().is_none()) {
        return;
    }
    // What was recorded before is not to hide it.
    scene.watch();
    scene.edus[edu].raise();
    let start = platform.now();
    while platform.now().saturating_sub(start) < QUIET {
        local.take_pending();
        platform.relax();
    }
    scene.edus[edu].acknowledge();
    scene.watch();
}
