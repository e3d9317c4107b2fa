//! Domains: their declared table frames (I1, I4) and the walk from the top table down to every leaf (I1, I3).
//!
//! One walk serves both formats: [`Format`] says what a word means. A first stage below a second one points with the
//! parent's addresses; each pointer is translated before it is followed ([`crate::nested`]).
//!
//! The walk goes into a table only when the domain declared it and it was not reached before, so it ends after at most
//! as many tables as are declared, whatever they hold. Each table is read once, whole.

use crate::audit::Audit;
use crate::collect::unit_id;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, Item, Role, What};
use crate::image::Image;
use crate::index::{Target, use_flags};
use crate::mode::Mode;
use crate::report::add;
use crate::scratch::{MAX_LEVELS, Table};
use spec::first_stage::{self, FirstStageEntry};
use spec::handover::{Domain, domain_format};
use spec::regs::RootAddr;
use spec::second_stage::{self, SecondStageEntry};
use spec::xxh64::Hasher;
use spec::{Extent, PAGE_SIZE, PhysAddr, Requester, UnitId};

/// Bits of a host address in an entry. How many of them a machine has is not known here: an address beyond lies in no
/// declared region and in no declared table.
const ADDRESS_BITS: u32 = 52;

/// What a word of a table means.
#[derive(Clone, Copy)]
enum Format {
    Second {
        /// Whether every unit offers snoop control.
        snoop_control: bool,
        /// Whether the execute bit alone makes an entry present.
        execute: bool,
        /// Whether hardware keeps accessed and dirty bits.
        dirty: bool,
    },
    First,
}

/// A present entry.
struct Entry {
    leaf: bool,
    /// Of the table, or of the first byte of the leaf.
    address: u64,
    /// Reserved bits that are set.
    reserved: u64,
}

impl Format {
    /// The entry in a word at `level`; `None` when it is not present.
    fn entry(self, word: u64, level: u8) -> Option<Entry> {
        let (present, leaf, address, reserved) = match self {
            Self::Second { snoop_control, execute, .. } => {
                let entry = SecondStageEntry::from_raw(word);
                let (leaf, present) = (entry.is_leaf(level), entry.is_present() || (execute && entry.x()));
                let low = if leaf { second_stage::span(level).saturating_sub(1) } else { 0 };
                let reserved = second_stage::reserved(entry, level, ADDRESS_BITS, snoop_control);
                (present, leaf, entry.address().get() & !low, reserved)
            }
            Self::First => {
                let entry = FirstStageEntry::from_raw(word);
                let reserved = first_stage::reserved(entry, level, ADDRESS_BITS);
                (entry.is_present(), entry.is_leaf(level), entry.address(level).get(), reserved)
            }
        };
        present.then_some(Entry { leaf, address, reserved: word & reserved })
    }

    /// The bits that hardware writes on its own, which no digest covers ([`Domain`], field `digest`).
    const fn written_by_hardware(self) -> u64 {
        match self {
            Self::First => 0b11 << 5,
            Self::Second { dirty: true, .. } => 0b11 << 8,
            Self::Second { .. } => 0,
        }
    }
}

/// One domain as it is walked.
struct Walk {
    ordinal: u32,
    format: Format,
    /// The domain whose second stage the tables are walked below.
    parent: Option<u32>,
    /// Bits of an input address; those above copy the highest one in the first stage.
    width: u32,
    token: u64,
    /// Whom findings name.
    requester: Option<Requester>,
    unit: Option<UnitId>,
    /// Large leaves that every unit offers: bit 0 2 MiB, bit 1 1 GiB.
    large_leaves: u64,
    /// The target that the last leaf lay in.
    target: Target,
}

impl Walk {
    fn finding(&self, invariant: Invariant, at: u64, what: What) -> Finding {
        let (requester, unit) = (self.requester, self.unit);
        Finding { invariant, requester, domain: Some(self.token), unit, at, what }
    }

    /// An input address as a device would put it: of the first stage, the upper half is canonical.
    fn canonical(&self, iova: u64) -> u64 {
        let upper = iova >> self.width.saturating_sub(1) & 1 == 1;
        if matches!(self.format, Format::First) && upper { iova | u64::MAX << self.width } else { iova }
    }
}

/// Where the walk stands in one table.
#[derive(Clone, Copy, Default)]
struct Position {
    /// The table's address.
    table: u64,
    /// First address that the table translates.
    iova: u64,
    /// The next entry.
    next: u64,
}

/// Leaves outside of every target that follow one another.
#[derive(Clone, Copy)]
struct Outside {
    at: u64,
    iova: u64,
    output: u64,
    leaves: u64,
    bytes: u64,
}

