//! Formats tables for people.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement};
use owo_colors::{OwoColorize, Stream};

/// A table without borders. Its header is bold if stdout supports that.
pub struct Table {
    inner: comfy_table::Table,
    right: Vec<bool>,
}

impl Table {
    /// Create a table with these columns. A column whose name starts with `>` is aligned to the right.
    pub fn new(columns: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let right: Vec<bool> = columns.iter().map(|name| name.starts_with('>')).collect();
        let names = columns.iter().map(|name| name.trim_start_matches('>').to_ascii_uppercase());
        let head = names.zip(&right).map(|(name, right)| cell(name, *right));
        inner.set_header(head.collect::<Vec<_>>());
        Self { inner, right }
    }

    /// Add a row. Surplus cells are dropped.
    pub fn row<T: ToString>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells = cells.into_iter().zip(&self.right).map(|(text, right)| cell(text.to_string(), *right));
        self.inner.add_row(cells.collect::<Vec<_>>());
    }
}

fn cell(text: String, right: bool) -> Cell {
    let cell = Cell::new(text);
    if right { cell.set_alignment(CellAlignment::Right) } else { cell }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, line) in self.inner.lines().enumerate() {
            // The preset puts a space on each side of a cell; remove those at the ends of the line.
            let line = line.strip_prefix(' ').unwrap_or(&line).trim_end();
            if number == 0 {
                writeln!(f, "{}", line.if_supports_color(Stream::Stdout, |line| line.bold()))?;
            } else {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_are_aligned_to_the_right() {
        let mut table = Table::new(&["node", ">owned"]);
        table.row(["a@127.0.0.1", "21"]);
        table.row(["longer@127.0.0.1", "7"]);
        assert_eq!(
            table.to_string(),
            "NODE              OWNED\na@127.0.0.1          21\nlonger@127.0.0.1      7\n"
        );
    }
}
