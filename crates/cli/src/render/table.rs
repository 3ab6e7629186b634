//! Tables without lines, as kubectl's.

use comfy_table::{CellAlignment, ContentArrangement, presets};

/// Rows below a heading.
pub(crate) struct Table {
    inner: comfy_table::Table,
}

impl Table {
    /// A table with these columns.
    pub fn new(heading: &[&str]) -> Table {
        let mut inner = comfy_table::Table::new();
        inner.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        inner.set_header(heading.iter().copied());
        for column in inner.column_iter_mut() {
            column.set_padding((0, 3)).set_cell_alignment(CellAlignment::Left);
        }
        Table { inner }
    }

    /// One more row. Control characters in what a stranger wrote stay off the terminal, and line breaks in the row.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let clean = |cell: T| cell.as_ref().replace(|c: char| c.is_control(), "?");
        self.inner.add_row(cells.into_iter().map(clean).collect::<Vec<_>>());
    }

    /// The text, each line with its end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.inner.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_headings() {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["0123456789abc", "web", "Running"]);
        table.row(["1", "a longer name", ""]);
        table.row(["2", "bad\x1b[31m\nname", "Exited"]);
        let expected = "\
ID              NAME            STATE
0123456789abc   web             Running
1               a longer name
2               bad?[31m?name   Exited
";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn no_rows_leave_the_heading() {
        assert_eq!(Table::new(&["ID", "NAME"]).text(), "ID   NAME\n");
    }
}
