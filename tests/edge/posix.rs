//! POSIX's rules as a table (`posix.txt`), in the spirit of pjdfstest's suites: each line is a call
//! by somebody, and what it must answer.
//!
//! ```text
//! == title                         a case of its own, in an empty directory of mode 0777
//! create f 0644                    by root, and must succeed
//! 100:100,200 chmod f 0600 = EPERM by a user, a group and further groups, and must fail
//! mark f                           remembers the times of f …
//! times f ctime+ mtime=            … and compares them: grown, or the same
//! stat f type=file mode=0644 nlink=1
//! ```
//! Paths are walked as a client does, a LOOKUP for each part; `{255}` is a name of that many
//! letters.

use crate::served::{Host, Served};
use bytes::Bytes;
use std::collections::HashMap;
use zerofs_csi::fs::api::*;
use zerofs_csi::nfs::client::{Client, ClientError, Credentials, FileHandle};
use zerofs_csi::nfs::{FileAttr, NfsStat};
use zerofs_csi::types::Timestamp;

const TABLE: &str = include_str!("posix.txt");

fn error_name(status: NfsStat) -> String {
    match status {
        NfsStat::Perm => "EPERM",
        NfsStat::NoEnt => "ENOENT",
        NfsStat::Access => "EACCES",
        NfsStat::Exist => "EEXIST",
        NfsStat::CrossDevice => "EXDEV",
        NfsStat::NotDir => "ENOTDIR",
        NfsStat::IsDir => "EISDIR",
        NfsStat::Inval => "EINVAL",
        NfsStat::FileTooBig => "EFBIG",
        NfsStat::NameTooLong => "ENAMETOOLONG",
        NfsStat::NotEmpty => "ENOTEMPTY",
        NfsStat::Stale => "ESTALE",
        other => return format!("{other:?}"),
    }
    .to_owned()
}

type Answer = Result<(), ClientError>;

struct Player {
    served: Served,
    clients: HashMap<String, Client>,
    root: FileHandle,
    /// The directory of the case.
    top: FileHandle,
    marks: HashMap<String, FileAttr>,
    cases: u32,
}

/// `100:200,300`: user, group and further groups.
fn credentials(who: &str) -> Credentials {
    let (uid, groups) = who.split_once(':').unwrap();
    let mut groups = groups.split(',').map(|group| group.parse().unwrap());
    let gid = groups.next().unwrap();
    Credentials {
        machine: "table".into(),
        uid: uid.parse().unwrap(),
        gid,
        groups: groups.collect(),
    }
}

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text, 8).unwrap_or_else(|_| panic!("mode {text}"))
}

fn mode(text: &str) -> SetAttr {
    SetAttr { mode: Some(octal(text)), ..SetAttr::default() }
}

fn name_of(text: &str) -> Vec<u8> {
    match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(length) => vec![b'x'; length.parse().unwrap()],
        None => text.as_bytes().to_vec(),
    }
}

fn set_time(text: &str) -> SetTime {
    match text {
        "-" => SetTime::Keep,
        "now" => SetTime::Now,
        secs => SetTime::To(Timestamp::from_parts(secs.parse().unwrap(), 0)),
    }
}

impl Player {
    async fn new() -> (Self, Host) {
        let mut host = Host::new();
        let served = host.serve().await;
        let client = served.client(&Credentials::root()).await;
        let root = served.root(&client).await;
        let clients = HashMap::from([("0:0".to_owned(), client)]);
        (Self { served, clients, top: root.clone(), root, marks: HashMap::new(), cases: 0 }, host)
    }

    async fn client(&mut self, who: &str) -> Client {
        if !self.clients.contains_key(who) {
            let client = self.served.client(&credentials(who)).await;
            self.clients.insert(who.to_owned(), client);
        }
        self.clients[who].clone()
    }

    async fn begin(&mut self) {
        self.cases += 1;
        let name = format!("case {}", self.cases);
        let client = self.client("0:0").await;
        self.top = client.mkdir(&self.root, name.as_bytes(), &mode("777")).await.unwrap().handle;
        // The mode of a new directory is what is asked for, whatever umask a client has.
        client.setattr(&self.top, &mode("777"), None).await.unwrap();
        self.marks.clear();
    }

