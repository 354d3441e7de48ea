//! Bounds: what is refused, how, and that it is given back.

use bytesize::ByteSize;
use latentgate::error::RETRY_AFTER;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{TestApp, config, decode_spec, latents, reason};

fn overloaded() -> (Code, String) {
    (Code::ResourceExhausted, "OVERLOADED".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_bound_are_shed_and_told_when_to_come_back() {
    let mut config = config();
    config.admission.max_requests = 2;
    let (app, gated) = TestApp::gated(config).await;
    let client = app.client().await;
    let mut held = JoinSet::new();
    for seed in 0..2 {
        let client = client.clone();
        held.spawn(async move { client.decode(decode_spec(8, 8), latents(8, 8, seed)).await });
    }
    gated.until_runs(2).await;
    let shed = client.decode(decode_spec(8, 8), latents(8, 8, 9)).await.err().unwrap();
    assert_eq!(reason(&shed), overloaded());
    assert_eq!(shed.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    gated.open(3);
    held.join_all().await.into_iter().for_each(|answer| drop(answer.unwrap()));
    app.until_idle().await;
    client.decode(decode_spec(8, 8), latents(8, 8, 9)).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payload_memory_beyond_the_budget_is_shed() {
    let mut config = config();
    config.admission.memory = ByteSize::mib(64);
    config.limits.max_input = ByteSize::mib(16);
    let (app, gated) = TestApp::gated(config).await;
    let client = app.client().await;
    let mut asked = JoinSet::new();
    for seed in 0..200 {
        let client = client.clone();
        asked.spawn(async move { client.decode(decode_spec(128, 128), latents(128, 128, seed)).await });
    }
    let mut shed = 0;
    // A decode of 1024 x 1024 holds about 13 MiB: four or five fit, the others are refused at once.
    while shed < 195 {
        let status = asked.join_next().await.unwrap().unwrap().err().expect("nobody has been let through yet");
        assert_eq!(reason(&status), overloaded());
        assert!(status.get_details_retry_info().is_some());
        shed += 1;
    }
    let reserved = app.metric("latentgate_inflight_bytes", &[]).await;
    assert!(reserved <= (64 << 20) as f64, "{reserved}");
    gated.open(5);
    while let Some(joined) = asked.join_next().await {
        match joined.unwrap() {
            Ok(answer) => assert_eq!(answer.header.tensor.unwrap().shape, [1, 1024, 1024, 3]),
            Err(status) => assert_eq!(reason(&status), overloaded()),
        }
    }
    assert!((1..=5).contains(&gated.runs()));
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_fit_the_budget_is_not_worth_another_try() {
    let mut config = config();
    config.admission.memory = ByteSize::mib(4);
    config.limits.max_input = ByteSize::mib(4);
    let (app, gated) = TestApp::gated(config).await;
    let status = app.client().await.decode(decode_spec(128, 128), latents(128, 128, 1)).await.err().unwrap();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "TOO_LARGE".to_owned()));
    assert!(status.get_details_retry_info().is_none());
    assert_eq!(gated.runs(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_queue_is_bounded() {
    let mut config = config();
    config.engine.queue = 1;
    let app = TestApp::start(config).await;
    let client = app.client().await;
    // Large enough to keep the engine busy: one runs, one waits; the rest is refused.
    let mut asked = JoinSet::new();
    for seed in 0..12 {
        let client = client.clone();
        asked.spawn(async move { client.decode(decode_spec(48, 48), latents(48, 48, seed)).await });
    }
    let (mut answered, mut shed) = (0, 0);
    while let Some(joined) = asked.join_next().await {
        match joined.unwrap() {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(reason(&status), overloaded());
                shed += 1;
            }
        }
    }
    assert!(answered >= 2 && shed >= 1, "{answered} answered, {shed} shed");
    app.until_idle().await;
    app.until("latentgate_backend_queue_depth", &[], 0.0).await;
}
