//! Bodies that are sent piece by piece. Each holds a place among the downloads, and is written to
//! the audit log when it ends: when all of it was sent, when it failed, or when its caller left.

use crate::admin::auth::Place;
use crate::admin::auth::audit::Audited;
use crate::control::ControlError;
use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body in progress.
pub struct Sending {
    pieces: BoxStream<'static, Result<Bytes, ControlError>>,
    /// Bytes to come; `None` where nobody knows before the end.
    left: Option<u64>,
    log: Option<Audited>,
    _place: Place,
}

impl Sending {
    /// A body of a known length.
    pub fn new(
        pieces: impl Stream<Item = Result<Bytes, ControlError>> + Send + 'static,
        len: u64,
        log: Audited,
        place: Place,
    ) -> Self {
        Self { left: Some(len), ..Self::unbounded(pieces, log, place) }.begun()
    }

    /// A body whose length is known only at the end.
    pub fn unbounded(
        pieces: impl Stream<Item = Result<Bytes, ControlError>> + Send + 'static,
        log: Audited,
        place: Place,
    ) -> Self {
        Self { pieces: Box::pin(pieces), left: None, log: Some(log), _place: place }
    }

    fn begun(mut self) -> Self {
        if self.left == Some(0) {
            self.done();
        }
        self
    }

    fn done(&mut self) {
        if let Some(log) = self.log.take() {
            log.done();
        }
    }
}

impl Stream for Sending {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.pieces.as_mut().poll_next(context));
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                let len = bytes.len() as u64;
                if let Some(log) = &self.log {
                    log.add(len);
                }
                self.left = self.left.map(|left| left.saturating_sub(len));
                // The connection does not ask for the end of a body whose length it knows.
                if self.left == Some(0) {
                    self.done();
                }
                Some(Ok(bytes))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a download broke off");
                if let Some(log) = self.log.take() {
                    log.failed(&error);
                }
                Some(Err(io::Error::other(error)))
            }
            None => {
                self.done();
                None
            }
        })
    }
}

/// Characters of a file's name that are written as they are (RFC 8187 §3.2.1).
const NAME_KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// The Content-Disposition of a download of that name, in both of its forms.
pub fn attachment(name: &[u8]) -> String {
    let plain = |byte: &u8| match byte {
        b'"' | b'\\' | b'/' | b'%' => '_',
        byte if byte.is_ascii_graphic() || *byte == b' ' => char::from(*byte),
        _ => '_',
    };
    let ascii: String = name.iter().map(plain).collect();
    let text = String::from_utf8_lossy(name);
    let encoded = percent_encode(text.as_bytes(), NAME_KEPT);
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_break_out_of_its_header() {
        for (name, header) in [
            (&b"a.txt"[..], "attachment; filename=\"a.txt\"; filename*=UTF-8''a.txt"),
            (
                "grün\".txt".as_bytes(),
                "attachment; filename=\"gr__n_.txt\"; filename*=UTF-8''gr%C3%BCn%22.txt",
            ),
            (
                b"a\r\nSet-Cookie: x",
                "attachment; filename=\"a__Set-Cookie: x\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x",
            ),
            (b"\xff", "attachment; filename=\"_\"; filename*=UTF-8''%EF%BF%BD"),
        ] {
            assert_eq!(attachment(name), header);
        }
    }
}
