//! Volumes beside each other, their size, their snapshots, and a pool whose bytes rot.

use super::driver::{Driver, Role};
use super::kubelet::Volume;
use super::step::{Outcome, Script, sh, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub fn two_at_once() -> Outcome {
    let driver = Driver::start("two")?;
    let (a, b) = (driver.volume("a", 1 << 30)?, driver.volume("b", 1 << 30)?);
    let fill = |name: &str| {
        format!(
            "mkdir d; for i in $(seq 100); do echo {name} $i > d/$i; done
             dd if=/dev/urandom of=big bs=1M count=8 conv=fsync status=none
             find d big -type f | sort | xargs sha256sum > /tmp/two.{name}; wc -l < /tmp/two.{name}"
        )
    };
    // Both at work at one time, then each copied into the other.
    let (first, second) =
        (Script::start(&a.path, &fill("a"))?, Script::start(&b.path, &fill("b"))?);
    first.wait(120)?;
    second.wait(120)?;
    let (at_a, at_b) = (a.path.display(), b.path.display());
    sh(
        Path::new("/"),
        180,
        &format!(
            "mkdir {at_a}/from-b {at_b}/from-a
             cp -a {at_b}/d {at_b}/big {at_a}/from-b/ &
             cp -a {at_a}/d {at_a}/big {at_b}/from-a/; wait $!
             equal \"$(stat -c %d {at_a} {at_b} | sort -u | wc -l)\" 2 'file systems'
             cd {at_a}; uncached; sha256sum --quiet -c /tmp/two.a
             cd from-b; sha256sum --quiet -c /tmp/two.b
             cd {at_b}; uncached; sha256sum --quiet -c /tmp/two.b
             cd from-a; sha256sum --quiet -c /tmp/two.a"
        ),
    )?;
    // One goes while the other has an open file and is written to.
    let mut other = Script::start(
        &b.path,
        "exec 5>> log; until [ -e /tmp/two.gone ]; do echo line >&5; sync log; done; wc -l < log",
    )?;
    driver.remove(&a)?;
    if other.ended()? {
        return Err(format!("volume b failed when volume a was unmounted: {:?}", other.wait(1)));
    }
    fs::write("/tmp/two.gone", "").map_err(text)?;
    let lines = other.wait(60)?;
    sh(&b.path, 60, "uncached; sha256sum --quiet -c /tmp/two.b; rm -f /tmp/two.*")?;
    driver.remove(&b)?;
    driver.stop()?;
    Ok(format!("{lines} synced lines while the other was unmounted"))
}

pub fn quota() -> Outcome {
    let driver = Driver::start("quota")?;
    let volume = driver.volume("small", 16 << 20)?;
    let note = sh(
        &volume.path,
        90,
        r#"
        equal "$(figure size)" 16777216 size
        dd if=/dev/urandom of=a bs=1M count=12 conv=fsync status=none
        if dd if=/dev/urandom of=b bs=1M count=12 conv=fsync status=none 2>/tmp/quota.err; then
          echo 'more was written than fits' >&2; exit 1
        fi
        grep -q 'No space left' /tmp/quota.err
        rm -f b a; dd if=/dev/urandom of=c bs=1M count=12 conv=fsync status=none; figure used
        "#,
    )?;
    driver.expand(&volume, 64 << 20)?;
    sh(
        &volume.path,
        60,
        "dd if=/dev/urandom of=d bs=1M count=40 conv=fsync status=none
         equal $(figure size) 67108864 size",
    )?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("{note} bytes used after rm and 12 MiB"))
}

pub fn snapshot() -> Outcome {
    let driver = Driver::start("snapshot")?;
    let volume = driver.volume("source", 1 << 30)?;
    // Not synced by the program: what the kernel still holds must be in the snapshot all the same.
    let write = "mkdir d; for i in $(seq 200); do echo $i > d/$i; done
                 dd if=/dev/urandom of=big bs=1M count=8 status=none; sha256sum big > sum";
    sh(&volume.path, 60, write)?;
    let snapshot = driver
        .snapshot(&volume, "snap")
        .map_err(|error| format!("{error}{}", driver.log(Role::Node)))?;
    sh(&volume.path, 60, "rm -rf d; echo new > big")?;
    let clone = driver.volume_from(&snapshot, "clone", 1 << 30)?;
    sh(
        &clone.path,
        60,
        "equal $(ls d | wc -l) 200 names; for i in $(seq 200); do equal $(cat d/$i) $i content; done
         sha256sum --quiet -c sum; echo mine > d/77",
    )?;
    sh(&volume.path, 60, "uncached; [ ! -e d ]; equal $(cat big) new content")?;
    // Awkward order: the source first, then the snapshot, the clone last.
    driver.remove(&volume)?;
    driver.delete_snapshot(&snapshot)?;
    sh(
        &clone.path,
        60,
        "uncached; sha256sum --quiet -c sum
         equal $(cat d/77) mine content; equal $(cat d/78) 78 content",
    )?;
    driver.remove(&clone)?;
    driver.stop()?;
    Ok(String::new())
}

