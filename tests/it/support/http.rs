//! A client of plain HTTP/1.1 that sends exactly what it is told, and reads what comes until the connection ends.

use std::net::SocketAddr;

use bytes::Bytes;
use latentgate::tensor::Shape;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{PATIENCE, TestApp};

/// A response, whole or as far as it came.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl HttpAnswer {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        Some(Self {
            status,
            headers: lines.filter_map(pair).collect(),
            body: Bytes::copy_from_slice(&bytes[end + 4..]),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The dimensions that the `shape` header says.
    pub fn shape(&self) -> Vec<usize> {
        let shape: Vec<usize> = serde_json::from_str(self.header("shape").expect("a shape")).unwrap();
        Shape::try_new(&shape).unwrap().dims().to_vec()
    }

    /// The text of the protocol's error.
    pub fn error(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let value: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {text}"));
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(1), "{text}");
        let error = value["error"].as_str().unwrap_or_else(|| panic!("no error: {text}"));
        assert!(!error.is_empty());
        error.to_owned()
    }

    /// Fails unless the body is as long as announced.
    #[track_caller]
    pub fn whole(self) -> Self {
        let announced = self.header("content-length").expect("a length").parse::<usize>().unwrap();
        assert_eq!(self.body.len(), announced, "a cut body");
        self
    }
}

/// Sends these bytes and reads until the server ends the connection; `None` if nothing that is HTTP came.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Option<HttpAnswer> {
    exchange(TcpStream::connect(address).await.expect("the data port answers"), bytes).await
}

/// The same, over a connection.
pub async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Option<HttpAnswer> {
    let exchange = async {
        // The server may have said enough before everything is sent.
        drop(stream.write_all(bytes).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        HttpAnswer::parse(&answer)
    };
    timeout(PATIENCE, exchange).await.expect("an end in time")
}

/// A whole request with a body of its own length.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let has_host = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = [("Host", "localhost")].into_iter().filter(|_| !has_host);
    let lines: Vec<_> =
        headers.iter().copied().chain(host).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let lines = lines.concat();
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}\r\n");
    [head.as_bytes(), body].concat()
}

impl TestApp {
    /// One exchange on a connection of its own.
    pub async fn http(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpAnswer {
        let answer = raw(self.addresses.data, &request(method, target, headers, body)).await;
        answer.unwrap_or_else(|| panic!("no answer to {method} {target}"))
    }

    /// A decode by the builtin model of f32 latents `[1,4,h,w]`, as diffusers asks for it.
    pub async fn post_decode(&self, [h, w]: [usize; 2], rest: &str, accept: &str, body: &[u8]) -> HttpAnswer {
        let target = format!("/decode/builtin?shape=1&shape=4&shape={h}&shape={w}&dtype=float32&do_scaling=True{rest}");
        self.http("POST", &target, &[("Content-Type", "tensor/binary"), ("Accept", accept)], body).await
    }
}
