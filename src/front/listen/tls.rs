//! TLS on a listener.
//!
//! rustls with ring, given by hand: nothing is installed for the whole process, so a library that brings another
//! provider stays out of the way. Which protocol a peer speaks is agreed in the handshake (ALPN: `h2`, `http/1.1`); a peer
//! that does not ask gets HTTP/1.1. What is wrong with the files is told with key, path and remedy, and never in the words
//! of the parser: those quote lines, and a line may be the private key.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::greeting::{Greeted, Protocol, greeting};

mod certificate;

/// What is offered in the handshake, the dearer first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Longer files are none of ours: all authorities of the public Web take a quarter of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// `[listen.tls]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file: the server's own certificate, then the intermediates up to a root that clients trust.
    pub certificate: PathBuf,
    /// PEM file: the private key of that certificate, unencrypted.
    pub private_key: PathBuf,
    /// PEM file: authorities, of one of which clients show a certificate. Without it they are asked for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether a client must show one.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
}

/// What is asked of clients where `client_ca` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Who shows none is turned away in the handshake.
    #[default]
    Required,
    /// Who shows none may do what anybody may; one that is shown must be good.
    Optional,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or not for us.
    #[error("{key} = {path}: cannot be read: name a PEM file that exists, and let this user read it")]
    Unreadable {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate file holds none, or a broken one.
    #[error(
        "listen.tls.certificate = {path}: holds no certificate that can be used: wanted PEM, the server's own \
         certificate first, then its intermediates"
    )]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// The key file holds none, or one that is encrypted or of an unknown kind.
    #[error(
        "listen.tls.private_key = {path}: holds no private key that can be used: wanted one in PEM, unencrypted \
         (PKCS #8, PKCS #1 or SEC1; RSA, ECDSA or Ed25519)"
    )]
    PrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The authorities' file holds none.
    #[error("listen.tls.client_ca = {path}: holds no authority that can be used: wanted certificates in PEM")]
    ClientCa {
        /// The file.
        path: PathBuf,
    },
    /// Both are sound, and strangers to each other.
    #[error(
        "listen.tls.private_key = {private_key}: is not the key of the first certificate in {certificate}: name the \
         pair that was made together, the server's own certificate first"
    )]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        private_key: PathBuf,
    },
}

/// Takes TLS handshakes. Clones share certificate and key, which can be replaced: handshakes that begin later use the new
/// ones, and connections that are open do not notice.
#[derive(Clone)]
pub struct Acceptor(Arc<RwLock<TlsAcceptor>>);

/// Files that have been read and tried out, and are not used yet.
pub struct Prepared {
    acceptor: TlsAcceptor,
    expires_at: i64,
    digest: blake3::Hash,
}

// === impl Prepared ===

impl Prepared {
    /// Reads the files, which are small, and tries certificate and key out on each other. Blocks.
    pub fn read(config: &Config) -> Result<Self, TlsError> {
        let mut hasher = blake3::Hasher::new();
        let chain = certificates(config, &mut hasher)?;
        let key = private_key(&config.private_key, &mut hasher)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = config.verifier(&provider, &mut hasher)?;
        let expires_at = chain.first().and_then(|own| certificate::expires_at(own));
        let expires_at = expires_at.ok_or_else(|| TlsError::Certificate { path: config.certificate.clone() })?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| config.refused(&error))?;
        tls.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(tls)), expires_at, digest: hasher.finalize() })
    }

    /// When the server's own certificate expires, in seconds since 1970.
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// Of what was in the files: equal for equal ones.
    pub fn digest(&self) -> blake3::Hash {
        self.digest
    }
}

// === impl Acceptor ===

impl Acceptor {
    /// Uses what was prepared.
    pub fn new(prepared: Prepared) -> Self {
        Self(Arc::new(RwLock::new(prepared.acceptor)))
    }

    /// Uses it for the handshakes to come.
    pub fn replace(&self, prepared: Prepared) {
        *self.0.write() = prepared.acceptor;
    }

    /// The handshake, and, of a peer that chose HTTP/2, the first bytes too: hyper would wait for them without a bound. An
    /// HTTP/1.1 head has a bound of its own.
    pub(super) async fn greeting(&self, stream: TcpStream) -> io::Result<(Protocol, Greeted<TlsStream<TcpStream>>)> {
        let acceptor = self.0.read().clone();
        let stream = acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN[0]) {
            return Ok((Protocol::Http1, Greeted::silent(stream)));
        }
        match greeting(stream).await? {
            (Protocol::Http1, _) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "chose h2 and spoke something else"))
            }
            greeted => Ok(greeted),
        }
    }
}

/// The names in the certificate that a client has shown and that was found good; none of a client without one.
pub(super) fn names(stream: &TlsStream<TcpStream>) -> Vec<Box<str>> {
    let shown = stream.get_ref().1.peer_certificates();
    shown.and_then(<[_]>::first).map(|own| certificate::names(own)).unwrap_or_default()
}

// === impl Config ===

impl Config {
    /// A pair, and no certificates of clients.
    pub fn new(certificate: PathBuf, private_key: PathBuf) -> Self {
        Self { certificate, private_key, client_ca: None, client_certificates: ClientCertificates::default() }
    }

    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
        hasher: &mut blake3::Hasher,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let Some(path) = &self.client_ca else { return Ok(WebPkiClientVerifier::no_client_auth()) };
        let unusable = || TlsError::ClientCa { path: path.clone() };
        let mut roots = RootCertStore::empty();
        for authority in pem_certificates("listen.tls.client_ca", path, hasher)?.ok_or_else(unusable)? {
            roots.add(authority).map_err(|_| unusable())?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let builder = match self.client_certificates {
            ClientCertificates::Required => builder,
            ClientCertificates::Optional => builder.allow_unauthenticated(),
        };
        hasher.update(&[self.client_certificates as u8]);
        builder.build().map(|verifier| verifier as _).map_err(|_| unusable())
    }

    fn refused(&self, error: &rustls::Error) -> TlsError {
        let (certificate, private_key) = (self.certificate.clone(), self.private_key.clone());
        match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { certificate, private_key },
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                TlsError::Certificate { path: certificate }
            }
            _ => TlsError::PrivateKey { path: private_key },
        }
    }
}

fn certificates(config: &Config, hasher: &mut blake3::Hasher) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = &config.certificate;
    let chain = pem_certificates("listen.tls.certificate", path, hasher)?;
    chain.ok_or_else(|| TlsError::Certificate { path: path.clone() })
}

/// All certificates of a PEM file, at least one; none if that is not what it holds.
fn pem_certificates(
    key: &'static str,
    path: &Path,
    hasher: &mut blake3::Hasher,
) -> Result<Option<Vec<CertificateDer<'static>>>, TlsError> {
    let text = read(key, path, hasher)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    Ok(chain.ok().filter(|chain| !chain.is_empty()))
}

fn private_key(path: &Path, hasher: &mut blake3::Hasher) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read("listen.tls.private_key", path, hasher)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::PrivateKey { path: path.to_owned() })
}

fn read(key: &'static str, path: &Path, hasher: &mut blake3::Hasher) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut text = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| TlsError::Unreadable { key, path: path.to_owned(), source })?;
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(&text);
    Ok(text)
}
