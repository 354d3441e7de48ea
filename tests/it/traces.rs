//! Spans of the built program on their way to a collector: one trace from the client through every front to the endpoint
//! or the engine, and no harm to anybody where the collector is absent or slow.

use latentgate::proto::{DecodeRequest, DecodeSpec};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use tokio::net::TcpListener;

use crate::support::{
    Answer, Client, collect,
    collector::{Collector, hex},
    decode_spec, http, latents,
    origin::{Behaviour, Origin},
    program::Program,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "00f067aa0ba902b7";

/// A configuration with a model `sd1` at an endpoint, `builtin` in the engine, and traces that go there.
fn config(origin: &Origin, trace: &str) -> String {
    let url = origin.decode_url();
    format!(
        "[route]\nbackends = [\"local\"]\n\
         [models.sd1]\nlike = \"sd-v1\"\nbackends = [\"upstream\"]\nupstream.decode = [\"{url}\"]\n\
         [trace]\n{trace}\n"
    )
}

fn parent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{CLIENT}-{flags}")
}

/// A decode over gRPC within a trace.
async fn grpc(client: &Client, model: &str, seed: u32, parent: &str) -> Answer {
    let spec = DecodeSpec { model: model.to_owned(), ..decode_spec(8, 8) };
    let message = DecodeRequest { spec: Some(spec), data: latents(8, 8, seed) };
    let mut request = tonic::Request::new(tokio_stream::iter([message]));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request.metadata_mut().insert("tracestate", "vendor=x".parse().unwrap());
    collect(client.grpc.clone().decode(request).await.unwrap().into_inner()).await.unwrap()
}

/// The same over HTTP; its status.
async fn post(program: &Program, model: &str, seed: u32, parent: &str) -> u16 {
    let target = format!("/decode/{model}?shape=1&shape=4&shape=8&shape=8&dtype=float32&do_scaling=True");
    let headers = [("Content-Type", "tensor/binary"), ("Accept", "image/png"), ("traceparent", parent)];
    let request = http::request("POST", &target, &headers, &latents(8, 8, seed));
    http::raw(program.data, &request).await.expect("an answer").status
}

/// The only span of a name in a trace.
#[track_caller]
fn span<'a>(spans: &'a [Span], trace: &str, name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name && hex(&span.trace_id) == trace).collect();
    let [span] = found[..] else { panic!("{} spans {name} in trace {trace}", found.len()) };
    span
}

fn has(spans: &[Span], trace: &str, name: &str) -> bool {
    spans.iter().any(|span| span.name == name && hex(&span.trace_id) == trace)
}

