//! Physical memory: sparse, with holes, and with the caches between a processor and a unit's table walker.
//!
//! Frames are kept in two levels of 512. A level that was filled as a whole holds just the fill pattern, so overwriting
//! gigabytes costs a few stores. What a processor stores is seen by the processor and by snooping DMA at once; a walker that
//! does not snoop ([`View::walker`]) goes on seeing the old content of a line until it was written back, and one behind a
//! write buffer until the buffer was drained.

use crate::dice::Dice;
use std::collections::BTreeMap;

/// Bytes in a frame.
pub const PAGE: u64 = 4096;
const LINE: u64 = 64;
const WORDS: usize = 512;
/// Frames below one entry of the upper level: 2 MiB.
const FAN: u64 = 512;
/// Fills of at least this many bytes bypass the processor's cache, as streaming stores do.
const STREAMING: u64 = 4 << 20;

/// No memory at this address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole(pub u64);

enum Slot {
    /// Every word of the frame has this value.
    Uniform(u64),
    Page(Box<[u64; WORDS]>),
}

enum Chunk {
    /// Every word of the 512 frames has this value.
    Uniform(u64),
    Split(Vec<Slot>),
}

/// What hides a line's new content from a walker.
struct HiddenLine {
    before: [u64; 8],
    /// In the processor's cache, not written back.
    cached: bool,
    /// In the chipset's write buffer until then.
    buffered_until: u64,
}

/// What the path between processor and walker does to stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorePath {
    /// Some unit's walks do not snoop (ECAP.C = 0).
    pub non_coherent: bool,
    /// Some unit sits behind a write buffer (CAP.RWBF = 1).
    pub buffered: bool,
}

/// Whose eyes memory is read with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    snoops: bool,
    behind_buffer: bool,
    now: u64,
}

impl View {
    /// A table walker at time `now`; `coherent` is its ECAP.C, `behind_buffer` its CAP.RWBF.
    #[must_use]
    pub fn walker(coherent: bool, behind_buffer: bool, now: u64) -> Self {
        Self { snoops: coherent, behind_buffer, now }
    }
}

/// The machine's memory.
pub struct Memory {
    ranges: Vec<(u64, u64)>,
    chunks: Vec<Chunk>,
    path: StorePath,
    hidden: BTreeMap<u64, HiddenLine>,
}

impl Memory {
    /// Memory in `ranges` of (start, bytes): whole frames, ascending, without overlap; all zero.
    #[must_use]
    pub fn new(ranges: &[(u64, u64)], path: StorePath) -> Self {
        let end = ranges.last().map_or(0, |&(start, bytes)| start + bytes);
        let chunks = (0..end.div_ceil(PAGE * FAN)).map(|_| Chunk::Uniform(0)).collect();
        Self { ranges: ranges.to_vec(), chunks, path, hidden: BTreeMap::new() }
    }

    /// Whether all of `bytes` bytes from `at` on is memory.
    ///
    /// # Errors
    /// [`Hole`] with the first address that is none.
    pub fn check(&self, at: u64, bytes: u64) -> Result<(), Hole> {
        let mut next = at;
        let end = at.checked_add(bytes).ok_or(Hole(u64::MAX))?;
        while next < end {
            let range = self.ranges.iter().find(|&&(start, len)| start <= next && next - start < len);
            let &(start, len) = range.ok_or(Hole(next))?;
            next = start + len;
        }
        Ok(())
    }

    /// The aligned word at `at` as processors and snooping devices see it.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory. An address that is no multiple of 8 is rounded down.
    pub fn load(&self, at: u64) -> Result<u64, Hole> {
        self.check(at & !7, 8)?;
        Ok(match &self.chunks[chunk_of(at)] {
            Chunk::Uniform(pattern) => *pattern,
            Chunk::Split(slots) => match &slots[slot_of(at)] {
                Slot::Uniform(pattern) => *pattern,
                Slot::Page(words) => words[word_of(at)],
            },
        })
    }

