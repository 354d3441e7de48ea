//! The kinds of bad clients. Each is bounded in time, and tells how it ended.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use latentgate::task;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::Span;

use crate::server::{Server, decode};

/// The longest that one stays.
const STAY: Duration = Duration::from_secs(8);
/// More than any head may have.
const HUGE: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    PlainToTls,
    Garbage,
    HelloCutShort,
    ResetAtOnce,
    ResetMidway,
    SlowHead,
    HugeHead,
    WrongToken,
    NoToken,
    HalfBody,
    BadFrames,
}

const KINDS: [Kind; 11] = [
    Kind::PlainToTls,
    Kind::Garbage,
    Kind::HelloCutShort,
    Kind::ResetAtOnce,
    Kind::ResetMidway,
    Kind::SlowHead,
    Kind::HugeHead,
    Kind::WrongToken,
    Kind::NoToken,
    Kind::HalfBody,
    Kind::BadFrames,
];

/// So many of them, at this rate, all kinds in turn. How they ended, by kind.
pub(crate) async fn come(server: &Arc<Server>, count: usize, rate: u64) -> Vec<(&'static str, String, usize)> {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1) as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut present = Vec::with_capacity(count);
    for turn in 0..count {
        ticks.tick().await;
        let (kind, server) = (KINDS[turn % KINDS.len()], server.clone());
        let stay = async move {
            match timeout(STAY, kind.behave(&server)).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(error)) => format!("{:?}", error.kind()),
                Err(_) => "left by itself".to_owned(),
            }
        };
        present.push((kind, task::spawn(Span::none(), stay)));
    }
    let mut ended = BTreeMap::new();
    for (kind, stranger) in present {
        let outcome = stranger.join().await.unwrap_or_else(|error| error.to_string());
        *ended.entry((kind, outcome)).or_insert(0) += 1;
    }
    ended.into_iter().map(|((kind, outcome), times)| (kind.name(), outcome, times)).collect()
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::PlainToTls => "plain HTTP to the TLS port",
            Self::Garbage => "random bytes",
            Self::HelloCutShort => "half a TLS hello, then nothing",
            Self::ResetAtOnce => "reset after connecting",
            Self::ResetMidway => "reset within a request",
            Self::SlowHead => "a head, a byte at a time",
            Self::HugeHead => "a head of 64 KiB",
            Self::WrongToken => "a wrong token",
            Self::NoToken => "no token",
            Self::HalfBody => "half a body, then the end",
            Self::BadFrames => "HTTP/2 frames that are none",
        }
    }

    async fn behave(self, server: &Server) -> io::Result<String> {
        match self {
            Self::PlainToTls => {
                let mut stream = server.connect().await?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
                told(&mut stream).await
            }
            Self::Garbage => {
                let mut stream = server.connect().await?;
                let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1024).collect();
                stream.write_all(&bytes).await?;
                told(&mut stream).await
            }
            Self::HelloCutShort => {
                let mut stream = server.connect().await?;
                // A handshake record that announces 512 bytes.
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await?;
                told(&mut stream).await
            }
            Self::ResetAtOnce => {
                let stream = server.connect().await?;
                stream.set_zero_linger()?;
                Ok("reset".to_owned())
            }
            Self::ResetMidway => {
                let mut stream = server.connect_tls().await?;
                let request = decode(crate::TOKEN);
                stream.write_all(&request[..request.len() / 2]).await?;
                stream.flush().await?;
                stream.get_ref().0.set_zero_linger()?;
                Ok("reset".to_owned())
            }
            Self::SlowHead => slow_head(server).await,
            Self::HugeHead => {
                let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(HUGE));
                says(server, head.as_bytes()).await
            }
            Self::WrongToken => says(server, &decode("lg_somebody-elses")).await,
            Self::NoToken => {
                says(server, b"POST /decode/builtin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await
            }
            Self::HalfBody => {
                let request = decode(crate::TOKEN);
                let mut stream = server.connect_tls().await?;
                stream.write_all(&request[..request.len() - 100]).await?;
                stream.shutdown().await?;
                told(&mut stream).await
            }
            Self::BadFrames => {
                let frames = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xff; 512]].concat();
                says(server, &frames).await
            }
        }
    }
}

async fn says(server: &Server, bytes: &[u8]) -> io::Result<String> {
    let mut stream = server.connect_tls().await?;
    stream.write_all(bytes).await?;
    told(&mut stream).await
}

async fn slow_head(server: &Server) -> io::Result<String> {
    let mut stream = server.connect_tls().await?;
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let dribble = async {
        for byte in b"GET /health HTTP/1.1\r\nHost: x\r\nX-Patience: ".iter().chain(std::iter::repeat(&b'x')) {
            write.write_all(&[*byte]).await?;
            write.flush().await?;
            sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        told = told(&mut read) => told,
        ended = dribble => ended.map(|()| "never read".to_owned()),
    }
}

/// What the server says before the end: a status, an alert, or nothing.
async fn told(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer).await;
    Ok(match answer.strip_prefix(b"HTTP/1.1 ") {
        Some(status) => format!("answered {}", String::from_utf8_lossy(&status[..status.len().min(3)])),
        None if ended.is_err() => "reset".to_owned(),
        None => "closed".to_owned(),
    })
}
