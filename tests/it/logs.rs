//! The log of the built program: a line for each request, and a filter that changes while it runs.

use latentgate::proto::{CachePolicy, DecodeSpec};
use serde_json::Value;

use crate::support::{
    collector::hex,
    decode_spec, http, latents,
    origin::{Behaviour, Origin},
    program::{Program, latentgate},
};

fn config(origin: &Origin, log: &str) -> String {
    let url = origin.decode_url();
    format!(
        "[route]\nbackends = [\"local\"]\n[upstream]\nretries = 0\n\
         [models.sd1]\nlike = \"sd-v1\"\nbackends = [\"upstream\"]\nupstream.decode = [\"{url}\"]\n[log]\n{log}\n"
    )
}

fn is_access(line: &str) -> bool {
    line.contains(" latentgate::access: ") || line.contains("\"target\":\"latentgate::access\"")
}

/// The only line of an outcome.
#[track_caller]
fn line<'a>(lines: &'a [Value], outcome: &str) -> &'a Value {
    let found: Vec<_> = lines.iter().filter(|line| line["outcome"] == outcome).collect();
    let [line] = found[..] else { panic!("{} lines of {outcome} in {lines:?}", found.len()) };
    line
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_one_line_with_numbers_as_numbers() {
    let origin = Origin::start().await;
    let mut program = Program::start(&config(&origin, "format = \"json\"")).await;
    let client = program.client().await;
    let spec = || DecodeSpec { model: "sd1".to_owned(), ..decode_spec(8, 8) };
    origin.script([Behaviour::Gated]);
    let (first, second) = (client.clone(), client.clone());
    let first = tokio::spawn(async move { first.decode(spec(), latents(8, 8, 1)).await.unwrap() });
    origin.until_requests(1).await;
    let second = tokio::spawn(async move { second.decode(spec(), latents(8, 8, 1)).await.unwrap() });
    program.until_metric("latentgate_flight_waiters", "", 2.0).await;
    origin.release(1);
    let answer = first.await.unwrap();
    second.await.unwrap();
    // Until the flight has landed, who asks is its passenger.
    program.until_metric("latentgate_flights", "", 0.0).await;
    let cached = DecodeSpec { cache: CachePolicy::OnlyIfCached as i32, ..spec() };
    client.decode(cached, latents(8, 8, 1)).await.unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("Content-Type", "tensor/binary"), ("traceparent", trace)];
    origin.script([Behaviour::Status(500, "x", None)]);
    for (target, status) in [("/decode/nope", 404), ("/decode/sd1?shape=1&shape=4&shape=8&shape=8&dtype=float32", 503)]
    {
        let request = http::request("POST", target, &headers, &latents(8, 8, 2));
        assert_eq!(http::raw(program.data, &request).await.unwrap().status, status);
    }

    let lines = program.until_lines(5, is_access).await;
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let key = hex(&answer.accepted.content_key[..8]);
    for outcome in ["computed", "coalesced", "hit_memory"] {
        let line = line(&lines, outcome);
        let facts = ["front", "task", "model", "key", "level", "message"].map(|name| line[name].as_str().unwrap());
        assert_eq!(facts, ["grpc", "decode", "sd1", &key, "INFO", "request"]);
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&1024.into(), &answer.bytes().len().into()));
        let (duration, first) = (line["duration_ms"].as_f64().unwrap(), line["first_byte_ms"].as_f64().unwrap());
        assert!(0.0 < first && first <= duration, "{line}");
        for stage in ["queue_ms", "compute_ms", "render_ms"] {
            assert_eq!(line[stage].is_f64(), outcome != "hit_memory", "{line}");
        }
        assert!(line["reason"].is_null() && line["trace_id"].is_null(), "{line}");
    }
    let failed = |reason| lines.iter().find(|line| line["reason"] == reason).unwrap_or_else(|| panic!("{lines:?}"));
    let (unknown, broken) = (failed("UNKNOWN_MODEL"), failed("UNAVAILABLE"));
    assert_eq!((&unknown["level"], &unknown["model"]), (&"INFO".into(), &"none".into()));
    assert_eq!((&broken["level"], &broken["model"]), (&"WARN".into(), &"sd1".into()));
    for line in [unknown, broken] {
        assert_eq!((&line["front"], &line["outcome"]), (&"http".into(), &"error".into()));
        assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(!line["error"].as_str().unwrap().is_empty() && line["queue_ms"].is_null(), "{line}");
    }
    let log = program.terminate().await;
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_access_lines_only_what_an_operator_should_know_of_is_told() {
    let origin = Origin::start().await;
    let program = Program::start(&config(&origin, "access = false\nfilter = \"debug\"")).await;
    let client = program.client().await;
    client.decode(decode_spec(8, 8), latents(8, 8, 1)).await.unwrap();
    client.decode(decode_spec(8, 9), latents(8, 8, 1)).await.err().unwrap();
    origin.script([Behaviour::Status(500, "x", None)]);
    let spec = DecodeSpec { model: "sd1".to_owned(), ..decode_spec(8, 8) };
    client.decode(spec, latents(8, 8, 1)).await.err().unwrap();
    let log = program.terminate().await;
    let lines: Vec<_> = log.lines().filter(|line| is_access(line)).collect();
    assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("reason=UNAVAILABLE"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_filter_changes_at_run_time_on_the_admin_port_and_by_the_command() {
    let origin = Origin::start().await;
    let mut program = Program::start(&config(&origin, "filter = \"info,latentgate::access=off\"")).await;
    let client = program.client().await;
    client.decode(decode_spec(8, 8), latents(8, 8, 1)).await.unwrap();
    assert_eq!(program.admin("GET", "/log-level", "").await, (200, "info,latentgate::access=off\n".to_owned()));

    assert_eq!(program.admin("PUT", "/log-level", " info ").await, (200, "info\n".to_owned()));
    client.decode(decode_spec(8, 8), latents(8, 8, 2)).await.unwrap();
    program.until_line(is_access).await;

    for bad in ["a=b=c", "", "info,,=", "\u{0}"] {
        let (status, told) = program.admin("PUT", "/log-level", bad).await;
        assert!(status == 400 && told.contains("filter: "), "{bad:?}: {status} {told}");
    }
    let request = http::request("PUT", "/log-level", &[("Origin", "https://evil.example")], b"trace");
    assert_eq!(http::raw(program.admin, &request).await.unwrap().status, 400);
    assert_eq!(program.admin("GET", "/log-level", "").await.1, "info\n");

    let admin = format!("http://{}", program.admin);
    let command = |arguments: &[&str]| {
        let output = latentgate().arg("log-level").args(arguments).args(["--admin", &admin]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(command(&["latentgate=debug"]), (0, "latentgate=debug\n".to_owned(), String::new()));
    assert_eq!(command(&[]), (0, "latentgate=debug\n".to_owned(), String::new()));
    let (code, _, told) = command(&["a=b=c"]);
    assert!(code == 1 && told.contains("filter: "), "{told}");
    assert_eq!(program.admin("PUT", "/log-level", "error").await.0, 200);
    client.decode(decode_spec(8, 8), latents(8, 8, 3)).await.unwrap();
    assert_eq!(program.admin("PUT", "/log-level", "info").await.0, 200);
    let log = program.terminate().await;
    assert_eq!(log.lines().filter(|line| is_access(line)).count(), 1, "{log}");
    assert!(log.contains("the log has another filter"), "{log}");
}
