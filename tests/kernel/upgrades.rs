//! The node plugin is killed again and again, or replaced by another process, under programs that
//! check what they read: a pause, and nothing else.

use super::driver::{Driver, Role};
use super::kubelet::Volume;
use super::step::{Outcome, Script, size, text, until};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Kills, or hand-overs, of one case. `ZEROFS_TEST_SIZE` multiplies them.
const TIMES: usize = 5;
/// Work on the volume between two of them: rounds of the verifier.
const ROUNDS: usize = 4;
/// The most time that a program may take for such a round, a pause included.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// Writes blocks, syncs them, drops them from the client's cache, and compares what the server has.
/// After each round it tells how long the longest call of the round took, in milliseconds; it ends
/// when it is told to, having compared everything.
const VERIFIER: &str = r#"
import hashlib, os, random, sys, time
progress, enough, block, blocks = sys.argv[1], sys.argv[2], 24 << 10, 64
random.seed(7)
names = ["a", "b", "c"]
files = [os.open(n, os.O_RDWR | os.O_CREAT, 0o644) for n in names]
sums, longest = {}, 0.0
def timed(call, *args):
    global longest
    begun = time.monotonic()
    try: return call(*args)
    finally: longest = max(longest, time.monotonic() - begun)
def check(n, b):
    got = timed(os.pread, files[n], block, b * block)
    wrong = f"block {b} of {names[n]} is wrong: {len(got)} bytes"
    assert hashlib.sha256(got).digest() == sums[n, b], wrong
rounds = 0
while not os.path.exists(enough):
    for _ in range(4):
        n, b = random.randrange(3), random.randrange(blocks)
        data = os.urandom(block)
        assert timed(os.pwrite, files[n], data, b * block) == block
        sums[n, b] = hashlib.sha256(data).digest()
    for f in files:
        timed(os.fsync, f)
        os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
    for n, b in random.sample(sorted(sums), min(6, len(sums))): check(n, b)
    draft = f"draft{rounds % 3}"
    with open(draft, "w") as out:
        timed(out.write, str(rounds)); timed(out.flush); timed(os.fsync, out.fileno())
    timed(os.rename, draft, f"whole{rounds % 3}")
    rounds += 1
    with open(progress, "a") as out: out.write(f"{int(longest * 1000)}\n")
    longest = 0.0
for f in files: os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
for n, b in sums: check(n, b)
print(rounds, "rounds,", len(sums), "blocks compared")
"#;

/// Git and sqlite, round after round, each commit synced.
const PROGRAMS: &str = r#"
export GIT_CONFIG_GLOBAL=/dev/null
mkdir programs; cd programs; git init -q . 2>/dev/null; i=0
sqlite3 db 'CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT);'
while [ ! -e ENOUGH ]; do
  i=$((i + 1)); echo $i > f$i; git add f$i
  git -c core.fsync=all -c user.name=n -c user.email=e@example.com commit -q -m $i
  sqlite3 db "INSERT INTO t(body) VALUES(hex(randomblob(2000)));"; mv f$i g$i; mkdir d$i; rmdir d$i
done
uncached; git fsck --full --no-progress; equal "$(git rev-list --count HEAD)" $i commits
equal "$(ls g* | wc -l)" $i renames
equal "$(sqlite3 db 'PRAGMA integrity_check')" ok integrity
equal "$(sqlite3 db 'SELECT count(*) FROM t')" $i rows
echo "$i commits of git and sqlite"
"#;

/// Everything at work on one volume.
struct Load {
    progress: PathBuf,
    enough: PathBuf,
    verifier: Script,
    programs: Script,
}

impl Load {
    fn start(name: &str, volume: &Volume) -> Result<Self, String> {
        let at = |kind: &str| std::env::temp_dir().join(format!("{name}.{kind}"));
        let (progress, enough, program) = (at("progress"), at("enough"), at("py"));
        fs::write(&program, VERIFIER).map_err(text)?;
        fs::write(&progress, "").map_err(text)?;
        fs::remove_file(&enough).ok();
        let run = format!(
            "/usr/bin/python3 {} {} {}",
            program.display(),
            progress.display(),
            enough.display()
        );
        let verifier = Script::start(&volume.path, &run)?;
        let programs = Script::start(
            &volume.path,
            &PROGRAMS.replace("ENOUGH", &enough.display().to_string()),
        )?;
        let mut load = Self { progress, enough, verifier, programs };
        load.more(ROUNDS)?;
        Ok(load)
    }

