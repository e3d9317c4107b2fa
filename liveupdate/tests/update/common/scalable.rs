//! What tests of scalable mode start from: requesters in both halves of a bus, with PASIDs of every kind.
//!
//! | who | PASID | domain | what |
//! |---|---|---|---|
//! | 00:02.0 | without: 0 | guest, second stage, id 7 | preserved |
//! | | 5 | shared, first stage, id 8 | preserved |
//! | | 70 | process, first stage below guest, id 9 | preserved |
//! | | 6 | other, id 10 | not preserved, in a table that stays |
//! | | 300 | other, id 10 | not preserved, in a table of its own |
//! | 03:10.0 (upper half; the bus has no lower) | without: 1 | shared, id 8 | preserved; its directory takes two frames |
//! | 00:12.0 (upper half) | without: 0 | other, id 10 | not preserved, alone in its half |
//! | 00:04.0 | without: 0 | other, id 10 | not preserved |
//! | 00:05.0 | without: 0 | guest, id 7 | not preserved; shares a preserved domain |
//! | 01:00.0 | without: 0 | nothing: pass-through | not preserved, on no list |

use super::machine::Machine;
use super::tables::Tables;
use super::{Store, extent, requester};
use liveupdate::host::{Atomic, MaySleep};
use liveupdate::{Container, CutOffEvent, DomainTablesOf, Outgoing, RegionKind, Token};
use spec::root::RootEntry;
use spec::scalable::{
    PasidDirectoryEntry, PasidEntry, ScalableContextEntry, directory_index, pasid_type, table_index,
};
use spec::{Extent, PhysAddr, SourceId};

pub const GUEST_MEMORY: Token = Token(0x8000_0000_0000_0001);
pub const SHARED_MEMORY: Token = Token(0x2);
pub const GUEST_DOMAIN: Token = Token(0xffff_ffff_0000_0010);
pub const SHARED_DOMAIN: Token = Token(0x11);
pub const PROCESS_DOMAIN: Token = Token(0x12);
pub const NIC: Token = Token(0x20);
pub const GPU: Token = Token(0x21);

pub const NIC_SOURCE: SourceId = SourceId::new(0, 2, 0);
pub const GPU_SOURCE: SourceId = SourceId::new(3, 0x10, 0);
pub const UPPER: SourceId = SourceId::new(0, 0x12, 0);
pub const OTHER: SourceId = SourceId::new(0, 4, 0);
pub const SHARING: SourceId = SourceId::new(0, 5, 0);
pub const UNLISTED: SourceId = SourceId::new(1, 0, 0);
/// Everybody who must be cut off.
pub const STRANGERS: [SourceId; 4] = [UPPER, OTHER, SHARING, UNLISTED];

/// Where the domains map: the guest's memory, and what the process sees of it.
pub const IOVA: u64 = 0x1000_0000;
pub const SHARED_IOVA: u64 = 0x7f00_0000_0000;
pub const PROCESS_IOVA: u64 = 0x40_0000_0000;
pub const SHARED_PASID: u32 = 5;
pub const PROCESS_PASID: u32 = 70;
/// PASIDs that nobody preserves: one in a table that stays, one in a table of its own.
pub const STRAY_PASIDS: [u32; 2] = [6, 300];

pub fn guest_memory() -> Extent {
    extent(0x1000_0000, 16)
}
pub fn shared_memory() -> Extent {
    extent(0x2000_0000, 4)
}
/// Where the page of the guest lies that the process maps, and where the process' tables begin.
pub const PROCESS_PAGE: u64 = 2;
pub const PROCESS_TABLES: u64 = 8;

/// The machine, its domains and directories.
pub struct Scene {
    pub machine: Machine,
    pub guest: Tables,
    pub shared: Tables,
    /// Below `guest`, in the guest's memory.
    pub process: Tables,
    pub other: Tables,
    pub nic: PhysAddr,
    pub gpu: PhysAddr,
}

