//! The edge of the data port: TLS, gRPC-web, CORS.

use http_body_util::BodyExt as _;
use latentgate::{
    App, Config,
    proto::{DecodeRequest, DecodeResponse, DecodeSpec, ListModelsRequest, ListModelsResponse, decode_response::Event},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, HealthCheckResponse},
};

use crate::support::{
    TestApp,
    browser::{Request, Response, Version, open, read, request, send, web_answer, web_call, with},
    config, decode_spec, http, latents,
    tls::Identity,
};

const LIST_MODELS: &str = "/latentgate.v1.Latents/ListModels";
const DECODE: &str = "/latentgate.v1.Latents/Decode";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const WEB: &str = "application/grpc-web+proto";

fn with_tls(identity: &Identity) -> Config {
    let mut config = config();
    config.listen.tls = Some(identity.files.clone());
    config
}

fn with_origins(origins: &[&str]) -> Config {
    let mut config = config();
    config.cors.origins = origins.iter().map(|&origin| origin.to_owned()).collect();
    config
}

/// One request on a connection of its own.
async fn ask(app: &TestApp, version: Version, request: Request) -> Response {
    send(TcpStream::connect(app.addresses.data).await.unwrap(), version, request).await
}

fn list_models() -> Request {
    web_call(LIST_MODELS, WEB, &ListModelsRequest {})
}

fn assert_lists_models(response: &Response) {
    let (messages, trailers) = web_answer::<ListModelsResponse>(response);
    assert_eq!(messages.len(), 1);
    assert!(messages[0].models.iter().any(|model| model.id == "builtin"));
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
}

// TLS

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_everything_is_as_without_it() {
    let identity = Identity::new();
    let (plain, secured) = (TestApp::start(config()).await, TestApp::start(with_tls(&identity)).await);
    let (spec, data) = (decode_spec(24, 16), latents(24, 16, 1));
    let client = identity.grpc(secured.addresses.data).await;
    let answer = client.decode(spec.clone(), data.clone()).await.unwrap();
    assert_eq!(answer.bytes(), plain.client().await.decode(spec, data).await.unwrap().bytes());
    assert_eq!(secured.admin("/livez").await, (200, "ok\n".to_owned()), "the admin port has no TLS");
}

