//! Files of snapshots and datasets.

use super::super::grpc::proto::read_file_response::Part;
use super::super::grpc::proto::*;
use super::{Client, ClientError, RootName};
use bytes::Bytes;
use tonic::Streaming;

/// Entries of one page of a folder.
const PAGE_ENTRIES: u32 = 5000;

/// A file that is being read.
pub struct Reading {
    answers: Streaming<ReadFileResponse>,
    entry: Entry,
    hasher: blake3::Hasher,
    /// The hash has arrived, and was right.
    whole: bool,
}

impl Reading {
    /// The file as it was when reading began.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The next bytes, at most 1 MiB; `None` at the end. What was read counts only once this has
    /// returned `None`: then it was verified.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while !self.whole {
            let answer = self.answers.message().await?.ok_or_else(|| self.incomplete())?;
            match answer.part {
                Some(Part::Data(data)) => {
                    self.hasher.update(&data);
                    return Ok(Some(data));
                }
                Some(Part::Blake3(hash)) => {
                    if self.hasher.finalize().as_bytes()[..] != hash[..] {
                        return Err(self.incomplete());
                    }
                    self.whole = true;
                }
                Some(Part::Entry(_)) | None => {}
            }
        }
        Ok(None)
    }

    fn incomplete(&self) -> ClientError {
        ClientError::Incomplete(shown(&self.entry.path))
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Client {
    /// The attributes of an object.
    pub async fn stat(
        &self,
        root: &RootName,
        path: impl AsRef<[u8]>,
    ) -> Result<Entry, ClientError> {
        let request = StatRequest { root: root.message(), path: path.as_ref().to_vec() };
        Ok(self.files().stat(request).await?.into_inner())
    }

    /// Every entry of a folder.
    pub async fn list(
        &self,
        root: &RootName,
        path: impl AsRef<[u8]>,
    ) -> Result<Vec<Entry>, ClientError> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let (entries, next) = self.list_page(root, path.as_ref(), token).await?;
            all.extend(entries);
            token = next;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Entries of a folder, and the token of the next page: empty at the end. The first page has an
    /// empty token.
    pub async fn list_page(
        &self,
        root: &RootName,
        path: impl AsRef<[u8]>,
        page_token: String,
    ) -> Result<(Vec<Entry>, String), ClientError> {
        let request = ListDirectoryRequest {
            root: root.message(),
            path: path.as_ref().to_vec(),
            page_size: PAGE_ENTRIES,
            page_token,
        };
        let page = self.files().list_directory(request).await?.into_inner();
        Ok((page.entries, page.next_page_token))
    }

    /// The whole content of a file, verified.
    pub async fn read(
        &self,
        root: &RootName,
        path: impl AsRef<[u8]>,
    ) -> Result<Vec<u8>, ClientError> {
        let mut content = Vec::new();
        let keep = |part: &[u8]| content.extend_from_slice(part);
        self.read_parts(root, path, 0, None, keep).await?;
        Ok(content)
    }

    /// Hands a range of a file to `each` in parts of at most 1 MiB, in order; without a length, up
    /// to the file's end. What was handed over counts only once this returns without an error.
    pub async fn read_parts(
        &self,
        root: &RootName,
        path: impl AsRef<[u8]>,
        offset: u64,
        length: Option<u64>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<Entry, ClientError> {
        let mut reading = self.open(root, path, offset, length).await?;
        while let Some(part) = reading.next().await? {
            each(&part);
        }
        Ok(reading.entry)
    }

    /// Begins to read a range of a file; without a length, up to the file's end.
    pub async fn open(
        &self,
        root: &RootName,
        path: impl AsRef<[u8]>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Reading, ClientError> {
        let path = path.as_ref().to_vec();
        let incomplete = ClientError::Incomplete(shown(&path));
        let request = ReadFileRequest { root: root.message(), path, offset, length };
        let mut answers = self.files().read_file(request).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.part) {
            Some(Part::Entry(entry)) => {
                Ok(Reading { answers, entry, hasher: blake3::Hasher::new(), whole: false })
            }
            _ => Err(incomplete),
        }
    }

    /// The versions of a path across all snapshots and now, oldest first.
    pub async fn history(
        &self,
        pool: &str,
        dataset: &str,
        path: impl AsRef<[u8]>,
    ) -> Result<Vec<Version>, ClientError> {
        let request = FileHistoryRequest {
            pool: pool.to_owned(),
            dataset: dataset.to_owned(),
            path: path.as_ref().to_vec(),
        };
        Ok(self.files().file_history(request).await?.into_inner().versions)
    }

    /// Hands every difference between two states of a dataset to `each`, until that fails.
    pub async fn diff<E: From<ClientError>>(
        &self,
        request: DiffRequest,
        mut each: impl FnMut(Difference) -> Result<(), E>,
    ) -> Result<(), E> {
        let answers = self.files().diff(request).await;
        let mut answers = answers.map_err(ClientError::from)?.into_inner();
        while let Some(answer) = answers.message().await.map_err(ClientError::from)? {
            answer.differences.into_iter().try_for_each(&mut each)?;
            if answer.counts.is_some() {
                return Ok(());
            }
        }
        Err(ClientError::Incomplete("the differences".to_owned()).into())
    }

    /// Hands every object whose name matches to `each`, until that fails. Returns how far the
    /// search got.
    pub async fn find<E: From<ClientError>>(
        &self,
        request: FindRequest,
        mut each: impl FnMut(Hit) -> Result<(), E>,
    ) -> Result<FindResult, E> {
        let answers = self.files().find(request).await;
        let mut answers = answers.map_err(ClientError::from)?.into_inner();
        while let Some(answer) = answers.message().await.map_err(ClientError::from)? {
            answer.hits.into_iter().try_for_each(&mut each)?;
            if let Some(result) = answer.result {
                return Ok(result);
            }
        }
        Err(ClientError::Incomplete("what was found".to_owned()).into())
    }
}
