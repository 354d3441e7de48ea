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
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
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

use super::peer::{Peer, Way};
use crate::task;

mod conversation;
mod greeting;
mod linger;
mod served;
pub mod tls;
pub mod unix;

use conversation::converse;
use greeting::{Protocol, greeting};
use served::Served;

/// The longest a new connection may take to say which protocol it speaks, its TLS handshake included.
const GREETING: Duration = Duration::from_secs(10);
/// How long connections are accepted and requests taken after a stop.
const PARTING: Duration = Duration::from_millis(500);
/// After an accept fails (out of descriptors), a pause, or the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds on a port's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at a time; more wait in the kernel.
    pub max_connections: usize,
    /// Requests of one HTTP/2 connection at a time.
    pub max_streams: u32,
    /// Bytes of a request's head.
    pub max_header_bytes: u32,
    /// The longest the head of an HTTP/1.1 request may take, the wait for it included.
    pub header_time: Duration,
    /// The longest a connection may be open without a request in progress.
    pub idle_time: Duration,
    /// From about which age on a connection is told to go away.
    pub max_age: Option<Duration>,
    /// The longest a request may take; a connection that was told to go away is cut after that.
    pub request_time: Duration,
}

/// One port, perhaps with a Unix socket beside it, and what it serves.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    unix: Option<unix::Socket>,
    router: Router,
    tls: Option<tls::Acceptor>,
    limits: Arc<Limits>,
    connections: Arc<Semaphore>,
    /// The connections that have not ended.
    open: TaskTracker,
    /// Whether every answer over HTTP/1.1 is its connection's last.
    is_parting: Arc<AtomicBool>,
}

/// What was accepted.
enum Stream {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

/// One accepted connection. It ends with its peer, or with the drain that watches it.
struct Connection {
    name: &'static str,
    tls: Option<tls::Acceptor>,
    router: Router,
    limits: Arc<Limits>,
    is_parting: Arc<AtomicBool>,
    /// No greeting is waited for any more, and what is in progress is the last.
    closing: CancellationToken,
    /// Given back when the connection ends, however it does.
    _slot: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
}

// === impl Listener ===

impl Listener {
    /// Binds now, so that a taken port is an error before anything is promised.
    pub async fn bind(name: &'static str, address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let connections = Arc::new(Semaphore::new(limits.max_connections));
        let (router, open, is_parting) = (Router::new(), TaskTracker::new(), Arc::default());
        let limits = Arc::new(limits);
        Ok(Self { name, socket, unix: None, router, tls: None, limits, connections, open, is_parting })
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
        let closing = CancellationToken::new();
        self.accept_until(stop.cancelled(), &closing).await;
        self.is_parting.store(true, Ordering::Relaxed);
        self.open.close();
        let parting = async { drop(timeout(PARTING.min(grace), self.open.wait()).await) };
        self.accept_until(parting, &closing).await;
        closing.cancel();
        let Self { name, socket, unix, open, .. } = self;
        drop((socket, unix));
        if timeout(grace, open.wait()).await.is_err() {
            tracing::warn!(listener = name, ?grace, "requests still open after the grace period are cut");
        }
    }

    async fn accept_until(&self, end: impl Future<Output = ()>, closing: &CancellationToken) {
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
                limits: self.limits.clone(),
                is_parting: self.is_parting.clone(),
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
        let (stream, peer) = self.socket.accept().await?;
        // Without it, one small answer waits 40 ms for the peer's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(listener = self.name, %error, "no TCP_NODELAY");
        }
        Ok(Stream::Tcp(stream, peer.ip()))
    }
}

// === impl Connection ===

impl Connection {
    async fn serve(self, stream: Stream) {
        match (stream, self.tls.clone()) {
            (Stream::Unix(stream), _) => self.plain(stream, Way::Unix).await,
            (Stream::Tcp(stream, address), None) => self.plain(stream, Way::Tcp(address)).await,
            (Stream::Tcp(stream, address), Some(tls)) => {
                if let Some((protocol, stream)) = self.in_time(tls.greeting(stream)).await {
                    let peer = Peer { way: Way::Tcp(address), names: tls::names(stream.get_ref()) };
                    self.converse(protocol, stream, peer).await;
                }
            }
        }
    }

    async fn plain(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, way: Way) {
        if let Some((protocol, stream)) = self.in_time(greeting(stream)).await {
            self.converse(protocol, stream, Peer { way, names: Vec::new() }).await;
        }
    }

    /// What comes of a greeting, if it comes in time and before the end. A peer that does not manage it is turned away:
    /// nobody has to act on that.
    async fn in_time<T>(&self, greeting: impl Future<Output = io::Result<T>>) -> Option<T> {
        let within = GREETING.min(self.limits.header_time);
        let greeted = tokio::select! {
            () = self.closing.cancelled() => return None,
            greeted = timeout(within, greeting) => greeted.unwrap_or_else(|late| Err(late.into())),
        };
        greeted.inspect_err(|error| tracing::debug!(listener = self.name, %error, "no greeting")).ok()
    }

    async fn converse(self, protocol: Protocol, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, peer: Peer) {
        let (lent, owed) = linger::lend(stream);
        // HTTP/2 has a better word for it: GOAWAY.
        let is_parting = (protocol == Protocol::Http1).then_some(self.is_parting);
        let served = Served::new(self.router, peer, is_parting);
        if let Err(error) = converse(protocol, lent, served, &self.limits, &self.closing).await {
            tracing::debug!(listener = self.name, %error, "connection ended badly");
        }
        owed.linger().await;
    }
}

#[cfg(test)]
mod tests;
