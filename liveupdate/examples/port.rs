//! The smallest port: everything that a kernel writes to carry one device's DMA across a change of kernel.
//!
//! Run it: `cargo run -p holdover-liveupdate --example port`. It plays both kernels in one process, over tables in a
//! vector. In a kernel, `Ram` is its direct map, `Unit` wraps its VT-d driver, and `FrameKeeper` its kexec handover.

use core::cell::RefCell;
use core::fmt;
use liveupdate::host::{
    Adoptable, Atomic, Forget, Forgotten, FrameKeeper, Host, KeepError, Level, MaySleep, NoMemory,
    RequesterKind, TableMemory, TimedOut, Unit,
};
use liveupdate::{DomainTablesOf, FreezeInput, Outgoing, RegionKind, Room, Stage, Token};
use spec::context::ContextEntry;
use spec::regs::{Cap, Ecap, Gsts, RootAddr};
use spec::root::RootEntry;
use spec::second_stage::SecondStageEntry;
use spec::{DomainId, Extent, Frame, PhysAddr, Requester, Segment, SourceId, UnitId};
use std::collections::BTreeSet;

/// The device: 00:02.0. Its tables and memory are at fixed frames here.
const DEVICE: Requester = Requester::new(Segment(0), SourceId::new(0, 2, 0));
const ROOT: Frame = Frame::new(16);
const CONTEXTS: Frame = Frame::new(17);
const TABLES: [Frame; 3] = [Frame::new(18), Frame::new(19), Frame::new(20)];
const GUEST: Frame = Frame::new(32);

// --- 1. Memory: tables and records are read and written through this.

struct Ram(RefCell<Vec<u64>>);

impl TableMemory for Ram {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.0.borrow().get(at.get() as usize / 8).copied().ok_or(NoMemory { at })
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        let mut ram = self.0.borrow_mut();
        *ram.get_mut(at.get() as usize / 8).ok_or(NoMemory { at })? = value;
        Ok(())
    }
}

// --- 2. A unit: registers and invalidation, which your driver has already.

struct Vtd;

impl Unit for Vtd {
    fn id(&self) -> UnitId {
        UnitId { segment: Segment(0), register_base: 0xfed9_0000 }
    }
    fn cap(&self) -> Cap {
        Cap::ZERO.with_nd(6).with_sagaw(0b10).with_mgaw(38)
    }
    fn ecap(&self) -> Ecap {
        Ecap::ZERO.with_c(true)
    }
    fn status(&self) -> Gsts {
        Gsts::ZERO.with_tes(true).with_rtps(true)
    }
    fn root(&self) -> RootAddr {
        RootAddr::ZERO.with_rta(ROOT.number())
    }
    fn forget(&self, _: &Atomic, _: Forget) -> Result<Forgotten, TimedOut> {
        Ok(Forgotten::observed()) // put descriptors into your queue, and wait for the last
    }
    fn disable(&self, _: &Atomic) -> Result<(), TimedOut> {
        Ok(())
    }
    fn locked<R>(&self, ctx: &mut MaySleep, f: impl FnOnce(&Atomic) -> R) -> R {
        ctx.atomic(f) // take your lock around this
    }
}

// --- 3. The kernel as a host.

struct Kernel<'m> {
    ram: &'m Ram,
    unit: Vtd,
    /// Frames that nobody uses.
    free: RefCell<BTreeSet<u64>>,
    /// Runs that are preserved, or will be: in a kernel, what it tells its kexec handover.
    kept: RefCell<BTreeSet<Extent>>,
}

impl<'m> Kernel<'m> {
    fn new(ram: &'m Ram) -> Self {
        let free = RefCell::new((64..512).collect());
        Self { ram, unit: Vtd, free, kept: RefCell::default() }
    }
}

impl TableMemory for Kernel<'_> {
    fn read(&self, at: PhysAddr) -> Result<u64, NoMemory> {
        self.ram.read(at)
    }
    fn write(&self, at: PhysAddr, value: u64) -> Result<(), NoMemory> {
        self.ram.write(at, value)
    }
}

impl FrameKeeper for Kernel<'_> {
    fn reserve(&self, _: &mut MaySleep, run: Extent) -> Result<(), KeepError> {
        // The part that may sleep and fail: room in the books.
        if self.kept.borrow_mut().insert(run) { Ok(()) } else { Err(KeepError::NotKeepable(run)) }
    }
    fn commit(&self, _: &Atomic, run: Extent) {
        println!("outgoing: {run} is preserved");
    }
    fn release(&self, _: &mut MaySleep, run: Extent) {
        self.kept.borrow_mut().remove(&run);
    }
    fn allocate(&self, _: &mut MaySleep, count: u64) -> Result<Extent, KeepError> {
        let mut free = self.free.borrow_mut();
        let fits = |first: &u64| (*first..*first + count).all(|frame| free.contains(&frame));
        let first = free.iter().copied().find(fits).ok_or(KeepError::NoMemory { frames: count })?;
        free.retain(|frame| !(first..first + count).contains(frame));
        Extent::new(Frame::new(first), count).ok_or(KeepError::NoMemory { frames: count })
    }
    fn free(&self, _: &mut MaySleep, run: Extent) {
        self.free.borrow_mut().extend(run.first().number()..run.end().number());
    }
}

