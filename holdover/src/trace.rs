//! The machine's own account of what its remapping hardware did, apart from anything that a kernel says.
//!
//! QEMU writes a line for every translation, every fault and every register write (`vtd_*` trace events); [`entry`] reads one,
//! [`read`] a whole file. The built-in machine hands over the same entries. Kernels leave marks among them
//! ([`scenario::platform::Mark`], written to the fault event data register), and [`Account`] divides the trace at the marks
//! into segments and counts per requester within each: its size depends on marks and requesters, never on the length of
//! the trace.

use crate::report;
use scenario::platform::Mark;
use spec::{PAGE_SIZE, Requester, Segment as PciSegment, SourceId, UnitId};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read};

/// Trace events that [`entry`] understands; everything else is not asked for.
pub const EVENTS: [&str; 5] =
    ["vtd_dmar_translate", "vtd_dmar_fault", "vtd_dmar_enable", "vtd_reg_dmar_root", "vtd_reg_write"];

/// QEMU's one unit; its trace does not name it.
const QEMU_UNIT: UnitId = UnitId { segment: PciSegment(0), register_base: 0xfed9_0000 };
/// Register that the kernels write marks to: fault event data (VT-d 11.4.7.2).
const MARK_REGISTER: u64 = 0x3c;
/// Most marks that are told apart.
const SEGMENTS_MAX: usize = 256;
/// Most pages of memory that are told apart, for each requester between two marks.
const PAGES_MAX: usize = 64;
/// Longest line that is read in one piece.
const LINE_BYTES_MAX: u64 = 4096;

/// One thing that the hardware did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A request was translated.
    Translated {
        /// The unit that did it.
        unit: UnitId,
        /// Who asked.
        who: Requester,
        /// With which PASID.
        pasid: Option<u32>,
        /// The address asked for.
        iova: u64,
        /// Where it went.
        to: u64,
    },
    /// A request was blocked.
    Blocked {
        /// Who asked.
        who: Requester,
        /// With which PASID.
        pasid: Option<u32>,
        /// The address asked for.
        iova: u64,
        /// A write; otherwise a read.
        write: bool,
        /// Fault reason (VT-d 7.2.3).
        reason: u8,
    },
    /// A request reached memory as it was. Only the built-in machine sees these; in QEMU's trace they are missing lines.
    Untranslated {
        /// Who asked.
        who: Requester,
        /// The address, which was taken for a physical one.
        address: u64,
    },
    /// A device asked for a page. Only the built-in machine has such devices.
    PageAsked,
    /// A device was answered.
    PageAnswered {
        /// The page is there.
        success: bool,
        /// It had asked and not been answered yet.
        open: bool,
    },
    /// Software broke a rule of the programming interface. Only the built-in machine notices.
    Misuse(&'static str),
    /// Translation of a unit was switched on or off.
    Enable {
        /// The unit.
        unit: UnitId,
        /// On; otherwise off.
        on: bool,
    },
    /// The root pointer was set.
    Root(u64),
    /// A kernel left a mark.
    Mark(Mark),
}

/// What one requester did in one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that were translated.
    pub translated: u64,
    /// Requests that were blocked.
    pub blocked: u64,
    /// Requests that reached memory as they were.
    pub untranslated: u64,
    /// Requests by the page of memory that they were translated to, for as many pages as are told apart.
    pub pages: BTreeMap<u64, u64>,
    /// Blocked requests by the page that they asked for, for as many pages as are told apart.
    pub blocked_pages: BTreeMap<u64, u64>,
    /// The unit that translated last.
    pub unit: Option<UnitId>,
    /// The first translated address and where it went.
    pub first_translated: Option<(u64, u64)>,
    /// The first blocked address and the reason.
    pub first_blocked: Option<(u64, u8)>,
}

impl Traffic {
    fn add(&mut self, other: &Traffic) {
        self.translated += other.translated;
        self.blocked += other.blocked;
        self.untranslated += other.untranslated;
        for (all, more) in [(&mut self.pages, &other.pages), (&mut self.blocked_pages, &other.blocked_pages)]
        {
            more.iter().for_each(|(page, times)| *all.entry(*page).or_default() += times);
        }
        self.unit = other.unit.or(self.unit);
        self.first_translated = self.first_translated.or(other.first_translated);
        self.first_blocked = self.first_blocked.or(other.first_blocked);
    }
}

