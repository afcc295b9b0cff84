//! The output of commands.

use super::args::Output;
use crate::types::Timestamp;
use anyhow::Context;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::SystemTime;

impl Output {
    /// Prints a report as JSON, or as `text` renders it.
    pub fn print<T: Serialize>(
        self,
        report: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let printed =
            if self.json { serde_json::to_string_pretty(report)? + "\n" } else { text(report) };
        match std::io::stdout().write_all(printed.as_bytes()) {
            // The reader of the pipe has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => {
                written.context("the command succeeded, but its output could not be written")
            }
        }
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

/// A line of progress on the standard error, rewritten in place; nothing where that is not a
/// terminal.
pub struct Progress {
    shown: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal() }
    }

    pub fn say(&self, text: &str) {
        if self.shown {
            eprint!("\r\x1b[K{text}");
        }
    }

    /// A line that stays, wherever the standard error goes.
    pub fn note(&self, text: &str) {
        let clear = if self.shown { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{text}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// A point in time, to the second.
pub fn when(at: Timestamp) -> String {
    humantime::format_rfc3339_seconds(SystemTime::from(at)).to_string()
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
