//! The machine as a whole: memory, functions, devices and units under one clock.
//!
//! Whoever touches the machine lets time pass first (`State::step`); whatever became due meanwhile, in units, devices and
//! on the way to memory, happens in the order of its time. So engines run between any two steps of a kernel.

use crate::acpi;
use crate::apic::LocalApic;
use crate::config::{MachineConfig, Scope};
use crate::device_tlb::{self, DeviceTlb, PageAnswers};
use crate::devices::{Chatter, Device, Edu, Habits, Hda};
use crate::dice::Dice;
use crate::dma::Port;
use crate::extra::Extra;
use crate::fabric::Fabric;
use crate::faults::{Injector, Strike};
use crate::memory::{Hole, Memory, StorePath};
use crate::pci::{self, Pci};
use crate::trace::TraceLine;
use crate::vtd::Outcome;
use crate::vtd::Unit;
use crate::vtd::interrupts::Message;
use scenario::event::Event;
use scenario::platform::{Mark, MemoryRange};
use spec::{Requester, Segment, SourceId};
use std::cell::RefCell;

const FOUR_GIB: u64 = 4 << 30;
/// Bytes at the end of low memory that firmware keeps for its tables.
const FIRMWARE_BYTES: u64 = 0x2_1000;
const REGISTER_PAGE: u64 = 4096;
/// Bytes of registers of an educational device.
const EDU_REGISTER_BYTES: u64 = 1 << 20;

/// A simulated machine. All methods take `&self`: kernels hold it shared, one after the other.
pub struct Machine {
    state: RefCell<State>,
    map: Vec<MemoryRange>,
}

/// A line on the machine's serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialLine {
    /// When, in nanoseconds.
    pub at: u64,
    /// What.
    pub content: Serial,
}

/// What a kernel reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// An event.
    Event(Event),
    /// Words for people.
    Log(String),
}

struct Slot {
    device: Device,
    /// Where its registers are reached and its mastering is switched; a requester without has none.
    function: Option<SourceId>,
    /// Where its registers are, if it is no function.
    registers: Option<u64>,
    segment: Segment,
    /// What its requests carry, by turns.
    sources: Vec<SourceId>,
    /// The bridges above it.
    bridges: Vec<SourceId>,
    /// What a unit's list may name it by.
    listed_as: Vec<SourceId>,
}

pub(crate) struct State {
    pub(crate) fabric: Fabric,
    pub(crate) pci: Pci,
    pub(crate) serial: Vec<SerialLine>,
    units: Vec<Unit>,
    slots: Vec<Slot>,
    /// When something happens next, as far as is known: whoever might bring it forward calls [`State::look_ahead`].
    next_due: Option<u64>,
}

