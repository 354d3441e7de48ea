//! One connection, and one request over it from its first byte to its trailer.

use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use latentgate::proto::{
    DecodeRequest, EncodeRequest, EncodeSpec, Source, decode_response::Event, encode_response,
    latents_client::LatentsClient,
};
use tokio::time::{Instant, timeout};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::input::Input;

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
    /// From the call to the trailer, or to the failure.
    pub(crate) took: Duration,
    pub(crate) outcome: Result<Answered, String>,
}

/// A whole answer.
pub(crate) struct Answered {
    pub(crate) source: Source,
    pub(crate) bytes: u64,
    /// From the call to the first bytes of the answer.
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

    /// Sends a decode and reads its answer.
    pub(crate) async fn decode(&self, input: &Input) -> Sample {
        let began = Instant::now();
        let late = Err(format!("no answer in {PATIENCE:?}"));
        let outcome = timeout(PATIENCE, self.answer(input, began)).await.unwrap_or(late);
        Sample { took: began.elapsed(), outcome }
    }

    async fn answer(&self, input: &Input, began: Instant) -> Result<Answered, String> {
        let (mut spec, mut data) = (Some(input.spec.clone()), input.data.clone());
        let messages = std::iter::from_fn(move || {
            let chunk = data.split_to(data.len().min(CHUNK_BYTES));
            (spec.is_some() || !chunk.is_empty()).then(|| DecodeRequest { spec: spec.take(), data: chunk })
        });
        let mut client = self.0.clone();
        let response = client.decode(tokio_stream::iter(messages)).await;
        let mut stream = response.map_err(|status| reason(&status))?.into_inner();
        let (mut length, mut bytes, mut first_byte, mut source) = (None, 0, None, None);
        while let Some(message) = stream.message().await.map_err(|status| reason(&status))? {
            match message.event {
                Some(Event::Header(header)) => length = Some(header.length),
                Some(Event::Chunk(chunk)) => {
                    first_byte.get_or_insert_with(|| began.elapsed());
                    bytes += chunk.len() as u64;
                }
                Some(Event::Trailer(trailer)) => source = Some(trailer.source()),
                _ => {}
            }
        }
        match (source, first_byte) {
            (Some(source), Some(first_byte)) if length == Some(bytes) => Ok(Answered { source, bytes, first_byte }),
            _ => Err("the answer is not whole".to_owned()),
        }
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

/// The server's stable word for a failure, or the code where it has none.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}
