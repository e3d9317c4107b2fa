//! The table: one fact a row.

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) item: String,
    pub(crate) field: String,
    /// `hi` and `lo`.
    pub(crate) place: Option<(u32, u32)>,
    /// Empty when the field may have any content.
    pub(crate) value: String,
}

impl Row {
    /// The value as a number.
    pub(crate) fn number(&self) -> Option<u64> {
        match self.value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => self.value.parse().ok(),
        }
    }
}

/// All rows of the table.
pub(crate) fn read() -> Vec<Row> {
    let mut lines = include_str!("../data/layouts.csv").lines();
    assert_eq!(lines.next(), Some("group,item,field,hi,lo,value"));
    lines.map(row).collect()
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.split(',').collect();
    let [group, item, field, hi, lo, value] = cells[..] else { panic!("not six cells: {line}") };
    let place = match (hi, lo) {
        ("", "") => None,
        (hi, lo) => Some((hi.parse().expect(line), lo.parse().expect(line))),
    };
    Row { group: group.into(), item: item.into(), field: field.into(), place, value: value.into() }
}