impl Machine {
    /// A machine after firmware has run.
    ///
    /// # Panics
    /// When the configuration has less than 64 MiB of memory, or a unit that covers everything before another.
    #[must_use]
    pub fn new(config: &MachineConfig) -> Self {
        assert!(config.memory >= 64 << 20, "a machine needs at least 64 MiB");
        let early = config.units.iter().enumerate().any(|(i, unit)| {
            let later = |other: &crate::config::UnitConfig| other.id.segment == unit.id.segment;
            !matches!(unit.scope, Scope::Listed(_)) && config.units[i + 1..].iter().any(later)
        });
        assert!(!early, "a unit that covers the rest must be its segment's last");
        let (ranges, map) = layout(config.memory);
        let path = StorePath {
            non_coherent: config.units.iter().any(|unit| !unit.ecap.c()),
            buffered: config.units.iter().any(|unit| unit.cap.rwbf()),
        };
        let mut memory = Memory::new(&ranges, path);
        for &(start, bytes) in &ranges {
            memory.power_on(start, bytes, config.residue).expect("a range of memory is memory");
        }
        let mut pci = Pci::scenario().with(&config.more);
        config.ats.iter().for_each(|ats| pci.add_ats(ats.function, ats.queue_depth));
        let tables_at = low_end(config.memory) - FIRMWARE_BYTES;
        for (at, bytes) in acpi::tables(tables_at, config, &pci) {
            memory.write_snooped(at, &bytes).expect("firmware's tables lie in memory");
        }
        let injector = Injector::new(config.faults.clone());
        let slots = slots(config, &pci);
        let mut state = State {
            fabric: Fabric::new(memory, Dice::new(config.seed), injector),
            pci,
            serial: Vec::new(),
            units: config.units.iter().map(|unit| Unit::new(unit.clone(), config.host_width)).collect(),
            slots,
            next_due: None,
        };
        state.fabric.apic = LocalApic::new(config.x2apic_id);
        state.fabric.device_tlbs = config.ats.iter().map(|ats| DeviceTlb::new(*ats)).collect();
        state.look_ahead();
        Self { state: RefCell::new(state), map }
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.borrow_mut())
    }

    /// The memory map that firmware gives.
    #[must_use]
    pub fn memory_map(&self) -> &[MemoryRange] {
        &self.map
    }

    /// Nanoseconds since the machine was made.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.with(|state| state.fabric.now)
    }

    /// Lets time pass without any kernel doing anything.
    pub fn lapse(&self, ns: u64) {
        self.with(|state| state.advance(ns));
    }

    /// The trace so far.
    #[must_use]
    pub fn trace(&self) -> Vec<TraceLine> {
        self.with(|state| state.fabric.trace.clone())
    }

    /// Everything that kernels reported so far.
    #[must_use]
    pub fn serial(&self) -> Vec<SerialLine> {
        self.with(|state| state.serial.clone())
    }

    /// What the machine played: frames of two little-endian 16-bit samples.
    #[must_use]
    pub fn played(&self) -> Vec<u8> {
        self.with(|state| {
            let hda = state.slots.iter().find_map(|slot| match &slot.device {
                Device::Hda(hda) => Some(hda.played().to_vec()),
                Device::Edu(_) | Device::Streamer(_) | Device::Chatter(_) => None,
            });
            hda.unwrap_or_default()
        })
    }

    /// Looks at memory from outside: no time passes, nothing runs.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn peek(&self, at: u64, out: &mut [u8]) -> Result<(), Hole> {
        self.with(|state| state.fabric.memory.read(at, out))
    }

    /// Changes memory from outside: no time passes, no cache hides it.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn poke(&self, at: u64, bytes: &[u8]) -> Result<(), Hole> {
        self.with(|state| state.fabric.memory.write_snooped(at, bytes))
    }

    /// Sends one request of 8 bytes, as if by a requester with this source-id on the root bus, listed or not, or, for another
    /// bus, from behind the bridge. Says where it went; `None` when it was refused. No time passes.
    pub fn request(&self, source: SourceId, iova: u64, write: bool) -> Option<u64> {
        self.with(|state| {
            let listed_as = listed_as(source, &state.pci);
            let State { fabric, units, pci, .. } = state;
            let ats = pci.function(source).is_some_and(pci::Function::has_ats_on);
            let (segment, sources) = (Segment(0), &[source][..]);
            let (master, pri, message, pasid) = (true, false, None, None);
            let listed_as = &listed_as;
            let mut port =
                Port { fabric, units, segment, sources, listed_as, pasid, master, ats, pri, message };
            port.route(iova, 8, write).ok()
        })
    }

    /// As [`request`](Self::request), of a request that carries a PASID.
    pub fn request_as(&self, source: SourceId, pasid: u32, iova: u64, write: bool) -> Option<u64> {
        self.with(|state| {
            let listed_as = listed_as(source, &state.pci);
            let State { fabric, units, pci, .. } = state;
            let unit = units.iter_mut().find(|unit| unit.covers(Segment(0), &listed_as))?;
            let ats = pci.function(source).is_some_and(pci::Function::has_ats_on);
            if ats && let Some(way) = device_tlb::route(unit, (source, Some(pasid)), iova, 8, write, fabric) {
                return way;
            }
            match unit.translate_as(source, Some(pasid), iova, 8, write, fabric) {
                Outcome::To(address) => Some(address),
                Outcome::NoMemory | Outcome::Refused => None,
            }
        })
    }

    /// Has the device of `source` ask for the page of `iova` (PRI), in a group of its own. Says whether it does: only with page
    /// requests on.
    pub fn ask_page(&self, source: SourceId, iova: u64) -> bool {
        self.with(|state| {
            let on = state.pci.function(source).is_some_and(pci::Function::has_pri_on);
            let Some(group) = on.then(|| state.fabric.new_page_group(source)).flatten() else { return false };
            let listed_as = listed_as(source, &state.pci);
            let State { fabric, units, .. } = state;
            if let Some(unit) = units.iter_mut().find(|unit| unit.covers(Segment(0), &listed_as)) {
                unit.ask_page(source, group, iova / 4096, fabric);
            }
            state.look_ahead();
            true
        })
    }

    /// How the page requests of `source` fared.
    #[must_use]
    pub fn page_answers(&self, source: SourceId) -> PageAnswers {
        self.with(|state| state.fabric.page_answers(source))
    }

    /// Page numbers that the device of `source` keeps translations of (ATS), for requests without PASID.
    #[must_use]
    pub fn device_pages(&self, source: SourceId) -> Vec<u64> {
        self.with(|state| state.fabric.device_pages(source, None))
    }

    /// The same for requests with a PASID.
    #[must_use]
    pub fn device_pages_of(&self, source: SourceId, pasid: u32) -> Vec<u64> {
        self.with(|state| state.fabric.device_pages(source, Some(pasid)))
    }

    /// Sends an interrupt message, as if by a requester with this source-id; says which vector came of it. No time passes.
    pub fn interrupt(&self, source: SourceId, message: Message) -> Option<u8> {
        self.with(|state| {
            let listed_as = listed_as(source, &state.pci);
            let unit = state.units.iter_mut().find(|unit| unit.covers(Segment(0), &listed_as))?;
            let interrupt = unit.interrupt(source, message, &mut state.fabric)?;
            state.fabric.apic.raise(interrupt.vector);
            Some(interrupt.vector)
        })
    }

    /// The processor's local interrupt controller as it is now.
    #[must_use]
    pub fn apic(&self) -> LocalApic {
        self.with(|state| state.fabric.apic.clone())
    }

    /// How many cache lines with stores the units' walks may not see yet.
    #[must_use]
    pub fn hidden_lines(&self) -> usize {
        self.with(|state| state.fabric.memory.hidden_lines(state.fabric.now))
    }
}

