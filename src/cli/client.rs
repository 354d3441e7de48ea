//! A client of the gRPC front.
//!
//! It trusts an answer only when it is whole: the length that the header announces, and the digest that the trailer
//! seals, are checked before anybody sees the bytes.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use bytesize::ByteSize;
use tokio::time::{Instant, timeout};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::request::{Connection, Order, dtype_of};
use crate::{
    proto::{self, latents_client::LatentsClient},
    tensor::{Shape, Tensor},
};

mod exchange;
pub(super) mod failure;

pub(super) use exchange::BlockBar;
use exchange::{Incoming, Outgoing};

/// Flow-control windows: an answer of a few megabytes streams without waiting for window updates.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// One chunk of the protocol in one frame.
const FRAME_BYTES: u32 = 1 << 20;
/// The server's chunks are at most 1 MiB; beyond gRPC's customary limit something is wrong.
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// A loopback or a neighbour answers in milliseconds; across the world in less than a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead peer is noticed within half a minute, while a slow computation may take as long as it takes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than its deadline a server may take to say so in its own words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection. Clones share it.
#[derive(Clone)]
pub(super) struct Client {
    stub: LatentsClient<Channel>,
    server: String,
    timeout: Option<Duration>,
    /// `Bearer TOKEN`.
    authorization: Option<MetadataValue<Ascii>>,
    bar: BlockBar,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Names the request.
    pub(super) key: Bytes,
    /// Where it came from, exactly.
    pub(super) source: proto::Source,
    /// What the bytes are.
    pub(super) header: proto::Header,
    /// The bytes, verified.
    pub(super) data: Bytes,
    /// The server's own clock.
    pub(super) timings: proto::Timings,
    /// A tiny JPEG, if it was wished for and could be made.
    pub(super) preview: Option<Bytes>,
    /// From the first message to the last.
    pub(super) took: Duration,
    /// Whether the server wanted the input, or its digest was enough.
    pub(super) input_sent: bool,
}

// === impl Client ===

impl Client {
    /// Connects, so that a server that is not there is told before anything else happens.
    pub(super) async fn connect(connection: &Connection, bar: BlockBar) -> anyhow::Result<Self> {
        let (channel, server) = channel("--server", &connection.server).await?;
        let stub = LatentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { stub, server, timeout: connection.timeout, authorization: connection.authorization()?, bar })
    }

    /// Latents to pixels. `data` are the bytes that `spec.latents` describes.
    pub(super) async fn decode(
        &self,
        mut spec: proto::DecodeSpec,
        data: Bytes,
        order: Order,
    ) -> anyhow::Result<Answer> {
        spec.digest = digest_if(order, &data);
        spec.wants.get_or_insert_default().progress = self.bar.is_shown();
        let began = Instant::now();
        let (messages, incoming) = self.exchange::<proto::DecodeRequest>(spec, data, order);
        let mut stub = self.stub.clone();
        let answer = async {
            let response = stub.decode(self.request(messages)).await.map_err(|status| self.refused(&status))?;
            incoming.collect(response.into_inner(), began).await
        };
        self.within("decode", answer).await
    }

    /// Pixels to latents. `data` are the bytes that `spec.input` describes.
    pub(super) async fn encode(
        &self,
        mut spec: proto::EncodeSpec,
        data: Bytes,
        order: Order,
    ) -> anyhow::Result<Answer> {
        spec.digest = digest_if(order, &data);
        spec.wants.get_or_insert_default().progress = self.bar.is_shown();
        let began = Instant::now();
        let (messages, incoming) = self.exchange::<proto::EncodeRequest>(spec, data, order);
        let mut stub = self.stub.clone();
        let answer = async {
            let response = stub.encode(self.request(messages)).await.map_err(|status| self.refused(&status))?;
            incoming.collect(response.into_inner(), began).await
        };
        self.within("encode", answer).await
    }

    /// What the server can do.
    pub(super) async fn models(&self) -> anyhow::Result<Vec<proto::Model>> {
        let mut stub = self.stub.clone();
        let models = async {
            let response = stub.list_models(self.request(proto::ListModelsRequest {})).await;
            Ok(response.map_err(|status| self.refused(&status))?.into_inner().models)
        };
        self.within("models", models).await
    }

    fn exchange<M: exchange::RequestMessage>(
        &self,
        spec: M::Spec,
        data: Bytes,
        order: Order,
    ) -> (impl futures_util::Stream<Item = M> + Send + 'static, Incoming<'_>) {
        let (outgoing, go) = Outgoing::<M>::new(spec, data, order);
        (outgoing.messages(), Incoming::new(go, &self.bar, &self.server))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    fn refused(&self, status: &tonic::Status) -> anyhow::Error {
        failure::refused(&self.server, status)
    }

    /// Holds the whole exchange to the deadline: tonic itself watches only the head of a response.
    async fn within<T>(&self, what: &'static str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let outcome = match self.timeout {
            None => work.await,
            Some(limit) => timeout(limit + LAST_WORDS, work).await.unwrap_or_else(|_| Err(failure::late(limit))),
        };
        self.bar.clear();
        outcome.context(what)
    }
}

