//! The data port's Unix socket: what it serves, whose file it is, and when the file goes.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
};

use latentgate::{App, Config, proto::Source};
use tokio::net::UnixStream;

use crate::support::{Client, TestApp, config, decode_spec, http, latents, tls::Identity};

fn on(path: &Path) -> Config {
    let mut config = config();
    config.listen.socket = Some(path.to_owned());
    config
}

async fn client(path: &Path) -> Client {
    Client::connect_to(format!("unix:{}", path.display())).await
}

/// One exchange of HTTP/1.1: a decode by the builtin model of f32 latents `[1,4,2,2]`, to a PNG.
async fn post(path: &Path, body: &[u8]) -> http::HttpAnswer {
    let target = "/decode/builtin?shape=1&shape=4&shape=2&shape=2&dtype=float32&output_type=pil&image_format=png";
    let request = http::request("POST", target, &[("Content-Type", "tensor/binary"), ("Accept", "image/png")], body);
    let stream = UnixStream::connect(path).await.unwrap();
    http::exchange(stream, &request).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_are_served_and_share_the_cache_with_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.sock");
    let mut app = TestApp::start(on(&path)).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let (spec, data) = (decode_spec(2, 2), latents(2, 2, 1));
    let unix = client(&path).await;
    let first = unix.decode(spec.clone(), data.clone()).await.unwrap();
    let second = unix.decode(spec.clone(), data.clone()).await.unwrap();
    assert_eq!((first.source(), second.source()), (Source::Computed, Source::Memory));
    assert_eq!(first.bytes(), second.bytes());
    let tcp = app.client().await.decode(spec, data.clone()).await.unwrap();
    assert_eq!((tcp.source(), tcp.bytes()), (Source::Memory, first.bytes()));

    let answer = post(&path, &data).await.whole();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
    let again = post(&path, &data).await.whole();
    assert!(again.header("cache-status").unwrap().contains("detail=memory"), "{again:?}");
    assert_eq!(again.body, answer.body);

    // An open connection does not keep the file.
    app.stop();
    app.stopped().await;
    assert!(!path.exists(), "the file goes with the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_has_the_configured_mode_and_no_tls() {
    let (folder, identity) = (tempfile::tempdir().unwrap(), Identity::new());
    let path = folder.path().join("data.sock");
    let mut config = on(&path);
    config.listen.socket_mode = "0660".parse().unwrap();
    config.listen.tls = Some(identity.files.clone());
    let _app = TestApp::start(config).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    client(&path).await.decode(decode_spec(2, 2), latents(2, 2, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_connections_count_among_those_of_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.sock");
    let mut config = on(&path);
    config.listen.max_connections = 1;
    let app = TestApp::start(config).await;
    let only = client(&path).await;
    only.decode(decode_spec(2, 2), latents(2, 2, 1)).await.unwrap();
    let address = app.addresses.data;
    let second = tokio::spawn(async move { http::raw(address, &http::request("GET", "/health", &[], b"")).await });
    only.decode(decode_spec(2, 2), latents(2, 2, 1)).await.unwrap();
    assert!(!second.is_finished(), "there is one place, and it is taken");
    drop(only);
    assert_eq!(second.await.unwrap().unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_process_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.sock");
    // Dropped, a listener leaves its file, as a killed process does.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _app = TestApp::start(on(&path)).await;
    client(&path).await.decode(decode_spec(2, 2), latents(2, 2, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_left_behind_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |path: &Path| App::bind(on(path)).await.err().expect("it does not start").to_string();

    let path = folder.path().join("data.sock");
    let _app = TestApp::start(on(&path)).await;
    let error = refused(&path).await;
    assert!(error.contains("listen.socket = ") && error.contains("data.sock") && error.contains("stop it"), "{error}");
    client(&path).await.decode(decode_spec(2, 2), latents(2, 2, 1)).await.expect("the first one is not disturbed");

    let file = folder.path().join("notes.txt");
    fs::write(&file, "mine").unwrap();
    let error = refused(&file).await;
    assert!(error.contains("listen.socket = ") && error.contains("no socket"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");

    let error = refused(&folder.path().join("missing/data.sock")).await;
    assert!(error.contains("listen.socket = ") && error.contains("folder"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_of_a_successor_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.sock");
    let mut app = TestApp::start(on(&path)).await;
    // Moved and not removed, so that its inode is not the successor's.
    fs::rename(&path, folder.path().join("moved.sock")).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    app.stop();
    app.stopped().await;
    assert!(path.exists());
}
