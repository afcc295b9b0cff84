//! READ, WRITE and COMMIT: the checks and attributes around what
//! [`Contents`](super::content::Contents) does.

use super::FsError;
use super::api::{Caller, Change, FILE_BYTES_MAX, FileKind, FileRef, IO_BYTES_MAX, ReadOut};
use super::attributes::around;
use super::inode::{Node, attr};
use super::names::Names;
use super::permission;
use super::row::Inode;
use bytes::Bytes;
use std::sync::Arc;

fn regular(row: &Inode) -> Result<(), FsError> {
    match row.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid("only a regular file holds data")),
    }
}

impl Names {
    pub async fn read(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        offset: u64,
        count: u32,
    ) -> Result<ReadOut, FsError> {
        let row = node.row.read().clone();
        regular(&row)?;
        permission::may_read_data(caller, &row)?;
        let count = count.min(IO_BYTES_MAX as u32);
        let data = self.contents.read(node, &row, offset, count).await?;
        let end = offset.saturating_add(data.iter().map(|part| part.len() as u64).sum());
        Ok(ReadOut { data, eof: end >= row.size, attr: attr(node.file, &row) })
    }

    /// Buffers the data. Nothing is submitted: the flush does that.
    pub async fn write(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        offset: u64,
        data: Bytes,
    ) -> Result<Change, FsError> {
        regular(&node.row.read())?;
        if data.len() > IO_BYTES_MAX {
            return Err(FsError::Invalid("more bytes than one WRITE may carry"));
        }
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(FsError::TooBig);
        }
        let room = self.contents.admit(data.len()).await?;
        let _lock = node.lock.lock().await;
        let before = node.row.read().clone();
        if before.nlink == 0 {
            return Err(FsError::Stale);
        }
        permission::may_write_data(caller, &before)?;
        if data.is_empty() {
            return Ok(around(node.file, &before, &before));
        }
        let mut row = before.clone();
        let now = self.now();
        row.ctime = now.ctime(row.ctime);
        row.mtime = now.time();
        row.mode = permission::mode_after_write(caller, row.mode);
        self.contents.write(node, &mut row, offset, data, room).await?;
        let change = around(node.file, &before, &row);
        *node.row.write() = row;
        Ok(change)
    }

    /// COMMIT's checks; the flush is the caller's.
    pub fn committed(&self, file: FileRef, node: &Node) -> Result<Change, FsError> {
        let row = node.row.read();
        regular(&row)?;
        Ok(around(file, &row, &row))
    }
}