    /// The aligned word at `at` as a walker with `view` sees it.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn load_as(&self, at: u64, view: View) -> Result<u64, Hole> {
        let current = self.load(at)?;
        let Some(line) = self.hidden.get(&(at & !(LINE - 1))) else { return Ok(current) };
        let hidden = (!view.snoops && line.cached) || (view.behind_buffer && line.buffered_until > view.now);
        Ok(if hidden { line.before[(at % LINE / 8) as usize] } else { current })
    }

    /// A processor's store of one aligned word at time `now`.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn store(&mut self, at: u64, value: u64, now: u64, dice: &mut Dice) -> Result<(), Hole> {
        self.check(at & !7, 8)?;
        self.hide(at, now, dice);
        self.put(at, value);
        Ok(())
    }

    /// A device's write of one aligned word: at once visible to all.
    ///
    /// # Errors
    /// [`Hole`] where there is no memory.
    pub fn store_snooped(&mut self, at: u64, value: u64) -> Result<(), Hole> {
        self.check(at & !7, 8)?;
        if let Some(line) = self.hidden.get_mut(&(at & !(LINE - 1))) {
            line.before[(at % LINE / 8) as usize] = value;
        }
        self.put(at, value);
        Ok(())
    }

    /// Copies memory from `at` on into `out`, as processors see it.
    ///
    /// # Errors
    /// [`Hole`]; `out` is then untouched.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<(), Hole> {
        self.check(at, out.len() as u64)?;
        let mut done = 0;
        while done < out.len() {
            let address = at + done as u64;
            if address.is_multiple_of(PAGE)
                && let Some(page) = out[done..].first_chunk_mut::<{ PAGE as usize }>()
            {
                self.read_page(address, page);
                done += page.len();
                continue;
            }
            let bytes = self.load(address)?.to_le_bytes();
            let skip = (address % 8) as usize;
            let n = (8 - skip).min(out.len() - done);
            out[done..done + n].copy_from_slice(&bytes[skip..skip + n]);
            done += n;
        }
        Ok(())
    }

    /// A whole page of memory that is there.
    fn read_page(&self, at: u64, out: &mut [u8; PAGE as usize]) {
        let words = match &self.chunks[chunk_of(at)] {
            Chunk::Uniform(pattern) => Err(*pattern),
            Chunk::Split(slots) => match &slots[slot_of(at)] {
                Slot::Uniform(pattern) => Err(*pattern),
                Slot::Page(words) => Ok(words),
            },
        };
        for (index, bytes) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = words.map_or_else(|pattern| pattern, |words| words[index]).to_le_bytes();
        }
    }

    /// A processor's copy of `bytes` to memory from `at` on.
    ///
    /// # Errors
    /// [`Hole`]; nothing was written then.
    pub fn write(&mut self, at: u64, bytes: &[u8], now: u64, dice: &mut Dice) -> Result<(), Hole> {
        self.check(at, bytes.len() as u64)?;
        self.each_word(at, bytes, |memory, address, value| {
            memory.hide(address, now, dice);
            memory.put(address, value);
        })
    }

    /// A device's write of `bytes` from `at` on.
    ///
    /// # Errors
    /// [`Hole`]; nothing was written then.
    pub fn write_snooped(&mut self, at: u64, bytes: &[u8]) -> Result<(), Hole> {
        self.check(at, bytes.len() as u64)?;
        self.each_word(at, bytes, |memory, address, value| {
            // The range was checked above.
            let _ = memory.store_snooped(address, value);
        })
    }

    fn each_word(
        &mut self,
        at: u64,
        bytes: &[u8],
        mut put: impl FnMut(&mut Self, u64, u64),
    ) -> Result<(), Hole> {
        let mut done = 0;
        while done < bytes.len() {
            let address = at + done as u64;
            let skip = (address % 8) as usize;
            let n = (8 - skip).min(bytes.len() - done);
            let mut word = self.load(address)?.to_le_bytes();
            word[skip..skip + n].copy_from_slice(&bytes[done..done + n]);
            put(self, address & !7, u64::from_le_bytes(word));
            done += n;
        }
        Ok(())
    }

    /// Fills whole frames, `start` and `bytes` being multiples of 4096, with a repeated word. `whole` is the size of the fill
    /// that this is a piece of: big ones bypass the processor's cache.
    ///
    /// # Errors
    /// [`Hole`]; nothing was written then.
    pub fn fill(
        &mut self,
        start: u64,
        bytes: u64,
        pattern: u64,
        whole: u64,
        now: u64,
        dice: &mut Dice,
    ) -> Result<(), Hole> {
        self.check(start, bytes)?;
        let end = start + bytes;
        if self.tracks() {
            if whole >= STREAMING {
                let lines: Vec<u64> = self.hidden.range(start..end).map(|(&line, _)| line).collect();
                for line in lines {
                    self.hidden.remove(&line);
                }
            } else {
                (start..end).step_by(LINE as usize).for_each(|line| self.hide(line, now, dice));
            }
        }
        self.lay(start, end, pattern);
        Ok(())
    }

    /// Memory as it is when the machine starts: no cache holds anything of it.
    ///
    /// # Errors
    /// [`Hole`]; nothing was written then.
    pub fn power_on(&mut self, start: u64, bytes: u64, pattern: u64) -> Result<(), Hole> {
        self.check(start, bytes)?;
        self.lay(start, start + bytes, pattern);
        Ok(())
    }

    /// A processor writes the line at `at` back: a walk that does not snoop sees it, once it left the write buffer.
    pub fn flush_line(&mut self, at: u64, now: u64, dice: &mut Dice) {
        let buffered = self.path.buffered;
        let Some(line) = self.hidden.get_mut(&(at & !(LINE - 1))) else { return };
        if line.cached {
            line.cached = false;
            if buffered {
                line.buffered_until = now + buffer_delay(dice);
            }
        }
        if line.buffered_until <= now {
            self.hidden.remove(&(at & !(LINE - 1)));
        }
    }

    /// The chipset's write buffer is drained (VT-d 6.8).
    pub fn drain_buffer(&mut self) {
        self.hidden.retain(|_, line| {
            line.buffered_until = 0;
            line.cached
        });
    }

    /// How many lines a walker might still see the old content of, by cache or buffer.
    #[must_use]
    pub fn hidden_lines(&self, now: u64) -> usize {
        self.hidden.values().filter(|line| line.cached || line.buffered_until > now).count()
    }

    fn lay(&mut self, start: u64, end: u64, pattern: u64) {
        let mut at = start;
        while at < end {
            if at.is_multiple_of(PAGE * FAN) && end - at >= PAGE * FAN {
                self.chunks[chunk_of(at)] = Chunk::Uniform(pattern);
                at += PAGE * FAN;
            } else {
                self.slots(at)[slot_of(at)] = Slot::Uniform(pattern);
                at += PAGE;
            }
        }
    }

    fn tracks(&self) -> bool {
        self.path.non_coherent || self.path.buffered
    }

    fn hide(&mut self, at: u64, now: u64, dice: &mut Dice) {
        if !self.tracks() {
            return;
        }
        let line = at & !(LINE - 1);
        let until = if self.path.buffered { now + buffer_delay(dice) } else { 0 };
        let cached = self.path.non_coherent;
        let visible = self.hidden.get(&line).is_none_or(|l| !l.cached && l.buffered_until <= now);
        if visible {
            let mut before = [0; 8];
            for (i, word) in before.iter_mut().enumerate() {
                *word = self.load(line + 8 * i as u64).unwrap_or(0);
            }
            self.hidden.insert(line, HiddenLine { before, cached, buffered_until: until });
        } else if let Some(entry) = self.hidden.get_mut(&line) {
            entry.cached = cached;
            entry.buffered_until = until;
        }
    }

    fn put(&mut self, at: u64, value: u64) {
        let slot = &mut self.slots(at)[slot_of(at)];
        match slot {
            Slot::Page(words) => words[word_of(at)] = value,
            Slot::Uniform(pattern) if *pattern == value => {}
            Slot::Uniform(pattern) => {
                let mut words = Box::new([*pattern; WORDS]);
                words[word_of(at)] = value;
                *slot = Slot::Page(words);
            }
        }
    }

    fn slots(&mut self, at: u64) -> &mut [Slot] {
        let chunk = &mut self.chunks[chunk_of(at)];
        if let Chunk::Uniform(pattern) = *chunk {
            *chunk = Chunk::Split((0..FAN).map(|_| Slot::Uniform(pattern)).collect());
        }
        match chunk {
            Chunk::Split(slots) => slots,
            Chunk::Uniform(_) => &mut [],
        }
    }
}

