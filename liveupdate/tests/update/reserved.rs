//! Requesters that firmware reserved memory for (RMRR): somebody must think of each before the jump.

use crate::common::machine::Machine;
use crate::common::scene::*;
use crate::common::tables::Tables;
use crate::common::{Store, extent, requester, source};
use liveupdate::host::{Adoptable, Atomic, MaySleep};
use liveupdate::{FreezeError, FreezeInput, NotFrozen, Outgoing, RegionKind, ReservedMemory, Sealed, Token};
use spec::{Extent, Requester};

const FIRMWARE: Token = Token(0x30);
const FIRMWARE_DOMAIN: Token = Token(0x31);
const FIRMWARE_MEMORY: Token = Token(0x32);

fn reserved_memory() -> Extent {
    extent(0x7f00_0000, 4)
}

#[allow(clippy::result_large_err)]
fn freeze_with<'h, 's>(
    outgoing: Outgoing<'h, 's, Machine>,
    ctx: &mut MaySleep,
    list: &[(Requester, Extent)],
) -> Result<Sealed<'h, 's, Machine>, NotFrozen<'h, 's, Machine>> {
    freeze_as(outgoing, ctx, ReservedMemory::Reduced(list))
}

#[allow(clippy::result_large_err)]
fn freeze_as<'h, 's>(
    outgoing: Outgoing<'h, 's, Machine>,
    ctx: &mut MaySleep,
    reserved: ReservedMemory<'_>,
) -> Result<Sealed<'h, 's, Machine>, NotFrozen<'h, 's, Machine>> {
    let mut words = vec![0; 1 << 15];
    let input = FreezeInput {
        release: "1.0-test",
        update: 1,
        scratch: &[scratch()],
        reserved,
        successor: Adoptable::EVERYTHING,
    };
    outgoing.freeze(ctx, &input, &mut audit::Scratch::new(&mut words), &mut |_| ())
}

#[test]
fn one_that_has_a_domain_and_is_not_preserved_refuses_the_freeze_by_name() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let list = [(requester(AUDIO_SOURCE), sound()), (requester(UNLISTED), reserved_memory())];
    let failed = freeze_with(outgoing, &mut ctx, &list).unwrap_err();
    let why = FreezeError::Reserved { requester: requester(UNLISTED), region: reserved_memory() };
    assert_eq!(failed.why, why);
    assert!(why.to_string().contains("0000:01:00.0 has reserved memory 0x7f000000..0x7f004000"));
    assert_eq!((scene.machine.snapshot(), failed.outgoing.totals()), before);
    // Without a domain, or behind a unit that is switched off anyway, it needs no thought; cutting it off is a choice.
    let list = [(requester(AUDIO_SOURCE), sound()), (requester(source(0, 0x1d, 0)), reserved_memory())];
    let sealed = freeze_with(failed.outgoing, &mut ctx, &list).unwrap();
    let _sealed = freeze(sealed.unfreeze(&mut ctx), &mut ctx).unwrap();
}

#[test]
fn one_behind_a_unit_with_nothing_preserved_is_no_reason_to_refuse() {
    let (scene, mut store) = (Scene::with_units(2), Store::of(16));
    let mut ctx = MaySleep::at_thread_start();
    let firmware = source(0, 0x14, 0);
    scene.machine.attach(1, firmware, 5, scene.other);
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let list = [(requester(firmware), reserved_memory())];
    let _sealed = freeze_with(outgoing, &mut ctx, &list).unwrap();
}

#[test]
fn lesson_18_one_that_was_reduced_reaches_its_reserved_memory_and_nothing_else_throughout() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    let machine = &scene.machine;
    let memory = reserved_memory();
    machine.ram(memory);
    // The driver reduces it: a domain of its own, under an id of its own, that maps the region to itself.
    let small: Tables = machine.domain(3);
    machine.map(small, memory.start().get(), memory);
    machine.attach(0, OTHER, 30, small);
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    outgoing.preserve_region(&mut ctx, FIRMWARE_MEMORY, memory, RegionKind::Memory).unwrap();
    outgoing.preserve_domain(&mut ctx, FIRMWARE_DOMAIN, small.of()).unwrap();
    outgoing.preserve_requester(&mut ctx, FIRMWARE, requester(OTHER)).unwrap();
    let sealed = freeze_with(outgoing, &mut ctx, &[(requester(OTHER), memory)]).unwrap();
    let reach = || {
        let inside = machine.dma(OTHER, memory.start().get() + 0x3fff);
        (
            inside,
            machine.dma(OTHER, memory.start().get() + 0x4000).is_err(),
            machine.dma(OTHER, IOVA).is_err(),
        )
    };
    let only_its_own = (Ok(memory.start().get() + 0x3fff), true, true);
    assert_eq!(reach(), only_its_own);
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    machine.jump(&container);
    assert_eq!(reach(), only_its_own, "in the gap");
    let mut store = Store::of(16);
    let checked = check(machine, &container, &mut store);
    assert_eq!(checked.violations, 0);
    let mut ctx = MaySleep::at_thread_start();
    let _incoming = checked.adopt(machine, &mut ctx, &mut |_, _| true, &mut |_| ());
    assert_eq!(reach(), only_its_own, "adopted");
}

#[test]
fn lesson_18_a_preserved_requester_reaches_its_reserved_memory_in_its_own_domain_or_the_freeze_is_refused() {
    let (scene, mut ctx) = (Scene::new(), MaySleep::at_thread_start());
    let firmware = requester(AUDIO_SOURCE);
    // The audio domain maps `sound` to itself, and nothing else.
    let frames = |offset: u64, count| extent(sound().start().get() + 0x1000 * offset, count);
    for (region, mapped) in
        [(frames(0, 8), true), (frames(3, 2), true), (frames(7, 2), false), (reserved_memory(), false)]
    {
        let list = [(firmware, region)];
        for policy in [ReservedMemory::Reduced(&list), ReservedMemory::CutOff(&list)] {
            let mut store = Store::of(16);
            let outgoing = scene.preserve(&mut store, &mut ctx);
            let before = (scene.machine.snapshot(), outgoing.totals());
            let outgoing = match freeze_as(outgoing, &mut ctx, policy) {
                Ok(sealed) if mapped => sealed.unfreeze(&mut ctx),
                Err(failed) if !mapped => {
                    let why = FreezeError::ReservedNotMapped { requester: firmware, region };
                    assert_eq!(failed.why, why);
                    failed.outgoing
                }
                other => panic!("{region}: {:?}", other.map(|s| s.container).map_err(|f| f.why)),
            };
            assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
            scene.machine.reservations.take();
            scene.machine.holds.take();
        }
    }
}

#[test]
fn reserved_memory_that_is_mapped_elsewhere_is_not_mapped() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), MaySleep::at_thread_start());
    // The disk's memory is mapped, from another address on.
    let region = extent(disk_memory().start().get(), 4);
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let refused = freeze_with(outgoing, &mut ctx, &[(requester(DISK_SOURCE), region)]).unwrap_err();
    assert_eq!(refused.why, FreezeError::ReservedNotMapped { requester: requester(DISK_SOURCE), region });
}
