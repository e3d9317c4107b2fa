//! The first-stage walk (VT-d 3.6, 9.7): the processor's format, with accessed and dirty bits that the walk sets.

use super::walk::{Leaf, Refusal};
use spec::first_stage::{self, FirstStageEntry};

/// What valid entries look like, and what the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Host address width in bits.
    pub host_width: u32,
    /// CAP.FS1GP.
    pub large_1g: bool,
    /// The request is one to write.
    pub write: bool,
    /// Missing permission ends the walk before reserved bits are looked at. The manual does not say which comes first.
    pub permission_first: bool,
    /// A write sets accessed and dirty bit only where neither is set.
    pub dirty_missed: bool,
}

/// The tables' memory.
pub trait Tables {
    /// The word at `at`, an address that the entry above gave; `write` when it is to be changed.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn load(&mut self, at: u64, level: u8) -> Result<u64, Refusal>;
    /// Changes it.
    ///
    /// # Errors
    /// Why it cannot be written.
    fn store(&mut self, at: u64, value: u64) -> Result<(), Refusal>;
}

/// Walks from the table at `top` down to the leaf for `iova`. Sets the accessed bit of each entry that it passes, and the
/// dirty bit of the leaf of a write.
///
/// # Errors
/// [`Refusal`]. At most `levels` entries are read, whatever they hold.
pub fn walk(
    top: u64,
    levels: u8,
    iova: u64,
    rules: Rules,
    tables: &mut impl Tables,
) -> Result<Leaf, Refusal> {
    let (mut table, mut writable) = (top, true);
    for level in (0..levels).rev() {
        let at = table + 8 * first_stage::index(iova, level);
        let entry = FirstStageEntry::from_raw(tables.load(at, level)?);
        if !entry.is_present() {
            return Err(Refusal::NotPresent);
        }
        writable &= entry.rw();
        let reserved = entry.raw() & reserved(entry, level, rules) != 0;
        if reserved && !rules.permission_first {
            return Err(Refusal::Reserved);
        }
        // A request without privilege: all that there are.
        if !entry.us() {
            return Err(Refusal::Supervisor);
        }
        if rules.permission_first && rules.write && !writable {
            return Err(Refusal::ReadOnly);
        }
        if reserved {
            return Err(Refusal::Reserved);
        }
        let is_leaf = entry.is_leaf(level);
        let may = !is_leaf || !rules.write || writable;
        let dirty = is_leaf && (entry.d() || rules.write && writable);
        let missed = rules.dirty_missed && is_leaf && rules.write && (entry.a() || entry.d());
        let touched = if may && !missed { entry.with_a(true).with_d(entry.d() || dirty) } else { entry };
        if touched != entry {
            tables.store(at, touched.raw())?;
        }
        if is_leaf {
            return Ok(Leaf {
                output: entry.address(level).get(),
                level,
                read: true,
                write: writable,
                dirty,
            });
        }
        table = entry.address(level).get();
    }
    // Level 0 holds leaves only.
    Err(Refusal::NotPresent)
}

fn reserved(entry: FirstStageEntry, level: u8, rules: Rules) -> u64 {
    let bits = first_stage::reserved(entry, level, rules.host_width);
    let too_large = level == 2 && !rules.large_1g;
    if too_large { bits | FirstStageEntry::ZERO.with_ps(true).raw() } else { bits }
}

/// Whether the bits from the highest of `width` on are all the same (VT-d 3.6).
#[must_use]
pub fn is_canonical(iova: u64, width: u8) -> bool {
    let unused = 64 - u32::from(width);
    ((iova << unused) as i64 >> unused) as u64 == iova
}