impl Host for Kernel<'_> {
    type Unit = Vtd;

    fn unit(&self, id: UnitId) -> Option<&Vtd> {
        Some(&self.unit).filter(|u| u.id() == id)
    }
    fn for_each_unit(&self, f: &mut dyn FnMut(&Vtd)) {
        f(&self.unit);
    }
    fn unit_for(&self, _: Requester) -> Option<&Vtd> {
        Some(&self.unit)
    }
    fn give_back(&self, ctx: &mut MaySleep, run: Extent) {
        println!("incoming: {run} is free again");
        self.free(ctx, run);
    }
    fn adoptable(&self) -> Adoptable {
        Adoptable::LEGACY
    }
    fn now(&self) -> u64 {
        0
    }
    fn log(&self, _: Level, message: fmt::Arguments<'_>) {
        println!("{message}");
    }
    fn hold_mappings(&self, _: &mut MaySleep, _: PhysAddr, held: bool) {
        println!("outgoing: the domain {} map and unmap", if held { "refuses" } else { "takes" });
    }
    fn aliases(&self, _: Requester, _: &mut dyn FnMut(SourceId)) -> RequesterKind {
        RequesterKind::PciFunction
    }
}

/// Stands for your driver: one device attached to one domain that maps one page.
fn build_tables(ram: &Ram) -> Result<(), NoMemory> {
    let root = RootEntry::ZERO.with_present(true).with_ctp(CONTEXTS.number());
    ram.write(ROOT.start(), root.raw()[0])?;
    let [top, middle, bottom] = TABLES;
    let context =
        ContextEntry::ZERO.with_present(true).with_ssptptr(top.number()).with_aw(1).with_did(7).raw();
    let at = CONTEXTS.start().plus(16 * u64::from(DEVICE.source.devfn()));
    ram.write(at, context[0])?;
    ram.write(at.plus(8), context[1])?;
    let entry = |frame: Frame| SecondStageEntry::ZERO.with_r(true).with_w(true).with_addr(frame.number());
    ram.write(top.start(), entry(middle).raw())?;
    ram.write(middle.start(), entry(bottom).raw())?;
    ram.write(bottom.start(), entry(GUEST).raw())
}

fn outgoing(ram: &Ram) -> Result<PhysAddr, Box<dyn std::error::Error>> {
    let kernel = Kernel::new(ram);
    let mut ctx = MaySleep::at_thread_start();
    build_tables(ram)?;

    let mut room = Room::<4>::new(); // in a kernel: taken once, at the size you want to allow
    let mut update = Outgoing::new(&kernel, room.storage());
    update.preserve_region(&mut ctx, Token(1), Extent::one(GUEST), RegionKind::Memory)?;
    let domain = DomainTablesOf {
        top_table: TABLES[0].start(),
        stage: Stage::Second,
        levels: 3,
        parent: None,
        runs: &[],
    };
    update.preserve_domain(&mut ctx, Token(2), domain)?;
    update.preserve_requester(&mut ctx, Token(3), DEVICE)?;

    let scratch = [Extent::new(Frame::new(1024), 64).ok_or("scratch")?];
    let input = FreezeInput {
        release: "1.0",
        update: 1,
        scratch: &scratch,
        reserved: liveupdate::ReservedMemory::CutOff(&[]),
        successor: Adoptable::LEGACY, // as its image says
    };
    let mut words = vec![0; 1 << 14];
    let sealed = update
        .freeze(&mut ctx, &input, &mut audit::Scratch::new(&mut words), &mut |f| println!("{f}"))
        .map_err(|refused| refused.why)?;
    println!("outgoing: sealed, digest {:#x}", sealed.container.digest);

    let atomic = Atomic::for_good(ctx); // one CPU, interrupts off
    let cut_off = sealed.cut_off(&atomic, &mut |_| {});
    Ok(cut_off.container.fdt) // hand it over, and jump
}

fn incoming(ram: &Ram, fdt: PhysAddr) -> Result<(), Box<dyn std::error::Error>> {
    let mut room = Room::<4>::new();
    let opened = liveupdate::open(ram, fdt, room.storage())?;
    opened.for_each_preserved(ram, &mut |run| println!("incoming: {run} is reserved"))?;

    // Your driver takes the running unit over here: a new queue, nothing else.
    let kernel = Kernel::new(ram);
    opened.for_each_preserved(ram, &mut |run| {
        kernel.free.borrow_mut().retain(|frame| !run.contains(Frame::new(*frame)));
    })?;
    let mut ctx = MaySleep::at_thread_start();
    let mut words = vec![0; 1 << 14];
    let checked =
        opened.check(&kernel, &mut audit::Scratch::new(&mut words), &mut |finding| println!("{finding}"))?;
    let mut reserve = |_: UnitId, id: DomainId| {
        println!("incoming: domain id {id} is reserved");
        true
    };
    let mut incoming = checked.adopt(&kernel, &mut ctx, &mut reserve, &mut |_| {});
    let guest = incoming.retrieve_region(Token(1))?;
    let domain = incoming.retrieve_domain(Token(2))?;
    let device = incoming.retrieve_requester(Token(3))?;
    println!("incoming: {} goes on, guest memory {guest}, top table {}", device.requester, domain.top_table);
    incoming.finish(&mut ctx, &mut |_| {});
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ram = Ram(RefCell::new(vec![0; 4096 * 512]));
    let fdt = outgoing(&ram)?;
    incoming(&ram, fdt)
}
