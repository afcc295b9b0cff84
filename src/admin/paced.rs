//! Clients have to take what they asked for at some speed: one that takes nothing, or a byte now
//! and then, would hold a download's place for ever.
//!
//! [`Paced`] is a connection. The streams of HTTP/2 share one, and each of them can stall while the
//! others go on: [`PacedBody`] is the body of one answer.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::task::AbortOnDropHandle;

/// While the client keeps a write waiting, it has to take this much …
const BYTES_MIN: usize = 64 << 10;
/// … in this time.
const WINDOW: Duration = Duration::from_secs(60);

/// A stream that fails when its peer reads too slowly.
pub struct Paced<S> {
    stream: Pin<Box<S>>,
    /// The end of the window, once a write has had to wait; with the bytes taken in it.
    window: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Paced<S> {
    pub fn new(stream: S) -> Self {
        Self { stream: Box::pin(stream), window: None }
    }

    /// Counts the outcome of a write of `len` bytes.
    fn after(
        &mut self,
        context: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        match wrote {
            // The client keeps up.
            Poll::Ready(Ok(count)) if count == len => self.window = None,
            Poll::Ready(Ok(count)) => {
                let (_, taken) = self.window.get_or_insert_with(begin);
                *taken += count;
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let (end, taken) = self.window.get_or_insert_with(begin);
                while end.as_mut().poll(context).is_ready() {
                    if *taken < BYTES_MIN {
                        let why = "the client takes the answer too slowly";
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
                    }
                    end.as_mut().reset(Instant::now() + WINDOW);
                    *taken = 0;
                }
            }
        }
        wrote
    }
}

fn begin() -> (Pin<Box<Sleep>>, usize) {
    (Box::pin(sleep(WINDOW)), 0)
}

impl<S: AsyncRead> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl<S: AsyncWrite> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = self.stream.as_mut().poll_write(context, bytes);
        self.after(context, wrote, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = self.stream.as_mut().poll_write_vectored(context, slices);
        let len = slices.iter().map(|slice| slice.len()).sum();
        self.after(context, wrote, len)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

/// A client of HTTP/2 has to take the next frame of an answer in this time. It is longer than that
/// of a connection, since clients tell what they have taken only when it is half of what they let
/// the server send ahead: up to several MiB.
const STREAM_WINDOW: Duration = Duration::from_secs(300);

/// The body of an answer, in frames of at most [`BYTES_MIN`]. If the client does not take the next
/// frame within [`STREAM_WINDOW`], the body ends and frees what it holds, such as a download's
/// place; the stream itself stays until its connection ends. Time in which the body has nothing to
/// give does not count.
pub struct PacedBody<B> {
    shared: Arc<Mutex<Shared<B>>>,
    /// The rest of a frame that was cut.
    rest: Bytes,
    _watching: AbortOnDropHandle<()>,
}

struct Shared<B> {
    /// `None`: it was ended.
    body: Option<B>,
    /// Since when the client has had a frame, and has not asked for the next one.
    given: Option<Instant>,
}

impl<B: Send + 'static> PacedBody<B> {
    pub fn new(body: B) -> Self {
        let given = Some(Instant::now());
        let shared = Arc::new(Mutex::new(Shared { body: Some(body), given }));
        let watching = tokio::spawn(end_stalled(shared.clone()));
        Self { shared, rest: Bytes::new(), _watching: AbortOnDropHandle::new(watching) }
    }
}

/// Ends a body whose client does not take it.
async fn end_stalled<B>(shared: Arc<Mutex<Shared<B>>>) {
    loop {
        let since = shared.lock().given.unwrap_or_else(Instant::now);
        tokio::time::sleep_until(since + STREAM_WINDOW).await;
        let stalled = {
            let mut shared = shared.lock();
            match shared.given == Some(since) {
                true => shared.body.take(),
                false => continue,
            }
        };
        // Dropped outside of the lock.
        drop(stalled);
        tracing::debug!("an answer was ended: its client did not take it");
        return;
    }
}

impl<B: Body<Data = Bytes, Error = axum::Error> + Unpin> Body for PacedBody<B> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let mut shared = this.shared.lock();
        let Some(body) = &mut shared.body else {
            let why = "the client takes the answer too slowly";
            return Poll::Ready(Some(Err(axum::Error::new(why))));
        };
        let next = match this.rest.is_empty() {
            true => Pin::new(body).poll_frame(context),
            false => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.rest))))),
        };
        shared.given = next.is_ready().then(Instant::now);
        next.map_ok(|frame| match frame.into_data() {
            Ok(mut data) => {
                this.rest = data.split_off(data.len().min(BYTES_MIN));
                Frame::data(data)
            }
            Err(other) => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.shared.lock().body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.shared.lock().body.as_ref().map(Body::size_hint).unwrap_or_default();
        match hint.exact() {
            Some(left) => SizeHint::with_exact(left + self.rest.len() as u64),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body as AnyBody;
    use futures::stream;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A reader of this many bytes a second, from a writer that is as fast as it can be.
    async fn written(a_second: usize) -> io::Result<()> {
        let (near, mut far) = tokio::io::duplex(1000);
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; a_second];
            while far.read_exact(&mut buffer).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let mut near = Paced::new(near);
        let wrote = near.write_all(&vec![0; 300_000]).await;
        drop(near);
        reading.await.unwrap();
        wrote
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_has_to_keep_some_speed() {
        assert!(written(2000).await.is_ok());
        assert_eq!(written(500).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_between_answers_is_none() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut near = Paced::new(near);
        for _ in 0..3 {
            let reading = async { far.read_exact(&mut [0; 5000]).await.map(drop) };
            let (wrote, read) = tokio::join!(near.write_all(&[0; 5000]), reading);
            assert!(wrote.is_ok() && read.is_ok());
            sleep(2 * WINDOW).await;
        }
    }

    async fn frame<B: Body + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
    }

    /// Stands for what an answer holds, to tell when it is dropped.
    struct DropFlag(Arc<AtomicBool>);

    impl Drop for DropFlag {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }

    /// Answers without an end; that to `/stalled` holds the place.
    async fn serve(connection: tokio::io::DuplexStream, place: DropFlag) {
        let place = Mutex::new(Some(place));
        let service = service_fn(move |request: Request<Incoming>| {
            let held = place.lock().take_if(|_| request.uri().path() == "/stalled");
            let pieces = stream::repeat_with(move || {
                let _held = &held;
                Ok::<_, io::Error>(Bytes::from(vec![0; 1 << 20]))
            });
            let body = AnyBody::new(PacedBody::new(AnyBody::from_stream(pieces)));
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(TokioIo::new(connection), service).await.ok();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stalls_ends_while_another_one_goes_on() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let is_held = Arc::new(AtomicBool::new(true));
        tokio::spawn(serve(near, DropFlag(is_held.clone())));
        let connected =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(far));
        let (mut client, connection) = connected.await.unwrap();
        tokio::spawn(connection);
        let get = |path: &str| {
            Request::get(format!("http://localhost{path}")).body(AnyBody::empty()).unwrap()
        };
        let stalled = client.send_request(get("/stalled")).await.unwrap();
        let mut taken = client.send_request(get("/taken")).await.unwrap().into_body();
        for step in 0..80 {
            sleep(Duration::from_secs(10)).await;
            for _ in 0..16 {
                frame(&mut taken).await.unwrap().unwrap();
            }
            assert!(step > 28 || is_held.load(Ordering::Relaxed), "ended at step {step}");
        }
        assert!(!is_held.load(Ordering::Relaxed), "it still holds its place");
        drop(stalled);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_nothing_to_give_is_not_ended() {
        let late = async {
            sleep(3 * STREAM_WINDOW).await;
            Ok::<_, io::Error>(Bytes::from_static(b"late"))
        };
        let mut body = PacedBody::new(AnyBody::from_stream(stream::once(Box::pin(late))));
        let data = frame(&mut body).await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(data, "late");
        sleep(2 * STREAM_WINDOW).await;
        assert!(frame(&mut body).await.unwrap().is_err(), "now it was the client");
    }

    #[tokio::test]
    async fn large_frames_are_cut() {
        let whole = Bytes::from((0..200_000_u32).map(|n| (n / 3) as u8).collect::<Vec<_>>());
        let mut body = PacedBody::new(AnyBody::from(whole.clone()));
        let (mut seen, mut left) = (Vec::new(), whole.len() as u64);
        while left > 0 {
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(left), false));
            let data = frame(&mut body).await.unwrap().unwrap().into_data().unwrap();
            assert!(!data.is_empty() && data.len() <= BYTES_MIN);
            left -= data.len() as u64;
            seen.extend_from_slice(&data);
        }
        assert_eq!(seen, whole);
        assert!(body.is_end_stream() && frame(&mut body).await.is_none());
    }
}
