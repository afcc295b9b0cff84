//! Makes an archive in a task of its own, a few pieces ahead of whoever receives it.

use super::zip::{Open, Zip};
use super::{Member, tar};
use crate::control::ControlError;
use crate::control::browse::{Entry, OpenRoot};
use crate::fs::api::FileKind;
use crate::types::Class;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

/// Small members are sent together, this many bytes at a time.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Zip,
    Tar,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Tar => "tar",
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Zip => "application/zip",
            Self::Tar => "application/x-tar",
        }
    }
}

/// The contents of an archive.
pub struct Packing {
    pub root: OpenRoot,
    pub tops: Vec<Entry>,
    /// Bytes of each path that are not part of a member's name.
    pub skip: usize,
    pub format: Format,
}

/// The reason why no more is written.
enum PackEnd {
    /// Nobody receives it.
    Unread,
    Failed(ControlError),
}

impl From<ControlError> for PackEnd {
    fn from(error: ControlError) -> Self {
        Self::Failed(error)
    }
}

impl Packing {
    /// The bytes of the archive. The task ends with the stream.
    pub fn start(self) -> impl Stream<Item = Result<Bytes, ControlError>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(1);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut writer = Writer {
                sender: sender.clone(),
                gathered: BytesMut::new(),
                zip: (self.format == Format::Zip).then(Zip::default),
            };
            match Box::pin(self.write(&mut writer)).await {
                Ok(()) | Err(PackEnd::Unread) => {}
                // Nobody waits for it where the client has gone.
                Err(PackEnd::Failed(error)) => drop(sender.send(Err(error)).await),
            }
        }));
        ReceiverStream::new(receiver).map(move |piece| {
            let _task = &task;
            piece
        })
    }

    async fn write(self, writer: &mut Writer) -> Result<(), PackEnd> {
        for top in self.tops {
            let mut walk = self.root.walk(top);
            while let Some(entry) = walk.next().await? {
                if let Some(member) = member(&entry, self.skip) {
                    writer.member(&self.root, &entry, &member).await?;
                }
            }
        }
        writer.end().await
    }
}

/// `None`: it is not archived.
fn member(entry: &Entry, skip: usize) -> Option<Member> {
    let name = entry.path.get(skip..).filter(|name| !name.is_empty())?;
    match entry.kind {
        FileKind::Regular | FileKind::Directory | FileKind::Symlink => Some(Member {
            name: name.to_vec(),
            kind: entry.kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size,
            modified: entry.mtime,
            target: entry.target.clone(),
        }),
        FileKind::BlockDevice | FileKind::CharDevice | FileKind::Fifo | FileKind::Socket => None,
    }
}

struct Writer {
    sender: mpsc::Sender<Result<Bytes, ControlError>>,
    gathered: BytesMut,
    /// The writer of a zip archive; none of a tar archive.
    zip: Option<Zip>,
}

impl Writer {
    async fn member(
        &mut self,
        root: &OpenRoot,
        entry: &Entry,
        member: &Member,
    ) -> Result<(), PackEnd> {
        let Some(zip) = &mut self.zip else {
            self.put(Bytes::from(tar::header(member))).await?;
            self.data(root, entry, member, None).await?;
            return self.put(Bytes::from_static(tar::padding(member.data_bytes()))).await;
        };
        if !zip.has_room() {
            let why = "too many files for one zip archive: ask for a tar archive";
            let class = Class::Exhausted;
            return Err(ControlError::Refused { class, why: why.to_owned() }.into());
        }
        let (header, mut open) = zip.header(member);
        self.put(Bytes::from(header)).await?;
        if let Some(target) = &member.target {
            open.add(target);
            self.put(Bytes::copy_from_slice(target)).await?;
        }
        self.data(root, entry, member, Some(&mut open)).await?;
        let Some(zip) = &mut self.zip else { return Ok(()) };
        let descriptor = zip.descriptor(member, open);
        self.put(Bytes::from(descriptor)).await
    }

    async fn data(
        &mut self,
        root: &OpenRoot,
        entry: &Entry,
        member: &Member,
        mut open: Option<&mut Open>,
    ) -> Result<(), PackEnd> {
        if member.data_bytes() == 0 {
            return Ok(());
        }
        let mut pieces = Box::pin(root.read(entry, 0..member.size));
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            if let Some(open) = &mut open {
                open.add(&piece);
            }
            self.put(piece).await?;
        }
        Ok(())
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), PackEnd> {
        if bytes.len() >= PIECE_BYTES {
            self.flush().await?;
            return self.send(bytes).await;
        }
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() >= PIECE_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), PackEnd> {
        match self.gathered.is_empty() {
            true => Ok(()),
            false => {
                let gathered = self.gathered.split().freeze();
                self.send(gathered).await
            }
        }
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), PackEnd> {
        self.sender.send(Ok(bytes)).await.map_err(|_| PackEnd::Unread)
    }

    async fn end(&mut self) -> Result<(), PackEnd> {
        let end = match self.zip.take() {
            Some(zip) => Bytes::from(zip.end()),
            None => Bytes::from_static(tar::END),
        };
        self.put(end).await?;
        self.flush().await
    }
}
