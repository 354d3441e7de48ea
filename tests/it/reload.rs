//! Reading the configuration again: what a running server takes over, what it leaves, and what it does with nonsense.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use latentgate::config::{ConfigError, Fault};
use parking_lot::Mutex;

use crate::support::{TestApp, config, http, program::Program};

async fn reload(admin: std::net::SocketAddr) -> (u16, serde_json::Value) {
    let answer = http::raw(admin, &http::request("POST", "/config/reload", &[], b"")).await.expect("an answer");
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_and_what_waits_for_a_restart_is_told() {
    let app = TestApp::start(config()).await;
    let wanted = Arc::new(Mutex::new(config()));
    let source = wanted.clone();
    app.read_from(move || Ok(source.lock().clone()));
    let nothing: [&str; 0] = [];
    assert_eq!(
        reload(app.addresses.admin).await,
        (200, serde_json::json!({ "changed": nothing, "needs_restart": nothing }))
    );

    wanted.lock().clients.per_address.requests_per_second = Some(0.01);
    wanted.lock().limits.max_batch = 2;
    let told = serde_json::json!({
        "changed": ["clients.per_address.requests_per_second"],
        "needs_restart": ["limits.max_batch"],
    });
    assert_eq!(reload(app.addresses.admin).await, (200, told));
    let statuses = [0, 1].map(|_| app.http("POST", "/decode/nope", &[], b""));
    let [first, second] = statuses;
    assert_eq!((first.await.status, second.await.status), (404, 429), "the limit is in force");
    // What is in force does not change again; what waits does so until the restart.
    let told = serde_json::json!({ "changed": nothing, "needs_restart": ["limits.max_batch"] });
    assert_eq!(reload(app.addresses.admin).await, (200, told));
    let page = http::request("POST", "/config/reload", &[("Origin", "https://page.example")], b"");
    assert_eq!(http::raw(app.addresses.admin, &page).await.unwrap().status, 400, "pages give no orders");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_changes_nothing() {
    let app = TestApp::start(config()).await;
    let fault = Fault { key: "limits.max_batch".to_owned(), value: "0".to_owned(), remedy: "more".to_owned() };
    app.read_from(move || Err(ConfigError::Invalid(vec![fault.clone()])));
    let (status, said) = reload(app.addresses.admin).await;
    assert_eq!((status, said["error"].as_str().unwrap()), (409, "limits.max_batch = 0: more"));
    app.until("latentgate_reload_failing", &[r#"what="config""#], 1.0).await;

    // One part that cannot be used keeps all the others out.
    let mut wanted = config();
    wanted.clients.per_address.requests_per_second = Some(0.001);
    wanted.clients.file = Some("/nowhere/clients.toml".into());
    app.read_from(move || Ok(wanted.clone()));
    let (status, said) = reload(app.addresses.admin).await;
    assert!(status == 409 && said["error"].as_str().unwrap().contains("/nowhere/clients.toml"), "{said}");
    for _ in 0..3 {
        assert_eq!(app.http("POST", "/decode/nope", &[], b"").await.status, 404);
    }
    app.read_from(|| Ok(config()));
    assert_eq!(reload(app.addresses.admin).await.0, 200);
    app.until("latentgate_reload_failing", &[r#"what="config""#], 0.0).await;
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentgate"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LATENTGATE")) {
        command.env_remove(name);
    }
    command.args(arguments).env("HF_TOKEN", "hf_do_not_show").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Makes a token as an operator does, and gives it to a client of the file.
fn token(file: &Path, name: &str) -> String {
    let made = run(&["token", name]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (token, lines) = (text(&made.stdout).trim().to_owned(), text(&made.stderr));
    assert!(token.len() > 40 && !lines.contains(&token), "{lines}");
    fs::write(file, lines).unwrap();
    token
}

async fn status(program: &Program, token: &str) -> u16 {
    let authorization = format!("Bearer {token}");
    let request = http::request("GET", "/decode/builtin", &[("Authorization", &authorization)], b"");
    http::raw(program.data, &request).await.unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_reads_again_on_a_hangup_and_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let (clients, file) = (folder.path().join("clients.toml"), folder.path().join("latentgate.toml"));
    let first = token(&clients, "studio");
    let write = |more: &str| {
        fs::write(&file, format!("[clients]\nfile = {clients:?}\n[reload]\nevery = \"0s\"\n{more}")).unwrap();
    };
    write("");
    let program = Program::of_file(&file).await;
    assert_eq!((status(&program, &first).await, status(&program, "other").await), (200, 401));

    let second = token(&clients, "studio");
    assert_eq!(status(&program, &first).await, 200, "not by itself");
    program.signal("HUP");
    while status(&program, &second).await != 200 {}
    assert_eq!(status(&program, &first).await, 401);

    let third = token(&clients, "studio");
    write("[limits]\nmax_batch = 3\n");
    let admin = format!("http://{}", program.admin);
    let told = run(&["config", "reload", "--admin", &admin]);
    let said = text(&told.stdout);
    assert!(told.status.success(), "{}", text(&told.stderr));
    assert!(said.contains("in force: clients.file") && said.contains("needs a restart: limits.max_batch"), "{said}");
    assert_eq!((status(&program, &third).await, status(&program, &second).await), (200, 401));

    write("[limits]\nmax_batch = 0\n");
    let told = run(&["config", "reload", "--admin", &admin]);
    assert_eq!(told.status.code(), Some(1));
    assert!(text(&told.stderr).contains("limits.max_batch = 0"), "{}", text(&told.stderr));
    assert_eq!(status(&program, &third).await, 200);

    // The program's own client, and nothing of its secrets anywhere.
    let key = folder.path().join("token");
    fs::write(&key, format!("{third}\n")).unwrap();
    let url = format!("http://{}", program.data);
    let models = run(&["models", "--server", &url, "--token-file", key.to_str().unwrap()]);
    assert!(models.status.success() && text(&models.stdout).contains("builtin"), "{}", text(&models.stderr));
    let refused = run(&["models", "--server", &url]);
    assert!(text(&refused.stderr).contains("UNAUTHENTICATED") && text(&refused.stderr).contains("--token-file"));
}

#[test]
fn the_configuration_is_printed_and_judged_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let (clients, file) = (folder.path().join("clients.toml"), folder.path().join("latentgate.toml"));
    let made = token(&clients, "studio");
    fs::write(&file, format!("[clients]\nfile = {clients:?}\n")).unwrap();
    let config = file.to_str().unwrap();
    let printed = run(&["config", "print", "--config", config]);
    let said = text(&printed.stdout) + &text(&printed.stderr);
    assert!(printed.status.success() && said.contains("clients.toml"), "{said}");
    for secret in ["hf_do_not_show", &made, &blake3::hash(made.as_bytes()).to_string()] {
        assert!(!said.contains(secret), "{said}");
    }
    assert!(run(&["config", "check", "--config", config]).status.success());
    fs::write(&clients, format!("[studio]\ntokens = [{made:?}]\n")).unwrap();
    let checked = run(&["config", "check", "--config", config]);
    let said = text(&checked.stderr);
    assert!(!checked.status.success() && said.contains("studio.tokens[0]") && !said.contains(&made), "{said}");
    let config = latentgate::Config::load(Some(&file), &latentgate::config::Overrides::default()).unwrap();
    assert!(!format!("{config:?}").contains(&made));
}
