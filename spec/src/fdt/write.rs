//! Writes a flattened device tree into a buffer of the caller's.
//!
//! The structure block grows from the front, the names of properties from the back, each name once; [`Writer::finish`]
//! moves the names behind the structure. Until then a property notes how far from the *end* its name lies, because only
//! that stays the same while more names are put in front.

use core::fmt;

use super::{HEADER_BYTES, LAST_COMPATIBLE, MAGIC, MAX_DEPTH, VERSION, token};

/// Where the structure block starts: behind the header and an empty list of reservations.
const STRUCTURE: usize = HEADER_BYTES + 16;

/// A flattened device tree under construction.
///
/// Open the root with `begin_node("")`, put properties before children, close every node, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Writer<'b> {
    buffer: &'b mut [u8],
    /// Bytes used from the front: header, reservations and structure.
    front: usize,
    /// Bytes used from the back: the names.
    back: usize,
    depth: usize,
    seen_root: bool,
    properties_allowed: bool,
}

/// Why a tree could not be written. The writer stays as it was before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// The buffer is full.
    Full {
        /// Length of the buffer in bytes.
        buffer: usize,
    },
    /// The call may not come at this point: a second root, a property behind a child, an end too many, a node left open.
    Order,
    /// The name is empty or holds a NUL, or a string value holds a NUL.
    Text,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { buffer } => write!(f, "device tree does not fit a buffer of {buffer} bytes"),
            Self::Order => f.write_str("part of a device tree written out of order"),
            Self::Text => f.write_str("name or string that a device tree cannot hold"),
        }
    }
}

impl core::error::Error for WriteError {}

impl<'b> Writer<'b> {
    /// A writer into `buffer`.
    ///
    /// # Errors
    /// [`WriteError::Full`] when not even an empty tree fits.
    pub fn new(buffer: &'b mut [u8]) -> Result<Self, WriteError> {
        let mut writer =
            Self { buffer, front: 0, back: 0, depth: 0, seen_root: false, properties_allowed: false };
        writer.room(STRUCTURE)?;
        writer.buffer[..STRUCTURE].fill(0);
        writer.front = STRUCTURE;
        Ok(writer)
    }

