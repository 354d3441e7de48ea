use std::{net::Ipv4Addr, time::Duration};

use bytesize::ByteSize;

use super::*;
use crate::error::ErrorKind;

/// A folder with a file of clients, and the configuration that names it.
fn file(text: &str) -> (tempfile::TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients.toml");
    std::fs::write(&path, text).unwrap();
    (folder, Config { file: Some(path), ..Config::default() })
}

fn hash(token: &str) -> String {
    format!("blake3:{}", blake3::hash(token.as_bytes()))
}

fn clients(config: &Config) -> Clients {
    Clients::new(&Prepared::read(config).unwrap(), Metrics::new())
}

fn with_token(token: &str) -> Credentials<'_> {
    Credentials { token: Some(token.as_bytes()), ..nobody() }
}

fn nobody() -> Credentials<'static> {
    Credentials { token: None, certificate: &[], origin: Origin::Address(Ipv4Addr::LOCALHOST.into()) }
}

fn refused(result: Result<Visit, Error>) -> (ErrorKind, Option<Duration>, String) {
    let error = result.err().expect("refused");
    (error.kind(), error.retry_after(), error.message().to_owned())
}

#[test]
fn a_client_is_known_by_its_token_or_its_certificate_and_nobody_else_is_let_in() {
    let text =
        format!("[a]\ntokens = [{:?}, {:?}]\n[b]\ncertificates = [\"dns:B.example\"]\n", hash("one"), hash("two"));
    let (_folder, config) = file(&text);
    let everybody = clients(&config);
    for token in ["one", "two"] {
        assert_eq!(&**everybody.admit(&with_token(token)).unwrap().name(), "a");
    }
    let names = ["cn:other".into(), "dns:b.example".into()];
    assert_eq!(&**everybody.admit(&Credentials { certificate: &names, ..nobody() }).unwrap().name(), "b");
    // The token is what its sender means, whatever the certificate says.
    let wrong = Credentials { token: Some(b"three"), certificate: &names, ..nobody() };
    for credentials in [nobody(), wrong, with_token(""), Credentials { certificate: &names[..1], ..nobody() }] {
        let (kind, _, said) = refused(everybody.admit(&credentials));
        assert_eq!(kind, ErrorKind::Unauthenticated);
        assert!(!said.contains("three"), "{said}");
    }
    let socket = Credentials { origin: Origin::Socket, ..nobody() };
    assert_eq!(&**everybody.admit(&socket).unwrap().name(), ANONYMOUS);
    let strict = clients(&Config { socket: SocketTrust::Token, ..config.clone() });
    assert_eq!(refused(strict.admit(&socket)).0, ErrorKind::Unauthenticated);
    let open = clients(&Config { unnamed: Unnamed::Served, ..config });
    assert_eq!(&**open.admit(&nobody()).unwrap().name(), ANONYMOUS);
    assert_eq!(refused(open.admit(&with_token("three"))).0, ErrorKind::Unauthenticated);
    assert_eq!(&**clients(&Config::default()).admit(&with_token("three")).unwrap().name(), ANONYMOUS);
}

#[tokio::test(start_paused = true)]
async fn a_request_rate_lets_a_burst_through_and_then_one_at_a_time() {
    let limits = Limits { requests_per_second: Some(10.0), burst: Some(3), ..Limits::default() };
    let everybody = clients(&Config { per_address: limits, ..Config::default() });
    for _ in 0..3 {
        drop(everybody.admit(&nobody()).unwrap());
    }
    let (kind, wait, said) = refused(everybody.admit(&nobody()));
    assert_eq!((kind, wait), (ErrorKind::ClientLimit, Some(Duration::from_millis(100))));
    assert!(said.contains("requests_per_second = 10"), "{said}");
    let other = Credentials { origin: Origin::Address(Ipv4Addr::BROADCAST.into()), ..nobody() };
    assert!(everybody.admit(&other).is_ok(), "addresses do not share");
    tokio::time::advance(Duration::from_millis(100)).await;
    drop(everybody.admit(&nobody()).unwrap());
    assert_eq!(refused(everybody.admit(&nobody())).1, Some(Duration::from_millis(100)));
    tokio::time::advance(Duration::from_hours(1)).await;
    assert_eq!((0..10).filter(|_| everybody.admit(&nobody()).is_ok()).count(), 3, "no more is saved up");
}

