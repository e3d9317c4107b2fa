//! What most tests start from: two devices to preserve, one of them with aliases, and others that must go.
//!
//! | who | domain | what |
//! |---|---|---|
//! | 00:02.0 | audio, id 7 | preserved |
//! | 00:03.0, alias 02:00.0 | disk, id 8 | preserved |
//! | 00:04.0 | other, id 9 | not preserved; a PCI function |
//! | 01:00.0 | other, id 9 | not preserved; on no list, on a bus of its own |
//! | f0:1f.7 | other, id 9 | not preserved; no PCI function (an IOAPIC) |
//! | 00:05.0 | audio, id 7 | not preserved; shares a preserved domain |

use super::machine::Machine;
use super::tables::Tables;
use super::{Store, extent, requester};
use liveupdate::host::{Adoptable, Atomic, MaySleep};
use liveupdate::{
    Checked, Container, CutOffEvent, FreezeInput, NotFrozen, Outgoing, RegionKind, Sealed, Token,
};
use spec::{Extent, SourceId};

pub const SOUND: Token = Token(0x8000_0000_0000_0001);
pub const DISK_MEMORY: Token = Token(0x1_0000_0001);
pub const BAR: Token = Token(3);
pub const AUDIO_DOMAIN: Token = Token(0xffff_ffff_0000_0010);
pub const DISK_DOMAIN: Token = Token(0x11);
pub const AUDIO: Token = Token(0xffff_ffff_0000_0020);
pub const DISK: Token = Token(0x21);

pub const IOVA: u64 = 0x1000_0000;
pub const AUDIO_SOURCE: SourceId = SourceId::new(0, 2, 0);
pub const DISK_SOURCE: SourceId = SourceId::new(0, 3, 0);
pub const DISK_ALIAS: SourceId = SourceId::new(2, 0, 0);
pub const OTHER: SourceId = SourceId::new(0, 4, 0);
pub const SHARING: SourceId = SourceId::new(0, 5, 0);
pub const UNLISTED: SourceId = SourceId::new(1, 0, 0);
pub const IOAPIC: SourceId = SourceId::new(0xf0, 0x1f, 7);
/// Everybody who must be cut off.
pub const STRANGERS: [SourceId; 4] = [OTHER, SHARING, UNLISTED, IOAPIC];

pub fn sound() -> Extent {
    extent(0x1000_0000, 8)
}
pub fn disk_memory() -> Extent {
    extent(0x2000_0000, 512)
}
pub fn bar() -> Extent {
    extent(0xfeb0_0000, 2)
}
pub fn scratch() -> Extent {
    extent(0x9100_0000, 0x1000)
}

/// The machine and its domains.
pub struct Scene {
    pub machine: Machine,
    pub audio: Tables,
    pub disk: Tables,
    pub other: Tables,
}

impl Scene {
    pub fn new() -> Self {
        Self::with_units(1)
    }

    pub fn with_units(units: u64) -> Self {
        let machine = Machine::new(units);
        machine.ram(sound());
        machine.ram(disk_memory());
        let stray = extent(0x3000_0000, 4);
        machine.ram(stray);
        let audio = machine.domain(3);
        machine.map(audio, IOVA, sound());
        machine.skip_table();
        let disk = machine.domain(4);
        machine.map_large(disk, IOVA, disk_memory().start(), 1);
        machine.map(disk, 0x40_0000_0000, bar());
        let other = machine.domain(3);
        machine.map(other, IOVA, stray);
        machine.attach(0, AUDIO_SOURCE, 7, audio);
        machine.attach(0, DISK_SOURCE, 8, disk);
        machine.attach(0, DISK_ALIAS, 8, disk);
        machine.attach(0, SHARING, 7, audio);
        for stranger in [OTHER, UNLISTED, IOAPIC] {
            machine.attach(0, stranger, 9, other);
        }
        let functions = [AUDIO_SOURCE, DISK_SOURCE, OTHER, SHARING].map(requester);
        machine.functions.borrow_mut().extend(functions);
        machine.aliases.borrow_mut().insert(requester(DISK_SOURCE), vec![DISK_ALIAS]);
        Self { machine, audio, disk, other }
    }

    /// Preserves regions, domains and requesters.
    pub fn preserve<'h, 's>(&'h self, store: &'s mut Store, ctx: &mut MaySleep) -> Outgoing<'h, 's, Machine> {
        let mut outgoing = Outgoing::new(&self.machine, store.storage());
        outgoing.preserve_region(ctx, SOUND, sound(), RegionKind::Memory).unwrap();
        outgoing.preserve_region(ctx, DISK_MEMORY, disk_memory(), RegionKind::Memory).unwrap();
        outgoing.preserve_region(ctx, BAR, bar(), RegionKind::Device).unwrap();
        outgoing.preserve_domain(ctx, AUDIO_DOMAIN, self.audio.of()).unwrap();
        outgoing.preserve_domain(ctx, DISK_DOMAIN, self.disk.of()).unwrap();
        outgoing.preserve_requester(ctx, AUDIO, requester(AUDIO_SOURCE)).unwrap();
        outgoing.preserve_requester(ctx, DISK, requester(DISK_SOURCE)).unwrap();
        outgoing
    }

    /// Every requester moves data, so that everything that can be cached is.
    pub fn exercise(&self) {
        for source in [AUDIO_SOURCE, DISK_SOURCE, DISK_ALIAS].iter().chain(&STRANGERS) {
            self.machine.dma(*source, IOVA).unwrap();
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
        let sealed = freeze(outgoing, &mut ctx).unwrap();
        let container = sealed.cut_off(&Atomic::for_good(ctx), report).container;
        self.machine.jump(&container);
        container
    }
}

/// Freezes with the usual input.
#[allow(clippy::result_large_err)]
pub fn freeze<'h, 's>(
    outgoing: Outgoing<'h, 's, Machine>,
    ctx: &mut MaySleep,
) -> Result<Sealed<'h, 's, Machine>, NotFrozen<'h, 's, Machine>> {
    let mut words = vec![0; 1 << 15];
    let input = FreezeInput {
        release: "1.0-test",
        update: 1,
        scratch: &[scratch()],
        reserved: liveupdate::ReservedMemory::CutOff(&[]),
        successor: Adoptable::EVERYTHING,
    };
    outgoing.freeze(ctx, &input, &mut audit::Scratch::new(&mut words), &mut |_| ())
}

/// Opens and checks.
pub fn check<'s>(machine: &Machine, container: &Container, store: &'s mut Store) -> Checked<'s> {
    let opened = liveupdate::open(machine, container.fdt, store.storage()).unwrap();
    let mut words = vec![0; 1 << 15];
    opened.check(machine, &mut audit::Scratch::new(&mut words), &mut |_| ()).unwrap()
}
