//! What ordinary programs do on a mounted volume.

use super::driver::{Driver, Volume};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub type Outcome = Result<String, String>;
pub type Case = (&'static str, fn() -> Outcome);

pub const CASES: &[Case] = &[
    ("posix: files, links, times, devices, sparse files", posix),
    ("git: clone and fsck", git),
    ("sqlite: rollback journal, integrity_check", || sqlite("delete")),
    ("sqlite: write-ahead log, integrity_check", || sqlite("wal")),
    ("make: a C program of many files", c_build),
    ("tar: 5,000 files out and back, checksums", tar),
    ("mmap: shared write, read back by another process", mmap),
    ("readdir of 5,000, rm -rf, df", listing),
    ("quota: ENOSPC at the volume's size, df tells, room after rm", quota),
    ("snapshot of a mounted volume, clone, both right", snapshot),
    ("kill -9 of the node plugin during dd conv=fsync", kill_during_dd),
    ("kill -9 of the node plugin under git and sqlite", kill_under_programs),
];

/// Runs a shell script in a folder; fails with its output unless it exits with 0.
fn sh(dir: &Path, script: &str) -> Outcome {
    let out = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir).stdin(Stdio::null()).output();
    let out = out.map_err(|e| format!("bash: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if out.status.success() {
        return Ok(text(&out.stdout));
    }
    let tail = |s: String| s.chars().rev().take(1500).collect::<Vec<_>>().into_iter().rev().collect::<String>();
    Err(format!("{}: {}\n{}", out.status, tail(text(&out.stdout)), tail(text(&out.stderr))))
}

/// A script on a fresh volume of its own, which must unstage and delete cleanly afterwards.
fn on_volume(name: &str, script: &str) -> Outcome {
    let mut driver = Driver::start(name)?;
    let volume = driver.volume("data", 20 << 30)?;
    let note = sh(&volume.path, script)?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(note)
}

fn posix() -> Outcome {
    on_volume(
        "posix",
        r#"
        echo hello > f; ln f g; [ "$(stat -c %h f)" = 2 ]; [ "$(stat -c %i f)" = "$(stat -c %i g)" ]
        ln -s f s; [ "$(readlink s)" = f ]; [ "$(cat s)" = hello ]
        mkfifo p; [ -p p ]; mknod c c 1 3; [ "$(stat -c %t:%T c)" = 1:3 ]; mknod b b 7 0; [ -b b ]
        truncate -s 1T big; [ "$(stat -c %s big)" = 1099511627776 ]; [ "$(du -k big | cut -f 1)" -lt 64 ]
        printf end | dd of=big bs=1 seek=1099511627000 conv=notrunc status=none; [ "$(tail -c 776 big | head -c 3)" = end ]
        truncate -s 8796093022208 huge; rm huge
        touch -d '2001-02-03 04:05:06.123456789 UTC' f; [ "$(stat -c %.9Y f)" = 981173106.123456789 ]
        chmod 4755 f; [ "$(stat -c %a f)" = 4755 ]; chown 123:456 f; [ "$(stat -c %u:%g f)" = 123:456 ]
        mkdir -p d/e; chmod 2775 d; chgrp 77 d; touch d/x; [ "$(stat -c %g d/x)" = 77 ]; mkdir d/y; [ "$(stat -c %a d/y)" = 2755 ]
        mkdir t; chmod 1777 t; touch t/root; ! setpriv --reuid 1000 --regid 1000 --clear-groups rm -f t/root 2>/dev/null
        echo a > a; echo b > z; mv a z; [ "$(cat z)" = a ]; ! [ -e a ]
        ! mv d d/e 2>/dev/null; ! rmdir d 2>/dev/null
        exec 5> open; rm open; echo still >&5; exec 5>&-
        name=$(printf 'x%.0s' $(seq 255)); touch "$name"; ! touch "${name}x" 2>/dev/null
        touch $'odd \n\377 name'; ls | wc -l
        setpriv --reuid 1000 --regid 1000 --groups 55 bash -c '! cat f 2>/dev/null >/dev/null || true'
        mkdir grp; chgrp 55 grp; chmod 770 grp; setpriv --reuid 1000 --regid 1000 --groups 55 touch grp/mine
        ! setpriv --reuid 1000 --regid 1000 --clear-groups touch grp/other 2>/dev/null
        "#,
    )
}

fn git() -> Outcome {
    let source = env!("CARGO_MANIFEST_DIR");
    on_volume(
        "git",
        &format!(
            r#"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
        git clone -q --no-local "file://{source}" copy; cd copy; git fsck --full 2>&1 | tail -n 1
        git -c user.name=n -c user.email=e@example.com commit -q --allow-empty -m change; git gc -q; git fsck --full; git status --porcelain | wc -l
        "#
        ),
    )
}

fn sqlite(mode: &str) -> Outcome {
    on_volume(
        &format!("sqlite-{mode}"),
        &format!(
            r#"
        sqlite3 db "PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT);" >/dev/null
        for i in $(seq 20); do
          sqlite3 db "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO t(body) SELECT hex(randomblob(200)) FROM n; COMMIT;"
        done
        [ "$(sqlite3 db 'SELECT count(*) FROM t')" = 4000 ]; sqlite3 db 'DELETE FROM t WHERE id % 3 = 0; VACUUM;'
        [ "$(sqlite3 db 'PRAGMA integrity_check')" = ok ]; sqlite3 db 'SELECT count(*) FROM t'
        "#
        ),
    )
}

fn c_build() -> Outcome {
    on_volume(
        "make",
        r#"
        for i in $(seq 20); do echo "int f$i(int x) { return x + $i; }" > f$i.c; done
        { for i in $(seq 20); do echo "int f$i(int);"; done; echo 'int main(void) { int x = 0;'; for i in $(seq 20); do echo "x = f$i(x);"; done; echo 'return x == 210 ? 0 : 1; }'; } > main.c
        printf 'prog: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n' > Makefile
        make -s -j2; ./prog; make -q; touch f3.c; ! make -q
        "#,
    )
}

fn tar() -> Outcome {
    on_volume(
        "tar",
        r#"
        src=$(mktemp -d); for d in $(seq 50); do mkdir $src/$d; for f in $(seq 100); do echo "$d $f $RANDOM" > $src/$d/$f; done; done
        (cd $src && find . -type f | sort | xargs sha256sum) > $src.sum
        tar -C $src -cf all.tar .; mkdir out; tar -C out -xf all.tar
        (cd out && sha256sum --quiet -c $src.sum); [ "$(find out -type f | wc -l)" = 5000 ]
        tar -C out -cf again.tar .; back=$(mktemp -d); tar -C $back -xf again.tar; (cd $back && sha256sum --quiet -c $src.sum)
        rm -rf $src $back $src.sum
        "#,
    )
}

fn mmap() -> Outcome {
    on_volume(
        "mmap",
        r#"
        cat > w.py <<'P'
import mmap, os
f = os.open("m", os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 20)
m = mmap.mmap(f, 1 << 20)
for i in range(0, 1 << 20, 4096): m[i:i + 8] = i.to_bytes(8, "little")
m.flush(); m.close(); os.close(f)
P
        cat > r.py <<'P'
import mmap
with open("m", "rb") as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    assert all(m[i:i + 8] == i.to_bytes(8, "little") for i in range(0, 1 << 20, 4096))
P
        /usr/bin/python3 w.py; echo 3 > /proc/sys/vm/drop_caches; /usr/bin/python3 r.py
        "#,
    )
}

fn listing() -> Outcome {
    on_volume(
        "listing",
        r#"
        mkdir many; (cd many; seq 5000 | xargs touch); [ "$(ls many | wc -l)" = 5000 ]; [ "$(ls -U many | sort -u | wc -l)" = 5000 ]
        used=$(df --output=iused . | tail -n 1); [ "$used" -ge 5001 ]
        rm -rf many; ! [ -e many ]; [ "$(df --output=iused . | tail -n 1)" -lt 10 ]; df -h . | tail -n 1
        "#,
    )
}

fn quota() -> Outcome {
    let mut driver = Driver::start("quota")?;
    let volume = driver.volume("small", 16 << 20)?;
    let note = sh(
        &volume.path,
        r#"
        size=$(df -B1 --output=size . | tail -n 1); [ "$size" = 16777216 ]
        dd if=/dev/urandom of=a bs=1M count=12 conv=fsync status=none
        ! dd if=/dev/urandom of=b bs=1M count=12 conv=fsync status=none 2>err; grep -q 'No space left' err
        rm -f b a; dd if=/dev/urandom of=c bs=1M count=12 conv=fsync status=none; df -B1 --output=used . | tail -n 1
        "#,
    )?;
    driver.expand(&volume, 64 << 20)?;
    sh(
        &volume.path,
        "dd if=/dev/urandom of=d bs=1M count=40 conv=fsync status=none; [ $(df -B1 --output=size . | tail -n 1) = 67108864 ]",
    )?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(note)
}

fn snapshot() -> Outcome {
    let mut driver = Driver::start("snapshot")?;
    let volume = driver.volume("source", 1 << 30)?;
    // Not synced by the program: what the kernel still holds must be in the snapshot all the same.
    sh(
        &volume.path,
        "mkdir d; for i in $(seq 200); do echo $i > d/$i; done; dd if=/dev/urandom of=big bs=1M count=8 status=none; sha256sum big > sum",
    )?;
    let snapshot = driver.snapshot(&volume, "snap")?;
    sh(&volume.path, "rm -rf d; echo new > big")?;
    let clone = driver.volume_from(&snapshot, "clone", 1 << 30)?;
    sh(&clone.path, "[ $(ls d | wc -l) = 200 ]; [ $(cat d/77) = 77 ]; sha256sum --quiet -c sum; echo mine > d/77")?;
    sh(&volume.path, "! [ -e d ]; [ $(cat big) = new ]")?;
    // Awkward order: the source first, then the snapshot, the clone last.
    driver.remove(&volume)?;
    driver.delete_snapshot(&snapshot)?;
    sh(&clone.path, "sha256sum --quiet -c sum; [ $(cat d/77) = mine ]")?;
    driver.remove(&clone)?;
    driver.stop()?;
    Ok(String::new())
}

/// Runs a script while the node plugin is killed and started again `times` times; answers the longest time that a small probe on the volume took.
fn under_kills(driver: &mut Driver, volume: &Volume, script: &str, times: u32) -> Result<Duration, String> {
    let mut child = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(&volume.path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        std::thread::sleep(Duration::from_millis(1500));
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            break;
        }
        driver.kill_node()?;
        driver.start_node()?;
        let probe = Instant::now();
        sh(&volume.path, "echo probe > .probe; cat .probe >/dev/null")?;
        longest = longest.max(probe.elapsed());
    }
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if !out.status.success() {
        return Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    Ok(longest)
}

fn kill_during_dd() -> Outcome {
    let mut driver = Driver::start("kill-dd")?;
    let volume = driver.volume("data", 1 << 30)?;
    let file = std::env::temp_dir().join("kill-dd.bin");
    sh(Path::new("/"), &format!("dd if=/dev/urandom of={} bs=1M count=48 status=none", file.display()))?;
    let script = format!("for i in 1 2 3; do dd if={f} of=copy.$i bs=256k conv=fsync status=none; done", f = file.display());
    let longest = under_kills(&mut driver, &volume, &script, 3)?;
    // Through the server, not from the client's cache.
    sh(&volume.path, &format!("sync; echo 3 > /proc/sys/vm/drop_caches; for i in 1 2 3; do cmp {} copy.$i; done", file.display()))?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("longest pause {longest:.1?}"))
}

fn kill_under_programs() -> Outcome {
    let mut driver = Driver::start("kill-programs")?;
    let volume = driver.volume("data", 1 << 30)?;
    let script = r#"
        export GIT_CONFIG_GLOBAL=/dev/null
        git init -q repo 2>/dev/null; cd repo
        sqlite3 db 'CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT);'
        for i in $(seq 15); do
          echo $i > f$i; git add f$i; git -c user.name=n -c user.email=e@example.com commit -q -m $i
          sqlite3 db "INSERT INTO t(body) VALUES(hex(randomblob(2000)));"
        done
        git fsck --full; [ "$(git log --oneline | wc -l)" = 15 ]
        [ "$(sqlite3 db 'PRAGMA integrity_check')" = ok ]; [ "$(sqlite3 db 'SELECT count(*) FROM t')" = 15 ]"#;
    let longest = under_kills(&mut driver, &volume, script, 4)?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("longest pause {longest:.1?}"))
}
