//! Interrupt remapping as hardware: by hand-built tables, request by request.

use super::interrupts::{Interrupt, Message};
use super::unit::Unit;
use crate::config::UnitConfig;
use crate::dice::Dice;
use crate::fabric::Fabric;
use crate::faults::Injector;
use crate::memory::{Memory, StorePath};
use crate::trace::TraceLine;
use spec::SourceId;
use spec::interrupt::{PostedDescriptor, PostedEntry, RemappableAddress, RemappedEntry};
use spec::invalidation::{InterruptInvalidate, Wait, kind};
use spec::regs::{Gcmd, Iqa, Irta, offset};

const TABLE: u64 = 0x20_0000;
const DESCRIPTOR: u64 = 0x21_0000;
const QUEUE: u64 = 0x22_0000;
const DISK: SourceId = SourceId::new(0, 3, 0);
const OTHER: SourceId = SourceId::new(0, 4, 0);

struct Bench {
    unit: Unit,
    fabric: Fabric,
    tail: u64,
}

impl Bench {
    fn new(config: UnitConfig, extended: bool) -> Self {
        let memory = Memory::new(&[(TABLE, 1 << 20)], StorePath::default());
        let fabric = Fabric::new(memory, Dice::new(7), Injector::default());
        let mut bench = Self { unit: Unit::new(config, 39), fabric, tail: 0 };
        let irta = Irta::ZERO.with_irta(TABLE >> 12).with_s(3).with_eime(extended);
        bench.write(offset::IRTA, irta.raw());
        bench.write(offset::IQA, Iqa::ZERO.with_iqa(QUEUE >> 12).raw());
        for command in
            [Gcmd::ZERO.with_sirtp(true), Gcmd::ZERO.with_qie(true), Gcmd::ZERO.with_qie(true).with_ire(true)]
        {
            bench.command(command);
        }
        bench
    }

    fn xapic() -> Self {
        Self::new(rich(), false)
    }

    fn write(&mut self, at: u64, value: u64) {
        self.unit.write(at, 8, value, &mut self.fabric);
    }

    fn command(&mut self, command: Gcmd) {
        self.unit.write(offset::GCMD, 4, command.raw().into(), &mut self.fabric);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(at) = self.unit.next_due() {
            self.fabric.now = self.fabric.now.max(at);
            self.unit.run(&mut self.fabric);
        }
    }

    fn entry(&mut self, index: u64, words: [u64; 2]) {
        for (n, word) in (0..).zip(words) {
            self.fabric.memory.store_snooped(TABLE + 16 * index + 8 * n, word).expect("memory");
        }
    }

    fn forget(&mut self, descriptor: InterruptInvalidate) {
        let wait = Wait::ZERO.with_kind(kind::WAIT);
        for words in [descriptor.with_kind(kind::INTERRUPT).raw(), wait.raw()] {
            for (n, word) in (0..).zip(words) {
                self.fabric.memory.store_snooped(QUEUE + self.tail + 8 * n, word).expect("memory");
            }
            self.tail += 16;
        }
        self.write(offset::IQT, self.tail);
        self.settle();
    }

    fn ask(&mut self, source: SourceId, message: Message) -> Option<Interrupt> {
        self.unit.interrupt(source, message, &mut self.fabric)
    }

    /// The vector, or the reason.
    fn vector(&mut self, source: SourceId, message: Message) -> Result<u8, u8> {
        let interrupt = self.ask(source, message);
        match self.fabric.trace.last() {
            Some(TraceLine::InterruptBlocked { reason, .. }) => Err(reason.0),
            _ => Ok(interrupt.map_or(0, |i| i.vector)),
        }
    }
}

fn rich() -> UnitConfig {
    UnitConfig::plain(0xfed9_0000, 39)
        .with_cap(|c| c.with_pi(true))
        .with_ecap(|e| e.with_eim(true).with_mhmv(4))
}

fn to(index: u32) -> Message {
    let address = RemappableAddress::ZERO.with_base(0xfee).with_format(true).with_handle_low(index);
    Message { address: address.raw(), data: 0 }
}

fn entry(source: SourceId, vector: u64) -> RemappedEntry {
    let entry = RemappedEntry::ZERO.with_present(true).with_v(vector).with_dst(0x500);
    entry.with_sid(source.raw().into()).with_svt(1)
}

