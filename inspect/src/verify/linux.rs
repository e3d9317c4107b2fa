//! Any other image: what a jump would do as things stand.
//!
//! Linux hands frames over (KHO) and files (LUO), but no remapping tables. So each table must be asked whether its frame
//! is preserved (I1), each present entry is a requester that would go on (I2) unless the policy preserves it, and each
//! leaf is a place that it could still read or write (I3).

use super::outside::{Fine, Outside, Stray};
use super::{KEPT, Line, Policy, Report, Violation, way};
use crate::format::text::size;
use crate::image::Memory;
use crate::kho::Preserved;
use crate::model::{Attachment, Mode, Model, Requester, Route, Unit};
use crate::tables::{self, Budget, Visit};
use crate::translate::Asker;
use audit::Invariant;
use spec::{PAGE_SIZE, PhysAddr};
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::rc::Rc;

/// Ranges that are listed for each requester; the rest is summed up.
const LISTED: usize = 8;

struct Judge<'a> {
    memory: &'a Memory,
    model: &'a Model,
    policy: &'a Policy,
    /// All handovers' preserved frames.
    preserved: Vec<&'a Preserved>,
    /// Them, and what the policy allows.
    fine: Fine,
    /// Page tables that were held against that, by their numbers.
    outside: HashMap<usize, Rc<Outside>>,
    items: [u64; 10],
    counts: [u64; 10],
    violations: Vec<Violation>,
    /// Tables that were judged: a frame of two roles counts once.
    tables: BTreeSet<u64>,
    lost: u64,
}

/// Judges an image without our records.
pub(super) fn verify(memory: &Memory, model: &Model, policy: &Policy) -> Report {
    let preserved: Vec<&Preserved> = model.handovers.iter().map(|kho| &kho.preserved).collect();
    let mut judge = Judge {
        memory,
        model,
        policy,
        fine: Fine::new(policy, &preserved),
        outside: HashMap::new(),
        preserved,
        items: [0; 10],
        counts: [0; 10],
        violations: Vec::new(),
        tables: BTreeSet::new(),
        lost: 0,
    };
    let mut outlook = Vec::new();
    for unit in &model.units {
        judge.mode(unit);
        judge.tables(unit);
        judge.domain_ids(unit);
        judge.requesters(unit, &mut outlook);
    }
    judge.page_tables();
    judge.scratch();
    judge.violations.sort_by_key(|violation| (violation.invariant, violation.at));
    outlook.insert(0, judge.summary());
    let frames: u64 = judge.preserved.iter().map(|preserved| preserved.frames()).sum();
    let basis = if model.handovers.is_empty() {
        "no handover in this image: nothing is preserved, and a jump now would do what follows".to_owned()
    } else {
        format!(
            "the preserved set is that of the handover found ({}); it says nothing of remapping tables or requesters",
            size(frames.saturating_mul(PAGE_SIZE))
        )
    };
    Report { basis, lines: judge.lines(), violations: judge.violations, outlook }
}