    /// Opens a node; the root, which comes first and once, has the empty name.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn begin_node(&mut self, name: &str) -> Result<(), WriteError> {
        if self.depth == 0 && self.seen_root || self.depth == MAX_DEPTH {
            return Err(WriteError::Order);
        }
        if (self.depth == 0) != name.is_empty() || name.contains('\0') {
            return Err(WriteError::Text);
        }
        self.room(4 + (name.len() + 1).next_multiple_of(4))?;
        self.word(token::BEGIN_NODE);
        self.padded(name.as_bytes(), 1);
        self.depth += 1;
        (self.seen_root, self.properties_allowed) = (true, true);
        Ok(())
    }

    /// Puts a property into the open node.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn property(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        self.raw_property(name, value, 0)
    }

    /// Puts a 64-bit number into the open node, in the processor's own byte order, as KHO does.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn property_u64(&mut self, name: &str, value: u64) -> Result<(), WriteError> {
        self.raw_property(name, &value.to_ne_bytes(), 0)
    }

    /// Puts a string into the open node.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn property_str(&mut self, name: &str, value: &str) -> Result<(), WriteError> {
        if value.contains('\0') {
            return Err(WriteError::Text);
        }
        self.raw_property(name, value.as_bytes(), 1)
    }

    /// Closes the open node.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn end(&mut self) -> Result<(), WriteError> {
        if self.depth == 0 {
            return Err(WriteError::Order);
        }
        self.room(4)?;
        self.word(token::END_NODE);
        self.depth -= 1;
        self.properties_allowed = false;
        Ok(())
    }

    /// Completes the tree and returns its bytes: the front of the buffer.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn finish(mut self) -> Result<&'b [u8], WriteError> {
        if self.depth != 0 || !self.seen_root {
            return Err(WriteError::Order);
        }
        self.room(4)?;
        self.word(token::END);
        let total = self.front + self.back;
        // A length past 32 bits cannot be said in the header.
        let Ok(total_word) = u32::try_from(total) else {
            return Err(WriteError::Full { buffer: self.buffer.len() });
        };
        self.settle_names();
        let names = self.buffer.len() - self.back;
        self.buffer.copy_within(names.., self.front);
        let words = [
            MAGIC,
            total_word,
            STRUCTURE as u32,
            self.front as u32,
            HEADER_BYTES as u32,
            VERSION,
            LAST_COMPATIBLE,
            0,
            self.back as u32,
            (self.front - STRUCTURE) as u32,
        ];
        for (place, word) in self.buffer.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        Ok(&self.buffer[..total])
    }

    /// Writes a property whose value is `value` and then `zeroes` zero bytes.
    fn raw_property(&mut self, name: &str, value: &[u8], zeroes: usize) -> Result<(), WriteError> {
        if !self.properties_allowed {
            return Err(WriteError::Order);
        }
        if name.is_empty() || name.contains('\0') {
            return Err(WriteError::Text);
        }
        let length = value.len() + zeroes;
        let known = self.find_name(name);
        let new_name = if known.is_some() { 0 } else { name.len() + 1 };
        self.room(12 + length.next_multiple_of(4) + new_name)?;
        let from_end = known.unwrap_or_else(|| self.put_name(name));
        self.word(token::PROPERTY);
        self.word(length as u32);
        self.word(from_end as u32);
        self.padded(value, zeroes);
        Ok(())
    }

    /// Turns the distances from the end that properties noted into offsets from the start of the names.
    fn settle_names(&mut self) {
        let mut at = STRUCTURE;
        // Every round moves `at` on by a word at least, over tokens that this writer put there.
        while at < self.front {
            let word = |offset: usize| super::be32(self.buffer, offset);
            match word(at) {
                token::BEGIN_NODE => {
                    let name = self.buffer[at + 4..].iter().take_while(|&&byte| byte != 0).count();
                    at += 4 + (name + 1).next_multiple_of(4);
                }
                token::PROPERTY => {
                    let (length, from_end) = (word(at + 4) as usize, word(at + 8) as usize);
                    let offset = (self.back - from_end) as u32;
                    self.buffer[at + 8..at + 12].copy_from_slice(&offset.to_be_bytes());
                    at += 12 + length.next_multiple_of(4);
                }
                _ => at += 4,
            }
        }
    }

    /// Distance from the buffer's end to the start of a name that is already there.
    fn find_name(&self, name: &str) -> Option<usize> {
        let names = &self.buffer[self.buffer.len() - self.back..];
        let mut left = names.len();
        for known in names.split_inclusive(|&byte| byte == 0) {
            if &known[..known.len() - 1] == name.as_bytes() {
                return Some(left);
            }
            left -= known.len();
        }
        None
    }

    /// Puts a name in front of the others. The room was checked.
    fn put_name(&mut self, name: &str) -> usize {
        self.back += name.len() + 1;
        let start = self.buffer.len() - self.back;
        self.buffer[start..start + name.len()].copy_from_slice(name.as_bytes());
        self.buffer[start + name.len()] = 0;
        self.back
    }

    fn room(&self, bytes: usize) -> Result<(), WriteError> {
        let free = self.buffer.len() - self.front - self.back;
        if bytes <= free { Ok(()) } else { Err(WriteError::Full { buffer: self.buffer.len() }) }
    }

    /// Appends a word. The room was checked.
    fn word(&mut self, word: u32) {
        self.buffer[self.front..self.front + 4].copy_from_slice(&word.to_be_bytes());
        self.front += 4;
    }

    /// Appends bytes, `zeroes` zero bytes, and zeroes to a multiple of four. The room was checked.
    fn padded(&mut self, bytes: &[u8], zeroes: usize) {
        let end = self.front + (bytes.len() + zeroes).next_multiple_of(4);
        let (text, padding) = self.buffer[self.front..end].split_at_mut(bytes.len());
        text.copy_from_slice(bytes);
        padding.fill(0);
        self.front = end;
    }
}
