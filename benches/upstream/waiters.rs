//! One slow answer, many who want it: how far behind the first the others get their first bytes.
//!
//! All ask at once, half of them over HTTP and half over gRPC, each with the whole input on a connection of its own; one
//! of them leads. The endpoint thinks for a second, until all have joined, and then takes another for its answer, so whoever
//! had to wait for the end would be seen at once.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use latentgate::{
    proto::{DecodeRequest, DecodeSpec, Dtype, Output, TensorSpec, decode_response::Event, output, output::Kind},
    task,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Barrier,
    time::Instant,
};
use tracing::Span;

use crate::{
    Ends, Form, Model,
    client::{self, Grpc},
    report::{self, Goal},
    ways::{Input, LARGE},
};

const WAITERS: usize = 64;
const ROUNDS: usize = 5;

/// One of them.
enum Waiter {
    Http(TcpStream),
    Grpc(Grpc),
}

pub(crate) async fn measure(ends: &Ends, model: Model) -> anyhow::Result<()> {
    report::tell(&format!("\nwaiters: {WAITERS} at once for {} over 1s", ends.answers.describe(Form::Tensor)));
    for _ in 0..ROUNDS {
        let (input, start) = (Arc::new(Input::new(LARGE)), Arc::new(Barrier::new(WAITERS)));
        let length = ends.answers.expected(Form::Tensor).len();
        let mut asking = Vec::new();
        for turn in 0..WAITERS {
            let waiter = Waiter::connect(ends.proxy, model, turn % 2 == 0).await?;
            asking.push(task::spawn(Span::none(), waiter.ask(input.clone(), model, (start.clone(), length))));
        }
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        for waiter in asking {
            let [first, last] = waiter.join().await??;
            firsts.push(first);
            lasts.push(last);
        }
        let leader = *firsts.iter().min().context("nobody asked")?;
        let behind = firsts.iter().map(|first| first.duration_since(leader));
        let end = lasts.iter().max().context("nobody asked")?.duration_since(leader);
        report::tell_waiters(behind, end, &Goal::WAITERS_FIRST);
    }
    Ok(())
}

impl Waiter {
    async fn connect(address: SocketAddr, model: Model, is_http: bool) -> anyhow::Result<Self> {
        if !is_http {
            return Ok(Self::Grpc(Grpc::connect(address, model.name).await?));
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::Http(stream))
    }

    /// When the first byte of the body came, and the last.
    async fn ask(
        self,
        input: Arc<Input>,
        model: Model,
        (start, length): (Arc<Barrier>, usize),
    ) -> anyhow::Result<[Instant; 2]> {
        match self {
            Self::Http(stream) => over_http(stream, &input, model, (start, length)).await,
            Self::Grpc(grpc) => over_grpc(grpc, &input, (start, length)).await,
        }
    }
}

async fn over_http(
    mut stream: TcpStream,
    input: &Input,
    model: Model,
    (start, length): (Arc<Barrier>, usize),
) -> anyhow::Result<[Instant; 2]> {
    let request = client::request(&format!("/decode/{}", model.name), Form::Tensor, input);
    start.wait().await;
    stream.write_all(&request).await?;
    let (mut buffer, mut head, mut got) = (vec![0; 1 << 18], Vec::new(), 0);
    let first = loop {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the connection was closed");
        head.extend_from_slice(&buffer[..read]);
        if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n").filter(|at| at + 4 < head.len()) {
            got += head.len() - at - 4;
            break Instant::now();
        }
    };
    ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head[..100]));
    while got < length {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the answer breaks off");
        got += read;
    }
    Ok([first, Instant::now()])
}

async fn over_grpc(
    mut grpc: Grpc,
    input: &Input,
    (start, length): (Arc<Barrier>, usize),
) -> anyhow::Result<[Instant; 2]> {
    let shape = input.shape.map(|dim| dim as i64).to_vec();
    let spec = DecodeSpec {
        model: grpc.model.to_owned(),
        latents: Some(TensorSpec { dtype: Dtype::F16 as i32, shape }),
        output: Some(Output { kind: Some(Kind::Tensor(output::Tensor::default())) }),
        ..DecodeSpec::default()
    };
    let data: Bytes = input.data.clone();
    start.wait().await;
    let request = DecodeRequest { spec: Some(spec), data };
    let mut stream = grpc.client.decode(tokio_stream::iter([request])).await?.into_inner();
    let (mut first, mut got) = (None, 0);
    while let Some(message) = stream.message().await? {
        if let Some(Event::Chunk(chunk)) = message.event {
            first.get_or_insert_with(Instant::now);
            got += chunk.len();
        }
    }
    ensure!(got == length, "{got} of {length} bytes");
    Ok([first.context("an answer without bytes")?, Instant::now()])
}
