//! Tables and figures for people.

use comfy_table::{CellAlignment, Table, presets};

pub(super) use crate::timeline::figures::{bytes, counted, rate, seconds, short};

/// A table with a header and no lines, its columns from `right` on aligned to the right.
pub(super) fn table(header: &[&str], right: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().map(|name| name.to_uppercase()));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= right {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table as text, without trailing blanks.
pub(super) fn text(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
