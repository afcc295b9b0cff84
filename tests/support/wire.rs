//! Calls made by hand, with another's XDR (nfs3_types): what our client would never send, and a
//! check of what our server answers by a codec that is not ours.

use nfs3_types::nfs3::*;
use nfs3_types::rpc::{
    accept_stat_data, auth_unix, call_body, msg_body, opaque_auth, reply_body, rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub fn pack(value: &impl Pack) -> Vec<u8> {
    let mut out = Vec::new();
    value.pack(&mut out).unwrap();
    assert_eq!(out.len(), value.packed_size());
    out
}

/// Reads a value and demands that nothing is left.
pub fn unpack<T: Unpack>(bytes: &[u8]) -> T {
    let (value, len) = T::unpack(&mut &bytes[..]).unwrap();
    assert_eq!(len, bytes.len(), "bytes are left over");
    value
}

pub fn call(xid: u32, program: u32, version: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    let cred = opaque_auth::auth_unix(&auth_unix::default());
    let body = call_body {
        rpcvers: 2,
        prog: program,
        vers: version,
        proc: procedure,
        cred,
        verf: opaque_auth::default(),
    };
    [pack(&rpc_msg { xid, body: msg_body::CALL(body) }), args.to_vec()].concat()
}

pub fn nfs(xid: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    call(xid, PROGRAM, VERSION, procedure, args)
}

/// A reply's status, and the bytes of its results.
pub fn reply(record: &[u8]) -> (u32, reply_body<'static>, Vec<u8>) {
    let (message, len) = rpc_msg::unpack(&mut &record[..]).unwrap();
    match message.body {
        msg_body::REPLY(body) => (message.xid, body, record[len..].to_vec()),
        msg_body::CALL(_) => panic!("a call instead of a reply"),
    }
}

pub fn accepted(record: &[u8]) -> (accept_stat_data, Vec<u8>) {
    match reply(record) {
        (_, reply_body::MSG_ACCEPTED(reply), results) => (reply.reply_data, results),
        (_, other, _) => panic!("{other:?}"),
    }
}

/// The status in front of NFS results.
pub fn status(record: &[u8]) -> u32 {
    let (stat, results) = accepted(record);
    assert!(matches!(stat, accept_stat_data::SUCCESS), "{stat:?}");
    u32::from_be_bytes(results[..4].try_into().unwrap())
}

pub struct Wire(pub TcpStream);

const PATIENCE: Duration = Duration::from_secs(20);

impl Wire {
    pub async fn connect(server: SocketAddr) -> Self {
        Self(TcpStream::connect(server).await.unwrap())
    }

    pub async fn send(&mut self, record: &[u8]) {
        let mark = u32::try_from(record.len()).unwrap() | (1 << 31);
        self.0.write_all(&[&mark.to_be_bytes(), record].concat()).await.unwrap();
    }

    /// The next record; `None`: the server has closed.
    pub async fn receive(&mut self) -> Option<Vec<u8>> {
        let receive = async {
            let mark = self.0.read_u32().await.ok()?;
            assert!(mark & (1 << 31) != 0, "a reply in fragments");
            let mut record = vec![0; (mark & !(1 << 31)) as usize];
            self.0.read_exact(&mut record).await.ok()?;
            Some(record)
        };
        tokio::time::timeout(PATIENCE, receive).await.expect("no answer and no end")
    }

    pub async fn ask(&mut self, record: &[u8]) -> Option<Vec<u8>> {
        self.send(record).await;
        self.receive().await
    }
}

pub fn fh(handle: &[u8]) -> nfs_fh3 {
    nfs_fh3 { data: Opaque::owned(handle.to_vec()) }
}

pub fn place<'a>(dir: &[u8], name: &'a [u8]) -> diropargs3<'a> {
    diropargs3 { dir: fh(dir), name: filename3::from(name) }
}

/// Arguments of every procedure that a server understands, by number.
pub fn all_args(dir: &[u8], file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let set = || sattr3 {
        mode: Nfs3Option::Some(0o600),
        uid: Nfs3Option::Some(1),
        gid: Nfs3Option::Some(2),
        size: Nfs3Option::Some(3),
        atime: set_atime::SET_TO_CLIENT_TIME(nfstime3 { seconds: 4, nseconds: 5 }),
        mtime: set_mtime::SET_TO_SERVER_TIME,
    };
    let write = WRITE3args {
        file: fh(file),
        offset: 0,
        count: 8,
        stable: stable_how::UNSTABLE,
        data: Opaque::borrowed(b"12345678"),
    };
    let listing = READDIRPLUS3args {
        dir: fh(dir),
        cookie: 0,
        cookieverf: cookieverf3([0; 8]),
        dircount: 512,
        maxcount: 4096,
    };
    let readdir =
        READDIR3args { dir: fh(dir), cookie: 0, cookieverf: cookieverf3([0; 8]), count: 4096 };
    let symlink =
        symlinkdata3 { symlink_attributes: set(), symlink_data: nfspath3(Opaque::borrowed(b"to")) };
    let device =
        devicedata3 { dev_attributes: set(), spec: specdata3 { specdata1: 1, specdata2: 2 } };
    let guard = Nfs3Option::Some(nfstime3 { seconds: 1, nseconds: 1 });
    vec![
        (0, Vec::new()),
        (1, pack(&GETATTR3args { object: fh(file) })),
        (2, pack(&SETATTR3args { object: fh(file), new_attributes: set(), guard })),
        (3, pack(&LOOKUP3args { what: place(dir, b"file") })),
        (4, pack(&ACCESS3args { object: fh(file), access: 63 })),
        (5, pack(&READLINK3args { symlink: fh(file) })),
        (6, pack(&READ3args { file: fh(file), offset: 0, count: 100 })),
        (7, pack(&write)),
        (8, pack(&CREATE3args { where_: place(dir, b"a"), how: createhow3::GUARDED(set()) })),
        (
            8,
            pack(&CREATE3args {
                where_: place(dir, b"b"),
                how: createhow3::EXCLUSIVE(createverf3([7; 8])),
            }),
        ),
        (9, pack(&MKDIR3args { where_: place(dir, b"c"), attributes: set() })),
        (10, pack(&SYMLINK3args { where_: place(dir, b"d"), symlink })),
        (11, pack(&MKNOD3args { where_: place(dir, b"e"), what: mknoddata3::NF3CHR(device) })),
        (11, pack(&MKNOD3args { where_: place(dir, b"f"), what: mknoddata3::NF3FIFO(set()) })),
        (12, pack(&REMOVE3args { object: place(dir, b"missing") })),
        (13, pack(&RMDIR3args { object: place(dir, b"missing") })),
        (14, pack(&RENAME3args { from: place(dir, b"missing"), to: place(dir, b"x") })),
        (15, pack(&LINK3args { file: fh(file), link: place(dir, b"linked") })),
        (16, pack(&readdir)),
        (17, pack(&listing)),
        (18, pack(&FSSTAT3args { fsroot: fh(dir) })),
        (19, pack(&FSINFO3args { fsroot: fh(dir) })),
        (20, pack(&PATHCONF3args { object: fh(dir) })),
        (21, pack(&COMMIT3args { file: fh(file), offset: 0, count: 0 })),
    ]
}