/// What a span says under a name, as text.
fn says(span: &Span, key: &str) -> String {
    let value = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = value.and_then(|attribute| attribute.value.clone()?.value);
    value.map(|value| format!("{value:?}")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miss_is_one_trace_from_the_client_to_the_endpoint_over_both_fronts_and_both_protocols() {
    for (protocol, path) in [("grpc", ""), ("http", "/")] {
        let (origin, collector) = (Origin::start().await, Collector::start().await);
        let endpoint =
            format!("endpoint = \"{}{path}\"\nprotocol = \"{protocol}\"\nservice = \"edge\"", collector.url());
        let program = Program::start(&config(&origin, &endpoint)).await;
        grpc(&program.client().await, "sd1", 1, &parent(TRACE, "01")).await;
        assert_eq!(post(&program, "sd1", 2, &parent(OTHER_TRACE, "01")).await, 200);
        let whole = |spans: &Vec<Span>| {
            [TRACE, OTHER_TRACE].iter().all(|trace| has(spans, trace, "request") && has(spans, trace, "flight"))
        };
        let spans = collector.until(whole).await;
        for ((trace, front), asked) in [(TRACE, "grpc"), (OTHER_TRACE, "http")].into_iter().zip(origin.requests()) {
            let request = span(&spans, trace, "request");
            assert_eq!((hex(&request.parent_span_id).as_str(), request.kind()), (CLIENT, SpanKind::Server));
            for (key, value) in [("front", front), ("task", "decode"), ("model", "sd1"), ("outcome", "computed")] {
                assert!(says(request, key).contains(&format!("\"{value}\"")), "{key}: {}", says(request, key));
            }
            assert!(says(request, "bytes_in").contains("1024"), "{request:?}");
            for stage in ["receive", "lookup", "wait", "send"] {
                assert_eq!(span(&spans, trace, stage).parent_span_id, request.span_id, "{stage}");
            }
            let flight = span(&spans, trace, "flight");
            assert_eq!(flight.parent_span_id, request.span_id);
            assert_eq!(says(flight, "key"), says(request, "key"));
            let backend = span(&spans, trace, "backend");
            assert_eq!(backend.parent_span_id, flight.span_id);
            let attempt = span(&spans, trace, "attempt");
            assert_eq!((&attempt.parent_span_id, attempt.kind()), (&backend.span_id, SpanKind::Client));
            assert!(says(attempt, "upstream").contains(&origin.label()) && says(attempt, "code").contains("ok"));
            let sent = format!("00-{trace}-{}-01", hex(&attempt.span_id));
            assert_eq!(asked.header("traceparent"), Some(sent.as_str()));
            assert_eq!(asked.header("tracestate"), (front == "grpc").then_some("vendor=x"));
        }
        assert!(collector.services().iter().all(|service| service.contains("edge")), "{:?}", collector.services());
        program.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_and_a_hit_have_their_spans_and_what_is_not_sampled_has_none() {
    let (origin, collector) = (Origin::start().await, Collector::start().await);
    let endpoint = format!("endpoint = \"{}\"\nsample = 0.0", collector.url());
    let program = Program::start(&config(&origin, &endpoint)).await;
    let client = program.client().await;
    // The client decides: this one is not to be told of, and those that begin here are none either, by configuration.
    grpc(&client, "builtin", 1, &parent(OTHER_TRACE, "00")).await;
    client.decode(decode_spec(8, 8), latents(8, 8, 2)).await.unwrap();
    grpc(&client, "builtin", 3, &parent(TRACE, "01")).await;
    let spans = collector.until(|spans| has(spans, TRACE, "request") && has(spans, TRACE, "flight")).await;
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
    let backend = span(&spans, TRACE, "backend");
    for part in ["queue", "compute", "render"] {
        assert_eq!(span(&spans, TRACE, part).parent_span_id, backend.span_id, "{part}");
    }
    grpc(&client, "builtin", 3, &parent(OTHER_TRACE, "01")).await;
    let spans = collector.until(|spans| has(spans, OTHER_TRACE, "request")).await;
    assert!(says(span(&spans, OTHER_TRACE, "request"), "outcome").contains("hit_memory"));
    assert!(!has(&spans, OTHER_TRACE, "flight"));
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coalesced_request_links_to_the_flight_and_a_failed_one_says_why() {
    let (origin, collector) = (Origin::start().await, Collector::start().await);
    let trace = format!("endpoint = \"{}\"\n[upstream]\nretries = 0", collector.url());
    let program = Program::start(&config(&origin, &trace)).await;
    let client = program.client().await;
    origin.script([Behaviour::Gated]);
    let (first, second) = (client.clone(), client.clone());
    let first = tokio::spawn(async move { grpc(&first, "sd1", 1, &parent(TRACE, "01")).await });
    origin.until_requests(1).await;
    let second = tokio::spawn(async move { grpc(&second, "sd1", 1, &parent(OTHER_TRACE, "01")).await });
    program.until_metric("latentgate_flight_waiters", "", 2.0).await;
    origin.release(1);
    assert_eq!(first.await.unwrap().bytes(), second.await.unwrap().bytes());
    let whole = |spans: &Vec<Span>| has(spans, OTHER_TRACE, "request") && has(spans, TRACE, "flight");
    let spans = collector.until(whole).await;
    let (flight, joined) = (span(&spans, TRACE, "flight"), span(&spans, OTHER_TRACE, "request"));
    let links: Vec<_> = joined.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!(links, [(&flight.trace_id, &flight.span_id)]);
    assert!(says(joined, "outcome").contains("coalesced"));

    let failing = "b9c7c989f97918e1b9c7c989f97918e1";
    origin.script([Behaviour::Status(500, "x", None)]);
    assert_eq!(post(&program, "sd1", 2, &parent(failing, "01")).await, 503);
    let spans = collector.until(|spans| has(spans, failing, "request")).await;
    let request = span(&spans, failing, "request");
    assert!(says(request, "reason").contains("UNAVAILABLE"), "{request:?}");
    assert_eq!(request.status.clone().unwrap().code(), StatusCode::Error);
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_collector_is_sent_at_the_end() {
    let (origin, collector) = (Origin::start().await, Collector::start().await);
    let trace = format!("endpoint = \"{}\"\nheaders.x-key = \"told\"", collector.url());
    let program = Program::start(&config(&origin, &trace)).await;
    grpc(&program.client().await, "builtin", 1, &parent(TRACE, "01")).await;
    program.terminate().await;
    let spans = collector.until(|_| true).await;
    assert!(has(&spans, TRACE, "request") && has(&spans, TRACE, "compute"), "{spans:?}");
    assert_eq!(collector.headers()[0]["x-key"], "told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_collector_and_one_that_never_answers_cost_spans_and_no_request() {
    let origin = Origin::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for (url, queue, result) in [(Origin::closed_url(), 4096, "export_failed"), (silent, 1, "queue_full")] {
        let trace = format!("endpoint = \"{url}\"\nqueue = {queue}\ntimeout = \"3s\"\n[shutdown]\ngrace = \"1s\"");
        let mut program = Program::start(&config(&origin, &trace)).await;
        let client = program.client().await;
        for seed in 0..10 {
            grpc(&client, "builtin", seed, &parent(TRACE, "01")).await;
        }
        program.until_metric("latentgate_trace_spans_total", &format!("result=\"{result}\""), 1.0).await;
        assert_eq!(program.metric("latentgate_requests_total", "outcome=\"computed\"").await, 10.0);
        if result == "export_failed" {
            let told = program.until_line(|line| line.contains("the collector takes no spans")).await;
            assert!(told.contains("WARN"), "{told}");
        }
        program.terminate().await;
    }
}
