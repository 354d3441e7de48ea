//! The whole product before endpoints that fail: each time the right answer or the right error within its time, and
//! never a wrong or a short artifact in the cache.
#![allow(clippy::large_futures, reason = "a test's stack is large enough")]

use std::time::Duration;

use bytes::Bytes;
use latentgate::{
    Config,
    backend::upstream::{BackoffConfig, BreakerConfig},
    config::UpstreamUrls,
    proto::{DecodeSpec, Output, Source, output},
    render, route,
    tensor::{DType, Shape, Tensor},
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::support::{
    Client, TestApp, collect, config, decode_spec, http, latents,
    origin::{Behaviour, Origin, decoded},
    reason,
};

const MODEL: &str = "sd-v1";

/// An app that has an origin for its one backend.
struct Faults {
    app: TestApp,
    client: Client,
    origin: Origin,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Form {
    Raw,
    Png,
    Jpeg,
}

/// Few retries, and a circuit that a test has to want; no time is so short that a loaded machine would need more.
fn patient() -> Config {
    let mut config = config();
    let upstream = &mut config.upstream;
    upstream.backoff = BackoffConfig { base: Duration::from_millis(1), cap: Duration::from_millis(5) };
    upstream.retries = 1;
    upstream.retry_budget.floor = 1000;
    upstream.breaker.failures = 1000;
    config
}

fn served_by(config: &mut Config, model: &str, urls: impl IntoIterator<Item = String>, backends: Vec<route::Name>) {
    let model = config.models.entry(model.to_owned()).or_default();
    model.upstream = Some(UpstreamUrls { decode: urls.into_iter().collect(), encode: Vec::new() });
    model.backends = Some(backends);
}

fn spec(form: Form) -> DecodeSpec {
    let kind = match form {
        Form::Raw => output::Kind::Tensor(output::Tensor::default()),
        Form::Png => output::Kind::Png(output::Png {}),
        Form::Jpeg => output::Kind::Jpeg(output::Jpeg { quality: 0 }),
    };
    DecodeSpec { model: MODEL.to_owned(), output: Some(Output { kind: Some(kind) }), ..decode_spec(8, 8) }
}

/// The one right answer.
fn right(form: Form, seed: u32) -> Bytes {
    let shape = Shape::try_new(&[1, 4, 8, 8]).unwrap();
    let y = decoded(&Tensor::try_new(DType::F32, shape, latents(8, 8, seed)).unwrap(), "0.18215", "");
    match form {
        Form::Raw => y.into_data(),
        Form::Png => render::png(&render::uint8(&y).unwrap()).unwrap(),
        Form::Jpeg => render::jpeg(&render::uint8(&y).unwrap(), 75).unwrap(),
    }
}

impl Faults {
    async fn start(mut config: Config) -> Self {
        let origin = Origin::start().await;
        served_by(&mut config, MODEL, [origin.decode_url()], vec![route::Name::Upstream]);
        let app = TestApp::start(config).await;
        Self { client: app.client().await, app, origin }
    }

    async fn ask(&self, form: Form, seed: u32) -> Result<Source, Status> {
        let answer = self.client.decode(spec(form), latents(8, 8, seed)).await?;
        assert_eq!(answer.bytes(), right(form, seed), "a wrong answer");
        Ok(answer.source())
    }

    async fn attempts(&self, code: &str) -> f64 {
        self.app.metric("latentgate_upstream_attempts_total", &[&format!("code=\"{code}\"")]).await
    }
}

fn status(status: u16) -> Behaviour {
    Behaviour::Status(status, "because", None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_fault_before_the_first_byte_is_not_even_noticed() {
    use Behaviour::{Chunked, Close, Cut, Flip, Header, Html, Short, Trickle, Unsized, Without};
    let faults = Faults::start(patient()).await;
    let cases = [
        (Form::Raw, Close),
        (Form::Raw, Html),
        (Form::Raw, status(500)),
        (Form::Raw, status(502)),
        (Form::Raw, Header("dtype", "float32")),
        (Form::Raw, Header("shape", "[1,3,8,8]")),
        (Form::Raw, Header("content-encoding", "gzip")),
        (Form::Raw, Without("shape")),
        (Form::Raw, Short(2)),
        (Form::Raw, Cut(0)),
        (Form::Raw, Behaviour::Status(429, "busy", Some(("retry-after", "0".to_owned())))),
        (Form::Raw, status(503)),
        (Form::Raw, Trickle(100)),
        (Form::Raw, Chunked),
        (Form::Png, Html),
        (Form::Png, Flip(20)),
        (Form::Png, Unsized),
        (Form::Jpeg, Cut(4000)),
        (Form::Jpeg, Short(7)),
        (Form::Jpeg, Flip(4000)),
    ];
    for (seed, (form, behaviour)) in (1u32..).zip(cases) {
        faults.origin.script([behaviour.clone()]);
        let came = faults.ask(form, seed).await;
        assert!(matches!(came, Ok(Source::Computed)), "{form:?} {behaviour:?}: {came:?}");
        // A picture is kept when its pixels are proved, a little after its readers have it.
        faults.app.until_idle().await;
        assert_eq!(faults.ask(form, seed).await.unwrap(), Source::Memory, "{form:?} {behaviour:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_that_nobody_can_decode_is_counted_against_its_endpoint_and_never_kept() {
    let mut config = patient();
    config.upstream.breaker.failures = 3;
    let faults = Faults::start(config).await;
    faults.origin.script([Behaviour::Undecodable, Behaviour::Unsized, Behaviour::Undecodable, Behaviour::Undecodable]);
    let ask = |seed| faults.client.decode(spec(Form::Png), latents(8, 8, seed));
    let spoilt = ask(1).await.unwrap();
    assert_eq!(spoilt.source(), Source::Computed);
    assert_ne!(spoilt.bytes(), right(Form::Png, 1));
    faults.app.until_idle().await;
    assert_eq!(faults.attempts("wrong_reply").await, 1.0);
    assert_eq!(faults.ask(Form::Png, 1).await.unwrap(), Source::Computed, "asked for anew");
    for _ in 0..2 {
        ask(2).await.unwrap();
        faults.app.until_idle().await;
    }
    assert_eq!((faults.origin.count(), faults.attempts("wrong_reply").await), (4, 3.0));
    assert_eq!(faults.ask(Form::Png, 1).await.unwrap(), Source::Memory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_stays_is_an_error_and_leaves_nothing_in_the_cache() {
    use Behaviour::{Close, Cut, Flip, Html, Short};
    let faults = Faults::start(patient()).await;
    let elsewhere = Origin::start().await;
    let cases = [
        (Form::Raw, Close, Code::Unavailable),
        (Form::Raw, Html, Code::Unavailable),
        (Form::Raw, Short(2), Code::Unavailable),
        (Form::Raw, status(500), Code::Unavailable),
        (Form::Raw, status(404), Code::Unavailable),
        (Form::Raw, status(401), Code::Unavailable),
        (Form::Raw, Behaviour::Redirect(elsewhere.decode_url()), Code::Unavailable),
        (Form::Raw, status(400), Code::InvalidArgument),
        (Form::Raw, status(413), Code::ResourceExhausted),
        (Form::Raw, Behaviour::Status(429, "busy", Some(("retry-after", "999".to_owned()))), Code::ResourceExhausted),
        // After the first byte.
        (Form::Raw, Cut(3000), Code::Unavailable),
        (Form::Png, Cut(3000), Code::Unavailable),
        (Form::Png, Short(3), Code::Unavailable),
        (Form::Png, Flip(3000), Code::Unavailable),
    ];
    for (seed, (form, behaviour, code)) in (1u32..).zip(cases) {
        faults.origin.script([behaviour.clone(), behaviour.clone()]);
        let error = faults.ask(form, seed).await.expect_err("no answer");
        assert_eq!(error.code(), code, "{form:?} {behaviour:?}: {error:?}");
        assert!(error.message().contains(&faults.origin.label()), "{}", error.message());
        // What the first attempt's failure left of the script.
        while faults.origin.is_scripted() {
            faults.ask(form, 1000 + seed).await.ok();
        }
        let came = faults.ask(form, seed).await;
        assert!(matches!(came, Ok(Source::Computed)), "{form:?} {behaviour:?}: {came:?}");
    }
    assert_eq!(elsewhere.count(), 0);
    faults.app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_left_in_time() {
    // Before the first byte another attempt saves the job; it has as long, so that has to be enough for an answer.
    let mut config = patient();
    config.upstream.attempt_time = Duration::from_secs(3);
    let faults = Faults::start(config).await;
    faults.origin.script([Behaviour::Hang]);
    assert_eq!(faults.ask(Form::Raw, 1).await.unwrap(), Source::Computed);
    assert_eq!(faults.attempts("timeout").await, 1.0);
    // After it the body fails.
    let mut config = patient();
    config.upstream.idle_time = Duration::from_secs(1);
    let faults = Faults::start(config).await;
    faults.origin.script([Behaviour::Pause(3000)]);
    assert_eq!(faults.ask(Form::Raw, 1).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(faults.ask(Form::Raw, 1).await.unwrap(), Source::Computed);
    faults.app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_is_an_error_and_a_second_endpoint_makes_it_none() {
    let origin = Origin::start().await;
    let closed = Origin::closed_url();
    for (urls, is_served) in [(vec![closed.clone()], false), (vec![closed, origin.decode_url()], true)] {
        let mut config = patient();
        served_by(&mut config, MODEL, urls, vec![route::Name::Upstream]);
        let app = TestApp::start(config).await;
        let client = app.client().await;
        for seed in 1..6 {
            let answer = client.decode(spec(Form::Png), latents(8, 8, seed)).await;
            match answer {
                Ok(answer) => assert_eq!(answer.bytes(), right(Form::Png, seed)),
                Err(error) => assert_eq!((error.code(), is_served), (Code::Unavailable, false), "{error:?}"),
            }
        }
        assert_eq!(app.metric("latentgate_upstream_attempts_total", &["code=\"ok\""]).await > 0.0, is_served);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_starting_endpoint_is_waited_for_but_not_for_ever() {
    let faults = Faults::start(patient()).await;
    faults.origin.script(vec![status(503); 3]);
    assert_eq!(faults.ask(Form::Raw, 1).await.unwrap(), Source::Computed);
    assert_eq!(faults.attempts("starting").await, 3.0);
    let mut config = patient();
    config.upstream.cold_start_time = Duration::from_millis(300);
    let faults = Faults::start(config).await;
    faults.origin.script(vec![status(503); 100]);
    let error = faults.ask(Form::Raw, 2).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!((1.0..=4.0).contains(&faults.attempts("starting").await));
}

#[tokio::test]
async fn a_circuit_opens_and_closes_and_what_is_cached_is_served_all_the_while() {
    let mut config = patient();
    config.upstream.retries = 0;
    let open_time = Duration::from_secs(30);
    config.upstream.breaker = BreakerConfig { failures: 3, open_time, max_open_time: open_time };
    let faults = Faults::start(config).await;
    let circuit = || faults.app.metric("latentgate_upstream_circuit_open", &[]);
    faults.ask(Form::Png, 1).await.unwrap();
    faults.app.until_idle().await;
    faults.origin.script([status(500), Behaviour::Html, status(502)]);
    for seed in 2..5 {
        assert_eq!(circuit().await, 0.0);
        assert_eq!(faults.ask(Form::Png, seed).await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!((circuit().await, faults.origin.count()), (1.0, 4));
    let refused = faults.ask(Form::Png, 5).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(reason(&refused).1, "UNAVAILABLE");
    // Cached answers do not know of it, and requests that are refused do not reach the endpoint.
    assert_eq!(faults.ask(Form::Png, 1).await.unwrap(), Source::Memory);
    assert_eq!(faults.origin.count(), 4);
    tokio::time::pause();
    tokio::time::advance(open_time).await;
    tokio::time::resume();
    assert_eq!(faults.ask(Form::Png, 5).await.unwrap(), Source::Computed);
    faults.app.until_idle().await;
    assert_eq!((circuit().await, faults.origin.count()), (0.0, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_who_waits_for_a_cut_body_gets_the_error_and_nobody_a_short_answer() {
    let faults = Faults::start(patient()).await;
    faults.origin.script([Behaviour::Gated, Behaviour::Cut(0), Behaviour::Cut(5000)]);
    let mut asking = JoinSet::new();
    for _ in 0..16 {
        let client = faults.client.clone();
        asking.spawn(async move { client.decode(spec(Form::Raw), latents(8, 8, 1)).await });
    }
    faults.origin.until_requests(1).await;
    faults.app.until("latentgate_flight_waiters", &[], 16.0).await;
    faults.origin.release(1);
    // The gated one was right: nothing is wrong yet.
    for answer in asking.join_all().await {
        assert_eq!(answer.unwrap().bytes(), right(Form::Raw, 1));
    }
    for seed in [2, 2, 2] {
        if let Err(error) = faults.ask(Form::Raw, seed).await {
            assert_eq!(error.code(), Code::Unavailable);
        }
    }
    assert_eq!(faults.ask(Form::Raw, 2).await.unwrap(), Source::Memory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_or_a_client_that_leaves_takes_the_attempt_along() {
    let faults = Faults::start(patient()).await;
    for (left, behaviour) in (1..).zip([Behaviour::Hang, Behaviour::Pause(2000)]) {
        faults.origin.script([behaviour]);
        let message = latentgate::proto::DecodeRequest { spec: Some(spec(Form::Raw)), data: latents(8, 8, 1) };
        let stream = faults.client.open_decode(tokio_stream::iter([message]), Some(Duration::from_millis(200))).await;
        let ended = match stream {
            Ok(stream) => collect(stream).await.err(),
            Err(status) => Some(status),
        };
        assert_eq!(ended.expect("no answer").code(), Code::DeadlineExceeded);
        faults.origin.until_left(left).await;
    }
    faults.app.until_idle().await;
    assert_eq!(faults.attempts("cancelled").await, 2.0);
    assert_eq!(faults.ask(Form::Raw, 1).await.unwrap(), Source::Computed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_an_answer_that_is_cut_is_cut_and_one_that_fails_before_is_an_error() {
    let faults = Faults::start(patient()).await;
    let target =
        format!("/decode/{MODEL}?shape=1&shape=4&shape=8&shape=8&dtype=float32&scaling_factor=0.18215&output_type=pt");
    let headers = [("Content-Type", "tensor/binary"), ("Accept", "tensor/binary")];
    let request = http::request("POST", &target, &headers, &latents(8, 8, 1));
    let ask = || http::raw(faults.app.addresses.data, &request);
    faults.origin.script([status(500), status(500)]);
    let failed = ask().await.expect("an answer");
    assert_eq!(failed.status, 503);
    assert!(failed.error().contains("failed (500): because"), "{}", failed.error());
    faults.origin.script([Behaviour::Cut(9000)]);
    // What breaks off soon enough takes its head along.
    if let Some(cut) = ask().await {
        assert!(cut.body.len() < cut.header("content-length").unwrap().parse().unwrap());
    }
    let whole = ask().await.expect("an answer").whole();
    assert_eq!((whole.status, &whole.body), (200, &right(Form::Raw, 1)));
}

/// The engine and the endpoint both know the builtin model here.
#[cfg(feature = "local")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_is_followed_by_the_engine_and_not_waited_for() {
    let origin = Origin::start().await;
    let mut config = patient();
    config.upstream.cold_start_time = Duration::from_mins(5);
    config.upstream.retries = 0;
    served_by(&mut config, "builtin", [origin.decode_url()], vec![route::Name::Upstream, route::Name::Local]);
    let app = TestApp::start(config).await;
    let client = app.client().await;
    let busy = Behaviour::Status(429, "busy", Some(("retry-after", "30".to_owned())));
    let spec = DecodeSpec { model: "builtin".to_owned(), ..spec(Form::Png) };
    for (seed, behaviour) in (1u32..).zip([status(503), busy, Behaviour::Html, status(404)]) {
        origin.script([behaviour.clone()]);
        let answer = client.decode(spec.clone(), latents(8, 8, seed)).await.unwrap();
        assert_eq!(answer.source(), Source::Computed, "{behaviour:?}");
        assert_eq!(image::load_from_memory(&answer.bytes()).unwrap().width(), 64);
    }
    assert_eq!(origin.count(), 4);
    let engine = app.metric("latentgate_backend_requests_total", &[r#"backend="local""#, r#"code="ok""#]).await;
    assert_eq!(engine, 4.0);
    assert_eq!(app.metric("latentgate_failovers_total", &[]).await, 4.0);
}
