//! Ordinary programs on a mounted volume.

use super::driver::Driver;
use super::step::{Outcome, sh, size};

/// A script on a fresh volume of its own, which must unstage and delete cleanly afterwards.
fn on_volume(name: &str, secs: u64, script: &str) -> Outcome {
    let driver = Driver::start(name)?;
    let volume = driver.volume("data", 20 << 30)?;
    let note = sh(&volume.path, secs, script)?;
    driver.remove(&volume)?;
    driver.stop()?;
    Ok(note)
}

pub fn posix() -> Outcome {
    on_volume(
        "posix",
        120,
        r#"
        echo hello > f; ln f g; equal "$(stat -c %h f)" 2 links
        equal "$(stat -c %i f)" "$(stat -c %i g)" inode
        ln -s f s; equal "$(readlink s)" f link; equal "$(cat s)" hello link
        mkfifo p; [ -p p ]; mknod c c 1 3; equal "$(stat -c %t:%T c)" 1:3 device; mknod b b 7 0
        [ -b b ]
        truncate -s 1T big; equal "$(stat -c %s big)" 1099511627776 size
        [ "$(du -k big | cut -f 1)" -lt 64 ]
        printf end | dd of=big bs=1 seek=1099511627000 conv=notrunc status=none
        equal "$(tail -c 776 big | head -c 3)" end sparse
        truncate -s 8796093022208 huge; rm huge
        touch -d '2001-02-03 04:05:06.123456789 UTC' f
        equal "$(stat -c %.9Y f)" 981173106.123456789 time
        chmod 4755 f; equal "$(stat -c %a f)" 4755 mode; chown 123:456 f
        equal "$(stat -c %u:%g f)" 123:456 owner
        mkdir -p d/e; chmod 2775 d; chgrp 77 d; touch d/x; equal "$(stat -c %g d/x)" 77 setgid
        mkdir d/y; equal "$(stat -c %a d/y)" 2755 setgid
        user() { setpriv --reuid 1000 --regid 1000 "$@"; }
        mkdir t; chmod 1777 t; touch t/root; fails user --clear-groups rm -f t/root
        user --clear-groups touch t/own; user --clear-groups rm t/own
        echo a > a; echo z > z; mv a z; equal "$(cat z)" a rename; [ ! -e a ]
        fails mv d d/e; fails rmdir d; fails rmdir f; fails ln d hard
        exec 5<> open; rm open; echo still >&5; equal "$(cat /proc/self/fd/5)" still unlinked
        exec 5>&-
        name=$(printf 'x%.0s' $(seq 255)); touch "$name"; fails touch "${name}x"
        touch $'odd \n\377 name'; ls | wc -l
        echo secret > own; chmod 600 own; fails user --groups 55 cat own
        equal "$(cat own)" secret root
        mkdir grp; chgrp 55 grp; chmod 770 grp; user --groups 55 touch grp/mine
        equal "$(stat -c %u:%g grp/mine)" 1000:1000 creator
        fails user --clear-groups touch grp/other
        "#,
    )
}

pub fn git() -> Outcome {
    let source = env!("CARGO_MANIFEST_DIR");
    on_volume(
        "git",
        420,
        &format!(
            r#"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_COUNT=1
        export GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
        git clone -q --no-local --depth 50 --sparse "file://{source}" copy; cd copy
        git sparse-checkout set src/fs; git fsck --full --no-progress
        git -c user.name=n -c user.email=e@example.com commit -q --allow-empty -m change; git gc -q
        uncached
        git fsck --full --no-progress; equal "$(git status --porcelain)" '' status
        git rev-list --count HEAD
        "#
        ),
    )
}

fn sqlite(mode: &str) -> Outcome {
    on_volume(
        &format!("sqlite-{mode}"),
        300,
        &format!(
            r#"
        sqlite3 db 'PRAGMA journal_mode={mode}' >/dev/null
        sqlite3 db 'CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT)'
        numbers='WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)'
        insert="$numbers INSERT INTO t(body) SELECT hex(randomblob(200)) FROM n"
        for i in $(seq 10); do
          sqlite3 db "BEGIN; $insert; COMMIT;"
        done
        equal "$(sqlite3 db 'SELECT count(*) FROM t')" 2000 rows
        sqlite3 db 'DELETE FROM t WHERE id % 3 = 0; VACUUM;'; uncached
        equal "$(sqlite3 db 'PRAGMA integrity_check')" ok integrity
        equal "$(sqlite3 db 'PRAGMA journal_mode')" {mode} mode
        equal "$(sqlite3 db 'SELECT count(*) FROM t')" 1334 rows
        "#
        ),
    )
}

