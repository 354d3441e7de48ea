//! Pages of the admin port: HTTP/1.0, which ends an answer with the connection, so that nothing has to be parsed.

use anyhow::{Context as _, bail};
use http::{Method, Uri};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The admin port's, for a URL that names none.
const PORT: u16 = 8791;

/// The body of the answer to one request; what the server says instead, if that is no success.
pub(super) async fn ask(admin: &str, method: &Method, path: &str, body: &str) -> anyhow::Result<String> {
    let uri: Uri = admin
        .parse()
        .ok()
        .filter(|uri: &Uri| uri.scheme_str() == Some("http"))
        .with_context(|| format!("--admin {admin}: wanted a URL such as http://127.0.0.1:{PORT}"))?;
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(PORT));
    let no_answer = || format!("no answer from {admin}: is it the admin port of a latentgate?");
    let address = (host.trim_start_matches('[').trim_end_matches(']'), port);
    let mut socket = TcpStream::connect(address).await.with_context(no_answer)?;
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n\r\n{body}");
    socket.write_all(request.as_bytes()).await.with_context(no_answer)?;
    let mut response = String::new();
    socket.read_to_string(&mut response).await.with_context(no_answer)?;
    match response.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        Some((head, body)) => bail!("{method} {path}: {}", told(head, body)),
        None => bail!("{method} {path}: {}", response.lines().next().unwrap_or("no answer")),
    }
}

/// Why not, in the server's words, or at least by its status.
fn told(head: &str, body: &str) -> String {
    let said: Option<String> =
        serde_json::from_str(body).ok().and_then(|said: serde_json::Value| Some(said["error"].as_str()?.to_owned()));
    said.unwrap_or_else(|| head.lines().next().unwrap_or("no answer").to_owned())
}
