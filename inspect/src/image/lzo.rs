//! LZO1X, in which makedumpfile packs pages unless told otherwise: literals, and copies of what came out before.
//!
//! An instruction is a byte, with more where its field of length is zero. It copies from a distance back, then up to three
//! literals follow; how many there were decides what a byte below 16 means next.

/// What instructions below 16 mean: a run of literals, a short copy, or a farther one.
#[derive(Clone, Copy)]
enum After {
    Nothing,
    FewLiterals,
    Literals,
}

/// Bytes that are still packed, and those that came out.
struct Unpacking<'a> {
    packed: core::slice::Iter<'a, u8>,
    out: Vec<u8>,
    limit: usize,
}

impl Unpacking<'_> {
    fn byte(&mut self) -> Option<usize> {
        self.packed.next().map(|byte| usize::from(*byte))
    }

    fn word(&mut self) -> Option<usize> {
        Some(self.byte()? | self.byte()? << 8)
    }

    /// A length: `field` itself, or when that is zero `largest` and what further bytes add to it.
    fn length(&mut self, field: usize, largest: usize) -> Option<usize> {
        if field != 0 {
            return Some(field);
        }
        let mut length = largest;
        loop {
            match self.byte()? {
                0 if length <= self.limit => length += 255,
                0 => return None,
                last => return Some(length + last),
            }
        }
    }

    fn literals(&mut self, count: usize) -> Option<()> {
        let (literals, rest) = self.packed.as_slice().split_at_checked(count)?;
        (self.out.len() + count <= self.limit).then(|| self.out.extend_from_slice(literals))?;
        self.packed = rest.iter();
        Some(())
    }

    /// Copies `count` bytes, byte by byte: they may overlap what they make.
    fn copy(&mut self, distance: usize, count: usize) -> Option<()> {
        let from = self.out.len().checked_sub(distance)?;
        if self.out.len() + count > self.limit {
            return None;
        }
        for at in from..from + count {
            self.out.push(*self.out.get(at)?);
        }
        Some(())
    }
}

/// Unpacks `packed`; `None` when it is damaged, or more than `limit` bytes come out.
pub(super) fn unpack(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut it = Unpacking { packed: packed.iter(), out: Vec::new(), limit };
    let mut after = After::Nothing;
    if *packed.first()? > 17 {
        let count = it.byte()? - 17;
        it.literals(count)?;
        after = if count < 4 { After::FewLiterals } else { After::Literals };
    }
    loop {
        let code = it.byte()?;
        let (distance, count, literals) = match (code, after) {
            (64.., _) => ((it.byte()? << 3) + (code >> 2 & 7) + 1, (code >> 5) + 1, code & 3),
            (32.., _) => {
                let count = it.length(code & 31, 31)? + 2;
                let word = it.word()?;
                ((word >> 2) + 1, count, word & 3)
            }
            (16.., _) => {
                let count = it.length(code & 7, 7)? + 2;
                let word = it.word()?;
                match ((code & 8) << 11) + (word >> 2) {
                    0 => return (count == 3).then_some(it.out),
                    distance => (distance + 0x4000, count, word & 3),
                }
            }
            (_, After::Nothing) => {
                let count = it.length(code, 15)? + 3;
                it.literals(count)?;
                after = After::Literals;
                continue;
            }
            (_, After::FewLiterals) => ((it.byte()? << 2) + (code >> 2) + 1, 2, code & 3),
            (_, After::Literals) => ((it.byte()? << 2) + (code >> 2) + 0x801, 3, code & 3),
        };
        it.copy(distance, count)?;
        it.literals(literals)?;
        after = if literals == 0 { After::Nothing } else { After::FewLiterals };
    }
}

#[cfg(test)]
mod tests {
    use super::unpack;
    use proptest::prelude::*;

    /// Runs, repeats near and far, and noise, so that every kind of instruction occurs.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (any::<u8>(), 1..700_usize).prop_map(|(byte, count)| vec![byte; count]),
            prop::collection::vec(any::<u8>(), 1..300),
            (1..9_u8, 0..40_usize)
                .prop_map(|(step, count)| (0..count).map(|n| (n as u8).wrapping_mul(step)).collect()),
        ];
        let pieces = prop::collection::vec(piece, 1..12);
        let order = prop::collection::vec(any::<prop::sample::Index>(), 0..120);
        (pieces, order).prop_map(|(pieces, order)| {
            let repeats = order.iter().flat_map(|index| index.get(&pieces).clone());
            pieces.concat().into_iter().chain(repeats).collect()
        })
    }

    proptest! {
        #[test]
        fn what_another_program_packed_comes_out_as_it_was(content in content()) {
            let packed = lzokay_native::compress(&content).unwrap();
            let out = unpack(&packed, content.len());
            prop_assert_eq!(out.as_ref(), Some(&content));
            prop_assert_eq!(unpack(&packed, content.len() - 1), None, "more than the limit");
            prop_assert_eq!(unpack(&packed[..packed.len() - 1], content.len()), None, "without its end");
        }

        #[test]
        fn foreign_bytes_end_in_an_answer_of_bounded_size(
            content in content(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        ) {
            let mut packed = lzokay_native::compress(&content).unwrap();
            for (at, byte) in changes {
                *at.get_mut(&mut packed) = byte;
            }
            prop_assert!(unpack(&packed, 4096).is_none_or(|out| out.len() <= 4096));
        }
    }

    #[test]
    fn a_length_of_zeros_without_end_is_given_up() {
        assert_eq!(unpack(&[0; 1 << 20], 4096), None);
        assert_eq!(unpack(&[], 4096), None);
    }
}
