//! Reads: buffered data over data being flushed over the extents, holes as zeros, read-ahead for
//! sequential readers.

use super::extents::visible;
use super::{Contents, segments};
use crate::chunk::ChunkRef;
use crate::fs::FsError;
use crate::fs::inode::ContentState;
use crate::fs::inode::Node;
use crate::fs::inode::by_extent;
use crate::fs::row::{Extent, Inode, Source};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// A piece of the answer.
enum ReadSpan {
    Data(Bytes),
    Zeros(usize),
    Chunk {
        chunk: ChunkRef,
        from: u32,
        len: u32,
    },
    /// The extent has to be read first.
    Unknown {
        extent: u64,
        from: u32,
        to: u32,
    },
}

impl Contents {
    /// Bytes `offset..offset + count`, cut at the file's size, holes as zeros. `row`: a copy of the
    /// node's row. Does not need the node's lock.
    pub async fn read(
        self: &Arc<Self>,
        node: &Arc<Node>,
        row: &Inode,
        offset: u64,
        count: u32,
    ) -> Result<Vec<Bytes>, FsError> {
        let end = row.size.min(offset.saturating_add(u64::from(count)));
        if offset >= end {
            return Ok(Vec::new());
        }
        let (spans, version, ahead) = {
            let mut state = node.content.state();
            let spans = self.gather(&state, row, offset, end);
            (spans, state.version, state.read_ahead.saw(offset, end, row.size))
        };
        if let Some(range) = ahead {
            self.fetch_ahead(node, row, range);
        }
        if spans.iter().all(|s| matches!(s, ReadSpan::Data(_) | ReadSpan::Zeros(_))) {
            return Ok(answer(spans));
        }
        match self.complete(node, row, spans).await {
            // The extents changed under the read, and the chunks that they referred to before may
            // be gone.
            Err(FsError::Corrupt(_)) if node.content.state().version != version => {
                let row = node.row.read().clone();
                let end = end.min(row.size);
                let spans = self.gather(&node.content.state(), &row, offset, end);
                Ok(answer(self.complete(node, &row, spans).await?))
            }
            spans => Ok(answer(spans?)),
        }
    }

    /// Collects the parts of a range that are in memory, without waiting.
    fn gather(&self, state: &ContentState, row: &Inode, offset: u64, end: u64) -> Vec<ReadSpan> {
        let mut spans = Vec::new();
        for (extent, start, len) in by_extent(offset, end.saturating_sub(offset), row.record_bits) {
            state.dirty().overlay(
                extent,
                (start, start + len),
                &mut spans,
                |spans, bytes| spans.push(ReadSpan::Data(bytes)),
                |spans, from, to| {
                    state.flushing().overlay(
                        extent,
                        (from, to),
                        spans,
                        |spans, bytes| spans.push(ReadSpan::Data(bytes)),
                        |spans, from, to| match self.extents.get(row.data, extent) {
                            Some(entry) => self.base(
                                visible(&row.masks, extent, entry.as_ref()),
                                from,
                                to,
                                spans,
                            ),
                            None => spans.push(ReadSpan::Unknown { extent, from, to }),
                        },
                    );
                },
            );
        }
        spans
    }

    /// Bytes `from..to` of an extent.
    fn base(&self, extent: Option<&Arc<Extent>>, from: u32, to: u32, spans: &mut Vec<ReadSpan>) {
        let segments = extent.map_or(&[][..], |r| &r.segments);
        for span in segments::spans(segments, from, to) {
            spans.push(match span {
                segments::Span::Hole(len) => ReadSpan::Zeros(len as usize),
                segments::Span::Part { segment, skip, len } => match &segment.source {
                    Source::Inline(bytes) => {
                        ReadSpan::Data(bytes.slice(skip as usize..(skip + len) as usize))
                    }
                    Source::Chunk { chunk, from } => {
                        let from = from + skip;
                        let cached = self
                            .chunks
                            .cached(&chunk.hash)
                            .filter(|b| b.len() >= (from + len) as usize);
                        cached.map_or(ReadSpan::Chunk { chunk: *chunk, from, len }, |b| {
                            ReadSpan::Data(slice(&b, from, len))
                        })
                    }
                },
            });
        }
    }