/// The trace between two marks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// The mark that it begins with; none for the part before the first mark.
    pub mark: Option<Mark>,
    /// The units whose translation was on when it began.
    pub enabled_at_start: BTreeSet<UnitId>,
    /// How often translation was switched off within it, by unit.
    pub switched_off: BTreeMap<UnitId, u64>,
    /// How often the root pointer was set within it.
    pub roots_set: u64,
    /// Page requests that were raised within it.
    pub pages_raised: u64,
    /// Page requests that were answered within it, by somebody who has the page.
    pub pages_answered: u64,
    /// Answers within it to requests that were not open.
    pub pages_answered_twice: u64,
    /// Who did what, in requests without PASID.
    pub sources: BTreeMap<Requester, Traffic>,
    /// Who did what, by PASID.
    pub pasids: BTreeMap<(Requester, u32), Traffic>,
}

/// A whole trace, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    segments: Vec<Segment>,
    enabled: BTreeSet<UnitId>,
    overfull: bool,
    misuse: BTreeSet<&'static str>,
}

impl Default for Account {
    fn default() -> Self {
        let (enabled, misuse) = (BTreeSet::new(), BTreeSet::new());
        Self { segments: vec![Segment::default()], enabled, overfull: false, misuse }
    }
}

impl Segment {
    fn traffic(&mut self, who: Requester, pasid: Option<u32>) -> &mut Traffic {
        match pasid {
            Some(pasid) => self.pasids.entry((who, pasid)).or_default(),
            None => self.sources.entry(who).or_default(),
        }
    }
}

impl Account {
    /// Takes the next entry in.
    pub fn note(&mut self, entry: Entry) {
        match entry {
            Entry::Mark(mark) => return self.open(mark),
            Entry::Enable { unit, on: true } => drop(self.enabled.insert(unit)),
            Entry::Enable { unit, on: false } => drop(self.enabled.remove(&unit)),
            Entry::Misuse(rule) => drop(self.misuse.insert(rule)),
            _ => {}
        }
        let Some(segment) = self.segments.last_mut() else { return };
        match entry {
            Entry::Translated { unit, who, pasid, iova, to } => {
                let traffic = segment.traffic(who, pasid);
                traffic.translated += 1;
                traffic.unit = Some(unit);
                count(&mut traffic.pages, to / PAGE_SIZE);
                traffic.first_translated.get_or_insert((iova, to));
            }
            Entry::Blocked { who, pasid, iova, reason, .. } => {
                let traffic = segment.traffic(who, pasid);
                traffic.blocked += 1;
                count(&mut traffic.blocked_pages, iova / PAGE_SIZE);
                traffic.first_blocked.get_or_insert((iova, reason));
            }
            Entry::Untranslated { who, .. } => segment.sources.entry(who).or_default().untranslated += 1,
            Entry::Enable { unit, on: false } => *segment.switched_off.entry(unit).or_default() += 1,
            Entry::Root(_) => segment.roots_set += 1,
            Entry::PageAsked => segment.pages_raised += 1,
            Entry::PageAnswered { open: false, .. } => segment.pages_answered_twice += 1,
            Entry::PageAnswered { success, .. } => segment.pages_answered += u64::from(success),
            Entry::Enable { on: true, .. } | Entry::Misuse(_) | Entry::Mark(_) => {}
        }
    }

    fn open(&mut self, mark: Mark) {
        if self.segments.len() == SEGMENTS_MAX {
            self.overfull = true;
            return;
        }
        let segment =
            Segment { mark: Some(mark), enabled_at_start: self.enabled.clone(), ..Segment::default() };
        self.segments.push(segment);
    }

    /// The segments in order. The first one has no mark.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
    /// Whether there were more marks than are told apart.
    #[must_use]
    pub fn overfull(&self) -> bool {
        self.overfull
    }

