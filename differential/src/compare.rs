//! The comparison: batches of random tables, each asked about, changed behind the unit's back, invalidated in part and as a
//! whole, and asked about again.
//!
//! Four simulated units stand beside QEMU. The twin caches what QEMU caches, and must answer as QEMU does, stale or not.
//! The greedy one caches all that the specification allows. Two that cache nothing know what tables say now, and what they
//! said at the last full invalidation; as one entry at most changes between two of these, every answer must be one of
//! theirs.

use crate::chance::Chance;
use crate::known::KNOWN;
use crate::mode::Mode;
use crate::program::{self, Forget, Queue, Registers};
use crate::qtest;
use crate::rig::{DATA, LOW_MEMORY, MEMORY, MEMORY_START, Recorded, Rig, SLOTS, SOURCES};
use crate::tables::{ARENA, ARENA_BYTES, Tables, Words};
use crate::tally::Tally;
use anyhow::{Context, Result, ensure};
use machine::vtd::Outcome;
use machine::{Answer, Caching, Probe};
use spec::SourceId;
use spec::fault::Reason;
use spec::regs::{Cap, FaultRecord, Fsts, offset};
use std::fmt;
use std::path::Path;

/// Slots of a device's buffer for reads; the others are for writes.
const READ_SLOTS: usize = 256;
/// Messages kept of disagreements.
const MESSAGES_MAX: usize = 40;

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Number within the run.
    pub number: u64,
    /// Who asked.
    pub source: SourceId,
    /// For what.
    pub iova: u64,
    /// Whether to write it.
    pub write: bool,
    /// What the twin says.
    pub twin: Answer,
    /// What the twin's fault registers show.
    pub expected: Recorded,
    /// What QEMU's show.
    pub seen: Recorded,
    /// The word that the twin says is read, or `None` where nothing answers; for a write: the word written.
    pub expected_word: Option<u64>,
    /// The word that QEMU's device read; for a write: what lies where the twin says that it landed.
    pub seen_word: Option<u64>,
}

impl Case {
    /// Whether QEMU recorded a fault of this request, with this reason, and touched nothing.
    #[must_use]
    pub fn seen_shows(&self, reason: Reason) -> bool {
        let record = FaultRecord::ZERO.with_f(true).with_t1(!self.write).with_fi(self.iova >> 12);
        let record = record.with_sid(self.source.raw().into()).with_fr(reason.0.into());
        let status = Fsts::ZERO.with_ppf(true);
        self.seen.meaning() == (status, Some(record)) && self.seen_word.is_none()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.write { "write" } else { "read" };
        write!(f, "{}: {} {verb} {:#x}: {:x?}", self.number, self.source, self.iova, self.twin)?;
        for (who, shown, word) in
            [("twin", self.expected, self.expected_word), ("QEMU", self.seen, self.seen_word)]
        {
            let [low, high] = shown.record.raw();
            write!(
                f,
                "\n    {who}: status {:#x}, record {high:016x} {low:x}, data {word:x?}",
                shown.status.raw()
            )?;
        }
        Ok(())
    }
}

/// The units side by side, and what they are asked.
pub struct Comparison {
    mode: Mode,
    rig: Rig,
    twin: Probe,
    greedy: Probe,
    now: Probe,
    before: Probe,
    tables: Tables,
    chance: Chance,
    tally: Tally,
    /// Requests of this batch whose data are still in the devices.
    reads: Vec<(usize, usize, Case)>,
    used: [(usize, usize); SOURCES.len()],
    /// The domain id of each device at the last full invalidation, as far as it asked since.
    domains: [Option<u16>; SOURCES.len()],
    /// The queue, once invalidations go through it.
    queue: Option<Queue>,
    /// Requests made before, to be made again.
    asked: Vec<(usize, u64)>,
    /// Those of them that reached memory.
    reached: Vec<(usize, u64)>,
    /// The one whose tables changed last.
    focus: Option<(usize, u64)>,
}

