//! Named clients: who is let in, over both protocols and the Unix socket, and how much each may.

use std::path::PathBuf;

use bytesize::ByteSize;
use latentgate::{
    Config,
    clients::{Limits, SocketTrust, Unnamed},
    proto::{DecodeRequest, ListModelsRequest, ListModelsResponse},
};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};
use tonic_types::StatusExt as _;

use crate::support::{
    Answer, Client, TestApp, browser, collect, config, decode_spec,
    http::{self, HttpAnswer},
    latents, reason,
};

const STUDIO: &str = "lg-studio-0123456789abcdef";
const BATCH: &str = "lg-batch-0123456789abcdef";

/// `[studio]` and `[batch]` with their tokens, and a configuration that knows them.
struct Known {
    folder: TempDir,
    file: PathBuf,
}

impl Known {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let known = Self { file: folder.path().join("clients.toml"), folder };
        known.write(&format!("{}{}{more}", entry("studio", STUDIO), entry("batch", BATCH)));
        known
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    fn config(&self) -> Config {
        let mut config = config();
        config.clients.file = Some(self.file.clone());
        config.reload.every = std::time::Duration::from_millis(20);
        config
    }
}

fn entry(name: &str, token: &str) -> String {
    format!("[{name}]\ntokens = [\"blake3:{}\"]\n", blake3::hash(token.as_bytes()))
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

async fn decode(client: &Client, token: Option<&str>, seed: u32) -> Result<Answer, Status> {
    let message = DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, seed) };
    let request = with_token(tokio_stream::iter([message]), token);
    collect(client.grpc.clone().decode(request).await?.into_inner()).await
}

const TARGET: &str = "/decode/builtin?shape=1&shape=4&shape=8&shape=8&dtype=float32&do_scaling=True";

fn post(token: Option<&str>) -> Vec<u8> {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Content-Type", "tensor/binary"), ("Accept", "image/png")];
    headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
    http::request("POST", TARGET, &headers, &latents(8, 8, 1))
}

async fn posted(app: &TestApp, token: Option<&str>) -> HttpAnswer {
    http::raw(app.addresses.data, &post(token)).await.expect("an answer").whole()
}

