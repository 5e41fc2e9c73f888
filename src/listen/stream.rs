//! A connection's bytes on their way to and from hyper: noted for `activity`, and, where hyper refuses a request by itself
//! (a head that is no HTTP, or too long), with our answer in place of its empty one.

use super::activity::Activity;
use super::refusal::{self, RefusalBody};
use bytes::{Buf, Bytes};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What hyper reads from and writes to.
pub struct Watched<I> {
    io: I,
    activity: Arc<Activity>,
    body: RefusalBody,
    /// What is left of our answer, and how many bytes of hyper's it stands for.
    instead: Option<(Bytes, usize)>,
    /// The client takes nothing of what TLS has kept of our writes.
    flush_blocked: bool,
}

impl<I> Watched<I> {
    /// CloseReason a connection.
    pub fn new(io: I, activity: Arc<Activity>, body: RefusalBody) -> Watched<I> {
        Watched { io, activity, body, instead: None, flush_blocked: false }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.read();
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> Watched<I> {
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.wrote(polled.is_pending());
        polled
    }

    /// Begins an answer of ours if these bytes are a refusal by hyper. Answers of ours never look like one.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.instead.is_none() && self.activity.is_waiting() {
            self.instead = refusal::in_place_of(bytes, self.body).map(|answer| (answer, bytes.len()));
        }
        self.instead.is_some()
    }

    /// Writes the whole of our answer; then hyper hears that its own was written.
    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((answer, stands_for)) = &mut self.instead {
            let polled = Pin::new(&mut self.io).poll_write(context, answer);
            self.activity.wrote(polled.is_pending());
            let written = ready!(polled)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            answer.advance(written);
            if answer.is_empty() {
                let stands_for = *stands_for;
                self.instead = None;
                return Poll::Ready(Ok(stands_for));
            }
        }
        Poll::Ready(Ok(0))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            return self.poll_instead(context);
        }
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.noted(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && self.replaces(only)
        {
            return self.poll_instead(context);
        }
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.noted(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(context);
        // A plain connection has nothing to flush, and says so while writes are blocked.
        if polled.is_pending() || self.flush_blocked {
            self.flush_blocked = polled.is_pending();
            self.activity.wrote(self.flush_blocked);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
