//! Clients that stop in the middle: no byte of a body comes any more, or none of an answer is taken.
//!
//! Both are looked for at one place each, for every route: [`IdleBody`] around a request's body and
//! [`IdleStream`] around a connection. The time starts anew with every byte, so a slow line is no fault.
//!
//! The other way round, a client that is still sending when it is refused hears why: what it sends is
//! taken for a while and thrown away. Closed at once, its system would drop the answer with the connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client sent nothing for too long")]
pub struct Idle;

/// The wait for one step of the other side.
struct Patience {
    limit: Duration,
    /// There while a step is waited for.
    end: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, end: None }
    }

    /// Ready when the step that `context` waits for takes too long.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let end = self
            .end
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        end.as_mut().poll(context)
    }

    fn step(&mut self) {
        self.end = None;
    }
}

/// A request's body that fails with [`Idle`] when nothing comes for the limit.
pub struct IdleBody<B> {
    inner: B,
    patience: Patience,
}

impl<B> IdleBody<B> {
    /// Wraps a body.
    pub fn new(inner: B, limit: Duration) -> Self {
        Self {
            inner,
            patience: Patience::new(limit),
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for IdleBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                self.patience.step();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.patience.poll_over(context));
                Poll::Ready(Some(Err(Idle.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A connection that ends when the other side takes nothing of what is written for the limit, and is closed
/// when the other side has stopped sending.
pub struct IdleStream<S> {
    inner: S,
    patience: Patience,
    /// While what still comes is thrown away: an end to all of it, and to the wait for the next byte.
    closing: Option<[Pin<Box<Sleep>>; 2]>,
}

/// Longest wait for the next byte of a client that was refused.
const LINGER: Duration = Duration::from_millis(500);

impl<S> IdleStream<S> {
    /// Wraps a connection.
    pub fn new(inner: S, limit: Duration) -> Self {
        Self {
            inner,
            patience: Patience::new(limit),
            closing: None,
        }
    }

    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.patience.step();
            return poll;
        }
        ready!(self.patience.poll_over(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for IdleStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.written(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.written(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
        }
        let limit = this.patience.limit;
        let [end, pause] = this
            .closing
            .get_or_insert_with(|| [limit, LINGER].map(|time| Box::pin(tokio::time::sleep(time))));
        let mut waste = [0; 1 << 13];
        while end.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut waste);
            match Pin::new(&mut this.inner).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    pause.as_mut().reset(Instant::now() + LINGER);
                }
                // The other side has closed too, or is gone.
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(pause.as_mut().poll(context));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body as AnyBody;
    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;
    use tokio_util::io::ReaderStream;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_body_that_stops_fails_after_what_came() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(b"begin").await.unwrap();
        let body = AnyBody::from_stream(ReaderStream::new(near));
        let mut body = IdleBody::new(body, SOON);
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "begin");
        assert!(body.frame().await.unwrap().unwrap_err().is::<Idle>());
    }

    #[tokio::test]
    async fn a_whole_body_is_read_to_its_end() {
        let mut body = IdleBody::new(AnyBody::from("whole"), SOON);
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_ends_the_connection() {
        let (near, _far) = tokio::io::duplex(4);
        let mut near = IdleStream::new(near, SOON);
        let refused = near.write_all(b"more than four").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_is_still_sending_when_it_is_closed_can_go_on() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut near = IdleStream::new(near, Duration::from_secs(60));
        let sending = async move { far.write_all(&[0; 100]).await };
        let (closed, sent) = tokio::join!(near.shutdown(), sending);
        assert!(closed.is_ok() && sent.is_ok());
    }

    #[tokio::test]
    async fn a_silent_client_is_not_waited_for() {
        let (near, _far) = tokio::io::duplex(4);
        let mut near = IdleStream::new(near, Duration::from_secs(600));
        assert!(near.shutdown().await.is_ok());
    }
}
