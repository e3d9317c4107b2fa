//! Interrupt remapping: the table, its entries, what hardware forgets and when, and taking it over.

use super::{CONFIG, source};
use crate::fake::{Done, Fake, QEMU_CAP, QEMU_ECAP, SECOND, Stuck, UNIT};
use crate::interrupts::{Asker, EntryError, InterruptEntry, InterruptError, InterruptSetup, Message};
use crate::{Config, VtdUnit};
use liveupdate::host::{ForgetInterrupts, InterruptRemapping, MaySleep, TableMemory, Unit};
use spec::PhysAddr;
use spec::interrupt::{PostedEntry, RemappableAddress, RemappableData};
use spec::regs::{Cap, Ecap};

/// QEMU's unit, that can name 2^15 entries at once, with extended mode and posted interrupts.
fn rich() -> Fake {
    Fake::new(
        Cap::from_raw(QEMU_CAP).with_pi(true).raw(),
        Ecap::from_raw(QEMU_ECAP).with_eim(true).with_mhmv(15).raw(),
    )
}

const SMALL: InterruptSetup = InterruptSetup { size: 3, extended: false, compatibility: false };

fn remapping<'f>(fake: &'f Fake, ctx: &mut MaySleep, setup: InterruptSetup) -> VtdUnit<'f, Fake> {
    let unit = VtdUnit::set_up(fake, ctx, UNIT, CONFIG).expect("set up");
    unit.locked(ctx, |atomic| unit.enable(atomic)).expect("translation on");
    unit.remap_interrupts(ctx, setup).expect("interrupt remapping on");
    fake.done();
    unit
}

const NIC: u16 = 0x0018;

fn msi(vector: u8) -> InterruptEntry {
    InterruptEntry::msi(source(0, 3, 0), vector, 0)
}

#[test]
fn a_table_is_set_forgotten_and_switched_on_with_the_size_and_mode_asked_for() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let unit = VtdUnit::set_up(&fake, &mut ctx, UNIT, CONFIG).expect("set up");
    fake.done();
    let setup = InterruptSetup { size: 15, extended: true, compatibility: false };
    unit.remap_interrupts(&mut ctx, setup).expect("on");
    assert_eq!(fake.done(), [Done::Interrupts { index: false, first: 0, order: 0 }, Done::Wait]);
    let irta = unit.interrupt_table();
    assert_eq!((irta.entries(), irta.eime(), irta.frames().map(|f| f.count())), (65536, true, Some(256)));
    assert!(unit.status().ires() && unit.status().irtps() && !unit.status().cfis());
    assert_eq!(unit.interrupt_table_in_use(), Some(irta));
    let again = unit.remap_interrupts(&mut ctx, setup);
    assert_eq!(again, Err(InterruptError::Remapping(UNIT)));
}

#[test]
fn a_unit_without_remapping_without_a_queue_or_without_extended_mode_refuses() {
    let mut ctx = MaySleep::at_thread_start();
    let lacking = Fake::new(QEMU_CAP, QEMU_ECAP & !8);
    let unit = VtdUnit::set_up(&lacking, &mut ctx, UNIT, CONFIG).expect("set up");
    assert_eq!(unit.remap_interrupts(&mut ctx, SMALL), Err(InterruptError::NoRemapping(UNIT)));
    assert!(unit.interrupts().is_none(), "absent, not empty");
    let fake = Fake::qemu();
    let by_registers = Config { registers_only: true, ..CONFIG };
    let unit = VtdUnit::set_up(&fake, &mut ctx, UNIT, by_registers).expect("set up");
    assert_eq!(unit.remap_interrupts(&mut ctx, SMALL), Err(InterruptError::NoRemapping(UNIT)));
    let unit = VtdUnit::set_up(&fake, &mut ctx, SECOND, CONFIG).expect("set up");
    let extended = InterruptSetup { extended: true, ..SMALL };
    let without_eim = fake.with_unit(|u| u.ecap.with_eim(false));
    fake.0.borrow_mut().units[1].ecap = without_eim;
    assert_eq!(unit.remap_interrupts(&mut ctx, extended), Err(InterruptError::NoExtendedMode(SECOND)));
    fake.0.borrow_mut().frames_left = 0;
    let none = unit.remap_interrupts(&mut ctx, SMALL);
    assert_eq!(none, Err(InterruptError::OutOfMemory { unit: SECOND, frames: 1 }));
    assert!(!unit.status().ires());
}

