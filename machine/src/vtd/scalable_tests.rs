//! Scalable mode against tables built by hand: every refusal, both stages and nesting, PASIDs, what goes stale.

use super::unit::Outcome;
use crate::config::UnitConfig;
use crate::probe::Probe;
use spec::SourceId;
use spec::fault::Reason;
use spec::invalidation::{
    PasidCacheInvalidate, PasidIotlbInvalidate, kind, pasid_cache_granularity, pasid_iotlb_granularity,
};
use spec::regs::{FaultRecord, Gcmd, Gsts, Iqa, RootAddr, offset};
use spec::root::ScalableRootEntry;
use spec::scalable::{PasidDirectoryEntry, PasidEntry, ScalableContextEntry, pasid_type};

/// Its functions lie in the upper half of the bus.
const DEVICE: SourceId = SourceId::new(0, 0x12, 0);
const ROOT: u64 = 0x10_0000;
const CONTEXTS: u64 = 0x10_1000;
const DIRECTORY: u64 = 0x10_2000;
const PASIDS: u64 = 0x10_3000;
/// Tables of four levels, the first at the top, for IOVA 0x1000.
const FIRST: [u64; 4] = [0x10_4000, 0x10_5000, 0x10_6000, 0x10_7000];
const SECOND: [u64; 4] = [0x10_8000, 0x10_9000, 0x10_a000, 0x10_b000];
const QUEUE: u64 = 0x11_0000;
const PAGE_A: u64 = 0x20_0000;
const PAGE_B: u64 = 0x20_1000;
const HOLE: u64 = 0x4000_0000;
const RW: u64 = 3;
const USER: u64 = 7;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PASID: u32 = 5;

fn put(probe: &mut Probe, at: u64, words: &[u64]) {
    for (at, &word) in (at..).step_by(8).zip(words) {
        probe.store(at, word).unwrap();
    }
}

/// Tables of both stages that map page 0x1000, and a device whose requests without PASID take the entry of PASID 0.
fn probe(entry: PasidEntry) -> Probe {
    let config = UnitConfig::plain(0xfed9_0000, 48).with_scalable_mode();
    let mut probe = Probe::new(config, 48, &[(0x10_0000, 0x40_0000)]);
    let root = ScalableRootEntry::ZERO.with_up(true).with_uctp(CONTEXTS >> 12);
    put(&mut probe, ROOT, &root.raw());
    put(&mut probe, context_address(), &context().raw());
    let directory = PasidDirectoryEntry::ZERO.with_present(true).with_smptblptr(PASIDS >> 12);
    put(&mut probe, DIRECTORY, &[directory.raw()]);
    put(&mut probe, PASIDS, &entry.raw());
    for ([top, upper, middle, lowest], rights) in [(FIRST, USER), (SECOND, RW)] {
        put(&mut probe, top, &[upper | rights]);
        put(&mut probe, upper, &[middle | rights]);
        put(&mut probe, middle, &[lowest | rights]);
        put(&mut probe, lowest + 8, &[PAGE_A | rights]);
    }
    probe
}

fn context_address() -> u64 {
    CONTEXTS + 32 * 0x10
}

fn context() -> ScalableContextEntry {
    ScalableContextEntry::ZERO.with_present(true).with_pasiddirptr(DIRECTORY >> 12)
}

fn second_stage() -> PasidEntry {
    let entry = PasidEntry::ZERO.with_present(true).with_did(7).with_pgtt(pasid_type::SECOND_STAGE);
    entry.with_aw(2).with_ssptptr(SECOND[0] >> 12)
}

fn first_stage() -> PasidEntry {
    let entry = PasidEntry::ZERO.with_present(true).with_did(7).with_pgtt(pasid_type::FIRST_STAGE);
    entry.with_fsptptr(FIRST[0] >> 12)
}

fn command(probe: &mut Probe, change: impl Fn(Gcmd) -> Gcmd) {
    let status = Gsts::from_raw(probe.read(offset::GSTS, 4) as u32);
    probe.write(offset::GCMD, 4, change(status.as_command()).raw().into());
}

