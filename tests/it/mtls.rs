//! Certificates of clients, and a certificate of the server that changes while it serves.

use std::{error::Error as _, time::Duration};

use latentgate::{Config, front::listen::tls::ClientCertificates};
use tonic::Code;

use crate::support::{
    TestApp, config, decode_spec, http, latents, reason,
    tls::{Identity, Shown},
};

/// Files are looked at so often: a test waits for what comes of it, and not for the time.
const OFTEN: Duration = Duration::from_millis(20);

fn asking(identity: &Identity, certificates: ClientCertificates) -> Config {
    let mut config = config();
    let tls = latentgate::front::listen::tls::Config { client_certificates: certificates, ..identity.with_clients() };
    config.listen.tls = Some(tls);
    config
}

async fn health(app: &TestApp, identity: &Identity, shown: Option<&Shown>) -> Option<u16> {
    let request = http::request("GET", "/health", &[], b"");
    identity.exchange(app.addresses.data, shown, &request).await.map(|answer| answer.status)
}

/// Whether a client with this certificate is served over gRPC; if not, the server's reason, or none if the connection broke.
async fn decodes(app: &TestApp, identity: &Identity, shown: Option<&Shown>) -> Result<(), Option<(Code, String)>> {
    let client = identity.grpc_of(app.addresses.data, shown).await.map_err(|_| None)?;
    let answer = client.decode(decode_spec(2, 2), latents(2, 2, 1)).await;
    answer.map(drop).map_err(|status| status.source().is_none().then(|| reason(&status)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_must_show_a_certificate_of_the_authority() {
    let (identity, other) = (Identity::new(), Identity::new());
    let app = TestApp::start(asking(&identity, ClientCertificates::Required)).await;
    let (good, strange) = (identity.client_named("cn:a"), other.client_named("cn:a"));
    assert_eq!(health(&app, &identity, Some(&good)).await, Some(200));
    decodes(&app, &identity, Some(&good)).await.expect("a good certificate is enough");
    for shown in [None, Some(&strange)] {
        assert_eq!(health(&app, &identity, shown).await, None);
        assert_eq!(decodes(&app, &identity, shown).await, Err(None), "turned away in the handshake");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_may_be_optional_and_then_names_a_client() {
    let (identity, other) = (Identity::new(), Identity::new());
    let mut config = asking(&identity, ClientCertificates::Optional);
    let file = identity.folder.path().join("clients.toml");
    std::fs::write(
        &file,
        "[studio]\ncertificates = [\"uri:spiffe://corp/studio\", \"dns:studio.example\", \"cn:s\"]\n",
    )
    .unwrap();
    config.clients.file = Some(file);
    let app = TestApp::start(config).await;
    for (served, name) in ["uri:spiffe://corp/studio", "dns:studio.example", "cn:s"].iter().enumerate() {
        decodes(&app, &identity, Some(&identity.client_named(name))).await.unwrap();
        app.until("latentgate_client_requests_total", &[r#"client="studio""#], served as f64 + 1.0).await;
    }
    let unauthenticated = Err(Some((Code::Unauthenticated, "UNAUTHENTICATED".to_owned())));
    // The same name as another kind of name is another name.
    for shown in [None, Some(identity.client_named("cn:studio.example")), Some(identity.client_named("dns:s"))] {
        assert_eq!(decodes(&app, &identity, shown.as_ref()).await, unauthenticated);
        assert_eq!(health(&app, &identity, shown.as_ref()).await, Some(200), "health is open");
    }
    assert_eq!(health(&app, &identity, Some(&other.client_named("cn:s"))).await, None, "what is shown must be good");
}

/// Seconds since 1970 at the beginning of two years.
const Y2040: i64 = 2_208_988_800;
const Y2041: i64 = 2_240_611_200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    let identity = Identity::new();
    let mut config = config();
    config.listen.tls = Some(identity.files.clone());
    config.reload.every = OFTEN;
    let app = TestApp::start(config).await;
    let address = app.addresses.data;
    let expiry = "latentgate_tls_certificate_expiry_seconds";
    let failing = ("latentgate_reload_failing", &[r#"what="certificate""#][..]);
    app.until(expiry, &[], Y2040 as f64).await;
    assert_eq!(identity.expiry(address).await, Y2040);
    let open = identity.grpc(address).await;
    open.decode(decode_spec(2, 2), latents(2, 2, 1)).await.unwrap();

    identity.renew(2041);
    app.until(expiry, &[], Y2041 as f64).await;
    app.until(failing.0, failing.1, 0.0).await;
    assert_eq!(identity.expiry(address).await, Y2041);
    open.decode(decode_spec(2, 2), latents(2, 2, 2)).await.expect("an open connection does not notice");

    for broken in [String::new(), "no certificate".to_owned()] {
        std::fs::write(&identity.files.certificate, broken).unwrap();
        app.until(failing.0, failing.1, 1.0).await;
        assert_eq!(identity.expiry(address).await, Y2041, "the one before it stays");
    }
    std::fs::remove_file(&identity.files.private_key).unwrap();
    assert_eq!(identity.expiry(address).await, Y2041);
    identity.renew(2040);
    app.until(failing.0, failing.1, 0.0).await;
    app.until(expiry, &[], Y2040 as f64).await;
    assert_eq!(identity.expiry(address).await, Y2040);
    open.decode(decode_spec(2, 2), latents(2, 2, 3)).await.unwrap();
    assert!(app.metric("latentgate_reloads_total", &[r#"what="certificate""#, r#"result="failed""#]).await >= 1.0);
}