#[test]
fn a_request_becomes_the_interrupt_of_its_entry_in_either_mode() {
    let mut bench = Bench::xapic();
    bench.entry(3, entry(DISK, 0x41).raw());
    assert_eq!(bench.ask(DISK, to(3)), Some(Interrupt { vector: 0x41, destination: 5, logical: false }));
    let with_subhandle = Message { address: to(1).address | 1 << 3, data: 2 };
    assert_eq!(
        bench.ask(DISK, with_subhandle),
        Some(Interrupt { vector: 0x41, destination: 5, logical: false })
    );
    let mut bench = Bench::new(rich(), true);
    bench.entry(3, entry(DISK, 0x41).with_dst(0x12_3456).raw());
    assert_eq!(
        bench.ask(DISK, to(3)),
        Some(Interrupt { vector: 0x41, destination: 0x12_3456, logical: false })
    );
}

#[test]
fn a_cached_entry_goes_on_until_it_is_invalidated_by_index_or_with_all() {
    for descriptor in [
        InterruptInvalidate::ZERO,
        InterruptInvalidate::ZERO.with_g(true).with_iidx(3),
        InterruptInvalidate::ZERO.with_g(true).with_iidx(0).with_im(2),
    ] {
        let mut bench = Bench::xapic();
        bench.entry(3, entry(DISK, 0x41).raw());
        assert_eq!(bench.vector(DISK, to(3)), Ok(0x41));
        bench.entry(3, [0, 0]);
        assert_eq!(bench.vector(DISK, to(3)), Ok(0x41), "stale");
        bench.forget(InterruptInvalidate::ZERO.with_g(true).with_iidx(4).with_im(2));
        assert_eq!(bench.vector(DISK, to(3)), Ok(0x41), "another run");
        bench.forget(descriptor);
        assert_eq!(bench.vector(DISK, to(3)), Err(0x22));
    }
}

#[test]
fn an_absent_entry_is_cached_only_with_caching_mode() {
    for caching in [false, true] {
        let mut bench = Bench::new(rich().with_cap(|c| c.with_cm(caching)), false);
        assert_eq!(bench.vector(DISK, to(3)), Err(0x22));
        bench.entry(3, entry(DISK, 0x41).raw());
        assert_eq!(bench.vector(DISK, to(3)).is_err(), caching);
    }
}

#[test]
fn every_reason_to_block_has_its_code_and_is_recorded_with_source_and_index() {
    let sound = entry(DISK, 0x41);
    let cases: [(Message, [u64; 2], u8); 8] = [
        (Message { data: 0x1_0000, ..to(3) }, sound.raw(), 0x20),
        (to(16), sound.raw(), 0x21),
        (to(3), sound.with_present(false).raw(), 0x22),
        (to(3), [sound.raw()[0] | 1 << 12, sound.raw()[1]], 0x24),
        (to(3), sound.with_svt(3).raw(), 0x24),
        (to(3), sound.with_dlm(3).raw(), 0x24),
        (Message { address: 0xfee0_0000, data: 0x41 }, sound.raw(), 0x25),
        (to(3), entry(OTHER, 0x41).raw(), 0x26),
    ];
    for (message, words, reason) in cases {
        let mut bench = Bench::xapic();
        bench.entry(3, words);
        assert_eq!(bench.vector(DISK, message), Err(reason));
        let record = bench.unit.config.cap.fault_record_offset(0);
        let [low, high] = [0, 8].map(|half| bench.unit.read(record + half, 8, &mut bench.fabric));
        assert_eq!((high >> 63, high >> 32 & 0xff, high & 0xffff), (1, reason.into(), DISK.raw().into()));
        let index = if reason == 0x25 { 0 } else { RemappableAddress::from_raw(message.address).handle() };
        assert_eq!(low >> 48, index.into());
    }
    let mut bench = Bench::xapic();
    bench.write(offset::IRTA, Irta::ZERO.with_irta(0x4000_0000 >> 12).with_s(3).raw());
    bench.command(Gcmd::ZERO.with_qie(true).with_ire(true).with_sirtp(true));
    assert_eq!(bench.vector(DISK, to(3)), Err(0x23));
}

#[test]
fn a_quiet_entry_blocks_without_a_record() {
    let mut bench = Bench::xapic();
    bench.entry(3, entry(OTHER, 0x41).with_fpd(true).raw());
    assert_eq!(bench.vector(DISK, to(3)), Err(0x26));
    assert!(matches!(bench.fabric.trace.last(), Some(TraceLine::InterruptBlocked { recorded: false, .. })));
}

