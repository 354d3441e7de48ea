//! The origin of every body: an endpoint to latentgate, a web server to the others. It counts what it is asked.
//!
//! On a thread of its own, which sleeps while hits are measured.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use half::f16;
use latentgate::task;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};
use tracing::Span;

use crate::ways::{BODIES, Body};

/// A running origin.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    /// Of each of `BODIES`: what it is, and the whole response.
    answers: [(Bytes, Bytes); BODIES.len()],
    asked: AtomicUsize,
}

impl Origin {
    /// Starts it on a port that the system chooses.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("the origin's port")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { answers: BODIES.map(answer), asked: AtomicUsize::new(0) });
        runtime.block_on(async { task::spawn(Span::none(), accept(listener, shared.clone())).detach() });
        Ok(Self { address, shared, _runtime: runtime })
    }

    /// The bytes of a body.
    pub(crate) fn body(&self, body: Body) -> &Bytes {
        &self.shared.answers[body.place()].0
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

/// A decoder's numbers, of -1..1, and the response that brings them.
fn answer(body: Body) -> (Bytes, Bytes) {
    let value = |_| f16::from_f32(fastrand::f32() * 2.0 - 1.0).to_le_bytes();
    let [n, _, h, w] = body.latents;
    let shape = [n, 3, h * 8, w * 8];
    let bytes: Bytes = (0..shape.iter().product()).flat_map(value).collect::<Vec<u8>>().into();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: tensor/binary\r\nshape: {shape:?}\r\ndtype: float16\r\n\
         cache-control: max-age=86400\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    let response = [head.as_bytes(), &bytes].concat();
    (bytes, response.into())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        // Ends with its connection. A client that breaks off has said so itself.
        task::spawn(Span::none(), async move { drop(serve(stream, &shared).await) }).detach();
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(1 << 20);
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8(buffer.split_to(end).to_vec())?.to_ascii_lowercase();
        let length: usize = header(&head, "content-length").unwrap_or("0").parse()?;
        while buffer.len() < length {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "a request that breaks off");
        }
        buffer.advance(length);
        shared.asked.fetch_add(1, Ordering::Relaxed);
        let path = head.split([' ', '?']).nth(1).and_then(|path| path.strip_prefix('/'));
        let body = BODIES.into_iter().find(|body| path == Some(body.name)).context("no such body")?;
        stream.write_all(&shared.answers[body.place()].1).await?;
    }
}

/// The value of a header in a head of lower case.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}
