//! What the whole product keeps to itself, though it is told to log everything: payloads, tokens, queries.

use latentgate::proto::{DecodeRequest, DecodeSpec, EncodeRequest, EncodeSpec, encode_spec::Input};
use latentgate::proto::{Dtype, TensorSpec, encode_spec::Pixels};

use crate::support::{
    collector::Collector,
    decode_spec, http,
    origin::{Behaviour, Origin},
    program::Program,
};

/// Four bytes that are a small float, and text that is found again, over and over.
const PAYLOAD: &[u8; 4] = b"qZx<";

fn payload(bytes: usize) -> Vec<u8> {
    PAYLOAD.iter().copied().cycle().take(bytes).collect()
}

/// How bytes of the payload would look, wherever they came up.
const SHAPES_OF_PAYLOAD: [&str; 4] = ["qZx<", "113, 90, 120", "717a78", "715a78"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_trace_level_no_payload_token_or_query_is_logged() {
    log_everything("grpc", "").await;
    log_everything("http", "/v1/traces?key=tok_of_collector").await;
}

async fn log_everything(protocol: &str, path: &str) {
    let (origin, collector) = (Origin::start().await, Collector::start().await);
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "tok_of_file").unwrap();
    let (url, otlp, token) = (origin.decode_url(), collector.url(), token.path().display());
    let config = format!(
        "[route]\nbackends = [\"local\"]\n[upstream]\nretries = 1\ntoken_file = \"{token}\"\n\
         [models.sd1]\nlike = \"sd-v1\"\nbackends = [\"upstream\"]\nupstream.decode = [\"{url}&key=tok_of_url\"]\n\
         [log]\nfilter = \"trace\"\n\
         [trace]\nendpoint = \"{otlp}{path}\"\nprotocol = \"{protocol}\"\n\
         [trace.headers]\nauthorization = \"Bearer tok_of_header\"\n"
    );
    let program = Program::start(&config).await;
    let mut client = program.client().await.grpc;
    origin.script([Behaviour::Good, Behaviour::Close, Behaviour::Status(400, "who sent Bearer tok_of_file?", None)]);
    for (seed, model) in [(0, "builtin"), (4, "sd1"), (8, "sd1"), (12, "sd1"), (16, "none")] {
        let spec = DecodeSpec { model: model.to_owned(), ..decode_spec(4, 4) };
        let message = DecodeRequest { spec: Some(spec), data: [payload(256 - seed), vec![0; seed]].concat().into() };
        let mut request = tonic::Request::new(tokio_stream::iter([message]));
        request.metadata_mut().insert("authorization", "Bearer tok_of_client".parse().unwrap());
        if let Ok(stream) = client.decode(request).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(_)) = stream.message().await {}
        }
    }
    let tensor = TensorSpec { dtype: Dtype::F32 as i32, shape: vec![1, 3, 8, 8] };
    let input = Input::Pixels(Pixels { tensor: Some(tensor), ..Pixels::default() });
    let spec = EncodeSpec { model: "builtin".to_owned(), input: Some(input), ..EncodeSpec::default() };
    let message = EncodeRequest { spec: Some(spec), data: payload(768).into() };
    let mut stream = client.encode(tokio_stream::iter([message])).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let query = "shape=1&shape=4&shape=4&shape=4&dtype=float32&api_key=tok_of_query";
    let headers = [("Content-Type", "tensor/binary"), ("Authorization", "Bearer tok_of_client")];
    for (target, body) in [
        (format!("/decode/builtin?{query}"), payload(256)),
        (format!("/decode/sd1?{query}"), payload(256)),
        (format!("/decode/sd1?{query}&shape=9"), payload(256)),
        (format!("/decode/none?{query}"), payload(256)),
        (format!("/nowhere?{query}"), payload(16)),
    ] {
        http::raw(program.data, &http::request("POST", &target, &headers, &body)).await.expect("an answer");
    }
    collector.until(|spans| spans.iter().filter(|span| span.name == "request").count() >= 9).await;
    let spans = format!("{:?}", collector.until(|_| true).await);
    let log = program.terminate().await;
    for told in ["an attempt failed", "TRACE", "DEBUG", "latentgate::access", "hyper", "h2"] {
        assert!(log.contains(told), "{told} is not in the log, so this proves nothing:\n{log}");
    }
    assert!(collector.headers().iter().all(|headers| headers["authorization"] == "Bearer tok_of_header"));
    for secret in ["tok_of_", "tenant", "api_key"].iter().chain(&SHAPES_OF_PAYLOAD) {
        let leak = log.lines().find(|line| line.contains(secret));
        assert!(leak.is_none(), "{secret} is logged: {leak:?}");
        assert!(!spans.contains(secret), "{secret} is in a span");
    }
}
