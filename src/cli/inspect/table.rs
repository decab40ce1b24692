//! Tables for people: aligned columns, sizes, texts on one line.

use std::fmt::Write as _;

/// Characters of a value that a line of the table has room for.
const VALUE_WIDTH: usize = 90;

/// `text` cut to the table's width, with `end` (or "…") to show that there is more.
pub(super) fn shorten(text: &str, full: bool, end: &str) -> String {
    if full || text.chars().count() <= VALUE_WIDTH {
        return text.to_owned() + end;
    }
    text.chars().take(VALUE_WIDTH - 1).chain(['…']).collect()
}

/// `text` on one line, without what could control a terminal.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Writes rows of equal length in aligned columns; `right[i]` aligns column i to the right.
pub(super) fn columns(out: &mut String, rows: &[impl AsRef<[String]>], right: &[bool]) {
    let mut widths = vec![0; right.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row.as_ref()) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::from(" ");
        for ((cell, &width), right) in row.as_ref().iter().zip(&widths).zip(right) {
            line.push(' ');
            let _ = if *right { write!(line, "{cell:>width$}") } else { write!(line, "{cell:<width$}") };
            line.push(' ');
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

pub(super) fn bits_per_weight(bytes: u64, elements: u64) -> f64 {
    if elements == 0 { 0.0 } else { bytes as f64 * 8.0 / elements as f64 }
}

/// "3.82 G", "19.8 M".
pub(super) fn human_count(count: u64) -> String {
    match count as f64 {
        count if count >= 1e9 => format!("{:.2} G", count / 1e9),
        count if count >= 1e6 => format!("{:.2} M", count / 1e6),
        count if count >= 1e4 => format!("{:.1} k", count / 1e3),
        count => format!("{count}"),
    }
}