impl Comparison {
    /// Starts QEMU and the simulated units.
    ///
    /// # Errors
    /// When QEMU cannot be used.
    pub fn new(qemu: &Path, mode: Mode, seed: u64) -> Result<Self> {
        let mut chance = Chance::new(seed);
        let tables = Tables::new(mode, Chance::new(chance.below(u64::MAX)));
        let major = qtest::major_version(qemu)?;
        let mut rig = Rig::start(qemu, mode)?;
        let esrtps = Cap::from_raw(rig.read(offset::CAP, 8)?).esrtps();
        let unit = |caching| {
            // What lies below is all zero, with no firmware to use it.
            let ranges = [(0, LOW_MEMORY), (MEMORY_START, MEMORY - MEMORY_START)];
            Probe::new(mode.unit(caching, major, esrtps), mode.width(), &ranges)
        };
        let mut comparison = Self {
            mode,
            rig,
            twin: unit(if major < 9 { Caching::QEMU_7_2 } else { Caching::QEMU }),
            greedy: unit(Caching::ALL),
            now: unit(Caching::ALL),
            before: unit(Caching::ALL),
            tables,
            chance,
            tally: Tally::default(),
            reads: Vec::new(),
            used: Default::default(),
            domains: Default::default(),
            queue: None,
            asked: Vec::new(),
            reached: Vec::new(),
            focus: None,
        };
        for register in [offset::CAP, offset::ECAP] {
            let (ours, theirs) = (comparison.twin.read(register, 8), comparison.rig.read(register, 8)?);
            ensure!(
                ours == theirs,
                "register {register:#x} is {theirs:#x}, and {ours:#x} in the simulated unit"
            );
        }
        Ok(comparison)
    }

    /// Compares until `requests` requests were made.
    ///
    /// # Errors
    /// When QEMU fails; disagreements are no error here.
    pub fn run(mut self, requests: u64) -> Result<Tally> {
        while self.tally.requests < requests && self.tally.disagreements.len() < MESSAGES_MAX {
            // There is no register to invalidate PASID entries with.
            if self.queue.is_none() && (self.mode.is_scalable() || self.tally.requests >= requests / 2) {
                self.start_queue()?;
            }
            self.batch().with_context(|| format!("after {} requests", self.tally.requests))?;
        }
        for (at, word) in self.rig.strays()? {
            self.complain(format!("a word was written to {at:#x} that should not be there: {word:#x}"));
        }
        Ok(self.tally)
    }

    fn batch(&mut self) -> Result<()> {
        self.load_buffers()?;
        let words = self.tables.all();
        self.store(&words)?;
        store(&mut self.before, &words)?;
        let root = self.tables.root();
        self.everywhere(|unit| program::set_root(unit, root))?;
        self.forget_all()?;
        self.everywhere(|unit| program::translate(unit, true))?;
        self.asked.clear();
        self.reached.clear();
        self.focus = None;
        self.requests(60)?;
        for _ in 0..3 {
            self.touch()?;
            let focus = self.reached_before();
            self.focus = Some(focus);
            let on_the_way = focus.1;
            let (change, whose) = self.tables.change(on_the_way);
            self.store(&change)?;
            if let Some(source) = whose {
                let domain = self.domain_of(source);
                self.forget(Forget::Source(source, domain))?;
            }
            self.requests(40)?;
            self.forget_some()?;
            self.requests(30)?;
            self.forget_all()?;
            store(&mut self.before, &change)?;
            self.requests(20)?;
        }
        self.everywhere(|unit| program::translate(unit, false))?;
        self.compare_tables()?;
        self.unload_buffers()
    }

    /// Does the same to every unit.
    fn everywhere(&mut self, act: impl Fn(&mut dyn Registers) -> Result<()>) -> Result<()> {
        act(&mut self.rig).context("QEMU")?;
        for unit in [&mut self.twin, &mut self.greedy, &mut self.now, &mut self.before] {
            act(unit).context("the simulated unit")?;
        }
        Ok(())
    }

    /// Changes memory, for all but the one that remembers.
    fn store(&mut self, words: &Words) -> Result<()> {
        for (&at, &word) in words {
            self.rig.store(at, word)?;
        }
        [&mut self.twin, &mut self.greedy, &mut self.now].into_iter().try_for_each(|unit| store(unit, words))
    }

    fn forget_all(&mut self) -> Result<()> {
        self.forget(Forget::All)
    }

    fn forget_some(&mut self) -> Result<()> {
        let source = self.chance.one_of(&SOURCES);
        let domain = self.domain_of(source);
        let what = match (self.chance.below(3), self.mode) {
            (0, _) => Forget::Source(source, domain),
            (1, Mode::FirstStage) => Forget::Pasid(domain),
            (1, _) => Forget::Domain(domain),
            (_, Mode::FirstStage) => {
                let (iova, order) = (self.pick().1, self.chance.below(19) as u8);
                Forget::PasidPages { domain, iova, order }
            }
            _ => {
                let iova = self.pick().1 & ((1 << self.mode.width()) - 1);
                let (order, leaf_only) = (self.chance.below(19) as u8, self.chance.percent(50));
                Forget::Pages { domain, iova, order, leaf_only }
            }
        };
        self.forget(what)
    }

    /// Makes all units forget that cache anything.
    fn forget(&mut self, what: Forget) -> Result<()> {
        let Self { rig, twin, greedy, queue, .. } = self;
        let units: [&mut dyn Registers; 3] = [rig, twin, greedy];
        let before = *queue;
        for (unit, name) in units.into_iter().zip(["QEMU", "the twin", "the greedy unit"]) {
            match before {
                Some(before) => *queue = Some(before.forget(unit, what).context(name)?),
                None => program::forget(unit, what).context(name)?,
            }
        }
        Ok(())
    }

