//! Flattened device trees, as KHO carries its root: a checked view over foreign bytes, and a small writer.
//!
//! [`Fdt::parse`] walks the whole structure once: header, block bounds, every token, every name. What it lets through can
//! be read without a further check, so the views answer with plain values. Depth is counted, never recursed into, and the
//! walk ends with the bytes at the latest. The views show what KHO uses: the root's properties, the nodes just below it,
//! and their properties. Deeper nodes are checked and passed over.
//!
//! The format is that of the Devicetree Specification, release 0.4, chapter 5, version 17: big-endian words. KHO stores
//! its 64-bit *values* in the processor's own order, though: see [`Property::native_u64`].

mod error;
mod write;

pub use error::{Block, FdtError};
pub use write::{WriteError, Writer};

/// First word of every tree.
pub const MAGIC: u32 = 0xd00d_feed;
/// The version that is written, and the lowest that is read.
pub const VERSION: u32 = 17;
/// The oldest version whose readers understand what is written.
pub const LAST_COMPATIBLE: u32 = 16;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 40;
/// Nodes that may enclose one another, the root included. KHO needs two.
pub const MAX_DEPTH: usize = 16;

/// Tokens of the structure block.
mod token {
    pub(super) const BEGIN_NODE: u32 = 1;
    pub(super) const END_NODE: u32 = 2;
    pub(super) const PROPERTY: u32 = 3;
    pub(super) const NOP: u32 = 4;
    pub(super) const END: u32 = 9;
}

/// A flattened device tree that passed every check.
///
/// # Invariants
/// `structure` is one root node, well nested, closed by the end token; every name in it is UTF-8 and terminated; every
/// property's name lies in `strings`.
#[derive(Debug, Clone, Copy)]
pub struct Fdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    total: usize,
}

impl<'a> Fdt<'a> {
    /// Checks the tree that `bytes` opens with. More bytes may follow it: KHO hands over a whole page.
    ///
    /// # Errors
    /// The first thing found wrong, with its offset.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FdtError> {
        let header = Header::read(bytes)?;
        let tree =
            bytes.get(..header.total).ok_or(FdtError::Short { have: bytes.len(), need: header.total })?;
        let structure = block(tree, Block::Structure, header.structure, header.structure_bytes, 4)?;
        let strings = block(tree, Block::Strings, header.strings, header.strings_bytes, 1)?;
        check_reservations(tree, header.reservations)?;
        // INVARIANT: `check_structure` establishes it or refuses.
        check_structure(structure, strings, header.structure)?;
        Ok(Self { structure, strings, total: header.total })
    }

    /// Length of the tree in bytes, as its header says.
    #[must_use]
    pub const fn total_bytes(&self) -> usize {
        self.total
    }

    /// The root node.
    #[must_use]
    pub fn root(&self) -> Node<'a> {
        self.at_depth(1).next().unwrap_or(Node { name: "", body: &[], strings: self.strings })
    }

    /// The nodes just below the root, in order.
    #[must_use]
    pub fn nodes(&self) -> Nodes<'a> {
        self.at_depth(2)
    }

    /// The first node just below the root that has this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<Node<'a>> {
        self.nodes().find(|node| node.name == name)
    }

    fn at_depth(&self, wanted: usize) -> Nodes<'a> {
        Nodes { rest: self.structure, strings: self.strings, depth: 0, wanted }
    }
}

/// A node of a checked tree.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    name: &'a str,
    /// The structure block from behind the node's name on: its properties, its children, and what follows.
    body: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Node<'a> {
    /// The node's name; empty for the root.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.name
    }
    /// The node's properties, in order.
    #[must_use]
    pub const fn properties(&self) -> Properties<'a> {
        Properties { rest: self.body, strings: self.strings }
    }
    /// The first property that has this name.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<Property<'a>> {
        self.properties().find(|property| property.name == name)
    }
}

/// A property of a checked tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Property<'a> {
    name: &'a str,
    value: &'a [u8],
}

impl<'a> Property<'a> {
    /// The property's name.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.name
    }
    /// The property's bytes.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }
    /// The value as a 64-bit number in the processor's own byte order, as KHO stores it; `None` unless it is 8 bytes.
    #[must_use]
    pub fn native_u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_ne_bytes)
    }
    /// The value as one string; `None` unless it is UTF-8, ends with its only NUL, and holds no other.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        match self.value.split_last() {
            Some((0, text)) if !text.contains(&0) => core::str::from_utf8(text).ok(),
            _ => None,
        }
    }
}

/// Iterator over the nodes at one depth.
#[derive(Debug, Clone)]
pub struct Nodes<'a> {
    rest: &'a [u8],
    strings: &'a [u8],
    depth: usize,
    wanted: usize,
}

impl<'a> Iterator for Nodes<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        // Each round takes a token off, so the walk is no longer than the block.
        loop {
            let (piece, rest) = take(self.rest, self.strings).ok()?;
            self.rest = rest;
            match piece {
                Piece::Begin(name) => {
                    self.depth += 1;
                    if self.depth == self.wanted {
                        return Some(Node { name, body: rest, strings: self.strings });
                    }
                }
                Piece::EndNode => self.depth = self.depth.saturating_sub(1),
                Piece::Property(_) | Piece::Nop => {}
                Piece::End => return None,
            }
        }
    }
}

/// Iterator over the properties of one node.
#[derive(Debug, Clone)]
pub struct Properties<'a> {
    rest: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Iterator for Properties<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        loop {
            let (piece, rest) = take(self.rest, self.strings).ok()?;
            match piece {
                Piece::Property(property) => {
                    self.rest = rest;
                    return Some(property);
                }
                Piece::Nop => self.rest = rest,
                // Properties come before everything else in a node.
                Piece::Begin(_) | Piece::EndNode | Piece::End => return None,
            }
        }
    }
}

