//! latentgate before a whole second endpoint: another latentgate, and, where Python and its packages are, PyTorch.
//!
//! Whatever is asked, the answer is the one that the endpoint gives when it is asked directly, it is asked once, and 64
//! that ask at once are one request to it. The endpoint counts for itself.

use std::{net::SocketAddr, sync::atomic::Ordering};

use bytes::Bytes;
use half::f16;
use latentgate::{
    Config,
    config::{ModelConfig, UpstreamUrls},
    picture::{self, PictureLimits},
    proto::{
        self, DecodeSpec, Dtype, EncodeSpec, Source, TensorSpec,
        encode_spec::{Image, Input, Pixels},
        output::{Jpeg, Kind, Png, Tensor as Floats, Uint8, Unit, Webp},
    },
    render, route,
    tensor::{DType, Shape, Tensor},
};
use tokio::task::JoinSet;

use crate::diffusers::replay_all;
use crate::support::{
    Answer, Client, TestApp, config,
    http::{self, HttpAnswer},
    latents,
    pytorch::{Endpoint, python, with_models},
};

const TENSOR: &str = "tensor/binary";
const PNG: &str = "image/png";
const JPEG: &str = "image/jpeg";
const WEBP: &str = "image/webp";

const COLD: &str = "latentgate; fwd=miss; stored; detail=upstream";
const WARM: &str = "latentgate; hit; detail=memory";
const JOINED: &str = "latentgate; fwd=miss; collapsed; detail=upstream";

/// One request, as each front spells it.
#[derive(Clone)]
struct Case {
    name: &'static str,
    query: String,
    accept: &'static str,
    spec: Spec,
    data: Bytes,
}

#[derive(Clone)]
enum Spec {
    Decode(DecodeSpec),
    Encode(EncodeSpec),
}

/// Latents of a picture, of two, and packed ones of a picture of `PACKED` pixels.
const ONE: [usize; 4] = [1, 4, 6, 5];
const TWO: [usize; 4] = [2, 4, 6, 5];
const TOKENS: [usize; 3] = [1, 6, 16];
const PACKED: [u32; 2] = [32, 48];

fn tensor_spec(dtype: Dtype, shape: &[usize]) -> Option<TensorSpec> {
    Some(TensorSpec { dtype: dtype as i32, shape: shape.iter().map(|&dim| dim as i64).collect() })
}

/// A decode of float16 latents of one picture, or of float32 ones of more.
fn decode(name: &'static str, shape: &[usize], wish: &str, accept: &'static str, kind: Kind) -> Case {
    // Numbers of its own: another form of the same decode would be derived.
    let seed = name.bytes().map(u32::from).sum();
    let wide = latents(1, shape.iter().product::<usize>() / 4, seed);
    let narrow = || wide.as_chunks().0.iter().flat_map(|&x| f16::from_f32(f32::from_le_bytes(x)).to_le_bytes());
    let (dtype, sent, data) = match shape[0] {
        1 => ("float16", Dtype::F16, narrow().collect::<Vec<_>>().into()),
        _ => ("float32", Dtype::F32, wide),
    };
    let [height, width] = PACKED;
    let spec = DecodeSpec {
        model: "sd1".to_owned(),
        latents: tensor_spec(sent, shape),
        height,
        width,
        output: Some(proto::Output { kind: Some(kind) }),
        ..DecodeSpec::default()
    };
    let query = format!("{wish}&shape={shape:?}&dtype={dtype}&scaling_factor=0.18215&height={height}&width={width}");
    Case { name, query: query.replace(' ', ""), accept, spec: Spec::Decode(spec), data }
}

fn encode(name: &'static str, query: &str, input: Input, data: Bytes) -> Case {
    let spec = EncodeSpec { model: "sd1".to_owned(), input: Some(input), ..EncodeSpec::default() };
    Case { name, query: format!("{query}scaling_factor=0.18215"), accept: "*/*", spec: Spec::Encode(spec), data }
}

