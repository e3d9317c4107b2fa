//! Every layout of this crate against a table of positions, codes and offsets from other sources (`data/layouts.csv`).
//!
//! `registry` says what the crate has to show for each item of the table, under the table's names; `check` compares both
//! ways: a row without counterpart is a fault, and so is a field, a reserved bit or a code without a row. The last tests
//! turn to the check itself: they spoil the table, one row at a time, and want each spoiling found.
//!
//! A row is `group,item,field,hi,lo,value`. `hi` and `lo` count bits over the whole item, or bytes for records. A row
//! without them is a code, an offset, a size (`_size`) or a rule. Fields `RSVD_h_l` and `ZERO_h_l` must be zero,
//! `IGN_h_l` hardware ignores.

mod check;
mod codes;
mod item;
mod registry;
mod table;

use check::check;
use table::Row;

#[test]
fn every_row_has_its_counterpart_and_everything_declared_has_its_row() {
    let rows = table::read();
    let faults = check(&rows, &registry::items());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(rows.len(), 1186);
}

#[test]
fn a_position_off_by_one_is_found_in_every_row() {
    spoil_every_row(|row| {
        let (hi, lo) = row.place?;
        Some(Row { place: Some((hi + 1, lo + 1)), ..row.clone() })
    });
}

#[test]
fn a_field_too_wide_is_found_in_every_row() {
    spoil_every_row(|row| {
        let (hi, lo) = row.place?;
        Some(Row { place: Some((hi + 1, lo)), ..row.clone() })
    });
}

#[test]
fn another_value_is_found_in_every_row() {
    spoil_every_row(|row| {
        let value = match row.number() {
            _ if row.value.is_empty() => return None,
            Some(number) => format!("{:#x}", number ^ 1),
            None => format!("{}x", row.value),
        };
        Some(Row { value, ..row.clone() })
    });
}

#[test]
fn another_name_is_found_in_every_row() {
    spoil_every_row(|row| Some(Row { field: format!("{}_", row.field), ..row.clone() }));
    spoil_every_row(|row| Some(Row { item: format!("{}_", row.item), ..row.clone() }));
}

#[test]
fn a_row_that_is_missing_or_there_twice_is_found() {
    let (rows, items) = (table::read(), registry::items());
    for at in 0..rows.len() {
        let mut fewer = rows.clone();
        let row = fewer.remove(at);
        assert!(!check(&fewer, &items).is_empty(), "nobody misses {row:?}");
        let mut more = rows.clone();
        more.push(row.clone());
        assert!(!check(&more, &items).is_empty(), "nobody minds a second {row:?}");
    }
}

/// Replaces one row after the other by what `spoil` makes of it, and wants the check to complain each time.
fn spoil_every_row(spoil: impl Fn(&Row) -> Option<Row>) {
    let (mut rows, items) = (table::read(), registry::items());
    let mut spoiled = 0;
    for at in 0..rows.len() {
        let Some(wrong) = spoil(&rows[at]) else { continue };
        let right = std::mem::replace(&mut rows[at], wrong);
        assert!(!check(&rows, &items).is_empty(), "{right:?} spoiled to {:?} went unnoticed", rows[at]);
        rows[at] = right;
        spoiled += 1;
    }
    assert!(spoiled > 100, "only {spoiled} rows were spoiled");
}
