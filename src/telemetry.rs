//! What the process says: the tracing subscriber.

use std::{
    io::{self, IsTerminal as _},
    str::FromStr as _,
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A tracing filter: `info`, `latentgate=debug,h2=warn`, ...
    pub filter: String,
    /// How lines look.
    pub format: Format,
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
        Self { filter: "info".to_owned(), format: Format::Human }
    }
}

/// Whether a filter can be read, and if not, why.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::from_str(filter).map(drop).map_err(|error| error.to_string())
}

/// Installs the subscriber, on standard error: standard output belongs to answers. Once a process; later calls say so.
pub fn install(config: &Config) -> Result<(), String> {
    let filter = EnvFilter::from_str(&config.filter).map_err(|error| error.to_string())?;
    // Colours are for eyes: in a file or a collector they are noise around every field.
    let colours = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    let installed = match config.format {
        Format::Human => builder.try_init(),
        Format::Json => builder.json().try_init(),
    };
    installed.map_err(|error| error.to_string())
}
