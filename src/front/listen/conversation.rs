//! One connection, from its first request to its end.
//!
//! It ends with its peer, with the server, or by its own bounds: it has been idle for too long, or is too old. Then it is
//! told to go away (GOAWAY, `connection: close`): requests in progress are finished, and whoever still holds on afterwards
//! without one is cut. hyper bounds the head of an HTTP/1.1 request; a head of HTTP/2 that never ends is no request, so its
//! connection is idle.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Limits, greeting::Protocol, served::Served};

/// Receive windows: what a peer may send before it is read. One stream's covers the largest message.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Large frames are the lever for throughput (measured: 0.9 to 2.1 GB/s on loopback).
const FRAME_BYTES: u32 = 1 << 20;
/// What hyper buffers of a response before the socket takes it: a chunk.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Silent connections are asked whether they live, and closed when they do not answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);
/// Connections that were opened together do not end together: their ages differ by so much of `max_age`, up and down.
const JITTER: f64 = 0.1;

/// How many requests of a connection are in progress, and since when there has been none.
#[derive(Debug)]
pub(super) struct Busy {
    began: Instant,
    requests: AtomicUsize,
    /// Milliseconds after `began`; of use while there are no requests.
    idle_since: AtomicU64,
}

/// One request in progress: until its answer's body is dropped.
#[derive(Debug)]
pub(super) struct InProgress(Arc<Busy>);

/// Serves a connection whose protocol is known to its end.
pub(super) async fn converse(
    protocol: Protocol,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    served: Served,
    limits: &Limits,
    stop: &CancellationToken,
) -> hyper::Result<()> {
    let (stream, busy) = (TokioIo::new(stream), served.busy().clone());
    match protocol {
        Protocol::Http1 => bounded(http1(limits).serve_connection(stream, served), &busy, limits, stop).await,
        Protocol::Http2 => bounded(http2(limits).serve_connection(stream, served), &busy, limits, stop).await,
    }
}

async fn bounded<C: GracefulConnection<Error = hyper::Error>>(
    connection: C,
    busy: &Busy,
    limits: &Limits,
    stop: &CancellationToken,
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Whoever stops the server bounds this.
            return connection.await;
        }
        () = busy.is_enough(limits) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => ended,
        () = busy.has_had_its_time(limits) => Ok(()),
    }
}

fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // hyper counts the wait for the next request as the reading of its head.
    let head_time = limits.header_time.min(limits.idle_time);
    builder.timer(TokioTimer::new()).header_read_timeout(head_time).max_header_size(limits.max_header_bytes as usize);
    builder
}

fn http2(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.max_header_bytes)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER);
    builder
}

// === impl Busy ===

impl Busy {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), requests: AtomicUsize::new(0), idle_since: AtomicU64::new(0) })
    }

    pub(super) fn begin(self: &Arc<Self>) -> InProgress {
        self.requests.fetch_add(1, Ordering::AcqRel);
        InProgress(self.clone())
    }

    /// Since when there has been no request in progress.
    fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.requests.load(Ordering::Acquire) == 0;
        is_idle.then(|| self.began + Duration::from_millis(self.idle_since.load(Ordering::Acquire)))
    }

    /// When the connection is to be told to go away.
    async fn is_enough(&self, limits: &Limits) {
        let aged = async {
            match limits.max_age {
                Some(age) => sleep_until(self.began + age.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = aged => {}
            () = self.idle_for(limits.idle_time) => {}
        }
    }

    /// After it was told: when it has nothing to finish any more, or has had the time of the longest request there is.
    async fn has_had_its_time(&self, limits: &Limits) {
        tokio::select! {
            () = sleep(limits.request_time) => {}
            () = async {
                // An answer may be on its way still, and its reader slow: from now on.
                sleep(limits.header_time).await;
                self.idle_for(limits.header_time).await;
            } => {}
        }
    }

    /// When there has been no request for so long. Requests do not wake it: it looks when it could be.
    async fn idle_for(&self, time: Duration) {
        loop {
            let due = self.idle_since().unwrap_or_else(Instant::now) + time;
            sleep_until(due).await;
            if self.idle_since().is_some_and(|since| since + time <= Instant::now()) {
                return;
            }
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let now = self.0.began.elapsed().as_millis() as u64;
        self.0.idle_since.store(now, Ordering::Release);
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}
