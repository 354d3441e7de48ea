//! `[listen]`: sockets, and bounds on their connections.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::{Config, Fault, validate};
use crate::front::listen::{Limits, tls, unix};

/// Listening sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address of the data port: gRPC, health, reflection.
    pub data: SocketAddr,
    /// Address of the admin port: metrics, liveness, readiness.
    pub admin: SocketAddr,
    /// Whether the admin port may be bound elsewhere than to the loopback: whoever reaches it may purge and reload.
    pub admin_beyond_loopback: bool,
    /// Path of a Unix socket that serves what the data port serves, without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Permissions of that socket's file.
    pub socket_mode: unix::Mode,
    /// Connections served at a time, on each port; more wait in the kernel. The socket's are the data port's.
    pub max_connections: usize,
    /// Requests of one HTTP/2 connection at a time; more are refused.
    pub max_streams: u32,
    /// Bytes of a request's head.
    pub max_header: ByteSize,
    /// The longest the head of an HTTP/1.1 request may take, the wait for it included.
    #[serde(with = "humantime_serde")]
    pub header_time: Duration,
    /// The longest a connection may be open without a request in progress.
    #[serde(with = "humantime_serde")]
    pub idle_time: Duration,
    /// From about which age on a connection is told to go away, so that clients spread anew; none: never.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// TLS on the data port; plain text without it. The admin port has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Config>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            data: SocketAddr::from(([127, 0, 0, 1], 8790)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8791)),
            admin_beyond_loopback: false,
            socket: None,
            socket_mode: unix::Mode::default(),
            max_connections: 1024,
            max_streams: 256,
            max_header: ByteSize::kib(16),
            header_time: Duration::from_secs(30),
            idle_time: Duration::from_mins(5),
            max_age: None,
            tls: None,
        }
    }
}

impl Config {
    /// What connections are held to.
    pub fn connection_limits(&self) -> Limits {
        let listen = &self.listen;
        Limits {
            max_connections: listen.max_connections,
            max_streams: listen.max_streams,
            max_header_bytes: listen.max_header.as_u64() as u32,
            header_time: listen.header_time,
            idle_time: listen.idle_time,
            max_age: listen.max_age,
            request_time: self.limits.request_time,
        }
    }

    /// Addresses, bounds, the socket's path, TLS files. What is in the files shows when the port is bound.
    pub(super) fn check_listen(&self, faults: &mut Vec<Fault>) {
        let listen = &self.listen;
        let mut check = |holds: bool, key: &str, value: String, remedy: &str| {
            if !holds {
                faults.push(Fault { key: format!("listen.{key}"), value, remedy: remedy.to_owned() });
            }
        };
        let (data, admin) = (listen.data, listen.admin);
        check(data != admin || data.port() == 0, "admin", admin.to_string(), "must differ from listen.data");
        let remedy = "whoever reaches the admin port may purge and reload, without a token: bind it to 127.0.0.1, or say \
                      listen.admin_beyond_loopback = true where a network keeps others out";
        let is_meant = admin.ip().is_loopback() || listen.admin_beyond_loopback;
        check(is_meant, "admin", admin.to_string(), remedy);
        let (streams, header) = (listen.max_streams, listen.max_header);
        check((1..=65_536).contains(&streams), "max_streams", streams.to_string(), "must be between 1 and 65536");
        let fits = (1 << 10..=1 << 20).contains(&header.as_u64());
        check(fits, "max_header", header.to_string(), "must be between 1KiB and 1MiB");
        let times = [("header_time", Some(listen.header_time)), ("idle_time", Some(listen.idle_time))];
        for (key, time) in times.into_iter().chain([("max_age", listen.max_age)]) {
            let Some(time) = time else { continue };
            let value = humantime::format_duration(time).to_string();
            let fits = !time.is_zero() && time <= validate::MAX_TIME;
            check(fits, key, value, "must be longer than 0s and at most 1day");
        }
        if let Some(path) = listen.socket.as_ref().filter(|path| !unix::is_path(path)) {
            let remedy = "must be the path of a file, of about 100 bytes at most: leave it out, or name a shorter one";
            check(false, "socket", path.display().to_string(), remedy);
        }
        let Some(tls) = &listen.tls else { return };
        let files = [("tls.certificate", Some(&tls.certificate)), ("tls.private_key", Some(&tls.private_key))];
        for (key, path) in files.into_iter().chain([("tls.client_ca", tls.client_ca.as_ref())]) {
            let Some(path) = path else { continue };
            check(path.exists(), key, path.display().to_string(), "no such file: name a PEM file");
        }
        let is_moot = tls.client_ca.is_none() && tls.client_certificates == tls::ClientCertificates::Optional;
        let remedy = "needs listen.tls.client_ca: name the authorities of the clients' certificates, or leave it out";
        check(!is_moot, "tls.client_certificates", "optional".to_owned(), remedy);
    }
}
