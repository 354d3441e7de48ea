//! Bad input over HTTP: a status of the table and one line of JSON in no time, nothing run, nothing held, and the server
//! goes on.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Gated, PATIENCE, TestApp, config,
    http::{HttpAnswer, raw, request},
    latents,
};

const DECODE: &str = "/decode/builtin";
const GOOD: &str = "shape=1&shape=4&shape=8&shape=8&dtype=float32&do_scaling=True";
const TENSOR: (&str, &str) = ("Content-Type", "tensor/binary");
const PNG: (&str, &str) = ("Accept", "image/png");

async fn assert_unharmed(app: &TestApp, gated: &Gated) {
    assert_eq!(gated.runs(), 0);
    app.until_idle().await;
    gated.open(1);
    let good = app.post_decode([8, 8], "", "image/png", &latents(8, 8, 99)).await.whole();
    assert_eq!(good.status, 200, "the server goes on serving");
}

/// A target, its body, the status and a word of the error.
type Case<'a> = (&'a str, &'a [u8], u16, &'a str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_decodes() {
    let (app, gated) = TestApp::gated(config()).await;
    let z = latents(8, 8, 1);
    let mut nan = z.to_vec();
    nan[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
    let many = format!("{GOOD}{}", "&a=b".repeat(3000));
    let cases: Vec<Case<'_>> = vec![
        ("", &z, 400, "shape"),
        ("shape=1&shape=4&shape=8&shape=8", &z, 400, "dtype"),
        ("shape=1&shape=4&shape=8&shape=8&dtype=float64", &z, 400, "float64"),
        ("shape=1&shape=4&shape=8&shape=8&dtype=uint8", &z[..256], 400, "latents.dtype"),
        ("shape=1&shape=4&shape=8&dtype=float32", &z, 400, "height"),
        ("shape=1&shape=16&shape=16&dtype=float32&height=64&width=80", &z, 400, "packed tokens"),
        ("shape=1&shape=16&shape=8&shape=8&dtype=float32", &z, 400, "takes 4 channels"),
        ("shape=1&shape=4&shape=-8&shape=8&dtype=float32", &z, 400, "dimension 2"),
        ("shape=1&shape=4&shape=0&shape=8&dtype=float32", &z, 400, "dimension 2"),
        ("shape=1&shape=4&shape=8.0&shape=8&dtype=float32", &z, 400, "whole numbers"),
        ("shape=1&shape=4&shape=1000000&shape=1000000&dtype=float32", &z, 413, "the limit"),
        ("shape=1000&shape=4&shape=8&shape=8&dtype=float32", &z, 413, "a batch of 1000"),
        ("shape=9223372036854775807&shape=9&shape=8&shape=8&dtype=float32", &z, 400, "overflows"),
        ("shape=4&shape=8&dtype=float32", &z, 400, "latents.shape"),
        (GOOD, &z[..1020], 400, "1024 bytes"),
        (GOOD, b"", 400, "1024 bytes"),
        (GOOD, &nan, 400, "NaN at index 100"),
        (&many, &z, 400, "parameters"),
        ("shape=%5B1%2C4%2C8%2C8%5D&dtype=float32&output_type=gif", &z, 400, "output_type"),
        ("shape=[1,4,8,8]&dtype=float32&output_type=mp4", &z, 400, "accept"),
        ("shape=[1,4,8,8]&dtype=float32&output_type=pt", &z, 400, "accept"),
        ("shape=[1,4,8,8]&dtype=float32&scaling_factor=0", &z, 400, "scaling_factor"),
        ("shape=[1,4,8,8]&dtype=float32&scaling_factor=nan", &z, 400, "scaling_factor"),
        ("shape=[1,4,8,8]&dtype=float32&do_scaling=maybe", &z, 400, "do_scaling"),
        ("shape=[1,4,8,8]&dtype=float32&partial_postprocess=2", &z, 400, "partial_postprocess"),
        ("shape=%00%ff%fe&dtype=%zz", &z, 400, "shape"),
        ("shape=1%264&dtype=float32%26shape=4", &z, 400, "shape"),
    ];
    for (query, body, status, word) in cases {
        let answer = app.http("POST", &format!("{DECODE}?{query}"), &[TENSOR, PNG], body).await.whole();
        let shown: String = query.chars().take(80).collect();
        assert_eq!(answer.status, status, "{shown}: {}", answer.error());
        assert!(answer.error().contains(word), "{shown}: {}", answer.error());
    }
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_paths_types_and_tasks() {
    let (app, gated) = TestApp::gated(config()).await;
    let z = latents(8, 8, 1);
    let decode = format!("{DECODE}?{GOOD}");
    let mp4 = format!("{decode}&output_type=mp4");
    let text = ("Accept", "text/plain");
    for (target, headers, status, word) in [
        ("/decode/nope?shape=1", vec![TENSOR], 404, "no model is called"),
        ("/encode/hunyuan-video", vec![], 404, "does not encode"),
        ("/encode/hunyuanvideo?shape=1", vec![], 404, "does not encode"),
        ("/decode/..%2fbuiltin?shape=1", vec![TENSOR], 404, "no model is called"),
        (decode.as_str(), vec![("Content-Type", "text/html"), PNG], 400, "content-type"),
        (&decode, vec![("Content-Type", "tensor/base64"), PNG], 400, "body"),
        (&decode, vec![TENSOR, ("Accept", "image/gif")], 400, "accept"),
        (&decode, vec![TENSOR, ("Accept", "\u{e9}")], 400, "accept"),
        (&mp4, vec![TENSOR, text], 400, "needs a video model"),
        ("/encode/builtin", vec![("Accept", "image/png")], 400, "accept"),
        ("/encode/builtin?shape=[1,3,8,8]", vec![], 400, "dtype"),
        ("/encode/builtin?shape=[1,3,9,9]&dtype=float32", vec![], 400, "Content-Length says 1024"),
        ("/encode/builtin", vec![], 400, "image"),
    ] {
        let answer = app.http("POST", target, &headers, &z).await.whole();
        assert_eq!(answer.status, status, "{target} {headers:?}: {}", answer.error());
        assert!(answer.error().contains(word), "{target} {headers:?}: {}", answer.error());
    }
    let empty = app.http("POST", "/encode/builtin", &[], b"").await;
    assert_eq!(empty.status, 400, "{}", empty.error());
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_envelopes() {
    let (app, gated) = TestApp::gated(config()).await;
    let target = format!("{DECODE}?{GOOD}");
    let deep = format!("{{\"inputs\":\"\",\"parameters\":{}1{}}}", "[".repeat(500), "]".repeat(500));
    let many = format!("{{\"inputs\":\"\",\"parameters\":{{\"shape\":[{}1]}}}}", "1,".repeat(900));
    for body in ["", "{", "[]", "{\"inputs\":\"####\"}", "{\"inputs\":\"AAAA\"}", "{\"input\":\"AAAA\"}", &deep, &many]
    {
        let answer = app.http("POST", &target, &[("Content-Type", "application/json"), PNG], body.as_bytes()).await;
        assert_eq!(answer.status, 400, "{body:.60}: {}", answer.error());
    }
    // Far more than the latents need: refused by what its length says.
    let bomb = format!("{{\"inputs\":\"AAAA\",\"parameters\":{{\"a\":[{}0]}}}}", "0,".repeat(1_000_000));
    let answer = app.http("POST", DECODE, &[("Content-Type", "application/json"), PNG], bomb.as_bytes()).await;
    assert!(answer.status == 400 && answer.error().contains("parameters"), "{}", answer.error());
    let huge = vec![b' '; 100_000];
    let answer = app.http("POST", &target, &[("Content-Type", "tensor/base64"), PNG], &huge).await;
    assert_eq!(answer.status, 413, "{}", answer.error());
    assert_unharmed(&app, &gated).await;
}

/// Sends `bytes`, then nothing, and waits for the answer without closing.
async fn patient(app: &TestApp, bytes: &[u8]) -> Option<HttpAnswer> {
    let mut stream = TcpStream::connect(app.addresses.data).await.unwrap();
    drop(stream.write_all(bytes).await);
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    end.expect("an end in time").ok();
    HttpAnswer::parse(&answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_that_lie() {
    let mut config = config();
    config.limits.stall_time = Duration::from_millis(200);
    let (app, gated) = TestApp::gated(config).await;
    let z = latents(8, 8, 1);
    let head = |length: &str| {
        format!(
            "POST {DECODE}?{GOOD} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: tensor/binary\r\n{length}\r\n\r\n"
        )
    };
    // A length that does not fit the shape is refused before a byte of it.
    for length in ["Content-Length: 40000000000", "Content-Length: 1023", "Content-Length: 0"] {
        let answer = patient(&app, head(length).as_bytes()).await.expect("an answer");
        assert_eq!(answer.status, 400, "{length}");
        assert!(answer.error().contains("wanted 1024 bytes"), "{}", answer.error());
    }
    // Less than was said, and silence.
    let short = [head("Content-Length: 1024").as_bytes(), &z[..1000]].concat();
    let answer = patient(&app, &short).await.expect("an answer");
    assert_eq!(answer.status, 504, "{}", answer.error());
    // Broken HTTP is never a 200.
    for length in [
        "Content-Length: -1",
        "Content-Length: 1024\r\nContent-Length: 1025",
        "Content-Length: 1024\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
    ] {
        let bytes = [head(length).as_bytes(), &z].concat();
        if let Some(answer) = patient(&app, &bytes).await {
            assert!(answer.status >= 400, "{length}: {}", answer.status);
        }
    }
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunked_bodies_that_never_end() {
    let mut config = config();
    config.limits.stall_time = Duration::from_millis(200);
    let (app, gated) = TestApp::gated(config).await;
    let head =
        format!("POST {DECODE}?{GOOD} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"400\r\n", &[0u8; 1024][..], b"\r\n"].concat();
    // One byte too many is enough.
    let endless = [head.as_bytes(), &chunk.repeat(1000)].concat();
    let answer = patient(&app, &endless).await.expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.error());
    assert!(answer.error().contains("wanted 1024 bytes"), "{}", answer.error());
    // All of it, and no end.
    let open = [head.as_bytes(), &chunk].concat();
    assert_eq!(patient(&app, &open).await.expect("an answer").status, 504);
    // No chunks at all, of a picture whose length nobody knows.
    let encode = head.replace(&format!("{DECODE}?{GOOD}"), "/encode/builtin");
    assert_eq!(patient(&app, encode.as_bytes()).await.expect("an answer").status, 504);
    let garbled = [head.as_bytes(), b"zz\r\n"].concat();
    let answer = patient(&app, &garbled).await.expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.error());
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_size_that_is_only_claimed_takes_no_memory() {
    let (app, gated) = TestApp::gated(config()).await;
    let target = "/decode/builtin?shape=[1,4,256,256]&dtype=float32&do_scaling=True";
    let whole = request("POST", target, &[TENSOR, PNG], &latents(256, 256, 1));
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(app.addresses.data).await.unwrap();
        stream.write_all(&whole[..1000]).await.unwrap();
        streams.push(stream);
    }
    app.until("latentgate_inflight_requests", &[], 8.0).await;
    let held = app.metric("latentgate_inflight_bytes", &[]).await;
    assert!(held <= 8.0 * f64::from(256 << 10), "{held} bytes for 8 x 1000");
    drop(streams);
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_bombs_and_long_targets() {
    let (app, gated) = TestApp::gated(config()).await;
    let z = latents(8, 8, 1);
    let target = format!("{DECODE}?{GOOD}");
    let names: Vec<String> = (0..1000).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let long = "y".repeat(1 << 20);
    let query = format!("{target}&a={}", "b".repeat(100_000));
    for bytes in [
        request("POST", &target, &many, &z),
        request("POST", &target, &[("x", &long)], &z),
        request("POST", &query, &[TENSOR, PNG], &z),
        b"POST /decode/builtin\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ] {
        if let Some(answer) = raw(app.addresses.data, &bytes).await {
            assert!((400..500).contains(&answer.status), "{}", answer.status);
        }
    }
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_refused_midway_through_a_large_body_reads_why() {
    let (app, gated) = TestApp::gated(config()).await;
    let body = vec![0u8; 8 << 20];
    let answer = app.http("POST", "/decode/builtin?shape=[1,4,8,8]&dtype=float64", &[TENSOR, PNG], &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.error().contains("float64"));
    assert_unharmed(&app, &gated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_run_with_it() {
    let (app, gated) = TestApp::gated(config()).await;
    let mut stream = TcpStream::connect(app.addresses.data).await.unwrap();
    stream.write_all(&request("POST", &format!("{DECODE}?{GOOD}"), &[TENSOR, PNG], &latents(8, 8, 1))).await.unwrap();
    gated.until_runs(1).await;
    drop(stream);
    gated.until_stopped(1).await;
    app.until_idle().await;
}