fn one_float() -> Case {
    decode("float", &ONE, "output_type=pt", TENSOR, Kind::Tensor(Floats { dtype: Dtype::F16 as i32 }))
}

fn one_png() -> Case {
    decode("png", &ONE, "output_type=pil", PNG, Kind::Png(Png {}))
}

/// An encode of a file whose sides are no multiples of 8.
fn one_picture() -> Case {
    let [h, w] = [21, 34];
    let data: Vec<u8> = (0..h * w * 3).map(|i| (i * i / 7 % 256) as u8).collect();
    let pixels = Tensor::try_new(DType::U8, Shape::try_new(&[1, h, w, 3]).unwrap(), data.into()).unwrap();
    let file = render::png(&pixels).unwrap();
    encode("picture", "", Input::Image(Image { length: file.len() as u64 }), file)
}

/// An encode of a tensor of what is made of numbers in -1..1.
fn pixels(name: &'static str, pictures: usize, make: fn(f32) -> f32) -> Case {
    let shape = [pictures, 3, 16, 24];
    let numbers = latents(pictures * 4, 3 * 24, 9);
    let data: Vec<u8> = numbers.as_chunks().0.iter().flat_map(|&x| make(f32::from_le_bytes(x)).to_le_bytes()).collect();
    let query = format!("shape={shape:?}&dtype=float32&").replace(' ', "");
    let input = Input::Pixels(Pixels { tensor: tensor_spec(Dtype::F32, &shape), ..Pixels::default() });
    encode(name, &query, input, data.into())
}

fn signed_pixels() -> Case {
    pixels("signed pixels", 1, |x| x)
}

fn decodes() -> Vec<Case> {
    let (pt, partial, pil) = ("output_type=pt", "output_type=pt&partial_postprocess=True", "output_type=pil");
    vec![
        one_float(),
        decode("uint8", &ONE, partial, TENSOR, Kind::Uint8(Uint8 {})),
        decode("unit", &ONE, pil, TENSOR, Kind::Unit(Unit {})),
        one_png(),
        decode("jpeg", &ONE, pil, JPEG, Kind::Jpeg(Jpeg { quality: 75 })),
        decode("webp", &ONE, pil, WEBP, Kind::Webp(Webp {})),
        decode("floats of two", &TWO, pt, TENSOR, Kind::Tensor(Floats::default())),
        decode("uint8 of two", &TWO, partial, TENSOR, Kind::Uint8(Uint8 {})),
        decode("units of two", &TWO, pil, TENSOR, Kind::Unit(Unit {})),
        decode("packed", &TOKENS, pt, TENSOR, Kind::Tensor(Floats::default())),
    ]
}

fn encodes() -> Vec<Case> {
    let bright = pixels("bright pixels", 1, |x| f32::midpoint(x.abs(), 1.0));
    vec![one_picture(), signed_pixels(), pixels("two of pixels", 2, f32::abs), bright]
}

impl Case {
    async fn over_http(&self, address: SocketAddr) -> HttpAnswer {
        let (task, headers) = match self.spec {
            Spec::Decode(_) => ("decode", &[("Accept", self.accept), ("Content-Type", TENSOR)][..]),
            Spec::Encode(_) => ("encode", &[("Accept", self.accept)][..]),
        };
        let request = http::request("POST", &format!("/{task}/sd1?{}", self.query), headers, &self.data);
        let answer = http::raw(address, &request).await.expect("an answer").whole();
        assert_eq!(answer.status, 200, "{}: {}", self.name, String::from_utf8_lossy(&answer.body));
        answer
    }

    async fn over_grpc(&self, client: &Client) -> Answer {
        let answer = match self.spec.clone() {
            Spec::Decode(spec) => client.decode(spec, self.data.clone()).await,
            Spec::Encode(spec) => client.encode(spec, self.data.clone()).await,
        };
        answer.unwrap_or_else(|status| panic!("{}: {status}", self.name))
    }
}