    /// Rules of the programming interface that software broke, each once.
    pub fn misuse(&self) -> impl Iterator<Item = &'static str> {
        self.misuse.iter().copied()
    }

    /// How often this mark was left.
    #[must_use]
    pub fn marks(&self, mark: Mark) -> usize {
        self.segments.iter().filter(|s| s.mark == Some(mark)).count()
    }

    /// The segments in which devices run: from the first [`Mark::Running`] to the last [`Mark::Over`], or to the end where
    /// there is none.
    #[must_use]
    pub fn running(&self) -> &[Segment] {
        let first = self.segments.iter().position(|s| s.mark == Some(Mark::Running));
        let over = self.segments.iter().rposition(|s| s.mark == Some(Mark::Over));
        match first {
            Some(first) => &self.segments[first..over.unwrap_or(self.segments.len()).max(first)],
            None => &[],
        }
    }

    /// The segments in which what was cut off must stay cut off: from each [`Mark::CutOffDone`] up to the next
    /// [`Mark::Rearm`], with which a kernel says that it sets requesters up anew, or to [`Mark::Over`].
    pub fn cut_off(&self) -> impl Iterator<Item = &Segment> {
        self.segments
            .iter()
            .scan(false, |inside, segment| {
                match segment.mark {
                    Some(Mark::CutOffDone) => *inside = true,
                    Some(Mark::Rearm | Mark::Over) => *inside = false,
                    _ => {}
                }
                Some((*inside, segment))
            })
            .filter_map(|(inside, segment)| inside.then_some(segment))
    }

    /// The units that must go on translating: those that translated for one of these requesters while devices were running.
    #[must_use]
    pub fn units_of(&self, requesters: &[Requester]) -> BTreeSet<UnitId> {
        requesters.iter().filter_map(|who| self.of_running(&[*who]).unit).collect()
    }

    /// What was done under these ids in the time when they had to be cut off.
    #[must_use]
    pub fn of_cut_off(&self, ids: &[Requester]) -> Traffic {
        sum(self.cut_off(), ids)
    }

    /// What was done under these ids while devices were running.
    #[must_use]
    pub fn of_running(&self, ids: &[Requester]) -> Traffic {
        sum(self.running().iter(), ids)
    }

    /// What a requester did with a PASID while devices were running.
    #[must_use]
    pub fn of_running_pasid(&self, requester: &str, pasid: u32) -> Traffic {
        sum_pasid(self.running().iter(), requester, pasid)
    }

    /// What a requester did with a PASID in the time when it had to be cut off.
    #[must_use]
    pub fn of_cut_off_pasid(&self, requester: &str, pasid: u32) -> Traffic {
        sum_pasid(self.cut_off(), requester, pasid)
    }

    /// Everybody who did anything while devices were running.
    #[must_use]
    pub fn traffic(&self) -> Vec<report::Traffic> {
        let mut all: BTreeMap<(Requester, Option<u32>), Traffic> = BTreeMap::new();
        for segment in self.running() {
            for (who, traffic) in &segment.sources {
                all.entry((*who, None)).or_default().add(traffic);
            }
            for ((who, pasid), traffic) in &segment.pasids {
                all.entry((*who, Some(*pasid))).or_default().add(traffic);
            }
        }
        all.into_iter()
            .map(|((who, pasid), t)| report::Traffic {
                requester: who.to_string(),
                pasid,
                translated: t.translated,
                blocked: t.blocked,
            })
            .collect()
    }
}

/// Counts one more request for a page.
fn count(pages: &mut BTreeMap<u64, u64>, page: u64) {
    if pages.len() < PAGES_MAX || pages.contains_key(&page) {
        *pages.entry(page).or_default() += 1;
    }
}

fn sum<'a>(segments: impl Iterator<Item = &'a Segment>, ids: &[Requester]) -> Traffic {
    let mut total = Traffic::default();
    for traffic in segments.flat_map(|s| ids.iter().filter_map(|who| s.sources.get(who))) {
        total.add(traffic);
    }
    total
}

fn sum_pasid<'a>(segments: impl Iterator<Item = &'a Segment>, requester: &str, pasid: u32) -> Traffic {
    let mut total = Traffic::default();
    let Ok(who) = scenario::text::parse_requester(requester) else { return total };
    for traffic in segments.filter_map(|s| s.pasids.get(&(who, pasid))) {
        total.add(traffic);
    }
    total
}

/// Reads a trace to its end.
///
/// # Errors
/// When the trace cannot be read.
pub fn read(mut from: impl BufRead) -> io::Result<Account> {
    let mut account = Account::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(account);
        }
        if let Some(entry) = std::str::from_utf8(&line).ok().and_then(entry) {
            account.note(entry);
        }
    }
}

