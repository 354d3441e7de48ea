//! The servers, each as fast as its configuration makes it: one worker, nothing logged, connections kept.

use std::{
    ffi::OsStr,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;
use tempfile::TempDir;

use crate::{process::Process, ways::BODIES};

/// Of the tested build.
const LATENTGATE: &str = env!("CARGO_BIN_EXE_latentgate");

/// All of them. They end before their folder goes.
pub(crate) struct Servers {
    pub(crate) nginx: Server,
    pub(crate) varnish: Server,
    pub(crate) memory: Server,
    /// None where the tested build has no disk tier.
    pub(crate) disk: Option<Server>,
    _folder: TempDir,
}

/// A server and where it listens: for some both protocols are on one port.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) socket: Option<PathBuf>,
}

impl Servers {
    pub(crate) fn start(core: usize, origin: SocketAddr) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let memory = "cache.memory.capacity = \"256MiB\"\n".to_owned();
        Ok(Self {
            nginx: nginx(core, origin, folder.path())?,
            varnish: varnish(core, origin, folder.path())?,
            memory: latentgate("memory", core, (origin, &memory), folder.path())?,
            disk: disk(core, origin, folder.path())?,
            _folder: folder,
        })
    }
}

/// Bodies on disk and in the page cache. Over HTTP/1.1 the kernel sends them from there. Over HTTP/2 `sendfile` takes
/// `TCP_NODELAY` away, and each answer of a connection would wait 40 ms between its head and its data.
fn nginx(core: usize, origin: SocketAddr, folder: &Path) -> anyhow::Result<Server> {
    let [http1, http2] = [free_port()?, free_port()?];
    let home = folder.join("nginx");
    fs::create_dir(&home)?;
    let home = home.display();
    let text = format!(
        "daemon off; worker_processes 1; user root root; pid {home}/pid; error_log stderr crit;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;
            keepalive_timeout 1h; keepalive_requests 100000000;
            client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
            uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
            open_file_cache max=100 inactive=1h; open_file_cache_valid 1h;
            proxy_cache_path {home}/cache keys_zone=bodies:1m inactive=1d use_temp_path=off;
            proxy_http_version 1.1; proxy_set_header Connection '';
            proxy_cache bodies; proxy_cache_key $uri; proxy_cache_valid 200 1d;
            server {{ listen {http1}; location / {{ proxy_pass http://{origin}; }} }}
            server {{
                listen {http2} http2; http2_chunk_size 1m; sendfile off; output_buffers 2 1m;
                location / {{ proxy_pass http://{origin}; }}
            }}
        }}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let configure = |command: &mut Command| {
        command.args([OsStr::new("-e"), OsStr::new("stderr"), OsStr::new("-c"), file.as_os_str()]);
    };
    let process = Process::start("nginx", core, ("nginx", configure), folder, &[http1, http2])?;
    Ok(Server { process, http1, http2, socket: None })
}

/// Bodies in memory; as many threads as there may be connections, since it has one for each that is busy.
fn varnish(core: usize, origin: SocketAddr, folder: &Path) -> anyhow::Result<Server> {
    let address = free_port()?;
    let file = folder.join("varnish.vcl");
    let text = format!(
        "vcl 4.1;
        backend default {{ .host = \"{}\"; .port = \"{}\"; }}
        sub vcl_recv {{ return (hash); }}
        sub vcl_backend_response {{ set beresp.ttl = 1d; }}\n",
        origin.ip(),
        origin.port()
    );
    fs::write(&file, text)?;
    let home = folder.join("varnish");
    let configure = |command: &mut Command| {
        command.args(["-F", "-j", "none", "-s", "malloc,256m", "-a", &address.to_string()]);
        for parameter in
            ["feature=+http2", "thread_pools=1", "thread_pool_min=300", "thread_pool_max=600", "timeout_idle=3600"]
        {
            command.args(["-p", parameter]);
        }
        command.arg("-n").arg(&home).arg("-f").arg(&file);
    };
    let process = Process::start("varnish", core, ("varnishd", configure), folder, &[address])?;
    Ok(Server { process, http1: address, http2: address, socket: None })
}

/// One that knows its models by the origin alone, beside `cache`, lines of its configuration.
fn latentgate(
    name: &'static str,
    core: usize,
    (origin, cache): (SocketAddr, &str),
    folder: &Path,
) -> anyhow::Result<Server> {
    let [address, admin] = [free_port()?, free_port()?];
    let socket = folder.join(format!("{name}.sock"));
    let model = |name| {
        format!(
            "models.{name} = {{ like = \"sd-v1\", backends = [\"upstream\"], upstream.decode = [\"http://{origin}/{name}\"] }}\n"
        )
    };
    // As of the others, nothing is logged of a request.
    let listen = format!(
        "log.access = false\nlisten = {{ data = \"{address}\", admin = \"{admin}\", socket = \"{}\" }}\n",
        socket.display()
    );
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, [listen, cache.to_owned(), BODIES.map(|body| model(body.name)).concat()].concat())?;
    let configure = |command: &mut Command| {
        command.arg("--config").arg(&file).arg("serve").env("TOKIO_WORKER_THREADS", "1");
    };
    let process = Process::start(name, core, (LATENTGATE, configure), folder, &[admin])?;
    Ok(Server { process, http1: address, http2: address, socket: Some(socket) })
}

/// The same without a memory tier, where the build knows `cache.disk.path`: the rows of the disk come and go with it.
fn disk(core: usize, origin: SocketAddr, folder: &Path) -> anyhow::Result<Option<Server>> {
    let home = folder.join("disk");
    let cache = format!("cache.memory.capacity = \"0B\"\ncache.disk.path = \"{}\"\n", home.display());
    let file = folder.join("known.toml");
    fs::write(&file, &cache)?;
    let check = Command::new(LATENTGATE).arg("--config").arg(&file).args(["config", "check"]).output()?;
    if !check.status.success() {
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        ensure!(said.contains("disk"), "{LATENTGATE} config check: {said}");
        return Ok(None);
    }
    fs::create_dir_all(&home)?;
    latentgate("disk", core, (origin, &cache), folder).map(Some)
}

/// One that was free a moment ago.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
