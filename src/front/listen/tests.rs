use std::{
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};

use super::*;

/// A socket that remembers where the slices lay that it was given to write, as addresses and lengths.
struct Recording {
    socket: DuplexStream,
    slices: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl AsyncRead for Recording {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Recording {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for slice in bufs {
            match Pin::new(&mut self.socket).poll_write(cx, slice) {
                // What the socket did not take comes again.
                Poll::Pending if written > 0 => break,
                polled => written += ready!(polled)?,
            }
            self.slices.lock().push((slice.as_ptr() as usize, slice.len()));
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Serves one HTTP/1.1 request with `body`, as a connection is served; where the written slices lay, and what was read.
async fn written(body: impl Fn() -> Body + Clone + Send + Sync + 'static) -> (Vec<(usize, usize)>, Vec<u8>) {
    let router = Router::new().route("/", axum::routing::get(move || std::future::ready(body())));
    let (mut client, socket) = duplex(4 << 20);
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let slices = Arc::<Mutex<Vec<_>>>::default();
    let (protocol, stream) = greeting(Recording { socket, slices: slices.clone() }).await.unwrap();
    let served = Served::new(router, Peer { way: Way::Unix, names: Vec::new() }, None);
    converse(protocol, stream, served, &limits(1), &CancellationToken::new()).await.unwrap();
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    (std::mem::take(&mut *slices.lock()), read)
}

/// The claim "a payload is not copied on its way to the socket", taken at its word.
#[tokio::test]
async fn an_http1_body_is_written_from_where_it_lies() {
    let payload = Bytes::from(vec![7; 1 << 20]);
    let place = (payload.as_ptr() as usize, payload.len());
    let whole = payload.clone();
    let (slices, read) = written(move || Body::from(whole.clone())).await;
    assert!(slices.contains(&place), "of known length: {slices:?}");
    assert!(read.ends_with(&payload));
    // Two frames, so that the body's end is not known with its first.
    let frames = [payload.clone(), Bytes::from_static(b"end")];
    let stream = move || {
        let frames = frames.clone().map(|data| Ok::<_, io::Error>(Frame::data(data)));
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    };
    let (slices, read) = written(stream).await;
    assert!(slices.contains(&place), "chunked: {slices:?}");
    assert!(read.ends_with(b"\r\n3\r\nend\r\n0\r\n\r\n"));
}

fn limits(max_connections: usize) -> Limits {
    Limits {
        max_connections,
        max_streams: 16,
        max_header_bytes: 16 << 10,
        header_time: Duration::from_secs(10),
        idle_time: Duration::from_mins(5),
        max_age: None,
        request_time: Duration::from_mins(10),
    }
}

/// A listener that serves one connection at a time, and its address.
async fn narrow(tls: Option<tls::Acceptor>, stop: &CancellationToken) -> SocketAddr {
    let listener = Listener::bind("test", SocketAddr::from(([127, 0, 0, 1], 0)), limits(1)).await.unwrap();
    let address = listener.address().unwrap();
    let router = Router::new().route("/", axum::routing::get(|| async { "served" }));
    let serving = listener.with(router).with_tls(tls).serve(stop.clone(), Duration::ZERO);
    task::spawn(tracing::Span::none(), serving).detach();
    address
}

/// An acceptor, and a client that trusts it and offers `alpn`.
fn trusted(alpn: &[u8]) -> (tls::Acceptor, tokio_rustls::TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = tls::Config::new(folder.path().join("pem"), folder.path().join("key"));
    std::fs::write(&config.certificate, made.cert.pem()).unwrap();
    std::fs::write(&config.private_key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![alpn.to_vec()];
    (tls::Acceptor::new(tls::Prepared::read(&config).unwrap()), Arc::new(client).into())
}

/// Reads to the end, however the other side made it; on a clock that does not make anybody wait for it.
async fn until_closed(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut read = Vec::new();
    tokio::time::pause();
    timeout(Duration::from_hours(1), stream.read_to_end(&mut read)).await.expect("the other side ends it").ok();
    tokio::time::resume();
    read
}

#[tokio::test]
async fn who_does_not_say_what_it_speaks_gives_its_slot_back() {
    let stop = CancellationToken::new();
    let plain = narrow(None, &stop).await;
    let silent = TcpStream::connect(plain).await.unwrap();
    assert_eq!(until_closed(silent).await, b"");
    let mut half = TcpStream::connect(plain).await.unwrap();
    half.write_all(b"PRI * HT").await.unwrap();
    assert_eq!(until_closed(half).await, b"");

    let (acceptor, connector) = trusted(b"h2");
    let secured = narrow(Some(acceptor), &stop).await;
    let connect = async || {
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        connector.connect(name, TcpStream::connect(secured).await.unwrap()).await.unwrap()
    };
    let silent = TcpStream::connect(secured).await.unwrap();
    assert_eq!(until_closed(silent).await, b"");
    // Agreed on HTTP/2, and then nothing, or half of its first words.
    assert_eq!(until_closed(connect().await).await, b"");
    let mut half = connect().await;
    half.write_all(b"PRI * HT").await.unwrap();
    assert_eq!(until_closed(half).await, b"");
    // The one slot is free again.
    let mut client = TcpStream::connect(plain).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("served"), "{answer}");
    stop.cancel();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_those_who_have_not_said_what_they_speak() {
    let (acceptor, _) = trusted(b"h2");
    let listener = Listener::bind("test", SocketAddr::from(([127, 0, 0, 1], 0)), limits(8)).await.unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    let serving = task::spawn(
        tracing::Span::none(),
        listener.with_tls(Some(acceptor)).serve(stop.clone(), Duration::from_hours(1)),
    );
    let silent = TcpStream::connect(address).await.unwrap();
    stop.cancel();
    serving.join().await.unwrap();
    assert_eq!(until_closed(silent).await, b"");
}

#[tokio::test]
async fn a_panic_is_one_requests_error() {
    let stop = CancellationToken::new();
    let listener = Listener::bind("test", SocketAddr::from(([127, 0, 0, 1], 0)), limits(1)).await.unwrap();
    let address = listener.address().unwrap();
    let router = Router::new()
        .route("/", axum::routing::get(|| async { "served" }))
        .route("/panics", axum::routing::any(|| async { if true { panic!("on purpose") } else { "" } }));
    task::spawn(tracing::Span::none(), listener.with(router).serve(stop.clone(), Duration::ZERO)).detach();
    let mut client = TcpStream::connect(address).await.unwrap();
    // One after the other on one connection, which the panics leave as it was.
    let requests = "GET /panics HTTP/1.1\r\nHost: x\r\n\r\n\
                    POST /panics HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n\
                    GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).await.unwrap();
    let told: Vec<_> = answers.split("HTTP/1.1 ").skip(1).collect();
    assert!(told[0].starts_with("500") && told[0].contains(r#"{"error":"handling the request panicked"#), "{answers}");
    assert!(told[1].starts_with("200") && told[1].contains("grpc-status: 13"), "{answers}");
    assert!(told[2].starts_with("200") && told[2].ends_with("served"), "{answers}");
    stop.cancel();
}
