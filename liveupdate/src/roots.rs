//! Root and context tables as hardware has them: finding a requester's entry, and clearing entries in the only order that
//! is safe.

use crate::host::{NoMemory, TableMemory};
use spec::context::ContextEntry;
use spec::root::RootEntry;
use spec::{PhysAddr, SourceId};

/// Bytes of a root entry and of a legacy context entry.
pub(crate) const ENTRY_BYTES: u64 = 16;

/// Reads the root entry of `bus`.
pub(crate) fn root_entry<M: TableMemory>(memory: &M, root: PhysAddr, bus: u8) -> Result<RootEntry, NoMemory> {
    let mut words = [0; 2];
    memory.read_words(root.plus(ENTRY_BYTES * u64::from(bus)), &mut words)?;
    Ok(RootEntry::from_raw(words))
}

/// Reads entry `devfn` of a context table.
pub(crate) fn context_entry<M: TableMemory>(
    memory: &M,
    table: PhysAddr,
    devfn: u8,
) -> Result<ContextEntry, NoMemory> {
    let mut words = [0; 2];
    memory.read_words(table.plus(ENTRY_BYTES * u64::from(devfn)), &mut words)?;
    Ok(ContextEntry::from_raw(words))
}

/// The context table of a source-id's bus and its entry there, or `None` where the bus has no table.
pub(crate) fn find<M: TableMemory>(
    memory: &M,
    root: PhysAddr,
    source: SourceId,
) -> Result<Option<(PhysAddr, ContextEntry)>, NoMemory> {
    let root_entry = root_entry(memory, root, source.bus())?;
    if !root_entry.present() {
        return Ok(None);
    }
    let table = root_entry.context_table();
    Ok(Some((table, context_entry(memory, table, source.devfn())?)))
}

/// First step of clearing a 128-bit entry: the present bit alone, in one store.
pub(crate) fn clear_present<M: TableMemory>(memory: &M, at: PhysAddr) -> Result<(), NoMemory> {
    let low = memory.read(at)?;
    memory.write(at, low & !1)
}

/// Last step of clearing a 128-bit entry, once hardware has forgotten it.
pub(crate) fn wipe<M: TableMemory>(memory: &M, at: PhysAddr) -> Result<(), NoMemory> {
    memory.write(at, 0)?;
    memory.write(at.plus(8), 0)
}
