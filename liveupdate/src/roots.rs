//! Root, context and PASID tables as hardware has them: finding an entry, and clearing entries in the only order that is
//! safe.

use crate::host::{NoMemory, TableMemory};
use crate::mode::{Context, Mode, Place};
use crate::mutant::{self, Mutant};
use spec::root::RootEntry;
use spec::scalable::{PasidDirectoryEntry, PasidEntry, ScalableContextEntry, directory_index, table_index};
use spec::{PhysAddr, SourceId};

/// Bytes of a PASID entry.
pub(crate) const PASID_BYTES: u64 = 64;

/// The context table that the root table at `root` has for `place`.
pub(crate) fn context_table<M: TableMemory>(
    memory: &M,
    root: PhysAddr,
    place: Place,
) -> Result<Option<PhysAddr>, NoMemory> {
    let entry = RootEntry::from_raw([memory.read(place.pointer_at(root))?, 0]);
    Ok(entry.present().then(|| entry.context_table()))
}

/// Reads the entry of a function in a context table.
pub(crate) fn context_entry<M: TableMemory>(
    memory: &M,
    mode: Mode,
    table: PhysAddr,
    devfn: u8,
) -> Result<Context, NoMemory> {
    let mut words = [0; 4];
    memory.read_words(mode.entry_at(table, devfn), &mut words[..mode.entry_bytes() as usize / 8])?;
    Ok(Context::from_raw(mode, words))
}

/// The context table of a source-id and its entry there, or `None` where there is no table.
pub(crate) fn find<M: TableMemory>(
    memory: &M,
    mode: Mode,
    root: PhysAddr,
    source: SourceId,
) -> Result<Option<(PhysAddr, Context)>, NoMemory> {
    let Some(table) = context_table(memory, root, mode.place(source))? else { return Ok(None) };
    Ok(Some((table, context_entry(memory, mode, table, source.devfn())?)))
}

/// The PASID table of a PASID and its entry there, or `None` where there is no table, or no room in the directory.
pub(crate) fn find_pasid<M: TableMemory>(
    memory: &M,
    context: ScalableContextEntry,
    pasid: u32,
) -> Result<Option<(PhysAddr, PasidEntry)>, NoMemory> {
    let index = directory_index(pasid);
    if pasid >= spec::scalable::PASIDS || index >= context.directory_entries() {
        return Ok(None);
    }
    let pointer = PasidDirectoryEntry::from_raw(memory.read(context.directory().plus(8 * index))?);
    if !pointer.present() {
        return Ok(None);
    }
    let mut words = [0; 8];
    memory.read_words(pasid_entry_at(pointer.table(), pasid), &mut words)?;
    Ok(Some((pointer.table(), PasidEntry::from_raw(words))))
}

/// Where in the PASID table at `table` the entry of a PASID lies.
pub(crate) fn pasid_entry_at(table: PhysAddr, pasid: u32) -> PhysAddr {
    table.plus(PASID_BYTES * table_index(pasid))
}

/// First step of clearing an entry, however long: the present bit alone, in one store.
pub(crate) fn clear_present<M: TableMemory>(memory: &M, at: PhysAddr) -> Result<(), NoMemory> {
    let low = memory.read(at)?;
    if mutant::on(Mutant::WholeEntry) {
        return wipe(memory, at, 16);
    }
    memory.write(at, low & !1)
}

/// Last step of clearing an entry of `bytes`, once hardware has forgotten it.
pub(crate) fn wipe<M: TableMemory>(memory: &M, at: PhysAddr, bytes: u64) -> Result<(), NoMemory> {
    for at in (0..bytes).step_by(8).map(|offset| at.plus(offset)) {
        if memory.read(at)? != 0 {
            memory.write(at, 0)?;
        }
    }
    Ok(())
}
