//! TLS on a listener.
//!
//! rustls with ring, given by hand: nothing is installed for the whole process, so a library that brings another
//! provider stays out of the way. Which protocol a peer speaks is agreed in the handshake (ALPN: `h2`, `http/1.1`); a peer
//! that does not ask gets HTTP/1.1. What is wrong with the files is told with key, path and remedy, and never in the words
//! of the parser: those quote lines, and a line may be the private key.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::greeting::{Greeted, Protocol, greeting};

/// What is offered in the handshake, the dearer first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// `[listen.tls]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file: the server's own certificate, then the intermediates up to a root that clients trust.
    pub certificate: PathBuf,
    /// PEM file: the private key of that certificate, unencrypted.
    pub private_key: PathBuf,
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

/// Takes TLS handshakes. Clones share certificate and key.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

// === impl Acceptor ===

impl Acceptor {
    /// Reads both files, which are small, and tries them out on each other.
    pub fn load(config: &Config) -> Result<Self, TlsError> {
        let chain = certificates(&config.certificate)?;
        let key = private_key(&config.private_key)?;
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| config.refused(&error))?;
        tls.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        Ok(Self(TlsAcceptor::from(Arc::new(tls))))
    }

    /// The handshake, and, of a peer that chose HTTP/2, the first bytes too: hyper would wait for them without a bound. An
    /// HTTP/1.1 head has a bound of its own.
    pub(super) async fn greeting(&self, stream: TcpStream) -> io::Result<(Protocol, Greeted<TlsStream<TcpStream>>)> {
        let stream = self.0.accept(stream).await?;
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

// === impl Config ===

impl Config {
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read("listen.tls.certificate", path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| TlsError::Certificate { path: path.to_owned() })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read("listen.tls.private_key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::PrivateKey { path: path.to_owned() })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { key, path: path.to_owned(), source })
}
