//! A server's certificate and key in files, and clients that trust it.

use std::{net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use latentgate::{front::listen::tls::Config, proto::latents_client::LatentsClient};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Channel;

use super::Client;

/// A certificate for one name by an authority of its own; the files live as long as this.
pub struct Identity {
    name: String,
    pub folder: tempfile::TempDir,
    pub files: Config,
    authority: CertificateDer<'static>,
}

impl Identity {
    pub fn new() -> Self {
        Self::of("localhost")
    }

    pub fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let files = Config::new(folder.path().join("server.pem"), folder.path().join("server.key"));
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.private_key, key.serialize_pem()).unwrap();
        Self { name: name.to_owned(), folder, files, authority: authority.der().clone() }
    }

    /// A TLS connection that offers these protocols.
    pub async fn connect(&self, address: SocketAddr, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.client(alpn), &self.name, address).await
    }

    /// tonic's client over TLS.
    pub async fn grpc(&self, address: SocketAddr) -> Client {
        let config = self.client(&[b"h2"]);
        let connector = tower::service_fn(move |_| {
            let config = config.clone();
            async move { connect(config, "localhost", address).await.map(TokioIo::new) }
        });
        let channel = Channel::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        Client { grpc: LatentsClient::new(channel.clone()), channel }
    }

    fn client(&self, alpn: &[&[u8]]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

async fn connect(config: ClientConfig, name: &str, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}