/// Ordinary programs on `.snapshots`.
pub fn snapdir() -> Outcome {
    let driver = Driver::start("snapdir")?;
    let volume = driver.volume("data", 1 << 30)?;
    let write = "mkdir -p d/e; for i in $(seq 300); do echo $i > d/$i; done
                 dd if=/dev/urandom of=d/e/big bs=1M count=6 status=none
                 truncate -s 50M d/holes; ln d/7 d/seven; ln -s ../7 d/e/link
                 chmod 2750 d/e; touch -d @1234567 d/e
                 rm -rf /tmp/snapdir.*; cp -a . /tmp/snapdir.ref";
    sh(&volume.path, 120, write)?;
    let before = driver
        .snapshot(&volume, "before")
        .map_err(|error| format!("{error}{}", driver.log(Role::Node)))?;
    sh(&volume.path, 60, "rm d/1 d/seven; echo other > d/2; mv d/e d/f; echo new > d/new")?;
    driver.snapshot(&volume, "after")?;
    sh(
        &volume.path,
        240,
        r#"
        uncached; [ -z "$(ls -A | grep snapshots)" ]
        equal "$(ls .snapshots | tr '\n' ' ')" "after before " 'the snapshots'
        diff -r --no-dereference /tmp/snapdir.ref .snapshots/before
        cp -a .snapshots/before /tmp/snapdir.copy
        diff -r --no-dereference /tmp/snapdir.ref /tmp/snapdir.copy
        # The size of a folder is each file system's own.
        show() {
            (cd "$1" && find . -mindepth 1 -printf '%P %y %m %U %G %n %T@ %l ' \
                \( -type d -printf '\n' -o -printf '%s\n' \) | sort)
        }
        for tree in /tmp/snapdir.ref .snapshots/before /tmp/snapdir.copy; do
            show "$tree" >"/tmp/snapdir.$(basename "$tree").list"
        done
        diff /tmp/snapdir.snapdir.ref.list /tmp/snapdir.before.list
        diff /tmp/snapdir.snapdir.ref.list /tmp/snapdir.snapdir.copy.list
        # Every object has a number of its own, here and there; hard links share one.
        twice=$(find d .snapshots -mindepth 1 -links -2 ! -type d -printf '%i\n' | sort | uniq -d)
        equal "$twice" '' 'numbers met twice'
        number() { stat -c %i .snapshots/before/d/$1; }
        equal "$(number 7)" "$(number seven)" 'the number of two names'
        (cd .snapshots/before/d/e &&
            equal "$(realpath ../../../..)" "$(cd "$OLDPWD" && pwd -P)" 'the way up')
        equal "$(cat .snapshots/after/d/2)" other content
        [ -e .snapshots/after/d/f/big ]; [ ! -e .snapshots/after/d/1 ]
        for try in 'touch .snapshots/before/x' 'rm .snapshots/before/d/2' 'mkdir .snapshots/x' \
            'rmdir .snapshots' 'mkdir .snapshots' 'mv d/2 .snapshots/before/'; do
            if $try 2>/dev/null; then echo "$try succeeded" >&2; exit 1; fi
        done
        cp -a .snapshots/before/d/1 d/1; equal "$(cat d/1)" 1 'what was copied back'
        "#,
    )?;
    driver.delete_snapshot(&before)?;
    // Open files go stale; the name is gone once the client looks again.
    let note = sh(
        &volume.path,
        120,
        r#"
        for i in $(seq 60); do
            uncached; if ! ls .snapshots/before/d >/dev/null 2>&1; then break; fi; sleep 1
        done
        if cat .snapshots/before/d/2 2>/dev/null; then
            echo 'a deleted snapshot is read' >&2; exit 1
        fi
        equal "$(cat .snapshots/after/d/2)" other 'the other snapshot'
        rm -rf /tmp/snapdir.*; echo "$i s"
        "#,
    )?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("a deleted snapshot was gone after {}", note.trim()))
}

