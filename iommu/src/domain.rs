//! One address space: a page table, the frames it is made of, and its id on each unit that uses it.

/// Names a domain of one driver. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainHandle(pub(crate) u64);
