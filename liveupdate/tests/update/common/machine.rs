//! The host: memory, marks with counts, and failures on demand.

use super::unit::{Blocked, FakeUnit};
use liveupdate::Container;
use liveupdate::host::{
    Adoptable, Atomic, DeviceTlb, Forget, FrameKeeper, Host, KeepError, Level, MaySleep, NoMemory,
    PageRequests, RequesterKind, TableMemory, TimedOut,
};
use spec::{Extent, Frame, PhysAddr, Requester, SourceId, UnitId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What the core did, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Write { at: u64, before: u64, after: u64 },
    Forget(UnitId, Forget),
    Disable(UnitId),
    ForgetDevice(UnitId, SourceId),
    ForgetDevicePasid(UnitId, SourceId, u32),
    DeviceOff(Requester),
    ForgetInterrupts(UnitId),
    StopPages(Requester),
    ResumePages(Requester),
    InterruptsOff(UnitId),
    Reserve(Extent),
    Commit(Extent),
    Release(Extent),
    Allocate(u64),
    Free(Extent),
    GiveBack(Extent),
}

pub type Page = Box<[u64; 512]>;

/// What machine and units share.
#[derive(Default)]
pub struct Shared {
    pub frames: RefCell<BTreeMap<u64, Page>>,
    /// Locks held.
    pub depth: Cell<u32>,
    /// Devices that do not answer invalidations.
    pub silent: RefCell<BTreeSet<SourceId>>,
    steps: RefCell<Vec<Step>>,
}

impl Shared {
    pub fn word(&self, at: PhysAddr) -> Option<u64> {
        let frames = self.frames.borrow();
        frames.get(&at.frame().number()).map(|page| page[(at.get() % 4096 / 8) as usize])
    }
    /// A store by somebody else than the core.
    pub fn set(&self, at: PhysAddr, value: u64) {
        let mut frames = self.frames.borrow_mut();
        frames.get_mut(&at.frame().number()).unwrap()[(at.get() % 4096 / 8) as usize] = value;
    }
    pub fn step(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}

/// Everything that must be as before after something was undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub frames: BTreeMap<u64, Page>,
    pub reservations: Vec<(Extent, bool)>,
    pub holds: BTreeMap<u64, u32>,
}

pub const POISON: u64 = 0xdead_dead_dead_dead;

pub struct Machine {
    pub shared: Rc<Shared>,
    pub units: Vec<FakeUnit>,
    /// Source-ids behind another unit than the first.
    pub behind: RefCell<BTreeMap<SourceId, usize>>,
    pub functions: RefCell<BTreeSet<Requester>>,
    pub aliases: RefCell<BTreeMap<Requester, Vec<SourceId>>>,
    /// Functions whose ATS is on.
    pub device_tlbs: RefCell<BTreeMap<Requester, DeviceTlb>>,
    /// Page requests are stopped when asked to; and that time, they are not.
    pub stops_pages: Cell<bool>,
    pub pages_hang: Cell<bool>,
    /// Runs reserved, and whether they were committed.
    pub reservations: RefCell<Vec<(Extent, bool)>>,
    pub holds: RefCell<BTreeMap<u64, u32>>,
    pub logged: RefCell<Vec<String>>,
    pub clock: Cell<u64>,
    pub adoptable: Cell<Adoptable>,
    /// The reservation (allocation) that fails, counted down to zero.
    pub fail_reserve: Cell<Option<u32>>,
    pub fail_allocate: Cell<Option<u32>>,
    /// A store that happens while the next reservation sleeps.
    pub at_reserve: Cell<Option<(PhysAddr, u64)>>,
    /// Where [`FrameKeeper::allocate`] goes on.
    pub next_allocation: Cell<u64>,
    next_table: Cell<u64>,
}

impl Machine {
    /// A machine with so many units, each with an empty root table and translation on.
    pub fn new(units: u64) -> Self {
        let shared = Rc::new(Shared::default());
        let mut machine = Self {
            shared: Rc::clone(&shared),
            units: Vec::new(),
            behind: RefCell::default(),
            functions: RefCell::default(),
            device_tlbs: RefCell::default(),
            aliases: RefCell::default(),
            stops_pages: Cell::new(false),
            pages_hang: Cell::new(false),
            reservations: RefCell::default(),
            holds: RefCell::default(),
            logged: RefCell::default(),
            clock: Cell::new(1_000_000_000),
            adoptable: Cell::new(Adoptable::EVERYTHING),
            fail_reserve: Cell::new(None),
            fail_allocate: Cell::new(None),
            at_reserve: Cell::new(None),
            next_allocation: Cell::new(0x4_0000),
            next_table: Cell::new(0x1000),
        };
        for index in 0..units {
            let root = machine.table();
            machine.units.push(FakeUnit::new(index, root, Rc::clone(&shared)));
        }
        machine
    }