fn chunk_of(at: u64) -> usize {
    (at / (PAGE * FAN)) as usize
}

fn slot_of(at: u64) -> usize {
    (at / PAGE % FAN) as usize
}

fn word_of(at: u64) -> usize {
    (at % PAGE / 8) as usize
}

/// How long a store may sit in the chipset's write buffer when nobody drains it.
fn buffer_delay(dice: &mut Dice) -> u64 {
    dice.between(100_000, 400_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(path: StorePath) -> (Memory, Dice) {
        (Memory::new(&[(0x10_0000, 0x400_0000), (1 << 32, 64 << 20)], path), Dice::new(1))
    }

    #[test]
    fn a_read_that_touches_a_hole_names_the_first_missing_byte() {
        let (mut memory, mut dice) = memory(StorePath::default());
        assert_eq!(memory.load(0), Err(Hole(0)));
        assert_eq!(memory.read(0x40f_fff8, &mut [0; 16]), Err(Hole(0x410_0000)));
        assert_eq!(memory.write(u64::MAX - 3, &[0; 8], 0, &mut dice), Err(Hole(u64::MAX)));
        assert_eq!(memory.load((1 << 32) + 8), Ok(0));
    }

    #[test]
    fn unaligned_bytes_come_back_and_their_neighbours_stay() {
        let (mut memory, mut dice) = memory(StorePath::default());
        memory.fill(0x20_0000, PAGE * 2, 0x1111_1111_1111_1111, PAGE, 0, &mut dice).unwrap();
        memory.write(0x20_0ffd, b"abcdefg", 0, &mut dice).unwrap();
        let mut out = [0; 9];
        memory.read(0x20_0ffc, &mut out).unwrap();
        assert_eq!(&out, b"\x11abcdefg\x11");
    }

    #[test]
    fn a_fill_replaces_what_was_written_in_the_range_and_nothing_beside_it() {
        let (mut memory, mut dice) = memory(StorePath::default());
        for at in [0x1f_fff8, 0x20_0000, 0xa0_0ff8, 0xa0_1000] {
            memory.store(at, 7, 0, &mut dice).unwrap();
        }
        memory.fill(0x20_0000, 0x80_1000, 0xee, 0x80_1000, 0, &mut dice).unwrap();
        let seen = [0x1f_fff8, 0x20_0000, 0x60_0000, 0xa0_0ff8, 0xa0_1000].map(|at| memory.load(at).unwrap());
        assert_eq!(seen, [7, 0xee, 0xee, 0xee, 7]);
    }

    #[test]
    fn a_walk_that_does_not_snoop_sees_the_old_word_until_the_line_is_flushed() {
        let (mut memory, mut dice) = memory(StorePath { non_coherent: true, buffered: false });
        memory.store(0x20_0008, 5, 0, &mut dice).unwrap();
        let walker = View::walker(false, false, 1_000_000_000);
        assert_eq!(memory.load_as(0x20_0008, walker), Ok(0));
        assert_eq!(memory.load_as(0x20_0008, View::walker(true, false, 0)), Ok(5));
        assert_eq!(memory.load(0x20_0008), Ok(5));
        memory.flush_line(0x20_0030, 10, &mut dice);
        assert_eq!(memory.load_as(0x20_0008, walker), Ok(5));
        memory.store(0x20_0008, 6, 20, &mut dice).unwrap();
        assert_eq!(
            memory.load_as(0x20_0008, walker),
            Ok(5),
            "a later store hides again, down to what was flushed"
        );
    }

    #[test]
    fn a_zeroing_fill_of_a_page_is_hidden_from_a_walk_that_does_not_snoop() {
        let (mut memory, mut dice) = memory(StorePath { non_coherent: true, buffered: false });
        memory.store_snooped(0x20_0008, 5).unwrap();
        memory.fill(0x20_0000, PAGE, 0, PAGE, 0, &mut dice).unwrap();
        assert_eq!(memory.load_as(0x20_0008, View::walker(false, false, 1)), Ok(5));
        assert_eq!(memory.hidden_lines(1), 64);
    }

    #[test]
    fn a_write_buffer_hides_stores_until_drained_or_a_time_has_passed() {
        let (mut memory, mut dice) = memory(StorePath { non_coherent: false, buffered: true });
        memory.store(0x20_0000, 5, 100, &mut dice).unwrap();
        assert_eq!(memory.load_as(0x20_0000, View::walker(true, true, 101)), Ok(0));
        assert_eq!(memory.load_as(0x20_0000, View::walker(true, false, 101)), Ok(5));
        assert_eq!(memory.load_as(0x20_0000, View::walker(true, true, 500_000_000)), Ok(5));
        memory.store(0x20_0000, 6, 600_000_000, &mut dice).unwrap();
        memory.drain_buffer();
        assert_eq!(memory.load_as(0x20_0000, View::walker(true, true, 600_000_001)), Ok(6));
    }

    #[test]
    fn a_device_write_into_a_hidden_line_shows_to_every_view() {
        let (mut memory, mut dice) = memory(StorePath { non_coherent: true, buffered: false });
        memory.store(0x20_0000, 5, 0, &mut dice).unwrap();
        memory.write_snooped(0x20_0008, &9u64.to_le_bytes()).unwrap();
        let walker = View::walker(false, false, 1);
        assert_eq!((memory.load_as(0x20_0000, walker), memory.load_as(0x20_0008, walker)), (Ok(0), Ok(9)));
    }
}
