//! Tables as text: columns as wide as their widest cell, two spaces between them, nothing behind the last.
//!
//! No lines and no colours, so that `awk` and `cut` read them too.

use std::fmt;

/// Two spaces keep columns apart where cells hold single ones.
const GAP: &str = "  ";

/// On which side a column's cells lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A column's head and side.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    head: &'static str,
    side: Side,
}

/// A column of text.
pub fn left(head: &'static str) -> Column {
    Column { head, side: Side::Left }
}

/// A column of numbers.
pub fn right(head: &'static str) -> Column {
    Column { head, side: Side::Right }
}

/// Rows of cells under heads.
#[derive(Debug)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub fn new(columns: [Column; N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row. Line breaks in a cell become spaces.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| if cell.contains(['\n', '\r']) { on_one_line(&cell) } else { cell }));
    }
}

fn on_one_line(cell: &str) -> String {
    cell.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.columns.map(|column| column.head.to_owned());
        let lines = || std::iter::once(&head).chain(&self.rows);
        let width = |i: usize| lines().map(|cells| cells[i].chars().count()).max().unwrap_or_default();
        let widths: [usize; N] = std::array::from_fn(width);
        for cells in lines() {
            let padded = |i: usize| match self.columns[i].side {
                Side::Left => format!("{:<1$}", cells[i], widths[i]),
                Side::Right => format!("{:>1$}", cells[i], widths[i]),
            };
            let line: Vec<String> = (0..N).map(padded).collect();
            writeln!(f, "{}", line.join(GAP).trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([left("NAME"), right("BYTES"), left("NOTE")]);
        table.row(["a".to_owned(), "1234567".to_owned(), "first\n second".to_owned()]);
        table.row(["zürich-1".to_owned(), "9".to_owned(), String::new()]);
        expect_test::expect![[r#"
            NAME        BYTES  NOTE
            a         1234567  first second
            zürich-1        9
        "#]]
        .assert_eq(&table.to_string());
    }
}