/// One line of QEMU's trace, with or without a time before it. None for lines of no concern.
#[must_use]
pub fn entry(line: &str) -> Option<Entry> {
    let line = &line[line.find("vtd_")?..];
    let mut words = line.split_ascii_whitespace();
    let event = words.next()?;
    let mut fields = Fields(words);
    match event {
        "vtd_dmar_translate" => {
            let who = on_qemu(source(fields.after("dev")?)?);
            Some(Entry::Translated {
                unit: QEMU_UNIT,
                who,
                // No device of QEMU sends any.
                pasid: None,
                iova: fields.number("iova")?,
                to: fields.number("gpa")?,
            })
        }
        "vtd_dmar_fault" => {
            let who = on_qemu(SourceId::from_raw(u16::try_from(fields.number("sid")?).ok()?));
            let reason = u8::try_from(fields.number("fault")?).ok()?;
            let iova = fields.number("addr")?;
            Some(Entry::Blocked { who, pasid: None, iova, write: fields.number("write")? != 0, reason })
        }
        "vtd_dmar_enable" => Some(Entry::Enable { unit: QEMU_UNIT, on: fields.number("enable")? != 0 }),
        "vtd_reg_dmar_root" => Some(Entry::Root(fields.number("addr")?)),
        "vtd_reg_write" if fields.number("addr")? == MARK_REGISTER => {
            fields.number("size")?;
            mark(fields.number("value")?).map(Entry::Mark)
        }
        _ => None,
    }
}

/// The mark with this value.
#[must_use]
pub fn mark(value: u64) -> Option<Mark> {
    use Mark::{Adopted, Arrived, CutOffBegin, CutOffDone, Finished, Jump, Over, Rearm, Running};
    [Running, CutOffBegin, CutOffDone, Jump, Arrived, Adopted, Finished, Over, Rearm]
        .into_iter()
        .find(|m| u64::from(*m as u16) == value)
}

/// The words of a line, of which every second names the next.
struct Fields<'a, I: Iterator<Item = &'a str>>(I);

impl<'a, I: Iterator<Item = &'a str>> Fields<'a, I> {
    fn after(&mut self, name: &str) -> Option<&'a str> {
        self.0.by_ref().find(|w| *w == name)?;
        self.0.next()
    }
    fn number(&mut self, name: &str) -> Option<u64> {
        let word = self.after(name)?;
        match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    }
}

/// A source-id as QEMU writes it, `00:03.00`: all three parts in hexadecimal.
fn source(text: &str) -> Option<SourceId> {
    let (bus, rest) = text.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let part = |digits: &str| u8::from_str_radix(digits, 16).ok();
    let (device, function) = (part(device)?, part(function)?);
    (device < 32 && function < 8).then_some(SourceId::new(part(bus)?, device, function))
}