fn enabled(mut probe: Probe) -> Probe {
    let root = RootAddr::ZERO.with_rta(ROOT >> 12).with_ttm(1);
    probe.write(offset::RTADDR, 8, root.raw());
    command(&mut probe, |c| c.with_srtp(true));
    command(&mut probe, |c| c.with_te(true));
    probe
}

fn ask(probe: &mut Probe, iova: u64, write: bool) -> Result<u64, Reason> {
    answer(probe, None, iova, write)
}

fn answer(probe: &mut Probe, pasid: Option<u32>, iova: u64, write: bool) -> Result<u64, Reason> {
    let answer = probe.request_as(DEVICE, pasid, iova, 8, write);
    match (answer.outcome, answer.fault) {
        (Outcome::To(at), None) => Ok(at),
        (Outcome::Refused, Some((reason, _))) => Err(reason),
        other => panic!("{other:?}"),
    }
}

/// Hands one descriptor to a queue of 256 bits.
fn invalidate(probe: &mut Probe, words: [u64; 2]) {
    put(probe, QUEUE, &[words[0], words[1], 0, 0]);
    probe.write(offset::IQA, 8, Iqa::ZERO.with_iqa(QUEUE >> 12).with_dw(true).raw());
    command(probe, |c| c.with_qie(true));
    probe.write(offset::IQT, 8, 32);
    assert_eq!(probe.read(offset::IQH, 8), 32, "the descriptor was taken");
    command(probe, |c| c.with_qie(false));
    probe.write(offset::IQT, 8, 0);
}

#[test]
fn each_translation_type_reaches_its_page() {
    for entry in [first_stage(), second_stage()] {
        let mut probe = enabled(probe(entry));
        assert_eq!(ask(&mut probe, 0x1008, false), Ok(PAGE_A + 8));
        assert_eq!(ask(&mut probe, 0x1010, true), Ok(PAGE_A + 0x10));
    }
    let mut probe = enabled(probe(second_stage().with_pgtt(pasid_type::PASS_THROUGH)));
    assert_eq!(ask(&mut probe, 0x30_0000, true), Ok(0x30_0000));
}

#[test]
fn every_refusal_above_the_paging_tables_has_its_reason() {
    type Change = fn(&mut Probe);
    let cases: [(Change, Reason); 17] = [
        (|p| put(p, ROOT + 8, &[0]), Reason::SCALABLE_ROOT_NOT_PRESENT),
        (|p| put(p, ROOT + 8, &[CONTEXTS | 0x21]), Reason::SCALABLE_ROOT_RESERVED),
        (|p| put(p, ROOT + 8, &[HOLE | 1]), Reason::SCALABLE_CONTEXT_ACCESS),
        (|p| put(p, context_address(), &[0]), Reason::SCALABLE_CONTEXT_NOT_PRESENT),
        (|p| put(p, context_address() + 24, &[1]), Reason::SCALABLE_CONTEXT_RESERVED),
        (|p| put(p, context_address(), &context().with_dte(true).raw()), Reason::SCALABLE_CONTEXT_INVALID),
        (|p| put(p, context_address(), &context().with_rid_pasid(0x2000).raw()), Reason::RID_PASID),
        (
            |p| put(p, context_address(), &context().with_pasiddirptr(HOLE >> 12).raw()),
            Reason::PASID_DIRECTORY_ACCESS,
        ),
        (|p| put(p, DIRECTORY, &[0]), Reason::PASID_DIRECTORY_NOT_PRESENT),
        (|p| put(p, DIRECTORY, &[PASIDS | 5]), Reason::PASID_DIRECTORY_RESERVED),
        (|p| put(p, DIRECTORY, &[HOLE | 1]), Reason::PASID_ACCESS),
        (|p| put(p, PASIDS, &second_stage().with_present(false).raw()), Reason::PASID_NOT_PRESENT),
        (|p| put(p, PASIDS + 56, &[1]), Reason::PASID_RESERVED),
        (|p| put(p, PASIDS, &second_stage().with_aw(3).raw()), Reason::PASID_INVALID),
        (|p| put(p, PASIDS, &second_stage().with_pgtt(6).raw()), Reason::PASID_INVALID),
        (|p| put(p, PASIDS, &first_stage().with_fspm(1).raw()), Reason::PASID_INVALID),
        (|p| put(p, PASIDS, &second_stage().with_ssptptr(HOLE >> 12).raw()), Reason::SECOND_STAGE_POINTER),
    ];
    for (i, (change, reason)) in cases.into_iter().enumerate() {
        let mut probe = probe(second_stage());
        change(&mut probe);
        assert_eq!(ask(&mut enabled(probe), 0x1000, false), Err(reason), "case {i}");
    }
}

