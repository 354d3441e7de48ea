//! Every bad input gets its status with details, takes no memory, runs nothing, and the server goes on.

use std::time::Duration;

use bytes::Bytes;
use latentgate::proto::{
    self, DecodeRequest, DecodeSpec, Dtype, EncodeRequest, EncodeSpec, Output, Scaling, TensorSpec,
    cache_admin_client::CacheAdminClient, encode_spec, latents_client::LatentsClient, output, scaling,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::support::{Client, TestApp, config, decode_spec, encode_spec, latents, reason};

/// A refusal: code, reason, and the field at fault where one is.
type Refusal = (Code, &'static str, Option<&'static str>);

const BAD: (Code, &str) = (Code::InvalidArgument, "BAD_REQUEST");

fn bad(field: &'static str) -> Refusal {
    (BAD.0, BAD.1, Some(field))
}

#[track_caller]
fn assert_refused(case: &str, status: &Status, (code, wanted, field): Refusal) {
    assert_eq!(reason(status), (code, wanted.to_owned()), "{case}: {status:?}");
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    assert_eq!(violations.first().map(|violation| violation.field.as_str()), field, "{case}: {status:?}");
    assert!(!status.message().is_empty());
}

/// Nothing ran, nothing is held, and a good request is served.
async fn assert_unharmed(app: &TestApp, gated: &crate::support::Gated, client: &Client) {
    assert_eq!(gated.runs(), 0);
    app.until_idle().await;
    gated.open(1);
    client.decode(decode_spec(8, 8), latents(8, 8, 99)).await.expect("the server goes on serving");
}

fn shaped(shape: &[i64]) -> DecodeSpec {
    let latents = TensorSpec { dtype: Dtype::F32 as i32, shape: shape.to_vec() };
    DecodeSpec { latents: Some(latents), ..decode_spec(8, 8) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_decode_specs() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let with = |change: &dyn Fn(&mut DecodeSpec)| {
        let mut spec = decode_spec(8, 8);
        change(&mut spec);
        spec
    };
    let output = |kind| Some(Output { kind: Some(kind) });
    let too_large = |field| (Code::ResourceExhausted, "TOO_LARGE", Some(field));
    let cases: Vec<(&str, DecodeSpec, Refusal)> = vec![
        ("no latents", with(&|s| s.latents = None), bad("latents")),
        ("no dtype", with(&|s| s.latents.as_mut().unwrap().dtype = 0), bad("latents.dtype")),
        ("unknown dtype", with(&|s| s.latents.as_mut().unwrap().dtype = 77), bad("latents.dtype")),
        ("integers as latents", with(&|s| s.latents.as_mut().unwrap().dtype = Dtype::U8 as i32), bad("latents.dtype")),
        ("no shape", shaped(&[]), bad("latents.shape")),
        ("negative shape", shaped(&[1, -4, 8, 8]), bad("latents.shape")),
        ("zero shape", shaped(&[1, 4, 0, 8]), bad("latents.shape")),
        ("overflowing shape", shaped(&[i64::MAX, i64::MAX, 8, 8]), bad("latents.shape")),
        ("huge shape", shaped(&[1, 4, 1_000_000, 1_000_000]), too_large("latents.shape")),
        ("huge batch", shaped(&[1000, 4, 8, 8]), too_large("latents.shape")),
        ("wrong rank", shaped(&[4, 8]), bad("latents.shape")),
        ("too many dimensions", shaped(&[1; 9]), bad("latents.shape")),
        ("wrong channels", shaped(&[1, 16, 8, 8]), bad("latents.shape")),
        ("packed without a size", shaped(&[1, 16, 16]), bad("height")),
        ("packed of another size", DecodeSpec { height: 64, width: 80, ..shaped(&[1, 16, 16]) }, bad("latents.shape")),
        ("no output", with(&|s| s.output = None), bad("output")),
        (
            "quality",
            with(&|s| s.output = output(output::Kind::Jpeg(output::Jpeg { quality: 300 }))),
            bad("output.jpeg.quality"),
        ),
        (
            "quality over 100",
            with(&|s| s.output = output(output::Kind::Jpeg(output::Jpeg { quality: 101 }))),
            bad("output.jpeg.quality"),
        ),
        ("unknown policy", with(&|s| s.cache = 9), bad("cache")),
        ("short digest", with(&|s| s.digest = Bytes::from_static(b"abc")), bad("digest")),
        (
            "a factor of zero",
            with(&|s| s.scaling = Some(Scaling { kind: Some(scaling::Kind::Given(scaling::Given::default())) })),
            bad("scaling.given.factor"),
        ),
        (
            "mp4 of pictures",
            with(&|s| s.output = output(output::Kind::Mp4(output::Mp4 { fps: 10 }))),
            (Code::InvalidArgument, "OUTPUT_UNSUPPORTED", Some("output")),
        ),
        (
            "a batch as one picture",
            shaped(&[2, 4, 8, 8]),
            (Code::InvalidArgument, "OUTPUT_UNSUPPORTED", Some("output")),
        ),
        ("unknown model", with(&|s| s.model = "nope".to_owned()), (Code::NotFound, "UNKNOWN_MODEL", None)),
    ];
    for (case, spec, wanted) in cases {
        let status = client.decode(spec, vec![0; 40]).await.err().unwrap_or_else(|| panic!("{case} is refused"));
        assert_refused(case, &status, wanted);
    }
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_latents() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let good = latents(8, 8, 1);
    let with = |value: f32| {
        let mut data = good.to_vec();
        data[400..404].copy_from_slice(&value.to_le_bytes());
        Bytes::from(data)
    };
    for (case, data) in [
        ("one byte short", good.slice(1..)),
        ("one byte long", [&good[..], &[0]].concat().into()),
        ("nothing", Bytes::new()),
        ("nan", with(f32::NAN)),
        ("infinity", with(f32::INFINITY)),
        ("minus infinity", with(f32::NEG_INFINITY)),
    ] {
        let status = client.decode(decode_spec(8, 8), data).await.err().unwrap_or_else(|| panic!("{case} is refused"));
        assert_refused(case, &status, bad("data"));
    }
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_streams() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let spec = || Some(decode_spec(8, 8));
    let data = latents(8, 8, 1);
    let message = |spec, data: Bytes| DecodeRequest { spec, data };
    let cases = vec![
        ("an empty stream", vec![], bad("spec")),
        ("an empty message", vec![DecodeRequest::default()], bad("spec")),
        ("data before spec", vec![message(None, data.clone()), message(spec(), Bytes::new())], bad("spec")),
        ("a spec twice", vec![message(spec(), data.slice(..8)), message(spec(), data.slice(8..))], bad("spec")),
        ("less than announced", vec![message(spec(), data.slice(..8)), message(None, data.slice(8..100))], bad("data")),
        ("more than announced", vec![message(spec(), data.clone()), message(None, data.slice(..1))], bad("data")),
        ("much more, in one", vec![message(spec(), vec![0; 3 << 20].into())], bad("data")),
    ];
    for (case, messages, wanted) in cases {
        let status = client.decode_messages(messages).await.err().unwrap_or_else(|| panic!("{case} is refused"));
        assert_refused(case, &status, wanted);
    }
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_never_ends_is_cut_at_the_first_byte_too_many() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let first = DecodeRequest { spec: Some(decode_spec(8, 8)), data: Bytes::new() };
    let more = std::iter::repeat_with(|| DecodeRequest { spec: None, data: vec![0; 64 << 10].into() });
    let endless = tokio_stream::iter(std::iter::once(first).chain(more));
    let status = client.open_decode(endless, None).await.expect_err("refused");
    assert_refused("endless", &status, bad("data"));
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stalls_is_let_go() {
    let mut config = config();
    config.limits.stall_time = Duration::from_millis(500);
    let (app, gated) = TestApp::gated(config).await;
    let client = app.client().await;
    for first in [
        None,
        Some(DecodeRequest { spec: Some(decode_spec(8, 8)), data: Bytes::new() }),
        Some(DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, 1).slice(..100) }),
        // All is there, but the stream does not end.
        Some(DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, 1) }),
    ] {
        let (messages, stream) = mpsc::channel(1);
        if let Some(first) = first {
            messages.send(first).await.unwrap();
        }
        let status = client.open_decode(ReceiverStream::new(stream), None).await.expect_err("let go");
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
        assert!(status.message().contains("said nothing"), "{status:?}");
        drop(messages);
    }
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_is_deadline_exceeded_whenever_it_passes() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let whole = || DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, 1) };
    // In the past already: zero nanoseconds. The head is the whole answer, and there is nothing to wait for.
    let (status, reason_header) = bare_decode(&app, "0n").await;
    assert_eq!((status.as_str(), gated.runs()), ("4", 0), "{reason_header}");
    // While the run goes on: the answer was accepted, then the stream ends with the status.
    let mut stream = raw_decode(&client, whole(), "50m").await;
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("never a clean short end"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    gated.until_stopped(1).await;
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_answer_loses_it() {
    let mut config = config();
    config.limits.stall_time = Duration::from_millis(500);
    let app = TestApp::start(config).await;
    let client = app.client().await;
    // 12 MiB of tensor: far beyond what the client's windows take in unasked.
    let tensor = output::Kind::Tensor(output::Tensor { dtype: Dtype::F32 as i32 });
    let spec = DecodeSpec { output: Some(Output { kind: Some(tensor) }), ..decode_spec(128, 128) };
    let message = DecodeRequest { spec: Some(spec), data: latents(128, 128, 1) };
    let mut stream = client.open_decode(tokio_stream::iter([message]), None).await.unwrap();
    app.until("latentgate_errors_total", &[r#"reason="deadline_exceeded""#], 1.0).await;
    app.until_idle().await;
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("never a clean short end"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    client.decode(decode_spec(8, 8), latents(8, 8, 1)).await.expect("the connection is as good as before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_size_that_is_only_claimed_takes_no_budget_and_empty_messages_are_no_sign_of_life() {
    let mut config = config();
    config.limits.stall_time = Duration::from_millis(500);
    let (app, gated) = TestApp::gated(config).await;
    let client = app.client().await;
    let first = EncodeRequest { spec: Some(encode_spec(256 << 20)), data: Bytes::from_static(b"x") };
    let nothing = tokio_stream::StreamExt::throttle(
        tokio_stream::iter(std::iter::repeat_with(EncodeRequest::default)),
        Duration::from_millis(20),
    );
    let messages = tokio_stream::StreamExt::chain(tokio_stream::iter([first]), nothing);
    let mut grpc = client.grpc.clone();
    let asked = tokio::spawn(async move { grpc.encode(messages).await });
    app.until("latentgate_inflight_requests", &[], 1.0).await;
    let reserved = app.metric("latentgate_inflight_bytes", &[]).await;
    assert!(reserved <= (4 << 20) as f64, "{reserved}");
    let status = asked.await.unwrap().expect_err("let go");
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_finite_is_refused_and_not_kept() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let picture = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo.jpg")).unwrap();
    let given = scaling::Given { factor: 1e30, shift: 0.0 };
    let spec =
        EncodeSpec { scaling: Some(Scaling { kind: Some(scaling::Kind::Given(given)) }), ..encode_spec(picture.len()) };
    let status = client.encode(spec, picture).await.err().expect("f16 does not reach that far");
    assert_refused("infinity", &status, bad("scaling"));
    app.until("latentgate_cache_entries", &[], 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_grpc_is_told_so() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let app = TestApp::start(config()).await;
    for request in [
        "GET /latentgate.v1.Latents/Decode HTTP/1.1",
        "POST /other.Service/Method HTTP/1.1",
        "POST /latentgate.v1.Latents/Decode HTTP/1.1",
    ] {
        let mut socket = tokio::net::TcpStream::connect(app.addresses.data).await.unwrap();
        let head = format!("{request}\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap();
        assert!(["404", "405", "415"].contains(&code) || answer.contains("grpc-status: 12"), "{request}: {answer}");
    }
    let mut socket = tokio::net::TcpStream::connect(app.addresses.data).await.unwrap();
    socket.write_all(b"\x16\x03\x01 this is a TLS hello, more or less\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    app.client().await.decode(decode_spec(8, 8), latents(8, 8, 1)).await.expect("the server goes on serving");
}

/// A decode without tonic's client, which would enforce the timeout itself before the server can: `grpc-status` and
/// `grpc-message` of a trailers-only response.
async fn bare_decode(app: &TestApp, timeout: &str) -> (String, String) {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let socket = tokio::net::TcpStream::connect(app.addresses.data).await.unwrap();
    let io = TokioIo::new(socket);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let message =
        prost::Message::encode_to_vec(&DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, 1) });
    let frame = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let request = http::Request::post(format!("http://{}/latentgate.v1.Latents/Decode", app.addresses.data))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(http_body_util::Full::new(Bytes::from(frame)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (header("grpc-status"), header("grpc-message"))
}

/// A decode whose response stream outlives the timeout: tonic's client watches its own only up to the head.
async fn raw_decode(
    client: &Client,
    message: DecodeRequest,
    timeout: &'static str,
) -> tonic::Streaming<proto::DecodeResponse> {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::iter([message]));
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    let path = http::uri::PathAndQuery::from_static("/latentgate.v1.Latents/Decode");
    grpc.streaming(request, path, tonic_prost::ProstCodec::default()).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbled_protocol_is_refused_not_fatal() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    // A timeout that is none.
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::iter([DecodeRequest::default()]));
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let path = http::uri::PathAndQuery::from_static("/latentgate.v1.Latents/Decode");
    let codec = tonic_prost::ProstCodec::<DecodeRequest, proto::DecodeResponse>::default();
    let status = grpc.streaming(request, path, codec).await.expect_err("refused");
    assert_refused("timeout", &status, bad("grpc-timeout"));
    // Compressed messages.
    let mut request = tonic::Request::new(tokio_stream::iter([DecodeRequest::default()]));
    request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/latentgate.v1.Latents/Decode");
    let codec = tonic_prost::ProstCodec::<DecodeRequest, proto::DecodeResponse>::default();
    let status = grpc.streaming(request, path, codec).await.expect_err("refused");
    assert_eq!(reason(&status), (Code::Unimplemented, "ENCODING_UNSUPPORTED".to_owned()));
    // Bytes that are no message of ours: a health request's string where the spec should be.
    let garbage = tonic_health::pb::HealthCheckRequest { service: "\u{1}\u{2}\u{3}".to_owned() };
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/latentgate.v1.Latents/Decode");
    let codec = tonic_prost::ProstCodec::<tonic_health::pb::HealthCheckRequest, proto::DecodeResponse>::default();
    let status =
        grpc.streaming(tonic::Request::new(tokio_stream::iter([garbage])), path, codec).await.expect_err("refused");
    assert_refused("garbage", &status, bad("spec"));
    assert_unharmed(&app, &gated, &client).await;
}

/// A PNG that says it is `side` pixels wide and high and holds next to nothing.
fn bomb(side: u32) -> Bytes {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&side.to_be_bytes());
    header.extend_from_slice(&side.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    for chunk in [header, b"IDATx\x9c".to_vec()] {
        file.extend_from_slice(&(chunk.len() as u32 - 4).to_be_bytes());
        file.extend_from_slice(&chunk);
        // The checksum is never reached: the size is judged first.
        file.extend_from_slice(&[0; 4]);
    }
    file.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_pictures() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let picture = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo.jpg")).unwrap();
    let half = Bytes::from(picture[..picture.len() / 2].to_vec());
    let too_large = (Code::ResourceExhausted, "TOO_LARGE", Some("image"));
    for (case, file, wanted) in [
        ("a truncated PNG", half, bad("image")),
        ("no picture at all", Bytes::from_static(b"hello, I am not a picture"), bad("image")),
        ("a PNG bomb", bomb(60_000), too_large),
        ("a PNG bomb of sides that overflow", bomb(u32::MAX >> 1), too_large),
    ] {
        let status =
            client.encode(encode_spec(file.len()), file).await.err().unwrap_or_else(|| panic!("{case} is refused"));
        assert_refused(case, &status, wanted);
    }
    let short = client.encode(encode_spec(100), vec![0; 99]).await.err().unwrap();
    assert_refused("length", &short, bad("data"));
    let none = EncodeSpec { input: None, ..encode_spec(1) };
    assert_refused("no input", &client.encode(none, vec![1]).await.err().unwrap(), bad("input"));
    let sample =
        EncodeSpec { mode: Some(encode_spec::Mode::Sample(encode_spec::Sample { seed: 1 })), ..encode_spec(1) };
    assert_refused("sample", &client.encode(sample, vec![1]).await.err().unwrap(), bad("sample"));
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_pixel_tensors() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let spec = |shape: &[i64]| {
        let tensor = TensorSpec { dtype: Dtype::F32 as i32, shape: shape.to_vec() };
        let pixels = encode_spec::Pixels { tensor: Some(tensor), range: 0 };
        EncodeSpec { input: Some(encode_spec::Input::Pixels(pixels)), ..encode_spec(0) }
    };
    let shape = "pixels.tensor.shape";
    for (case, dims, wanted) in [
        ("four channels", &[1i64, 4, 8, 8][..], bad(shape)),
        ("three dimensions", &[3, 8, 8], bad(shape)),
        ("too small", &[1, 3, 7, 8], bad(shape)),
        ("negative", &[1, 3, -8, 8], bad(shape)),
        ("huge", &[1, 3, 1_000_000, 1_000_000], (Code::ResourceExhausted, "TOO_LARGE", Some(shape))),
    ] {
        let status = client.encode(spec(dims), vec![0; 40]).await.err().unwrap_or_else(|| panic!("{case} is refused"));
        assert_refused(case, &status, wanted);
    }
    let mut data = vec![0u8; 3 * 64 * 4];
    data[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
    let status = client.encode(spec(&[1, 3, 8, 8]), data).await.err().unwrap();
    assert_refused("nan", &status, bad("data"));
    let request = EncodeRequest { spec: None, data: Bytes::from_static(b"x") };
    let status = client.grpc.clone().encode(tokio_stream::iter([request])).await.err().unwrap();
    assert_refused("data before spec", &status, bad("spec"));
    assert_unharmed(&app, &gated, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_the_other_port_is_said_in_grpc() {
    let app = TestApp::start(config()).await;
    let channel = |address| Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let stats = CacheAdminClient::new(channel(app.addresses.data)).stats(proto::StatsRequest {}).await;
    let models = LatentsClient::new(channel(app.addresses.admin)).list_models(proto::ListModelsRequest {}).await;
    for (status, port) in [(stats.unwrap_err(), "admin port"), (models.unwrap_err(), "data port")] {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(port), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_beyond_the_limit_is_told_how_to_be_sent_instead() {
    let app = TestApp::start(config()).await;
    let message = DecodeRequest { spec: Some(decode_spec(8, 8)), data: vec![0; 5 << 20].into() };
    let status = app.client().await.decode_messages(vec![message]).await.err().unwrap();
    assert_eq!(reason(&status).1, "TOO_LARGE");
    assert!(status.message().contains("send the data in several"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_nobody_can_compute_here_is_no_reason_to_try_again() {
    let mut config = config();
    config.route.backends = vec![latentgate::route::Name::Local];
    let app = TestApp::start(config).await;
    let spec = DecodeSpec { model: "sd-v1".to_owned(), ..decode_spec(8, 8) };
    let status = app.client().await.decode(spec, latents(8, 8, 1)).await.err().unwrap();
    assert_eq!(reason(&status), (Code::Unavailable, "UNAVAILABLE".to_owned()));
    assert!(status.message().contains("models.sd-v1.weights"), "{status:?}");
    assert!(status.get_details_retry_info().is_none());
    let spec = DecodeSpec { model: String::new(), ..decode_spec(8, 8) };
    let status = app.client().await.decode(spec, latents(8, 8, 1)).await.err().unwrap();
    assert_eq!(reason(&status), (Code::InvalidArgument, "BAD_REQUEST".to_owned()));
}
