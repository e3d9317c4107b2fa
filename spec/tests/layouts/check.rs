//! Compares the table with the registry, both ways.

use std::collections::HashMap;

use crate::item::{Code, Item};
use crate::table::Row;

/// Everything that does not agree, in words.
pub(crate) fn check(rows: &[Row], items: &[Item]) -> Vec<String> {
    let by_name: HashMap<_, _> =
        items.iter().enumerate().map(|(at, item)| ((item.group, item.name.as_str()), at)).collect();
    assert_eq!(by_name.len(), items.len(), "an item is registered twice");
    let mut seen: Vec<Seen> = items.iter().map(Seen::nothing).collect();
    let mut faults = Vec::new();
    for row in rows {
        let result = match by_name.get(&(row.group.as_str(), row.item.as_str())) {
            Some(&at) => check_row(row, &items[at], &mut seen[at]),
            None => Err("no such item here".to_owned()),
        };
        if let Err(fault) = result {
            faults.push(format!("{}/{}/{}: {fault}", row.group, row.item, row.field));
        }
    }
    for (item, seen) in items.iter().zip(&seen) {
        faults.extend(
            seen.missing(item).map(|what| format!("{}/{}: no row for {what}", item.group, item.name)),
        );
    }
    faults
}

/// What of an item the table has mentioned.
struct Seen {
    size: bool,
    fields: Vec<bool>,
    codes: Vec<bool>,
    /// Per bit: by a row for reserved or ignored bits.
    bits: Vec<bool>,
}

impl Seen {
    fn nothing(item: &Item) -> Self {
        Self {
            size: item.size.is_none(),
            fields: vec![false; item.fields.len()],
            codes: vec![false; item.codes.len()],
            bits: vec![false; item.reserved.len()],
        }
    }

    fn missing<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = String> + 'a {
        let fields = item.fields.iter().zip(&self.fields).filter(|(_, seen)| !**seen);
        let codes = item.codes.iter().zip(&self.codes).filter(|(_, seen)| !**seen);
        let bits = (0..self.bits.len())
            .filter(|&bit| !item.partial && (item.reserved[bit] || item.ignored[bit]) && !self.bits[bit]);
        (!self.size)
            .then(|| "its size".to_owned())
            .into_iter()
            .chain(fields.map(|(field, _)| format!("field {}", field.name)))
            .chain(codes.map(|((name, _), _)| format!("code {name}")))
            .chain(bits.map(|bit| format!("bit {bit}")))
    }
}

fn check_row(row: &Row, item: &Item, seen: &mut Seen) -> Result<(), String> {
    if row.field == "_size" {
        once(&mut seen.size)?;
        return expect(row.number().map(|n| n as u32), item.size, "size");
    }
    let Some((hi, lo)) = row.place else { return check_code(row, item, seen) };
    for (prefix, bits) in [("RSVD", &item.reserved), ("ZERO", &item.reserved), ("IGN", &item.ignored)] {
        if row.field.starts_with(prefix) && row.field[prefix.len()..].starts_with('_') {
            let named = if hi == lo { format!("{prefix}_{hi}") } else { format!("{prefix}_{hi}_{lo}") };
            let longer = format!("{prefix}_{hi}_{lo}");
            if row.field != named && row.field != longer {
                return Err(format!("the name is not that of {hi}:{lo}"));
            }
            if !row.value.is_empty() && row.number() != Some(0) {
                return Err("must be zero, says its name".to_owned());
            }
            return check_bits(hi, lo, bits, &mut seen.bits);
        }
    }
    let at = item
        .fields
        .iter()
        .position(|field| field.name.eq_ignore_ascii_case(&row.field))
        .ok_or("no such field here")?;
    once(&mut seen.fields[at])?;
    expect((hi, lo), (item.fields[at].hi, item.fields[at].lo), "position")?;
    if row.value.is_empty() { Ok(()) } else { check_code(row, item, seen) }
}

fn check_bits(hi: u32, lo: u32, declared: &[bool], seen: &mut [bool]) -> Result<(), String> {
    for bit in lo..=hi {
        if declared.get(bit as usize) != Some(&true) {
            return Err(format!("bit {bit} is something else here"));
        }
        once(&mut seen[bit as usize])?;
    }
    Ok(())
}

fn check_code(row: &Row, item: &Item, seen: &mut Seen) -> Result<(), String> {
    let at = item.codes.iter().position(|(name, _)| *name == row.field).ok_or("no such code here")?;
    once(&mut seen.codes[at])?;
    match item.codes[at].1 {
        Code::Number(number) => expect(row.number(), Some(number), "value"),
        Code::Text(text) => expect(row.value.as_str(), text, "value"),
        Code::Rule(words, kept) => {
            expect(row.value.as_str(), words, "rule")?;
            if kept { Ok(()) } else { Err("the rule is not kept here".to_owned()) }
        }
    }
}

fn once(seen: &mut bool) -> Result<(), String> {
    if std::mem::replace(seen, true) { Err("there twice".to_owned()) } else { Ok(()) }
}

fn expect<T: PartialEq + std::fmt::Debug>(table: T, here: T, what: &str) -> Result<(), String> {
    if table == here { Ok(()) } else { Err(format!("{what} {table:?} in the table, {here:?} here")) }
}