    /// The directory of a path, and the name in it.
    async fn place(
        &self,
        client: &Client,
        path: &str,
    ) -> Result<(FileHandle, Vec<u8>), ClientError> {
        let mut at = self.top.clone();
        let mut parts: Vec<&str> = path.split('/').collect();
        let last = parts.pop().unwrap();
        for part in parts {
            at = client.lookup(&at, &name_of(part)).await?.handle;
        }
        Ok((at, name_of(last)))
    }

    async fn find(&self, client: &Client, path: &str) -> Result<FileHandle, ClientError> {
        if path == "." {
            return Ok(self.top.clone());
        }
        let (dir, name) = self.place(client, path).await?;
        client.lookup(&dir, &name).await.map(|found| found.handle)
    }

    async fn set(&self, client: &Client, path: &str, set: SetAttr) -> Answer {
        let file = self.find(client, path).await?;
        client.setattr(&file, &set, None).await.map(drop)
    }

    /// The check that a client makes at open(2) and access(2).
    async fn access(&self, client: &Client, path: &str, want: &str) -> Answer {
        let file = self.find(client, path).await?;
        let directory = client.getattr(&file).await?.kind == FileKind::Directory;
        let bits = want.chars().fold(0, |bits, letter| {
            bits | match letter {
                'r' => access::READ,
                'w' => access::MODIFY | access::EXTEND,
                'x' if directory => access::LOOKUP,
                'x' => access::EXECUTE,
                other => panic!("{other}"),
            }
        });
        let granted = client.access(&file, bits).await?;
        if granted == bits { Ok(()) } else { Err(ClientError::Status(NfsStat::Access)) }
    }

    async fn make(&self, client: &Client, path: &str, what: &Special, set: &SetAttr) -> Answer {
        let (dir, name) = self.place(client, path).await?;
        client.make(&dir, &name, what, set).await.map(drop)
    }

    async fn call(&self, client: &Client, words: &[&str]) -> Answer {
        match words {
            ["create", path, bits] => {
                let (dir, name) = self.place(client, path).await?;
                client.create(&dir, &name, &CreateHow::Unchecked(mode(bits))).await.map(drop)
            }
            ["create-new", path, bits] => {
                let (dir, name) = self.place(client, path).await?;
                client.create(&dir, &name, &CreateHow::Guarded(mode(bits))).await.map(drop)
            }
            ["mkdir", path, bits] => {
                let (dir, name) = self.place(client, path).await?;
                client.mkdir(&dir, &name, &mode(bits)).await.map(drop)
            }
            ["mkfifo", path, bits] => self.make(client, path, &Special::Fifo, &mode(bits)).await,
            ["mksock", path, bits] => self.make(client, path, &Special::Socket, &mode(bits)).await,
            ["mkchr", path, bits] => {
                self.make(client, path, &Special::CharDevice(1, 3), &mode(bits)).await
            }
            ["mkblk", path, bits] => {
                self.make(client, path, &Special::BlockDevice(7, 0), &mode(bits)).await
            }
            ["symlink", target, path] => {
                let target = Special::Symlink(name_of(target).into());
                self.make(client, path, &target, &SetAttr::default()).await
            }
            ["link", from, to] => {
                let file = self.find(client, from).await?;
                let (dir, name) = self.place(client, to).await?;
                client.link(&file, &dir, &name).await.map(drop)
            }
            ["unlink", path] => {
                let (dir, name) = self.place(client, path).await?;
                client.remove(&dir, &name).await.map(drop)
            }
            ["rmdir", path] => {
                let (dir, name) = self.place(client, path).await?;
                client.rmdir(&dir, &name).await.map(drop)
            }
            ["rename", from, to] => {
                let (from, to) = (self.place(client, from).await?, self.place(client, to).await?);
                client.rename((&from.0, &from.1), (&to.0, &to.1)).await.map(drop)
            }
            ["chmod", path, bits] => self.set(client, path, mode(bits)).await,
            ["chown", path, uid, gid] => {
                let (uid, gid) = (uid.parse().ok(), gid.parse().ok());
                self.set(client, path, SetAttr { uid, gid, ..SetAttr::default() }).await
            }
            ["truncate", path, size] => {
                self.set(
                    client,
                    path,
                    SetAttr { size: Some(size.parse().unwrap()), ..SetAttr::default() },
                )
                .await
            }
            ["utimens", path, atime, mtime] => {
                let set = SetAttr {
                    atime: set_time(atime),
                    mtime: set_time(mtime),
                    ..SetAttr::default()
                };
                self.set(client, path, set).await
            }
            ["write", path, text] => {
                let file = self.find(client, path).await?;
                client
                    .write(&file, 0, Bytes::copy_from_slice(text.as_bytes()), Stability::FileSync)
                    .await
                    .map(drop)
            }
            ["read", path] => {
                let file = self.find(client, path).await?;
                client.read(&file, 0, 4096).await.map(drop)
            }
            ["readlink", path] => {
                let file = self.find(client, path).await?;
                client.readlink(&file).await.map(drop)
            }
            ["readdir", path] => {
                let file = self.find(client, path).await?;
                client.readdirplus(&file, DirCookie(0), [0; 8], 8192).await.map(drop)
            }
            ["lookup", path] => self.find(client, path).await.map(drop),
            ["access", path, want] => self.access(client, path, want).await,
            other => panic!("no such call: {other:?}"),
        }
    }

