//! Sockets: accept, serve HTTP/1.1 and HTTP/2 on one port, with TLS or without, drain. A Unix socket may stand beside the
//! port: the same routes, bound and drain, and never TLS, since what is said there does not leave the machine.
//!
//! Our own hyper server, since tonic's would answer CANCELLED for a passed deadline and stop watching at the response
//! head. Connections are bounded: past the bound, new ones wait in the kernel's backlog.
//!
//! A stop loses nothing that was accepted. First comes a short time in which all goes on, new connections too, but every
//! answer over HTTP/1.1 says that it is its connection's last: a request that was on its way when the stop came finds
//! somebody. Then the sockets close, connections end as their protocols want it, and each lingers (`listen/linger.rs`).

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderValue, Response, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tower::util::MapResponse;

use crate::task;

mod greeting;
mod linger;
pub mod tls;
pub mod unix;

use greeting::{Protocol, greeting};

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
/// The longest a new connection may take to say which protocol it speaks, its TLS handshake included.
const GREETING: Duration = Duration::from_secs(10);
/// Bytes of request headers.
const HEADER_BYTES: u32 = 16 << 10;
/// How long connections are accepted and requests taken after a stop.
const PARTING: Duration = Duration::from_millis(500);
/// After an accept fails (out of descriptors), a pause, or the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One port, perhaps with a Unix socket beside it, and what it serves.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    unix: Option<unix::Socket>,
    router: Router,
    tls: Option<tls::Acceptor>,
    connections: Arc<Semaphore>,
    /// The connections that have not ended.
    open: TaskTracker,
    /// Whether every answer over HTTP/1.1 is its connection's last.
    is_parting: Arc<AtomicBool>,
}

/// What was accepted.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One accepted connection. It ends with its peer, or with the drain that watches it.
struct Connection {
    name: &'static str,
    tls: Option<tls::Acceptor>,
    router: Router,
    is_parting: Arc<AtomicBool>,
    watcher: Watcher,
    /// No greeting is waited for any more.
    closing: CancellationToken,
    /// Given back when the connection ends, however it does.
    _slot: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
}

// === impl Listener ===

impl Listener {
    /// Binds now, so that a taken port is an error before anything is promised.
    pub async fn bind(name: &'static str, address: SocketAddr, max_connections: usize) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let connections = Arc::new(Semaphore::new(max_connections));
        let (router, open, is_parting) = (Router::new(), TaskTracker::new(), Arc::default());
        Ok(Self { name, socket, unix: None, router, tls: None, connections, open, is_parting })
    }

    /// Serves `router`.
    #[must_use]
    pub fn with(self, router: Router) -> Self {
        Self { router, ..self }
    }