#[tokio::test(start_paused = true)]
async fn bytes_make_a_debt_that_has_to_be_paid_first() {
    let (input_per_second, output_per_second) = (Some(ByteSize::mib(1)), Some(ByteSize::mib(2)));
    let limits = Limits { input_per_second, output_per_second, ..Limits::default() };
    let everybody = clients(&Config { per_address: limits, ..Config::default() });
    let visit = everybody.admit(&nobody()).unwrap();
    visit.received(3 << 20);
    let (_, wait, said) = refused(everybody.admit(&nobody()));
    assert_eq!(wait, Some(Duration::from_secs(2)));
    assert!(said.contains("input_per_second = 1.0 MiB"), "{said}");
    tokio::time::advance(Duration::from_secs(2)).await;
    everybody.admit(&nobody()).unwrap().sent(5 << 20);
    let (_, wait, said) = refused(everybody.admit(&nobody()));
    assert_eq!(wait, Some(Duration::from_millis(1500)));
    assert!(said.contains("output_per_second"), "{said}");
    visit.received(u64::MAX / 2);
    assert!(refused(everybody.admit(&nobody())).1.unwrap() <= Duration::from_mins(10), "debts are bounded");
}

#[test]
fn requests_in_flight_are_bounded_and_given_back() {
    let (_folder, config) = file(&format!("[a]\ntokens = [{:?}]\nlimits.in_flight = 2\n", hash("one")));
    let everybody = clients(&config);
    let first = everybody.admit(&with_token("one")).unwrap();
    let _second = everybody.admit(&with_token("one")).unwrap();
    let (kind, _, said) = refused(everybody.admit(&with_token("one")));
    assert!(kind == ErrorKind::ClientLimit && said.contains("in_flight = 2") && said.contains("by a"), "{said}");
    drop(first);
    // Another reading of the file does not forget what is in progress.
    everybody.replace(&Prepared::read(&config).unwrap());
    let _third = everybody.admit(&with_token("one")).unwrap();
    assert_eq!(refused(everybody.admit(&with_token("one"))).0, ErrorKind::ClientLimit);
}

#[test]
fn a_file_that_is_wrong_is_told_by_place_and_never_quoted() {
    let secret = "hunter2-hunter2";
    let good = hash("x");
    for (text, wanted) in [
        (format!("[a]\ntokens = [{secret:?}]"), "a.tokens[0]"),
        (format!("[a]\ntokens = {secret:?}"), "line 2"),
        (format!("[a]\ntokens = [{secret}]"), "line 2"),
        (format!("[a]\ntoken = [{secret:?}]"), "unknown field `token`"),
        (format!("[a]\ntokens = [\"blake3:{secret}\"]"), "latentgate token"),
        (format!("[a]\ntokens = [{good:?}]\n[b]\ntokens = [{good:?}]"), "same token"),
        ("[a]\ncertificates = [\"cn:x\"]\n[b]\ncertificates = [\"cn:x\"]".to_owned(), "cn:x"),
        ("[a]\ncertificates = [\"studio\"]".to_owned(), "a.certificates[0]"),
        ("[a]".to_owned(), "neither tokens nor certificates"),
        ("[anonymous]\ncertificates = [\"cn:x\"]".to_owned(), "a client's name"),
        ("[\"A b\"]\ncertificates = [\"cn:x\"]".to_owned(), "a client's name"),
        (format!("[a]\ntokens = [{good:?}]\nlimits.in_flight = 0"), "a.limits.in_flight = 0"),
        (format!("[a]\ntokens = [{good:?}]\nlimits.burst = 3"), "a.limits.burst"),
        (String::new(), "0 clients"),
    ] {
        let (_folder, config) = file(&text);
        let error = Prepared::read(&config).unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(said.contains("clients.file") && said.contains(wanted), "{text}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    let nowhere = Config { file: Some("/nowhere/clients.toml".into()), ..Config::default() };
    assert!(Prepared::read(&nowhere).unwrap_err().to_string().contains("/nowhere/clients.toml"));
}