#[test]
fn entries_are_handed_out_singly_and_in_aligned_blocks_until_there_are_none() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let unit = remapping(&fake, &mut ctx, SMALL);
    assert_eq!(unit.allocate_interrupts(0), Ok(0));
    assert_eq!(unit.allocate_interrupts(2), Ok(4), "a block of four is aligned to four");
    assert_eq!(unit.allocate_interrupts(0), Ok(1));
    assert_eq!(unit.allocate_interrupts(3), Ok(8));
    assert_eq!(unit.allocate_interrupts(1), Ok(2));
    assert_eq!(
        unit.allocate_interrupts(0),
        Err(InterruptError::NoEntries { unit: UNIT, entries: 1 }),
        "sixteen entries are sixteen"
    );
    unit.free_interrupts(&mut ctx, 4, 2).expect("free");
    assert_eq!(unit.allocate_interrupts(1), Ok(4));
    assert_eq!(unit.allocate_interrupts(4), Err(InterruptError::NoEntries { unit: UNIT, entries: 16 }));
    let not_ours = unit.set_interrupt(&mut ctx, 6, msi(0x40));
    assert_eq!(not_ours, Err(InterruptError::NotAllocated { unit: UNIT, index: 6 }));
    let beyond = unit.clear_interrupt(&mut ctx, 16);
    assert_eq!(beyond, Err(InterruptError::NotAllocated { unit: UNIT, index: 16 }));
}

#[test]
fn an_entry_appears_with_its_present_bit_last_and_goes_with_it_first() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let unit = remapping(&fake, &mut ctx, SMALL);
    let index = unit.allocate_interrupts(0).expect("an entry");
    let at = unit.interrupt_table().table().get();
    fake.0.borrow_mut().log_stores = true;
    unit.set_interrupt(&mut ctx, index, msi(0x40)).expect("set");
    let [low, high] = msi(0x40).words(false).expect("words");
    let only_stores = |done: alloc::vec::Vec<Done>| -> alloc::vec::Vec<Done> {
        let table = at..at + 256;
        let mine = |d: &Done| match d {
            Done::Store { at, .. } => table.contains(at),
            other => matches!(other, Done::Interrupts { .. } | Done::Wait),
        };
        done.into_iter().filter(mine).collect()
    };
    assert_eq!(
        only_stores(fake.done()),
        [Done::Store { at: at + 8, value: high }, Done::Store { at, value: low }],
        "nothing to forget: it was not present"
    );
    unit.clear_interrupt(&mut ctx, index).expect("clear");
    assert_eq!(
        only_stores(fake.done()),
        [
            Done::Store { at, value: low & !1 },
            Done::Interrupts { index: true, first: 0, order: 0 },
            Done::Wait,
            Done::Store { at, value: 0 },
            Done::Store { at: at + 8, value: 0 },
        ]
    );
}

#[test]
fn re_pointing_is_one_store_and_another_source_goes_through_not_present() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let unit = remapping(&fake, &mut ctx, SMALL);
    let index = unit.allocate_interrupts(0).expect("an entry");
    unit.set_interrupt(&mut ctx, index, msi(0x40)).expect("set");
    assert_eq!(fake.interrupt(NIC, Message::to(index)).map(|e| e.v()), Ok(0x40));
    let at = unit.interrupt_table().table().get();
    fake.done();
    fake.0.borrow_mut().log_stores = true;
    unit.set_interrupt(&mut ctx, index, msi(0x51)).expect("re-point");
    fake.0.borrow_mut().log_stores = false;
    let done = fake.done();
    let in_table = |d: &&Done| matches!(d, Done::Store { at: to, .. } if (at..at + 16).contains(to));
    assert_eq!(done.iter().filter(in_table).count(), 1, "{done:?}");
    assert_eq!(fake.interrupt(NIC, Message::to(index)).map(|e| e.v()), Ok(0x51), "not the cached one");
    fake.0.borrow_mut().log_stores = true;
    fake.done();
    let other = InterruptEntry::msi(source(0, 4, 0), 0x51, 0);
    unit.set_interrupt(&mut ctx, index, other).expect("another source");
    let stores: alloc::vec::Vec<u64> = fake
        .done()
        .iter()
        .filter_map(|d| match d {
            Done::Store { at: to, value } if *to == at => Some(*value & 1),
            _ => None,
        })
        .collect();
    assert_eq!(stores, [0, 1], "it is not present while its source changes");
    assert_eq!(fake.interrupt(NIC, Message::to(index)).map(|e| e.v()), Err(0x26));
    assert_eq!(fake.interrupt(0x20, Message::to(index)).map(|e| e.v()), Ok(0x51));
}