    /// Reads the extents and chunks that are not in memory.
    async fn complete(
        &self,
        node: &Node,
        row: &Inode,
        spans: Vec<ReadSpan>,
    ) -> Result<Vec<ReadSpan>, FsError> {
        let unknown = || {
            spans.iter().filter_map(|s| {
                if let ReadSpan::Unknown { extent, .. } = s { Some(*extent) } else { None }
            })
        };
        let mut spans = match (unknown().min(), unknown().max()) {
            (Some(first), Some(last)) => {
                let extents = self.load(node, row, first..=last).await?;
                let mut known = Vec::with_capacity(spans.len());
                for span in spans {
                    match span {
                        ReadSpan::Unknown { extent, from, to } => {
                            let entry = extents.get(&extent).and_then(Option::as_ref);
                            self.base(visible(&row.masks, extent, entry), from, to, &mut known);
                        }
                        other => known.push(other),
                    }
                }
                known
            }
            _ => spans,
        };
        let mut chunks: Vec<ChunkRef> = Vec::new();
        for span in &mut spans {
            let ReadSpan::Chunk { chunk, from, len } = span else { continue };
            if chunks.last() == Some(chunk) {
                continue;
            }
            match self.chunks.part(chunk, *from, *len) {
                Some(bytes) => *span = ReadSpan::Data(bytes),
                None => chunks.push(*chunk),
            }
        }
        if chunks.is_empty() {
            return Ok(spans);
        }
        let data = self.chunks.read(&chunks).await.map_err(FsError::from)?;
        let mut data = chunks.iter().zip(data);
        let mut current: Option<(&ChunkRef, Bytes)> = None;
        for span in &mut spans {
            let ReadSpan::Chunk { chunk, from, len } = span else { continue };
            if current.as_ref().is_none_or(|(at, _)| *at != chunk) {
                current = data.next();
            }
            let bytes =
                current.as_ref().map(|(_, b)| b).filter(|b| b.len() >= (*from + *len) as usize);
            let bytes = bytes.ok_or_else(|| {
                FsError::Corrupt(format!("chunk {} is shorter than its extent says", chunk.hash))
            })?;
            *span = ReadSpan::Data(slice(bytes, *from, *len));
        }
        Ok(spans)
    }

    /// Starts reading a range into the caches. Errors show at the read.
    fn fetch_ahead(self: &Arc<Self>, node: &Arc<Node>, row: &Inode, range: Range<u64>) {
        let (contents, node, row) = (self.clone(), node.clone(), row.clone());
        tokio::spawn(async move {
            let extents = (range.start >> row.record_bits)..=((range.end - 1) >> row.record_bits);
            let Ok(extents) = contents.load(&node, &row, extents).await else { return };
            let chunks: Vec<ChunkRef> = extents
                .iter()
                .filter_map(|(n, entry)| visible(&row.masks, *n, entry.as_ref()))
                .flat_map(|r| &r.segments)
                .filter_map(|s| match &s.source {
                    Source::Chunk { chunk, .. }
                        if contents.chunks.cached(&chunk.hash).is_none() =>
                    {
                        Some(*chunk)
                    }
                    _ => None,
                })
                .collect();
            if !chunks.is_empty() && !contents.chunks.prefetch(chunks).await {
                node.content.state().read_ahead.retreat(range.start);
            }
        });
    }
}

fn slice(bytes: &Bytes, from: u32, len: u32) -> Bytes {
    bytes.slice(from as usize..(from + len) as usize)
}

fn answer(spans: Vec<ReadSpan>) -> Vec<Bytes> {
    let mut out = Vec::with_capacity(spans.len());
    for span in spans {
        match span {
            ReadSpan::Data(bytes) => out.push(bytes),
            ReadSpan::Zeros(mut len) => {
                while len > 0 {
                    let zeros = segments::zeros(len);
                    len -= zeros.len();
                    out.push(zeros);
                }
            }
            ReadSpan::Chunk { .. } | ReadSpan::Unknown { .. } => unreachable!("completed before"),
        }
    }
    out
}
