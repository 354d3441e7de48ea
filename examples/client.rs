//! Has a latentgate make a PNG: of latents, or of a picture, there and back.
//!
//! ```text
//! client picture.jpg OUTPUT.png [MODEL]            encode, then decode what came
//! client latents.safetensors OUTPUT.png [MODEL]    decode
//! ```
//!
//! `LATENTGATE_SERVER` names the server (default <http://127.0.0.1:8790>), MODEL is `builtin` unless given. The client is
//! this crate's; a program of its own makes the same of `proto/` with `tonic-prost-build`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the program's voice")]

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use futures_util::Stream;
use latentgate::proto::{
    DecodeRequest, DecodeResponse, DecodeSpec, Dtype, EncodeRequest, EncodeResponse, EncodeSpec, Header, Output,
    TensorSpec, decode_response::Event, encode_response, encode_spec, latents_client::LatentsClient, output,
};
use safetensors::SafeTensors;
use tokio::sync::oneshot;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::{ErrorDetail, StatusExt as _};

/// A message may have 4 MiB; the server's own chunks have 1.
const CHUNK_BYTES: usize = 1 << 20;
/// gRPC waits for ever unless it is told not to. A first decode of a large model on a CPU takes a while.
const TIMEOUT: Duration = Duration::from_mins(5);

/// Have a latentgate make a PNG: of latents in a .safetensors file, or of a picture, there and back.
#[derive(Parser)]
struct Arguments {
    input: String,
    output: String,
    #[arg(default_value = "builtin")]
    model: String,
    #[arg(long, env = "LATENTGATE_SERVER", default_value = "http://127.0.0.1:8790")]
    server: String,
}

/// A whole answer, proved by its digest.
struct Answer {
    header: Header,
    data: Bytes,
    summary: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.downcast_ref::<Status>().map_or_else(|| format!("client: {error:#}"), explain));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // One client serves any number of calls, and its clones share the connection.
    let client = LatentsClient::connect(arguments.server.clone()).await;
    let mut client = client.with_context(|| {
        format!("{}: wanted the http://HOST:PORT of a running `latentgate serve`", arguments.server)
    })?;
    let input = Bytes::from(fs::read(&arguments.input).with_context(|| arguments.input.clone())?);
    let (tensor, latents) = if Path::new(&arguments.input).extension().is_some_and(|it| it == "safetensors") {
        the_tensor(&input).with_context(|| arguments.input.clone())?
    } else {
        let encoded = encode(&mut client, &arguments.model, input).await?;
        println!("encode: {}", encoded.summary);
        (encoded.header.tensor, encoded.data)
    };
    let decoded = decode(&mut client, &arguments.model, tensor, latents).await?;
    println!("decode: {}", decoded.summary);
    fs::write(&arguments.output, &decoded.data).with_context(|| arguments.output.clone())
}

/// A PNG, JPEG or WebP file to latents, scaled as the model's diffusion network has them.
async fn encode(client: &mut LatentsClient<Channel>, model: &str, picture: Bytes) -> anyhow::Result<Answer> {
    let image = encode_spec::Image { length: picture.len() as u64 };
    let input = Some(encode_spec::Input::Image(image));
    let spec = EncodeSpec { model: model.to_owned(), input, digest: digest(&picture), ..EncodeSpec::default() };
    let first = EncodeRequest { spec: Some(spec), data: Bytes::new() };
    let (go, request) = outgoing(first, picture, |data| EncodeRequest { spec: None, data });
    collect(client.encode(request).await?.into_inner(), go, common).await
}

/// Latents to a PNG file.
async fn decode(
    client: &mut LatentsClient<Channel>,
    model: &str,
    latents: Option<TensorSpec>,
    data: Bytes,
) -> anyhow::Result<Answer> {
    let output = Some(Output { kind: Some(output::Kind::Png(output::Png {})) });
    let spec = DecodeSpec { model: model.to_owned(), latents, output, digest: digest(&data), ..DecodeSpec::default() };
    let first = DecodeRequest { spec: Some(spec), data: Bytes::new() };
    let (go, request) = outgoing(first, data, |data| DecodeRequest { spec: None, data });
    collect(client.decode(request).await?.into_inner(), go, |message: DecodeResponse| message.event).await
}

