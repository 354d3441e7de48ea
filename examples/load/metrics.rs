//! What the server's own metrics say: its memory, and how many requests it counted as over.

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A scrape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scraped {
    /// Of the server's process.
    pub(crate) resident_bytes: f64,
    /// Requests that are over, however they ended.
    pub(crate) outcomes: f64,
}

impl Scraped {
    /// Of this admin port, if there is one.
    pub(crate) async fn of(admin: Option<&str>) -> anyhow::Result<Option<Self>> {
        let Some(admin) = admin else { return Ok(None) };
        let address = admin.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(address).await.with_context(|| format!("no admin port at {admin}"))?;
        let ask = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let sum = |name: &str| {
            let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
            let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
            text.lines().filter(of_name).filter_map(value).sum::<f64>()
        };
        Ok(Some(Self {
            resident_bytes: sum("process_resident_memory_bytes"),
            outcomes: sum("latentgate_requests_total"),
        }))
    }
}
