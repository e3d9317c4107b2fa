//! The two stages of paging, as hardware walks them (VT-d 3.6, 3.7, 3.8).

use super::{Ended, INTERRUPTS, INTERRUPTS_END, Outcome, Refused, Step, Tracer, refused, verdicts, word};
use crate::tables::{self, Access, Meaning, Stage, access, meaning};
use spec::PhysAddr;
use spec::fault::Reason;
use spec::first_stage::FirstStageEntry;
use spec::scalable::PasidEntry;
use spec::second_stage::{index, span};

/// The codes that the faults of a second stage have.
pub(super) struct Codes {
    read: Reason,
    write: Reason,
    reserved: Reason,
    interrupt: Reason,
}

/// In legacy mode.
pub(super) const LEGACY: Codes = Codes {
    read: Reason::READ_DENIED,
    write: Reason::WRITE_DENIED,
    reserved: Reason::PAGING_RESERVED,
    interrupt: Reason::OUTPUT_IN_INTERRUPT_RANGE,
};
/// In scalable mode.
pub(super) const SCALABLE: Codes = Codes {
    read: Reason::SECOND_STAGE_DENIED,
    write: Reason::SECOND_STAGE_DENIED,
    reserved: Reason::SECOND_STAGE_RESERVED,
    interrupt: Reason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE,
};

/// Where a walk ended.
struct Reached {
    target: PhysAddr,
    leaf: u64,
    access: Access,
    /// The entry that took the first permission away, in words.
    denied: String,
}