    async fn attr(&mut self, path: &str) -> FileAttr {
        let client = self.client("0:0").await;
        let file = self.find(&client, path).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        client.getattr(&file).await.unwrap()
    }

    async fn stat(&mut self, path: &str, expected: &[&str]) -> Result<(), String> {
        let attr = self.attr(path).await;
        for field in expected {
            let (name, wanted) = field.split_once('=').unwrap();
            let found = match name {
                "type" => match attr.kind {
                    FileKind::Regular => "file".to_owned(),
                    FileKind::Directory => "dir".to_owned(),
                    other => format!("{other:?}").to_lowercase(),
                },
                "mode" => format!("{:04o}", attr.mode),
                "uid" => attr.uid.to_string(),
                "gid" => attr.gid.to_string(),
                "nlink" => attr.nlink.to_string(),
                "size" => attr.size.to_string(),
                "mtime" => attr.mtime.secs().to_string(),
                "atime" => attr.atime.secs().to_string(),
                other => panic!("no such field: {other}"),
            };
            if found != wanted {
                return Err(format!("{name} is {found}"));
            }
        }
        Ok(())
    }

    async fn times(&mut self, path: &str, expected: &[&str]) -> Result<(), String> {
        let (now, before) = (self.attr(path).await, self.marks[path]);
        for field in expected {
            let (name, how) = field.split_at(field.len() - 1);
            let (before, now) = match name {
                "atime" => (before.atime, now.atime),
                "mtime" => (before.mtime, now.mtime),
                "ctime" => (before.ctime, now.ctime),
                other => panic!("no such time: {other}"),
            };
            if !(if how == "+" { now > before } else { now == before }) {
                return Err(format!("{name} went from {before:?} to {now:?}"));
            }
        }
        Ok(())
    }

    async fn line(&mut self, line: &str) -> Result<(), String> {
        let (line, expected) = line.split_once(" = ").unwrap_or((line, "0"));
        let mut words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "mark" => {
                for path in &words[1..] {
                    let attr = self.attr(path).await;
                    self.marks.insert((*path).to_owned(), attr);
                }
                return Ok(());
            }
            "times" => return self.times(words[1], &words[2..]).await,
            "stat" => return self.stat(words[1], &words[2..]).await,
            _ => {}
        }
        let who = if words[0].contains(':') { words.remove(0) } else { "0:0" };
        let client = self.client(who).await;
        let got = match self.call(&client, &words).await {
            Ok(()) => "0".to_owned(),
            Err(ClientError::Status(status)) => error_name(status),
            Err(error) => return Err(error.to_string()),
        };
        if got == expected.trim() { Ok(()) } else { Err(format!("answers {got}")) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_the_table_holds() {
    let (mut player, host) = Player::new().await;
    let (mut title, mut lines, mut wrong) = ("", 0, Vec::new());
    for (n, line) in TABLE.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(case) = line.strip_prefix("== ") {
            title = case;
            player.begin().await;
            continue;
        }
        lines += 1;
        if let Err(what) = player.line(line).await {
            wrong.push(format!("posix.txt:{}: {title}: {line}: {what}", n + 1));
        }
    }
    println!("{} cases, {lines} lines", player.cases);
    assert!(wrong.is_empty(), "{} of {lines} lines:\n{}", wrong.len(), wrong.join("\n"));
    assert!(lines > 300, "the table is read");
    player.served.fs.close().await.unwrap();
    host.check().await;
}