    /// A zeroed frame for a table.
    pub fn table(&self) -> PhysAddr {
        let number = self.next_table.replace(self.next_table.get() + 1);
        self.shared.frames.borrow_mut().insert(number, Box::new([0; 512]));
        Frame::new(number).start()
    }

    /// Skips a frame, so that the next table does not touch the last.
    pub fn skip_table(&self) {
        self.next_table.set(self.next_table.get() + 1);
    }

    /// Memory with a pattern.
    pub fn ram(&self, run: Extent) {
        for number in run.first().number()..run.end().number() {
            self.shared.frames.borrow_mut().insert(number, Box::new([number ^ 0x5555; 512]));
        }
    }

    pub fn get(&self, at: PhysAddr) -> u64 {
        self.shared.word(at).unwrap()
    }

    /// A store by somebody else than the core.
    pub fn set(&self, at: PhysAddr, value: u64) {
        self.shared.set(at, value);
    }

    pub fn dma(&self, source: SourceId, iova: u64) -> Result<u64, Blocked> {
        let unit = self.behind.borrow().get(&source).copied().unwrap_or(0);
        self.units[unit].dma(source, iova)
    }

    pub fn request(&self, source: SourceId, pasid: Option<u32>, iova: u64) -> Result<u64, Blocked> {
        let unit = self.behind.borrow().get(&source).copied().unwrap_or(0);
        self.units[unit].request(source, pasid, iova)
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut reservations = self.reservations.borrow().clone();
        reservations.sort_unstable();
        Snapshot {
            frames: self.shared.frames.borrow().clone(),
            reservations,
            holds: self.holds.borrow().clone(),
        }
    }

    /// The steps since the last call.
    pub fn take_steps(&self) -> Vec<Step> {
        self.shared.steps.take()
    }

    /// Frames that are marked preserved.
    pub fn marked(&self) -> BTreeSet<u64> {
        let reservations = self.reservations.borrow();
        let committed = reservations.iter().filter(|(_, committed)| *committed);
        committed.flat_map(|(run, _)| run.first().number()..run.end().number()).collect()
    }

    /// The jump: the next kernel knows nothing, and everything that is not preserved is overwritten. What is preserved is
    /// read with the auditor's eyes.
    pub fn jump(&self, container: &Container) {
        let mut kept = BTreeSet::new();
        let map = audit::kho::PreservedMap::open(self, self.map_of(container)).unwrap();
        for run in map.extents() {
            let run = run.unwrap();
            kept.extend(run.first().number()..run.end().number());
        }
        for (number, page) in self.shared.frames.borrow_mut().iter_mut() {
            if !kept.contains(number) {
                page.fill(POISON);
            }
        }
        self.reservations.take();
        self.holds.take();
        self.take_steps();
        self.next_allocation.set(0x8_0000);
    }

    pub fn map_of(&self, container: &Container) -> PhysAddr {
        let mut page = [0; 512];
        self.read_words(container.fdt, &mut page).unwrap();
        let bytes: Vec<u8> = page.iter().flat_map(|w| w.to_le_bytes()).collect();
        spec::kho::Root::parse(&bytes).unwrap().memory_map()
    }

    fn may_sleep(&self, what: &str) {
        assert_eq!(self.shared.depth.get(), 0, "{what} sleeps while a unit's lock is held");
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("logged", &self.logged).finish_non_exhaustive()
    }
}

/// Counts down; whether this one fails.
fn fails(countdown: &Cell<Option<u32>>) -> bool {
    let left = countdown.get();
    countdown.set(left.and_then(|n| n.checked_sub(1)));
    left == Some(0)
}

impl audit::Image for Machine {
    fn read(&self, at: PhysAddr, out: &mut [u64]) -> Result<(), audit::Missing> {
        self.read_words(at, out).map_err(|e| audit::Missing { at: e.at })
    }
}

impl TableMemory for Machine {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        assert!(at.is_aligned(8), "{at} is not aligned");
        self.shared.word(at).ok_or(NoMemory { at })
    }

    fn write(&self, at: PhysAddr, after: u64) -> Result<(), NoMemory> {
        let before = TableMemory::read(self, at)?;
        self.set(at, after);
        self.shared.step(Step::Write { at: at.get(), before, after });
        Ok(())
    }
}

impl FrameKeeper for Machine {
    fn reserve(&self, _: &mut MaySleep, run: Extent) -> Result<(), KeepError> {
        self.may_sleep("reserve");
        if let Some((at, value)) = self.at_reserve.take() {
            self.set(at, value);
        }
        if fails(&self.fail_reserve) {
            return Err(KeepError::NoMemory { frames: run.count() });
        }
        self.reservations.borrow_mut().push((run, false));
        self.shared.step(Step::Reserve(run));
        Ok(())
    }

    fn commit(&self, _: &Atomic, run: Extent) {
        let mut reservations = self.reservations.borrow_mut();
        let found = reservations.iter_mut().find(|r| **r == (run, false));
        found.expect("commit follows a reservation of just this run").1 = true;
        self.shared.step(Step::Commit(run));
    }

