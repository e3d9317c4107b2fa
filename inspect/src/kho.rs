//! Handovers in an image: Linux's container (KHO), what Linux puts into it, and our own records.
//!
//! `scan` looks for the root tree at the start of every frame; `read` reads the one at an address: the tree, the radix
//! tree of preserved frames (`radix`), the live update orchestrator's sessions and files with the folios of memfds
//! (`luo`), and our own records, by the auditor's reader. All of it is foreign: chains are bounded and checked for
//! circles, counts are believed only as far as memory is there for them.

mod luo;
mod radix;

pub use luo::{File, Flb, Luo, Memfd, Session};
pub use radix::Preserved;

use crate::image::Memory;
use crate::model::Problem;
use audit::Image;
use audit::handover::{Counts, Handover, Located};
use spec::handover::Header;
use spec::kho::luo::KexecMetadata;
use spec::kho::{LUO_NODE, METADATA_NODE, Root};
use spec::{Frame, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First word of a device tree, as it lies in memory.
const FDT_MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];
/// Handovers that a scan takes at most.
const MAX_HANDOVERS: usize = 16;
/// Records of ours that are kept at most.
const MAX_RECORDS: usize = 1 << 20;

/// A handover.
#[derive(Debug)]
pub struct Kho {
    /// Address of the root tree.
    pub at: PhysAddr,
    /// Its length in bytes.
    pub bytes: u64,
    /// Root of the radix tree.
    pub map: PhysAddr,
    /// Blobs that the tree names.
    pub blobs: Vec<Blob>,
    /// The preserved frames.
    pub preserved: Preserved,
    /// Where the chain of kernels stands.
    pub metadata: Option<Metadata>,
    /// The live update orchestrator's state.
    pub luo: Option<Luo>,
    /// Our own records.
    pub records: Option<Records>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// A blob of the root tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Name of the node.
    pub name: String,
    /// Where it lies.
    pub at: PhysAddr,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether all its frames are preserved.
    pub preserved: bool,
}

/// Where the chain of kernels stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Version of the record.
    pub version: u32,
    /// Release of the outgoing kernel.
    pub previous_release: String,
    /// Handovers so far.
    pub kexec_count: u32,
}

/// Our own records.
#[derive(Debug)]
pub struct Records {
    /// Where they lie.
    pub at: PhysAddr,
    /// Their header.
    pub header: Header,
    /// How many of each kind there are; the digest and the counts hold.
    pub counts: Option<Counts>,
    /// The records in the order written.
    pub records: Vec<Located>,
}

/// Foreign text up to its first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A record of whole bytes at `at`.
fn structure<T: FromBytes + IntoBytes + FromZeros>(memory: &Memory, at: PhysAddr) -> Option<T> {
    let mut value = T::new_zeroed();
    memory.read_bytes(at, value.as_mut_bytes()).ok()?;
    Some(value)
}

/// The handovers of an image: root trees at the start of a frame.
#[must_use]
pub fn scan(memory: &Memory) -> Vec<Kho> {
    let mut found = Vec::new();
    for run in memory.runs() {
        // Behind the last frame of the address space there is none.
        let Some(mut at) = run.start.checked_next_multiple_of(PAGE_SIZE) else { continue };
        while at >= run.start && at - run.start < run.bytes && found.len() < MAX_HANDOVERS {
            let mut magic = [0; 4];
            let here = PhysAddr::new(at);
            if memory.read_bytes(here, &mut magic).is_ok() && magic == FDT_MAGIC {
                found.extend(read(memory, here));
            }
            let Some(next) = at.checked_add(PAGE_SIZE) else { break };
            at = next;
        }
    }
    found
}

/// The handover with its root tree at `at`.
///
/// # Errors
/// In words, why there is none.
pub fn read(memory: &Memory, at: PhysAddr) -> Result<Kho, String> {
    let mut page = vec![0; PAGE_SIZE as usize];
    memory.read_bytes(at, &mut page).map_err(|error| error.to_string())?;
    let root = Root::parse(&page).map_err(|error| error.to_string())?;
    let length = page[4..8].try_into().map(u32::from_be_bytes).unwrap_or_default();
    let mut problems = Vec::new();
    let preserved = radix::read(memory, root.memory_map(), &mut problems);
    let blobs: Vec<Blob> = root
        .blobs()
        .map(|blob| {
            let last = blob.data.get().saturating_add(blob.bytes).div_ceil(PAGE_SIZE);
            let preserved = preserved.covers(blob.data.frame(), Frame::new(last));
            Blob { name: blob.name.to_owned(), at: blob.data, bytes: blob.bytes, preserved }
        })
        .collect();
    for blob in blobs.iter().filter(|blob| !blob.preserved) {
        let what = "not all of it is preserved".into();
        problems.push(Problem { at: blob.at, subject: format!("blob {:?}", blob.name), what });
    }
    let metadata = root.blob(METADATA_NODE).and_then(|blob| metadata(memory, blob.data));
    let luo = root.blob(LUO_NODE).map(|blob| luo::read(memory, blob.data, &preserved, &mut problems));
    let records = records(memory, at, &mut problems);
    Ok(Kho {
        at,
        bytes: u64::from(length),
        map: root.memory_map(),
        blobs,
        preserved,
        metadata,
        luo: luo.flatten(),
        records,
        problems,
    })
}

fn metadata(memory: &Memory, at: PhysAddr) -> Option<Metadata> {
    let raw: KexecMetadata = structure(memory, at)?;
    Some(Metadata {
        version: raw.version.get(),
        previous_release: text(&raw.previous_release),
        kexec_count: raw.kexec_count.get(),
    })
}

/// Our own records, if the tree names some.
fn records(memory: &Memory, fdt: PhysAddr, problems: &mut Vec<Problem>) -> Option<Records> {
    let image: &dyn Image = memory;
    let handover = match Handover::locate(&image, fdt) {
        Ok(handover) => handover,
        Err(audit::Unreadable::NoRecords { .. }) => return None,
        Err(error) => {
            problems.push(Problem { at: fdt, subject: "records".into(), what: error.to_string() });
            return None;
        }
    };
    let mut problem = |error: audit::Unreadable| {
        problems.push(Problem { at: handover.start(), subject: "records".into(), what: error.to_string() });
    };
    let counts = handover.verify().map_err(&mut problem).ok();
    let mut records = Vec::new();
    for record in handover.records().take(MAX_RECORDS) {
        match record {
            Ok(record) => records.push(record),
            Err(error) => problem(error),
        }
    }
    Some(Records { at: handover.start(), header: *handover.header(), counts, records })
}
