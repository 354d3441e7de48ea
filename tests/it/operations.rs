//! What operators rely on: health, readiness, reflection, metrics, draining.

use latentgate::{Config, config::UpstreamUrls, metrics::CATALOGUE, route::Name};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{TestApp, config, decode_spec, latents, tls::Identity};

/// The builtin model, to be loaded before the app is ready.
fn preloading() -> Config {
    let mut config = config();
    config.models.entry("builtin".to_owned()).or_default().preload = true;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_and_health_wait_for_what_is_to_be_preloaded() {
    let app = TestApp::start(preloading()).await;
    let mut health = HealthClient::new(app.client().await.channel);
    for service in ["", "latentgate.v1.Latents"] {
        let mut watched = health.watch(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
        loop {
            let status = watched.message().await.unwrap().unwrap().status;
            if status == ServingStatus::Serving as i32 {
                break;
            }
        }
    }
    assert_eq!(app.admin("/readyz").await, (200, "{\"ready\":true,\"reasons\":[]}\n".to_owned()));
    assert_eq!(app.metric("latentgate_engine_model_loaded", &[r#"model="builtin""#]).await, 1.0);
    let unknown = health.check(HealthCheckRequest { service: "nope".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_required_model_that_does_not_load_keeps_the_app_unready_but_alive() {
    let folder = tempfile::tempdir().unwrap();
    let config_json = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/builtin/config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config_json).unwrap();
    // A safetensors file with one tensor of the decoder, and none of the others.
    let header = br#"{"decoder.layers.0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    std::fs::write(folder.path().join("diffusion_pytorch_model.safetensors"), file).unwrap();
    let mut config = config();
    let broken = config.models.entry("broken".to_owned()).or_default();
    broken.weights = Some(folder.path().to_owned());
    broken.preload = true;
    let app = TestApp::start(config).await;
    let (code, body) = loop {
        let (code, body) = app.admin("/readyz").await;
        if !body.contains("loading") && !body.contains("starting") {
            break (code, body);
        }
    };
    assert_eq!(code, 503);
    assert!(body.contains("model broken: ") && body.contains("decoder."), "{body}");
    assert_eq!(app.admin("/livez").await, (200, "ok\n".to_owned()));
    app.client().await.decode(decode_spec(2, 2), latents(2, 2, 1)).await.expect("other models are served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_knows_the_services() {
    let app = TestApp::start(config()).await;
    let mut reflection = ServerReflectionClient::new(app.client().await.channel);
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("latentgate.v1.Latents.Decode".to_owned())),
    ];
    let mut answers = reflection.server_reflection_info(tokio_stream::iter(asked)).await.unwrap().into_inner();
    let listed = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = listed else { panic!("{listed:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["latentgate.v1.Latents", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
    }
    let file = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_catalogue_is_described_and_recorded_with_its_labels() {
    let mut config = preloading();
    // Room for one artifact of the two: one is evicted.
    config.cache.memory.capacity = bytesize::ByteSize::kib(8);
    let folder = tempfile::TempDir::new().unwrap();
    config.cache.disk.path = Some(folder.path().to_owned());
    // An endpoint that is not there: asked first, failed over from.
    let model = config.models.entry("builtin".to_owned()).or_default();
    model.backends = Some(vec![Name::Upstream, Name::Local]);
    let decode = vec!["http://127.0.0.1:1".to_owned()];
    model.upstream = Some(UpstreamUrls { decode, ..UpstreamUrls::default() });
    config.upstream.retries = 1;
    // The certificate's expiry is a metric.
    let identity = Identity::new();
    config.listen.tls = Some(identity.files.clone());
    let app = TestApp::start(config).await;
    let client = identity.grpc(app.addresses.data).await;
    for seed in 0..12 {
        client.decode(decode_spec(4, 4), latents(4, 4, seed)).await.unwrap();
    }
    client.decode(decode_spec(4, 5), latents(4, 4, 1)).await.err().expect("refused");
    let (_, text) = app.admin("/metrics").await;
    for declared in CATALOGUE {
        let name = declared.name;
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not described");
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} is not recorded");
        let sample = text.lines().find(|line| line.starts_with(name)).unwrap();
        for label in declared.labels {
            assert!(sample.contains(&format!("{label}=\"")), "{name} has no label {label}: {sample}");
        }
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE latentgate_")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(CATALOGUE.iter().any(|declared| declared.name == name), "{name} is recorded and not declared");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_drains_accepted_requests_and_takes_no_new_ones() {
    let (mut app, gated) = TestApp::gated(config()).await;
    let client = app.client().await;
    let asked = tokio::spawn(async move { client.decode(decode_spec(8, 8), latents(8, 8, 1)).await });
    gated.until_runs(1).await;
    app.stop();
    while app.admin("/readyz").await.0 == 200 {}
    gated.open(1);
    let answer = asked.await.unwrap().expect("an accepted request is answered");
    assert!(!answer.bytes().is_empty());
    app.stopped().await;
    assert!(tokio::net::TcpStream::connect(app.addresses.data).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_watches_the_health_does_not_hold_up_a_stop() {
    let mut config = config();
    config.shutdown.grace = std::time::Duration::from_hours(1);
    let mut app = TestApp::start(config).await;
    let mut health = HealthClient::new(app.client().await.channel);
    let mut watched = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
    app.stop();
    let end = loop {
        match watched.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a drain is told"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), tonic::Code::Unavailable);
    app.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_can_wait_for_stops_with_the_flights_deadline() {
    let mut config = config();
    config.flight.time = std::time::Duration::from_millis(50);
    let (app, gated) = TestApp::gated(config).await;
    let status = app.client().await.decode(decode_spec(8, 8), latents(8, 8, 1)).await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    gated.until_stopped(1).await;
    app.until_idle().await;
}
