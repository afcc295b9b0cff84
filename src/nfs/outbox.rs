//! The replies that leave on a connection.
//!
//! A task that finishes a call puts its reply here and, unless another task is writing, writes it
//! at once: no task has to be woken. Only when the socket is full does the connection's writer task
//! go on. Small replies overtake READ data that has not begun.

use super::budget::Taken;
use super::stream::Stream;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Pieces handed to one writev(2).
const PIECES_MAX: usize = 64;
/// Large messages that are written together, in bytes: a small one may have to wait for them.
const LARGE_ROUND_BYTES: usize = 256 << 10;
/// A message up to this size is small.
pub const SMALL_BYTES: usize = 16 << 10;

/// A reply or call, with its record mark.
#[derive(Debug)]
pub struct Message {
    pub head: Bytes,
    /// READ data, then its padding.
    pub data: Vec<Bytes>,
    /// Bytes given back when the message has left.
    pub taken: Option<Taken>,
}

impl Message {
    pub fn small(head: Bytes) -> Self {
        Self { head, data: Vec::new(), taken: None }
    }

    /// Bytes to send.
    pub fn len(&self) -> usize {
        self.head.len() + self.data.iter().map(Bytes::len).sum::<usize>()
    }
}

#[derive(Debug, Default)]
struct State {
    /// Set while a task is writing, or waits for the socket.
    writing: bool,
    closed: bool,
    small: VecDeque<Message>,
    small_bytes: usize,
    large: VecDeque<Message>,
    /// Taken out of the queues and not written completely; kept here while the socket is full.
    current: Current,
}

/// Pieces being written, in order.
#[derive(Debug, Default)]
struct Current {
    pieces: VecDeque<Bytes>,
    taken: Vec<Taken>,
}

impl Current {
    fn add(&mut self, message: Message) {
        self.pieces.push_back(message.head);
        self.pieces.extend(message.data);
        self.taken.extend(message.taken);
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[derive(Debug)]
pub struct Outbox {
    stream: Arc<Stream>,
    state: Mutex<State>,
    /// Notified when the socket is full: the writer task goes on.
    full: Notify,
    /// Notified when replies were sent.
    room: Notify,
    gone: CancellationToken,
}

impl Outbox {
    pub fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream,
            state: Mutex::default(),
            full: Notify::new(),
            room: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    /// Sends a message, or queues it while another is being written. It is lost if the connection
    /// is.
    pub fn send(&self, message: Message) {
        if self.queue(message) {
            self.write();
        }
    }

    /// Queues a message for [`Outbox::writer`] to send together with those queued in the same
    /// moment.
    pub fn post(&self, message: Message) {
        if self.queue(message) {
            self.full.notify_one();
        }
    }

    /// Returns true if the caller must do the writing.
    fn queue(&self, message: Message) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        // Bytes taken from a budget are bounded by that; the others are counted here.
        if message.taken.is_none() || message.len() <= SMALL_BYTES {
            state.small_bytes += message.len();
            state.small.push_back(message);
        } else {
            state.large.push_back(message);
        }
        !std::mem::replace(&mut state.writing, true)
    }

    /// Bytes of queued small messages.
    pub fn waiting_bytes(&self) -> usize {
        self.state.lock().small_bytes
    }

    /// Waits until fewer than `max` bytes of small messages wait, or the connection is closed. One
    /// waiter at a time.
    pub async fn room(&self, max: usize) {
        loop {
            {
                let state = self.state.lock();
                if state.closed || state.small_bytes < max {
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    /// Waits until everything is sent, or the connection is closed. One waiter at a time, not
    /// together with `room`.
    pub async fn drained(&self) {
        loop {
            {
                let state = self.state.lock();
                if state.closed || !state.writing {
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.small.clear();
        state.large.clear();
        state.small_bytes = 0;
        state.current = Current::default();
        drop(state);
        self.gone.cancel();
        self.room.notify_one();
        self.full.notify_one();
    }

    /// Resolves when the connection is closed: replies are lost from then on.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Takes what goes next: all small messages, then some large ones.
    fn next(&self) -> Option<Current> {
        let mut state = self.state.lock();
        let mut current = std::mem::take(&mut state.current);
        if current.pieces.is_empty() {
            current.taken.clear();
            let relieved = state.small_bytes > 0;
            state.small_bytes = 0;
            for message in state.small.drain(..) {
                current.add(message);
            }
            let mut large_bytes = 0;
            while large_bytes < LARGE_ROUND_BYTES {
                let Some(message) = state.large.pop_front() else { break };
                large_bytes += message.len();
                current.add(message);
            }
            if relieved {
                self.room.notify_one();
            }
        }
        if current.pieces.is_empty() {
            state.writing = false;
            self.room.notify_one();
            return None;
        }
        Some(current)
    }

    /// Writes until nothing is left or the socket is full.
    fn write(&self) {
        while let Some(mut current) = self.next() {
            while !current.pieces.is_empty() {
                let mut slices = [IoSlice::new(&[]); PIECES_MAX];
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(&current.pieces) {
                    *slice = IoSlice::new(piece);
                    count += 1;
                }
                match self.stream.try_write_vectored(slices.get(..count).unwrap_or(&[])) {
                    Ok(written) => current.advance(written),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let mut state = self.state.lock();
                        if !state.closed {
                            state.current = current;
                        }
                        drop(state);
                        self.full.notify_one();
                        return;
                    }
                    Err(_) => {
                        self.close();
                        return;
                    }
                }
            }
        }
    }

    /// Goes on whenever the socket was full. Ends when the connection is closed, or nothing was
    /// sent for `stall`.
    pub async fn writer(&self, stall: Duration) {
        loop {
            self.full.notified().await;
            if self.state.lock().closed {
                return;
            }
            match tokio::time::timeout(stall, self.stream.writable()).await {
                Ok(Ok(())) => self.write(),
                Ok(Err(_)) | Err(_) => return self.close(),
            }
        }
    }
}
