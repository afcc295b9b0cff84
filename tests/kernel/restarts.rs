//! The node plugin goes away, in order or not, while programs are at work: a pause, never a loss,
//! and never a pod that cannot end.

use super::driver::{Driver, Role, mounts_below};
use super::kubelet::Volume;
use super::step::{Outcome, Script, awaiting, sh, text, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;

/// The longest pause of a program across a restart, here: seconds on a real processor.
const PAUSE_LIMIT: Duration = Duration::from_secs(90);
/// A program that makes no progress for this long waits for the server, and is not just slow.
const QUIET: Duration = Duration::from_secs(3);

/// A program's progress in a file on no volume of ours: a line for each step that is done.
struct Progress {
    file: PathBuf,
    enough: PathBuf,
}

impl Progress {
    fn new(name: &str) -> Result<Self, String> {
        let at = |kind: &str| std::env::temp_dir().join(format!("{name}.{kind}"));
        let progress = Self { file: at("progress"), enough: at("enough") };
        fs::write(&progress.file, "").map_err(text)?;
        fs::remove_file(&progress.enough).ok();
        Ok(progress)
    }

    /// Shell text: `begun`, `done_`, and `more`, which says no once there is enough.
    fn prelude(&self) -> String {
        let (file, enough) = (self.file.display(), self.enough.display());
        format!(
            "begun() {{ echo begun >> {file}; }}
             ended() {{ echo ended >> {file}; }}
             more() {{ [ ! -e {enough} ]; }}\n"
        )
    }

    fn count(&self, word: &str) -> Result<usize, String> {
        Ok(fs::read_to_string(&self.file)
            .map_err(text)?
            .lines()
            .filter(|line| *line == word)
            .count())
    }

    fn steps(&self) -> Result<usize, String> {
        self.count("ended")
    }

    /// Between begin and end of a step.
    fn within(&self) -> Result<bool, String> {
        Ok(self.count("begun")? > self.count("ended")?)
    }

    fn wait(&self, steps: usize, limit: Duration, script: &mut Script) -> Result<Duration, String> {
        until(&format!("step {steps} of a program on the volume"), limit, || {
            if script.ended()? {
                return Err("the program ended before its time".into());
            }
            Ok(self.steps()? >= steps)
        })
    }

    fn enough(&self) -> Result<(), String> {
        fs::write(&self.enough, "").map_err(text)
    }
}

/// Kills the node plugin and starts it again until it has hit the program `hits` times within a
/// step. Answers the longest time until a small change of another program was in the store again.
fn under_kills(
    driver: &mut Driver,
    volume: &Volume,
    progress: &Progress,
    script: Script,
    hits: usize,
    secs: u64,
) -> Outcome {
    let (mut script, mut longest, mut kills, mut hit) = (script, Duration::ZERO, 0, 0);
    while hit < hits {
        if kills > 10 * hits {
            return Err(format!("{kills} kills, of which only {hit} came within a step"));
        }
        let steps = progress.steps()?;
        until("the program's next step", PAUSE_LIMIT, || {
            Ok(progress.within()? || script.ended().unwrap_or(true))
        })?;
        // Not always at the same point of the step.
        std::thread::sleep(Duration::from_millis(300 * (1 + kills as u64 % 4)));
        if script.ended()? {
            break;
        }
        let within = progress.within()?;
        driver.kill_node()?;
        kills += 1;
        hit += usize::from(within && progress.within()?);
        let since = Instant::now();
        driver.start_node()?;
        sh(
            &volume.path,
            PAUSE_LIMIT.as_secs(),
            "echo probe > .probe; sync .probe; equal $(cat .probe) probe probe",
        )?;
        longest = longest.max(since.elapsed());
        progress.wait(steps + 1, PAUSE_LIMIT, &mut script)?;
    }
    progress.enough()?;
    let note = script.wait(secs)?;
    if hit < hits {
        return Err(format!("the program ended after {hit} kills within its steps: {note}"));
    }
    Ok(format!(
        "{kills} kills, {hit} of them within a step, longest pause {longest:.1?}, {} steps",
        progress.steps()?
    ))
}

pub fn kill_during_dd() -> Outcome {
    let mut driver = Driver::start("kill-dd")?;
    let volume = driver.volume("data", 1 << 30)?;
    let source = std::env::temp_dir().join("kill-dd.bin");
    let from = source.display();
    sh(Path::new("/tmp"), 60, &format!("dd if=/dev/urandom of={from} bs=1M count=24 status=none"))?;
    let progress = Progress::new("kill-dd")?;
    let copy = format!(
        "i=0
         while more; do
           begun; dd if={from} of=copy.$i bs=256k conv=fsync status=none; ended
           i=$(((i + 1) % 8))
         done"
    );
    let script = Script::start(&volume.path, &(progress.prelude() + &copy))?;
    let note = under_kills(&mut driver, &volume, &progress, script, 3, 120)?;
    // Through a fresh server, not from any cache: every copy whose dd ended with 0.
    driver.kill_node()?;
    driver.start_node()?;
    let compared = sh(
        &volume.path,
        180,
        &format!("uncached; for f in copy.*; do cmp {from} $f; done; ls copy.* | wc -l; rm {from}"),
    )?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("{note}; {compared} copies are equal"))
}

