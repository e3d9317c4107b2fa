//! The unit against tables built by hand: every refusal, every kind of staleness, both ways of invalidation.

use super::unit::{Outcome, Unit};
use crate::config::UnitConfig;
use crate::dice::Dice;
use crate::fabric::Fabric;
use crate::faults::{Faults, Injector};
use crate::memory::{Memory, StorePath};
use crate::trace::{Invalidation, TraceLine};
use spec::SourceId;
use spec::context::ContextEntry;
use spec::fault::Reason;
use spec::invalidation::{ContextInvalidate, IotlbInvalidate, Wait, kind};
use spec::regs::{Ccmd, Gcmd, Gsts, IotlbCommand, offset};
use spec::root::RootEntry;

pub(super) const DEVICE: SourceId = SourceId::new(0, 3, 0);
pub(super) const ROOT: u64 = 0x10_0000;
pub(super) const CONTEXT: u64 = 0x10_1000;
pub(super) const TOP: u64 = 0x10_2000;
const MIDDLE: u64 = 0x10_3000;
const LOWEST: u64 = 0x10_4000;
const PAGE_A: u64 = 0x20_0000;
const PAGE_B: u64 = 0x20_1000;
const STATUS: u64 = 0x10_f000;
const QUEUE: u64 = 0x11_0000;
const RW: u64 = 3;
pub(super) const DOMAIN: u64 = 7;

/// A unit with memory, and three-level tables that map page 0x1 of `DEVICE`.
pub(super) struct Bench {
    pub(super) fabric: Fabric,
    pub(super) unit: Unit,
    queue_tail: u64,
}

impl Bench {
    pub(super) fn new(config: UnitConfig) -> Self {
        Self::with_faults(config, Faults::default())
    }

    fn with_faults(config: UnitConfig, faults: Faults) -> Self {
        let path = StorePath { non_coherent: !config.ecap.c(), buffered: config.cap.rwbf() };
        let memory = Memory::new(&[(0x10_0000, 0x40_0000)], path);
        let fabric = Fabric::new(memory, Dice::new(11), Injector::new(faults));
        let mut bench = Self { fabric, unit: Unit::new(config, 39), queue_tail: 0 };
        bench.set(ROOT, RootEntry::ZERO.with_present(true).with_ctp(CONTEXT >> 12).raw()[0]);
        bench.set_context(context());
        bench.set(TOP, MIDDLE | RW);
        bench.set(MIDDLE, LOWEST | RW);
        bench.set(LOWEST + 8, PAGE_A | RW);
        bench
    }

    fn plain() -> Self {
        Self::new(UnitConfig::plain(0xfed9_0000, 39))
    }

    /// Translation on, with the root table of the bench.
    pub(super) fn enabled(mut self) -> Self {
        self.set_root(ROOT);
        self.command(|gcmd| gcmd.with_te(true));
        assert!(self.status().tes());
        self
    }

    fn with_queue(mut self) -> Self {
        self.unit.write(offset::IQA, 8, QUEUE, &mut self.fabric);
        self.command(|gcmd| gcmd.with_qie(true));
        assert!(self.status().qies());
        self
    }

    /// Changes memory where every view sees it.
    pub(super) fn set(&mut self, at: u64, value: u64) {
        self.fabric.memory.store_snooped(at, value).unwrap();
    }

    /// A processor's store.
    fn store(&mut self, at: u64, value: u64) {
        let fabric = &mut self.fabric;
        fabric.memory.store(at, value, fabric.now, &mut fabric.dice).unwrap();
    }

    fn set_context(&mut self, entry: ContextEntry) {
        let at = CONTEXT + 16 * u64::from(DEVICE.devfn());
        self.set(at, entry.raw()[0]);
        self.set(at + 8, entry.raw()[1]);
    }

    fn set_root(&mut self, table: u64) {
        self.unit.write(offset::RTADDR, 8, table, &mut self.fabric);
        self.command(|gcmd| gcmd.with_srtp(true));
    }

    fn status(&mut self) -> Gsts {
        Gsts::from_raw(self.unit.read(offset::GSTS, 4, &mut self.fabric) as u32)
    }

    fn command(&mut self, change: impl FnOnce(Gcmd) -> Gcmd) {
        let command = change(self.status().as_command());
        self.unit.write(offset::GCMD, 4, command.raw().into(), &mut self.fabric);
        self.settle();
    }