pub fn sqlite_rollback() -> Outcome {
    sqlite("delete")
}

pub fn sqlite_wal() -> Outcome {
    sqlite("wal")
}

/// Four processes at once on one database: the locks are the client's, and every row of each is
/// there.
pub fn sqlite_four() -> Outcome {
    on_volume(
        "sqlite-four",
        300,
        r#"
        sqlite3 db 'PRAGMA journal_mode=wal' >/dev/null
        sqlite3 db 'CREATE TABLE t(who INTEGER, n INTEGER, body TEXT)'
        pids=""; for who in 1 2 3 4; do
          for n in $(seq 10); do
            echo "BEGIN IMMEDIATE; INSERT INTO t VALUES($who, $n, hex(randomblob(500))); COMMIT;"
          done > $who.sql
          sqlite3 -bail -cmd '.timeout 120000' db < $who.sql & pids="$pids $!"
        done
        for pid in $pids; do wait $pid; done; uncached
        equal "$(sqlite3 db 'PRAGMA integrity_check')" ok integrity
        counts='SELECT group_concat(c) FROM (SELECT count(*) AS c FROM t GROUP BY who)'
        equal "$(sqlite3 db "$counts")" 10,10,10,10 rows
        "#,
    )
}

/// PostgreSQL through a crash of its own: what pgbench was told is committed is there, and every
/// index fits its table.
pub fn postgres() -> Outcome {
    on_volume(
        "postgres",
        600,
        r#"
        bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1); sockets=$(mktemp -d); chmod 777 $sockets
        mkdir pg; chown 1000:1000 pg; chmod 700 pg
        pg() {
          setpriv --reuid 1000 --regid 1000 --clear-groups \
            env HOME=/tmp PGHOST=$sockets PGUSER=pg PGDATABASE=postgres "$@"
        }
        options="-k $sockets -c listen_addresses= -c shared_buffers=16MB"
        start() {
          pg $bin/pg_ctl -D $PWD/pg -w -t 300 -l $sockets/log -o "$options" start >/dev/null
        }
        pg $bin/initdb -D $PWD/pg -U pg -A trust >/dev/null; start
        pg $bin/pgbench -i -q -s 1 2>/dev/null; pg $bin/pgbench -n -c 2 -t 25 >/dev/null
        head -n 1 pg/postmaster.pid > $sockets/pid; kill -9 $(cat $sockets/pid)
        for i in $(seq 600); do kill -0 $(cat $sockets/pid) 2>/dev/null || break; sleep 0.1; done
        uncached; start
        committed=$(pg $bin/psql -Atc 'SELECT count(*) FROM pgbench_history')
        equal "$committed" 50 'committed transactions'
        pg $bin/psql -qAtc 'CREATE EXTENSION amcheck' 2>/dev/null
        pg $bin/pg_amcheck --heapallindexed -d postgres
        pg $bin/pg_ctl -D $PWD/pg -m fast -w stop >/dev/null; rm -rf $sockets; du -sm pg | cut -f 1
        "#,
    )
}

/// `npm install` of a package from a folder: many small files, links, a lock file that is renamed.
pub fn npm() -> Outcome {
    on_volume(
        "npm",
        300,
        r#"
        mkdir lib app; cd lib; for i in $(seq 50); do echo "module.exports = $i;" > m$i.js; done
        echo '{"name":"lib","version":"1.0.0","bin":{"tool":"m1.js"}}' > package.json
        echo 'module.exports = require("./m7.js");' > index.js
        npm pack --silent --pack-destination .. >/dev/null; cd ../app
        echo '{"name":"app","version":"1.0.0"}' > package.json
        npm install --silent --offline --no-audit --no-fund --cache ../cache ../lib-1.0.0.tgz
        uncached
        equal "$(node -p 'require("lib")')" 7 module; [ -L node_modules/.bin/tool ]
        npm ls --offline | tail -n 2
        "#,
    )
}

/// Sparse files stay sparse, and names, links and times come over.
pub fn sparse() -> Outcome {
    on_volume(
        "sparse",
        240,
        r#"
        mkdir a b; truncate -s 200M a/s
        printf x | dd of=a/s bs=1 seek=104857600 conv=notrunc status=none
        ln a/s a/hard; ln -s s a/soft; mkfifo a/pipe
        touch -d '2001-02-03 04:05:06.123456789 UTC' a/s; tar -S -C a -cf - . | tar -C b -xf -
        uncached
        cmp a/s b/s; [ "$(du -k b/s | cut -f 1)" -lt 1024 ]; equal "$(stat -c %h b/hard)" 2 links
        equal "$(readlink b/soft)" s link; [ -p b/pipe ]
        equal "$(stat -c %Y b/s)" 981173106 time
        if command -v rsync >/dev/null; then
          rsync -aHAXS a/ c/; cmp a/s c/s
          equal "$(stat -c '%h %.9Y' c/s)" '2 981173106.123456789' rsync
          equal "$(rsync -aHAXSn --itemize-changes a/ c/)" '' again; echo rsync
        fi
        "#,
    )
}