    /// From here on, invalidations go through the queue.
    fn start_queue(&mut self) -> Result<()> {
        let queue = Queue::new(self.mode == Mode::FirstStage, self.mode.is_scalable());
        let Self { rig, twin, greedy, .. } = self;
        let units: [&mut dyn Registers; 3] = [rig, twin, greedy];
        units.into_iter().try_for_each(|unit| queue.start(unit))?;
        self.queue = Some(queue);
        Ok(())
    }

    /// The domain id that a source had at the last full invalidation, or one that is not in use.
    fn domain_of(&self, source: SourceId) -> u16 {
        let device = SOURCES.iter().position(|&s| s == source);
        device.and_then(|device| self.domains[device]).unwrap_or(1)
    }

    /// One request of every source, so that each unit has seen each context before it changes. (QEMU looks at contexts
    /// for pass-through whenever they are invalidated.)
    fn touch(&mut self) -> Result<()> {
        for device in 0..SOURCES.len() {
            let iova = self.tables.iova();
            self.request(device, iova, false)?;
        }
        Ok(())
    }

    fn requests(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let (device, iova) = self.pick();
            let write = self.chance.percent(50);
            self.request(device, iova, write)?;
        }
        Ok(())
    }

    /// A request that reached memory, if there was one.
    fn reached_before(&mut self) -> (usize, u64) {
        if self.reached.is_empty() {
            return self.pick();
        }
        let i = self.chance.below(self.reached.len() as u64) as usize;
        self.reached[i]
    }

    /// A request that was made before, or a new one.
    fn pick(&mut self) -> (usize, u64) {
        if let Some(focus) = self.focus.filter(|_| self.chance.percent(15)) {
            return focus;
        }
        if !self.asked.is_empty() && self.chance.percent(65) {
            let i = self.chance.below(self.asked.len() as u64) as usize;
            return self.asked[i];
        }
        let new = (self.chance.below(SOURCES.len() as u64) as usize, self.tables.iova());
        self.asked.push(new);
        new
    }

    fn request(&mut self, device: usize, iova: u64, write: bool) -> Result<()> {
        let source = SOURCES[device];
        let fresh = [&mut self.now, &mut self.before].map(|unit| {
            unit.forget_everything();
            unit.request(source, iova, 8, write)
        });
        self.domains[device] = fresh[1].domain;
        let (reads, writes) = self.used[device];
        if fresh.iter().any(goes_astray) || reads == READ_SLOTS || writes == SLOTS - READ_SLOTS {
            return Ok(());
        }
        let twin = self.twin.request(source, iova, 8, write);
        let greedy = self.greedy.request(source, iova, 8, write);
        for (name, answer) in [("twin", twin), ("greedy unit", greedy)] {
            if !fresh.iter().any(|f| (f.outcome, f.fault) == (answer.outcome, answer.fault)) {
                self.complain(format!(
                    "{source} {iova:#x} write {write}: the {name} says {answer:?}, tables {fresh:?}"
                ));
            }
        }
        if matches!(twin.outcome, Outcome::To(_)) && twin.fault.is_none() {
            self.reached.push((device, iova));
        }
        let slot = if write { READ_SLOTS + writes } else { reads };
        *(if write { &mut self.used[device].1 } else { &mut self.used[device].0 }) += 1;
        let seen = self.rig.request(device, iova, slot, write)?;
        let expected = shown(&mut self.twin);
        self.tally.requests += 1;
        self.tally.stale +=
            u64::from(twin.cached && (twin.outcome, twin.fault) != (fresh[0].outcome, fresh[0].fault));
        let mut case = Case {
            number: self.tally.requests,
            source,
            iova,
            write,
            twin,
            expected,
            seen,
            expected_word: None,
            seen_word: None,
        };
        self.clear_faults(&seen)?;
        if write {
            self.look_for_written(&mut case, tag(device, slot))?;
            self.judge(&case);
        } else {
            case.expected_word = match twin.outcome {
                Outcome::To(at) => self.content(at),
                Outcome::NoMemory | Outcome::Refused => None,
            };
            self.reads.push((device, slot, case));
        }
        Ok(())
    }

    /// The word that memory holds at `at`, if there is memory.
    fn content(&self, at: u64) -> Option<u64> {
        if (DATA..MEMORY).contains(&at) { Some(at) } else { self.twin.load(at).ok() }
    }

    /// Looks where the twin says that a write landed, and puts back what was there.
    fn look_for_written(&mut self, case: &mut Case, tag: u64) -> Result<()> {
        let Outcome::To(at) = case.twin.outcome else { return Ok(()) };
        let Some(content) = self.content(at) else { return Ok(()) };
        case.expected_word = Some(tag);
        case.seen_word = Some(self.rig.word(at)?);
        self.rig.store(at, content)
    }

    fn clear_faults(&mut self, seen: &Recorded) -> Result<()> {
        let clear = |unit: &mut dyn Registers, record: u64| {
            unit.write(record + 8, 8, FaultRecord::ZERO.with_f(true).raw()[1])?;
            unit.write(offset::FSTS, 4, Fsts::ZERO.with_pfo(true).raw().into())
        };
        let record = record_offset(&mut self.twin);
        clear(&mut self.twin, record)?;
        clear(&mut self.greedy, record)?;
        clear(&mut self.now, record)?;
        clear(&mut self.before, record)?;
        if seen.status.raw() != 0 { clear(&mut self.rig, record) } else { Ok(()) }
    }

    fn judge(&mut self, case: &Case) {
        let agrees = case.expected.meaning() == case.seen.meaning() && case.expected_word == case.seen_word;
        if !agrees {
            match KNOWN.iter().find(|known| (known.explains)(self.mode, case)) {
                Some(known) => *self.tally.known.entry(known.name).or_default() += 1,
                None => self.complain(case.to_string()),
            }
        }
        match (case.twin.outcome, case.twin.fault) {
            (Outcome::To(_), _) => self.tally.translated += 1,
            (_, Some((reason, true))) => *self.tally.faulted.entry(reason.0).or_default() += 1,
            (_, Some((_, false))) => self.tally.quiet += 1,
            (_, None) => self.tally.interrupts += 1,
        }
    }

    fn complain(&mut self, message: String) {
        if self.tally.disagreements.len() < MESSAGES_MAX {
            self.tally.disagreements.push(message);
        }
    }

    /// Compares all tables, with the accessed and dirty bits that the units wrote.
    fn compare_tables(&mut self) -> Result<()> {
        for (at, seen) in (ARENA..).step_by(8).zip(self.rig.words(ARENA, ARENA + ARENA_BYTES)?) {
            let expected = self.twin.load(at).unwrap_or(0);
            if seen != expected {
                let number = self.tally.requests;
                self.complain(format!(
                    "after {number}: the entry at {at:#x} is {seen:#x}, the twin's {expected:#x}"
                ));
            }
        }
        Ok(())
    }

    /// Fills the devices' buffers: zeroes to read into, tags to write.
    fn load_buffers(&mut self) -> Result<()> {
        for device in 0..SOURCES.len() {
            let mut words = [0; SLOTS];
            for (slot, word) in words.iter_mut().enumerate().skip(READ_SLOTS) {
                *word = tag(device, slot);
            }
            self.rig.fill_buffer(device, &words)?;
        }
        self.used = Default::default();
        Ok(())
    }

    /// Fetches what the devices read, and judges it.
    fn unload_buffers(&mut self) -> Result<()> {
        let mut buffers = Vec::new();
        for device in 0..SOURCES.len() {
            buffers.push(self.rig.buffer(device)?);
        }
        for (device, slot, mut case) in std::mem::take(&mut self.reads) {
            // What nothing answered reads as zero.
            case.seen_word =
                Some(buffers[device][slot]).filter(|&word| word != 0 || case.expected_word == Some(0));
            self.judge(&case);
        }
        Ok(())
    }
}