impl State {
    /// Lets between `low` and `high` nanoseconds pass.
    pub(crate) fn step(&mut self, low: u64, high: u64) {
        let ns = self.fabric.dice.between(low, high);
        self.advance(ns);
    }

    /// Lets `ns` nanoseconds pass; whatever becomes due happens in the order of time.
    pub(crate) fn advance(&mut self, ns: u64) {
        let target = self.fabric.now + ns;
        while let Some(due) = self.next_due.filter(|&due| due <= target) {
            self.fabric.now = self.fabric.now.max(due);
            self.run();
            self.look_ahead();
        }
        self.fabric.now = target;
    }

    fn look_ahead(&mut self) {
        let units = self.units.iter().filter_map(Unit::next_due);
        let devices = self.slots.iter().filter_map(|slot| slot.device.next_due());
        self.next_due = units.chain(devices).chain(self.fabric.next_landing()).min();
    }

    /// Everything that is due by now.
    fn run(&mut self) {
        self.fabric.land_due();
        for unit in &mut self.units {
            unit.run(&mut self.fabric);
        }
        for i in 0..self.slots.len() {
            if self.slots[i].device.next_due().is_some_and(|due| due <= self.fabric.now) {
                self.with_device(i, |device, port| device.run(port));
            }
        }
    }

