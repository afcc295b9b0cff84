//! A volume that two nodes have mounted at once: one owns it, the other relays to it, and takes it
//! over.

use super::driver::Driver;
use super::step::{Outcome, Script, sh};
use std::path::Path;
use std::time::{Duration, Instant};

/// The lease, so that the take-over does not last longer than the rest.
const LEASE: &str = "lease: 10s\n";

pub fn two_nodes() -> Outcome {
    let channel = |port: u16| format!("{LEASE}channel: {{ listen: \"127.0.0.1:{port}\" }}\n");
    let mut driver = Driver::configured("shared", &channel(12_061))?;
    let first = driver.shared_volume("shared", 1 << 30)?;
    driver.start_other_node(&channel(12_062))?;
    let second = driver.elsewhere(&first)?;
    let (a, b) = (first.path.display().to_string(), second.path.display().to_string());

    // Close-to-open, in both directions.
    sh(
        Path::new("/"),
        120,
        &format!(
            "head -c 3000000 /dev/urandom > {a}/from-first
             head -c 300 /dev/urandom > {b}/from-second
             cmp {a}/from-first {b}/from-first; cmp {b}/from-second {a}/from-second
             equal \"$(stat -c %d {a} {b} | sort -u | wc -l)\" 2 'file systems'
             mkdir {a}/d; touch {b}/d/x; mv {b}/d/x {b}/d/y; test -e {a}/d/y; rm -r {a}/d
             ! ls {b}/d 2>/dev/null"
        ),
    )?;
    // One of two that create a name exclusively wins.
    let race = |who: &str| {
        format!(
            "set +e
             for i in $(seq 40); do
               (set -C; echo {who} > lock-$i) 2>/dev/null && echo {who} $i
             done; true"
        )
    };
    let (one, other) =
        (Script::start(&first.path, &race("a"))?, Script::start(&second.path, &race("b"))?);
    let won = one.wait(120)?.lines().count() + other.wait(120)?.lines().count();
    if won != 40 {
        return Err(format!("{won} exclusive creations of 40 names succeeded"));
    }

    // The owner dies under a writer of the other node, which owns the volume from then on.
    let mut writer = Script::start(
        &second.path,
        "exec 5>> log; until [ -e /tmp/shared.enough ]; do date +%s.%N >&5; sync log; done
         wc -l < log",
    )?;
    std::thread::sleep(Duration::from_secs(3));
    driver.kill_node()?;
    let killed = Instant::now();
    sh(
        &second.path,
        120,
        "n=$(wc -l < log); until [ $(wc -l < log) -gt $((n + 20)) ]; do sleep 0.2; done",
    )?;
    let back = killed.elapsed();
    if writer.ended()? {
        return Err("the writer ended when the owner was killed".to_owned());
    }
    // The first node comes back, and relays.
    driver.start_node()?;
    sh(
        &first.path,
        120,
        "n=$(wc -l < log); until [ $(wc -l < log) -gt $((n + 5)) ]; do sleep 0.2; done
         touch /tmp/shared.enough",
    )?;
    let lines = writer.wait(120)?;
    let pause = sh(
        &first.path,
        60,
        r#"
        rm /tmp/shared.enough
        awk 'NR > 1 && $1 - last > most { most = $1 - last }
          { last = $1 } END { printf "%.1f", most }' log
        "#,
    )?;
    sh(&first.path, 60, &format!("uncached; equal \"$(wc -l < log)\" {lines} lines"))?;
    // Both nodes see the mounts of both, and each would take those of the other for its own.
    for volume in [&second, &first] {
        driver.unpublish(volume)?;
        sh(Path::new("/"), 60, &format!("umount {}", volume.staging.display()))?;
    }
    driver.unstage(&second)?;
    driver.unstage(&first)?;
    driver.delete(&first)?;
    driver.stop()?;
    Ok(format!(
        "{lines} synced lines; the owner killed: longest pause {pause} s, 20 lines after {:.1} s",
        back.as_secs_f64()
    ))
}