/// The options of a PersistentVolume on every mount of it, kubelet's folder being a link; and a
/// process in more groups than a call carries: Linux sends the 16 with the smallest numbers.
pub fn options() -> Outcome {
    let driver = Driver::start("options")?;
    let mut volume = driver.volume("data", 1 << 30)?;
    sh(
        &volume.path,
        60,
        "printf '#!/bin/sh\\necho ran\\n' > run; chmod 755 run
         equal \"$(./run)\" ran 'without the option'
         mkdir low high; chgrp 100 low; chgrp 219 high; chmod 770 low high; chmod 755 .; sync run",
    )?;
    driver.unpublish(&volume)?;
    driver.unstage(&volume)?;
    fs::rename(driver.root.join("pods"), driver.root.join("disk")).map_err(text)?;
    std::os::unix::fs::symlink("disk", driver.root.join("pods")).map_err(text)?;
    volume.flags = vec!["noexec".to_owned()];
    driver.stage(&volume)?;
    driver.publish(&volume, false)?;
    let reader = Volume { path: driver.root.join("pods/reader"), ..volume.clone() };
    driver.publish(&reader, true)?;
    driver.publish(&reader, true)?;
    let not_run = "uncached
                   if ./run 2>/tmp/options.err; then echo 'noexec does not hold' >&2; exit 1; fi
                   grep -q 'Permission denied' /tmp/options.err";
    sh(&volume.path, 60, not_run)?;
    sh(
        &reader.path,
        60,
        &format!(
            "{not_run}; if touch new 2>/dev/null; then echo 'it is written to' >&2; exit 1; fi"
        ),
    )?;
    sh(
        &volume.path,
        60,
        "in_20=\"setpriv --reuid 1000 --regid 1000 --groups 100,$(seq -s, 201 219)\"
         $in_20 touch low/new
         if $in_20 touch high/new 2>/dev/null; then
           echo 'all 20 groups were sent: say so in docs/limits.md' >&2; exit 1
         fi",
    )?;
    driver.unpublish(&reader)?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok("noexec and ro held, by way of a link".to_owned())
}

/// 4 MiB at once, then 4 MiB a second.
pub fn limits() -> Outcome {
    let driver = Driver::start("limits")?;
    let slow = driver.volume_with("slow", 1 << 30, ("maxWriteBandwidth", "4Mi"))?;
    let other = driver.volume("other", 1 << 30)?;
    sh(&slow.path, 60, "echo first > first; sync first")?;
    let started = Instant::now();
    let write = "dd if=/dev/zero of=big bs=1M count=80 conv=fsync status=none; touch done";
    let mut writer = Script::start(&slow.path, write)?;
    // While it waits its own volume answers, and another one writes. A stat of the file itself would
    // wait: the client writes it out first.
    sh(
        &other.path,
        60,
        &format!(
            "dd if=/dev/zero of=big bs=1M count=4 conv=fsync status=none
             cd {}; echo 3 > /proc/sys/vm/drop_caches; equal \"$(cat first)\" first content
             ls > /dev/null; [ ! -e done ]",
            slow.path.display()
        ),
    )?;
    let meanwhile = started.elapsed();
    if writer.ended()? {
        return Err(format!("80 MiB at 4 MiB a second were written within {meanwhile:?}"));
    }
    writer.wait(60)?;
    let took = started.elapsed();
    if took < Duration::from_secs(18) {
        return Err(format!("80 MiB at 4 MiB a second were written within {took:?}"));
    }
    driver.remove(&slow)?;
    driver.remove(&other)?;
    driver.stop()?;
    Ok(format!(
        "80 MiB at 4 MiB/s in {:.1} s; 4 MiB of another volume in {:.1} s of these",
        took.as_secs_f64(),
        meanwhile.as_secs_f64()
    ))
}

/// Every file below a folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let entry = entry.map_err(text)?;
        match entry.file_type().map_err(text)?.is_dir() {
            true => found.extend(files(&entry.path())?),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    Ok(found)
}

/// One bit of every pack is turned: what was written there must be refused, never shown. The rest
/// of the volume goes on.
pub fn rot() -> Outcome {
    let mut driver = Driver::start("rot")?;
    let volume = driver.volume("data", 1 << 30)?;
    sh(
        &volume.path,
        60,
        "echo small > small; dd if=/dev/urandom of=/tmp/rot.bin bs=1M count=8 status=none
         cp /tmp/rot.bin big; sync big small",
    )?;
    // Neither the kernel's cache nor the plugin's may know the right bytes.
    driver.stop_node()?;
    let packs = files(&driver.root.join("pool/packs"))?;
    for pack in &packs {
        let mut bytes = fs::read(pack).map_err(text)?;
        let at = bytes.len() / 2;
        *bytes.get_mut(at).ok_or("an empty pack")? ^= 1;
        fs::write(pack, bytes).map_err(text)?;
    }
    driver.start_node()?;
    let note = sh(
        &volume.path,
        120,
        r#"
        uncached
        if cat big > /tmp/rot.read 2>/tmp/rot.err; then
            echo 'rotten bytes were read' >&2; exit 1
        fi
        grep -q 'Input/output error' /tmp/rot.err
        # Output before the error is right.
        cmp -n "$(stat -c %s /tmp/rot.read)" /tmp/rot.bin /tmp/rot.read
        equal "$(cat small)" small 'the other file'
        echo more > more; sync more; uncached; equal "$(cat more)" more 'a new file'
        stat -c %s /tmp/rot.read; rm /tmp/rot.*
        "#,
    )?;
    if !driver.log(Role::Node).contains("ERROR") && !driver.log(Role::Node).contains("WARN") {
        return Err(format!("the node plugin says nothing about it:{}", driver.log(Role::Node)));
    }
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(format!("{} packs spoilt; {note} of 8388608 bytes were read before the error", packs.len()))
}
