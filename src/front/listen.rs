//! Sockets: accept, serve HTTP/1.1 and HTTP/2 on one port, drain.
//!
//! Our own hyper server, since tonic's would answer CANCELLED for a passed deadline and stop watching at the response
//! head. Connections are bounded: past the bound, new ones wait in the kernel's backlog.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::task;

/// Receive windows: what a peer may send before it is read. One stream's covers the largest message.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Large frames are the lever for throughput (measured: 0.9 to 2.1 GB/s on loopback).
const FRAME_BYTES: u32 = 1 << 20;
/// What hyper buffers of a response before the socket takes it: a chunk.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Streams of one connection at a time.
const STREAMS: u32 = 256;
/// Silent connections are asked whether they live, and closed when they do not answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);
/// The longest a new connection may take to say which protocol it speaks, and how often a half-said one is looked at.
const GREETING: Duration = Duration::from_secs(10);
const GREETING_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of request headers.
const HEADER_BYTES: u32 = 16 << 10;
/// After an accept fails (out of descriptors), a pause, or the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One listening socket and what it serves.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    router: Router,
    connections: Arc<Semaphore>,
}

impl Listener {
    /// Binds now, so that a taken port is an error before anything is promised.
    pub async fn bind(name: &'static str, address: SocketAddr, max_connections: usize) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { name, socket, router: Router::new(), connections: Arc::new(Semaphore::new(max_connections)) })
    }

    /// Serves `router`.
    #[must_use]
    pub fn with(self, router: Router) -> Self {
        Self { router, ..self }
    }

    /// The bound address: the real port, where 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop`, then lets open exchanges finish for at most `grace`.
    pub async fn serve(self, stop: CancellationToken, grace: Duration) {
        let drain = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            let Some((stream, slot)) = accepted else { continue };
            let service = TowerToHyperService::new(self.router.clone());
            let (name, watcher, stop) = (self.name, drain.watcher(), stop.clone());
            // The connection ends with its peer, or with the drain that watches it.
            task::spawn(tracing::Span::none(), async move {
                let _slot = slot;
                let spoke = tokio::select! {
                    () = stop.cancelled() => false,
                    spoke = timeout(GREETING, greeting(&stream)) => spoke.is_ok_and(|read| read.is_ok()),
                };
                if !spoke {
                    return;
                }
                let connection = server().serve_connection(TokioIo::new(stream), service).into_owned();
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(listener = name, %error, "connection ended badly");
                }
            })
            .detach();
        }
        drop(self.socket);
        if timeout(grace, drain.shutdown()).await.is_err() {
            tracing::warn!(listener = self.name, ?grace, "requests still open after the grace period are cut");
        }
    }

    async fn accept(&self) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let slot = self.connections.clone().acquire_owned().await.ok()?;
        match self.socket.accept().await {
            Ok((stream, _peer)) => {
                // Without it, one small answer waits 40 ms for the peer's delayed acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(listener = self.name, %error, "no TCP_NODELAY");
                }
                Some((stream, slot))
            }
            Err(error) => {
                tracing::warn!(listener = self.name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

/// Waits until it is plain which protocol the peer speaks: hyper waits for that without a bound, and a connection that
/// says nothing would hold its slot for ever.
async fn greeting(stream: &TcpStream) -> io::Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut seen = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut seen).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Another first line is HTTP/1.1's, and its head has a bound of its own.
        if read == seen.len() || !PREFACE.starts_with(&seen[..read]) {
            return Ok(());
        }
        // Bytes that were seen stay readable, so there is nothing to wait for but time.
        tokio::time::sleep(GREETING_PAUSE).await;
    }
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(KEEPALIVE);
    builder
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Whether the server side knows the protocol of a client that has sent `bytes`, within a moment.
    async fn is_greeted_by(bytes: &[u8]) -> Option<bool> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(bytes).await.unwrap();
        timeout(Duration::from_millis(500), greeting(&server)).await.ok().map(|read| read.is_ok())
    }

    #[tokio::test]
    async fn a_protocol_is_known_by_its_first_bytes_and_silence_is_none() {
        assert_eq!(is_greeted_by(b"GET / HTTP/1.1\r\n").await, Some(true));
        assert_eq!(is_greeted_by(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, Some(true));
        assert_eq!(is_greeted_by(b"PRIVATE").await, Some(true));
        assert_eq!(is_greeted_by(b"PRI * HT").await, None);
        assert_eq!(is_greeted_by(b"").await, None);
    }
}