impl Scene {
    pub fn new() -> Self {
        Self::with_directories(0, 1)
    }

    /// The sizes (PDTS) of the directories of both preserved requesters. The second takes two frames from 3 on.
    pub fn with_directories(nic: u64, gpu: u64) -> Self {
        Self::on(Machine::new(1), nic, gpu)
    }

    /// The same on the first unit of this machine.
    pub fn on(machine: Machine, nic: u64, gpu: u64) -> Self {
        machine.make_scalable(0);
        for memory in [guest_memory(), shared_memory(), extent(0x3000_0000, 4)] {
            machine.ram(memory);
        }
        let guest = machine.domain(4);
        machine.map(guest, IOVA, guest_memory());
        let shared = machine.first_stage(4);
        machine.map(shared, SHARED_IOVA, shared_memory());
        let other = machine.first_stage(5);
        machine.map(other, IOVA, extent(0x3000_0000, 4));
        let process = process_tables(&machine);
        let nic = machine.directory(nic);
        let gpu = machine.directory(gpu);
        let [a, b] = STRAY_PASIDS;
        machine.put_pasid(nic, 0, second(7, guest));
        machine.put_pasid(nic, SHARED_PASID, first(8, shared));
        machine.put_pasid(nic, PROCESS_PASID, nested(9, IOVA + 0x1000 * PROCESS_TABLES, guest));
        machine.put_pasid(nic, a, first(10, other));
        if b < 64 << (7 + nic.pdts()) {
            machine.put_pasid(nic, b, first(10, other));
        }
        machine.put_pasid(gpu, 1, first(8, shared));
        machine.put_scalable(0, NIC_SOURCE, nic);
        machine.put_scalable(0, GPU_SOURCE, gpu.with_rid_pasid(1));
        for (stranger, entry) in
            [(UPPER, first(10, other)), (OTHER, first(10, other)), (SHARING, second(7, guest))]
        {
            machine.attach_scalable(0, stranger, entry);
        }
        let through = PasidEntry::ZERO.with_present(true).with_aw(2).with_did(11);
        machine.attach_scalable(0, UNLISTED, through.with_pgtt(pasid_type::PASS_THROUGH));
        let functions = [NIC_SOURCE, GPU_SOURCE, UPPER, OTHER, SHARING].map(requester);
        machine.functions.borrow_mut().extend(functions);
        let (nic, gpu) = (nic.directory(), gpu.directory());
        Self { machine, guest, shared, process, other, nic, gpu }
    }

    /// The NIC's context entry.
    pub fn nic_context(&self) -> ScalableContextEntry {
        self.machine.scalable_words(0, NIC_SOURCE)
    }