fn store(unit: &mut Probe, words: &Words) -> Result<()> {
    for (&at, &word) in words {
        ensure!(unit.store(at, word).is_ok(), "no memory for a table at {at:#x}");
    }
    Ok(())
}

fn record_offset(unit: &mut Probe) -> u64 {
    Cap::from_raw(unit.read(offset::CAP, 8)).fault_record_offset(0)
}

/// What a unit's fault registers show.
fn shown(unit: &mut Probe) -> Recorded {
    let record = record_offset(unit);
    let words = [unit.read(record, 8), unit.read(record + 8, 8)];
    let status = Fsts::from_raw(unit.read(offset::FSTS, 4) as u32);
    Recorded { status, record: FaultRecord::from_raw(words) }
}

/// Whether the request would reach something that is not for it: firmware's memory, devices.
fn goes_astray(answer: &Answer) -> bool {
    match answer.outcome {
        Outcome::To(at) => at < MEMORY_START || (0x8000_0000..1 << 32).contains(&at),
        Outcome::NoMemory | Outcome::Refused => false,
    }
}

/// What a device writes out of a slot. Should it reach the interrupt range it is a harmless message: the processor takes
/// none, and no bits ask for a delivery mode.
fn tag(device: usize, slot: usize) -> u64 {
    let word = (device as u64 + 1) << 24 | (slot as u64) << 16 | 0x40;
    word << 32 | word
}
