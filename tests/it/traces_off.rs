//! Where nothing is exported, a trace goes through untouched, and what is none goes nowhere.

use latentgate::{
    Config,
    config::{ModelConfig, UpstreamUrls},
    proto::DecodeRequest,
    route::Name,
};

use crate::support::{Client, TestApp, collect, config, decode_spec, latents, origin::Origin};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn with_upstream(origin: &Origin) -> Config {
    let mut config = config();
    let upstream = UpstreamUrls { decode: vec![origin.decode_url()], ..UpstreamUrls::default() };
    let backends = Some(vec![Name::Upstream]);
    let model = ModelConfig { backends, upstream: Some(upstream), ..ModelConfig::default() };
    config.models.insert("builtin".to_owned(), model);
    config
}

/// A decode over gRPC with these metadata.
async fn decode(client: &Client, seed: u32, metadata: &[(&'static str, &str)]) {
    let message = DecodeRequest { spec: Some(decode_spec(8, 8)), data: latents(8, 8, seed) };
    let mut request = tonic::Request::new(tokio_stream::iter([message]));
    for (name, value) in metadata {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    collect(client.grpc.clone().decode(request).await.unwrap().into_inner()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_exporter_the_clients_span_is_named_upstream_on_both_fronts() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_upstream(&origin)).await;
    let metadata = [("traceparent", PARENT), ("tracestate", "one=1"), ("tracestate", "two=2")];
    decode(&app.client().await, 1, &metadata).await;
    let target = "/decode/builtin?shape=1&shape=4&shape=8&shape=8&dtype=float32&do_scaling=True";
    let headers = [("Content-Type", "tensor/binary"), ("Accept", "image/png")];
    let headers = [&headers[..], &[("traceparent", PARENT), ("tracestate", "one=1,two=2")]].concat();
    assert_eq!(app.http("POST", target, &headers, &latents(8, 8, 2)).await.status, 200);
    let asked = origin.requests();
    assert_eq!(asked.len(), 2);
    for asked in asked {
        assert_eq!((asked.header("traceparent"), asked.header("tracestate")), (Some(PARENT), Some("one=1,two=2")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_that_is_none_is_ignored() {
    let origin = Origin::start().await;
    let app = TestApp::start(with_upstream(&origin)).await;
    let client = app.client().await;
    let wrong: [&[(&'static str, &str)]; 5] = [
        &[],
        &[("traceparent", "00-xyz")],
        &[("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"), ("tracestate", "one=1")],
        &[("traceparent", PARENT), ("traceparent", PARENT)],
        &[("tracestate", "one=1")],
    ];
    for (seed, metadata) in wrong.into_iter().enumerate() {
        decode(&client, seed as u32, metadata).await;
        let asked = origin.requests().pop().unwrap();
        assert_eq!((asked.header("traceparent"), asked.header("tracestate")), (None, None), "{metadata:?}");
    }
    assert_eq!(origin.count(), wrong.len());
}
