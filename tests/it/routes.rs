//! Who is asked, in which order, and what comes of those who fail.

use std::sync::atomic::Ordering;

use latentgate::{
    Config,
    config::{ModelConfig, UpstreamUrls},
    proto::{self, ListModelsRequest, Source, backend::State},
    route::Name,
};
use tonic::Code;

use crate::support::{
    TestApp, config, decode_spec, latents,
    origin::{Behaviour, Origin},
    reason,
};

/// The builtin model, with this endpoint behind (or before) it.
fn with_upstream(backends: &[Name], url: String) -> Config {
    let mut config = config();
    let upstream = UpstreamUrls { decode: vec![url], ..UpstreamUrls::default() };
    let model = ModelConfig { backends: Some(backends.to_vec()), upstream: Some(upstream), ..ModelConfig::default() };
    config.models.insert("builtin".to_owned(), model);
    config.upstream.retries = 0;
    config
}

async fn models(app: &TestApp) -> Vec<proto::Model> {
    app.client().await.grpc.list_models(ListModelsRequest {}).await.unwrap().into_inner().models
}

/// Who made the answer to a decode of these latents.
async fn maker(app: &TestApp, seed: u32) -> String {
    let target = "&output_type=pt";
    let answer = app.post_decode([8, 8], target, "tensor/binary", &latents(8, 8, seed)).await.whole();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.header("cache-status").unwrap().rsplit_once("detail=").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_weights_is_served_by_upstream_alone_and_the_list_says_so() {
    let origin = Origin::start().await;
    let mut config = config();
    let upstream = UpstreamUrls { decode: vec![origin.decode_url()], ..UpstreamUrls::default() };
    let model = ModelConfig { like: Some("flux".to_owned()), upstream: Some(upstream), ..ModelConfig::default() };
    config.models.insert("mine".to_owned(), model);
    config.route.backends = vec![Name::Local, Name::Upstream];
    // Nothing of a test leaves this machine: the public endpoints are told to stay out.
    for known in ["sd-v1", "sd-xl", "flux", "hunyuan-video"] {
        config.models.entry(known.to_owned()).or_default().backends = Some(vec![Name::Local]);
    }
    let app = TestApp::start(config).await;
    let listed = models(&app).await;
    let mine = listed.iter().find(|model| model.id == "mine").unwrap();
    let states: Vec<_> = mine.backends.iter().map(|backend| (backend.name.as_str(), backend.state())).collect();
    assert_eq!(states, [("local", State::Unavailable), ("upstream", State::Ready)]);
    assert_eq!((&mine.tasks, mine.latent_channels), (&vec![proto::Task::Decode as i32], 16));
    let flux = listed.iter().find(|model| model.id == "flux").unwrap();
    assert!(flux.aliases.iter().any(|alias| alias == "chroma"), "{:?}", flux.aliases);
    let shape = vec![1, 16, 4, 4];
    let tensor = proto::TensorSpec { dtype: proto::Dtype::F32 as i32, shape };
    let spec = proto::DecodeSpec { model: "mine".to_owned(), latents: Some(tensor), ..decode_spec(4, 4) };
    let client = app.client().await;
    let answer = client.decode(spec.clone(), latents(8, 8, 1)).await.unwrap();
    assert_eq!((answer.source(), origin.count()), (Source::Computed, 1));
    // The model's own numbers went with the job.
    assert_eq!(origin.requests()[0].parameter("scaling_factor"), ["0.3611"]);
    assert_eq!(origin.requests()[0].parameter("shift_factor"), ["0.1159"]);
    // A picture is kept when its pixels are proved, a little after its readers have it.
    app.until_idle().await;
    let hit = client.decode(spec, latents(8, 8, 1)).await.unwrap();
    assert_eq!((hit.source(), origin.count(), hit.bytes()), (Source::Memory, 1, answer.bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policys_order_decides_who_computes() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_upstream(&[Name::Local, Name::Upstream], origin.decode_url())).await;
    assert_eq!(maker(&app, 1).await, "local");
    let app = TestApp::start(with_upstream(&[Name::Upstream, Name::Local], origin.decode_url())).await;
    assert_eq!(maker(&app, 1).await, "upstream");
    assert_eq!(origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_before_the_first_byte_is_followed_by_the_next() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_upstream(&[Name::Upstream, Name::Local], origin.decode_url())).await;
    for (seed, behaviour) in [
        (1, Behaviour::Close),
        (2, Behaviour::Status(500, "out of memory", None)),
        (3, Behaviour::Status(503, "starting", None)),
        (4, Behaviour::Status(400, "too large for me", None)),
        (5, Behaviour::Header("shape", "[1,3,8,8]")),
        (6, Behaviour::Html),
    ] {
        let shown = format!("{behaviour:?}");
        origin.script([behaviour]);
        assert_eq!(maker(&app, seed).await, "local", "{shown}");
    }
    assert_eq!(origin.count(), 6);
    app.until("latentgate_failovers_total", &["backend=\"upstream\""], 6.0).await;
    assert_eq!(maker(&app, 7).await, "upstream", "the circuit is closed again by a good answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_first_byte_there_is_no_other() {
    let origin = Origin::start().await;
    let (app, gated) = TestApp::gated(with_upstream(&[Name::Upstream], origin.decode_url())).await;
    gated.failing.store(1, Ordering::SeqCst);
    gated.open(2);
    let client = app.client().await;
    let failed = client.decode(decode_spec(8, 8), latents(8, 8, 1)).await.err().unwrap();
    assert_eq!(reason(&failed), (Code::Unavailable, "UNAVAILABLE".to_owned()));
    assert_eq!((gated.runs(), origin.count()), (1, 0));
    gated.refusing.store(1, Ordering::SeqCst);
    let answer = client.decode(decode_spec(8, 8), latents(8, 8, 1)).await.unwrap();
    // A refused run has not begun.
    assert_eq!((answer.source(), gated.runs(), origin.count()), (Source::Computed, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_queue_spills_to_the_next() {
    let origin = Origin::start().await;
    let mut config = with_upstream(&[Name::Upstream], origin.decode_url());
    config.route.spill_at = 3;
    let (app, gated) = TestApp::gated(config).await;
    gated.open(9);
    for (seed, waiting, who) in [(1, 2, "gated"), (2, 3, "upstream"), (3, 0, "gated")] {
        gated.waiting.store(waiting, Ordering::SeqCst);
        assert_eq!(maker(&app, seed).await, who, "{waiting} wait");
    }
    assert_eq!(app.metric("latentgate_failovers_total", &["backend=\"gated\"", "reason=\"spill\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_at_one_models_endpoint_is_nothing_to_another_model() {
    let (busy, free) = (Origin::start().await, Origin::start().await);
    let mut config = with_upstream(&[Name::Upstream, Name::Local], busy.decode_url());
    let upstream = UpstreamUrls { decode: vec![free.decode_url()], ..UpstreamUrls::default() };
    let mut other = config.models["builtin"].clone();
    (other.like, other.upstream) = (Some("builtin".to_owned()), Some(upstream));
    config.models.insert("other".to_owned(), other);
    (config.route.spill_at, config.upstream.concurrency) = (1, 1);
    let app = std::sync::Arc::new(TestApp::start(config).await);
    busy.script([Behaviour::Gated, Behaviour::Gated]);
    let waiting: Vec<_> = (0..2)
        .map(|seed| {
            let app = app.clone();
            tokio::spawn(async move { maker(&app, seed).await })
        })
        .collect();
    app.until("latentgate_backend_queue_depth", &["backend=\"upstream\""], 1.0).await;
    let target = "/decode/other?shape=[1,4,8,8]&dtype=float32&output_type=pt";
    let answer = app.http("POST", target, &[("Accept", "tensor/binary")], &latents(8, 8, 3)).await.whole();
    assert_eq!(answer.header("cache-status"), Some("latentgate; fwd=miss; stored; detail=upstream"));
    assert_eq!(maker(&app, 4).await, "local", "its own queue is long");
    busy.release(2);
    for asked in waiting {
        assert_eq!(asked.await.unwrap(), "upstream");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_back_to_where_it_was_is_refused_at_once() {
    // Two of them, each the other's upstream: what the first cannot compute, nobody can.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first_at = listener.local_addr().unwrap();
    let second = TestApp::start(with_upstream(&[Name::Upstream], format!("http://{first_at}/decode/builtin"))).await;
    drop(listener);
    let url = format!("http://{}/decode/builtin", second.addresses.data);
    let mut config = with_upstream(&[Name::Upstream], url);
    config.listen.data = first_at;
    let first = TestApp::start(config).await;
    let answer = first.post_decode([8, 8], "", "image/png", &latents(8, 8, 1)).await.whole();
    assert_eq!(answer.status, 508, "{}", answer.error());
    assert!(answer.error().contains("come from here"), "{}", answer.error());
    for app in [&first, &second] {
        app.until_idle().await;
    }
    // The request that came back, and the one that it was for.
    assert_eq!(first.metric("latentgate_errors_total", &["reason=\"loop_detected\""]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_everybody_failing_the_client_reads_what_each_said() {
    let origin = Origin::start().await;
    let (app, gated) = TestApp::gated(with_upstream(&[Name::Upstream], origin.decode_url())).await;
    gated.refusing.store(1, Ordering::SeqCst);
    gated.open(1);
    origin.script([Behaviour::Status(500, "boom", None)]);
    let answer = app.post_decode([8, 8], "", "image/png", &latents(8, 8, 1)).await.whole();
    assert_eq!(answer.status, 429, "{}", answer.error());
    assert!(answer.header("retry-after").is_some());
    let error = answer.error();
    assert!(error.contains("gated: ") && error.contains("upstream: "), "{error}");
    app.until_idle().await;
    assert_eq!(maker(&app, 1).await, "gated", "nothing of it is remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_who_is_asked_first() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_upstream(&[Name::Upstream, Name::Local], origin.decode_url())).await;
    assert_eq!(maker(&app, 1).await, "upstream");
    let after = with_upstream(&[Name::Local, Name::Upstream], origin.decode_url());
    app.read_from(move || Ok(after.clone()));
    assert_eq!(app.reloader.reload().await.unwrap().changed, ["models.builtin.backends"]);
    assert_eq!(maker(&app, 2).await, "local");
}
