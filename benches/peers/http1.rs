//! HTTP/1.1 by hand: one kept connection, one request at a time, its answer read into a buffer that stays.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{origin::header, received::Received};

/// About what a socket holds for a reader; more would only leave the processor's cache.
const BUFFER_BYTES: usize = 256 << 10;

/// A connection.
pub(crate) struct Http1 {
    stream: TcpStream,
    /// Head and body.
    request: Bytes,
    buffer: Vec<u8>,
}

impl Http1 {
    pub(crate) async fn connect(address: SocketAddr, request: Bytes) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("no server at {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request, buffer: vec![0; BUFFER_BYTES] })
    }

    pub(crate) async fn ask(&mut self, received: &mut Received) -> anyhow::Result<()> {
        self.stream.write_all(&self.request).await?;
        let mut got = 0;
        let end = loop {
            got += self.read(got, BUFFER_BYTES).await?;
            if let Some(end) = head_end(&self.buffer[..got]) {
                break end;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{head}{}", String::from_utf8_lossy(&self.buffer[end..got]));
        let length: usize = header(&head, "content-length").context("an answer without length")?.parse()?;
        received.take(&self.buffer[end..got]);
        let mut left = length.checked_sub(got - end).context("more came than was announced")?;
        while left > 0 {
            let more = self.read(0, left.min(BUFFER_BYTES)).await?;
            received.take(&self.buffer[..more]);
            left -= more;
        }
        Ok(())
    }

    /// Bytes behind the head of a request.
    pub(crate) fn body_bytes(&self) -> usize {
        self.request.len() - head_end(&self.request).unwrap_or_default()
    }

    async fn read(&mut self, from: usize, to: usize) -> anyhow::Result<usize> {
        let more = self.stream.read(&mut self.buffer[from..to]).await?;
        ensure!(more > 0, "the connection was closed within an answer");
        Ok(more)
    }
}

/// Where the head ends, if it is whole.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}