#[test]
fn a_freed_block_is_forgotten_as_one_and_whole_where_the_unit_cannot_name_it() {
    let mut ctx = MaySleep::at_thread_start();
    for (mhmv, expected) in [
        (2, Done::Interrupts { index: true, first: 4, order: 2 }),
        (1, Done::Interrupts { index: false, first: 0, order: 0 }),
    ] {
        let fake = Fake::new(QEMU_CAP, Ecap::from_raw(QEMU_ECAP).with_mhmv(mhmv).raw());
        let unit = remapping(&fake, &mut ctx, SMALL);
        assert_eq!(unit.allocate_interrupts(2), Ok(0));
        assert_eq!(unit.allocate_interrupts(2), Ok(4));
        for index in 4..8 {
            unit.set_interrupt(&mut ctx, index, msi(0x40 + index as u8)).expect("set");
            let n = index - 4;
            assert_eq!(fake.interrupt(NIC, Message::in_block(4, n)).map(|e| e.v()), Ok(0x44 + u64::from(n)));
        }
        fake.done();
        unit.free_interrupts(&mut ctx, 4, 2).expect("free");
        assert_eq!(fake.done(), [expected, Done::Wait]);
        assert_eq!(fake.interrupt(NIC, Message::to(5)).map(|e| e.v()), Err(0x22));
        assert_eq!(fake.memory().get(&(unit.interrupt_table().irta())), None, "nothing is left behind");
    }
}

#[test]
fn only_the_source_named_may_ask() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let unit = remapping(&fake, &mut ctx, SMALL);
    let with = |asker| InterruptEntry::Remapped {
        vector: 0x40,
        destination: 0,
        logical: false,
        level: false,
        delivery: 0,
        asker,
    };
    let cases = [
        (Asker::Exactly(source(0, 3, 0)), [true, false, false]),
        (Asker::Functions { source: source(0, 3, 0), ignored: 3 }, [true, true, false]),
        (Asker::Functions { source: source(0, 3, 0), ignored: 1 }, [true, false, false]),
        (Asker::Buses { first: 0, last: 0 }, [true, true, false]),
        (Asker::Buses { first: 1, last: 2 }, [false, false, true]),
        (Asker::Anybody, [true, true, true]),
    ];
    let index = unit.allocate_interrupts(0).expect("an entry");
    for (asker, expected) in cases {
        unit.set_interrupt(&mut ctx, index, with(asker)).expect("set");
        let found = [0x0018, 0x001b, 0x0218].map(|s| fake.interrupt(s, Message::to(index)).is_ok());
        assert_eq!(found, expected, "{asker:?}");
    }
    assert_eq!(fake.interrupt(NIC, Message::to(16)).map(|e| e.v()), Err(0x21), "beyond the table");
}

#[test]
fn messages_carry_all_sixteen_bits_of_the_index_and_subhandles_are_added() {
    for index in [0, 1, 0x7fff, 0x8000, 0xffff] {
        let message = Message::to(index);
        let address = RemappableAddress::from_raw(message.address);
        assert_eq!((address.base(), address.format(), address.shv()), (0xfee, true, false));
        assert_eq!(address.index(RemappableData::from_raw(message.data)), u32::from(index));
    }
    let message = Message::in_block(0x8010, 3);
    let address = RemappableAddress::from_raw(message.address);
    assert!(address.shv());
    assert_eq!(address.index(RemappableData::from_raw(message.data)), 0x8013);
}

#[test]
fn destinations_follow_the_mode_of_the_table() {
    let far = InterruptEntry::msi(source(0, 3, 0), 0x40, 0x1_0203);
    assert_eq!(far.words(false), Err(EntryError::Destination(0x1_0203)));
    assert_eq!(far.words(true).map(|w| w[0] >> 32), Ok(0x1_0203));
    let near = InterruptEntry::msi(source(0, 3, 0), 0x40, 0x7f);
    assert_eq!(near.words(false).map(|w| w[0] >> 32), Ok(0x7f00), "in the second byte");
}

