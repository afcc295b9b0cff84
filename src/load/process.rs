//! The CPU time and memory of a local server, from proc(5).

use super::LoadError;
use std::time::Duration;

/// A process that is being watched.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    pid: u32,
}

/// The unit of CPU time in /proc: USER_HZ, 100 on every architecture that this program is built
/// for.
const TICKS_PER_SEC: f64 = 100.0;

impl Watched {
    pub fn new(pid: u32) -> Self {
        Self { pid }
    }

    fn file(&self, name: &str) -> Result<String, LoadError> {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid))
            .map_err(|error| LoadError::Process { pid: self.pid, why: error.to_string() })
    }

    /// CPU time spent so far, by all threads, in user and kernel mode.
    pub fn cpu(&self) -> Result<Duration, LoadError> {
        let ticks = cpu_ticks(&self.file("stat")?).ok_or_else(|| LoadError::Process {
            pid: self.pid,
            why: "its stat file has an unknown format".into(),
        })?;
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SEC))
    }

    /// Peak resident memory, in bytes.
    pub fn peak_bytes(&self) -> Result<u64, LoadError> {
        peak_bytes(&self.file("status")?).ok_or_else(|| LoadError::Process {
            pid: self.pid,
            why: "its status file has an unknown format".into(),
        })
    }
}

/// Fields 14 and 15 of /proc/PID/stat; the name, field 2, may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn peak_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_watched() {
        let me = Watched::new(std::process::id());
        assert!(me.peak_bytes().unwrap() > 1 << 20);
        me.cpu().unwrap();
        assert!(Watched::new(u32::MAX).cpu().is_err());
    }

    #[test]
    fn a_name_with_parentheses_confuses_nobody() {
        let stat = "1 (a) b) c) S 0 1 1 0 -1 4 10 0 0 0 700 42 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_ticks(stat), Some(742));
        assert_eq!(cpu_ticks("1 (x"), None);
        assert_eq!(peak_bytes("VmPeak:\t 9 kB\nVmHWM:\t  12 kB\n"), Some(12288));
    }
}
