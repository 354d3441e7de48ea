//! Log lines: on standard error, for people or for collectors.

use std::io::{self, IsTerminal as _};

use serde::{Deserialize, Serialize};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt as _, filter_fn},
};

use crate::{
    front::access,
    logs::{FilterError, Logs},
};

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A tracing filter: `info`, `latentgate=debug,h2=warn`, ...
    pub filter: String,
    /// How lines look.
    pub format: Format,
    /// Whether every request has a line, on level INFO. Those that failed for a reason that an operator should know of
    /// have one in any case.
    pub access: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Human,
    /// For collectors: one JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: Format::Human, access: true }
    }
}

/// What writes the lines, and the handle on its filter. To standard error: standard output belongs to answers.
pub(super) fn lines(config: &Config) -> Result<(Logs, Box<dyn Layer<Registry> + Send + Sync>), FilterError> {
    let (logs, filter) = Logs::new(&config.filter)?;
    let access = config.access;
    let is_wanted = filter_fn(move |line| access || line.target() != access::TARGET || *line.level() <= Level::WARN);
    // Without the hint the two together would want everything, as far as anybody can tell beforehand.
    let filter = filter.and(is_wanted.with_max_level_hint(LevelFilter::TRACE));
    // Colours are for eyes: in a file or a collector they are noise around every field.
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let lines = match config.format {
        Format::Human => lines.with_filter(filter).boxed(),
        Format::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    Ok((logs, lines))
}