/// A latentgate that has no model of its own, before these endpoints for decodes and encodes.
async fn before(decode: SocketAddr, encode: SocketAddr) -> TestApp {
    let mut config: Config = config();
    let upstream = UpstreamUrls {
        decode: vec![format!("http://{decode}/decode/sd1")],
        encode: vec![format!("http://{encode}/encode/sd1")],
    };
    let model = ModelConfig {
        like: Some("sd-v1".to_owned()),
        backends: Some(vec![route::Name::Upstream]),
        upstream: Some(upstream),
        ..ModelConfig::default()
    };
    config.models.insert("sd1".to_owned(), model);
    config.upstream.retries = 0;
    TestApp::start(config).await
}

/// Asks each once, cold, and again over both fronts, warm.
async fn ask_all(outer: &TestApp, cases: &[Case]) -> Vec<HttpAnswer> {
    let client = outer.client().await;
    let mut answers = Vec::new();
    for case in cases {
        let cold = case.over_http(outer.addresses.data).await;
        // A picture is kept when its pixels are proved, a little after its readers have it.
        outer.until_idle().await;
        let warm = case.over_http(outer.addresses.data).await;
        let statuses = [&cold, &warm].map(|answer| answer.header("cache-status"));
        assert_eq!(statuses, [Some(COLD), Some(WARM)], "{}", case.name);
        let grpc = case.over_grpc(&client).await;
        assert_eq!(grpc.source(), Source::Memory, "{}", case.name);
        assert_equal(case, &warm.body, &cold.body);
        assert_equal(case, &grpc.bytes(), &cold.body);
        answers.push(cold);
    }
    answers
}

fn assert_same(case: &Case, got: &HttpAnswer, want: &HttpAnswer) {
    for name in ["shape", "dtype"] {
        assert_eq!(got.header(name), want.header(name), "{}", case.name);
    }
    assert_equal(case, &got.body, &want.body);
}

fn assert_equal(case: &Case, got: &[u8], want: &[u8]) {
    let far = got.iter().zip(want).filter(|(got, want)| got != want).count();
    assert!(got == want, "{}: {far} of {} bytes differ, wanted {}", case.name, got.len(), want.len());
}

/// Sixty-four clients ask at once, half of them over each front; `go` lets the endpoint answer once all of them wait.
/// One of them leads, the others join, and all get the same.
async fn sixty_four_at_once(outer: &TestApp, case: &Case, go: impl FnOnce()) -> Bytes {
    let (mut asked, address) = (JoinSet::new(), outer.addresses.data);
    for turn in 0..64 {
        let case = case.clone();
        asked.spawn(async move {
            if turn % 2 == 0 {
                let answer = case.over_http(address).await;
                let source = match answer.header("cache-status") {
                    Some(COLD) => Source::Computed,
                    Some(JOINED) => Source::Coalesced,
                    other => panic!("{}: {other:?}", case.name),
                };
                (source, answer.body)
            } else {
                let answer = case.over_grpc(&Client::connect(address).await).await;
                (answer.source(), answer.bytes().into())
            }
        });
    }
    outer.until("latentgate_flight_waiters", &[], 64.0).await;
    go();
    let answers = asked.join_all().await;
    let from = |wanted| answers.iter().filter(|(source, _)| *source == wanted).count();
    assert_eq!([from(Source::Computed), from(Source::Coalesced)], [1, 63], "{}", case.name);
    let first = answers[0].1.clone();
    assert!(answers.iter().all(|(_, bytes)| *bytes == first), "{}", case.name);
    first
}

