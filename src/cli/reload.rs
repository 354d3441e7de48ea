//! `config reload`: the order to read the configuration again, over HTTP on the admin port.

use anyhow::{Context as _, bail};
use clap::Args;
use http::{Request, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{answer, cache::AdminConnection, client};
use crate::{front::admin::Reloaded, task};

/// No list of keys is longer.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Flags of `config reload`.
#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    connection: AdminConnection,
}

impl Reload {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let url = client::url("--admin", &self.connection.admin)?;
        let (status, body) = post(&url).await.with_context(|| format!("the admin port {url}"))?;
        if !status.is_success() {
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            bail!("{}", said["error"].as_str().unwrap_or(status.as_str()));
        }
        let Reloaded { changed, needs_restart } =
            serde_json::from_slice(&body).context("the answer is not readable")?;
        if changed.is_empty() {
            answer("nothing has changed that a running server takes over")?;
        }
        changed.iter().try_for_each(|key| answer(format_args!("in force: {key}")))?;
        needs_restart.iter().try_for_each(|key| answer(format_args!("needs a restart: {key}")))
    }
}

async fn post(url: &str) -> anyhow::Result<(http::StatusCode, Vec<u8>)> {
    let uri: Uri = url.parse().context("is no URL; wanted http://HOST:PORT")?;
    let host = uri.authority().context("names no host")?.clone();
    let stream = TcpStream::connect((host.host().trim_matches(['[', ']']), host.port_u16().unwrap_or(80))).await;
    let stream = stream.context("cannot be reached; is `latentgate serve` running?")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the exchange; what goes wrong with it is told there.
    let _connection = task::spawn(tracing::Span::none(), async move { drop(connection.await) });
    let request = Request::post("/config/reload").header(HOST, host.as_str()).body(Empty::<bytes::Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?;
    Ok((head.status, body.to_bytes().to_vec()))
}