#[test]
fn posted_entries_name_an_aligned_descriptor_where_the_unit_posts() {
    let mut ctx = MaySleep::at_thread_start();
    let posted = |at| InterruptEntry::Posted {
        vector: 0x33,
        descriptor: PhysAddr::new(at),
        urgent: true,
        asker: Asker::Exactly(source(0, 3, 0)),
    };
    let fake = rich();
    let unit = remapping(&fake, &mut ctx, SMALL);
    let index = unit.allocate_interrupts(0).expect("an entry");
    let crooked = unit.set_interrupt(&mut ctx, index, posted(0x12_3456_7820));
    assert_eq!(crooked, Err(InterruptError::Entry(EntryError::Descriptor(PhysAddr::new(0x12_3456_7820)))));
    unit.set_interrupt(&mut ctx, index, posted(0x12_3456_7840)).expect("set");
    let words = unit.interrupt_entry(index).expect("there");
    let entry = PostedEntry::from_raw(words);
    assert_eq!((entry.vv(), entry.urg(), entry.im()), (0x33, true, true));
    assert_eq!(entry.descriptor(), PhysAddr::new(0x12_3456_7840));
    assert_eq!((entry.sid(), entry.svt()), (u64::from(NIC), 1));
    let without = Fake::qemu();
    without.with_unit(|u| u.cap = u.cap.with_pi(false));
    let unit = remapping(&without, &mut ctx, SMALL);
    let index = unit.allocate_interrupts(0).expect("an entry");
    let refused = unit.set_interrupt(&mut ctx, index, posted(0x40));
    assert_eq!(refused, Err(InterruptError::NoPosting(UNIT)));
}

#[test]
fn with_caching_mode_and_write_buffers_a_new_entry_is_seen() {
    let mut ctx = MaySleep::at_thread_start();
    for cap in [QEMU_CAP | 1 << 7, QEMU_CAP | 1 << 4] {
        let fake = Fake::new(cap, QEMU_ECAP);
        let unit = remapping(&fake, &mut ctx, SMALL);
        let index = unit.allocate_interrupts(0).expect("an entry");
        unit.set_interrupt(&mut ctx, index, msi(0x40)).expect("set");
        let forgot = fake.done().iter().any(|d| matches!(d, Done::Interrupts { .. }));
        assert_eq!(forgot, Cap::from_raw(cap).cm());
        assert_eq!(fake.interrupt(NIC, Message::to(index)).map(|e| e.v()), Ok(0x40));
    }
}

#[test]
fn a_predecessors_table_is_taken_over_in_place_and_its_entries_are_claimed_once() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let before = remapping(&fake, &mut ctx, SMALL);
    let index = before.allocate_interrupts(0).expect("an entry");
    before.set_interrupt(&mut ctx, index, msi(0x40)).expect("set");
    let irta = before.interrupt_table();
    let after = VtdUnit::take_over(&fake, &mut ctx, UNIT, CONFIG).expect("taken over");
    assert!(after.status().ires() && fake.with_unit(|u| !u.interrupts.went_off));
    assert_eq!(after.interrupt_table_in_use(), Some(irta));
    assert_eq!(fake.interrupt(NIC, Message::to(index)).map(|e| e.v()), Ok(0x40));
    let not_yet = after.set_interrupt(&mut ctx, index, msi(0x41));
    assert_eq!(not_yet, Err(InterruptError::NotAllocated { unit: UNIT, index }));
    assert_eq!(after.allocate_interrupts(0), Ok(1), "a present entry is not handed out");
    assert_eq!(after.claim_interrupt(index), Ok(msi(0x40).words(false).expect("words")));
    assert_eq!(after.claim_interrupt(index), Err(InterruptError::NotFound { unit: UNIT, index }), "once");
    assert_eq!(after.claim_interrupt(5), Err(InterruptError::NotFound { unit: UNIT, index: 5 }));
    after.set_interrupt(&mut ctx, index, msi(0x41)).expect("re-pointed");
    assert_eq!(fake.interrupt(NIC, Message::to(index)).map(|e| e.v()), Ok(0x41));
    after.locked(&mut ctx, |atomic| after.disable_interrupts(atomic)).expect("off");
    assert!(!after.status().ires() && after.status().tes(), "translation is another matter");
}

#[test]
fn an_entry_that_hardware_does_not_forget_is_an_error_and_not_present() {
    let (fake, mut ctx) = (rich(), MaySleep::at_thread_start());
    let unit = remapping(&fake, &mut ctx, SMALL);
    let index = unit.allocate_interrupts(0).expect("an entry");
    unit.set_interrupt(&mut ctx, index, msi(0x40)).expect("set");
    fake.with_unit(|u| u.stuck = Stuck::Invalidations);
    let cleared = unit.clear_interrupt(&mut ctx, index);
    assert!(matches!(cleared, Err(InterruptError::TimedOut(_))), "{cleared:?}");
    assert_eq!(fake.word_at(unit.interrupt_table().table().get()) & 1, 0);
    fake.with_unit(|u| u.stuck = Stuck::No);
    let forgotten =
        unit.locked(&mut ctx, |atomic| unit.forget_interrupts(atomic, ForgetInterrupts::Everything));
    assert!(forgotten.is_ok());
    assert!(fake.read(unit.interrupt_table().table()).is_ok());
}