#[test]
fn sources_are_compared_as_the_entry_says() {
    let function = SourceId::new(0, 3, 4);
    let cases = [
        (entry(DISK, 1), [true, false, false]),
        (entry(DISK, 1).with_sq(1), [true, true, false]),
        (entry(DISK, 1).with_svt(2).with_sid(0x0000), [true, true, false]),
        (entry(DISK, 1).with_svt(2).with_sid(0x0102), [false, false, true]),
        (entry(DISK, 1).with_svt(0), [true, true, true]),
    ];
    for (words, expected) in cases {
        let mut bench = Bench::xapic();
        bench.entry(3, words.raw());
        let found =
            [DISK, function, SourceId::new(2, 9, 0)].map(|source| bench.vector(source, to(3)).is_ok());
        assert_eq!(found, expected, "{words:?}");
    }
}

#[test]
fn compatibility_format_passes_where_remapping_is_off_or_lets_it_and_never_in_extended_mode() {
    let message = Message { address: 0xfee0_5000, data: 0x33 };
    for (extended, cfi, passes) in [(false, false, false), (false, true, true), (true, true, false)] {
        let mut bench = Bench::new(rich(), extended);
        if cfi {
            bench.command(Gcmd::ZERO.with_qie(true).with_ire(true).with_cfi(true));
        }
        let passed = bench.ask(DISK, message);
        assert_eq!(passed, passes.then_some(Interrupt { vector: 0x33, destination: 5, logical: false }));
        bench.command(Gcmd::ZERO.with_qie(true));
        assert_eq!(bench.vector(DISK, message), Ok(0x33), "off: everything passes");
    }
}

fn posted(urgent: bool) -> [u64; 2] {
    let entry = PostedEntry::ZERO.with_present(true).with_im(true).with_vv(0x85).with_urg(urgent);
    entry.with_pda_low(DESCRIPTOR >> 6).with_sid(DISK.raw().into()).with_svt(1).raw()
}

impl Bench {
    fn descriptor(&self) -> PostedDescriptor {
        let word = |n: u64| self.fabric.memory.load(DESCRIPTOR + 8 * n).expect("memory");
        PostedDescriptor::from_raw([0, 1, 2, 3, 4, 5, 6, 7].map(word))
    }
    fn put_descriptor(&mut self, descriptor: PostedDescriptor) {
        for (n, word) in (0..).zip(descriptor.raw()) {
            self.fabric.memory.store_snooped(DESCRIPTOR + 8 * n, word).expect("memory");
        }
    }
}

#[test]
fn a_posted_interrupt_sets_its_bit_and_notifies_once_until_that_is_taken_back() {
    let mut bench = Bench::xapic();
    bench.entry(3, posted(false));
    bench.put_descriptor(PostedDescriptor::ZERO.with_nv(0xf2).with_ndst(0x700));
    assert_eq!(bench.ask(DISK, to(3)), Some(Interrupt { vector: 0xf2, destination: 7, logical: false }));
    let after = bench.descriptor();
    assert_eq!((after.pir2(), after.on(), after.pir0(), after.nv()), (1 << 5, true, 0, 0xf2));
    assert_eq!(bench.ask(DISK, to(3)), None, "one notification is outstanding");
    bench.put_descriptor(after.with_on(false).with_sn(true));
    assert_eq!(bench.ask(DISK, to(3)), None, "suppressed");
    assert!(!bench.descriptor().on() && bench.descriptor().pir2() == 1 << 5);
    bench.entry(3, posted(true));
    bench.forget(InterruptInvalidate::ZERO);
    assert_eq!(bench.ask(DISK, to(3)).map(|i| i.vector), Some(0xf2), "urgent");
}

#[test]
fn a_posted_entry_wants_the_capability_memory_and_a_descriptor_without_reserved_bits() {
    let mut bench = Bench::new(rich().with_cap(|c| c.with_pi(false)), false);
    bench.entry(3, posted(false));
    assert_eq!(bench.vector(DISK, to(3)), Err(0x24));
    let mut bench = Bench::xapic();
    bench.entry(3, PostedEntry::from_raw(posted(false)).with_pda_low(0x4000_0000 >> 6).raw());
    assert_eq!(bench.vector(DISK, to(3)), Err(0x27));
    let mut bench = Bench::xapic();
    bench.entry(3, posted(false));
    bench.fabric.memory.store_snooped(DESCRIPTOR + 56, 1).expect("memory");
    assert_eq!(bench.vector(DISK, to(3)), Err(0x28));
}