    /// Lets everything finish that the unit has under way.
    fn settle(&mut self) {
        while let Some(due) = self.unit.next_due() {
            self.fabric.now = self.fabric.now.max(due);
            self.unit.run(&mut self.fabric);
        }
    }

    /// A read of `iova` by `source`: where it went, or why not.
    pub(super) fn ask(&mut self, source: SourceId, iova: u64, write: bool) -> Result<u64, Reason> {
        match self.unit.translate_as(source, None, iova, 4, write, &mut self.fabric) {
            Outcome::To(address) => Ok(address),
            _ => match self.fabric.trace.last() {
                Some(TraceLine::Faulted { reason, .. }) => Err(*reason),
                other => panic!("refused without a fault: {other:?}"),
            },
        }
    }

    fn read(&mut self, iova: u64) -> Result<u64, Reason> {
        self.ask(DEVICE, iova, false)
    }

    fn submit(&mut self, descriptors: &[[u64; 2]]) {
        for words in descriptors {
            self.set(QUEUE + self.queue_tail, words[0]);
            self.set(QUEUE + self.queue_tail + 8, words[1]);
            self.queue_tail = (self.queue_tail + 16) % 4096;
        }
        self.unit.write(offset::IQT, 8, self.queue_tail, &mut self.fabric);
    }

    fn register_invalidate_all(&mut self) {
        let contexts = Ccmd::ZERO.with_icc(true).with_cirg(1).raw();
        self.unit.write(offset::CCMD, 8, contexts, &mut self.fabric);
        self.settle();
        let at = self.unit.config.ecap.iotlb_offset();
        let translations = IotlbCommand::ZERO.with_ivt(true).with_iirg(1).with_dw(true).raw();
        self.unit.write(at, 8, translations, &mut self.fabric);
        self.settle();
    }

    fn misuses(&self) -> Vec<&'static str> {
        let rule = |line: &TraceLine| match line {
            TraceLine::Misuse { rule, .. } => Some(*rule),
            _ => None,
        };
        self.fabric.trace.iter().filter_map(rule).collect()
    }
}

/// Second stage, three levels.
pub(super) fn context() -> ContextEntry {
    ContextEntry::ZERO.with_present(true).with_ssptptr(TOP >> 12).with_aw(1).with_did(DOMAIN)
}

fn pages(order: u64, iova: u64) -> [u64; 2] {
    IotlbInvalidate::ZERO
        .with_kind(kind::IOTLB)
        .with_g(3)
        .with_did(DOMAIN)
        .with_am(order)
        .with_addr(iova >> 12)
        .raw()
}

fn wait() -> [u64; 2] {
    Wait::ZERO.with_kind(kind::WAIT).with_sw(true).with_stdata(1).with_staddr(STATUS >> 2).raw()
}

#[test]
fn a_changed_mapping_stays_unnoticed_until_its_page_is_invalidated() {
    let mut bench = Bench::plain().enabled().with_queue();
    assert_eq!(bench.read(0x1008), Ok(PAGE_A + 8));
    bench.set(LOWEST + 8, PAGE_B | RW);
    bench.fabric.now += 1_000_000_000;
    assert_eq!(bench.read(0x1008), Ok(PAGE_A + 8));
    bench.submit(&[pages(0, 0x2000), wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1008), Ok(PAGE_A + 8), "another page was invalidated");
    bench.submit(&[pages(0, 0x1000), wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1008), Ok(PAGE_B + 8));
}

#[test]
fn an_unmapped_page_can_be_reached_until_it_is_invalidated() {
    let mut bench = Bench::plain().enabled();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.set(LOWEST + 8, 0);
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.register_invalidate_all();
    assert_eq!(bench.read(0x1000), Err(Reason::READ_DENIED));
}

#[test]
fn a_cleared_context_entry_lives_on_until_the_context_cache_is_invalidated() {
    let mut bench = Bench::plain().enabled().with_queue();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.set_context(ContextEntry::ZERO);
    bench.submit(&[[0x12, 0], wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A), "the IOTLB alone was invalidated, and filled again");
    let device = ContextInvalidate::ZERO.with_kind(kind::CONTEXT).with_g(3).with_sid(DEVICE.raw().into());
    bench.submit(&[device.with_did(DOMAIN + 1).raw(), wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A), "with another domain id");
    bench.submit(&[device.with_did(DOMAIN).raw(), wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1000), Err(Reason::CONTEXT_NOT_PRESENT));
}

