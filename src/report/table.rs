//! The table model that every renderer shares. Knows text and its roles, no
//! metric and no format.

/// A table with a row header in its first column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// What it shows, in a few words.
    pub caption: String,
    /// Columns, the first one of row headers.
    pub columns: Vec<Column>,
    /// Rows; each has a cell for every column.
    pub rows: Vec<Vec<Cell>>,
    /// Sentences that belong under it.
    pub notes: Vec<String>,
    /// Whether columns that do not fit may continue in a table below, rather
    /// than be left out.
    pub continues: bool,
}

/// A column's header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Column {
    /// Name, such as `TTFT`.
    pub name: String,
    /// Statistic and unit, such as `p50 ms`.
    pub unit: String,
    /// Whether its cells are numbers, which are aligned to the right.
    pub numeric: bool,
    /// 0 is never left out; where the width is short, the highest goes first.
    pub rank: u8,
}

impl Column {
    /// A column of words that is always shown.
    #[must_use]
    pub fn words(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A column of words that may be left out.
    #[must_use]
    pub fn optional(name: &str, rank: u8) -> Self {
        Self { name: name.to_owned(), rank, ..Self::default() }
    }

    /// A column of numbers.
    #[must_use]
    pub fn numbers(name: &str, unit: &str, rank: u8) -> Self {
        Self { name: name.to_owned(), unit: unit.to_owned(), numeric: true, rank }
    }

    /// Name and unit on one line.
    #[must_use]
    pub fn title(&self) -> String {
        if self.unit.is_empty() {
            self.name.clone()
        } else {
            format!("{} {}", self.name, self.unit)
        }
    }
}

/// What a cell says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    /// The value; an en dash where there is none.
    pub text: String,
    /// Smaller, below or beside it: an interval, a precision.
    pub detail: String,
    /// Why there is no value.
    pub reason: Option<String>,
}

impl Cell {
    /// A value alone.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A value with something smaller beside it.
    pub fn detailed(text: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { text: text.into(), detail: detail.into(), reason: None }
    }

    /// No value, because of `reason`.
    pub fn absent(reason: impl Into<String>) -> Self {
        Self { text: "–".to_owned(), detail: String::new(), reason: Some(reason.into()) }
    }

    /// A value, or the reason for its absence.
    pub fn or_absent(text: Option<String>, reason: &str) -> Self {
        text.map_or_else(|| Self::absent(reason), Self::new)
    }
}

impl Table {
    /// Leaves out every column but the first in which no row has a value.
    pub fn drop_empty_columns(&mut self) {
        let keep: Vec<bool> = (0..self.columns.len())
            .map(|i| i == 0 || self.rows.iter().any(|row| row[i].reason.is_none()))
            .collect();
        self.keep_columns(&keep);
    }

    /// The same table with only the columns for which `keep` is `true`.
    pub fn keep_columns(&mut self, keep: &[bool]) {
        let mut flags = keep.iter();
        self.columns.retain(|_| flags.next().copied().unwrap_or(false));
        for row in &mut self.rows {
            let mut flags = keep.iter();
            row.retain(|_| flags.next().copied().unwrap_or(false));
        }
    }
}
