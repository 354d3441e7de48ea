//! The end of a connection, without a reset.
//!
//! A socket that is closed while bytes from its peer lie unread in it answers with a reset, and the reset takes along what
//! the peer has not received yet: the tail of an answer. HTTP/2 clients send window updates and pings at any time, so that
//! happens to the last answers before a drain. Here the stream comes back from hyper, is told to send its end, and is read
//! until the peer's own end, within bounds.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    sync::oneshot,
    time::timeout,
};

/// The longest a peer is waited for that has been told the end: some round trips, and one retransmission.
const LINGER: Duration = Duration::from_secs(2);
/// The most that is read and thrown away.
const LINGER_BYTES: usize = 1 << 20;

/// A stream that is handed back when whoever was given it drops it.
pub(super) struct Lent<S: AsyncRead + AsyncWrite + Unpin> {
    /// Gone only within `drop`.
    stream: Option<S>,
    back: Option<oneshot::Sender<S>>,
}

/// A lent stream, to be waited for.
pub(super) struct Owed<S>(oneshot::Receiver<S>);

pub(super) fn lend<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> (Lent<S>, Owed<S>) {
    let (back, owed) = oneshot::channel();
    (Lent { stream: Some(stream), back: Some(back) }, Owed(owed))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Owed<S> {
    /// Ends the stream once it is back.
    pub(super) async fn linger(self) {
        let Ok(mut stream) = self.0.await else { return };
        let ending = async {
            // hyper has said it already where it ended well.
            let _ = stream.shutdown().await;
            let (mut thrown, mut buffer) = (0, [0; 4096]);
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                thrown += read;
                if thrown > LINGER_BYTES {
                    return;
                }
            }
        };
        drop(timeout(LINGER, ending).await);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lent<S> {
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut S>> {
        self.get_mut().stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Drop for Lent<S> {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Nobody waits for it: it is closed here.
            drop(back.send(stream));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Lent<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, bufs)
    }

    /// Without it, hyper would copy every body into one buffer.
    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(S::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}