#[test]
fn a_replaced_table_stays_in_use_when_only_leaves_are_invalidated() {
    let other = 0x10_5000;
    let mut bench = Bench::plain().enabled().with_queue();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.set(other + 8, PAGE_B | RW);
    bench.set(MIDDLE, other | RW);
    let leaf_only = IotlbInvalidate::from_raw(pages(0, 0x1000)).with_ih(true).raw();
    bench.submit(&[leaf_only, wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.submit(&[pages(0, 0x1000), wait()]);
    bench.settle();
    assert_eq!(bench.read(0x1000), Ok(PAGE_B));
}

#[test]
fn a_new_root_table_counts_from_srtp_on_and_not_from_its_register() {
    let other = 0x10_6000;
    let mut bench = Bench::plain().enabled();
    bench.unit.write(offset::RTADDR, 8, other, &mut bench.fabric);
    bench.fabric.now += 1_000_000_000;
    assert_eq!(bench.unit.read(offset::RTADDR, 8, &mut bench.fabric), other);
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.register_invalidate_all();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A), "walked again, from the old root");
    bench.command(|gcmd| gcmd.with_srtp(true));
    assert_eq!(bench.read(0x1000), Ok(PAGE_A), "cached");
    bench.register_invalidate_all();
    assert_eq!(bench.read(0x1000), Err(Reason::ROOT_NOT_PRESENT));
}

#[test]
fn every_refusal_has_its_reason() {
    let beyond = 0x4000_0000;
    type Change = fn(&mut Bench);
    let cases: [(Change, Reason); 16] = [
        (|b| b.set(ROOT, 0), Reason::ROOT_NOT_PRESENT),
        (|b| b.set(ROOT, CONTEXT | 0x11), Reason::ROOT_RESERVED),
        (|b| b.set(ROOT + 8, 1), Reason::ROOT_RESERVED),
        (|b| b.set(ROOT, 0x4000_0001), Reason::CONTEXT_ACCESS),
        (|b| b.set_context(context().with_present(false)), Reason::CONTEXT_NOT_PRESENT),
        (|b| b.set_context(context().with_tt(3)), Reason::CONTEXT_INVALID),
        (|b| b.set_context(context().with_tt(1)), Reason::CONTEXT_INVALID),
        (|b| b.set_context(context().with_aw(2)), Reason::CONTEXT_INVALID),
        (
            |b| b.set_context(ContextEntry::from_raw([context().raw()[0], context().raw()[1] | 1 << 50])),
            Reason::CONTEXT_RESERVED,
        ),
        (|b| b.set_context(context().with_ssptptr(1 << 40)), Reason::CONTEXT_RESERVED),
        (|b| b.set_context(context().with_ssptptr(0x4000_0000 >> 12)), Reason::CONTEXT_INVALID),
        (|b| b.set(TOP, 0x4000_0000 | RW), Reason::PAGING_ENTRY_ACCESS),
        (|b| b.set(MIDDLE, LOWEST | 1 << 11 | RW), Reason::PAGING_RESERVED),
        (|b| b.set(LOWEST + 8, 0), Reason::READ_DENIED),
        (|b| b.set(LOWEST + 8, PAGE_A | 2), Reason::READ_DENIED),
        (|b| b.set(LOWEST + 8, 0xfee0_0000 | RW), Reason::OUTPUT_IN_INTERRUPT_RANGE),
    ];
    for (i, (change, reason)) in cases.into_iter().enumerate() {
        let mut bench = Bench::plain();
        change(&mut bench);
        let mut bench = bench.enabled();
        assert_eq!(bench.read(0x1000), Err(reason), "case {i}");
        let record = bench.unit.read(bench.unit.config.cap.fault_record_offset(0) + 8, 8, &mut bench.fabric);
        assert_eq!(record >> 32 & 0xff, u64::from(reason.0), "case {i} is recorded");
    }
    let mut bench = Bench::plain().enabled();
    assert_eq!(bench.ask(DEVICE, 1 << 39, false), Err(Reason::ADDRESS_BEYOND_WIDTH));
    bench.set_root(beyond);
    bench.register_invalidate_all();
    assert_eq!(bench.read(0x1000), Err(Reason::ROOT_ACCESS));
}

#[test]
fn a_write_to_a_read_only_page_is_refused_and_a_read_of_it_is_not() {
    let mut bench = Bench::plain().enabled();
    bench.set(LOWEST + 8, PAGE_A | 1);
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    assert_eq!(bench.ask(DEVICE, 0x1000, true), Err(Reason::WRITE_DENIED));
}