impl<'s, I: Image + ?Sized> Audit<'_, 's, '_, I> {
    /// All domains.
    pub(crate) fn domains(&mut self) -> Result<(), Unreadable> {
        for ordinal in (0u32..).take(self.index().domains.len()) {
            let Some((at, domain)) = self.reader.domain(ordinal) else { continue };
            let mut walk = self.prepare(ordinal, &domain);
            let declared = self.declared(&walk, &domain, at)?;
            let before = self.sink.totals.tables;
            if self.format(&walk, &domain, at) {
                self.walk(&mut walk, &domain, at);
            }
            let reached = self.sink.totals.tables.saturating_sub(before);
            add(&mut self.sink.totals.unreached_tables, declared.saturating_sub(reached));
        }
        Ok(())
    }

    /// What all units that use the domain can do.
    fn prepare(&self, ordinal: u32, domain: &Domain) -> Walk {
        let user = self.reader.user(ordinal);
        let unit = user.and_then(|(_, record)| self.reader.unit(record.unit)).map(|(_, unit)| unit_id(&unit));
        let nowhere = Target { start: 0, end: 0, kind: 0 };
        let told = self.index().use_of(ordinal);
        let first = domain.format == domain_format::FIRST_STAGE;
        let mut snoop_control = true;
        let mut walk = Walk {
            ordinal,
            format: Format::First,
            parent: told.parent().filter(|_| first),
            width: u32::from(domain.levels.min(5)).saturating_mul(9).saturating_add(12),
            token: domain.token,
            requester: user.map(|(requester, _)| requester),
            unit,
            large_leaves: u64::MAX,
            target: nowhere,
        };
        for &word in self.index().ids_of(ordinal) {
            let id = self.reader.domain_id(word);
            let Some(state) = id.and_then(|(_, id)| self.state(id.unit)) else { continue };
            let first_sizes = 1 | u64::from(state.cap.fs1gp()) << 1;
            walk.large_leaves &= if first { first_sizes } else { state.cap.sslps() };
            snoop_control &= state.ecap.sc();
        }
        if !first {
            let (execute, dirty) = (told.flags & use_flags::EXECUTE != 0, told.flags & use_flags::DIRTY != 0);
            walk.format = Format::Second { snoop_control, execute, dirty };
        }
        walk
    }

    /// I1 and I4 for the declared frames: all preserved, as many as the record says, with the sealed digest. Gives their
    /// number.
    fn declared(&mut self, walk: &Walk, domain: &Domain, at: u64) -> Result<u64, Unreadable> {
        let mut hasher = Hasher::new(0);
        let mut frames = 0;
        let mut complete = true;
        for &word in self.index().tables_of(walk.ordinal) {
            let run = self.reader.tables(word);
            let Some(run) = run.and_then(|(_, run)| Extent::from_bytes(PhysAddr::new(run.start), run.bytes))
            else {
                continue;
            };
            add(&mut frames, run.count());
            self.sink.checked(Invariant::I1, run.count());
            if let Some(gap) = self.map.first_gap(run.first(), run.end())? {
                let what = What::NotPreserved(Role::DomainTable);
                self.sink.found(walk.finding(Invariant::I1, gap.start().get(), what));
            }
            complete &= self.hash_run(walk, run, &mut hasher);
        }
        self.sink.checked(Invariant::I4, 2);
        if frames != domain.table_frames {
            let what = What::Differs { item: Item::TableFrames, sealed: domain.table_frames, found: frames };
            self.sink.found(walk.finding(Invariant::I4, at, what));
        }
        let found = hasher.finish();
        if complete && found != domain.digest {
            let what = What::Differs { item: Item::DomainDigest, sealed: domain.digest, found };
            self.sink.found(walk.finding(Invariant::I4, domain.top_table, what));
        }
        Ok(frames)
    }

    fn hash_run(&mut self, walk: &Walk, run: Extent, hasher: &mut Hasher) -> bool {
        for frame in run.first().number()..run.end().number() {
            let at = spec::Frame::new(frame).start();
            let Some(table) = self.work.read(self.image, 0, at) else {
                let what = What::Unreadable(Role::DomainTable);
                self.sink.found(walk.finding(Invariant::I1, at.get(), what));
                return false;
            };
            let kept = !walk.format.written_by_hardware();
            if kept != u64::MAX {
                table.words.iter_mut().for_each(|word| *word &= kept);
            }
            self.hash(hasher, table.words);
            self.work.put(table);
        }
        true
    }