impl Judge<'_> {
    fn checked(&mut self, invariant: Invariant, count: u64) {
        self.items[usize::from(invariant.number()) - 1] += count;
    }

    fn found(&mut self, invariant: Invariant, at: PhysAddr, what: String, path: Vec<String>) {
        let count = &mut self.counts[usize::from(invariant.number()) - 1];
        *count += 1;
        if *count <= KEPT as u64 {
            self.violations.push(Violation { invariant, at, what, path });
        }
    }

    fn is_preserved(&self, at: PhysAddr) -> bool {
        self.preserved.iter().any(|preserved| preserved.holds(at))
    }

    /// I8 and I10.
    fn mode(&mut self, unit: &Unit) {
        let base = PhysAddr::new(unit.registers.base);
        let name = &unit.registers.name;
        self.checked(Invariant::I8, 1);
        if unit.translating == Some(false) {
            let what = format!("translation of {name} is off: every requester reaches all of memory");
            self.found(Invariant::I8, base, what, Vec::new());
        }
        self.checked(Invariant::I10, 1);
        if !matches!(unit.mode, Some(Mode::Legacy | Mode::Scalable)) {
            let mode = unit.mode.map_or_else(|| "not known".to_owned(), |mode| mode.to_string());
            self.found(Invariant::I10, base, format!("mode of {name} is {mode}"), Vec::new());
        }
        if unit.pasids_left_off {
            let what = format!("{name} has more PASID entries than are read: nobody knows who goes on");
            self.found(Invariant::I2, base, what, Vec::new());
        }
        for problem in &unit.problems {
            self.checked(Invariant::I1, 1);
            if !problem.subject.starts_with("domain id") {
                self.found(Invariant::I1, problem.at, problem.to_string(), Vec::new());
            }
        }
    }

    /// One frame that hardware reads as a table, and that is preserved.
    fn kept_table(&mut self, at: PhysAddr) {
        if self.tables.insert(at.frame().number()) {
            self.checked(Invariant::I1, 1);
        }
    }

    /// One frame that hardware reads as a table.
    fn table(&mut self, at: PhysAddr, what: &str, path: &[String]) {
        if !self.tables.insert(at.frame().number()) {
            return;
        }
        self.checked(Invariant::I1, 1);
        if !self.is_preserved(at) {
            self.lost += 1;
            let what = format!("{what}, {at}: not preserved, the next kernel may put anything there");
            self.found(Invariant::I1, at, what, path.to_vec());
        }
    }

    /// I1, above the page tables.
    fn tables(&mut self, unit: &Unit) {
        let name = &unit.registers.name;
        if unit.translating != Some(false)
            && let Some(root) = unit.root_table()
        {
            self.table(root, &format!("root table of {name}"), &[format!("RTADDR of {name}")]);
            for table in &unit.context_tables {
                let entry = root.plus(16 * u64::from(table.bus) + if table.upper { 8 } else { 0 });
                let path = [format!("RTADDR of {name}"), format!("root entry at {entry}")];
                self.table(table.at, &format!("context table of bus {:#04x}", table.bus), &path);
            }
        }
        for requester in &unit.requesters {
            for (start, bytes) in &requester.pasid_tables {
                let path = [format!("context entry of {} at {}", requester.source, requester.context_at)];
                for page in 0..bytes.div_ceil(PAGE_SIZE) {
                    let at = start.plus(page * PAGE_SIZE);
                    self.table(at, &format!("PASID table of {}", requester.source), &path);
                }
            }
        }
        if let Some(table) = unit.interrupts.as_ref().filter(|table| table.on != Some(false)) {
            let pages = (16 * table.size).div_ceil(PAGE_SIZE);
            let gap =
                (0..pages).map(|page| table.at.plus(page * PAGE_SIZE)).find(|at| !self.is_preserved(*at));
            self.checked(Invariant::I1, pages);
            if let Some(gap) = gap {
                let what = format!(
                    "interrupt table of {name}, {} bytes: not preserved from {gap} on",
                    16 * table.size
                );
                self.found(Invariant::I1, table.at, what, vec![format!("IRTA of {name}")]);
            }
        }
    }

    /// I1, the page tables.
    fn page_tables(&mut self) {
        for (number, space) in self.model.spaces.iter().enumerate() {
            let user = self.model.users[number].first();
            let top: Vec<String> =
                user.map(|(_, source, _)| format!("context entry of {source}")).into_iter().collect();
            if space.frames.iter().all(|(at, _)| self.is_preserved(*at)) {
                // Nothing is lost, so no way to it needs to be found again.
                for (at, _) in &space.frames {
                    self.kept_table(*at);
                }
                self.broken(number, &top);
                continue;
            }
            let mut judged = Vec::new();
            let hardware = Some(self.model.hardware);
            let _ = tables::walk(self.memory, space.top, hardware, &mut Budget::default(), &mut |visit| {
                if let Visit::Table { at, level, again: false, path, .. } = visit {
                    let entries = path.iter().map(|step| format!("entry at {} = {:#x}", step.at, step.raw));
                    judged.push((
                        at,
                        level,
                        if self.is_preserved(at) { Vec::new() } else { entries.collect() },
                    ));
                }
                ControlFlow::Continue(())
            });
            for (at, level, entries) in judged {
                let path: Vec<String> = top.iter().cloned().chain(entries).collect();
                self.table(at, &format!("page table of level {level}, domain {number}"), &path);
            }
            self.broken(number, &top);
        }
    }

    /// I1, what is wrong within a page table.
    fn broken(&mut self, number: usize, top: &[String]) {
        for trouble in &self.model.spaces[number].troubles {
            let what = format!(
                "domain {number}, level {}, for {:#x}: {}",
                trouble.level, trouble.iova, trouble.fault
            );
            self.found(Invariant::I1, trouble.at, what, top.to_vec());
        }
    }

    /// I5.
    fn domain_ids(&mut self, unit: &Unit) {
        let count = unit.requesters.iter().map(|requester| requester.attachments.len() as u64).sum();
        self.checked(Invariant::I5, count);
        for problem in unit.problems.iter().filter(|problem| problem.subject.starts_with("domain id")) {
            self.found(Invariant::I5, problem.at, problem.to_string(), Vec::new());
        }
    }

    /// I2 and I3.
    fn requesters(&mut self, unit: &Unit, outlook: &mut Vec<String>) {
        for requester in &unit.requesters {
            let kept = self.policy.preserved.contains(&requester.source);
            for attachment in &requester.attachments {
                self.checked(Invariant::I2, 1);
                if !kept && attachment.route != Route::Refused {
                    let what = format!("{} is preserved by nobody: it goes on", who(requester, attachment));
                    let at = attachment.pasid.map_or(requester.context_at, |pasid| pasid.at);
                    let path = vec![
                        format!("root entry at {}", requester.root_at),
                        format!("context entry at {}", requester.context_at),
                    ];
                    self.found(Invariant::I2, at, what, path);
                }
                self.targets(unit, requester, attachment, outlook);
            }
        }
    }

    fn targets(
        &mut self,
        unit: &Unit,
        requester: &Requester,
        attachment: &Attachment,
        outlook: &mut Vec<String>,
    ) {
        let who = who(requester, attachment);
        let number = match attachment.route {
            Route::PassThrough => {
                self.checked(Invariant::I3, 1);
                let what = format!("{who} passes untranslated: it reads and writes all of memory");
                outlook.push(what.clone());
                self.found(Invariant::I3, requester.context_at, what, Vec::new());
                return;
            }
            Route::Refused => return,
            Route::Space(number) => number,
        };
        let Some(space) = self.model.spaces.get(number) else { return };
        let judged = self.outside.entry(number);
        let judged = judged.or_insert_with(|| Rc::new(self.fine.judge(self.memory, self.model, space)));
        let outside = Rc::clone(judged);
        self.checked(Invariant::I3, outside.ranges);
        for (stray, listed) in outside.listed.iter().zip(1..) {
            let Stray { range, first, bytes } = *stray;
            let verb = match range.access.letters() {
                "rw" => "read and write",
                "r-" => "read",
                _ => "write",
            };
            let what = format!("{who} can {verb} {} from {first:#x} on, which is not preserved", size(bytes));
            let path = if listed <= LISTED {
                let asker = Asker { source: requester.source, pasid: explicit(attachment) };
                way(self.memory, self.model, unit, asker, range.iova)
            } else {
                Vec::new()
            };
            self.found(Invariant::I3, PhysAddr::new(first), what, path);
        }
        let unlisted = outside.strays - outside.listed.len() as u64;
        self.counts[usize::from(Invariant::I3.number()) - 1] += unlisted;
        let (readable, writable) = (outside.readable, outside.writable);
        if outside.strays > 0 {
            let (read, write) = (size(readable), size(writable));
            outlook.push(format!(
                "{who} could still write {write} and read {read} of memory that nobody preserved"
            ));
        } else {
            outlook.push(format!("{who} could touch nothing that is not preserved"));
        }
    }

    /// I9.
    fn scratch(&mut self) {
        let policy = self.policy;
        for preserved in self.preserved.clone() {
            for run in &preserved.extents {
                let (start, last) = (run.start().get(), run.start().get().saturating_add(run.bytes() - 1));
                self.checked(Invariant::I9, u64::from(!policy.scratch.is_empty()));
                if policy.scratch.iter().any(|(from, to)| *from <= last && start <= *to) {
                    let what = format!("preserved run {run} reaches into scratch memory");
                    self.found(Invariant::I9, run.start(), what, Vec::new());
                }
            }
        }
    }

    fn summary(&self) -> String {
        let kept = self.tables.len() as u64 - self.lost;
        let going = self.counts[usize::from(Invariant::I2.number()) - 1];
        format!(
            "of {} frames of tables {kept} are preserved and {} are not; {going} present entries go on with nobody who preserved them",
            self.tables.len(),
            self.lost
        )
    }

    fn lines(&self) -> Vec<Line> {
        Invariant::ALL
            .iter()
            .map(|&invariant| {
                let index = usize::from(invariant.number()) - 1;
                let (checkable, what) = words(invariant, !self.policy.scratch.is_empty());
                let (items, violations) = (self.items[index], self.counts[index]);
                Line { invariant, what: what.to_owned(), checkable, items, violations }
            })
            .collect()
    }
}

