//! The HTTP client: its connections, its TLS, and what it deliberately does not do.
//!
//! It follows no redirect, keeps no cookie, decompresses nothing, repeats nothing by itself, and goes through no proxy:
//! what `HTTP_PROXY` says is not read, since configuration is read in one place, and a token is not to take a way that
//! nobody chose here. TLS trusts the system's authorities, and those of `upstream.ca_file` beside them.

use std::{path::Path, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;

use super::{Config, StartError, reuse::Noting};

/// Idle connections are closed before the usual load balancer does it, after a minute: a request must not meet a
/// connection that is just going.
const POOL_IDLE: Duration = Duration::from_secs(45);

/// Between signs of life on a connection that waits for an answer, which may take minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Builds the client. Blocks: it reads the system's certificates.
pub(super) fn build(config: &Config) -> Result<reqwest::Client, StartError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    reqwest::Client::builder()
        .user_agent(concat!("latentgate/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .connector_layer(Noting)
        .connect_timeout(config.connect_time)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEP_ALIVE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .tls_backend_preconfigured(tls(config.ca_file.as_deref())?)
        .build()
        .map_err(StartError::Client)
}

/// TLS 1.2 and 1.3 by ring; HTTP/2 where the server offers it.
pub(super) fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, StartError> {
    let provider = Arc::new(ring::default_provider());
    let extra = ca_file.map(certificates).transpose()?.unwrap_or_default();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(StartError::Tls)?;
    let mut tls = match Verifier::new_with_extra_roots(extra, provider) {
        Ok(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth(),
        Err(error) => {
            // A bare container has no authorities: endpoints on plain http, and everything else, work all the same.
            let remedy = "install the system's ca-certificates, or set upstream.ca_file";
            tracing::warn!(%error, remedy, "no certificate authorities: no https endpoint can be reached");
            builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// The certificates of a PEM file, at least one, each of which can be trusted.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let unusable = |why: String| StartError::CaFile { path: path.to_owned(), why };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| unusable(error.to_string()))?;
    }
    if certificates.is_empty() { Err(unusable("it holds no certificate".to_owned())) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_ca(text: &str) -> Result<reqwest::Client, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let config = Config { ca_file: Some(file.path().to_owned()), ..Config::default() };
        let named = |error: StartError| {
            let error = error.to_string();
            assert!(error.contains("upstream.ca_file") && error.contains(&*file.path().to_string_lossy()), "{error}");
            error
        };
        build(&config).map_err(named)
    }

    #[test]
    fn an_authority_is_taken_from_a_file_and_a_file_without_one_is_refused() {
        let authority = rcgen::generate_simple_self_signed(["vae.example".to_owned()]).unwrap();
        assert!(with_ca(&authority.cert.pem()).is_ok());
        assert!(with_ca("").unwrap_err().contains("no certificate"));
        assert!(with_ca("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        let config = Config { ca_file: Some("/nowhere.pem".into()), ..Config::default() };
        assert!(build(&config).is_err());
    }
}
