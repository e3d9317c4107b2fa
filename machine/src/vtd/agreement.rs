//! Random tables: after everything was invalidated, the unit and a walk written anew agree on every address.

use super::tests::{Bench, DEVICE, DOMAIN, TOP, context};
use crate::config::UnitConfig;
use crate::trace::Invalidation;
use proptest::prelude::*;
use spec::fault::Reason;

/// Tables that entries may point at, all within the bench's memory.
const TABLES: [u64; 4] = [TOP, 0x10_3000, 0x10_4000, 0x10_5000];

#[derive(Debug, Clone, Copy)]
struct Entry {
    table: usize,
    index: u64,
    value: u64,
}

/// Entries that are mostly valid: tables or leaves with some permissions, now and then with a stray bit.
fn entry() -> impl Strategy<Value = Entry> {
    let target =
        prop_oneof![(0..4usize).prop_map(|i| TABLES[i]), (0u64..64).prop_map(|n| 0x20_0000 + (n << 12))];
    let stray = prop_oneof![9 => Just(0u64), 1 => prop::sample::select(vec![1u64 << 7, 1 << 11, 1 << 45, 1 << 62, 1 << 52])];
    (0..4usize, 0u64..4, target, 0u64..4, stray).prop_map(|(table, index, target, rw, stray)| Entry {
        table,
        index,
        value: target | rw | stray,
    })
}

/// What an address should meet, by plain arithmetic over the words of memory.
fn naive(bench: &Bench, iova: u64, write: bool) -> Result<u64, u8> {
    let mut table = TOP;
    let mut rights = 3;
    for shift in [30, 21, 12] {
        let word = bench.fabric.memory.load(table + (iova >> shift) % 512 * 8).map_err(|_| 7u8)?;
        let denied = if write { 5 } else { 6 };
        if word & 3 == 0 {
            return Err(denied);
        }
        let leaf = shift == 12 || word >> 7 & 1 == 1;
        let address = word >> 12 << 12 & ((1 << 52) - 1);
        let low = if leaf { address % (1 << shift) } else { 0 };
        if word >> 62 & 1 == 1 || word >> 11 & 1 == 1 || address >> 39 != 0 || low != 0 {
            return Err(0x0c);
        }
        rights &= word & 3;
        if rights == 0 || leaf {
            let wanted = if write { 2 } else { 1 };
            let output = address + iova % (1 << shift);
            return match () {
                () if rights & wanted == 0 => Err(denied),
                () if (0xfee0_0000..0xfef0_0000u64).contains(&output) => Err(0x0e),
                () => Ok(output),
            };
        }
        table = address;
    }
    unreachable!("the last level ends every walk")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn after_a_global_invalidation_the_unit_agrees_with_a_plain_walk(
        first in prop::collection::vec(entry(), 1..40),
        second in prop::collection::vec(entry(), 1..40),
        asked in prop::collection::vec((0u64..3, 0u64..5, 0u64..5, 0u64..4096, any::<bool>()), 1..60),
    ) {
        let config = UnitConfig::plain(0xfed9_0000, 39).with_fault_records(220);
        let mut bench = Bench::new(config).enabled();
        prop_assert_eq!(context().did(), DOMAIN);
        for entries in [first, second] {
            for Entry { table, index, value } in entries {
                bench.set(TABLES[table] + 8 * index, value);
            }
            bench.unit.caches.forget(Invalidation::Translations);
            for &(top, middle, low, offset, write) in &asked {
                let iova = top << 30 | middle << 21 | low << 12 | offset & !3;
                let expected = naive(&bench, iova, write).map_err(Reason);
                prop_assert_eq!(bench.ask(DEVICE, iova, write), expected, "iova {:#x}", iova);
                // And once more out of the cache.
                prop_assert_eq!(bench.ask(DEVICE, iova, write), expected, "iova {:#x}, cached", iova);
            }
        }
    }
}
