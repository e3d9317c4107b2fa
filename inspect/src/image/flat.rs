//! makedumpfile's flattened form: a dump cut into pieces, each with the place where it belongs.
//!
//! It is what a dump looks like that was written to a pipe, and how QEMU writes its compressed dumps. A page of header, then
//! records: place and length (big-endian words of 64 bits), and that many bytes. Later pieces replace earlier ones.

use super::open::OpenError;
use super::store::Store;
use std::collections::BTreeMap;

/// What the header opens with.
pub(crate) const MAGIC: &[u8] = b"makedumpfile\0\0\0\0";
/// Bytes of the header, most of them zero.
const HEADER: u64 = 4096;
/// Bytes before a piece.
const RECORD: u64 = 16;

/// A piece: where it ends in the dump, and where in the store it lies.
#[derive(Debug, Clone, Copy)]
struct Piece {
    end: u64,
    at: u64,
}

/// The dump.
///
/// # Invariants
/// Pieces do not overlap, are not empty, and lie within the store.
#[derive(Debug)]
pub(crate) struct Flat {
    store: Store,
    /// By their first byte in the dump.
    pieces: BTreeMap<u64, Piece>,
}

impl Flat {
    /// Reads the records; gives back the dump, and what was odd about it.
    pub(crate) fn new(store: Store) -> Result<(Self, Vec<String>), OpenError> {
        let damaged = |what: String| OpenError::Dump { what };
        let word = |at| {
            let mut word = [0; 8];
            store.read_at(at, &mut word).then(|| i64::from_be_bytes(word))
        };
        if (word(16), word(24)) != (Some(1), Some(1)) {
            return Err(damaged("its flattened form is of an unknown type or version".into()));
        }
        let mut pieces = BTreeMap::new();
        let mut at = HEADER;
        let mut notes = Vec::new();
        loop {
            let (Some(place), Some(length)) = (word(at), word(at.saturating_add(8))) else {
                notes.push(
                    "the flattened dump ends early: what is missing of it is missing memory".to_owned(),
                );
                break;
            };
            if (place, length) == (-1, -1) {
                break;
            }
            let piece = u64::try_from(place).ok().zip(u64::try_from(length).ok());
            let piece = piece.filter(|(place, length)| place.checked_add(*length).is_some());
            let Some((place, length)) = piece else {
                return Err(damaged(format!(
                    "the record at byte {at:#x} has place {place} and length {length}"
                )));
            };
            at += RECORD;
            let here = length.min(store.bytes().saturating_sub(at));
            put(&mut pieces, place, Piece { end: place + here, at });
            if here < length {
                notes.push(format!("the flattened dump ends {} bytes early", length - here));
                break;
            }
            at += length;
        }
        Ok((Self { store, pieces }, notes))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(_, piece)| piece.end)
    }

    pub(crate) fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let piece = self.pieces.range(..=offset).next_back().filter(|(_, piece)| offset < piece.end);
            let Some((start, piece)) = piece else { return false };
            let take = usize::try_from(piece.end - offset).unwrap_or(usize::MAX).min(out.len());
            let (now, later) = out.split_at_mut(take);
            if !self.store.read_at(piece.at + (offset - start), now) {
                return false;
            }
            out = later;
            offset += take as u64;
        }
        true
    }
}

/// Puts a piece in, over what is there already.
fn put(pieces: &mut BTreeMap<u64, Piece>, start: u64, piece: Piece) {
    if piece.end == start {
        return;
    }
    while let Some((&before, &old)) = pieces.range(..piece.end).next_back().filter(|(_, old)| old.end > start)
    {
        if old.end > piece.end {
            pieces.insert(piece.end, Piece { end: old.end, at: old.at + (piece.end - before) });
        }
        if before < start {
            // Only the first of them reaches over the start: none is left to cut.
            pieces.insert(before, Piece { end: start, at: old.at });
            break;
        }
        pieces.remove(&before);
    }
    pieces.insert(start, piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(records: &[(i64, &[u8])], end: bool) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1_i64, 1].iter().flat_map(|word| word.to_be_bytes()));
        bytes.resize(HEADER as usize, 0);
        for (place, content) in records {
            bytes.extend(place.to_be_bytes());
            bytes.extend((content.len() as i64).to_be_bytes());
            bytes.extend_from_slice(content);
        }
        if end {
            bytes.extend([0xff; 16]);
        }
        bytes
    }

    #[test]
    fn pieces_come_in_any_order_and_later_ones_replace_earlier_ones() {
        let records: [(i64, &[u8]); 5] =
            [(8, b"89abcdef"), (0, b"01234567"), (6, b"xyz"), (10, b""), (15, b"F")];
        let (flat, notes) = Flat::new(Store::Bytes(flat(&records, true))).unwrap();
        let mut out = [0; 16];
        assert!(flat.read_at(0, &mut out) && notes.is_empty());
        assert_eq!(std::str::from_utf8(&out).unwrap(), "012345xyz9abcdeF");
        assert_eq!(flat.bytes(), 16);
    }

    #[test]
    fn a_piece_within_another_leaves_both_of_its_ends() {
        let (flat, _) = Flat::new(Store::Bytes(flat(&[(0, b"0123456789"), (4, b"xy")], true))).unwrap();
        let mut out = [0; 10];
        assert!(flat.read_at(0, &mut out));
        assert_eq!(&out, b"0123xy6789");
    }

    #[test]
    fn what_no_piece_holds_is_missing_and_a_torn_file_says_so() {
        let mut torn = flat(&[(0, b"0123"), (6, b"6789")], false);
        torn.truncate(torn.len() - 2);
        let (flat, notes) = Flat::new(Store::Bytes(torn)).unwrap();
        assert!(
            flat.read_at(6, &mut [0; 2]) && !flat.read_at(3, &mut [0; 2]) && !flat.read_at(7, &mut [0; 2])
        );
        assert_eq!(notes, ["the flattened dump ends 2 bytes early"]);
        let odd = super::tests::flat(&[(-5, b"0123")], true);
        assert!(matches!(Flat::new(Store::Bytes(odd)), Err(OpenError::Dump { .. })));
    }
}
