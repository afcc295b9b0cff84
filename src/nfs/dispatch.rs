//! From parsed arguments to the procedure that carries them out.

use super::args::{Args, Procedure};
use super::call::Call;
use super::export::ExportTable;
use super::listing::{Form, ListArgs};
use super::reply::Reply;
use super::{data, listing, names, objects, rpc};
use std::future::Future;
use std::pin::Pin;

/// A call in progress. Boxed one by one, so that a GETATTR does not carry the size of a RENAME.
pub type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;

pub fn dispatch<T: ExportTable>(call: Call<T>, args: Args) -> Answer {
    match args {
        Args::Null => Box::pin(std::future::ready(Reply::small(rpc::accept(call.xid, 0)))),
        Args::GetAttr(file) => Box::pin(objects::getattr(call, file)),
        Args::SetAttr { file, set, guard } => Box::pin(objects::setattr(call, file, set, guard)),
        Args::Lookup(place) => Box::pin(names::lookup(call, place)),
        Args::Access { file, want } => Box::pin(objects::access(call, file, want)),
        Args::ReadLink(file) => Box::pin(objects::readlink(call, file)),
        Args::Read { file, offset, count } => Box::pin(data::read(call, file, offset, count)),
        Args::Write { file, offset, stability, data } => {
            Box::pin(data::write(call, file, offset, data, stability))
        }
        Args::Create { at, how } => Box::pin(names::create(call, at, how)),
        Args::MkDir { at, set } => Box::pin(names::mkdir(call, at, set)),
        Args::Symlink { at, set, target } => Box::pin(names::symlink(call, at, set, target)),
        Args::MkNod { at, node } => Box::pin(names::mknod(call, at, node)),
        Args::Remove(place) => Box::pin(names::remove(call, place)),
        Args::RmDir(place) => Box::pin(names::rmdir(call, place)),
        Args::Rename { from, to } => Box::pin(names::rename(call, from, to)),
        Args::Link { file, at } => Box::pin(names::link(call, file, at)),
        Args::ReadDir { dir, after, verifier, count } => Box::pin(listing::list(
            call,
            ListArgs { dir, after, verifier, count, form: Form::Names },
        )),
        Args::ReadDirPlus { dir, after, verifier, count } => Box::pin(listing::list(
            call,
            ListArgs { dir, after, verifier, count, form: Form::Plus },
        )),
        Args::FsStat(file) => Box::pin(objects::fsstat(call, file)),
        Args::FsInfo(file) => Box::pin(objects::fsinfo(call, file)),
        Args::PathConf(file) => Box::pin(objects::pathconf(call, file)),
        Args::Commit { file, offset, count } => Box::pin(data::commit(call, file, offset, count)),
    }
}

impl Args {
    /// Bytes of the reply beyond a few hundred.
    pub fn reply_bytes(&self) -> Option<usize> {
        match self {
            Self::Read { count, .. } => Some(data::read_bytes(*count) as usize),
            Self::ReadDir { count, .. } | Self::ReadDirPlus { count, .. } => {
                Some(listing::listing_bytes(*count) as usize)
            }
            _ => None,
        }
    }

    /// Bytes of the call that are kept while it is in progress.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            _ => 0,
        }
    }
}

impl Procedure {
    /// Returns whether it may be called without credentials: a client makes such calls before it
    /// knows which to use (RFC 2623 §2.3.2).
    pub fn open_to_all(self) -> bool {
        matches!(self, Self::Null | Self::FsInfo)
    }
}
