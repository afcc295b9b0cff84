//! The report, as a table and as JSON.

use super::Workload;
use super::meter::Meter;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub work: &'static str,
    /// A remark on this line, such as `first` or `again`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub variant: &'static str,
    pub operations: u64,
    pub secs: f64,
    pub per_sec: f64,
    /// For data workloads: 10⁶ bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mb_per_sec: Option<f64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// The server's CPU time per operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_op: Option<f64>,
    /// The server's CPU time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_secs: Option<f64>,
    /// The most memory the server has had resident so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_mb: Option<f64>,
}

/// The result of a workload.
pub struct Measured {
    pub variant: &'static str,
    pub meter: Meter,
    pub took: Duration,
    /// Bytes read or written, for data workloads.
    pub bytes: Option<u64>,
}

/// The resources that the server spent on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub cpu: Option<Duration>,
    pub peak_bytes: Option<u64>,
}

impl Row {
    pub(super) fn new(work: Workload, mut measured: Measured, spent: Spent) -> Self {
        let secs = measured.took.as_secs_f64().max(1e-9);
        let operations = measured.meter.operations;
        let mut ms = |per_mille| measured.meter.quantile(per_mille).as_secs_f64() * 1e3;
        let cpu = spent.cpu.map(|cpu| cpu.as_secs_f64());
        Self {
            work: work.name(),
            variant: measured.variant,
            operations,
            secs,
            per_sec: operations as f64 / secs,
            mb_per_sec: measured.bytes.map(|bytes| bytes as f64 / 1e6 / secs),
            p50_ms: ms(500),
            p99_ms: ms(990),
            max_ms: ms(1000),
            cpu_us_per_op: cpu.map(|cpu| cpu * 1e6 / operations.max(1) as f64),
            cpu_secs: cpu,
            peak_rss_mb: spent.peak_bytes.map(|bytes| bytes as f64 / 1e6),
        }
    }

    /// The table's heading.
    pub const HEADING: &'static str = "work                  ops/s     MB/s   p50 ms   p99 ms   \
        max ms  ops      seconds  cpu us/op  cpu s  peak MB";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.variant.is_empty() {
            self.work.to_owned()
        } else {
            format!("{} {}", self.work, self.variant)
        };
        let or_dash = |number: Option<f64>, digits: usize| {
            number.map_or("-".into(), |n| format!("{n:.digits$}"))
        };
        write!(
            f,
            "{name:<18} {:>8.0} {:>8} {:>8.3} {:>8.3} {:>8.2}  {:<8} {:>7.2}  {:>9} {:>6} {:>8}",
            self.per_sec,
            or_dash(self.mb_per_sec, 0),
            self.p50_ms,
            self.p99_ms,
            self.max_ms,
            self.operations,
            self.secs,
            or_dash(self.cpu_us_per_op, 1),
            or_dash(self.cpu_secs, 2),
            or_dash(self.peak_rss_mb, 0),
        )
    }
}

/// All lines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Row::HEADING)?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}
