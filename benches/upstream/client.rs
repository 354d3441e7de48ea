//! The client: one kept connection of HTTP/1.1, or one of gRPC. The same code asks the endpoint and the proxy over HTTP.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use bytes::{Bytes, BytesMut};
use latentgate::proto::{
    self, DecodeRequest, DecodeSpec, Dtype, Source, TensorSpec, decode_response::Event, latents_client::LatentsClient,
    output::Kind,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tonic::transport::Channel;

use crate::{Form, origin::header, ways::Input};

/// No answer takes this long on a machine that is worth measuring.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection, and what is read over it.
pub(crate) struct Http {
    stream: TcpStream,
    /// Path of every request.
    path: String,
    head: BytesMut,
    body: Vec<u8>,
}

/// A connection.
pub(crate) struct Grpc {
    pub(crate) client: LatentsClient<Channel>,
    pub(crate) model: &'static str,
}

/// What one exchange took, from the first byte of the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    /// To the first byte of the answer's body.
    pub(crate) first: Duration,
    /// To its last.
    pub(crate) whole: Duration,
    /// What the proxy says of it, if it says something.
    pub(crate) told: Option<Told>,
}

/// The proxy's own account, by `Server-Timing`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// From the first byte of the request to a job with its key.
    pub(crate) receive: Duration,
    /// From its request to the first byte of the endpoint's answer.
    pub(crate) compute: Duration,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr, path: String) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("no server at {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, path, head: BytesMut::with_capacity(1 << 16), body: Vec::new() })
    }

    /// Asks, reads the answer to its end, and checks that it is `expected`.
    pub(crate) async fn decode(&mut self, form: Form, input: &Input, expected: &Bytes) -> anyhow::Result<Took> {
        let request = request(&self.path, form, input);
        let took = timeout(PATIENCE, self.exchange(&request)).await.context("no answer in time")??;
        // Not a part of what is measured.
        ensure!(self.body == **expected, "{}: another answer than the endpoint's", self.path);
        Ok(took)
    }

    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Took> {
        self.head.clear();
        self.body.clear();
        let began = Instant::now();
        self.stream.write_all(request).await?;
        let end = loop {
            ensure!(self.stream.read_buf(&mut self.head).await? > 0, "the connection was closed");
            if let Some(at) = self.head.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let mut first = (self.head.len() > end).then(|| began.elapsed());
        let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{head}{}", String::from_utf8_lossy(&self.head[end..]));
        let length: usize = header(&head, "content-length").context("an answer without length")?.parse()?;
        self.body.reserve(length);
        self.body.extend_from_slice(&self.head[end..]);
        while self.body.len() < length {
            ensure!(self.stream.read_buf(&mut self.body).await? > 0, "the answer breaks off");
            first.get_or_insert_with(|| began.elapsed());
        }
        let whole = began.elapsed();
        Ok(Took { first: first.unwrap_or(whole), whole, told: Told::read(&head)? })
    }
}

pub(crate) fn request(path: &str, form: Form, input: &Input) -> Vec<u8> {
    let (output_type, accept) = match form {
        Form::Png | Form::PngOverGrpc => ("pil", "image/png"),
        Form::Tensor => ("pt", "tensor/binary"),
    };
    let shape = input.shape.map(|dim| format!("&shape={dim}")).concat();
    let head = format!(
        "POST {path}?image_format=png&output_type={output_type}&partial_postprocess=False{shape}&dtype=float16\
         &scaling_factor=0.18215 HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: {accept}\r\ncontent-type: tensor/binary\r\n\
         content-length: {}\r\n\r\n",
        input.data.len()
    );
    [head.as_bytes(), &input.data].concat()
}

impl Told {
    /// Of an answer of the proxy, which must have been a miss.
    fn read(head: &str) -> anyhow::Result<Option<Self>> {
        let Some(status) = header(head, "cache-status") else { return Ok(None) };
        ensure!(status.contains("fwd=miss") && !status.contains("collapsed"), "not a miss: {status}");
        let timing = header(head, "server-timing").context("no server-timing")?;
        let of = |name: &str| {
            let entry = timing.split(',').find_map(|entry| entry.trim().strip_prefix(name)?.strip_prefix(";dur="));
            let milliseconds: f64 = entry.with_context(|| format!("{name} is not in {timing}"))?.parse()?;
            anyhow::Ok(Duration::from_secs_f64(milliseconds / 1e3))
        };
        Ok(Some(Self { receive: of("receive")?, compute: of("compute")? }))
    }
}

impl Grpc {
    /// Connects as the program's own client does: large frames are the lever for throughput.
    pub(crate) async fn connect(address: SocketAddr, model: &'static str) -> anyhow::Result<Self> {
        let endpoint = Channel::from_shared(format!("http://{address}"))?
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .tcp_nodelay(true);
        Ok(Self { client: LatentsClient::new(endpoint.connect().await?), model })
    }

    /// A decode to a PNG, to the trailer.
    pub(crate) async fn decode(&mut self, input: &Input, expected: &Bytes) -> anyhow::Result<Took> {
        let shape = input.shape.map(|dim| dim as i64).to_vec();
        let spec = DecodeSpec {
            model: self.model.to_owned(),
            latents: Some(TensorSpec { dtype: Dtype::F16 as i32, shape }),
            output: Some(proto::Output { kind: Some(Kind::Png(proto::output::Png {})) }),
            ..DecodeSpec::default()
        };
        let request = DecodeRequest { spec: Some(spec), data: input.data.clone() };
        let (began, mut first, mut chunks, mut source) = (Instant::now(), None, Vec::new(), None);
        let exchange = async {
            let mut stream = self.client.decode(tokio_stream::iter([request])).await?.into_inner();
            while let Some(message) = stream.message().await? {
                match message.event {
                    Some(Event::Chunk(chunk)) => {
                        first.get_or_insert_with(|| began.elapsed());
                        chunks.push(chunk);
                    }
                    Some(Event::Trailer(trailer)) => source = Some(trailer.source()),
                    _ => {}
                }
            }
            anyhow::Ok(began.elapsed())
        };
        let whole = timeout(PATIENCE, exchange).await.context("no answer in time")??;
        ensure!(source == Some(Source::Computed), "not a miss: {source:?}");
        ensure!(chunks.concat() == **expected, "gRPC: another answer than the endpoint's");
        Ok(Took { first: first.unwrap_or(whole), whole, told: None })
    }
}
