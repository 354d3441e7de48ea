//! What each cache policy does, and does not.

use latentgate::proto::{CachePolicy, DecodeSpec, Source};
use tonic::Code;

use crate::support::{TestApp, config, decode_spec, latents, reason};

fn spec(cache: CachePolicy) -> DecodeSpec {
    DecodeSpec { cache: cache as i32, ..decode_spec(8, 8) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_if_cached_never_computes() {
    let (app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let absent = client.decode(spec(CachePolicy::OnlyIfCached), latents(8, 8, 1)).await.err().unwrap();
    assert_eq!(reason(&absent), (Code::NotFound, "NOT_CACHED".to_owned()));
    assert_eq!(gated.runs(), 0);
    gated.open(1);
    client.decode(spec(CachePolicy::Default), latents(8, 8, 1)).await.unwrap();
    let present = client.decode(spec(CachePolicy::OnlyIfCached), latents(8, 8, 1)).await.unwrap();
    assert_eq!((present.source(), gated.runs()), (Source::Memory, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_if_cached_joins_a_run_in_progress() {
    let (app, gated) = TestApp::gated(config()).await;
    let (one, other) = (app.client().await, app.client().await);
    let first = tokio::spawn(async move { one.decode(spec(CachePolicy::Default), latents(8, 8, 1)).await });
    gated.until_runs(1).await;
    let second = tokio::spawn(async move { other.decode(spec(CachePolicy::OnlyIfCached), latents(8, 8, 1)).await });
    app.until("latentgate_flight_waiters", &[], 2.0).await;
    gated.open(1);
    assert_eq!(first.await.unwrap().unwrap().source(), Source::Computed);
    assert_eq!(second.await.unwrap().unwrap().source(), Source::Coalesced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_store_is_answered_from_the_cache_and_adds_nothing_to_it() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(9);
    let client = app.client().await;
    for run in 1..=2 {
        let answer = client.decode(spec(CachePolicy::NoStore), latents(8, 8, 1)).await.unwrap();
        assert_eq!((answer.source(), gated.runs()), (Source::Computed, run));
        app.until_idle().await;
    }
    client.decode(spec(CachePolicy::Default), latents(8, 8, 1)).await.unwrap();
    let cached = client.decode(spec(CachePolicy::NoStore), latents(8, 8, 1)).await.unwrap();
    assert_eq!((cached.source(), gated.runs()), (Source::Memory, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_store_run_that_another_joins_is_kept_for_the_other() {
    let (app, gated) = TestApp::gated(config()).await;
    let (one, other) = (app.client().await, app.client().await);
    let first = tokio::spawn(async move { one.decode(spec(CachePolicy::NoStore), latents(8, 8, 1)).await });
    gated.until_runs(1).await;
    let second = tokio::spawn(async move { other.decode(spec(CachePolicy::Default), latents(8, 8, 1)).await });
    app.until("latentgate_flight_waiters", &[], 2.0).await;
    gated.open(1);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    app.until("latentgate_cache_entries", &[], 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bypass_computes_again_and_refreshes() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(9);
    let client = app.client().await;
    client.decode(spec(CachePolicy::Default), latents(8, 8, 1)).await.unwrap();
    app.until_idle().await;
    let again = client.decode(spec(CachePolicy::Bypass), latents(8, 8, 1)).await.unwrap();
    assert_eq!((again.source(), gated.runs()), (Source::Computed, 2));
    app.until("latentgate_cache_entries", &[], 1.0).await;
}
