//! The first bytes of a connection, which say what protocol its peer speaks.
//!
//! hyper waits for them without a bound, and a connection that says nothing would hold its slot for ever. So they are
//! read here, where the listener bounds it, and hyper gets them again as they came.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What every HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Any other first line: its head has a bound of its own.
    Http1,
    /// The whole preface has come.
    Http2,
}

/// A stream whose first bytes have been read, and are read again.
#[derive(Debug)]
pub(super) struct Greeted<S> {
    said: [u8; PREFACE.len()],
    /// Which of them are still to be read again.
    from: usize,
    to: usize,
    stream: S,
}

/// Waits until it is plain which protocol the peer speaks.
pub(super) async fn greeting<S: AsyncRead + Unpin>(stream: S) -> io::Result<(Protocol, Greeted<S>)> {
    let mut greeted = Greeted::silent(stream);
    while greeted.to < PREFACE.len() {
        match greeted.stream.read(&mut greeted.said[greeted.to..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => greeted.to += read,
        }
        if !PREFACE.starts_with(&greeted.said[..greeted.to]) {
            return Ok((Protocol::Http1, greeted));
        }
    }
    Ok((Protocol::Http2, greeted))
}

// === impl Greeted ===

impl<S> Greeted<S> {
    /// A stream of which nothing has been read.
    pub(super) const fn silent(stream: S) -> Self {
        Self { said: [0; PREFACE.len()], from: 0, to: 0, stream }
    }

    /// The stream, for what it knows beside its bytes.
    pub(super) const fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.from == self.to {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let again = buf.remaining().min(self.to - self.from);
        buf.put_slice(&self.said[self.from..self.from + again]);
        self.from += again;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    /// Without it, hyper would copy every body into one buffer.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    /// The protocol of a client that says `parts`, one after the other, and then nothing for an hour; and what is read of it.
    async fn greeted_by(parts: &[&[u8]]) -> Option<(Protocol, Vec<u8>)> {
        let (mut client, server) = duplex(64);
        let all = parts.concat();
        let client = async {
            for part in parts {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        };
        let (greeted, client) = tokio::join!(timeout(Duration::from_hours(1), greeting(server)), client);
        let (protocol, mut stream) = greeted.ok()?.unwrap();
        let mut read = vec![0; all.len()];
        stream.read_exact(&mut read).await.unwrap();
        drop(client);
        Some((protocol, read))
    }

    #[tokio::test(start_paused = true)]
    async fn a_protocol_is_known_by_its_first_bytes_which_are_read_again() {
        let said = |protocol, bytes: &[u8]| Some((protocol, bytes.to_vec()));
        assert_eq!(greeted_by(&[b"GET / HTTP/1.1\r\n"]).await, said(Protocol::Http1, b"GET / HTTP/1.1\r\n"));
        assert_eq!(greeted_by(&[b"PRI", b"VATE"]).await, said(Protocol::Http1, b"PRIVATE"));
        let settings = [&PREFACE[..], b"\0\0\0\x04\0\0\0\0\0"].concat();
        assert_eq!(greeted_by(&[&settings]).await, said(Protocol::Http2, &settings));
        assert_eq!(greeted_by(&[&settings[..7], &settings[7..]]).await, said(Protocol::Http2, &settings));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_half_a_preface_are_no_protocol() {
        assert_eq!(greeted_by(&[]).await, None);
        assert_eq!(greeted_by(&[b"PRI * HT"]).await, None);
        let (client, server) = duplex(64);
        drop(client);
        assert_eq!(greeting(server).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