    /// The longest call of each round so far.
    fn rounds(&self) -> Result<Vec<Duration>, String> {
        let told = fs::read_to_string(&self.progress).map_err(text)?;
        Ok(told.lines().filter_map(|line| line.parse().ok().map(Duration::from_millis)).collect())
    }

    /// Waits for more rounds; answers the longest call among them.
    fn more(&mut self, rounds: usize) -> Result<Duration, String> {
        let had = self.rounds()?.len();
        let mut longest = Duration::ZERO;
        for round in 1..=rounds {
            until("a round of the verifier", ROUND_LIMIT, || {
                if self.verifier.ended()? || self.programs.ended()? {
                    return Err("a program ended before its time".to_owned());
                }
                Ok(self.rounds()?.len() >= had + round)
            })?;
        }
        for took in self.rounds()?.into_iter().skip(had) {
            longest = longest.max(took);
        }
        Ok(longest)
    }

    fn finish(self) -> Outcome {
        fs::write(&self.enough, "").map_err(text)?;
        Ok(format!("{}; {}", self.verifier.wait(120)?, self.programs.wait(180)?))
    }

    /// As [`Self::finish`], or how the programs failed.
    fn outcome(self, work: Result<String, String>) -> Outcome {
        match (work, self.finish()) {
            (Ok(note), Ok(programs)) => Ok(format!("{note}; {programs}")),
            (Err(error), Err(programs)) => Err(format!("{error}\n{programs}")),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }
}

fn times() -> usize {
    TIMES * size()
}

pub fn killed() -> Outcome {
    let mut driver = Driver::start("killed")?;
    let volume = driver.volume("data", 1 << 30)?;
    let mut load = Load::start("killed", &volume)?;
    let quiet = load.more(ROUNDS)?;
    let work = kills(&mut driver, &mut load);
    let work = work.map(|(longest, total)| {
        let kills = times();
        let mean = total / u32::try_from(kills).unwrap_or(1);
        format!(
            "{kills} kills, longest pause {longest:.1?}, mean {mean:.1?} (the longest call \
             without: {quiet:.1?})"
        )
    });
    let note = load.outcome(work).map_err(|error| format!("{error}{}", driver.log(Role::Node)))?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(note)
}

fn kills(driver: &mut Driver, load: &mut Load) -> Result<(Duration, Duration), String> {
    let (mut longest, mut total) = (Duration::ZERO, Duration::ZERO);
    for kill in 0..times() {
        // Not always at the same point of a round.
        std::thread::sleep(Duration::from_millis(70 * (kill as u64 % 7)));
        driver.kill_node()?;
        driver.start_node()?;
        let pause = load.more(2)?;
        longest = longest.max(pause);
        total += pause;
    }
    Ok((longest, total))
}

pub fn handed_over() -> Outcome {
    let mut driver = Driver::start("upgrade")?;
    let volume = driver.volume("data", 1 << 30)?;
    let mut load = Load::start("upgrade", &volume)?;
    let quiet = load.more(ROUNDS)?;
    let work = upgrades(&mut driver, &mut load);
    let work = work.map(|note| format!("{note} (the longest call without: {quiet:.1?})"));
    let note = load.outcome(work).map_err(|error| format!("{error}{}", driver.log(Role::Node)))?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(note)
}

fn upgrades(driver: &mut Driver, load: &mut Load) -> Result<String, String> {
    let mut pauses = Vec::new();
    for _ in 0..times() {
        driver.replace_node()?;
        pauses.push(load.more(2)?);
    }
    // One that cannot serve what is in use, and one that ends at once: nobody notices.
    driver.start_broken_node()?;
    let broken = load.more(2)?;
    // One that is killed with everything in its hands: the one before it, which stands by, goes on.
    driver.replace_node_and_kill()?;
    let back = load.more(2)?;
    let pauses: Vec<String> = pauses.iter().map(|pause| format!("{pause:.1?}")).collect();
    Ok(format!(
        "longest call in {} upgrades {}, beside broken processes {broken:.1?}, when the new one is \
         killed {back:.1?}",
        pauses.len(),
        pauses.join(" ")
    ))
}
