//! A scriptable endpoint that speaks the Hugging Face protocol over a real socket, rightly or in any of the wrong ways.
//!
//! Each request takes the next behaviour of the script; when that is used up, [`Behaviour::Good`]. Right answers are a
//! function of the request's numbers alone (`origin/answers.rs`), so that a test can compute what must come out. HTTP is
//! written by hand on the socket, since most of what is tested here no HTTP library would write.

mod answers;

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::JoinHandle,
};

pub use answers::{Answer, decoded, encoded, frames};

/// What is done with one request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// The right answer.
    Good,
    /// The right answer once a permit is given.
    Gated,
    /// Nothing, ever.
    Hang,
    /// The connection is closed without a word.
    Close,
    /// The right head and so many bytes of the body, then nothing until a permit is given, then the rest.
    Pause(usize),
    /// The right head and so many bytes of the body, then the connection is closed.
    Cut(usize),
    /// So many bytes less of a tensor, in a length that fits them, under a shape that does not; so much of a file.
    Short(usize),
    /// So many bytes more, likewise.
    Long(usize),
    /// The right answer, but for this header.
    Header(&'static str, &'static str),
    /// The right answer without this header.
    Without(&'static str),
    /// The right answer under this status.
    Coded(u16),
    /// The right f16 tensor with a NaN at this byte.
    Nan(usize),
    /// The right answer with this byte of the body flipped.
    Flip(usize),
    /// A PNG whose frame is right and whose pixels nobody can decode.
    Undecodable,
    /// The right answer in pieces of so many bytes.
    Trickle(usize),
    /// The right answer, its length not said: the connection's end is the body's.
    Unsized,
    /// The same, chunked.
    Chunked,
    /// A page that says 200.
    Html,
    /// This status, with this text as the protocol's JSON, and a header.
    Status(u16, &'static str, Option<(&'static str, String)>),
    /// A redirect to this place.
    Redirect(String),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path and query.
    pub target: String,
    /// In order, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The endpoint. Dropping it closes its port and its connections.
pub struct Origin {
    port: u16,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    script: Mutex<VecDeque<Behaviour>>,
    asked: Mutex<Vec<Asked>>,
    count: watch::Sender<usize>,
    /// Connections that the client gave up while it was kept waiting.
    left: watch::Sender<usize>,
    gate: Semaphore,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Parameters in order.
    pub fn query(&self) -> Vec<(String, String)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }

    /// Values of one parameter.
    pub fn parameter(&self, name: &str) -> Vec<String> {
        self.query().into_iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
    }
}

impl Origin {
    /// On a port of its own.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            asked: Mutex::default(),
            count: watch::Sender::new(0),
            left: watch::Sender::new(0),
            gate: Semaphore::new(0),
        });
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let serving = tokio::spawn(serve(listener, shared.clone()));
        Self { port, shared, serving }
    }

    /// A URL where nobody listens. Its port stays taken until the tests end, or the next one to ask for any would get it,
    /// and listen there.
    pub fn closed_url() -> String {
        let socket = Box::leak(Box::new(TcpSocket::new_v4().expect("a socket")));
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        format!("http://{}", socket.local_addr().expect("a bound socket has an address"))
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Host and port, as metrics and messages name it.
    pub fn label(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The endpoint of a decode: with a path and a query of its own, behind which parameters have to be appended.
    pub fn decode_url(&self) -> String {
        format!("{}/decode?tenant=a%20b", self.url())
    }

    /// The endpoint of an encode to latents of so many channels.
    pub fn encode_url(&self, channels: usize) -> String {
        format!("{}/encode?channels={channels}", self.url())
    }

    /// Appends to the script.
    pub fn script(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.shared.script.lock().extend(behaviours);
    }

    /// Whether there are behaviours left.
    pub fn is_scripted(&self) -> bool {
        !self.shared.script.lock().is_empty()
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Asked> {
        self.shared.asked.lock().clone()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// Lets so many waiting answers go on, present or future.
    pub fn release(&self, answers: usize) {
        self.shared.gate.add_permits(answers);
    }

    /// Waits for so many requests.
    pub async fn until_requests(&self, count: usize) {
        until(&self.shared.count, count, "requests").await;
    }

    /// Waits until clients have given up so many connections on which they were kept waiting.
    pub async fn until_left(&self, count: usize) {
        until(&self.shared.left, count, "clients that left").await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn until(counter: &watch::Sender<usize>, wanted: usize, what: &str) {
    let mut watched = counter.subscribe();
    let reached = watched.wait_for(|&n| n >= wanted);
    let in_time = tokio::time::timeout(super::PATIENCE, reached).await.is_ok_and(|reached| reached.is_ok());
    assert!(in_time, "{} {what}, waited for {wanted}", *counter.borrow());
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let shared = shared.clone();
        // A connection that breaks is what half of the tests are about.
        connections.spawn(async move { drop(converse(stream, &shared).await) });
    }
}

/// Requests of one connection, until one ends it.
async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(asked) = read(&mut stream, &mut buffer).await? {
        let behaviour = shared.script.lock().pop_front().unwrap_or(Behaviour::Good);
        shared.asked.lock().push(asked.clone());
        shared.count.send_modify(|n| *n += 1);
        if !behave(&mut stream, behaviour, &asked, shared).await? {
            break;
        }
    }
    stream.shutdown().await
}

/// The next request; none at the end of the connection.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    let mut piece = vec![0; 64 << 10];
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            break String::from_utf8_lossy(&head).into_owned();
        }
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            n => buffer.extend_from_slice(&piece[..n]),
        }
    };
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut asked = Asked { target, headers, body: Vec::new() };
    let length: usize = asked.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while buffer.len() < length {
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            n => buffer.extend_from_slice(&piece[..n]),
        }
    }
    asked.body = buffer.drain(..length).collect();
    Ok(Some(asked))
}