    /// The process' domain as the core is told of it.
    pub fn process(&self) -> DomainTablesOf<'static> {
        DomainTablesOf { parent: Some(GUEST_DOMAIN), ..self.process.of() }
    }

    /// Preserves regions and domains.
    pub fn preserve_domains<'h, 's>(
        &'h self,
        store: &'s mut Store,
        ctx: &mut MaySleep,
    ) -> Outgoing<'h, 's, Machine> {
        let mut outgoing = Outgoing::new(&self.machine, store.storage());
        outgoing.preserve_region(ctx, GUEST_MEMORY, guest_memory(), RegionKind::Memory).unwrap();
        outgoing.preserve_region(ctx, SHARED_MEMORY, shared_memory(), RegionKind::Memory).unwrap();
        outgoing.preserve_domain(ctx, GUEST_DOMAIN, self.guest.of()).unwrap();
        outgoing.preserve_domain(ctx, SHARED_DOMAIN, self.shared.of()).unwrap();
        outgoing.preserve_domain(ctx, PROCESS_DOMAIN, self.process()).unwrap();
        outgoing
    }

    /// Preserves everything that shall go on.
    pub fn preserve<'h, 's>(&'h self, store: &'s mut Store, ctx: &mut MaySleep) -> Outgoing<'h, 's, Machine> {
        let mut outgoing = self.preserve_domains(store, ctx);
        outgoing.preserve_requester(ctx, NIC, requester(NIC_SOURCE)).unwrap();
        outgoing.preserve_pasid(ctx, NIC, SHARED_PASID).unwrap();
        outgoing.preserve_pasid(ctx, NIC, PROCESS_PASID).unwrap();
        outgoing.preserve_requester(ctx, GPU, requester(GPU_SOURCE)).unwrap();
        outgoing
    }

    /// Everything that is preserved moves data, and where it ends up is right.
    #[track_caller]
    pub fn all_is_well(&self) {
        let (guest, shared) = (guest_memory().start().get(), shared_memory().start().get());
        let request = |source, pasid, iova| self.machine.request(source, pasid, iova);
        assert_eq!(request(NIC_SOURCE, None, IOVA + 0x1234), Ok(guest + 0x1234));
        assert_eq!(request(NIC_SOURCE, Some(SHARED_PASID), SHARED_IOVA + 0x234), Ok(shared + 0x234));
        let page = guest + 0x1000 * PROCESS_PAGE;
        assert_eq!(request(NIC_SOURCE, Some(PROCESS_PASID), PROCESS_IOVA + 0x34), Ok(page + 0x34));
        assert_eq!(request(GPU_SOURCE, None, SHARED_IOVA + 0x3000), Ok(shared + 0x3000));
    }

    /// Everybody moves data, so that everything that can be cached is.
    pub fn exercise(&self) {
        self.all_is_well();
        for stranger in STRANGERS {
            self.machine.dma(stranger, IOVA).unwrap();
        }
        for pasid in STRAY_PASIDS {
            let _ = self.machine.request(NIC_SOURCE, Some(pasid), IOVA);
        }
    }

    /// Preserves, freezes, cuts off and jumps.
    pub fn update(&self) -> Container {
        self.update_with(&mut |_| ())
    }

    pub fn update_with(&self, report: &mut dyn FnMut(CutOffEvent)) -> Container {
        let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
        let outgoing = self.preserve(&mut store, &mut ctx);
        self.exercise();
        let sealed = super::scene::freeze(outgoing, &mut ctx).unwrap();
        let container = sealed.cut_off(&Atomic::for_good(ctx), report).container;
        self.machine.jump(&container);
        container
    }
}

/// Four tables in the guest's memory that map one page of it, all by the guest's addresses.
fn process_tables(machine: &Machine) -> Tables {
    let frame = |n: u64| guest_memory().start().plus(0x1000 * n);
    let guest_address = |n: u64| IOVA + 0x1000 * n;
    for n in PROCESS_TABLES..PROCESS_TABLES + 4 {
        (0..512).for_each(|word| machine.set(frame(n).plus(8 * word), 0));
    }
    for (n, level) in (PROCESS_TABLES..).zip((0..4).rev()) {
        let next = if level == 0 { PROCESS_PAGE } else { n + 1 };
        let at = frame(n).plus(8 * spec::second_stage::index(PROCESS_IOVA, level));
        machine.set(at, guest_address(next) | 0b111);
    }
    Tables { top: frame(PROCESS_TABLES), stage: liveupdate::Stage::First, levels: 4 }
}

pub fn second(did: u64, domain: Tables) -> PasidEntry {
    let entry = PasidEntry::ZERO.with_present(true).with_pgtt(pasid_type::SECOND_STAGE).with_did(did);
    entry.with_ssptptr(domain.top.get() >> 12).with_aw(u64::from(domain.levels) - 2)
}

pub fn first(did: u64, domain: Tables) -> PasidEntry {
    let entry = PasidEntry::ZERO.with_present(true).with_pgtt(pasid_type::FIRST_STAGE).with_did(did);
    entry.with_fsptptr(domain.top.get() >> 12).with_fspm(u64::from(domain.levels) - 4)
}