/// What the header says, as numbers that index memory.
struct Header {
    total: usize,
    structure: usize,
    structure_bytes: usize,
    strings: usize,
    strings_bytes: usize,
    reservations: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, FdtError> {
        let header =
            bytes.get(..HEADER_BYTES).ok_or(FdtError::Short { have: bytes.len(), need: HEADER_BYTES })?;
        let word = |index: usize| be32(header, 4 * index);
        if word(0) != MAGIC {
            return Err(FdtError::Magic { found: word(0) });
        }
        let (version, last_compatible) = (word(5), word(6));
        if version < VERSION || last_compatible > VERSION {
            return Err(FdtError::Version { version, last_compatible });
        }
        Ok(Self {
            total: word(1) as usize,
            structure: word(2) as usize,
            strings: word(3) as usize,
            reservations: word(4) as usize,
            strings_bytes: word(8) as usize,
            structure_bytes: word(9) as usize,
        })
    }
}

/// The bytes of one block, when it lies behind the header, within the tree, on a multiple of `align`.
fn block(tree: &[u8], block: Block, start: usize, bytes: usize, align: usize) -> Result<&[u8], FdtError> {
    let refused = FdtError::Block { block, start, bytes, total: tree.len() };
    if start < HEADER_BYTES || start % align != 0 || bytes % align != 0 {
        return Err(refused);
    }
    start.checked_add(bytes).and_then(|end| tree.get(start..end)).ok_or(refused)
}

/// The memory reservations must end within the tree. Their content is not used: KHO leaves the list empty.
fn check_reservations(tree: &[u8], start: usize) -> Result<(), FdtError> {
    let room = block(tree, Block::Reservations, start, tree.len().saturating_sub(start), 1)?;
    let closed = start % 8 == 0 && room.chunks_exact(16).any(|entry| entry.iter().all(|&byte| byte == 0));
    if closed { Ok(()) } else { Err(FdtError::Torn { offset: start }) }
}

/// Walks the whole structure block, which begins at byte `base` of the tree.
fn check_structure(structure: &[u8], strings: &[u8], base: usize) -> Result<(), FdtError> {
    let mut rest = structure;
    let mut depth = 0;
    let mut seen_root = false;
    // Whether a property may come next: not outside a node and not behind a child.
    let mut properties_allowed = false;
    loop {
        let offset = base + structure.len() - rest.len();
        let (piece, after) = take(rest, strings).map_err(|fault| fault.at(offset))?;
        rest = after;
        match piece {
            Piece::Begin(name) => {
                if depth == 0 && (seen_root || !name.is_empty()) || depth == MAX_DEPTH {
                    return Err(FdtError::Nesting { offset });
                }
                (depth, seen_root, properties_allowed) = (depth + 1, true, true);
            }
            Piece::EndNode if depth > 0 => (depth, properties_allowed) = (depth - 1, false),
            Piece::Property(_) if properties_allowed => {}
            Piece::Nop => {}
            Piece::End if depth == 0 && seen_root => return Ok(()),
            Piece::EndNode | Piece::Property(_) | Piece::End => return Err(FdtError::Nesting { offset }),
        }
    }
}

/// One token of the structure block with what belongs to it.
enum Piece<'a> {
    Begin(&'a str),
    EndNode,
    Property(Property<'a>),
    Nop,
    End,
}

/// Why a token could not be taken.
enum Fault {
    Torn,
    Token(u32),
    Name,
    PropertyName(u32),
}

impl Fault {
    const fn at(self, offset: usize) -> FdtError {
        match self {
            Self::Torn => FdtError::Torn { offset },
            Self::Token(token) => FdtError::Token { offset, token },
            Self::Name => FdtError::Name { offset },
            Self::PropertyName(string) => FdtError::PropertyName { offset, string },
        }
    }
}

/// Takes one token off the front of `bytes`, which begins on a multiple of four of the block.
fn take<'a>(bytes: &'a [u8], strings: &'a [u8]) -> Result<(Piece<'a>, &'a [u8]), Fault> {
    let (word, rest) = bytes.split_first_chunk::<4>().ok_or(Fault::Torn)?;
    match u32::from_be_bytes(*word) {
        token::BEGIN_NODE => {
            let name = terminated(rest).ok_or(Fault::Name)?;
            Ok((Piece::Begin(name), skip(rest, name.len() + 1)?))
        }
        token::END_NODE => Ok((Piece::EndNode, rest)),
        token::PROPERTY => {
            let (head, rest) = rest.split_first_chunk::<8>().ok_or(Fault::Torn)?;
            let (length, string) = (be32(head, 0) as usize, be32(head, 4));
            let value = rest.get(..length).ok_or(Fault::Torn)?;
            let name = strings
                .get(string as usize..)
                .and_then(terminated)
                .filter(|name| !name.is_empty())
                .ok_or(Fault::PropertyName(string))?;
            Ok((Piece::Property(Property { name, value }), skip(rest, length)?))
        }
        token::NOP => Ok((Piece::Nop, rest)),
        token::END => Ok((Piece::End, rest)),
        token => Err(Fault::Token(token)),
    }
}

/// The string up to the first NUL; `None` without one or when it is no UTF-8.
fn terminated(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(&bytes[..end]).ok()
}

/// What follows `length` bytes and their padding to a multiple of four.
fn skip(bytes: &[u8], length: usize) -> Result<&[u8], Fault> {
    length.checked_next_multiple_of(4).and_then(|padded| bytes.get(padded..)).ok_or(Fault::Torn)
}

/// The big-endian word at `offset`, which the caller has checked.
fn be32(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}
