//! Page files: `VTDPAGE1`, a count, that many physical addresses, that many pages; all little-endian.
//!
//! A page file holds the pages that somebody found worth keeping, those of nothing but zeroes too. Everything else is
//! missing.

use super::open::OpenError;
use super::store::Store;
use super::{Memory, Run};
use spec::PAGE_SIZE;
use std::io::{self, Write};

/// What a page file opens with.
pub(crate) const MAGIC: [u8; 8] = *b"VTDPAGE1";
/// Bytes before the first address.
const HEADER: u64 = 16;

/// The runs of a page file.
pub(crate) fn runs(store: &Store) -> Result<(Vec<Run>, Vec<String>), OpenError> {
    let mut header = [0; HEADER as usize];
    if !store.read_at(0, &mut header) {
        return Err(OpenError::PageFile { what: "it ends within its header".into() });
    }
    let count = u64::from_le_bytes(header[8..16].try_into().unwrap_or_default());
    let needed = count.checked_mul(8 + PAGE_SIZE).and_then(|bytes| bytes.checked_add(HEADER));
    let needed = needed.filter(|needed| *needed <= store.bytes()).ok_or_else(|| OpenError::PageFile {
        what: format!("it claims {count} pages, which {} bytes cannot hold", store.bytes()),
    })?;
    let mut notes = Vec::new();
    if needed < store.bytes() {
        notes.push(format!("{} bytes follow the last page", store.bytes() - needed));
    }
    let first_page = HEADER + 8 * count;
    // It grows as addresses are found: the length of a flattened file is a claim too.
    let mut runs = Vec::new();
    for page in 0..count {
        let mut address = [0; 8];
        if !store.read_at(HEADER + 8 * page, &mut address) {
            return Err(OpenError::PageFile { what: "it ends within its addresses".into() });
        }
        let start = u64::from_le_bytes(address);
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(OpenError::PageFile { what: format!("page {page} lies at {start:#x}: not aligned") });
        }
        runs.push(Run { start, bytes: PAGE_SIZE, offset: first_page + page * PAGE_SIZE });
    }
    if runs.is_empty() {
        return Err(OpenError::PageFile { what: "it holds no page".into() });
    }
    let twice = twice(store, &mut runs)?;
    if twice > 0 {
        notes.push(format!("{twice} pages are held more than once, with the same content"));
    }
    Ok((runs, notes))
}

/// Leaves each page once, ascending; gives back how many went.
fn twice(store: &Store, runs: &mut Vec<Run>) -> Result<usize, OpenError> {
    // Of those at one address the first in the file comes first.
    runs.sort_unstable_by_key(|run| (run.start, run.offset));
    let page = |run: &Run| {
        let mut page = [0; PAGE_SIZE as usize];
        store.read_at(run.offset, &mut page).then_some(page)
    };
    let same = |two: &[Run]| two[0].start != two[1].start || page(&two[0]) == page(&two[1]);
    if let Some(two) = runs.windows(2).find(|two| !same(two)) {
        let what = format!("it holds the page at {:#x} twice, with different content", two[0].start);
        return Err(OpenError::PageFile { what });
    }
    let before = runs.len();
    runs.dedup_by_key(|run| run.start);
    Ok(before - runs.len())
}

/// Writes the pages at `addresses` out of `memory`, then `extra` pages by address and content. All addresses are multiples
/// of 4096, each named once.
///
/// # Errors
/// When writing fails, or a page is not in `memory`.
pub fn write(
    out: &mut dyn Write,
    memory: &Memory,
    addresses: &[u64],
    extra: &[(u64, Vec<u8>)],
) -> io::Result<()> {
    out.write_all(&MAGIC)?;
    out.write_all(&((addresses.len() + extra.len()) as u64).to_le_bytes())?;
    for address in addresses.iter().chain(extra.iter().map(|(address, _)| address)) {
        out.write_all(&address.to_le_bytes())?;
    }
    let mut page = [0; PAGE_SIZE as usize];
    for &address in addresses {
        memory.read_bytes(spec::PhysAddr::new(address), &mut page).map_err(io::Error::other)?;
        out.write_all(&page)?;
    }
    for (_, content) in extra {
        page.fill(0);
        let length = content.len().min(page.len());
        page[..length].copy_from_slice(&content[..length]);
        out.write_all(&page)?;
    }
    Ok(())
}