fn unauthenticated() -> (Code, String) {
    (Code::Unauthenticated, "UNAUTHENTICATED".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_served_without_a_right_token() {
    let known = Known::new("");
    let app = TestApp::start(known.config()).await;
    let client = app.client().await;
    for token in [None, Some("lg-nobody"), Some("")] {
        let status = decode(&client, token, 1).await.err().expect("refused");
        assert_eq!(reason(&status), unauthenticated());
        assert!(status.message().contains("token") || status.message().contains("TOKEN"), "{status:?}");
        assert!(!status.message().contains("lg-nobody"), "{status:?}");
        let status = client.grpc.clone().list_models(with_token(ListModelsRequest {}, token)).await.err().unwrap();
        assert_eq!(reason(&status), unauthenticated());
        let answer = posted(&app, token).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer realm=\"latentgate\"")));
        assert!(answer.error().to_lowercase().contains("token") && answer.header("retry-after").is_none());
    }
    for token in [STUDIO, BATCH] {
        decode(&client, Some(token), 1).await.unwrap();
        client.grpc.clone().list_models(with_token(ListModelsRequest {}, Some(token))).await.unwrap();
        assert_eq!(posted(&app, Some(token)).await.status, 200);
    }
    app.until("latentgate_client_requests_total", &[r#"client="studio""#], 3.0).await;
    app.until("latentgate_client_request_bytes_total", &[r#"client="batch""#], 2048.0).await;
    assert!(app.metric("latentgate_client_response_bytes_total", &[r#"client="batch""#]).await > 0.0);
    assert!(app.metric("latentgate_errors_total", &[r#"reason="unauthenticated""#]).await >= 6.0);
    let (_, text) = app.admin("/metrics").await;
    for secret in [STUDIO, "lg-nobody", &blake3::hash(STUDIO.as_bytes()).to_string()] {
        assert!(!text.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_open_and_reflection_is_not() {
    let known = Known::new("");
    let app = TestApp::start(known.config()).await;
    for path in ["/", "/health"] {
        assert_eq!(app.http("GET", path, &[], b"").await.status, 200, "{path}");
    }
    assert_eq!(app.http("GET", "/decode/builtin", &[], b"").await.status, 401);
    assert_eq!(
        app.http("GET", "/decode/builtin", &[("Authorization", &format!("bearer {BATCH}"))], b"").await.status,
        200
    );
    let channel = app.client().await.channel;
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.expect("probes have no token");
    let ask = |token| {
        let list = MessageRequest::ListServices(String::new());
        let asked = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        with_token(tokio_stream::iter([asked]), token)
    };
    let mut reflection = ServerReflectionClient::new(channel);
    assert_eq!(reason(&reflection.server_reflection_info(ask(None)).await.err().unwrap()), unauthenticated());
    reflection.server_reflection_info(ask(Some(BATCH))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_needs_a_token_to_ask_and_none_for_permission_to() {
    let known = Known::new("");
    let mut config = known.config();
    config.cors.origins = vec!["https://studio.example".to_owned()];
    let app = TestApp::start(config).await;
    let ask = async |request| {
        let stream = TcpStream::connect(app.addresses.data).await.unwrap();
        browser::send(stream, browser::Version::Http1, request).await
    };
    let path = "/latentgate.v1.Latents/ListModels";
    let preflight = browser::request(::http::Method::OPTIONS, path, "");
    let preflight = browser::with(preflight, "origin", "https://studio.example");
    assert_eq!(ask(browser::with(preflight, "access-control-request-method", "POST")).await.status, 200);
    let call = || browser::web_call(path, "application/grpc-web+proto", &ListModelsRequest {});
    let refused = ask(call()).await;
    assert_eq!((refused.status.as_u16(), refused.header("grpc-status")), (200, "16"), "{refused:?}");
    let (listed, _) = browser::web_answer::<ListModelsResponse>(
        &ask(browser::with(call(), "authorization", &format!("Bearer {STUDIO}"))).await,
    );
    assert!(!listed[0].models.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sockets_mode_is_enough_unless_it_is_not_to_be() {
    let known = Known::new("");
    for (trust, wanted) in [(SocketTrust::Mode, 200), (SocketTrust::Token, 401)] {
        let mut config = known.config();
        let path = known.folder.path().join("data.sock");
        config.listen.socket = Some(path.clone());
        config.clients.socket = trust;
        let mut app = TestApp::start(config).await;
        let ask =
            async |token| http::exchange(UnixStream::connect(&path).await.unwrap(), &post(token)).await.unwrap().status;
        assert_eq!(ask(None).await, wanted);
        assert_eq!((ask(Some(STUDIO)).await, ask(Some("wrong")).await), (200, 401));
        assert_eq!(posted(&app, None).await.status, 401, "the port is as ever");
        app.stop();
        app.stopped().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unnamed_may_be_served_too_and_a_wrong_token_never_is() {
    let known = Known::new("");
    let mut config = known.config();
    config.clients.unnamed = Unnamed::Served;
    let app = TestApp::start(config).await;
    assert_eq!((posted(&app, None).await.status, posted(&app, Some("wrong")).await.status), (200, 401));
    app.until("latentgate_client_requests_total", &[r#"client="anonymous""#], 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_used_and_a_broken_one_is_not() {
    let known = Known::new("");
    let app = TestApp::start(known.config()).await;
    let client = app.client().await;
    decode(&client, Some(STUDIO), 1).await.unwrap();
    let reloads = |result: &'static str| ["what=\"clients\"", result];
    known.write(&format!("{}[batch]\ncertificates = [\"cn:batch\"]\n", entry("studio", "lg-another")));
    app.until("latentgate_reloads_total", &reloads("result=\"ok\""), 1.0).await;
    assert_eq!(reason(&decode(&client, Some(STUDIO), 1).await.err().unwrap()), unauthenticated());
    assert_eq!(reason(&decode(&client, Some(BATCH), 1).await.err().unwrap()), unauthenticated());
    decode(&client, Some("lg-another"), 1).await.expect("on the connection that is open");

    known.write("[studio]\ntokens = [\"lg-another\"]\n");
    app.until("latentgate_reload_failing", &["what=\"clients\""], 1.0).await;
    decode(&client, Some("lg-another"), 1).await.expect("the one before it stays");
    known.write(&entry("studio", STUDIO));
    app.until("latentgate_reload_failing", &["what=\"clients\""], 0.0).await;
    decode(&client, Some(STUDIO), 1).await.unwrap();
}

// Limits

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_each_clients_own_and_says_when_to_come_back() {
    let known = Known::new("limits = { requests_per_second = 0.01, burst = 2 }\n");
    let app = TestApp::start(known.config()).await;
    let client = app.client().await;
    for _ in 0..2 {
        decode(&client, Some(BATCH), 1).await.unwrap();
    }
    let status = decode(&client, Some(BATCH), 1).await.err().expect("used up");
    assert_eq!(reason(&status), (Code::ResourceExhausted, "CLIENT_LIMIT".to_owned()));
    assert!(
        status.message().contains("requests_per_second = 0.01") && status.message().contains("batch"),
        "{status:?}"
    );
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap().as_secs();
    assert!((90..=100).contains(&wait), "{wait}");
    let answer = posted(&app, Some(BATCH)).await;
    assert_eq!(answer.status, 429);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((90..=100).contains(&wait), "{wait}");
    for seed in 0..8 {
        decode(&client, Some(STUDIO), seed).await.expect("others have their own");
    }
    let labels = [r#"client="batch""#, r#"limit="requests_per_second""#];
    assert_eq!(app.metric("latentgate_client_refusals_total", &labels).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_have_rates_and_requests_in_progress_a_bound() {
    let known = Known::new("");
    let mut config = known.config();
    // A decode of 8 x 8 brings 1 KiB: the second second is spent with the third.
    config.clients.limits =
        Limits { input_per_second: Some(ByteSize::kib(1)), in_flight: Some(2), ..Limits::default() };
    let (app, gated) = TestApp::gated(config).await;
    let client = app.client().await;
    let ask = |seed| {
        let client = client.clone();
        tokio::spawn(async move { decode(&client, Some(BATCH), seed).await })
    };
    let held = [ask(1), ask(2)];
    gated.until_runs(2).await;
    let status = ask(3).await.unwrap().err().expect("two are in progress");
    assert_eq!(reason(&status), (Code::ResourceExhausted, "CLIENT_LIMIT".to_owned()));
    assert!(status.message().contains("in_flight = 2"), "{status:?}");
    assert!(status.get_details_retry_info().is_some());
    gated.open(2);
    for asked in held {
        asked.await.unwrap().unwrap();
    }
    app.until_idle().await;
    // 2 KiB have come, and less than a second may be owed.
    let mut served = 0;
    let status = loop {
        gated.open(1);
        match ask(10 + served).await.unwrap() {
            Ok(_) => served += 1,
            Err(status) => break status,
        }
    };
    assert!(status.message().contains("input_per_second = 1.0 KiB"), "{status:?}");
    assert!(app.metric("latentgate_client_refusals_total", &[r#"limit="input_per_second""#]).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_without_a_name_are_bounded_by_their_address() {
    let mut config = config();
    config.clients.per_address = Limits { requests_per_second: Some(0.01), ..Limits::default() };
    let app = TestApp::start(config).await;
    assert_eq!(posted(&app, None).await.status, 200);
    let refused = posted(&app, Some("whatever")).await;
    assert_eq!(refused.status, 429);
    assert!(refused.error().contains("this address"), "{}", refused.error());
    // Another address of the loopback.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let stream = socket.connect(app.addresses.data).await.unwrap();
    assert_eq!(http::exchange(stream, &post(None)).await.unwrap().status, 200);
}
