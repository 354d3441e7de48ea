//! The endpoint at the other end: answers at once, always the same bytes, so that what is measured is the way to it.
//!
//! HTTP by hand on the socket, on a thread of its own: a request is read whole, its `Accept` and its path choose the
//! answer, which leaves in one write, or over `/paced/MILLISECONDS` in pieces spread over such a time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use half::f16;
use image::{
    ExtendedColorType, ImageEncoder as _,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use latentgate::task;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    time::{Instant, sleep_until},
};
use tracing::Span;

use crate::{Form, iec, support, ways::LARGE};

/// The pieces of a paced answer come this far apart.
const PAUSE: Duration = Duration::from_millis(2);

/// An answer of this pace begins after as long a time: everybody has asked by then.
pub(crate) const LATE: Duration = Duration::from_millis(1001);

/// A running endpoint.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    _runtime: Runtime,
}

/// What it answers.
pub(crate) struct Answers {
    png: Bytes,
    tensor: Bytes,
    /// Of the tensor.
    shape: String,
}

/// Whole responses, heads included.
struct Responses {
    png: Bytes,
    tensor: Bytes,
}

impl Answers {
    /// A photograph as endpoints compress it, at zlib's level 6, and numbers of -1..1.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let photograph = support::photograph();
        let &[_, height, width, _] = photograph.shape().dims() else { bail!("the photograph is none") };
        let mut png = Vec::new();
        PngEncoder::new_with_quality(&mut png, CompressionType::Level(6), FilterType::Adaptive).write_image(
            photograph.data(),
            width as u32,
            height as u32,
            ExtendedColorType::Rgb8,
        )?;
        let [n, _, h, w] = LARGE;
        let value = |_| f16::from_f32(fastrand::f32() * 2.0 - 1.0).to_le_bytes();
        let tensor = (0..n * 3 * h * 8 * w * 8).flat_map(value).collect::<Vec<u8>>();
        Ok(Self { png: png.into(), tensor: tensor.into(), shape: format!("[{n},3,{},{}]", h * 8, w * 8) })
    }

    /// The body of an answer.
    pub(crate) const fn expected(&self, form: Form) -> &Bytes {
        match form {
            Form::Png | Form::PngOverGrpc => &self.png,
            Form::Tensor => &self.tensor,
        }
    }

    /// What it is, for people.
    pub(crate) fn describe(&self, form: Form) -> String {
        match form {
            Form::Png | Form::PngOverGrpc => format!("PNG 512x512, {}", iec(&self.png)),
            Form::Tensor => format!("float16 {}, {}", self.shape, iec(&self.tensor)),
        }
    }
}

impl Origin {
    /// Starts it on a port that the system chooses.
    pub(crate) fn start(answers: &Answers) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("the origin's port")?;
        let address = listener.local_addr()?;
        let tensor_head = format!("content-type: tensor/binary\r\nshape: {}\r\ndtype: float16\r\n", answers.shape);
        let responses = Arc::new(Responses {
            png: response("content-type: image/png\r\n", &answers.png),
            tensor: response(&tensor_head, &answers.tensor),
        });
        runtime.block_on(async { task::spawn(Span::none(), accept(listener, responses)).detach() });
        Ok(Self { address, _runtime: runtime })
    }
}

fn response(headers: &str, body: &Bytes) -> Bytes {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat().into()
}

async fn accept(listener: TcpListener, responses: Arc<Responses>) {
    while let Ok((stream, _)) = listener.accept().await {
        let responses = responses.clone();
        // Ends with its connection. A client that breaks off has said so itself.
        task::spawn(Span::none(), async move { drop(serve(stream, &responses).await) }).detach();
    }
}

async fn serve(mut stream: TcpStream, responses: &Responses) -> anyhow::Result<()> {
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
        let length: usize = header(&head, "content-length").context("a request without length")?.parse()?;
        while buffer.len() < length {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "a request that breaks off");
        }
        buffer.clear();
        let wants_png = header(&head, "accept") == Some("image/png");
        let response = if wants_png { &responses.png } else { &responses.tensor };
        match pace(&head)? {
            Some(time) => paced(&mut stream, response, time).await?,
            None => stream.write_all(response).await?,
        }
    }
}

/// The path of an endpoint whose answers take so long.
pub(crate) fn path(time: Option<Duration>) -> String {
    time.map_or("/".to_owned(), |time| format!("/paced/{}", time.as_millis()))
}

fn pace(head: &str) -> anyhow::Result<Option<Duration>> {
    let Some(rest) = head.strip_prefix("post /paced/") else { return Ok(None) };
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    Ok(Some(Duration::from_millis(digits.parse().context("a pace is in milliseconds")?)))
}

/// The first piece at once, with the head.
async fn paced(stream: &mut TcpStream, response: &[u8], time: Duration) -> anyhow::Result<()> {
    if time == LATE {
        sleep_until(Instant::now() + time).await;
    }
    let began = Instant::now();
    let pieces = time.div_duration_f64(PAUSE).ceil().max(1.0) as usize;
    for (turn, piece) in (0u32..).zip(response.chunks(response.len().div_ceil(pieces))) {
        if turn > 0 {
            sleep_until(began + PAUSE * turn).await;
        }
        stream.write_all(piece).await?;
    }
    Ok(())
}

/// The value of a header in a head of lower case.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}