fn who(requester: &Requester, attachment: &Attachment) -> String {
    match attachment.pasid {
        Some(pasid) if !pasid.is_rid_pasid => format!("{} with PASID {}", requester.source, pasid.number),
        _ => requester.source.to_string(),
    }
}

/// The PASID that a request must carry to take this attachment.
fn explicit(attachment: &Attachment) -> Option<u32> {
    attachment.pasid.filter(|pasid| !pasid.is_rid_pasid).map(|pasid| pasid.number)
}

const fn words(invariant: Invariant, scratch: bool) -> (bool, &'static str) {
    match invariant {
        Invariant::I1 => (true, "every frame that hardware reads as a table is preserved, and is there"),
        Invariant::I2 => (true, "every present entry belongs to a requester that is preserved"),
        Invariant::I3 => {
            (true, "every range that a requester reaches is preserved, or allowed by the policy")
        }
        Invariant::I4 => (false, "not checkable: nothing is sealed"),
        Invariant::I5 => (true, "domain ids are in range, and each means one page table"),
        Invariant::I6 => (false, "not checkable from memory: what hardware cached does not show"),
        Invariant::I7 => (false, "not checkable from memory: what undone steps left does not show"),
        Invariant::I8 => (true, "translation is on"),
        Invariant::I9 if scratch => (true, "no preserved run lies in scratch memory"),
        Invariant::I9 => (false, "not checkable: the policy names no scratch memory"),
        Invariant::I10 => (true, "the translation mode is one that translates"),
    }
}