#[test]
fn large_leaves_translate_within_their_size() {
    let mut bench = Bench::plain().enabled();
    bench.set(MIDDLE + 8, 0x20_0083);
    bench.set(TOP + 8, 0x4000_0083);
    assert_eq!(bench.read(0x20_0000 + 0x12_3456), Ok(0x20_0000 + 0x12_3456));
    assert_eq!(bench.read((1 << 30) + 0x123_4567), Ok(0x4000_0000 + 0x123_4567));
}

#[test]
fn pass_through_reaches_all_of_memory_where_the_unit_knows_it() {
    let pass = context().with_tt(2);
    let mut bench = Bench::plain();
    bench.set_context(pass);
    let mut bench = bench.enabled();
    assert_eq!(bench.read(0x1234_5678), Ok(0x1234_5678));
    let mut bench = Bench::new(UnitConfig::plain(0xfed9_0000, 39).with_ecap(|e| e.with_pt(false)));
    bench.set_context(pass);
    assert_eq!(bench.enabled().read(0x1000), Err(Reason::CONTEXT_INVALID));
}

#[test]
fn with_translation_off_addresses_reach_memory_as_they_are() {
    let mut bench = Bench::plain();
    assert_eq!(bench.read(0x1000), Ok(0x1000));
    let mut bench = Bench::plain().enabled();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.command(|gcmd| gcmd.with_te(false));
    assert_eq!(bench.read(0x1000), Ok(0x1000));
    assert!(matches!(bench.fabric.trace.last(), Some(TraceLine::Untranslated { address: 0x1000, .. })));
}

#[test]
fn status_bits_follow_commands_after_a_while_and_not_at_once() {
    let mut bench = Bench::plain();
    bench.set_root(ROOT);
    let command = bench.status().as_command().with_te(true).raw().into();
    bench.unit.write(offset::GCMD, 4, command, &mut bench.fabric);
    assert!(!bench.status().tes());
    bench.settle();
    assert!(bench.status().tes());
    assert!(bench.misuses().is_empty());
}

#[test]
fn broken_rules_of_the_global_command_register_are_noted() {
    let mut bench = Bench::plain();
    bench.unit.write(
        offset::GCMD,
        4,
        Gcmd::ZERO.with_te(true).with_srtp(true).raw().into(),
        &mut bench.fabric,
    );
    bench.unit.write(
        offset::GCMD,
        4,
        Gcmd::ZERO.with_te(true).with_wbf(true).raw().into(),
        &mut bench.fabric,
    );
    bench.settle();
    assert_eq!(
        bench.misuses(),
        [
            "several global commands in one write",
            "translation was switched on without a root table",
            "a global command before the one before it finished"
        ]
    );
}

#[test]
fn a_register_invalidation_is_busy_for_a_while_and_reports_what_it_did() {
    let mut bench = Bench::plain().enabled();
    let at = bench.unit.config.ecap.iotlb_offset();
    let command = IotlbCommand::ZERO.with_ivt(true).with_iirg(2).with_did(DOMAIN);
    // Two halves: the upper one starts it.
    bench.unit.write(at, 4, command.raw() & 0xffff_ffff, &mut bench.fabric);
    bench.unit.write(at + 4, 4, command.raw() >> 32, &mut bench.fabric);
    assert!(IotlbCommand::from_raw(bench.unit.read(at, 8, &mut bench.fabric)).ivt());
    bench.settle();
    let done = IotlbCommand::from_raw(bench.unit.read(at, 8, &mut bench.fabric));
    assert!(!done.ivt() && done.iaig() == 2);
    let what = Invalidation::TranslationsOfDomain(DOMAIN as u16);
    assert!(matches!(bench.fabric.trace.last(), Some(TraceLine::Invalidated { what: w, .. }) if *w == what));
}

#[test]
fn with_the_queue_on_register_invalidation_never_finishes() {
    let mut bench = Bench::plain().enabled().with_queue();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.set(LOWEST + 8, PAGE_B | RW);
    bench.register_invalidate_all();
    bench.fabric.now += 1_000_000_000;
    assert!(Ccmd::from_raw(bench.unit.read(offset::CCMD, 8, &mut bench.fabric)).icc());
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    assert_eq!(bench.misuses().len(), 2);
}