/// An open file, one that is unlinked and open, and a folder that is somebody's working directory,
/// across a restart in order.
pub fn stop_under_open_files() -> Outcome {
    let mut driver = Driver::start("sigterm")?;
    let volume = driver.volume("data", 1 << 30)?;
    let progress = Progress::new("sigterm")?;
    let work = r#"
        mkdir cwd; cd cwd; exec 5>> log 6<> gone; rm gone; i=0
        while more; do begun; i=$((i + 1)); echo line $i >&5; sync log; echo $i >&6; ended; done
        uncached; equal "$(sha256sum < log)" "$(seq -f 'line %g' $i | sha256sum)" 'the log'
        equal "$(sha256sum < /proc/self/fd/6)" "$(seq $i | sha256sum)" 'the unlinked file'
        wc -l < log"#;
    let mut script = Script::start(&volume.path, &(progress.prelude() + work))?;
    let mut pauses = Vec::new();
    for _ in 0..2 {
        progress.wait(progress.steps()? + 5, PAUSE_LIMIT, &mut script)?;
        driver.stop_node()?;
        // The call in flight may just have ended; then the next one waits, and does not fail.
        std::thread::sleep(Duration::from_secs(1));
        let before = progress.steps()?;
        awaiting("no step of a program while the node plugin is stopped");
        std::thread::sleep(QUIET);
        if progress.steps()? != before || script.ended()? {
            return Err("the program went on, or ended, without a server".into());
        }
        driver.start_node()?;
        pauses.push(format!("{:.1?}", progress.wait(before + 5, PAUSE_LIMIT, &mut script)?));
    }
    progress.enough()?;
    let lines = script.wait(120)?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("{lines} synced lines; went on after {}", pauses.join(" and ")))
}

/// The written data stays in the kernel: the file is not closed, and a close would write it out.
const DIRTY: &str = r#"
/usr/bin/python3 - <<'P'
import hashlib, os, time
f, data = os.open("late", os.O_RDWR | os.O_CREAT), os.urandom(4 << 20)
assert os.write(f, data) == len(data)
with open("/tmp/terminating.sum", "a") as sums:
    sums.write(hashlib.sha256(data).hexdigest() + "  late\n")
time.sleep(3600)
P
"#;

