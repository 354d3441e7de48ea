//! A server's certificate and key in files, and clients that trust it.

use std::{net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use latentgate::{front::listen::tls::Config, proto::latents_client::LatentsClient};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Channel;

use super::{
    Client,
    http::{self, HttpAnswer},
};

/// A certificate for one name by an authority of its own; the files live as long as this.
pub struct Identity {
    name: String,
    pub folder: tempfile::TempDir,
    pub files: Config,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// What a client shows: its certificate and key.
pub struct Shown(CertificateDer<'static>, PrivateKeyDer<'static>);

impl Identity {
    pub fn new() -> Self {
        Self::of("localhost")
    }

    pub fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = Config::new(folder.path().join("server.pem"), folder.path().join("server.key"));
        let identity = Self { name: name.to_owned(), folder, files, authority };
        identity.renew(2040);
        identity
    }

    /// Another certificate of the same name and authority, which expires with the beginning of a year.
    pub fn renew(&self, year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([self.name.clone()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(&self.files.certificate, certificate.pem()).unwrap();
        std::fs::write(&self.files.private_key, key.serialize_pem()).unwrap();
    }

    /// The same files, and clients show a certificate of this authority.
    pub fn with_clients(&self) -> Config {
        let path = self.folder.path().join("authority.pem");
        std::fs::write(&path, self.authority.pem()).unwrap();
        Config { client_ca: Some(path), ..self.files.clone() }
    }

    /// A client's certificate of this authority: `dns:`, `uri:` or `cn:` and a name.
    pub fn client_named(&self, name: &str) -> Shown {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        match name.split_once(':').unwrap() {
            ("dns", name) => params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap())),
            ("uri", uri) => params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap())),
            (_, name) => params.distinguished_name.push(DnType::CommonName, name),
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        Shown(certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// When the certificate that the server shows now expires, in seconds since 1970.
    pub async fn expiry(&self, address: SocketAddr) -> i64 {
        let stream = self.connect(address, &[b"h2"]).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let (_, parsed) = x509_parser::parse_x509_certificate(&shown).unwrap();
        parsed.validity().not_after.timestamp()
    }

    /// A TLS connection that offers these protocols.
    pub async fn connect(&self, address: SocketAddr, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.client(alpn, None), &self.name, address).await
    }

    /// One exchange of HTTP/1.1 with a client that shows a certificate, or none; none if there is no answer.
    pub async fn exchange(&self, address: SocketAddr, shown: Option<&Shown>, request: &[u8]) -> Option<HttpAnswer> {
        let stream = connect(self.client(&[b"http/1.1"], shown), &self.name, address).await.ok()?;
        http::exchange(stream, request).await
    }

    /// tonic's client over TLS.
    pub async fn grpc(&self, address: SocketAddr) -> Client {
        self.grpc_of(address, None).await.unwrap()
    }

    /// The same, of a client that shows a certificate.
    pub async fn grpc_of(&self, address: SocketAddr, shown: Option<&Shown>) -> Result<Client, tonic::transport::Error> {
        let config = self.client(&[b"h2"], shown);
        let connector = tower::service_fn(move |_| {
            let config = config.clone();
            async move { connect(config, "localhost", address).await.map(TokioIo::new) }
        });
        let channel = Channel::from_static("http://localhost").connect_with_connector(connector).await?;
        Ok(Client { grpc: LatentsClient::new(channel.clone()), channel })
    }

    fn client(&self, alpn: &[&[u8]], shown: Option<&Shown>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(Shown(certificate, key)) => {
                builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

async fn connect(config: ClientConfig, name: &str, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}