    fn with_device<R>(&mut self, i: usize, f: impl FnOnce(&mut Device, &mut Port<'_>) -> R) -> R {
        let slot = &mut self.slots[i];
        let masters = |at| self.pci.function(at).is_some_and(pci::Function::masters);
        let mut port = Port {
            fabric: &mut self.fabric,
            units: &mut self.units,
            segment: slot.segment,
            sources: &slot.sources,
            listed_as: &slot.listed_as,
            pasid: None,
            master: slot.function.is_none_or(masters) && slot.bridges.iter().copied().all(masters),
            ats: slot.function.and_then(|at| self.pci.function(at)).is_some_and(pci::Function::has_ats_on),
            pri: slot.function.and_then(|at| self.pci.function(at)).is_some_and(pci::Function::has_pri_on),
            message: slot.function.and_then(|at| self.pci.function(at)?.message()),
        };
        f(&mut slot.device, &mut port)
    }

    fn unit_at(&self, address: u64) -> Option<usize> {
        let base = |unit: &Unit| unit.config.id.register_base;
        self.units.iter().position(|unit| (base(unit)..base(unit) + REGISTER_PAGE).contains(&address))
    }

    fn slot_at(&self, address: u64) -> Option<(usize, u64)> {
        self.slots.iter().enumerate().find_map(|(i, slot)| {
            let offset = match slot.registers {
                Some(base) => address.checked_sub(base).filter(|offset| *offset < EDU_REGISTER_BYTES),
                None => self.pci.function(slot.function?)?.decodes(address),
            };
            offset.map(|offset| (i, offset))
        })
    }

    /// A processor's read of 1, 2, 4 or 8 bytes of device registers. All ones where nobody answers.
    pub(crate) fn mmio_read(&mut self, address: u64, bytes: u64) -> u64 {
        // Reads start nothing, so what is due next stays; the one below that lands writes early leaves nothing to happen.
        if let Some(i) = self.unit_at(address) {
            return self.units[i].read(address % REGISTER_PAGE, bytes, &mut self.fabric);
        }
        let Some((i, offset)) = self.slot_at(address) else { return u64::MAX };
        let value = self.with_device(i, |device, port| device.read(offset, bytes, port));
        // The answer pushes the device's writes before it.
        self.fabric.land_all();
        value
    }

    /// A processor's write of 1, 2, 4 or 8 bytes of device registers.
    pub(crate) fn mmio_write(&mut self, address: u64, bytes: u64, value: u64) {
        if let Some(i) = self.unit_at(address) {
            self.units[i].write(address % REGISTER_PAGE, bytes, value, &mut self.fabric);
        } else if let Some((i, offset)) = self.slot_at(address) {
            self.with_device(i, |device, port| device.write(offset, bytes, value, port));
        }
        self.look_ahead();
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.fabric.trace.push(TraceLine::Mark { at: self.fabric.now, mark });
        if let Some(kind) = self.fabric.injector.queue_fault_at(Strike::Mark(mark)) {
            self.units[0].strike_queue(kind, &mut self.fabric);
        }
        let wanted = self.fabric.injector.wanted.corrupt.clone();
        for corruption in wanted.into_iter().filter(|c| c.moment == mark) {
            let mut byte = [0];
            if self.fabric.memory.read(corruption.address, &mut byte).is_ok() {
                byte[0] ^= corruption.flip;
                let _ = self.fabric.memory.write_snooped(corruption.address, &byte);
            }
        }
    }

    pub(crate) fn report(&mut self, content: Serial) {
        self.serial.push(SerialLine { at: self.fabric.now, content });
    }
}

fn slots(config: &MachineConfig, pci: &Pci) -> Vec<Slot> {
    let mut slots = vec![
        function(Device::Hda(Box::new(Hda::new(config.capture))), pci::AUDIO, 0, pci),
        function(Device::Edu(Edu::default()), pci::EDU_A, 0, pci),
        function(Device::Edu(Edu::default()), pci::EDU_B, 0, pci),
        function(Device::Edu(Edu::default()), pci::EDU_C, 0, pci),
    ];
    let stranger = |device, requester: Requester, registers| Slot {
        device,
        function: None,
        registers,
        segment: requester.segment,
        sources: vec![requester.source],
        bridges: Vec::new(),
        listed_as: match requester.segment {
            Segment(0) => listed_as(requester.source, pci),
            _ => vec![requester.source],
        },
    };
    for extra in &config.more {
        match *extra {
            Extra::Bridge { .. } => {}
            Extra::Function { at, phantom_bits, .. } => {
                slots.push(function(Device::Edu(Edu::default()), at, phantom_bits, pci));
            }
            Extra::Streamer { at, .. } => {
                slots.push(function(Device::Streamer(Box::default()), at, 0, pci));
            }
            Extra::Fixed { requester, registers, .. } => {
                slots.push(stranger(Device::Edu(Edu::default()), requester, Some(registers)));
            }
        }
    }
    slots.extend(config.chatter.iter().map(|habits| {
        let requester = Requester::new(Segment(0), habits.source);
        stranger(Device::Chatter(Chatter::new(habits.clone())), requester, None)
    }));
    let asking = |habits: &Habits| Device::Chatter(Chatter::asking_for_pages(habits.clone()));
    slots.extend(config.page_requests.iter().map(|habits| function(asking(habits), habits.source, 0, pci)));
    slots
}

/// A device that is a function of segment 0.
fn function(device: Device, at: SourceId, phantom_bits: u8, pci: &Pci) -> Slot {
    let carried = pci.carried(at);
    let upper = |n: u8| SourceId::new(at.bus(), at.device(), at.function() | n << (3 - phantom_bits));
    let sources = if carried == at { (0..1 << phantom_bits).map(upper).collect() } else { vec![carried] };
    let mut names = listed_as(carried, pci);
    // The list of a unit names a function, not its phantoms; and a bridge that is named is named for what is behind it.
    names.push(at);
    let (registers, segment) = (None, Segment(0));
    Slot {
        device,
        function: Some(at),
        registers,
        segment,
        sources,
        bridges: pci.above(at.bus()),
        listed_as: names,
    }
}

/// What a unit's list may name a requester of segment 0 by: itself, or a bridge above its bus.
fn listed_as(source: SourceId, pci: &Pci) -> Vec<SourceId> {
    let mut names = vec![source];
    names.extend(pci.above(source.bus()));
    names
}

/// Where memory below 4 GiB ends: at 2 GiB when not all of it fits below 2.75 GiB.
pub(crate) fn low_end(bytes: u64) -> u64 {
    const HOLE: u64 = 0xb000_0000;
    if bytes >= HOLE { 0x8000_0000 } else { bytes }
}

/// RAM as (start, bytes), and the map of it that firmware gives.
fn layout(bytes: u64) -> (Vec<(u64, u64)>, Vec<MemoryRange>) {
    let low = low_end(bytes);
    let mut ranges = vec![(0, 0xa_0000), (0xc_0000, 0x4_0000), (0x10_0000, low - 0x10_0000)];
    let range = |start, end, usable| MemoryRange { start, bytes: end - start, usable };
    let firmware = low - FIRMWARE_BYTES;
    let mut map = vec![
        range(0, 0x9_fc00, true),
        range(0x9_fc00, 0xa_0000, false),
        range(0xf_0000, 0x10_0000, false),
        range(0x10_0000, firmware, true),
        range(firmware, low, false),
    ];
    if bytes > low {
        ranges.push((FOUR_GIB, bytes - low));
        map.push(range(FOUR_GIB, FOUR_GIB + bytes - low, true));
    }
    (ranges, map)
}