/// A pod ends right after the node plugin was killed with pages of its files unwritten, and while
/// the store is away: it must not get stuck, and the pages must not be dropped.
pub fn unpublish_after_restart() -> Outcome {
    let mut driver = Driver::start("terminating")?;
    let volume = driver.volume("data", 1 << 30)?;
    sh(
        &volume.path,
        60,
        "dd if=/dev/urandom of=whole bs=1M count=4 conv=fsync status=none
         sha256sum whole > /tmp/terminating.sum",
    )?;
    let mut pod = Script::start(&volume.path, DIRTY)?;
    until("dirty pages", Duration::from_secs(60), || {
        let sums = fs::read_to_string("/tmp/terminating.sum").map_err(text)?;
        Ok(sums.lines().count() == 2 || pod.ended()?)
    })?;
    driver.kill_node()?;
    driver.start_node()?;
    // The plugin needs its pools to start; the store goes away just after that. A file in its place
    // makes every request fail.
    let (pool, away) = (driver.root.join("pool"), driver.root.join("pool.away"));
    fs::rename(&pool, &away).map_err(text)?;
    fs::write(&pool, "").map_err(text)?;
    awaiting("the end of a killed program");
    let killed = Instant::now();
    drop(pod);
    let killed = killed.elapsed();
    let unpublished = driver.unpublish(&volume)?;
    let (answer, refused) = driver.try_unstage(&volume)?;
    match answer {
        Err(error) if error.code() == Code::Unavailable => {}
        answer => {
            return Err(format!(
                "NodeUnstageVolume without a store: {answer:?}{}",
                driver.log(Role::Node)
            ));
        }
    }
    fs::remove_file(&pool).map_err(text)?;
    fs::rename(&away, &pool).map_err(text)?;
    let (unstaged, tries) = unstage_repeatedly(&driver, &volume)?;
    // The next pod finds it all.
    driver.stage(&volume)?;
    sh(&volume.path, 60, "sha256sum --quiet -c /tmp/terminating.sum; rm /tmp/terminating.sum")
        .map_err(|error| format!("{error}{}", driver.log(Role::Node)))?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!(
        "program gone in {killed:.1?}, unpublished in {unpublished:.1?}; without a store unstage \
         was to be repeated after {refused:.1?}; with it done in {unstaged:.1?}, {tries} tries"
    ))
}

/// As kubelet does.
fn unstage_repeatedly(driver: &Driver, volume: &Volume) -> Result<(Duration, u32), String> {
    let mut tries = 0;
    let took = until("NodeUnstageVolume with the store back", Duration::from_secs(150), || {
        tries += 1;
        match driver.try_unstage(volume)?.0 {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Code::Unavailable || error.code() == Code::Aborted => {
                Ok(false)
            }
            Err(error) => Err(format!(
                "NodeUnstageVolume: {:?}: {}{}",
                error.code(),
                error.message(),
                driver.log(Role::Node)
            )),
        }
    })?;
    Ok((took, tries))
}

/// An administrator unmounts while no node plugin runs; the next one closes and releases what was
/// left.
pub fn umount_without_plugin() -> Outcome {
    let mut driver = Driver::start("umount")?;
    let (idle, busy) = (driver.volume("idle", 1 << 30)?, driver.volume("busy", 1 << 30)?);
    sh(&idle.path, 60, "echo content > f; sync f")?;
    let mut holder = Script::start(
        &busy.path,
        "echo content > f; sync f; exec 5>> f; echo dirty >&5; touch /tmp/umount.busy; sleep 3600",
    )?;
    until("an open file", Duration::from_secs(60), || {
        Ok(Path::new("/tmp/umount.busy").exists() || holder.ended()?)
    })?;
    driver.kill_node()?;
    // umount(8) looks at the path first and would hang; --no-canonicalize and -i leave that out. A
    // busy one is detached.
    let unmount = |volume: &Volume, options: &str| {
        let (path, staging) = (volume.path.display(), volume.staging.display());
        sh(
            Path::new("/"),
            60,
            &format!("for at in {path} {staging}; do umount -i -c {options} $at; done"),
        )
    };
    let started = Instant::now();
    unmount(&idle, "-f")?;
    unmount(&busy, "-l")?;
    let took = started.elapsed();
    drop(holder);
    for volume in [&idle, &busy] {
        if mounts_below(&volume.path)? + mounts_below(&volume.staging)? > 0 {
            return Err("still mounted after umount".into());
        }
    }
    driver.start_node()?;
    for volume in [&idle, &busy] {
        driver.unpublish(volume)?;
        driver.unstage(volume)?;
        driver.stage(volume)?;
    }
    sh(&idle.path, 60, "equal $(cat f) content content")?;
    sh(&busy.path, 60, "equal $(head -n 1 f) content content; rm /tmp/umount.busy")?;
    driver.remove(&idle)?;
    driver.remove(&busy)?;
    driver.stop()?;
    Ok(format!("umount took {took:.1?}"))
}
