//! One run, however many ask; and what leaving does.

use std::sync::atomic::Ordering;

use latentgate::proto::{DecodeRequest, Source};
use tokio::task::{AbortHandle, JoinSet};

use crate::support::{Answer, Client, TestApp, config, decode_spec, latents};

/// Sixty-four clients with a connection each.
async fn clients(app: &TestApp) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(app.client().await);
    }
    clients
}

fn ask_all(clients: &[Client]) -> JoinSet<Result<Answer, tonic::Status>> {
    let mut asked = JoinSet::new();
    for client in clients {
        let client = client.clone();
        asked.spawn(async move { client.decode(decode_spec(8, 8), latents(8, 8, 1)).await });
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_equal_decodes_are_one_run_and_equal_answers() {
    let (app, gated) = TestApp::gated(config()).await;
    let asked = ask_all(&clients(&app).await);
    app.until("latentgate_flight_waiters", &[], 64.0).await;
    assert_eq!(app.metric("latentgate_flights", &[]).await, 1.0);
    gated.open(1);
    let answers: Vec<_> = asked.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(gated.runs(), 1);
    assert!(answers.iter().all(|answer| answer.bytes() == answers[0].bytes()));
    let computed = answers.iter().filter(|answer| answer.source() == Source::Computed).count();
    assert_eq!(computed, 1, "one led, the others joined");
    app.until("latentgate_requests_total", &[r#"outcome="coalesced""#], 63.0).await;
    app.until("latentgate_requests_total", &[r#"outcome="computed""#], 1.0).await;
    app.until("latentgate_backend_requests_total", &[r#"backend="local""#], 0.0).await;
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_engine_runs_once_for_sixty_four() {
    let app = TestApp::start(config()).await;
    let spec = decode_spec(32, 32);
    // Loaded first, so that the sixty-four meet a run and not a load.
    app.client().await.decode(spec.clone(), latents(32, 32, 7)).await.unwrap();
    let mut asked = JoinSet::new();
    for client in clients(&app).await {
        let spec = spec.clone();
        asked.spawn(async move { client.decode(spec, latents(32, 32, 8)).await.unwrap() });
    }
    let answers = asked.join_all().await;
    assert!(answers.iter().all(|answer| answer.bytes() == answers[0].bytes()));
    app.until("latentgate_engine_run_seconds_count", &[r#"task="decode""#], 2.0).await;
    app.until("latentgate_backend_requests_total", &[r#"code="ok""#], 2.0).await;
    let again = app.client().await.decode(spec, latents(32, 32, 8)).await.unwrap();
    assert_eq!((again.source(), again.bytes()), (Source::Memory, answers[0].bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_midway_hurt_nobody_the_leader_included() {
    let (app, gated) = TestApp::gated(config()).await;
    let leader = app.client().await;
    let message = DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, 1) };
    let led = leader.open_decode(tokio_stream::iter([message]), None).await.unwrap();
    gated.until_runs(1).await;
    let mut asked = JoinSet::new();
    let ask = |client: Client| async move { client.decode(decode_spec(8, 8), latents(8, 8, 1)).await };
    let leaving: Vec<_> = clients(&app).await.into_iter().map(|client| asked.spawn(ask(client))).collect();
    app.until("latentgate_flight_waiters", &[], 65.0).await;
    drop((led, leader));
    app.until("latentgate_flight_waiters", &[], 64.0).await;
    leaving.iter().take(20).for_each(AbortHandle::abort);
    app.until("latentgate_flight_waiters", &[], 44.0).await;
    gated.open(1);
    let mut answered = 0;
    while let Some(joined) = asked.join_next().await {
        if let Ok(answer) = joined {
            assert_eq!(answer.unwrap().source(), Source::Coalesced);
            answered += 1;
        }
    }
    assert_eq!((answered, gated.runs()), (44, 1));
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_last_client_leaves_the_run_stops_and_memory_is_given_back() {
    let (app, gated) = TestApp::gated(config()).await;
    let mut asked = ask_all(&clients(&app).await);
    app.until("latentgate_flight_waiters", &[], 64.0).await;
    assert!(app.metric("latentgate_inflight_bytes", &[]).await > 0.0);
    asked.abort_all();
    gated.until_stopped(1).await;
    app.until_idle().await;
    assert_eq!((gated.runs(), gated.stopped()), (1, 1));
    assert_eq!(app.metric("latentgate_cache_entries", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_past_half_is_kept_for_the_next_although_everybody_left() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.blocks_before_gate.store(5, Ordering::SeqCst);
    let client = app.client().await;
    let message = DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, 1) };
    drop(client.open_decode(tokio_stream::iter([message]), None).await.unwrap());
    gated.until_runs(1).await;
    drop(client);
    app.until("latentgate_flight_waiters", &[], 0.0).await;
    gated.open(1);
    app.until("latentgate_cache_entries", &[], 1.0).await;
    let next = app.client().await.decode(decode_spec(8, 8), latents(8, 8, 1)).await.unwrap();
    assert_eq!((next.source(), gated.runs()), (Source::Memory, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_fails_midway_fails_everybody_cleanly_and_is_not_kept() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.failing.store(1, Ordering::SeqCst);
    let asked = ask_all(&clients(&app).await[..8]);
    app.until("latentgate_flight_waiters", &[], 8.0).await;
    gated.open(1);
    for answer in asked.join_all().await {
        let status = answer.err().expect("never a clean short end");
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
    gated.open(1);
    let next = app.client().await.decode(decode_spec(8, 8), latents(8, 8, 1)).await.unwrap();
    assert_eq!((next.source(), gated.runs()), (Source::Computed, 2));
}