/// QEMU has one segment.
fn on_qemu(source: SourceId) -> Requester {
    Requester::new(QEMU_UNIT.segment, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
vtd_reg_dmar_root addr 0x3000000 scalable 0
vtd_dmar_enable enable 1
vtd_dmar_translate dev 00:04.00 iova 0x10000 -> gpa 0x4000000 mask 0xfff
vtd_reg_write addr 0x3c size 0x4 value 0x1001
vtd_dmar_translate dev 00:02.00 iova 0x20000 -> gpa 0x5000000 mask 0xfff
vtd_dmar_translate dev 01:00.00 iova 0x30000 -> gpa 0x6000000 mask 0xfff
vtd_reg_write addr 0x3c size 0x4 value 0x1003
vtd_dmar_fault sid 0x20 fault 2 addr 0x10000 write 1
vtd_reg_write addr 0x3c size 0x4 value 0x1004
vtd_dmar_fault sid 0x20 fault 2 addr 0x11000 write 1
1234@1699.000001:vtd_dmar_translate dev 00:02.00 iova 0x21000 -> gpa 0x5001000 mask 0xfff
vtd_reg_write addr 0x3c size 0x4 value 0x1008
vtd_dmar_enable enable 0
vtd_dmar_fault sid 0x10 fault 6 addr 0x20000 write 0
";

    #[test]
    fn each_kind_of_line_is_read_with_decimal_and_hexadecimal_numbers() {
        let fault = entry("vtd_dmar_fault sid 0x8 fault 113 addr 0x20000 write 0\n").unwrap();
        let who = on_qemu(SourceId::new(0, 1, 0));
        assert_eq!(fault, Entry::Blocked { who, pasid: None, iova: 0x2_0000, write: false, reason: 113 });
        let line = "vtd_dmar_translate dev 01:1f.07 iova 0x1 -> gpa 0x2 mask 0xfff";
        let who = on_qemu(SourceId::new(1, 31, 7));
        assert_eq!(
            entry(line),
            Some(Entry::Translated { unit: QEMU_UNIT, who, pasid: None, iova: 1, to: 2 })
        );
        assert_eq!(entry("vtd_dmar_enable enable 0"), Some(Entry::Enable { unit: QEMU_UNIT, on: false }));
        assert_eq!(entry("vtd_reg_dmar_root addr 0x3000000 scalable 0"), Some(Entry::Root(0x300_0000)));
        let line = "vtd_reg_write addr 0x3c size 0x4 value 0x1003";
        assert_eq!(entry(line), Some(Entry::Mark(Mark::CutOffDone)));
    }

    #[test]
    fn writes_to_other_registers_foreign_lines_and_torn_lines_are_left_out() {
        for line in [
            "",
            "vtd_",
            "vtd_reg_write addr 0x38 size 0x4 value 0x1003",
            "vtd_reg_write addr 0x3c size 0x4 value 0x7",
            "vtd_dmar_translate dev 00:02.00 iova 0x2",
            "vtd_dmar_translate dev 00:20.00 iova 0x2 -> gpa 0x1 mask 0xfff",
            "vtd_dmar_fault sid 0x12345 fault 2 addr 0x1 write 0",
            "e1000e_rx vtd",
        ] {
            assert_eq!(entry(line), None, "{line}");
        }
    }

    #[test]
    fn traffic_is_counted_where_the_marks_say_it_matters() {
        let account = read(RUN.as_bytes()).unwrap();
        let hda = account.of_running(&[on_qemu(SourceId::new(0, 2, 0))]);
        assert_eq!((hda.translated, hda.blocked), (2, 0), "the fault after the end is of no concern");
        let edu = account.of_cut_off(&[on_qemu(SourceId::new(0, 4, 0))]);
        assert_eq!((edu.translated, edu.blocked), (0, 2));
        assert_eq!(edu.first_blocked, Some((0x1_0000, 2)));
        let bridge = account.of_cut_off(&[on_qemu(SourceId::new(1, 0, 0))]);
        assert_eq!(bridge, Traffic::default(), "what happened before the cut-off is of no concern");
    }

    #[test]
    fn translation_going_off_is_seen_only_while_devices_run() {
        let account = read(RUN.as_bytes()).unwrap();
        let on = |s: &Segment| s.enabled_at_start.contains(&QEMU_UNIT) && s.switched_off.is_empty();
        assert!(account.running().iter().all(on));
        let off = RUN
            .replace("value 0x1004\n", "value 0x1004\nvtd_dmar_enable enable 0\nvtd_dmar_enable enable 1\n");
        let account = read(off.as_bytes()).unwrap();
        let at: Vec<_> =
            account.running().iter().filter(|s| !s.switched_off.is_empty()).map(|s| s.mark).collect();
        assert_eq!(at, [Some(Mark::Jump)]);
    }

    #[test]
    fn a_kernel_that_sets_requesters_up_anew_ends_the_time_of_the_cut_off() {
        let again = RUN.replace(
            "vtd_reg_write addr 0x3c size 0x4 value 0x1008\n",
            "vtd_reg_write addr 0x3c size 0x4 value 0x1009\n\
             vtd_dmar_translate dev 00:04.00 iova 0x1 -> gpa 0x2 mask 0xfff\n",
        );
        let account = read(again.as_bytes()).unwrap();
        assert_eq!(account.of_cut_off(&[on_qemu(SourceId::new(0, 4, 0))]).translated, 0);
        assert_eq!(account.of_running(&[on_qemu(SourceId::new(0, 4, 0))]).translated, 1);
    }

    #[test]
    fn marks_without_end_are_counted_up_to_a_limit() {
        let mut account = Account::default();
        for _ in 0..10_000 {
            account.note(Entry::Mark(Mark::Running));
        }
        assert!(account.overfull());
        assert_eq!(account.segments().len(), SEGMENTS_MAX);
    }
}