    /// Speaks TLS, and nothing else, if there is an acceptor.
    #[must_use]
    pub fn with_tls(self, tls: Option<tls::Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Serves on this socket too, if there is one.
    #[must_use]
    pub fn with_unix(self, unix: Option<unix::Socket>) -> Self {
        Self { unix, ..self }
    }

    /// The bound address: the real port, where 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop` and a little longer, then lets open exchanges finish for at most `grace`.
    pub async fn serve(self, stop: CancellationToken, grace: Duration) {
        let (drain, closing) = (GracefulShutdown::new(), CancellationToken::new());
        self.accept_until(stop.cancelled(), &drain, &closing).await;
        self.is_parting.store(true, Ordering::Relaxed);
        self.open.close();
        let parting = async { drop(timeout(PARTING.min(grace), self.open.wait()).await) };
        self.accept_until(parting, &drain, &closing).await;
        closing.cancel();
        let Self { name, socket, unix, open, .. } = self;
        drop((socket, unix));
        let ended = async {
            drain.shutdown().await;
            open.wait().await;
        };
        if timeout(grace, ended).await.is_err() {
            tracing::warn!(listener = name, ?grace, "requests still open after the grace period are cut");
        }
    }

    async fn accept_until(&self, end: impl Future<Output = ()>, drain: &GracefulShutdown, closing: &CancellationToken) {
        let mut end = std::pin::pin!(end);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut end => return,
                accepted = self.accept() => accepted,
            };
            let Some((stream, slot)) = accepted else { continue };
            let connection = Connection {
                name: self.name,
                tls: self.tls.clone(),
                router: self.router.clone(),
                is_parting: self.is_parting.clone(),
                watcher: drain.watcher(),
                closing: closing.clone(),
                _slot: slot,
                _open: self.open.token(),
            };
            task::spawn(tracing::Span::none(), connection.serve(stream)).detach();
        }
    }

    async fn accept(&self) -> Option<(Stream, OwnedSemaphorePermit)> {
        let slot = self.connections.clone().acquire_owned().await.ok()?;
        match self.next().await {
            Ok(stream) => Some((stream, slot)),
            Err(error) => {
                tracing::warn!(listener = self.name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    /// The next connection of either socket.
    async fn next(&self) -> io::Result<Stream> {
        let Some(unix) = &self.unix else { return self.tcp().await };
        tokio::select! {
            stream = self.tcp() => stream,
            stream = unix.accept() => stream.map(Stream::Unix),
        }
    }

    async fn tcp(&self) -> io::Result<Stream> {
        let (stream, _peer) = self.socket.accept().await?;
        // Without it, one small answer waits 40 ms for the peer's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(listener = self.name, %error, "no TCP_NODELAY");
        }
        Ok(Stream::Tcp(stream))
    }
}

// === impl Connection ===

impl Connection {
    async fn serve(self, stream: Stream) {
        match (stream, self.tls.clone()) {
            (Stream::Unix(stream), _) => self.plain(stream).await,
            (Stream::Tcp(stream), None) => self.plain(stream).await,
            (Stream::Tcp(stream), Some(tls)) => {
                if let Some((protocol, stream)) = self.in_time(tls.greeting(stream)).await {
                    self.converse(protocol, stream).await;
                }
            }
        }
    }

    async fn plain(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        if let Some((protocol, stream)) = self.in_time(greeting(stream)).await {
            self.converse(protocol, stream).await;
        }
    }

    /// What comes of a greeting, if it comes in time and before the end. A peer that does not manage it is turned away:
    /// nobody has to act on that.
    async fn in_time<T>(&self, greeting: impl Future<Output = io::Result<T>>) -> Option<T> {
        let greeted = tokio::select! {
            () = self.closing.cancelled() => return None,
            greeted = timeout(GREETING, greeting) => greeted.unwrap_or_else(|late| Err(late.into())),
        };
        greeted.inspect_err(|error| tracing::debug!(listener = self.name, %error, "no greeting")).ok()
    }

    async fn converse(self, protocol: Protocol, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let (lent, owed) = linger::lend(stream);
        let (name, io, server) = (self.name, TokioIo::new(lent), server(protocol));
        let ended = match protocol {
            Protocol::Http1 => {
                let service = MapResponse::new(self.router, move |answer| parting(answer, &self.is_parting));
                let service = TowerToHyperService::new(service);
                self.watcher.watch(server.serve_connection(io, service).into_owned()).await
            }
            Protocol::Http2 => {
                let service = TowerToHyperService::new(self.router);
                self.watcher.watch(server.serve_connection(io, service).into_owned()).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(listener = name, %error, "connection ended badly");
        }
        owed.linger().await;
    }
}

/// An answer, which says that it is the last of its connection once `is_parting`.
fn parting(mut answer: Response<Body>, is_parting: &AtomicBool) -> Response<Body> {
    if is_parting.load(Ordering::Relaxed) {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// hyper's server for a peer whose protocol is known.
fn server(protocol: Protocol) -> auto::Builder<TokioExecutor> {
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
    match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
    }
}

#[cfg(test)]
mod tests;
