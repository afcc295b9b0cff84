//! The kernel tier: the driver's own processes under a kernel with a real NFS client, driven through their CSI sockets as kubelet and the
//! sidecars do, and ordinary programs at work on what they mount. `tests/kernel/run` starts this program in a guest; elsewhere it says so and
//! runs nothing, because it mounts as root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "driver.rs"]
mod driver;
#[path = "workloads.rs"]
mod workloads;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    if std::env::var_os("ZEROFS_KERNEL").is_none() {
        println!("the kernel tier runs in a guest: tests/kernel/run, or .ci/run kernel");
        return ExitCode::SUCCESS;
    }
    let only: Vec<String> = std::env::args().skip(1).collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in workloads::CASES {
        if !only.is_empty() && !only.iter().any(|o| name.contains(o.as_str())) {
            continue;
        }
        let started = Instant::now();
        let result = std::panic::catch_unwind(case);
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(Ok(note)) => {
                passed += 1;
                println!("ok   {name} ({took:.1} s) {note}");
            }
            Ok(Err(error)) => {
                failed += 1;
                println!("FAIL {name} ({took:.1} s): {error}");
            }
            Err(_) => {
                failed += 1;
                println!("FAIL {name} ({took:.1} s): panicked");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