#[test]
fn the_wait_status_is_written_once_the_invalidation_before_it_is_done() {
    let mut bench = Bench::plain().enabled().with_queue();
    bench.submit(&[[0x11, 0], [0x12, 0], wait()]);
    assert_eq!(bench.fabric.memory.load(STATUS), Ok(0));
    bench.settle();
    assert_eq!(bench.fabric.memory.load(STATUS), Ok(1));
    let order: Vec<_> = bench.fabric.trace.iter().rev().take(3).collect();
    assert!(matches!(order[0], TraceLine::Waited { .. }));
    assert!(order[1..].iter().all(|line| matches!(line, TraceLine::Invalidated { .. })));
}

#[test]
fn the_queue_can_be_switched_off_after_a_wait_alone_where_the_unit_is_like_qemus() {
    let mut config = UnitConfig::plain(0xfed9_0000, 39);
    config.quirks.queue_ends_with_wait = true;
    let mut bench = Bench::new(config).enabled().with_queue();
    bench.submit(&[[0x11, 0]]);
    bench.settle();
    bench.command(|gcmd| gcmd.with_qie(false));
    assert!(bench.status().qies(), "refused");
    bench.submit(&[wait()]);
    bench.settle();
    bench.command(|gcmd| gcmd.with_qie(false));
    assert!(!bench.status().qies());
    assert_eq!(bench.unit.read(offset::IQH, 8, &mut bench.fabric), 0);
    assert_eq!(bench.unit.read(offset::IQT, 8, &mut bench.fabric), bench.queue_tail);
}

#[test]
fn a_bad_descriptor_sets_iqe_until_software_clears_it() {
    let mut bench = Bench::plain().enabled().with_queue();
    bench.submit(&[[0xf, 0], wait()]);
    bench.settle();
    assert_eq!(bench.unit.read(offset::FSTS, 4, &mut bench.fabric), 0x10);
    assert_eq!(bench.unit.read(offset::IQERCD, 8, &mut bench.fabric), 3);
    bench.set(QUEUE, 0x11);
    bench.unit.write(offset::FSTS, 4, 0x10, &mut bench.fabric);
    bench.settle();
    assert_eq!(bench.fabric.memory.load(STATUS), Ok(1));
}

#[test]
fn caching_mode_keeps_refusals_until_they_are_invalidated() {
    let config = UnitConfig::plain(0xfed9_0000, 39).with_cap(|cap| cap.with_cm(true));
    let mut bench = Bench::new(config).enabled();
    assert_eq!(bench.read(0x2000), Err(Reason::READ_DENIED));
    bench.set(LOWEST + 16, PAGE_B | RW);
    assert_eq!(bench.read(0x2000), Err(Reason::READ_DENIED));
    bench.register_invalidate_all();
    assert_eq!(bench.read(0x2000), Ok(PAGE_B));
    let mut bench = Bench::plain().enabled();
    assert_eq!(bench.read(0x2000), Err(Reason::READ_DENIED));
    bench.set(LOWEST + 16, PAGE_B | RW);
    assert_eq!(bench.read(0x2000), Ok(PAGE_B), "without caching mode new mappings show at once");
}

#[test]
fn a_walk_that_does_not_snoop_misses_stores_that_were_not_flushed() {
    let config = UnitConfig::plain(0xfed9_0000, 39).with_ecap(|ecap| ecap.with_c(false));
    let mut bench = Bench::new(config).enabled();
    bench.store(LOWEST + 16, PAGE_B | RW);
    assert_eq!(bench.read(0x2000), Err(Reason::READ_DENIED));
    let fabric = &mut bench.fabric;
    fabric.memory.flush_line(LOWEST + 16, fabric.now, &mut fabric.dice);
    assert_eq!(bench.read(0x2000), Ok(PAGE_B));
}

#[test]
fn stores_behind_a_write_buffer_show_after_a_flush_an_invalidation_or_some_time() {
    let config = UnitConfig::plain(0xfed9_0000, 39).with_cap(|cap| cap.with_rwbf(true));
    for way in 0..3 {
        let mut bench = Bench::new(config.clone()).enabled();
        bench.store(LOWEST + 16, PAGE_B | RW);
        assert_eq!(bench.read(0x2000), Err(Reason::READ_DENIED));
        match way {
            0 => bench.command(|gcmd| gcmd.with_wbf(true)),
            1 => bench.register_invalidate_all(),
            _ => bench.fabric.now += 1_000_000_000,
        }
        assert_eq!(bench.read(0x2000), Ok(PAGE_B), "way {way}");
    }
}

