//! Bounds on connections: heads that do not come or are too long, streams, idleness, age; and where the admin port may be.

use std::time::Duration;

use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use latentgate::{Config, config::Overrides};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::support::{PATIENCE, TestApp, config, decode_spec, http, latents, program::Program};

/// Short for a person, long for a computer.
const SOON: Duration = Duration::from_millis(300);

async fn connect(app: &TestApp) -> TcpStream {
    TcpStream::connect(app.addresses.data).await.unwrap()
}

/// What comes until the other side ends it.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("the server ends it").ok();
    read
}

fn with(change: impl FnOnce(&mut latentgate::config::Listen)) -> Config {
    let mut config = config();
    change(&mut config.listen);
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_comes_drop_by_drop_is_cut_off_in_time() {
    let app = TestApp::start(with(|listen| listen.header_time = SOON)).await;
    let mut slow = connect(&app).await;
    let began = Instant::now();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let (mut read, mut write) = slow.split();
    let dripping = async {
        loop {
            sleep(SOON / 10).await;
            if write.write_all(b"X-Slow: 1\r\n").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = dripping => {}
        ended = timeout(PATIENCE, read.read_to_end(&mut answer)) => drop(ended.expect("the server ends it")),
    }
    assert!(began.elapsed() >= SOON && !answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    assert_eq!(app.http("GET", "/health", &[], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_long_is_refused_in_both_protocols() {
    let app = TestApp::start(with(|listen| listen.max_header = bytesize::ByteSize::kib(2))).await;
    let long = "x".repeat(4000);
    assert_eq!(app.http("GET", "/health", &[("X-Long", &long)], b"").await.status, 431);
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(connect(&app).await)).await.unwrap();
    tokio::spawn(connection);
    let request = ::http::Request::get("http://x/health").header("x-long", &long).body(Empty::<bytes::Bytes>::new());
    let refused = sender.send_request(request.unwrap()).await;
    assert!(refused.is_err() || refused.unwrap().status() == 431);
    assert_eq!(app.http("GET", "/health", &[("X-Short", &long[..500])], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_so_many_streams_and_others_wait_with_the_client() {
    let (app, gated) = TestApp::gated(with(|listen| listen.max_streams = 2)).await;
    let client = app.client().await;
    // Learns what the server allows.
    gated.open(1);
    client.decode(decode_spec(8, 8), latents(8, 8, 0)).await.unwrap();
    let ask = |seed| {
        let client = client.clone();
        tokio::spawn(async move { client.decode(decode_spec(8, 8), latents(8, 8, seed)).await })
    };
    let asked: Vec<_> = (1..=4).map(ask).collect();
    gated.until_runs(3).await;
    app.until("latentgate_inflight_requests", &[], 2.0).await;
    assert_eq!(gated.runs(), 3, "no third stream of this connection");
    gated.open(4);
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let (app, gated) = TestApp::gated(with(|listen| listen.idle_time = SOON)).await;
    let mut idle = connect(&app).await;
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(until_closed(&mut idle).await.starts_with(b"HTTP/1.1 200"));
    let (sender, connection) =
        http2::handshake::<_, _, Empty<bytes::Bytes>>(TokioExecutor::new(), TokioIo::new(connect(&app).await))
            .await
            .unwrap();
    timeout(PATIENCE, connection).await.expect("an idle connection of HTTP/2 ends").unwrap();
    drop(sender);

    let client = app.client().await;
    let asked = tokio::spawn(async move { client.decode(decode_spec(8, 8), latents(8, 8, 1)).await });
    gated.until_runs(1).await;
    sleep(SOON * 3).await;
    gated.open(1);
    asked.await.unwrap().expect("nothing was sent for a long time, and it was in progress");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_told_to_go_and_finishes_what_it_has() {
    let (app, gated) = TestApp::gated(with(|listen| listen.max_age = Some(SOON))).await;
    let client = app.client().await;
    let asked = {
        let client = client.clone();
        tokio::spawn(async move { client.decode(decode_spec(8, 8), latents(8, 8, 1)).await })
    };
    gated.until_runs(1).await;
    let mut kept_alive = connect(&app).await;
    kept_alive.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(
        until_closed(&mut kept_alive).await.starts_with(b"HTTP/1.1 200"),
        "an HTTP/1.1 connection ends between requests"
    );
    sleep(SOON).await;
    gated.open(2);
    asked.await.unwrap().expect("what was begun is finished");
    // A request that leaves just as the connection goes may be lost with it; the next one finds another.
    if client.decode(decode_spec(8, 8), latents(8, 8, 2)).await.is_err() {
        client.decode(decode_spec(8, 8), latents(8, 8, 2)).await.expect("the client connects anew");
    }
}

#[test]
fn the_admin_port_stays_on_the_loopback_unless_told() {
    let mut config = Config::default();
    config.listen.admin = "0.0.0.0:8791".parse().unwrap();
    let fault = config.validate().unwrap_err().to_string();
    assert!(fault.contains("listen.admin = 0.0.0.0:8791") && fault.contains("admin_beyond_loopback"), "{fault}");
    config.listen.admin_beyond_loopback = true;
    config.validate().unwrap();
    let listen = latentgate::config::ListenOverrides { data: None, admin: Some("0.0.0.0:1".parse().unwrap()) };
    let fault = Config::load(None, &Overrides { listen: Some(listen) }).unwrap_err().to_string();
    assert!(fault.contains("listen.admin = 0.0.0.0:1"), "{fault}");
}

#[test]
fn bounds_that_cannot_be_are_told_with_their_keys() {
    let config = with(|listen| {
        listen.max_streams = 0;
        listen.max_header = bytesize::ByteSize::b(1);
        listen.header_time = Duration::ZERO;
        listen.idle_time = Duration::from_hours(48);
        listen.max_age = Some(Duration::ZERO);
    });
    let fault = config.validate().unwrap_err().to_string();
    for key in ["max_streams", "max_header", "header_time", "idle_time", "max_age"] {
        assert!(fault.contains(&format!("listen.{key} = ")), "{key} is not in {fault}");
    }
}

/// The program raises its own limit on descriptors as far as its connections need and the hard limit allows.
#[tokio::test]
async fn there_are_descriptors_for_all_connections() {
    let program = Program::start("route.backends = [\"local\"]\nlisten.max_connections = 1500\n").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [soft, hard] = numbers[..] else { return };
    assert!(soft >= hard.min(2 * 1500), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_head_of_http2_is_no_request() {
    let app = TestApp::start(with(|listen| (listen.idle_time, listen.header_time) = (SOON, SOON))).await;
    let mut stream = connect(&app).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // HEADERS of stream 1 without END_HEADERS: `:method: GET`, and nothing after it.
    stream.write_all(b"\0\0\x01\x01\x01\0\0\0\x01\x82").await.unwrap();
    until_closed(&mut stream).await;
    assert_eq!(http::raw(app.addresses.data, &http::request("GET", "/health", &[], b"")).await.unwrap().status, 200);
}
