//! The output of commands.

use super::args::Output;
use crate::types::Timestamp;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::Write;
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

/// Columns as wide as their widest cell.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut width: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in width.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&width).map(|(cell, w)| format!("{cell:<w$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
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

/// A count with its noun.
pub fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(
            &["NAME", "SIZE"],
            &[vec!["a".into(), "1".into()], vec!["longer".into(), "20".into()]],
        );
        assert_eq!(text, "NAME    SIZE\na       1\nlonger  20\n");
    }
}
