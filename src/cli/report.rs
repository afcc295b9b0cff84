//! The output of commands.

use super::args::Output;
use crate::types::Timestamp;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

impl Output {
    /// Prints a report as JSON, or as `text` renders it.
    pub fn print<T: Serialize>(
        self,
        report: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let printed =
            if self.json { serde_json::to_string_pretty(report)? + "\n" } else { text(report) };
        print_bytes(printed.as_bytes())
    }
}

/// Prints the output of a command.
pub fn print_bytes(output: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(output) {
        // The reader of the pipe has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("the command succeeded, but its output could not be written"),
    }
}

/// Space between columns, and before the lines that continue a row.
const GAP: &str = "  ";

/// A table for the standard output: on a terminal as wide as that is, elsewhere a line for each
/// row, however long, so that programs find their columns.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let size = console::Term::stdout().size_checked();
    aligned(header, rows, size.map_or(usize::MAX, |(_, columns)| columns.into()))
}

/// Columns as wide as their widest cell. Rows that are wider than `limit` go on in further lines,
/// with a line of the header for each; a cell is never cut, as it may be a name to copy.
fn aligned(header: &[&str], rows: &[Vec<String>], limit: usize) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = lines(&widths, limit);
    let mut text = String::new();
    let mut tell = |cells: &[&str]| {
        for columns in &lines {
            let padded = cells[columns.clone()].iter().zip(&widths[columns.clone()]);
            let padded: Vec<String> =
                padded.map(|(cell, width)| format!("{cell:<width$}")).collect();
            let indent = if columns.start == 0 { "" } else { GAP };
            text += format!("{indent}{}", padded.join(GAP)).trim_end();
            text.push('\n');
        }
    };
    tell(header);
    for row in rows {
        tell(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

/// The columns of each line of a row.
fn lines(widths: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut lines = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (column, width) in widths.iter().enumerate() {
        let wider = used + GAP.len() + width;
        if column > start && wider > limit {
            lines.push(start..column);
            (start, used) = (column, GAP.len() + width);
        } else {
            used = if column == 0 { *width } else { wider };
        }
    }
    lines.push(start..widths.len());
    lines
}

/// Says after a failure which of several paths are restored: a retry finds them in its way.
pub fn after_others<T>(done: anyhow::Result<T>, before: usize, of: usize) -> anyhow::Result<T> {
    match before {
        0 => done,
        _ => done.with_context(|| format!("the first {before} of {of} paths are restored; then")),
    }
}

/// Between redraws of the progress.
const REDRAW: Duration = Duration::from_millis(120);

/// A line of progress on the standard error, redrawn in place; nothing where that is no terminal.
pub struct Progress {
    line: ProgressBar,
}

impl Progress {
    pub fn new() -> Self {
        let line = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            line.set_style(style);
        }
        if !line.is_hidden() {
            line.enable_steady_tick(REDRAW);
        }
        Self { line }
    }

    pub fn say(&self, text: &str) {
        self.line.set_message(text.to_owned());
    }

    /// A line that stays, wherever the standard error goes.
    pub fn note(&self, text: &str) {
        self.line.suspend(|| eprintln!("{text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}

/// A point in time, to the second.
pub fn when(at: Timestamp) -> String {
    at.rfc3339()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1".into()], vec!["longer".into(), "20".into()]];
        let text = "NAME    SIZE\na       1\nlonger  20\n";
        for limit in [12, usize::MAX] {
            assert_eq!(aligned(&["NAME", "SIZE"], &rows, limit), text);
        }
        let narrow = "NAME\n  SIZE\na\n  1\nlonger\n  20\n";
        for limit in [0, 11] {
            assert_eq!(aligned(&["NAME", "SIZE"], &rows, limit), narrow);
        }
        assert_eq!(aligned(&["NAME"], &[], 80), "NAME\n");
    }

    /// Volumes of Kubernetes on a terminal of 80 columns.
    #[test]
    fn wide_rows_go_on_in_further_lines() {
        let header = ["NAME", "SIZE", "FORM", "STATE", "OWNER", "CREATED", "ORIGIN"];
        let row = |cells: [&str; 7]| cells.map(str::to_owned).to_vec();
        let rows = [
            row([
                "pvc-0b1c5a34-93a7-4b2e-8f0a-5d1c0e9a7f31",
                "100Gi",
                "writable",
                "ready",
                "gke-pool-1-4f1e9c1b-x7k2",
                "2026-11-01T08:00:00Z",
                "pvc-6a52c1de-0c0e-4f0b-9d55-3a1f7f1b2c44@monday",
            ]),
            row(["web", "1Gi", "read-only", "ready", "-", "2026-11-02T08:00:00Z", "-"]),
        ];
        let text = "\
NAME                                      SIZE   FORM       STATE
  OWNER                     CREATED
  ORIGIN
pvc-0b1c5a34-93a7-4b2e-8f0a-5d1c0e9a7f31  100Gi  writable   ready
  gke-pool-1-4f1e9c1b-x7k2  2026-11-01T08:00:00Z
  pvc-6a52c1de-0c0e-4f0b-9d55-3a1f7f1b2c44@monday
web                                       1Gi    read-only  ready
  -                         2026-11-02T08:00:00Z
  -
";
        assert_eq!(aligned(&header, &rows, 80), text);
        assert!(text.lines().all(|line| line.len() <= 80));
        let wide = aligned(&header, &rows, usize::MAX);
        assert_eq!(wide.lines().count(), 3);
    }
}
