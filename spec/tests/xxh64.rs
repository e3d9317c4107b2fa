//! XXH64 against a second implementation.

use holdover_spec::xxh64::{Hasher, hash};
use proptest::prelude::*;

#[test]
fn published_values_come_out() {
    assert_eq!(hash(0, b""), 0xef46_db37_51d8_e999);
    assert_eq!(hash(0, b"abc"), 0x44bc_2cf5_ad77_0999);
}

#[test]
fn every_length_up_to_several_stripes_agrees_with_the_second_implementation() {
    let bytes: Vec<u8> = (0..=255).cycle().take(200).map(|i: u8| i.wrapping_mul(37)).collect();
    for length in 0..=bytes.len() {
        let bytes = &bytes[..length];
        assert_eq!(
            hash(length as u64, bytes),
            twox_hash::XxHash64::oneshot(length as u64, bytes),
            "{length}"
        );
    }
}

proptest! {
    #[test]
    fn pieces_hash_like_the_whole_and_like_the_second_implementation(
        seed: u64,
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8),
    ) {
        let whole = pieces.concat();
        let mut hasher = Hasher::new(seed);
        for piece in &pieces {
            hasher.update(piece);
        }
        prop_assert_eq!(hasher.finish(), hash(seed, &whole));
        prop_assert_eq!(hasher.finish(), twox_hash::XxHash64::oneshot(seed, &whole));
    }

    #[test]
    fn words_hash_like_their_little_endian_bytes_wherever_they_start(
        seed: u64,
        before in prop::collection::vec(any::<u8>(), 0..40),
        words in prop::collection::vec(any::<u64>(), 0..40),
    ) {
        let mut hasher = Hasher::new(seed);
        hasher.update(&before);
        hasher.update_words(&words);
        let bytes: Vec<u8> = before.iter().copied().chain(words.iter().flat_map(|w| w.to_le_bytes())).collect();
        prop_assert_eq!(hasher.finish(), twox_hash::XxHash64::oneshot(seed, &bytes));
    }
}
