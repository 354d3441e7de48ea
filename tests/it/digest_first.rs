//! Digest first: a cached answer without the input crossing the wire; and that a claim may look up, never write.

use bytes::Bytes;
use latentgate::proto::{CachePolicy, DecodeRequest, DecodeSpec, Source, decode_response::Event};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::{TestApp, config, decode_spec, latents, reason};

fn claiming(data: &[u8]) -> DecodeSpec {
    DecodeSpec { digest: blake3::hash(data).as_bytes().to_vec().into(), ..decode_spec(8, 8) }
}

fn spec_only(spec: DecodeSpec) -> DecodeRequest {
    DecodeRequest { spec: Some(spec), data: Bytes::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_answer_comes_for_the_digest_alone() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(1);
    let (client, data) = (app.client().await, latents(8, 8, 1));
    let first = client.decode(decode_spec(8, 8), data.clone()).await.unwrap();
    // The stream stays open: the answer does not wait for a half-close.
    let (messages, stream) = mpsc::channel(1);
    messages.send(spec_only(claiming(&data))).await.unwrap();
    let mut responses = client.open_decode(ReceiverStream::new(stream), None).await.unwrap();
    let mut bytes = Vec::new();
    let mut source = None;
    while let Some(response) = responses.message().await.unwrap() {
        match response.event.unwrap() {
            Event::NeedData(_) => panic!("the answer was cached"),
            Event::Chunk(chunk) => bytes.extend_from_slice(&chunk),
            Event::Trailer(trailer) => source = Some(trailer.source),
            _ => {}
        }
    }
    assert_eq!((bytes, source), (first.bytes(), Some(Source::Memory as i32)));
    assert_eq!(gated.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_digest_is_asked_for_its_data_on_the_same_stream() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(1);
    let (client, data) = (app.client().await, latents(8, 8, 1));
    let (messages, stream) = mpsc::channel(1);
    messages.send(spec_only(claiming(&data))).await.unwrap();
    let mut responses = client.open_decode(ReceiverStream::new(stream), None).await.unwrap();
    let first = responses.message().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::NeedData(_))));
    messages.send(DecodeRequest { spec: None, data: data.slice(..100) }).await.unwrap();
    messages.send(DecodeRequest { spec: None, data: data.slice(100..) }).await.unwrap();
    drop(messages);
    let mut source = None;
    while let Some(response) = responses.message().await.unwrap() {
        if let Some(Event::Trailer(trailer)) = response.event {
            source = Some(trailer.source);
        }
    }
    assert_eq!(source, Some(Source::Computed as i32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_claim_is_refused_and_writes_nothing() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(9);
    let (client, honest, other) = (app.client().await, latents(8, 8, 1), latents(8, 8, 2));
    // Claims to be `honest`, sends `other`: with the data at once, and after need_data.
    for messages in [
        vec![DecodeRequest { spec: Some(claiming(&honest)), data: other.clone() }],
        vec![spec_only(claiming(&honest)), DecodeRequest { spec: None, data: other.clone() }],
    ] {
        let status = client.decode_messages(messages).await.err().unwrap();
        assert_eq!(reason(&status), (Code::InvalidArgument, "BAD_REQUEST".to_owned()));
    }
    assert_eq!(gated.runs(), 0);
    let asked =
        client.decode_messages(vec![spec_only(claiming(&honest)), DecodeRequest { spec: None, data: honest.clone() }]);
    let answer = asked.await.unwrap();
    assert!(answer.needed_data, "the false claim left no alias");
    let right = client.decode(decode_spec(8, 8), honest).await.unwrap();
    assert_eq!(right.bytes(), answer.bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_joins_a_run_in_progress() {
    let (app, gated) = TestApp::gated(config()).await;
    let (client, data) = (app.client().await, latents(8, 8, 1));
    let led = tokio::spawn({
        let (client, data) = (client.clone(), data.clone());
        async move { client.decode(decode_spec(8, 8), data).await.unwrap() }
    });
    gated.until_runs(1).await;
    let joined = tokio::spawn(async move { client.decode_messages(vec![spec_only(claiming(&data))]).await.unwrap() });
    app.until("latentgate_flight_waiters", &[], 2.0).await;
    gated.open(1);
    let joined = joined.await.unwrap();
    assert!(!joined.needed_data);
    assert_eq!((joined.source(), joined.bytes()), (Source::Coalesced, led.await.unwrap().bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_spelling_is_another_alias_of_the_same_answer() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(1);
    let (client, data) = (app.client().await, latents(8, 8, 1));
    client.decode(decode_spec(8, 8), data.clone()).await.unwrap();
    // Spelled otherwise (height and width that mean nothing here): no alias yet, but the same key once the data are there.
    let spec = DecodeSpec { height: 64, width: 64, ..claiming(&data) };
    let messages = vec![spec_only(spec), DecodeRequest { spec: None, data: data.clone() }];
    let answer = client.decode_messages(messages).await.unwrap();
    assert!(answer.needed_data);
    assert_eq!((answer.source(), gated.runs()), (Source::Memory, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bypass_is_not_answered_from_the_cache() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(9);
    let (client, data) = (app.client().await, latents(8, 8, 1));
    client.decode(decode_spec(8, 8), data.clone()).await.unwrap();
    let bypass = DecodeSpec { cache: CachePolicy::Bypass as i32, ..claiming(&data) };
    let answer = client.decode_messages(vec![spec_only(bypass), DecodeRequest { spec: None, data }]).await.unwrap();
    assert!(answer.needed_data);
    assert_eq!((answer.source(), gated.runs()), (Source::Computed, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_was_asked_for_data_and_says_nothing_takes_nobodys_place() {
    let mut config = config();
    config.admission.max_requests = 1;
    let (app, gated) = TestApp::gated(config).await;
    gated.open(2);
    let (client, data) = (app.client().await, latents(8, 8, 1));
    let (messages, stream) = mpsc::channel(1);
    messages.send(spec_only(claiming(&data))).await.unwrap();
    let mut silent = client.open_decode(ReceiverStream::new(stream), None).await.unwrap();
    assert!(matches!(silent.message().await.unwrap().unwrap().event, Some(Event::NeedData(_))));
    app.until("latentgate_inflight_requests", &[], 0.0).await;
    client.decode(decode_spec(8, 8), latents(8, 8, 2)).await.expect("there is room for those who speak");
    messages.send(DecodeRequest { spec: None, data }).await.unwrap();
    drop(messages);
    let answer = crate::support::collect(silent).await.unwrap();
    assert_eq!((answer.source(), gated.runs()), (Source::Computed, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_alone_asks_whether_the_answer_is_there() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(1);
    let (client, data) = (app.client().await, latents(8, 8, 1));
    let asked = || DecodeSpec { cache: CachePolicy::OnlyIfCached as i32, ..claiming(&data) };
    let ask = || client.decode_messages(vec![spec_only(asked())]);
    assert_eq!(reason(&ask().await.err().unwrap()), (Code::NotFound, "NOT_CACHED".to_owned()));
    let answer = client.decode(decode_spec(8, 8), data.clone()).await.unwrap();
    assert_eq!(ask().await.unwrap().bytes(), answer.bytes());
    assert_eq!(gated.runs(), 1);
}