pub fn nested(did: u64, top: u64, parent: Tables) -> PasidEntry {
    second(did, parent).with_pgtt(pasid_type::NESTED).with_fsptptr(top >> 12)
}

impl Machine {
    /// From now on the unit runs in scalable mode, with everything that it can offer there.
    pub fn make_scalable(&self, unit: usize) {
        let unit = &self.units[unit];
        unit.root.set(unit.root.get().with_ttm(1));
        let ecap = unit.ecap.get().with_smts(true).with_ssts(true).with_fsts(true).with_nest(true);
        let ecap = ecap.with_pasid(true).with_pss(19).with_rps(true).with_pt(true).with_ssads(true);
        unit.ecap.set(ecap);
        unit.cap.set(unit.cap.get().with_fs1gp(true).with_fs5lp(true));
    }

    /// A context entry that leads to an empty directory of `2^(pdts + 7)` entries.
    pub fn directory(&self, pdts: u64) -> ScalableContextEntry {
        let first = self.table();
        for _ in 1..(8_u64 << (pdts + 7)).div_ceil(4096) {
            self.table();
        }
        let entry = ScalableContextEntry::ZERO.with_present(true).with_pasiddirptr(first.get() >> 12);
        entry.with_pdts(pdts).with_paside(true)
    }

    /// Where the entry of a PASID lies; its table is made.
    pub fn pasid_entry(&self, context: ScalableContextEntry, pasid: u32) -> PhysAddr {
        assert!(directory_index(pasid) < context.directory_entries());
        let at = context.directory().plus(8 * directory_index(pasid));
        let entry = PasidDirectoryEntry::from_raw(self.get(at));
        let table = if entry.present() { entry.table() } else { self.table() };
        self.set(at, entry.with_present(true).with_smptblptr(table.get() >> 12).raw());
        table.plus(64 * table_index(pasid))
    }

    pub fn put_pasid(&self, context: ScalableContextEntry, pasid: u32, entry: PasidEntry) {
        let at = self.pasid_entry(context, pasid);
        (0..).zip(entry.raw()).for_each(|(n, word)| self.set(at.plus(8 * n), word));
    }

    /// Where the context entry lies; its table is made.
    pub fn scalable_entry(&self, unit: usize, source: SourceId) -> PhysAddr {
        let at = self.root_entry(unit, source.bus()).plus(8 * u64::from(source.devfn() >> 7));
        let entry = RootEntry::from_raw([self.get(at), 0]);
        let table = if entry.present() { entry.context_table() } else { self.table() };
        self.set(at, entry.with_present(true).with_ctp(table.get() >> 12).raw()[0]);
        table.plus(32 * u64::from(source.devfn() & 0x7f))
    }

    pub fn scalable_words(&self, unit: usize, source: SourceId) -> ScalableContextEntry {
        let at = self.scalable_entry(unit, source);
        ScalableContextEntry::from_raw([0, 8, 16, 24].map(|offset| self.get(at.plus(offset))))
    }

    /// Where the entry of a PASID lies in the directory at `directory`, which has a table for it.
    pub fn pasid_entry_at(&self, directory: PhysAddr, pasid: u32) -> PhysAddr {
        let pointer = PasidDirectoryEntry::from_raw(self.get(directory.plus(8 * directory_index(pasid))));
        assert!(pointer.present());
        pointer.table().plus(64 * table_index(pasid))
    }

    pub fn put_scalable(&self, unit: usize, source: SourceId, entry: ScalableContextEntry) {
        let at = self.scalable_entry(unit, source);
        (0..).zip(entry.raw()).for_each(|(n, word)| self.set(at.plus(8 * n), word));
    }

    /// Gives a requester a directory with one entry, for its requests without PASID.
    pub fn attach_scalable(&self, unit: usize, source: SourceId, entry: PasidEntry) {
        let context = self.directory(0);
        self.put_pasid(context, 0, entry);
        self.put_scalable(unit, source, context);
    }
}
