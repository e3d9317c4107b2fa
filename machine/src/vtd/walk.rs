//! The second-stage walk as hardware does it (VT-d 3.7, 9.10): one entry a level, permissions narrowing on the way down.

use spec::fault::Reason;
use spec::second_stage::{self, SecondStageEntry};

/// What the unit's capabilities and the platform say about valid entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Host address width in bits.
    pub host_width: u32,
    /// CAP.SLLPS: bit 0 allows 2 MiB leaves, bit 1 1 GiB leaves.
    pub large_leaves: u64,
    /// ECAP.SC.
    pub snoop_control: bool,
    /// Missing permission for this, a read or a write, ends the walk before anything else is looked at.
    pub permission_first: Option<Access>,
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
}

/// A table that the walk stands at, with the permissions that entries above it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Physical address.
    pub address: u64,
    /// Level of its entries; 0 holds 4 KiB leaves.
    pub level: u8,
    /// Reading is still allowed.
    pub read: bool,
    /// Writing is still allowed.
    pub write: bool,
}

/// The leaf that a walk ended at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// First byte of the page.
    pub output: u64,
    /// Level that the leaf was found at.
    pub level: u8,
    /// Reading is allowed.
    pub read: bool,
    /// Writing is allowed.
    pub write: bool,
    /// A write need not be marked in the entry: it is already, or nobody asks.
    pub dirty: bool,
}

impl Leaf {
    /// Whether the leaf permits a write, or a read.
    #[must_use]
    pub fn permits(&self, write: bool) -> bool {
        if write { self.write } else { self.read }
    }

    /// Where `iova`, an address that the leaf maps, goes.
    #[must_use]
    pub fn at(&self, iova: u64) -> u64 {
        self.output + iova % second_stage::span(self.level)
    }
}

/// Why a walk ended without a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is mapped: no permission is left.
    NotPresent,
    /// First stage: a request without privilege met an entry that wants it.
    Supervisor,
    /// First stage: not to be written.
    ReadOnly,
    /// Nested: the second stage refused what the first stage's walk wanted to read or write.
    Nested(Reason),
    /// Reserved bits in a present entry.
    Reserved,
    /// An entry at this level could not be read.
    Unreadable(u8),
    /// The top table could not be read.
    TopUnreadable,
}

/// Walks from `table` down to the leaf for `iova`. `load` reads one entry; `passed` hears of every further table on the way.
///
/// # Errors
/// [`Refusal`]. At most `table.level + 1` entries are read, whatever they hold.
pub fn walk(
    mut table: Table,
    iova: u64,
    rules: Rules,
    load: impl Fn(u64) -> Option<u64>,
    mut passed: impl FnMut(Table),
) -> Result<Leaf, Refusal> {
    let lacks = |read: bool, write: bool| match rules.permission_first {
        Some(Access::Read) => !read,
        Some(Access::Write) => !write,
        None => false,
    };
    loop {
        if lacks(table.read, table.write) {
            return Err(Refusal::NotPresent);
        }
        let address = table.address + 8 * second_stage::index(iova, table.level);
        let raw = load(address).ok_or(Refusal::Unreadable(table.level))?;
        let entry = SecondStageEntry::from_raw(raw);
        if !entry.is_present() {
            return Err(Refusal::NotPresent);
        }
        let (read, write) = (table.read && entry.r(), table.write && entry.w());
        if lacks(read, write) {
            return Err(Refusal::NotPresent);
        }
        if raw & reserved(entry, table.level, rules) != 0 {
            return Err(Refusal::Reserved);
        }
        if !read && !write {
            return Err(Refusal::NotPresent);
        }
        if entry.is_leaf(table.level) {
            return Ok(Leaf { output: entry.address().get(), level: table.level, read, write, dirty: true });
        }
        table = Table { address: entry.address().get(), level: table.level - 1, read, write };
        passed(table);
    }
}

fn reserved(entry: SecondStageEntry, level: u8, rules: Rules) -> u64 {
    let bits = second_stage::reserved(entry, level, rules.host_width, rules.snoop_control);
    let page_size_allowed = level == 0 || (level <= 2 && rules.large_leaves >> (level - 1) & 1 == 1);
    if page_size_allowed { bits } else { bits | SecondStageEntry::ZERO.with_ps(true).raw() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const RULES: Rules =
        Rules { host_width: 39, large_leaves: 3, snoop_control: false, permission_first: None };
    const TOP: Table = Table { address: 0x1000, level: 2, read: true, write: true };

    fn run(entries: &[(u64, u64)], iova: u64, rules: Rules) -> Result<Leaf, Refusal> {
        let memory: HashMap<u64, u64> = entries.iter().copied().collect();
        let load = |at: u64| if at < 0x10_0000 { Some(memory.get(&at).copied().unwrap_or(0)) } else { None };
        walk(TOP, iova, rules, load, |_| ())
    }

    #[test]
    fn permissions_are_the_least_of_all_levels() {
        let tables = [(0x1000, 0x2003), (0x2000, 0x3001), (0x3008, 0x7003)];
        let leaf = run(&tables, 0x1abc, RULES).unwrap();
        assert_eq!(leaf, Leaf { output: 0x7000, level: 0, read: true, write: false, dirty: true });
        let disjoint = [(0x1000, 0x2003), (0x2000, 0x3001), (0x3008, 0x7002)];
        assert_eq!(run(&disjoint, 0x1000, RULES), Err(Refusal::NotPresent));
    }

    #[test]
    fn a_large_leaf_ends_the_walk_where_the_unit_knows_its_size() {
        let tables = [(0x1000, 0x2003), (0x2008, 0x40_0083)];
        assert_eq!(run(&tables, 0x2f_0000, RULES).unwrap().level, 1);
        let none = Rules { large_leaves: 0, ..RULES };
        assert_eq!(run(&tables, 0x2f_0000, none), Err(Refusal::Reserved));
        assert_eq!(run(&[(0x1000, 0x4000_0083)], 5, RULES).unwrap().output, 0x4000_0000);
    }

    #[test]
    fn reserved_bits_and_unreadable_tables_are_told_apart() {
        let reserved = Err(Refusal::Reserved);
        assert_eq!(
            run(&[(0x1000, 0x2003), (0x2000, 0x20_1083)], 0, RULES),
            reserved,
            "low bits of a 2 MiB leaf"
        );
        assert_eq!(run(&[(0x1000, 1 << 39 | 0x2003)], 0, RULES), reserved, "beyond the host's address width");
        assert_eq!(run(&[(0x1000, 1 << 62 | 0x2003)], 0, RULES), reserved);
        assert_eq!(run(&[(0x1000, 0x80_0003)], 0, RULES), Err(Refusal::Unreadable(1)));
        assert_eq!(
            run(&[(0x1000, 1 << 62)], 0, RULES),
            Err(Refusal::NotPresent),
            "absent entries are not checked"
        );
    }

    #[test]
    fn which_of_two_faults_comes_first_is_the_units_choice() {
        let tables = [(0x1000, 0x2001), (0x2000, 1 << 62 | 0x3003)];
        assert_eq!(run(&tables, 0, RULES), Err(Refusal::Reserved));
        let rules = |access| Rules { permission_first: Some(access), ..RULES };
        assert_eq!(run(&tables, 0, rules(Access::Write)), Err(Refusal::NotPresent));
        assert_eq!(run(&tables, 0, rules(Access::Read)), Err(Refusal::Reserved));
    }

    #[test]
    fn a_table_that_points_at_itself_ends_after_its_levels() {
        assert_eq!(run(&[(0x1000, 0x1003)], 0, RULES).unwrap().output, 0x1000);
    }
}