    /// Whether the tables can be walked at all.
    fn format(&mut self, walk: &Walk, domain: &Domain, at: u64) -> bool {
        self.sink.checked(Invariant::I1, 1);
        let first = domain.format == domain_format::FIRST_STAGE;
        let known =
            domain.format == domain_format::SECOND_STAGE || (first && !self.in_legacy_mode(walk.ordinal));
        let what = if !known {
            What::FormatUnsupported { format: domain.format }
        } else if !(if first { 4 } else { 3 }..=5).contains(&domain.levels) {
            What::LevelsUnsupported { levels: domain.levels }
        } else {
            return true;
        };
        self.sink.found(walk.finding(Invariant::I1, at, what));
        false
    }

    /// Whether a unit that the domain has an id on is in legacy mode, which knows the second stage only.
    fn in_legacy_mode(&self, domain: u32) -> bool {
        let ids = self.index().ids_of(domain).iter().filter_map(|&word| self.reader.domain_id(word));
        let mut units = ids.filter_map(|(_, id)| self.reader.unit(id.unit));
        units.any(|(_, unit)| Mode::of(RootAddr::from_raw(unit.root)) == Some(Mode::Legacy))
    }

    /// From the top table down, without recursion.
    fn walk(&mut self, walk: &mut Walk, domain: &Domain, record_at: u64) {
        let mut tables: [Option<Table<'s>>; MAX_LEVELS] = [const { None }; MAX_LEVELS];
        let mut positions = [Position::default(); MAX_LEVELS];
        let top = domain.levels.saturating_sub(1);
        let mut level = top;
        let Some(table) = self.enter(walk, domain.top_table, top, record_at) else { return };
        put(&mut tables, top, table);
        set(&mut positions, top, Position { table: domain.top_table, iova: 0, next: 0 });
        loop {
            let next = match (at_mut(&mut tables, level), at_mut(&mut positions, level)) {
                (Some(Some(table)), Some(position)) => self.scan(walk, table, position, level),
                _ => return,
            };
            match next {
                Some((child, iova, entry_at)) => {
                    let below = level.saturating_sub(1);
                    let table = self.table_at(walk, child, below, entry_at);
                    let entered = table.and_then(|at| Some((at, self.enter(walk, at, below, entry_at)?)));
                    if let Some((at, table)) = entered {
                        put(&mut tables, below, table);
                        set(&mut positions, below, Position { table: at, iova, next: 0 });
                        level = below;
                    }
                }
                None => {
                    if let Some(table) = at_mut(&mut tables, level).and_then(Option::take) {
                        self.work.put(table);
                    }
                    if level == top {
                        return;
                    }
                    level = level.saturating_add(1);
                }
            }
        }
    }

    /// Goes on in a table: checks leaves until an entry leads to another table (its address, the first address that it
    /// translates, the entry's address) or the table ends.
    fn scan(
        &mut self,
        walk: &mut Walk,
        table: &Table<'s>,
        position: &mut Position,
        level: u8,
    ) -> Option<(u64, u64, u64)> {
        let span = second_stage::span(level);
        let mut outside: Option<Outside> = None;
        let from = usize::try_from(position.next).unwrap_or(usize::MAX);
        let mut leaves = 0u64;
        let mut child = None;
        for &word in table.words.iter().skip(from) {
            let index = position.next;
            position.next = index.saturating_add(1);
            let Some(entry) = walk.format.entry(word, level) else { continue };
            let at = position.table.saturating_add(index.saturating_mul(8));
            let iova = position.iova.saturating_add(index.saturating_mul(span));
            if entry.reserved != 0 {
                let invariant = if entry.leaf { Invariant::I3 } else { Invariant::I1 };
                self.sink.found(walk.finding(invariant, at, What::ReservedBits { bits: entry.reserved }));
            }
            if !entry.leaf {
                child = Some((entry.address, iova, at));
                break;
            }
            leaves = leaves.saturating_add(1);
            if level > 0 && walk.large_leaves >> level.saturating_sub(1) & 1 == 0 {
                self.sink.found(walk.finding(Invariant::I3, at, What::LeafSizeUnsupported { level }));
            }
            let output = entry.address;
            if let Some(parent) = walk.parent {
                self.nested_leaf(walk, parent, at, (iova, output, span));
            } else if !self.on_target(walk, output, span) {
                outside = self.outside(walk, outside, Outside { at, iova, output, leaves: 1, bytes: span });
            }
        }
        self.flush(walk, outside);
        self.sink.checked(Invariant::I3, leaves);
        add(&mut self.sink.totals.leaves, leaves);
        add(&mut self.sink.totals.mapped_bytes, leaves.saturating_mul(span));
        child
    }

    /// Where a table lies that an entry points to: below a second stage, through that.
    fn table_at(&mut self, walk: &Walk, pointer: u64, level: u8, entry_at: u64) -> Option<u64> {
        let Some(parent) = walk.parent else { return Some(pointer) };
        let table = self.through(parent, pointer);
        if table.is_none() {
            let what = What::TableBeyondParent { table: pointer, level };
            self.sink.found(walk.finding(Invariant::I1, entry_at, what));
        }
        table
    }

    /// I3 below a second stage: where the leaf leads is judged with the parent's leaves; that the parent takes it up is
    /// judged by its first and last page.
    fn nested_leaf(&mut self, walk: &Walk, parent: u32, at: u64, (iova, output, bytes): (u64, u64, u64)) {
        let last = output.checked_add(bytes.saturating_sub(PAGE_SIZE));
        let taken_up = |address| self.through(parent, address).is_some();
        if !taken_up(output) || !last.is_some_and(taken_up) {
            let what = What::LeafBeyondParent { iova: walk.canonical(iova), output };
            self.sink.found(walk.finding(Invariant::I3, at, what));
        }
    }

    /// I3: whether all of a leaf lies in one target.
    fn on_target(&self, walk: &mut Walk, output: u64, bytes: u64) -> bool {
        let Some(end) = output.checked_add(bytes) else { return false };
        if walk.target.start <= output && end <= walk.target.end {
            return true;
        }
        let targets = self.index().targets;
        let next = targets.partition_point(|target| target.start <= output);
        match next.checked_sub(1).and_then(|last| targets.get(last)) {
            Some(target) if end <= target.end => {
                walk.target = *target;
                true
            }
            _ => false,
        }
    }

    /// Joins a leaf to those before it, or reports them and starts anew.
    fn outside(&mut self, walk: &Walk, before: Option<Outside>, leaf: Outside) -> Option<Outside> {
        match before {
            Some(run) if run.iova.saturating_add(run.bytes) == leaf.iova => Some(Outside {
                leaves: run.leaves.saturating_add(1),
                bytes: run.bytes.saturating_add(leaf.bytes),
                ..run
            }),
            _ => {
                self.flush(walk, before);
                Some(leaf)
            }
        }
    }

    fn flush(&mut self, walk: &Walk, outside: Option<Outside>) {
        if let Some(Outside { at, iova, output, leaves, bytes }) = outside {
            let iova = walk.canonical(iova);
            self.sink.found(walk.finding(
                Invariant::I3,
                at,
                What::LeafOutside { iova, output, leaves, bytes },
            ));
        }
    }

    /// Reads a table that the entry at `entry_at` leads to, when the domain declared it and it was not reached before.
    fn enter(&mut self, walk: &Walk, table: u64, level: u8, entry_at: u64) -> Option<Table<'s>> {
        self.sink.checked(Invariant::I1, 1);
        let frame = table / PAGE_SIZE;
        let run = self.index().run_holding(frame).filter(|_| table % PAGE_SIZE == 0);
        let what = match run.and_then(|run| run.domain().map(|domain| (run, domain))) {
            None => What::TableNotDeclared { table, level },
            Some((_, owner)) if owner != walk.ordinal => {
                What::TableOfAnotherDomain { table, owner: self.reader.token(owner) }
            }
            Some((run, _)) => {
                let bit = run.bit.saturating_add(frame.saturating_sub(run.start));
                if self.work.visit(bit) {
                    What::TableReachedTwice { table, level }
                } else {
                    match self.work.read(self.image, usize::from(level), PhysAddr::new(table)) {
                        Some(words) => {
                            add(&mut self.sink.totals.tables, 1);
                            return Some(words);
                        }
                        None => What::Unreadable(Role::DomainTable),
                    }
                }
            }
        };
        self.sink.found(walk.finding(Invariant::I1, entry_at, what));
        None
    }
}

fn at_mut<T>(levels: &mut [T; MAX_LEVELS], level: u8) -> Option<&mut T> {
    levels.get_mut(usize::from(level))
}

fn put<T>(levels: &mut [Option<T>; MAX_LEVELS], level: u8, item: T) {
    if let Some(slot) = at_mut(levels, level) {
        *slot = Some(item);
    }
}

fn set<T>(levels: &mut [T; MAX_LEVELS], level: u8, item: T) {
    if let Some(slot) = at_mut(levels, level) {
        *slot = item;
    }
}