pub fn c_build() -> Outcome {
    on_volume(
        "make",
        300,
        r#"
        for i in $(seq 10); do echo "int f$i(int x) { return x + $i; }" > f$i.c; done
        {
          for i in $(seq 10); do echo "int f$i(int);"; done; echo 'int main(void) { int x = 0;'
          for i in $(seq 10); do echo "x = f$i(x);"; done; echo 'return x == 55 ? 0 : 1; }'
        } > main.c
        printf 'prog: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n' > Makefile
        make -s -j2; ./prog; make -q; touch f3.c; fails make -q; rm f4.o; make -s; ./prog; make -q
        ls *.o | wc -l
        "#,
    )
}

/// Entries of one case; `ZEROFS_TEST_SIZE` multiplies them.
const ENTRIES: usize = 1000;

/// As [`on_volume`], of a script that reads the number of entries from `$entries`.
fn on_volume_of(name: &str, secs: u64, script: &str) -> Outcome {
    let entries = ENTRIES * size();
    on_volume(name, secs * size() as u64, &format!("entries={entries}\n{script}"))
}

pub fn tar() -> Outcome {
    on_volume_of(
        "tar",
        420,
        r#"
        src=$(mktemp -d); set +x
        for d in $(seq 50); do
          mkdir $src/$d
          for f in $(seq $((entries / 50))); do echo "$d $f $RANDOM" > $src/$d/$f; done
        done; set -x
        (cd $src && find . -type f | sort | xargs sha256sum) > $src.sum
        # Owners, modes and times of each file would be four calls a file: some are enough.
        tar -C $src -cf all.tar .; mkdir out
        tar -C out -m --no-same-owner --no-same-permissions -xf all.tar
        touch -d @981173106 $src/7/*; chmod 640 $src/7/*; chown 12:34 $src/7/*
        tar -C $src -c ./7 | tar -C out -x; uncached
        stats=$(stat -c '%a %u:%g %Y' out/7/* | sort -u)
        equal "$stats" '640 12:34 981173106' 'modes, owners and times'
        (cd out && sha256sum --quiet -c $src.sum)
        equal "$(find out -type f | wc -l)" $entries files
        tar -C out -cf again.tar .; back=$(mktemp -d); tar -C $back -xf again.tar
        (cd $back && sha256sum --quiet -c $src.sum)
        equal "$(find $back -type f | wc -l)" $entries 'files that came back'
        rm -rf $src $back $src.sum; wc -c < again.tar
        "#,
    )
}

pub fn mmap() -> Outcome {
    on_volume(
        "mmap",
        120,
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
    assert len(m) == 1 << 20
    for i in range(0, 1 << 20, 4096):
        assert m[i:i + 8] == i.to_bytes(8, "little") and not any(m[i + 8:i + 4096]), i
P
        /usr/bin/python3 w.py; uncached; /usr/bin/python3 r.py
        # Writes of another process are seen through a mapping that is there already.
        cat > see.py <<'P'
import mmap, subprocess
with open("m", "rb") as f:
    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    assert m[8:12] == bytes(4)
    write = "printf seen | dd of=m bs=1 seek=8 conv=notrunc,fsync status=none"
    subprocess.run(write, shell=True, check=True)
    assert m[8:12] == b"seen", m[8:12]
P
        /usr/bin/python3 see.py
        "#,
    )
}

pub fn listing() -> Outcome {
    on_volume_of(
        "listing",
        240,
        r#"
        before=$(figure iused)
        mkdir many; (cd many; seq $entries | xargs touch); uncached
        equal "$(ls -U many | wc -l)" $entries names
        equal "$(ls many | sort -n | uniq | sha256sum)" "$(seq $entries | sha256sum)" 'the names'
        equal "$(figure iused)" $((before + entries + 1)) inodes
        ls -lU many >/dev/null; rm -rf many; [ ! -e many ]
        equal "$(figure iused)" "$before" 'inodes after rm -rf'; df -h . | tail -n 1
        "#,
    )
}
