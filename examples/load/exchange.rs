//! One connection, and one request over it from its first byte to its trailer.

use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use latentgate::proto::{
    DecodeRequest, DecodeSpec, EncodeRequest, EncodeSpec, Source, decode_response::Event, encode_response,
    latents_client::LatentsClient,
};
use tokio::time::{Instant, timeout};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::input::{Input, Spec};

/// The flow-control windows and the frame size of the program's own client.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// The protocol's chunks.
const CHUNK_BYTES: usize = 1 << 20;
/// No request takes this long on a machine that is worth measuring.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection.
#[derive(Clone)]
pub(crate) struct Client(LatentsClient<Channel>);

/// What came of one request.
pub(crate) struct Sample {
    /// From the moment it was to be sent to the trailer, or to the failure.
    pub(crate) took: Duration,
    pub(crate) outcome: Result<Answered, String>,
}

/// A whole answer.
pub(crate) struct Answered {
    pub(crate) source: Source,
    pub(crate) bytes: u64,
    /// From the same moment to the first bytes of the answer.
    pub(crate) first_byte: Duration,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let endpoint = Channel::from_shared(url.to_owned())?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.with_context(|| format!("no server at {url}"))?;
        Ok(Self(LatentsClient::new(channel)))
    }

    /// Sends a request, which was to be sent at `due`, and reads its answer.
    pub(crate) async fn ask(&self, input: &Input, due: Instant) -> Sample {
        let late = Err(format!("no answer in {PATIENCE:?}"));
        let answer = async {
            match &input.spec {
                Spec::Decode(spec) => self.decode(spec.clone(), input.data.clone(), due).await,
                Spec::Encode(spec) => self.answer_encode(spec.clone(), input.data.clone(), due).await,
            }
        };
        let outcome = timeout(PATIENCE, answer).await.unwrap_or(late);
        Sample { took: due.elapsed(), outcome }
    }

    async fn decode(&self, spec: DecodeSpec, data: Bytes, due: Instant) -> Result<Answered, String> {
        let messages = in_chunks(data).map(move |(is_first, data)| {
            let spec = is_first.then(|| spec.clone());
            DecodeRequest { spec, data }
        });
        let response = self.0.clone().decode(tokio_stream::iter(messages)).await;
        let mut stream = response.map_err(|status| reason(&status))?.into_inner();
        let mut reading = Reading::new(due);
        while let Some(message) = stream.message().await.map_err(|status| reason(&status))? {
            match message.event {
                Some(Event::Header(header)) => reading.length = Some(header.length),
                Some(Event::Chunk(chunk)) => reading.chunk(&chunk),
                Some(Event::Trailer(trailer)) => reading.source = Some(trailer.source()),
                _ => {}
            }
        }
        reading.whole()
    }

    async fn answer_encode(&self, spec: EncodeSpec, data: Bytes, due: Instant) -> Result<Answered, String> {
        let messages = in_chunks(data).map(move |(is_first, data)| {
            let spec = is_first.then(|| spec.clone());
            EncodeRequest { spec, data }
        });
        let response = self.0.clone().encode(tokio_stream::iter(messages)).await;
        let mut stream = response.map_err(|status| reason(&status))?.into_inner();
        let mut reading = Reading::new(due);
        while let Some(message) = stream.message().await.map_err(|status| reason(&status))? {
            match message.event {
                Some(encode_response::Event::Header(header)) => reading.length = Some(header.length),
                Some(encode_response::Event::Chunk(chunk)) => reading.chunk(&chunk),
                Some(encode_response::Event::Trailer(trailer)) => reading.source = Some(trailer.source()),
                _ => {}
            }
        }
        reading.whole()
    }

    /// Sends an encode and answers its bytes: the latents that the decodes are made of.
    pub(crate) async fn encode(&self, spec: EncodeSpec, data: Bytes) -> anyhow::Result<Bytes> {
        let request = EncodeRequest { spec: Some(spec), data };
        let mut stream = self.0.clone().encode(tokio_stream::iter([request])).await?.into_inner();
        let mut bytes = BytesMut::new();
        while let Some(message) = stream.message().await? {
            if let Some(encode_response::Event::Chunk(chunk)) = message.event {
                bytes.extend_from_slice(&chunk);
            }
        }
        Ok(bytes.freeze())
    }
}

/// An answer, as far as it has come.
struct Reading {
    due: Instant,
    length: Option<u64>,
    bytes: u64,
    first_byte: Option<Duration>,
    source: Option<Source>,
}

impl Reading {
    const fn new(due: Instant) -> Self {
        Self { due, length: None, bytes: 0, first_byte: None, source: None }
    }

    fn chunk(&mut self, chunk: &Bytes) {
        self.first_byte.get_or_insert_with(|| self.due.elapsed());
        self.bytes += chunk.len() as u64;
    }

    fn whole(self) -> Result<Answered, String> {
        let Self { length, bytes, first_byte, source, .. } = self;
        match (source, first_byte) {
            (Some(source), Some(first_byte)) if length == Some(bytes) => Ok(Answered { source, bytes, first_byte }),
            _ => Err("the answer is not whole".to_owned()),
        }
    }
}

/// `data` in messages, of which the first is there even if there are no data.
fn in_chunks(mut data: Bytes) -> impl Iterator<Item = (bool, Bytes)> + Send + 'static {
    let mut is_first = true;
    std::iter::from_fn(move || {
        let chunk = data.split_to(data.len().min(CHUNK_BYTES));
        let was_first = std::mem::take(&mut is_first);
        (was_first || !chunk.is_empty()).then_some((was_first, chunk))
    })
}

/// The server's stable word for a failure, or the code where it has none.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}
