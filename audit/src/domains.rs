//! Domains: their declared table frames (I1, I4) and the walk from the top table down to every leaf (I1, I3).
//!
//! The walk goes into a table only when the domain declared it and it was not reached before, so it ends after at most
//! as many tables as are declared, whatever they hold. Each table is read once, whole.

use crate::audit::Audit;
use crate::collect::unit_id;
use crate::error::Unreadable;
use crate::finding::{Finding, Invariant, Item, Role, What};
use crate::image::Image;
use crate::index::Target;
use crate::report::add;
use crate::scratch::{MAX_LEVELS, Table};
use spec::handover::{Domain, domain_format};
use spec::second_stage::{self, SecondStageEntry};
use spec::xxh64::Hasher;
use spec::{Extent, PAGE_SIZE, PhysAddr, Requester, UnitId};

/// Bits of a host address in an entry. How many of them a machine has is not known here: an address beyond lies in no
/// declared region and in no declared table.
const ADDRESS_BITS: u32 = 52;

/// One domain as it is walked.
struct Walk {
    ordinal: u32,
    token: u64,
    /// Whom findings name.
    requester: Option<Requester>,
    unit: Option<UnitId>,
    /// Large leaves that every unit offers: bit 0 2 MiB, bit 1 1 GiB.
    large_leaves: u64,
    /// Whether every unit offers snoop control.
    snoop_control: bool,
    /// The target that the last leaf lay in.
    target: Target,
}

impl Walk {
    fn finding(&self, invariant: Invariant, at: u64, what: What) -> Finding {
        let (requester, unit) = (self.requester, self.unit);
        Finding { invariant, requester, domain: Some(self.token), unit, at, what }
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
        let mut walk = Walk {
            ordinal,
            token: domain.token,
            requester: user.map(|(requester, _)| requester),
            unit,
            large_leaves: u64::MAX,
            snoop_control: true,
            target: nowhere,
        };
        for &word in self.index().ids_of(ordinal) {
            let id = self.reader.domain_id(word);
            let Some(state) = id.and_then(|(_, id)| self.state(id.unit)) else { continue };
            walk.large_leaves &= state.cap.sslps();
            walk.snoop_control &= state.ecap.sc();
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
            self.hash(hasher, table.words);
            self.work.put(table);
        }
        true
    }

    /// Whether the tables can be walked at all.
    fn format(&mut self, walk: &Walk, domain: &Domain, at: u64) -> bool {
        self.sink.checked(Invariant::I1, 1);
        let what = if domain.format != domain_format::SECOND_STAGE {
            What::FormatUnsupported { format: domain.format }
        } else if !(3..=5).contains(&domain.levels) {
            What::LevelsUnsupported { levels: domain.levels }
        } else {
            return true;
        };
        self.sink.found(walk.finding(Invariant::I1, at, what));
        false
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
                    if let Some(table) = self.enter(walk, child, below, entry_at) {
                        put(&mut tables, below, table);
                        set(&mut positions, below, Position { table: child, iova, next: 0 });
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
            let entry = SecondStageEntry::from_raw(word);
            if !entry.is_present() {
                continue;
            }
            let at = position.table.saturating_add(index.saturating_mul(8));
            let iova = position.iova.saturating_add(index.saturating_mul(span));
            let is_leaf = entry.is_leaf(level);
            let reserved = word & second_stage::reserved(entry, level, ADDRESS_BITS, walk.snoop_control);
            if reserved != 0 {
                let invariant = if is_leaf { Invariant::I3 } else { Invariant::I1 };
                self.sink.found(walk.finding(invariant, at, What::ReservedBits { bits: reserved }));
            }
            if !is_leaf {
                child = Some((entry.address().get(), iova, at));
                break;
            }
            leaves = leaves.saturating_add(1);
            if level > 0 && walk.large_leaves >> level.saturating_sub(1) & 1 == 0 {
                self.sink.found(walk.finding(Invariant::I3, at, What::LeafSizeUnsupported { level }));
            }
            let output = entry.address().get() & !span.saturating_sub(1);
            if !self.on_target(walk, output, span) {
                outside = self.outside(walk, outside, Outside { at, iova, output, leaves: 1, bytes: span });
            }
        }
        self.flush(walk, outside);
        self.sink.checked(Invariant::I3, leaves);
        add(&mut self.sink.totals.leaves, leaves);
        add(&mut self.sink.totals.mapped_bytes, leaves.saturating_mul(span));
        child
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
