//! HTTP/2 with prior knowledge, plain or with gRPC in it: one kept connection, one request at a time.
//!
//! On the `h2` crate itself, so that plain HTTP/2 and gRPC are read by the same code, and a chunk of gRPC is looked at
//! where it lies. Windows and frames are large: with the protocol's own 16 KiB a client pays for every server's answers.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request, StatusCode};
use latentgate::task::{self, Task};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tracing::Span;

use crate::{
    received::{Deframer, Received},
    ways::Place,
};

/// The flow-control windows and the frame size of the program's own client.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// What is asked for over and over.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) head: Request<()>,
    pub(crate) body: Bytes,
    pub(crate) content: Content,
}

/// What an answer's data are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Plain,
    Grpc,
}

/// A connection.
pub(crate) struct Http2 {
    sender: SendRequest<Bytes>,
    pub(crate) asked: Asked,
    _connection: Task<()>,
}

impl Http2 {
    pub(crate) async fn connect(place: &Place, asked: Asked) -> anyhow::Result<Self> {
        match place {
            Place::Tcp(address) => Self::greet(tcp(*address).await?, asked).await,
            Place::Unix(path) => {
                let stream =
                    UnixStream::connect(path).await.with_context(|| format!("no server at {}", path.display()))?;
                Self::greet(stream, asked).await
            }
        }
    }

    async fn greet(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, asked: Asked) -> anyhow::Result<Self> {
        let (sender, connection) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .handshake(stream)
            .await?;
        // How it ends shows at the request that it breaks.
        let connection = task::spawn(Span::none(), async { drop(connection.await) });
        Ok(Self { sender, asked, _connection: connection })
    }

    pub(crate) async fn ask(&mut self, received: &mut Received) -> anyhow::Result<()> {
        let Asked { head, body, content } = &self.asked;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(head.clone(), body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body.clone(), true)?;
        }
        let response = response.await?;
        ensure!(response.status() == StatusCode::OK, "{}", response.status());
        check(*content, response.headers())?;
        let (mut answer, mut deframer) = (response.into_body(), Deframer::default());
        while let Some(data) = answer.data().await {
            let data = data?;
            match content {
                Content::Plain => received.take(&data),
                Content::Grpc => deframer.take(&data, received),
            }
            answer.flow_control().release_capacity(data.len())?;
        }
        if let Some(trailers) = answer.trailers().await? {
            check(*content, &trailers)?;
        }
        Ok(())
    }
}

async fn tcp(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("no server at {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// gRPC says in the head or behind the data what went wrong.
fn check(content: Content, headers: &HeaderMap) -> anyhow::Result<()> {
    let status = headers.get("grpc-status").filter(|_| content == Content::Grpc);
    ensure!(status.is_none_or(|status| status == "0"), "{:?}: {:?}", status, headers.get("grpc-message"));
    Ok(())
}
