//! The guest's part of a nested stream: its own first-stage tables, in its own memory, by its own addresses.
//!
//! The guest's memory is the stream's block of pages: page 0 holds the ring, tables follow, and the rest is what the host
//! gives it after an update. It sees page `n` at [`GUEST_MEMORY`] `+ 4096 n`; its device sees the pages at the stream's own
//! address on.

use super::super::host::Kernel;
use super::super::trouble::Trouble;
use crate::platform::Platform;
use iommu::GuestTables;
use liveupdate::host::TableMemory;
use spec::first_stage::index;
use spec::{Iova, PAGE_SIZE, PhysAddr};

/// Where the guest sees its memory.
pub(crate) const GUEST_MEMORY: u64 = 0x4000_0000;
/// The page with the top table; those below follow.
const TOP: u64 = 1;
/// Most levels of tables.
const MOST_LEVELS: u64 = 5;
/// The first page that the host has not given to the guest from the start.
pub(crate) const FIRST_LATE: u64 = TOP + MOST_LEVELS;
/// Present, writable, for user requests.
const GRANTS: u64 = 0b111;
/// Words of a table.
const WORDS: u64 = 512;

/// The guest's address of a page of its memory.
pub(crate) const fn address(page: u64) -> Iova {
    Iova::new(GUEST_MEMORY + PAGE_SIZE * page)
}

/// Its tables, `levels` deep, in the block at `memory`.
pub(crate) const fn tables(levels: u8) -> GuestTables {
    GuestTables { top: address(TOP), levels }
}

/// Where its top table is.
pub(crate) fn top(memory: PhysAddr) -> PhysAddr {
    memory.plus(PAGE_SIZE * TOP)
}

/// Writes tables that lead from `iova` to page 0 and to nothing else.
pub(crate) fn write<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    memory: PhysAddr,
    levels: u8,
    iova: Iova,
) -> Result<(), Trouble> {
    for (level, page) in (0..levels).rev().zip(TOP..) {
        let table = memory.plus(PAGE_SIZE * page);
        let next = if level == 0 { 0 } else { page + 1 };
        for word in 0..WORDS {
            let entry = if word == index(iova.get(), level) { address(next).get() | GRANTS } else { 0 };
            kernel
                .machine
                .write(table.plus(8 * word), entry)
                .map_err(Trouble::at("write a guest's tables"))?;
        }
    }
    Ok(())
}

/// Maps `page` behind page 0, as the guest does once the host has given it the page.
pub(crate) fn map<P: Platform + ?Sized>(
    kernel: &Kernel<'_, '_, P>,
    memory: PhysAddr,
    levels: u8,
    iova: Iova,
    page: u64,
) -> Result<(), Trouble> {
    let table = memory.plus(PAGE_SIZE * (TOP + u64::from(levels) - 1));
    let slot = index(iova.get() + PAGE_SIZE * page, 0);
    let written = kernel.machine.write(table.plus(8 * slot), address(page).get() | GRANTS);
    written.map_err(Trouble::at("map a page as the guest"))
}
