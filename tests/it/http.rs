//! The HTTP front: every form of answer, every spelling of a request, one cache with gRPC.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use latentgate::proto::{DecodeSpec, Output, Source, output};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{TestApp, config, decode_spec, encode_spec, http, latents};

const PNG: &str = "image/png";
const TENSOR: &str = "tensor/binary";

fn tensor_of(dtype: latentgate::proto::Dtype) -> Option<Output> {
    let kind = output::Kind::Tensor(output::Tensor { dtype: dtype as i32 });
    Some(Output { kind: Some(kind) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_over_grpc_is_a_hit_over_http_and_the_other_way_round() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let first = client.decode(decode_spec(8, 6), latents(8, 6, 1)).await.unwrap();
    let hit = app.post_decode([8, 6], "", PNG, &latents(8, 6, 1)).await.whole();
    assert_eq!((hit.status, hit.header("cache-status")), (200, Some("latentgate; hit; detail=memory")));
    assert_eq!(hit.body, first.bytes());
    let key = blake3::Hash::from_slice(&first.accepted.content_key).unwrap().to_hex();
    assert_eq!(hit.header("latentgate-key"), Some(key.as_str()));

    let raw = app.post_decode([8, 6], "&output_type=pt", TENSOR, &latents(8, 6, 1)).await.whole();
    assert_eq!(raw.header("cache-status"), Some("latentgate; fwd=miss; stored; detail=local"));
    let spec = DecodeSpec { output: tensor_of(latentgate::proto::Dtype::F16), ..decode_spec(8, 6) };
    let again = client.decode(spec, latents(8, 6, 1)).await.unwrap();
    assert_eq!((again.source(), again.bytes()), (Source::Memory, raw.body.to_vec()));
    app.until("latentgate_requests_total", &["front=\"http\"", "outcome=\"hit_memory\""], 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_answer_has_its_head() {
    let app = TestApp::start(config()).await;
    let z = latents(8, 6, 2);
    for (rest, accept, content_type, shape, dtype) in [
        ("", "image/png", "image/png", None, None),
        ("", "image/jpeg", "image/jpeg", None, None),
        ("", "image/webp", "image/webp", None, None),
        ("", "*/*", "image/png", None, None),
        ("&output_type=pt", "tensor/binary", "tensor/binary", Some(vec![1, 3, 64, 48]), Some("float16")),
        ("&output_type=pt", "*/*", "tensor/binary", Some(vec![1, 3, 64, 48]), Some("float16")),
        ("&output_type=pil", "tensor/binary", "tensor/binary", Some(vec![1, 3, 64, 48]), Some("float16")),
        ("&output_type=pt&partial_postprocess=True", TENSOR, TENSOR, Some(vec![1, 64, 48, 3]), Some("uint8")),
    ] {
        let answer = app.post_decode([8, 6], rest, accept, &z).await.whole();
        let case = format!("{rest} {accept}: {}", String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(content_type)), "{case}");
        assert_eq!(answer.header("dtype"), dtype, "{case}");
        assert_eq!(answer.header("shape").is_some(), shape.is_some(), "{case}");
        if let Some(shape) = shape {
            assert_eq!(answer.shape(), shape);
            let size = if dtype == Some("uint8") { 1 } else { 2 };
            assert_eq!(answer.body.len(), shape.iter().product::<usize>() * size);
        }
        assert!(answer.header("server-timing").unwrap().starts_with("receive;dur="));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_requests_are_one_entry_however_they_are_spelled() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(1);
    let z = latents(8, 6, 3);
    let envelope = format!("{{\"inputs\": \"{}\"}}", STANDARD.encode(&z));
    let whole = format!(
        "{{\"inputs\":\"{}\",\"parameters\":{{\"shape\":[1,4,8,6],\"dtype\":\"float32\",\"do_scaling\":true,\
         \"output_type\":\"pt\",\"height\":null}}}}",
        STANDARD.encode(&z)
    );
    let (raw, json) = (("Content-Type", TENSOR), ("Content-Type", "tensor/base64"));
    let accept = ("Accept", TENSOR);
    let plain = "/decode/builtin?shape=1&shape=4&shape=8&shape=6&dtype=float32&do_scaling=True&output_type=pt";
    let first = app.http("POST", plain, &[raw, accept], &z).await.whole();
    for (target, headers, body) in [
        (plain, [raw, accept], &z[..]),
        ("/decode/builtin/?output_type=pt&dtype=float32&shape=%5B1,4,8,6%5D&do_scaling=true", [raw, accept], &z),
        ("/decode/builtin?output_type=pt&dtype=float32&shape=1,4,8,6&scaling_factor=1.0&height=7", [raw, accept], &z),
        (plain, [json, accept], envelope.as_bytes()),
        ("/decode/builtin", [("Content-Type", "application/json"), accept], whole.as_bytes()),
        (
            "/decode/%62uiltin?output_type=pt&dtype=float32&shape=1,4,8,6&x=y",
            [("content-type", "Tensor/Binary; q=1"), accept],
            &z,
        ),
    ] {
        let answer = app.http("POST", target, &headers, body).await.whole();
        assert_eq!(answer.header("cache-status"), Some("latentgate; hit; detail=memory"), "{target} {}", answer.status);
        assert_eq!(answer.body, first.body);
    }
    let base64 = app.http("POST", plain, &[raw, ("Accept", "tensor/base64")], &z).await.whole();
    let value: serde_json::Value = serde_json::from_slice(&base64.body).unwrap();
    assert_eq!(STANDARD.decode(value["inputs"].as_str().unwrap()).unwrap(), first.body);
    assert_eq!(value["parameters"], serde_json::json!({ "shape": [1, 3, 64, 48], "dtype": "float16" }));
    assert_eq!(gated.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_whole_as_a_tensor_and_its_first_as_a_picture() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(9);
    let (one, other) = (latents(8, 8, 4), latents(8, 8, 5));
    let both = [&one[..], &other[..]].concat();
    let single = app.post_decode([8, 8], "", PNG, &one).await.whole();
    let target = "/decode/builtin?shape=[2,4,8,8]&dtype=float32&do_scaling=True";
    let first = app.http("POST", target, &[("Accept", PNG)], &both).await.whole();
    assert_eq!((first.header("latentgate-key"), &first.body), (single.header("latentgate-key"), &single.body));
    let tensor = format!("{target}&output_type=pt");
    let whole = app.http("POST", &tensor, &[("Accept", TENSOR)], &both).await.whole();
    assert_eq!(whole.shape(), [2, 3, 64, 64]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encode_takes_a_file_without_a_content_type() {
    let app = TestApp::start(config()).await;
    let client = app.client().await;
    let png = app.post_decode([8, 6], "", PNG, &latents(8, 6, 6)).await.whole().body;
    let target = "/encode/builtin?do_scaling=True";
    let answer = app.http("POST", target, &[("Accept", "*/*")], &png).await.whole();
    assert_eq!((answer.status, answer.shape(), answer.header("dtype")), (200, vec![1, 4, 8, 6], Some("float16")));
    let grpc = client.encode(encode_spec(png.len()), png.clone()).await.unwrap();
    assert_eq!((grpc.source(), grpc.bytes()), (Source::Memory, answer.body.to_vec()));
    // Without a length said, it ends where the chunks end.
    let head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked";
    let chunked = format!("POST {target} {head}\r\n\r\n{:x}\r\n", png.len());
    let bytes = [chunked.as_bytes(), &png, b"\r\n0\r\n\r\n"].concat();
    let same = http::raw(app.addresses.data, &bytes).await.unwrap().whole();
    assert_eq!((same.header("cache-status"), &same.body), (Some("latentgate; hit; detail=memory"), &answer.body));
    // A tensor of the same pixels is the same request.
    let pixels = image::load_from_memory(&png).unwrap().to_rgb8();
    let [w, h] = [pixels.width() as usize, pixels.height() as usize];
    let planar: Vec<u8> = (0..3).flat_map(|c| pixels.pixels().map(move |pixel| pixel.0[c])).collect();
    let tensor = format!("{target}&shape=[1,3,{h},{w}]&dtype=uint8");
    let answer = app.http("POST", &tensor, &[], &planar).await.whole();
    assert_eq!((answer.status, answer.shape()), (200, vec![1, 4, 8, 6]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_says_ok_and_other_methods_are_told_which_are_right() {
    let app = TestApp::start(config()).await;
    for target in ["/", "/health", "/predict", "/decode/builtin", "/encode/builtin/", "/decode/sdxl"] {
        let answer = app.http("GET", target, &[], b"").await.whole();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"Ok"[..]), "{target}");
        assert_eq!(app.http("DELETE", target, &[], b"").await.status, 405, "{target}");
    }
    for (method, target, status) in [
        ("GET", "/decode/nope", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/decode", 404),
        ("POST", "/", 404),
        ("POST", "/decode/a/b", 404),
        ("POST", "/decode/%ff", 400),
    ] {
        let answer = app.http(method, target, &[], b"").await;
        assert_eq!(answer.status, status, "{method} {target}");
        answer.error();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_name_stands_for_a_model_and_a_task() {
    let mut config = config();
    config.hosts.insert("vae.example".to_owned(), "decode/builtin".parse().unwrap());
    let (app, gated) = TestApp::gated(config).await;
    gated.open(1);
    let z = latents(8, 8, 7);
    let query = "shape=[1,4,8,8]&dtype=float32&output_type=pt";
    for (host, target) in [("vae.example", format!("/?{query}")), ("VAE.example:443", format!("/predict?{query}"))] {
        let answer = app.http("POST", &target, &[("Host", host), ("Accept", TENSOR)], &z).await.whole();
        assert_eq!((answer.status, answer.shape()), (200, vec![1, 3, 64, 64]), "{host} {target}");
    }
    // The public names are built in; this one has no weights here.
    let public = "x2dmsqunjd6k9prw.us-east-1.aws.endpoints.huggingface.cloud";
    let answer = app.http("POST", &format!("/?{query}"), &[("Host", public)], &z).await;
    assert_eq!((answer.status, gated.runs()), (503, 1));
    assert!(answer.error().contains("sd-xl"), "{}", answer.error());
    assert!(answer.header("retry-after").is_none(), "no waiting brings weights");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_control_is_a_cache_policy() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(9);
    let target = "/decode/builtin?shape=[1,4,8,8]&dtype=float32";
    let ask = async |control: &'static str| {
        let headers = [("Accept", PNG), ("Cache-Control", control)];
        app.http("POST", target, &headers, &latents(8, 8, 8)).await
    };
    let absent = ask("only-if-cached").await;
    assert_eq!((absent.status, gated.runs()), (504, 0));
    let unstored = ask("no-store").await.whole();
    assert_eq!(unstored.header("cache-status"), Some("latentgate; fwd=miss; detail=gated"));
    app.until_idle().await;
    assert_eq!((ask("max-age=1").await.status, gated.runs()), (200, 2));
    assert_eq!((ask("only-if-cached").await.whole().status, gated.runs()), (200, 2));
    let fresh = ask("no-cache").await.whole();
    assert_eq!(
        (fresh.header("cache-status"), gated.runs()),
        (Some("latentgate; fwd=request; stored; detail=gated"), 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_requests_at_once_over_both_fronts_are_one_run() {
    let (app, gated) = TestApp::gated(config()).await;
    let (client, z) = (app.client().await, latents(8, 8, 9));
    let app = std::sync::Arc::new(app);
    let http: Vec<_> = (0..8)
        .map(|_| {
            let (app, z) = (app.clone(), z.clone());
            tokio::spawn(async move { app.post_decode([8, 8], "", PNG, &z).await.whole().body })
        })
        .collect();
    let grpc = tokio::spawn(async move { client.decode(decode_spec(8, 8), z).await.unwrap().bytes() });
    app.until("latentgate_flight_waiters", &[], 9.0).await;
    gated.open(1);
    let want = grpc.await.unwrap();
    for answer in http {
        assert_eq!(answer.await.unwrap(), want);
    }
    assert_eq!(gated.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_in_flight_until_its_last_byte_is_read() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.open(1);
    let target = "/decode/builtin?shape=[1,4,256,256]&dtype=float32&output_type=pt";
    let mut stream = TcpStream::connect(app.addresses.data).await.unwrap();
    let bytes = http::request("POST", target, &[("Accept", TENSOR)], &latents(256, 256, 11));
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; 1000];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(app.metric("latentgate_inflight_requests", &[]).await, 1.0);
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(http::HttpAnswer::parse(&answer).unwrap().whole().body.len(), 3 * 2048 * 2048 * 2);
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_fails_midway_breaks_off_and_one_that_fails_before_has_a_status() {
    let (app, gated) = TestApp::gated(config()).await;
    gated.failing.store(1, std::sync::atomic::Ordering::SeqCst);
    gated.open(2);
    let target = "/decode/builtin?shape=[1,4,8,8]&dtype=float32&do_scaling=True";
    let bytes = http::request("POST", target, &[("Accept", PNG)], &latents(8, 8, 10));
    // The connection ends before the announced length, perhaps before the head.
    if let Some(broken) = http::raw(app.addresses.data, &bytes).await {
        let announced: usize = broken.header("content-length").unwrap().parse().unwrap();
        assert!(broken.body.len() < announced, "a short body must not look whole");
    }
    app.until_idle().await;
    let whole = app.post_decode([8, 8], "", PNG, &latents(8, 8, 10)).await.whole();
    assert_eq!((whole.status, gated.runs()), (200, 2));
}
