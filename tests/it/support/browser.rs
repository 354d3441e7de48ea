//! What a browser does: HTTP/1.1 or HTTP/2 over any stream, one connection a request, and gRPC-web by hand on top of it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

/// A whole request.
pub type Request = http::Request<Full<Bytes>>;

/// What a connection needs of a socket.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

impl Version {
    pub const BOTH: [Self; 2] = [Self::Http1, Self::Http2];
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Response {
    /// A header, or the empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A request to `path`; its headers are to follow.
pub fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request {
    http::Request::builder().method(method).uri(path).body(Full::new(body.into())).unwrap()
}

/// The same request with another header.
pub fn with(mut request: Request, name: &'static str, value: &str) -> Request {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

/// Sends a request over a fresh stream, and reads its answer to the end.
pub async fn send(stream: impl Stream, version: Version, request: Request) -> Response {
    read(open(stream, version, request).await).await
}

/// Sends a request over a fresh stream; the head of its answer.
pub async fn open(stream: impl Stream, version: Version, mut request: Request) -> http::Response<Incoming> {
    let io = TokioIo::new(stream);
    match version {
        Version::Http1 => {
            request.headers_mut().insert("host", "localhost".parse().unwrap());
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        }
        Version::Http2 => {
            *request.uri_mut() = format!("http://localhost{}", request.uri().path()).parse().unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        }
    }
}

/// Reads an answer to its end.
pub async fn read(response: http::Response<Incoming>) -> Response {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    Response { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
}

/// A message in gRPC's framing: not compressed, length, bytes.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

/// A gRPC-web call of one message, in one of its content types.
pub fn web_call(path: &str, content_type: &str, message: &impl Message) -> Request {
    let framed = framed(message);
    let body = if is_text(content_type) { STANDARD.encode(framed).into_bytes() } else { framed };
    with(with(request(Method::POST, path, body), "content-type", content_type), "accept", content_type)
}

/// What a gRPC-web answer holds: its messages, and the text of its last frame, which stands for the trailers.
pub fn web_answer<M: Message + Default>(response: &Response) -> (Vec<M>, String) {
    let mut body =
        if is_text(response.header("content-type")) { base64_pieces(&response.body) } else { response.body.to_vec() };
    let (mut messages, mut trailers) = (Vec::new(), None);
    while !body.is_empty() {
        assert!(trailers.is_none(), "the trailers end the body");
        let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        let rest = body.split_off(5 + length);
        match body[0] {
            0 => messages.push(M::decode(&body[5..]).unwrap()),
            0x80 => trailers = Some(String::from_utf8(body[5..].to_vec()).unwrap()),
            flag => panic!("a frame of kind {flag:#x}"),
        }
        body = rest;
    }
    (messages, trailers.expect("a stream that ends has trailers"))
}

fn is_text(content_type: &str) -> bool {
    content_type.starts_with("application/grpc-web-text")
}

/// gRPC-web may end a piece of base64 with padding, and begin another.
fn base64_pieces(text: &[u8]) -> Vec<u8> {
    text.chunks(4).flat_map(|quantum| STANDARD.decode(quantum).unwrap()).collect()
}