#[test]
fn every_refusal_of_a_stage_has_its_reason() {
    let cases = [
        (second_stage(), SECOND[0], HOLE | RW, 0x1000, Reason::SECOND_STAGE_ACCESS),
        (second_stage(), SECOND[3] + 8, 0, 0x1000, Reason::SECOND_STAGE_DENIED),
        (second_stage(), SECOND[3] + 8, PAGE_A | 1, 0x1000, Reason::SECOND_STAGE_DENIED),
        (second_stage(), SECOND[3] + 8, PAGE_A | 1 << 11 | RW, 0x1000, Reason::SECOND_STAGE_RESERVED),
        (second_stage(), SECOND[3] + 8, 0xfee0_0003, 0x1000, Reason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE),
        (second_stage(), ROOT + 0x800, 0, 1 << 48, Reason::SCALABLE_BEYOND_WIDTH),
        (second_stage().with_aw(1), ROOT + 0x800, 0, 1 << 39, Reason::SECOND_STAGE_BEYOND_WIDTH),
        (first_stage(), FIRST[1], HOLE | USER, 0x1000, Reason::FIRST_STAGE_ACCESS),
        (first_stage().with_fsptptr(HOLE >> 12), ROOT + 0x800, 0, 0x1000, Reason::FIRST_STAGE_TOP),
        (first_stage(), FIRST[3] + 8, 0, 0x1000, Reason::FIRST_STAGE_NOT_PRESENT),
        (first_stage(), FIRST[3] + 8, PAGE_A | 3, 0x1000, Reason::USER_DENIED),
        (first_stage(), FIRST[3] + 8, PAGE_A | 5, 0x1000, Reason::SCALABLE_WRITE_DENIED),
        (first_stage(), FIRST[0], FIRST[1] | USER | 1 << 7, 0x1000, Reason::FIRST_STAGE_RESERVED),
        (first_stage(), ROOT + 0x800, 0, 1 << 47, Reason::NOT_CANONICAL),
    ];
    for (i, (entry, at, word, iova, reason)) in cases.into_iter().enumerate() {
        let mut probe = probe(entry);
        put(&mut probe, at, &[word]);
        assert_eq!(ask(&mut enabled(probe), iova, true), Err(reason), "case {i}");
    }
}

#[test]
fn the_first_stage_marks_what_it_uses_and_a_later_write_marks_a_page_that_was_cached_clean() {
    let mut probe = enabled(probe(first_stage()));
    let leaf = |probe: &Probe| probe.load(FIRST[3] + 8).unwrap();
    assert!(ask(&mut probe, 0x1000, false).is_ok());
    assert_eq!(leaf(&probe), PAGE_A | USER | ACCESSED);
    assert_eq!(probe.load(FIRST[0]).unwrap(), FIRST[1] | USER | ACCESSED);
    assert!(ask(&mut probe, 0x1000, true).is_ok());
    assert_eq!(leaf(&probe), PAGE_A | USER | ACCESSED | DIRTY);
}

