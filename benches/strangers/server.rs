//! The program under siege, and the connections to it.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Of the tested build.
const LATENTGATE: &str = env!("CARGO_BIN_EXE_latentgate");
/// The good client's.
pub(crate) const TOKEN: &str = "lg_good-client-of-the-bench-strangers";
const NAME: &str = "localhost";
/// A server that is not there after this does not come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    connector: TlsConnector,
    /// A name that TLS accepts.
    name: ServerName<'static>,
    _folder: TempDir,
}

impl Server {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
        let path = |name: &str| folder.path().join(name);
        fs::write(path("server.pem"), cert.pem())?;
        fs::write(path("server.key"), signing_key.serialize_pem())?;
        fs::write(path("clients.toml"), format!("[good]\ntokens = [\"blake3:{}\"]\n", blake3::hash(TOKEN.as_bytes())))?;
        let [address, admin] = [free_port()?, free_port()?];
        let shown = folder.path().display();
        // Silent connections take places until they are closed: there are places for others beside them.
        fs::write(
            path("config.toml"),
            format!(
                "[listen]\ndata = \"{address}\"\nadmin = \"{admin}\"\nmax_connections = 4096\nheader_time = \"5s\"\n\
                 [listen.tls]\ncertificate = \"{shown}/server.pem\"\nprivate_key = \"{shown}/server.key\"\n\
                 [clients]\nfile = \"{shown}/clients.toml\"\n[route]\nbackends = [\"local\"]\n"
            ),
        )?;
        let log = File::create(path("log"))?;
        let child = Command::new(LATENTGATE)
            .args(["--config".as_ref(), path("config.toml").as_os_str(), "serve".as_ref()])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut trust = trust.with_root_certificates(roots).with_no_client_auth();
        trust.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = TlsConnector::from(Arc::new(trust));
        let log = path("log");
        let server = Self { child, address, connector, name: ServerName::try_from(NAME)?, _folder: folder };
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            ensure!(began.elapsed() < PATIENCE, "{}", fs::read_to_string(&log)?);
            sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub(crate) async fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.address).await
    }

    pub(crate) async fn connect_tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = self.connect().await?;
        stream.set_nodelay(true)?;
        self.connector.connect(self.name.clone(), stream).await
    }

    /// Connections that say nothing, for as long as they are held.
    pub(crate) async fn silent(&self, count: usize) -> Vec<TcpStream> {
        let mut silent = Vec::with_capacity(count);
        for _ in 0..count {
            silent.extend(self.connect().await);
        }
        silent
    }

    /// As the system counts it.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A decode of 64x64 pixels to 48 KiB, with a token.
pub(crate) fn decode(token: &str) -> Vec<u8> {
    let body = vec![0; 4 * 8 * 8 * 4];
    let head = format!(
        "POST /decode/builtin?shape=1&shape=4&shape=8&shape=8&dtype=float32&output_type=pt HTTP/1.1\r\nHost: x\r\n\
         Content-Type: tensor/binary\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// Whether a response with a length has all of it.
pub(crate) fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length =
        head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
