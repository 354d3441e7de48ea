//! The real client, and what it got.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use bytes::Bytes;
use latentgate::proto::{
    self, DecodeRequest, DecodeResponse, DecodeSpec, Dtype, EncodeRequest, EncodeSpec, Output, TensorSpec,
    decode_response::Event, encode_response, latents_client::LatentsClient,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::PATIENCE;

/// A connection of its own.
#[derive(Clone)]
pub struct Client {
    pub grpc: LatentsClient<Channel>,
    pub channel: Channel,
}

/// Everything a response stream said.
#[derive(Clone, Default)]
pub struct Answer {
    pub needed_data: bool,
    pub accepted: proto::Accepted,
    pub progress: Vec<proto::Progress>,
    pub preview: Option<proto::Preview>,
    pub header: proto::Header,
    pub chunks: Vec<Bytes>,
    pub trailer: proto::Trailer,
}

impl Answer {
    pub fn bytes(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    pub fn source(&self) -> proto::Source {
        proto::Source::try_from(self.trailer.source).unwrap()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::NeedData(_) => self.needed_data = true,
            Event::Accepted(accepted) => self.accepted = accepted,
            Event::Progress(progress) => self.progress.push(progress),
            Event::Preview(preview) => self.preview = Some(preview),
            Event::Header(header) => self.header = header,
            Event::Chunk(chunk) => self.chunks.push(chunk),
            Event::Trailer(trailer) => self.trailer = trailer,
        }
    }

    /// Checks what must hold of every whole answer.
    fn judged(self) -> Self {
        let bytes = self.bytes();
        assert_eq!(bytes.len() as u64, self.header.length);
        assert_eq!(self.trailer.digest, blake3::hash(&bytes).as_bytes().as_slice());
        assert!(self.chunks.iter().all(|chunk| (1..=1 << 20).contains(&chunk.len())));
        self
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::connect_to(format!("http://{address}")).await
    }

    /// By the names that gRPC has for servers: `http://HOST:PORT`, `unix:PATH`.
    pub async fn connect_to(name: String) -> Self {
        let endpoint = Endpoint::from_shared(name).unwrap();
        let channel = endpoint.connect().await.expect("the data port answers");
        Self { grpc: LatentsClient::new(channel.clone()), channel }
    }

    /// Opens a decode stream with these messages; half-closes after the last.
    pub async fn open_decode(
        &self,
        messages: impl Stream<Item = DecodeRequest> + Send + 'static,
        timeout: Option<Duration>,
    ) -> Result<Streaming<DecodeResponse>, Status> {
        let mut request = Request::new(messages);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        Ok(self.grpc.clone().decode(request).await?.into_inner())
    }

    /// A whole decode, the way a simple client does it: one message.
    pub async fn decode(&self, spec: DecodeSpec, data: impl Into<Bytes>) -> Result<Answer, Status> {
        self.decode_messages(vec![DecodeRequest { spec: Some(spec), data: data.into() }]).await
    }

    pub async fn decode_messages(&self, messages: Vec<DecodeRequest>) -> Result<Answer, Status> {
        let work = async {
            let stream = self.open_decode(tokio_stream::iter(messages), None).await?;
            collect(stream).await
        };
        tokio::time::timeout(PATIENCE, work).await.expect("an answer in time")
    }

    pub async fn encode(&self, spec: EncodeSpec, data: impl Into<Bytes>) -> Result<Answer, Status> {
        let message = EncodeRequest { spec: Some(spec), data: data.into() };
        let work = async {
            let stream = self.grpc.clone().encode(tokio_stream::iter([message])).await?.into_inner();
            let stream = stream.map(|response| Ok(DecodeResponse { event: response?.event.map(decoded) }));
            collect(stream).await
        };
        tokio::time::timeout(PATIENCE, work).await.expect("an answer in time")
    }
}

/// Encode's events are decode's, under the same numbers.
fn decoded(event: encode_response::Event) -> Event {
    match event {
        encode_response::Event::NeedData(it) => Event::NeedData(it),
        encode_response::Event::Accepted(it) => Event::Accepted(it),
        encode_response::Event::Progress(it) => Event::Progress(it),
        encode_response::Event::Header(it) => Event::Header(it),
        encode_response::Event::Chunk(it) => Event::Chunk(it),
        encode_response::Event::Trailer(it) => Event::Trailer(it),
    }
}

/// Reads a response stream to its end.
pub async fn collect(stream: impl Stream<Item = Result<DecodeResponse, Status>>) -> Result<Answer, Status> {
    let mut stream: Pin<Box<_>> = Box::pin(stream);
    let mut answer = Answer::default();
    while let Some(response) = stream.next().await {
        answer.take(response?.event.expect("every message says something"));
    }
    Ok(answer.judged())
}

/// A decode of f32 latents by the builtin model, to PNG.
pub fn decode_spec(h: usize, w: usize) -> DecodeSpec {
    let shape = vec![1, 4, h as i64, w as i64];
    DecodeSpec {
        model: "builtin".to_owned(),
        latents: Some(TensorSpec { dtype: Dtype::F32 as i32, shape }),
        output: Some(Output { kind: Some(proto::output::Kind::Png(proto::output::Png {})) }),
        ..DecodeSpec::default()
    }
}

/// An encode of a picture file by the builtin model.
pub fn encode_spec(length: usize) -> EncodeSpec {
    EncodeSpec {
        model: "builtin".to_owned(),
        input: Some(proto::encode_spec::Input::Image(proto::encode_spec::Image { length: length as u64 })),
        ..EncodeSpec::default()
    }
}

/// f32 latents `[1,4,h,w]`; another seed, other numbers.
pub fn latents(h: usize, w: usize, seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0).to_le_bytes()
    };
    (0..4 * h * w).flat_map(next).collect::<Vec<u8>>().into()
}

/// Code and stable reason of a failure.
pub fn reason(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "latentgate");
    (status.code(), info.reason)
}
