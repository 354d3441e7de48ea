//! `log-level`: what a server's log says, shown and changed while it runs.

use clap::Args;
use http::Method;

use super::{answer, page, serve};

/// Where the filter is.
const PATH: &str = "/log-level";

/// Flags of `log-level`.
#[derive(Debug, Args)]
pub(super) struct LogLevel {
    /// The new filter, such as `debug` or `info,latentgate::access=off`. It holds until the server ends, is told another,
    /// or reads its configuration again. Without one: show the filter in force.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// The server's admin port.
    #[arg(long, value_name = "URL", env = "LATENTGATE_ADMIN", default_value = "http://127.0.0.1:8791")]
    admin: String,
}

impl LogLevel {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (method, body) = match &self.filter {
            None => (Method::GET, ""),
            Some(filter) => (Method::PUT, filter.as_str()),
        };
        let told = serve::runtime()?.block_on(page::ask(&self.admin, &method, PATH, body))?;
        answer(told.trim_end())
    }
}