/// What a hosts-file entry and a certificate do for a client with its endpoint wired in (docs/HOSTS.md).
#[cfg(feature = "local")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_wired_in_endpoint_is_served_under_its_name() {
    let host = "q1bj3bpq6kzilnsu.us-east-1.aws.endpoints.huggingface.cloud";
    let identity = Identity::of(host);
    let mut config = with_tls(&identity);
    let weights = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/sd1");
    config.models.entry("sd-v1".to_owned()).or_default().weights = Some(weights);
    let app = TestApp::start(config).await;
    let target = "/?shape=1&shape=4&shape=4&shape=6&dtype=float32&output_type=pt&scaling_factor=0.18215";
    let headers = [("Host", host), ("Content-Type", "tensor/binary"), ("Accept", "tensor/binary")];
    let mut stream = identity.connect(app.addresses.data, &[b"http/1.1"]).await.unwrap();
    stream.write_all(&http::request("POST", target, &headers, &latents(4, 6, 1))).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let answer = http::HttpAnswer::parse(&bytes).unwrap().whole();
    assert_eq!((answer.status, answer.shape()), (200, vec![1, 3, 32, 48]));
    // The same by its path, without the name.
    let mut stream = identity.connect(app.addresses.data, &[b"http/1.1"]).await.unwrap();
    let target = target.replace("/?", "/decode/sd?");
    stream.write_all(&http::request("POST", &target, &headers[1..], &latents(4, 6, 1))).await.unwrap();
    bytes.clear();
    stream.read_to_end(&mut bytes).await.unwrap();
    let again = http::HttpAnswer::parse(&bytes).unwrap().whole();
    assert_eq!((again.header("cache-status"), &again.body), (Some("latentgate; hit; detail=memory"), &answer.body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_protocol_is_agreed_in_the_handshake() {
    let identity = Identity::new();
    let app = TestApp::start(with_tls(&identity)).await;
    for (offered, agreed, version) in [
        (&[b"h2".as_slice(), b"http/1.1"][..], Some(b"h2".as_slice()), Version::Http2),
        (&[b"http/1.1", b"h2"], Some(b"h2"), Version::Http2),
        (&[b"http/1.1"], Some(b"http/1.1"), Version::Http1),
        (&[], None, Version::Http1),
    ] {
        let stream = identity.connect(app.addresses.data, offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        assert_lists_models(&send(stream, version, list_models()).await);
    }
    identity.connect(app.addresses.data, &[b"spdy/3"]).await.expect_err("nothing in common");
    let mut stream = identity.connect(app.addresses.data, &[b"h2"]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or_default(), 0, "another protocol than agreed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_tls_is_turned_away_and_who_says_nothing_blocks_nobody() {
    let identity = Identity::new();
    let app = TestApp::start(with_tls(&identity)).await;
    let address = app.addresses.data;
    let silent = TcpStream::connect(address).await.unwrap();
    let agreed_and_silent = identity.connect(address, &[b"h2"]).await.unwrap();
    for said in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 64]] {
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // An alert and the end, or a reset.
        plain.read_to_end(&mut answer).await.ok();
        assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    }
    let distrustful = Identity::new();
    distrustful.connect(address, &[b"h2"]).await.expect_err("an authority that is not trusted");
    identity.grpc(address).await.decode(decode_spec(8, 8), latents(8, 8, 1)).await.expect("the server goes on");
    drop((silent, agreed_and_silent));
}

/// Why an app does not start with these files; what it says names no byte of the key.
async fn refused(certificate: &std::path::Path, private_key: &std::path::Path) -> String {
    let mut config = config();
    let files = latentgate::front::listen::tls::Config::new(certificate.to_owned(), private_key.to_owned());
    config.listen.tls = Some(files);
    let error = App::bind(config).await.err().expect("no start without TLS that was asked for");
    let said = format!("{error:?} {}", latentgate::error::chain(&error));
    let key = std::fs::read_to_string(private_key).unwrap_or_default();
    for line in key.lines().filter(|line| line.len() > 20 && !line.contains("-----")) {
        assert!(!said.contains(line), "{said}");
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_make_no_tls_are_named_with_key_and_remedy() {
    let (identity, other) = (Identity::new(), Identity::new());
    let (certificate, key) = (&identity.files.certificate, &identity.files.private_key);
    let file = |name: &str, text: String| {
        let path = identity.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let text = std::fs::read_to_string(key).unwrap();
    // A key that lost its line ends, as in a badly quoted secret: the parser would quote it whole.
    let one_line = file("one-line.key", text.replace('\n', ""));
    let encrypted = file("encrypted.key", text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    let broken = file("broken.pem", std::fs::read_to_string(certificate).unwrap().replace("MII", "AAA"));
    let missing = identity.folder.path().join("missing.pem");
    for (certificate, key, wanted) in [
        (&missing, key, ["listen.tls.certificate", "missing.pem", "name a PEM file"]),
        (certificate, &missing, ["listen.tls.private_key", "missing.pem", "name a PEM file"]),
        (key, key, ["listen.tls.certificate", "server.key", "wanted PEM"]),
        (&broken, key, ["listen.tls.certificate", "broken.pem", "wanted PEM"]),
        (certificate, certificate, ["listen.tls.private_key", "server.pem", "unencrypted"]),
        (certificate, &one_line, ["listen.tls.private_key", "one-line.key", "unencrypted"]),
        (certificate, &encrypted, ["listen.tls.private_key", "encrypted.key", "unencrypted"]),
        (certificate, &other.files.private_key, ["listen.tls.private_key", "server.pem", "pair"]),
    ] {
        let said = refused(certificate, key).await;
        assert!(wanted.iter().all(|word| said.contains(word)), "wanted {wanted:?}: {said}");
    }
    let said = with_tls(&identity).to_toml();
    assert!(said.contains("server.key") && !said.contains("BEGIN"), "{said}");
}

// gRPC-web

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_answered_in_every_kind_of_grpc_web() {
    let app = TestApp::start(config()).await;
    while app.admin("/readyz").await.0 != 200 {}
    for version in Version::BOTH {
        for kind in ["application/grpc-web", WEB, "application/grpc-web-text", "application/grpc-web-text+proto"] {
            let listed = ask(&app, version, web_call(LIST_MODELS, kind, &ListModelsRequest {})).await;
            assert!(listed.header("content-type").starts_with(kind), "{version:?} {kind}: {listed:?}");
            assert!(listed.trailers.is_empty(), "scripts see no trailers");
            assert_lists_models(&listed);
            let checked = ask(&app, version, web_call(CHECK, kind, &HealthCheckRequest::default())).await;
            let (health, trailers) = web_answer::<HealthCheckResponse>(&checked);
            assert_eq!(health[0].status, ServingStatus::Serving as i32);
            assert!(trailers.contains("grpc-status:0"), "{trailers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_decodes_with_one_message() {
    let app = TestApp::start(config()).await;
    let (spec, data) = (decode_spec(24, 16), latents(24, 16, 1));
    let wanted = app.client().await.decode(spec.clone(), data.clone()).await.unwrap();
    let message = DecodeRequest { spec: Some(spec), data };
    for version in Version::BOTH {
        for kind in [WEB, "application/grpc-web-text"] {
            let response = ask(&app, version, web_call(DECODE, kind, &message)).await;
            let (events, trailers) = web_answer::<DecodeResponse>(&response);
            assert!(trailers.contains("grpc-status:0"), "{trailers}");
            let chunks = events.into_iter().filter_map(|response| match response.event {
                Some(Event::Chunk(chunk)) => Some(chunk),
                _ => None,
            });
            assert_eq!(chunks.collect::<Vec<_>>().concat(), wanted.bytes(), "{version:?} {kind}");
        }
    }
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_browser_may_not_do_is_told_in_headers() {
    let app = TestApp::start(config()).await;
    let unknown = DecodeSpec { model: "nope".to_owned(), ..decode_spec(8, 8) };
    let message = DecodeRequest { spec: Some(unknown), data: latents(8, 8, 1) };
    let not_base64 =
        with(request(::http::Method::POST, DECODE, "!!!!!!!!"), "content-type", "application/grpc-web-text");
    let other_codec = with(list_models(), "content-type", "application/grpc-web+json");
    for version in Version::BOTH {
        let response = ask(&app, version, web_call(DECODE, WEB, &message)).await;
        assert_eq!((response.status.as_u16(), response.header("grpc-status")), (200, "5"), "{response:?}");
        assert_eq!(response.header("content-type"), WEB);
        let response = ask(&app, version, not_base64.clone()).await;
        assert_eq!((response.status.as_u16(), response.header("grpc-status")), (200, "3"), "{response:?}");
        assert_eq!(ask(&app, version, other_codec.clone()).await.status, 415);
        // What is not gRPC-web is none of its business: no 400.
        assert_eq!(ask(&app, version, request(::http::Method::POST, LIST_MODELS, "{}")).await.status, 415);
    }
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_that_watches_the_health_is_told_of_the_drain() {
    let mut app = TestApp::start(config()).await;
    let watch = web_call(WATCH, WEB, &HealthCheckRequest::default());
    let mut watched = open(TcpStream::connect(app.addresses.data).await.unwrap(), Version::Http1, watch).await;
    watched.body_mut().frame().await.unwrap().expect("the health as it is");
    app.stop();
    let rest = read(watched).await;
    assert!(rest.body.windows(14).any(|window| window == b"grpc-status:14"), "{rest:?}");
    app.stopped().await;
}

// CORS

const STUDIO: &str = "https://studio.example";

fn preflight(origin: &str) -> Request {
    let asked = with(request(::http::Method::OPTIONS, DECODE, ""), "origin", origin);
    let asked = with(asked, "access-control-request-method", "POST");
    with(asked, "access-control-request-headers", "content-type,x-grpc-web,x-whatever")
}

fn permissions(response: &Response) -> Vec<&str> {
    response.headers.keys().map(::http::HeaderName::as_str).filter(|name| name.starts_with("access-control-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_configured_origin_may_ask_and_read() {
    let app = TestApp::start(with_origins(&[STUDIO, "http://localhost:5173"])).await;
    for version in Version::BOTH {
        let response = ask(&app, version, preflight(STUDIO)).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("access-control-allow-origin"), STUDIO);
        assert_eq!(response.header("access-control-allow-methods"), "GET,POST,OPTIONS");
        assert_eq!(response.header("access-control-allow-headers"), "content-type,x-grpc-web,x-whatever");
        assert_eq!(response.header("access-control-max-age"), "3600");
        assert_eq!(response.header("access-control-allow-credentials"), "");
        assert!(response.header("vary").contains("origin"));

        let response = ask(&app, version, with(list_models(), "origin", "http://localhost:5173")).await;
        assert_lists_models(&response);
        assert_eq!(response.header("access-control-allow-origin"), "http://localhost:5173");
        let readable = "shape,dtype,cache-status,latentgate-key,server-timing,content-length,retry-after,grpc-status,\
                        grpc-message,grpc-status-details-bin";
        assert_eq!(response.header("access-control-expose-headers"), readable);
        assert!(response.header("vary").contains("origin"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_pages_get_no_permission_and_other_clients_are_served_as_ever() {
    let (none, some) = (TestApp::start(config()).await, TestApp::start(with_origins(&[STUDIO])).await);
    for (app, origin) in [(&none, STUDIO), (&some, "https://elsewhere.example"), (&some, "null")] {
        let refused = ask(app, Version::Http1, preflight(origin)).await;
        assert!(permissions(&refused).is_empty() && refused.status != 200, "{refused:?}");
        let served = ask(app, Version::Http1, with(list_models(), "origin", origin)).await;
        assert_lists_models(&served);
        assert!(permissions(&served).is_empty(), "{served:?}");
    }
    let unasked = ask(&some, Version::Http2, list_models()).await;
    assert!(permissions(&unasked).is_empty() && unasked.header("vary").contains("origin"), "{unasked:?}");
    some.client().await.decode(decode_spec(8, 8), latents(8, 8, 1)).await.expect("gRPC is as ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_star_lets_every_page_ask_on_every_path() {
    let app = TestApp::start(with_origins(&["*"])).await;
    for path in [LIST_MODELS, CHECK, "/", "/nowhere"] {
        let asked = with(request(::http::Method::OPTIONS, path, ""), "origin", "https://anywhere.example");
        let response = ask(&app, Version::Http1, with(asked, "access-control-request-method", "GET")).await;
        assert_eq!((response.status.as_u16(), response.header("access-control-allow-origin")), (200, "*"), "{path}");
    }
}