#[test]
fn nested_addresses_go_through_both_stages_tables_included() {
    let nested = first_stage().with_pgtt(pasid_type::NESTED).with_aw(2).with_ssptptr(SECOND[0] >> 12);
    let mut probe = probe(nested);
    // The second stage maps the first stage's tables where they are, and page A to page B.
    put(&mut probe, SECOND[2] + 8, &[0x10_c000 | RW]);
    for table in FIRST {
        put(&mut probe, SECOND[3] + 8 * (table >> 12), &[table | RW]);
    }
    put(&mut probe, 0x10_c000, &[PAGE_B | RW]);
    let mut probe = enabled(probe);
    assert_eq!(ask(&mut probe, 0x1008, true), Ok(PAGE_B + 8));
    probe.forget_everything();
    put(&mut probe, 0x10_c000, &[PAGE_B | 1]);
    assert_eq!(ask(&mut probe, 0x1008, true), Err(Reason::SECOND_STAGE_DENIED));
    put(&mut probe, SECOND[3] + 8 * (FIRST[1] >> 12), &[0]);
    assert_eq!(ask(&mut probe, 0x1008, false), Err(Reason::NESTED_READ_DENIED));
    put(&mut probe, SECOND[3] + 8 * (FIRST[0] >> 12), &[0]);
    assert_eq!(ask(&mut probe, 0x1008, false), Err(Reason::NESTED_TOP_READ_DENIED));
}

#[test]
fn a_request_with_pasid_takes_its_own_entry_and_its_fault_shows_it() {
    let mut probe = probe(second_stage());
    put(&mut probe, PASIDS + 64 * u64::from(PASID), &first_stage().with_did(8).raw());
    put(&mut probe, FIRST[3] + 8, &[PAGE_B | USER]);
    let mut probe = enabled(probe);
    assert_eq!(answer(&mut probe, Some(PASID), 0x1000, false), Err(Reason::PASID_DISABLED));
    probe.forget_everything();
    put(&mut probe, context_address(), &context().with_paside(true).raw());
    assert_eq!(answer(&mut probe, Some(PASID), 0x1000, false), Ok(PAGE_B));
    assert_eq!(ask(&mut probe, 0x1000, false), Ok(PAGE_A));
    assert_eq!(answer(&mut probe, Some(0x2000), 0x1000, false), Err(Reason::PASID_TOO_LARGE));
    let record = |probe: &mut Probe| {
        let at = spec::regs::Cap::from_raw(probe.read(offset::CAP, 8)).fault_record_offset(0);
        FaultRecord::from_raw([probe.read(at, 8), probe.read(at + 8, 8)])
    };
    let first = record(&mut probe);
    assert!(first.pp() && first.pv() == u64::from(PASID), "{first:?}");
}

#[test]
fn a_pasid_entry_and_its_pages_live_on_until_invalidated_by_name() {
    let mut probe = enabled(probe(first_stage()));
    assert_eq!(ask(&mut probe, 0x1000, false), Ok(PAGE_A));
    put(&mut probe, FIRST[3] + 8, &[PAGE_B | USER]);
    put(&mut probe, PASIDS, &[0]);
    let pages = PasidIotlbInvalidate::ZERO.with_kind(kind::PASID_IOTLB).with_did(7);
    let page = pages.with_g(pasid_iotlb_granularity::PAGE);
    invalidate(&mut probe, page.with_addr(2).raw());
    assert_eq!(ask(&mut probe, 0x1000, false), Ok(PAGE_A), "another page was invalidated");
    invalidate(&mut probe, page.with_pasid(1).with_addr(1).raw());
    assert_eq!(ask(&mut probe, 0x1000, false), Ok(PAGE_A), "of another PASID");
    invalidate(&mut probe, page.with_addr(1).raw());
    assert_eq!(ask(&mut probe, 0x1000, false), Ok(PAGE_B), "the PASID entry is still cached");
    let entries = PasidCacheInvalidate::ZERO.with_kind(kind::PASID_CACHE);
    let one = entries.with_g(pasid_cache_granularity::PASID);
    invalidate(&mut probe, one.with_did(8).raw());
    assert_eq!(ask(&mut probe, 0x1000, false), Ok(PAGE_B), "with another domain id");
    invalidate(&mut probe, one.with_did(7).raw());
    assert_eq!(ask(&mut probe, 0x1000, false), Err(Reason::PASID_NOT_PRESENT));
}