/// Answers; whether the connection goes on.
async fn behave(stream: &mut TcpStream, behaviour: Behaviour, asked: &Asked, shared: &Shared) -> io::Result<bool> {
    let mut answer = Answer::of(asked);
    let mut pieces = usize::MAX;
    match behaviour {
        Behaviour::Good => {}
        Behaviour::Gated => {
            if !wait(stream, shared).await {
                return Ok(false);
            }
        }
        Behaviour::Hang => {
            gone(stream, shared).await;
            return Ok(false);
        }
        Behaviour::Close => return Ok(false),
        Behaviour::Pause(bytes) => {
            stream.write_all(&answer.head()).await?;
            stream.write_all(&answer.body[..bytes]).await?;
            if !wait(stream, shared).await {
                return Ok(false);
            }
            stream.write_all(&answer.body[bytes..]).await?;
            return Ok(true);
        }
        Behaviour::Cut(bytes) => {
            stream.write_all(&answer.head()).await?;
            stream.write_all(&answer.body[..bytes]).await?;
            return Ok(false);
        }
        Behaviour::Short(bytes) => answer.resize(answer.body.len() - bytes),
        Behaviour::Long(bytes) => answer.resize(answer.body.len() + bytes),
        Behaviour::Header(name, value) => answer.set(name, value),
        Behaviour::Without(name) => answer.headers.retain(|(known, _)| known != name),
        Behaviour::Coded(status) => answer.status = status,
        Behaviour::Nan(at) => answer.body[at..at + 2].copy_from_slice(&[0, 0x7e]),
        Behaviour::Flip(at) => answer.body[at] ^= 0x10,
        Behaviour::Undecodable => answer.spoil_pixels(),
        Behaviour::Trickle(bytes) => pieces = bytes,
        Behaviour::Unsized => {
            answer.headers.retain(|(name, _)| name != "content-length");
            answer.set("connection", "close");
            stream.write_all(&[answer.head(), answer.body].concat()).await?;
            return Ok(false);
        }
        Behaviour::Chunked => {
            answer.chunk(1000);
        }
        Behaviour::Html => answer = Answer::page(),
        Behaviour::Status(status, text, header) => answer = Answer::error(status, text, header),
        Behaviour::Redirect(place) => answer = Answer::error(307, "elsewhere", Some(("location", place))),
    }
    stream.write_all(&answer.head()).await?;
    for piece in answer.body.chunks(pieces) {
        stream.write_all(piece).await?;
        stream.flush().await?;
        tokio::task::yield_now().await;
    }
    Ok(true)
}

/// Waits for a permit; false when the client has left before.
async fn wait(stream: &mut TcpStream, shared: &Shared) -> bool {
    tokio::select! {
        permit = shared.gate.acquire() => {
            permit.expect("the gate is never closed").forget();
            true
        }
        () = gone(stream, shared) => false,
    }
}

/// Until the client closes the connection.
async fn gone(stream: &mut TcpStream, shared: &Shared) {
    let mut byte = [0; 1];
    while matches!(stream.read(&mut byte).await, Ok(1)) {}
    shared.left.send_modify(|n| *n += 1);
}
