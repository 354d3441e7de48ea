//! Whom the upstream backend trusts, and what it keeps to itself: tokens, certificates, logs.

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use latentgate::{
    backend::upstream::{Config, Secret},
    error::ErrorKind,
    job::Output,
    tensor::DType,
};
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tracing::instrument::WithSubscriber as _;

use crate::support::{
    origin::{Answer, Asked, Behaviour, Origin, decoded},
    rig::{Rig, decode_at, floats, quick},
};

const RAW: Output = Output::Tensor(DType::F16);

fn token_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn status(status: u16, text: &'static str) -> Behaviour {
    Behaviour::Status(status, text, None)
}

#[tokio::test]
async fn the_token_of_the_file_goes_to_a_loopback_endpoint_and_the_ambient_one_does_not() {
    let origin = Origin::start().await;
    let file = token_file("tok_file\n");
    let latents = floats(&[1, 4, 2, 2], 1);
    let ambient = Some(Secret::new("hf_ambient"));
    for (token_file, sent) in [(Some(file.path().to_owned()), Some("Bearer tok_file")), (None, None)] {
        let config = Config { token_file, token: ambient.clone(), ..quick() };
        let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &config);
        rig.run(rig.decode(&latents, RAW)).await.unwrap();
        assert_eq!(origin.requests().pop().unwrap().header("authorization"), sent);
    }
}

#[tokio::test]
async fn a_refused_token_is_read_again_and_one_that_did_not_change_is_said_to_be_wrong() {
    let origin = Origin::start().await;
    let file = token_file("tok_old");
    let config = Config { token_file: Some(file.path().to_owned()), ..quick() };
    let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &config);
    let latents = floats(&[1, 4, 2, 2], 1);
    let run = || rig.run(rig.decode(&latents, RAW));

    origin.script([status(401, "no")]);
    let error = run().await.unwrap_err();
    assert_eq!((error.kind(), origin.count()), (ErrorKind::Unavailable, 1));
    assert!(error.message().contains("HF_TOKEN or upstream.token_file"), "{error}");

    std::fs::write(file.path(), "tok_new").unwrap();
    origin.script([status(401, "no")]);
    run().await.unwrap();
    let sent: Vec<_> =
        origin.requests().iter().map(|asked| asked.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(sent, ["Bearer tok_old", "Bearer tok_old", "Bearer tok_new"]);
}

/// A log that can be read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_logs_nor_errors_show_token_query_or_payload() {
    let origin = Origin::start().await;
    let file = token_file("tok_secret_123");
    let config = Config { token_file: Some(file.path().to_owned()), retries: 1, ..quick() };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
    let dispatch = tracing::Dispatch::new(subscriber.with_writer(move || writer.clone()).finish());
    // While there is one subscriber alone, a place that another thread logs from first counts as never wanted.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let work = async {
        let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), &config);
        let latents = floats(&[1, 4, 2, 2], 1);
        let echo = status(400, "who sent Bearer tok_secret_123?");
        origin.script([Behaviour::Close, Behaviour::Good, status(500, "x"), Behaviour::Html, Behaviour::Html, echo]);
        let mut told = Vec::new();
        for _ in 0..3 {
            if let Err(error) = rig.run(rig.decode(&latents, RAW)).await {
                told.push(format!("{error} {error:?} {}", latentgate::error::chain(&error)));
            }
        }
        assert_eq!(origin.count(), 6);
        told.join("\n")
    };
    let told = work.with_subscriber(dispatch).await;
    let log = String::from_utf8_lossy(&log.0.lock()).into_owned();
    assert!(log.contains("an attempt failed") && told.contains("refuses the request (400)"), "{log}\n{told}");
    for text in [log, told] {
        for secret in ["tok_secret", "scaling_factor", "tenant", "output_type", "shape=1"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

/// An endpoint behind TLS that offers HTTP/2: its URL, its certificate as PEM, and the versions it is asked in.
async fn behind_tls() -> (String, String, Arc<Mutex<Vec<hyper::Version>>>, JoinHandle<()>) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
    let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let versions: Arc<Mutex<Vec<hyper::Version>>> = Arc::default();
    let seen = versions.clone();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request| {
                    let seen = seen.clone();
                    async move { Ok::<_, Infallible>(answer(request, &seen).await) }
                });
                let server = auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (url, pair.cert.pem(), versions, serving)
}

async fn answer(request: Request<Incoming>, seen: &Mutex<Vec<hyper::Version>>) -> Response<Full<Bytes>> {
    seen.lock().push(request.version());
    let (head, body) = request.into_parts();
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let asked = Asked { target, headers, body: body.collect().await.unwrap().to_bytes().to_vec() };
    let answer = Answer::of(&asked);
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(answer.body.into())).unwrap()
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_an_unknown_one_is_not() {
    let (url, certificate, versions, _serving) = behind_tls().await;
    let file = token_file(&certificate);
    let latents = floats(&[1, 4, 2, 2], 1);
    let trusting = Config { ca_file: Some(file.path().to_owned()), ..quick() };
    let rig = Rig::new("sd-v1", decode_at([url.clone()]), &trusting);
    let (_, bytes) = rig.run(rig.decode(&latents, RAW)).await.unwrap();
    assert_eq!(bytes, *decoded(&latents, "0.18215", "").data());
    assert_eq!(*versions.lock(), [hyper::Version::HTTP_2]);

    let rig = Rig::new("sd-v1", decode_at([url]), &quick());
    let error = rig.run(rig.decode(&latents, RAW)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(latentgate::error::chain(&error).contains("certificate"), "{}", latentgate::error::chain(&error));
    assert_eq!(versions.lock().len(), 1);
}
