//! SIGTERM under load, of the real program: every request that was accepted is answered, whole.
//!
//! Accepted is what was sent on a connection that the server had accepted, and what an HTTP/2 server does not say it left
//! alone. A connection that is refused, or still waited to be accepted when the socket was closed, is the next server's.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use http::{Request, Response};
use latentgate::proto::DecodeRequest;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::support::{decode_spec, latents, program::Program};

const CONFIG: &str = "route.backends = [\"local\"]\nlog.access = false\n";
/// Answers of all rounds together are at least this many.
const ANSWERS: usize = 5000;
/// Answers of a round before the signal.
const BEFORE: usize = 1500;
/// A drain that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const TARGET: &str = "/decode/builtin?shape=1&shape=4&shape=16&shape=16&dtype=float32&do_scaling=True&output_type=pt";
const SIDE: usize = 16;

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    lost: AtomicUsize,
}

/// How an exchange ended.
enum End {
    Answered,
    /// And the connection is over.
    Last,
    /// Never accepted.
    Refused,
    Lost(String),
}

impl Counts {
    /// Whether to go on.
    fn note(&self, end: &End) -> bool {
        match end {
            End::Answered | End::Last => self.answered.fetch_add(1, Ordering::SeqCst),
            End::Refused => 0,
            End::Lost(how) => {
                println!("lost: {how}");
                self.lost.fetch_add(1, Ordering::SeqCst)
            }
        };
        matches!(end, End::Answered)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_server_answers_every_accepted_request() {
    let mut answered = 0;
    while answered < ANSWERS {
        let (counts, mut program) = (Arc::new(Counts::default()), Program::start(CONFIG).await);
        let mut asking = JoinSet::new();
        for _ in 0..6 {
            asking.spawn(over_http_1(program.data, counts.clone()));
            asking.spawn(over_http_2(program.data, counts.clone(), ask_http));
            asking.spawn(over_http_2(program.data, counts.clone(), ask_grpc));
        }
        while counts.answered.load(Ordering::SeqCst) < BEFORE {
            assert_eq!(counts.lost.load(Ordering::SeqCst), 0, "before the signal");
            tokio::task::yield_now().await;
        }
        program.signal("TERM");
        timeout(PATIENCE, asking.join_all()).await.expect("everybody is told the end");
        assert_eq!(counts.lost.load(Ordering::SeqCst), 0, "of {answered} and this round's");
        assert!(program.child.wait().unwrap().success());
        answered += counts.answered.load(Ordering::SeqCst);
    }
    println!("{answered} answered, none lost");
}

/// One connection after the other, until none is accepted any more.
async fn over_http_1(server: SocketAddr, counts: Arc<Counts>) {
    let input = latents(SIDE, SIDE, 1);
    let head = format!(
        "POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Type: tensor/binary\r\nContent-Length: {}\r\n\r\n",
        input.len()
    );
    let request = [head.as_bytes(), &input].concat();
    while let Ok(mut stream) = TcpStream::connect(server).await {
        let mut is_new = true;
        loop {
            let end = exchange(&mut stream, &request, is_new).await;
            is_new = false;
            match end {
                End::Refused => return,
                end => {
                    if !counts.note(&end) {
                        break;
                    }
                }
            }
        }
    }
}

async fn exchange(stream: &mut TcpStream, request: &[u8], is_new: bool) -> End {
    let mut answer = Vec::new();
    let sent = stream.write_all(request).await;
    let whole = |answer: &[u8]| {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&answer[..end]).unwrap().to_ascii_lowercase();
        let length: usize = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
        (answer.len() == end + length).then_some(head)
    };
    loop {
        if let Some(head) = whole(&answer) {
            assert!(head.starts_with("http/1.1 200"), "{head}");
            return if head.contains("connection: close") { End::Last } else { End::Answered };
        }
        match stream.read_buf(&mut answer).await {
            Ok(1..) => {}
            _ if is_new && answer.is_empty() => return End::Refused,
            broken => return End::Lost(format!("HTTP/1.1: {broken:?} after {} bytes, sent: {sent:?}", answer.len())),
        }
    }
}

/// One connection, until the server says goodbye.
async fn over_http_2(server: SocketAddr, counts: Arc<Counts>, ask: fn() -> (Request<()>, Bytes)) {
    let stream = TcpStream::connect(server).await.unwrap();
    let (mut sender, connection) = client::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    while let Ok(ready) = sender.clone().ready().await {
        sender = ready;
        let (request, input) = ask();
        let end = match stream_of(&mut sender, request, input).await {
            Ok(()) => End::Answered,
            // The streams that a goodbye does not name were not begun.
            Err(error) if error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                End::Refused
            }
            Err(error) => End::Lost(format!("HTTP/2: {error:?}")),
        };
        if !counts.note(&end) {
            break;
        }
    }
    drop(sender);
    drop(connection.await);
}

async fn stream_of(sender: &mut SendRequest<Bytes>, request: Request<()>, input: Bytes) -> Result<(), h2::Error> {
    let (answer, mut body) = sender.send_request(request, false)?;
    body.send_data(input, true)?;
    let (head, mut body) = answer.await.map(Response::into_parts)?;
    assert_eq!(head.status, 200);
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        got += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    match head.headers.get("content-length") {
        Some(length) => assert_eq!(length.to_str().unwrap().parse::<usize>().unwrap(), got),
        None => assert_eq!(body.trailers().await?.unwrap()["grpc-status"], "0"),
    }
    Ok(())
}

fn ask_http() -> (Request<()>, Bytes) {
    let request = Request::post(format!("http://x{TARGET}")).header("content-type", "tensor/binary");
    (request.body(()).unwrap(), latents(SIDE, SIDE, 1))
}

fn ask_grpc() -> (Request<()>, Bytes) {
    let request = Request::post("http://x/latentgate.v1.Latents/Decode").header("te", "trailers");
    let request = request.header("content-type", "application/grpc").body(()).unwrap();
    let message = DecodeRequest { spec: Some(decode_spec(SIDE, SIDE)), data: latents(SIDE, SIDE, 1) };
    let mut sent = BytesMut::new();
    sent.put_u8(0);
    sent.put_u32(message.encoded_len() as u32);
    message.encode(&mut sent).unwrap();
    (request, sent.freeze())
}