#[test]
fn protected_memory_blocks_what_is_not_translated() {
    let mut bench = Bench::plain();
    bench.unit.write(offset::PLMBASE, 4, 0x20_0000, &mut bench.fabric);
    bench.unit.write(offset::PLMLIMIT, 4, 0x3f_ffff, &mut bench.fabric);
    bench.unit.write(offset::PMEN, 4, 1 << 31, &mut bench.fabric);
    bench.settle();
    assert_eq!(bench.unit.read(offset::PMEN, 4, &mut bench.fabric), 1 << 31 | 1);
    assert_eq!(
        bench.unit.translate_as(DEVICE, None, 0x20_0000, 4, true, &mut bench.fabric),
        Outcome::Refused
    );
    assert_eq!(
        bench.unit.translate_as(DEVICE, None, 0x1f_fffc, 8, true, &mut bench.fabric),
        Outcome::Refused
    );
    assert_eq!(
        bench.unit.translate_as(DEVICE, None, 0x40_0000, 4, true, &mut bench.fabric),
        Outcome::To(0x40_0000)
    );
    assert!(!bench.unit.faults.pending(), "no fault is recorded");
    let mut bench = bench.enabled();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A), "translated requests may pass");
}

#[test]
fn fault_processing_disable_keeps_faults_out_of_the_records() {
    let mut bench = Bench::plain();
    bench.set_context(context().with_fpd(true));
    let mut bench = bench.enabled();
    assert_eq!(bench.read(0x5000), Err(Reason::READ_DENIED));
    assert!(!bench.unit.faults.pending());
}

#[test]
fn one_record_overflows_on_a_second_source_and_is_freed_by_writing_ones() {
    let config = UnitConfig::qemu_like(39).with_ecap(|ecap| ecap.with_c(true));
    let mut bench = Bench::new(config).enabled();
    let record = bench.unit.config.cap.fault_record_offset(0);
    assert_eq!(record, 0x220);
    assert_eq!(bench.read(0x2_0000), Err(Reason::READ_DENIED));
    assert_eq!(bench.unit.read(record, 8, &mut bench.fabric), 0x2_0000);
    assert_eq!(bench.unit.read(record + 8, 8, &mut bench.fabric), 0xc0ff_ff06_0000_0018);
    assert!(bench.ask(SourceId::new(1, 0, 0), 0, false).is_err());
    assert_eq!(bench.unit.read(offset::FSTS, 4, &mut bench.fabric), 3);
    bench.unit.write(record + 12, 4, 1 << 31, &mut bench.fabric);
    bench.unit.write(offset::FSTS, 4, 1, &mut bench.fabric);
    assert_eq!(bench.unit.read(offset::FSTS, 4, &mut bench.fabric), 0);
}

#[test]
fn a_swallowed_invalidation_reports_done_and_leaves_the_entry() {
    let faults = Faults { swallow_invalidation: Some(0), ..Faults::default() };
    let mut bench = Bench::with_faults(UnitConfig::plain(0xfed9_0000, 39), faults).enabled().with_queue();
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.set(LOWEST + 8, 0);
    bench.submit(&[pages(0, 0x1000), wait()]);
    bench.settle();
    assert_eq!(bench.fabric.memory.load(STATUS), Ok(1));
    assert_eq!(bench.read(0x1000), Ok(PAGE_A));
    bench.submit(&[pages(0, 0x1000)]);
    bench.settle();
    assert_eq!(bench.read(0x1000), Err(Reason::READ_DENIED));
}

#[test]
fn a_write_under_way_lands_before_a_draining_invalidation_is_done() {
    for (drain, landed) in [(true, 9), (false, 0)] {
        let mut bench = Bench::plain().enabled().with_queue();
        let descriptor = IotlbInvalidate::from_raw([0x12, 0]).with_dw(drain).raw();
        bench.submit(&[descriptor]);
        // Sent at the last moment before the invalidation takes effect.
        while !bench.unit.queue.idle() {
            bench.fabric.now = bench.unit.next_due().unwrap();
            bench.fabric.post(PAGE_A, &9u64.to_le_bytes());
            bench.unit.run(&mut bench.fabric);
        }
        assert_eq!(bench.fabric.memory.load(PAGE_A), Ok(landed), "drain {drain}");
    }
}