// === impl Answer ===

impl Answer {
    /// The bytes as a tensor.
    pub(super) fn tensor(&self) -> anyhow::Result<Tensor> {
        tensor_of(&self.header, &self.data)
    }

    /// One line: what came, from where, in which time, under which key.
    pub(super) fn summary(&self) -> String {
        let what = match &self.header.tensor {
            Some(described) if self.header.content_type.starts_with("image/") => match described.shape[..] {
                [_, height, width, _] => format!("{} {width}x{height}", self.header.content_type),
                _ => self.header.content_type.clone(),
            },
            Some(described) => match (dtype_of(described.dtype), Shape::try_from_wire(&described.shape)) {
                (Some(dtype), Ok(shape)) => format!("{dtype} {shape}"),
                _ => self.header.content_type.clone(),
            },
            None => self.header.content_type.clone(),
        };
        let spent = match self.timings {
            proto::Timings { compute_us: 0, .. } => String::new(),
            proto::Timings { compute_us, queue_us, .. } => {
                format!(" (queue {:.1} ms, compute {:.1} ms)", milliseconds(queue_us), milliseconds(compute_us))
            }
        };
        let unsent = if self.input_sent { "" } else { ", input not sent" };
        format!(
            "{}: {what}, {} in {:.1} ms{spent}{unsent}, key {}",
            source_name(self.source),
            ByteSize(self.data.len() as u64).display().iec(),
            self.took.as_secs_f64() * 1e3,
            self.short_key(),
        )
    }

    /// The key's first 16 hexadecimal digits, as the server's log shows it.
    fn short_key(&self) -> String {
        use std::fmt::Write as _;
        self.key.iter().take(8).fold(String::new(), |mut hex, byte| {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// The bytes behind a header as the tensor that it describes.
pub(super) fn tensor_of(header: &proto::Header, data: &Bytes) -> anyhow::Result<Tensor> {
    let described = header.tensor.as_ref().context("the answer says no shape")?;
    let dtype = dtype_of(described.dtype).context("the answer says no dtype that this program knows")?;
    let shape = Shape::try_from_wire(&described.shape).context("the answer's shape")?;
    Tensor::try_new(dtype, shape, data.clone()).context("the answer")
}

/// The word for where an answer came from.
pub(super) const fn source_name(source: proto::Source) -> &'static str {
    match source {
        proto::Source::Unspecified => "unknown",
        proto::Source::Memory => "memory",
        proto::Source::Disk => "disk",
        proto::Source::Shared => "shared",
        proto::Source::Derived => "derived",
        proto::Source::Coalesced => "coalesced",
        proto::Source::Computed => "computed",
    }
}

fn milliseconds(us: u64) -> f64 {
    us as f64 / 1e3
}

fn digest_if(order: Order, data: &[u8]) -> Bytes {
    match order {
        Order::DataAtOnce => Bytes::new(),
        Order::DigestFirst => Bytes::copy_from_slice(blake3::hash(data).as_bytes()),
    }
}

/// Connects to the server that `flag` names, and says its URL.
pub(super) async fn channel(flag: &'static str, server: &str) -> anyhow::Result<(Channel, String)> {
    let server = url(flag, server)?;
    let endpoint = Channel::from_shared(server.clone())
        .with_context(|| format!("{flag} {server} is no URL; wanted http://HOST:PORT"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .tcp_nodelay(true);
    let connected = endpoint.connect().await;
    Ok((connected.map_err(|error| failure::unreachable(flag, &server, &error))?, server))
}

/// The URL of a server, given as one or as `HOST:PORT`.
pub(super) fn url(flag: &str, server: &str) -> anyhow::Result<String> {
    match server.split_once("://") {
        None => Ok(format!("http://{server}")),
        Some(("http", _)) => Ok(server.to_owned()),
        Some((scheme, _)) => bail!("{flag} {server}: {scheme} is not spoken here; wanted http://HOST:PORT"),
    }
}