    fn release(&self, _: &mut MaySleep, run: Extent) {
        if std::thread::panicking() {
            return; // a guard undoes: the first panic tells more than a second one, which would abort
        }
        self.may_sleep("release");
        let mut reservations = self.reservations.borrow_mut();
        let found = reservations.iter().rposition(|(r, _)| *r == run);
        reservations.remove(found.expect("only what was reserved is released"));
        self.shared.step(Step::Release(run));
    }

    fn allocate(&self, _: &mut MaySleep, count: u64) -> Result<Extent, KeepError> {
        self.may_sleep("allocate");
        if fails(&self.fail_allocate) {
            return Err(KeepError::NoMemory { frames: count });
        }
        let first = self.next_allocation.replace(self.next_allocation.get() + count);
        let run = Extent::new(Frame::new(first), count).unwrap();
        for number in first..first + count {
            self.shared.frames.borrow_mut().insert(number, Box::new([0; 512]));
        }
        self.shared.step(Step::Allocate(count));
        Ok(run)
    }

    fn free(&self, _: &mut MaySleep, run: Extent) {
        self.may_sleep("free");
        for number in run.first().number()..run.end().number() {
            self.shared.frames.borrow_mut().remove(&number).expect("freed once");
        }
        self.next_allocation.set(run.first().number());
        self.shared.step(Step::Free(run));
    }
}

impl PageRequests for Machine {
    fn stop(&self, _: &mut MaySleep, requester: Requester) -> Result<(), TimedOut> {
        self.may_sleep("stop page requests");
        self.shared.step(Step::StopPages(requester));
        if self.pages_hang.get() {
            return Err(TimedOut { unit: self.units[0].id, what: "the drain of page requests", waited: 100 });
        }
        let entry = self.scalable_words(0, requester.source);
        self.put_scalable(0, requester.source, entry.with_pre(false));
        Ok(())
    }
    fn resume(&self, _: &mut MaySleep, requester: Requester) -> Result<(), TimedOut> {
        self.may_sleep("resume page requests");
        self.shared.step(Step::ResumePages(requester));
        let entry = self.scalable_words(0, requester.source);
        self.put_scalable(0, requester.source, entry.with_pre(true));
        Ok(())
    }
}

impl Host for Machine {
    type Unit = FakeUnit;

    fn unit(&self, id: UnitId) -> Option<&FakeUnit> {
        self.units.iter().find(|u| u.id == id)
    }
    fn for_each_unit(&self, f: &mut dyn FnMut(&FakeUnit)) {
        self.units.iter().for_each(f);
    }
    fn unit_for(&self, requester: Requester) -> Option<&FakeUnit> {
        let index = self.behind.borrow().get(&requester.source).copied().unwrap_or(0);
        self.units.get(index).filter(|u| u.id.segment == requester.segment)
    }
    fn give_back(&self, _: &mut MaySleep, run: Extent) {
        self.may_sleep("give_back");
        self.shared.step(Step::GiveBack(run));
    }
    fn device_tlb(&self, requester: Requester) -> Option<DeviceTlb> {
        self.device_tlbs.borrow().get(&requester).copied()
    }
    fn device_tlb_off(&self, _: &Atomic, requester: Requester) -> bool {
        self.device_tlbs.borrow_mut().remove(&requester).expect("ATS was on");
        self.shared.step(Step::DeviceOff(requester));
        true
    }
    fn page_requests(&self) -> Option<&dyn PageRequests> {
        if self.stops_pages.get() { Some(self) } else { None }
    }
    fn adoptable(&self) -> Adoptable {
        self.adoptable.get()
    }
    fn now(&self) -> u64 {
        self.clock.replace(self.clock.get() + 1000)
    }
    fn log(&self, _: Level, message: std::fmt::Arguments<'_>) {
        self.may_sleep("the log");
        self.logged.borrow_mut().push(message.to_string());
    }
    fn hold_mappings(&self, _: &mut MaySleep, top_table: PhysAddr, held: bool) {
        self.may_sleep("hold_mappings");
        let mut holds = self.holds.borrow_mut();
        if held {
            *holds.entry(top_table.get()).or_default() += 1;
        } else {
            let count = holds.get_mut(&top_table.get()).expect("only what is held is let go");
            *count -= 1;
            if *count == 0 {
                holds.remove(&top_table.get());
            }
        }
    }
    fn aliases(&self, requester: Requester, f: &mut dyn FnMut(SourceId)) -> RequesterKind {
        self.may_sleep("the enumeration of aliases");
        if !self.functions.borrow().contains(&requester) {
            return RequesterKind::Other;
        }
        self.aliases.borrow().get(&requester).into_iter().flatten().for_each(|s| f(*s));
        RequesterKind::PciFunction
    }
}