/// What an endpoint gives that makes another JPEG and no WebP of a picture: the pixels are the same.
async fn picture_by(endpoint: &Endpoint, case: &Case) -> HttpAnswer {
    if case.accept != JPEG && case.accept != WEBP {
        return case.over_http(endpoint.address).await;
    }
    let mut answer = Case { accept: PNG, ..case.clone() }.over_http(endpoint.address).await;
    let limits = PictureLimits { max_pixels: 1 << 20, max_side: 1 << 10 };
    let pixels = picture::read(&answer.body, &limits).unwrap();
    answer.body = if case.accept == JPEG { render::jpeg(&pixels, 75) } else { render::webp(&pixels) }.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_another_latentgate_every_answer_is_that_ones_and_asked_for_once() {
    let inner = TestApp::start(with_models()).await;
    let outer = before(inner.addresses.data, inner.addresses.data).await;
    let cases = [decodes(), encodes()].concat();
    let answers = ask_all(&outer, &cases).await;
    inner.until("latentgate_requests_total", &[], cases.len() as f64).await;
    inner.until_idle().await;
    assert_eq!(inner.metric("latentgate_requests_total", &[]).await, cases.len() as f64);
    assert_eq!(outer.metric("latentgate_upstream_attempts_total", &[r#"code="ok""#]).await, cases.len() as f64);
    for (case, answer) in cases.iter().zip(&answers) {
        assert_same(case, answer, &case.over_http(inner.addresses.data).await);
    }
    println!("latentgate before latentgate: {} requests, cold and warm, all as the inner one's", cases.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_another_latentgate_sixty_four_at_once_are_one_request() {
    // The gate waits, and leaves the answer to the engine.
    let (inner, gated) = TestApp::gated(with_models()).await;
    gated.passing_on.store(usize::MAX, Ordering::SeqCst);
    let outer = before(inner.addresses.data, inner.addresses.data).await;
    let alone = TestApp::start(with_models()).await;
    let cases = [one_png(), one_float(), one_picture(), signed_pixels()];
    for (count, case) in (1..).zip(&cases) {
        let answer = sixty_four_at_once(&outer, case, || gated.open(1)).await;
        inner.until("latentgate_requests_total", &[], f64::from(count)).await;
        inner.until_idle().await;
        assert_eq!(inner.metric("latentgate_requests_total", &[]).await, f64::from(count), "{}", case.name);
        assert_equal(case, &answer, &case.over_http(alone.addresses.data).await.body);
    }
    assert_eq!(gated.runs(), cases.len());
    println!("latentgate before latentgate: 64 at once are 1 request, {} times", cases.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_pytorch_every_answer_is_pytorchs_and_sixty_four_at_once_are_one_request() {
    let Some(python) = python("latentgate before PyTorch") else { return };
    let start = move || Endpoint::start(&python, ["decode", "encode"]);
    let [decode, encode] = tokio::task::spawn_blocking(start).await.unwrap();
    let outer = before(decode.address, encode.address).await;
    let fresh = before(decode.address, encode.address).await;
    for (endpoint, cases) in [(&decode, decodes()), (&encode, encodes())] {
        let answers = ask_all(&outer, &cases).await;
        assert_eq!(endpoint.count().await, cases.len());
        for (case, answer) in cases.iter().zip(&answers) {
            assert_same(case, answer, &picture_by(endpoint, case).await);
        }
        for (case, answer) in cases.iter().zip(&answers) {
            let count = endpoint.count().await;
            endpoint.pause();
            let shared = sixty_four_at_once(&fresh, case, || endpoint.resume()).await;
            assert_eq!(endpoint.count().await, count + 1, "{}", case.name);
            assert_equal(case, &shared, &answer.body);
        }
        let count = cases.len();
        println!("latentgate before PyTorch: {count} requests, cold, warm and 64 at once, each asked for once");
    }
    for (task, endpoint) in [("decode", &decode), ("encode", &encode)] {
        for address in [endpoint.address, outer.addresses.data] {
            let count = replay_all(address, |asked, model| (asked, model) == (task, "sd1")).await;
            println!("latentgate before PyTorch: {count} recorded {task}s, all answered as PyTorch would");
        }
    }
}
