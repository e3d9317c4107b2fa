//! The pages worth keeping of an image: what hardware and a reader of handovers would look at, and the registers.
//!
//! The result is a page file of a few kilobytes that answers every question that the whole image would. A unit's registers
//! lie in it as a page at their physical address.

use crate::image::{self, Memory};
use crate::kho::Kho;
use crate::model::Model;
use crate::registers::Registers;
use spec::PAGE_SIZE;
use spec::kho::luo::VmallocChunk;
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Folio lists that are followed at most for each memfd, in pages.
const LIST_PAGES: u64 = 1 << 20;

/// The addresses of all pages that a look at `memory` reads, ascending; pages that the image lacks are left out.
#[must_use]
pub fn pages(memory: &Memory, model: &Model) -> Vec<u64> {
    let mut found = Found { memory, pages: BTreeSet::new() };
    for unit in &model.units {
        if let Some(root) = unit.root_table() {
            found.add(root.get(), PAGE_SIZE);
        }
        for table in &unit.context_tables {
            found.add(table.at.get(), PAGE_SIZE);
        }
        for (start, bytes) in unit.requesters.iter().flat_map(|requester| &requester.pasid_tables) {
            found.add(start.get(), *bytes);
        }
        if let Some(table) = &unit.interrupts {
            found.add(table.at.get(), 16 * table.size);
        }
        if let Some(queue) = &unit.queue {
            found.add(queue.at.get(), queue.size << if queue.wide { 5 } else { 4 });
        }
    }
    for space in &model.spaces {
        for (at, _) in &space.frames {
            found.add(at.get(), PAGE_SIZE);
        }
        // Nested: the tables of the second stage that lead to those of the first are page tables of no domain.
        if let Some((second, levels)) = space.top.through {
            found.second_stage(second.get(), levels);
        }
    }
    for kho in &model.handovers {
        found.handover(kho);
    }
    found.pages.into_iter().collect()
}

struct Found<'m> {
    memory: &'m Memory,
    pages: BTreeSet<u64>,
}

impl Found<'_> {
    fn add(&mut self, start: u64, bytes: u64) {
        let first = start / PAGE_SIZE;
        let end = start.saturating_add(bytes).div_ceil(PAGE_SIZE);
        for page in first..end {
            if self.memory.holds_frame(spec::PhysAddr::new(page * PAGE_SIZE)) {
                self.pages.insert(page * PAGE_SIZE);
            }
        }
    }

    fn second_stage(&mut self, top: u64, levels: u8) {
        use crate::tables::{Budget, Stage, Top, Visit, walk};
        let table = spec::PhysAddr::new(top);
        let top = Top { stage: Stage::Second, table, levels, through: None };
        let mut tables = Vec::new();
        let _ = walk(self.memory, top, None, &mut Budget::default(), &mut |visit| {
            if let Visit::Table { at, .. } = visit {
                tables.push(at.get());
            }
            std::ops::ControlFlow::Continue(())
        });
        for table in tables {
            self.add(table, PAGE_SIZE);
        }
    }

    fn handover(&mut self, kho: &Kho) {
        self.add(kho.at.get(), kho.bytes);
        for node in &kho.preserved.nodes {
            self.add(node.get(), PAGE_SIZE);
        }
        for blob in &kho.blobs {
            // Blobs of other kinds may be of any size.
            self.add(blob.at.get(), blob.bytes.min(spec::handover::MAX_BYTES));
        }
        let Some(luo) = &kho.luo else { return };
        self.add(luo.flbs_at.get(), if luo.flbs_at.get() == 0 { 0 } else { PAGE_SIZE });
        for block in &luo.blocks {
            self.add(block.get(), PAGE_SIZE);
        }
        for file in luo.sessions.iter().flat_map(|session| &session.files) {
            let Some(memfd) = &file.memfd else { continue };
            self.add(file.data, 1);
            let area = memfd.record.folios;
            let (mut next, mut left) = (area.first, u64::from(area.total_pages).min(LIST_PAGES));
            let bytes = PAGE_SIZE << u32::from(area.order).min(20);
            while next != 0 && left > 0 && !self.pages.contains(&next) {
                self.add(next, VmallocChunk::BYTES as u64);
                let mut words = [0; 512];
                if audit::Image::read(self.memory, spec::PhysAddr::new(next), &mut words).is_err() {
                    break;
                }
                for &page in words[1..].iter().take_while(|page| **page != 0) {
                    self.add(page, bytes);
                    left = left.saturating_sub(bytes / PAGE_SIZE);
                }
                next = words[0];
            }
        }
    }
}

/// Writes a page file with those pages and the registers of every unit.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(out: &mut dyn Write, memory: &Memory, model: &Model) -> io::Result<usize> {
    let mut extra = Vec::new();
    for unit in &model.units {
        let registers = &unit.registers;
        if registers.base.is_multiple_of(PAGE_SIZE) {
            extra.push((registers.base, window(registers)));
        }
    }
    let mut addresses = pages(memory, model);
    addresses.retain(|address| extra.iter().all(|(base, _)| base != address));
    image::write_pages(out, memory, &addresses, &extra)?;
    Ok(addresses.len() + extra.len())
}

/// The first page of the registers, as far as they are known.
fn window(registers: &Registers) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE as usize];
    for (word, bytes) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *bytes = registers.read32(4 * word as u64).unwrap_or(0).to_le_bytes();
    }
    page
}