/// A request that sends `first`, which holds the digest of `data`, and the data themselves when it is told to go on.
///
/// What is cached comes at once, and the data never cross the wire; otherwise the server says `need_data`, which costs one
/// round trip. Leave the digest out and send the first data with the spec where hits are rare.
fn outgoing<M: Send + 'static>(
    first: M,
    mut data: Bytes,
    message: fn(Bytes) -> M,
) -> (oneshot::Sender<()>, Request<impl Stream<Item = M> + Send + 'static>) {
    let (go, told) = oneshot::channel();
    let mut request = Request::new(async_stream::stream! {
        yield first;
        if told.await.is_ok() {
            while !data.is_empty() {
                yield message(data.split_to(data.len().min(CHUNK_BYTES)));
            }
        }
    });
    request.set_timeout(TIMEOUT);
    (go, request)
}

/// Reads an answer to its end. `event` is what a message of either kind of stream says.
async fn collect<A>(
    mut answer: Streaming<A>,
    go: oneshot::Sender<()>,
    event: fn(A) -> Option<Event>,
) -> anyhow::Result<Answer> {
    let (mut header, mut trailer, mut chunks, mut go) = (None, None, Vec::new(), Some(go));
    while let Some(it) = answer.message().await? {
        match event(it) {
            // If nobody listens any more the call is over, and the answer says why.
            Some(Event::NeedData(_)) => drop(go.take().map(|go| go.send(()))),
            Some(Event::Header(it)) => header = Some(it),
            Some(Event::Chunk(chunk)) => chunks.extend_from_slice(&chunk),
            Some(Event::Trailer(it)) => trailer = Some(it),
            // For people who wait: accepted, progress, preview, and what later versions may add.
            _ => {}
        }
    }
    let whole = header
        .zip(trailer)
        .filter(|(header, trailer)| header.length == chunks.len() as u64 && trailer.digest == digest(&chunks));
    let Some((header, trailer)) = whole else { bail!("the answer is not whole, or was damaged on its way; try again") };
    let source = trailer.source().as_str_name().trim_start_matches("SOURCE_");
    let took = trailer.timings.unwrap_or_default().total_us as f64 / 1e3;
    let sent = if go.is_none() { "sent" } else { "not sent" };
    let summary = format!("{source}, {} bytes in {took:.1} ms, input {sent}", chunks.len());
    Ok(Answer { header, data: chunks.into(), summary })
}

/// Both kinds of response say the same; decodes have previews besides.
fn common(message: EncodeResponse) -> Option<Event> {
    Some(match message.event? {
        encode_response::Event::NeedData(it) => Event::NeedData(it),
        encode_response::Event::Accepted(it) => Event::Accepted(it),
        encode_response::Event::Progress(it) => Event::Progress(it),
        encode_response::Event::Header(it) => Event::Header(it),
        encode_response::Event::Chunk(it) => Event::Chunk(it),
        encode_response::Event::Trailer(it) => Event::Trailer(it),
    })
}

fn digest(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(blake3::hash(data).as_bytes())
}

/// The only tensor of a file, whose bytes are laid out as the wire wants them.
fn the_tensor(file: &Bytes) -> anyhow::Result<(Option<TensorSpec>, Bytes)> {
    let tensors = SafeTensors::deserialize(file)?;
    ensure!(tensors.len() == 1, "wanted one tensor, found {}", tensors.names().join(", "));
    let (_, tensor) = tensors.iter().next().context("there is one")?;
    let dtype =
        Dtype::from_str_name(&format!("DTYPE_{:?}", tensor.dtype())).context("a dtype that latents cannot have")?;
    let shape = tensor.shape().iter().map(|&side| side as i64).collect();
    Ok((Some(TensorSpec { dtype: dtype.into(), shape }), file.slice_ref(tensor.data())))
}

/// What a failed call means, for people: the message names the remedy, google.rpc's details are for programs.
fn explain(status: &Status) -> String {
    let details = status.get_error_details_vec();
    let mut lines = vec![format!("{:?}: {}", status.code(), status.message())];
    // A deadline that passes here is CANCELLED to tonic.
    if details.is_empty() && !matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) {
        lines.push("is it the data port of a running `latentgate serve`?".to_owned());
    }
    for detail in details {
        match detail {
            ErrorDetail::ErrorInfo(info) => lines.push(format!("reason: {}", info.reason)),
            ErrorDetail::BadRequest(bad) => {
                lines.extend(bad.field_violations.into_iter().map(|violation| format!("field: {}", violation.field)));
            }
            ErrorDetail::RetryInfo(retry) => {
                lines.extend(retry.retry_delay.map(|delay| format!("try again in {delay:?}")));
            }
            _ => {}
        }
    }
    lines.join("\n  ")
}