impl Tracer<'_> {
    /// Translates by a second stage alone.
    pub(super) fn second_stage(
        &mut self,
        top: PhysAddr,
        levels: u8,
        iova: u64,
        codes: &Codes,
    ) -> Result<Outcome, Ended> {
        let reached = self.walk_second(top, levels, iova, codes)?;
        let (read, write) = verdicts(reached.access, codes.read, codes.write, &reached.denied);
        output(reached.target, reached.leaf, read, write, codes.interrupt)
    }

    /// Walks a second stage. An entry that is not present ends the walk with both permissions gone.
    fn walk_second(&mut self, top: PhysAddr, levels: u8, iova: u64, codes: &Codes) -> Result<Reached, Ended> {
        let (mut table, mut passes, mut denied) = (top, Access::ALL, String::new());
        for level in (0..levels).rev() {
            let at = table.plus(8 * index(iova, level));
            let what = format!("second-stage entry, level {level}");
            let raw = word(self.memory, &what, at)?;
            let own = access(Stage::Second, raw);
            let found = meaning(Stage::Second, raw, level);
            self.steps.push(Step { what, at: Some(at), raw: vec![raw], says: says(found, own) });
            let bits = tables::reserved(Stage::Second, raw, level, self.hardware);
            if found != Meaning::Absent && bits != 0 {
                return Err(refused(codes.reserved, format!("bits {bits:#x} of the entry at {at} are set")));
            }
            passes = passes.and(own);
            if denied.is_empty() && passes != Access::ALL {
                denied = format!("level {level} (entry at {at})");
            }
            match found {
                Meaning::Table(next) => table = next,
                Meaning::Leaf(first) => {
                    let within = iova & (span(level) - 1);
                    let (target, leaf) = (first.plus(within), span(level));
                    return Ok(Reached { target, leaf, access: passes, denied });
                }
                Meaning::Absent => return Err(absent(codes, iova, level, at)),
            }
        }
        Err(refused(codes.read, "a table without a leaf level"))
    }

    /// Translates by a first stage, and what comes of it by the second when `through` names one.
    pub(super) fn first_stage(
        &mut self,
        entry: PasidEntry,
        through: Option<(PhysAddr, u8)>,
        user: bool,
        iova: u64,
    ) -> Result<Outcome, Ended> {
        let levels = entry.first_stage_levels();
        if levels > 5 || (levels == 5 && !self.cap.fs5lp()) {
            let why = format!("the unit serves no first-stage tables of {levels} levels (CAP.FS5LP)");
            return Err(refused(Reason::PASID_INVALID, why));
        }
        let width = 12 + 9 * u32::from(levels);
        let upper = (iova as i64) >> (width - 1);
        if upper != 0 && upper != -1 {
            let why = format!("bits 63 to {width} of {iova:#x} are not all as bit {}", width - 1);
            return Err(refused(Reason::NOT_CANONICAL, why));
        }
        let (mut table, mut writes, mut denied) = (entry.first_stage_table(), true, String::new());
        for level in (0..levels).rev() {
            let table_at = self.through(through, table, level + 1 == levels)?;
            let at = table_at.plus(8 * index(iova, level));
            let what = format!("first-stage entry, level {level}");
            let raw = word(self.memory, &what, at)?;
            let (own, found) = (access(Stage::First, raw), meaning(Stage::First, raw, level));
            self.steps.push(Step { what, at: Some(at), raw: vec![raw], says: says(found, own) });
            if found == Meaning::Absent {
                let why = format!("the level {level} entry for {iova:#x}, at {at}, is not present");
                return Err(refused(Reason::FIRST_STAGE_NOT_PRESENT, why));
            }
            let bits = tables::reserved(Stage::First, raw, level, self.hardware);
            if bits != 0 {
                let why = format!("bits {bits:#x} of the entry at {at} are set");
                return Err(refused(Reason::FIRST_STAGE_RESERVED, why));
            }
            if user && !FirstStageEntry::from_raw(raw).us() {
                let why = format!("the entry at {at} serves supervisor requests only");
                return Err(refused(Reason::USER_DENIED, why));
            }
            if writes && !own.write {
                denied = format!("level {level} (entry at {at})");
            }
            writes &= own.write;
            match found {
                Meaning::Table(next) => table = next,
                Meaning::Leaf(first) => {
                    let target = first.plus(iova & (span(level) - 1));
                    // Without WPE a supervisor's writes pass over the bit (VT-d 3.6.1).
                    let passes = Access { read: true, write: writes || (!user && !entry.wpe()) };
                    let (read, write) = verdicts(
                        passes,
                        Reason::SCALABLE_READ_DENIED,
                        Reason::SCALABLE_WRITE_DENIED,
                        &denied,
                    );
                    return self.second_of_two(through, target, span(level), read, write);
                }
                Meaning::Absent => {}
            }
        }
        Err(refused(Reason::FIRST_STAGE_NOT_PRESENT, "a table without a leaf level"))
    }

    /// Where a first-stage table lies: nested, its address goes through the second stage.
    fn through(
        &mut self,
        through: Option<(PhysAddr, u8)>,
        table: PhysAddr,
        is_top: bool,
    ) -> Result<PhysAddr, Ended> {
        let Some((second, levels)) = through else { return Ok(table) };
        let denied = if is_top { Reason::NESTED_TOP_READ_DENIED } else { Reason::NESTED_READ_DENIED };
        self.width(table.get(), 12 + 9 * u32::from(levels), Reason::NESTED_BEYOND_WIDTH)?;
        let codes = Codes { read: denied, write: denied, ..SCALABLE };
        let reached = self.walk_second(second, levels, table.get(), &codes)?;
        if !reached.access.read {
            return Err(refused(denied, format!("reading is not permitted at {}", reached.denied)));
        }
        Ok(reached.target)
    }

    fn second_of_two(
        &mut self,
        through: Option<(PhysAddr, u8)>,
        target: PhysAddr,
        leaf: u64,
        read: Result<(), Refused>,
        write: Result<(), Refused>,
    ) -> Result<Outcome, Ended> {
        let Some((second, levels)) = through else {
            return output(target, leaf, read, write, Reason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE);
        };
        self.width(target.get(), 12 + 9 * u32::from(levels), Reason::SECOND_STAGE_BEYOND_WIDTH)?;
        let reached = self.walk_second(second, levels, target.get(), &SCALABLE)?;
        let (read2, write2) = verdicts(reached.access, SCALABLE.read, SCALABLE.write, &reached.denied);
        let (read, write) = (read.and(read2), write.and(write2));
        output(reached.target, leaf.min(reached.leaf), read, write, SCALABLE.interrupt)
    }
}

/// The end of a walk, unless it ends among the interrupt messages.
fn output(
    target: PhysAddr,
    leaf: u64,
    read: Result<(), Refused>,
    write: Result<(), Refused>,
    interrupt: Reason,
) -> Result<Outcome, Ended> {
    if (INTERRUPTS..INTERRUPTS_END).contains(&target.get()) {
        return Err(refused(interrupt, format!("{target} is where interrupt messages go")));
    }
    Ok(Outcome::Translated { target, leaf: Some(leaf), read, write })
}

/// An entry without R and W denies both: hardware knows no "not present" in a second stage.
fn absent(codes: &Codes, iova: u64, level: u8, at: PhysAddr) -> Ended {
    let refusal = |reason| {
        let why =
            format!("the level {level} entry for {iova:#x}, at {at}, permits neither reading nor writing");
        Refused { reason: Some(reason), why }
    };
    Outcome::Refused { read: refusal(codes.read), write: refusal(codes.write) }
}

fn says(found: Meaning, own: Access) -> String {
    match found {
        Meaning::Absent => "not present".into(),
        Meaning::Table(next) => format!("{}, table at {next}", own.letters()),
        Meaning::Leaf(first) => format!("{}, leaf at {first}", own.letters()),
    }
}
