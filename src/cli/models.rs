//! `models`: what a server can do, as a table or as JSON.

use clap::Args;
use serde_json::{Value, json};

use super::{
    answer,
    client::{BlockBar, Client},
    request::Connection,
    serve,
};
use crate::proto::{self, Backend, Model, backend::State};

/// Flags of `models`.
#[derive(Debug, Args)]
pub(super) struct Models {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

const COLUMNS: [&str; 8] = ["MODEL", "FAMILY", "TASKS", "CHANNELS", "SCALING", "SHIFT", "REVISION", "BACKENDS"];

/// A revision is often a digest, whose beginning tells it apart.
const REVISION_CHARACTERS: usize = 20;

impl Models {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let models = serve::runtime()?
            .block_on(async { Client::connect(&self.connection, BlockBar::hidden()).await?.models().await })?;
        if self.json {
            return answer(format_args!("{:#}", models.iter().map(as_json).collect::<Value>()));
        }
        let rows: Vec<_> = std::iter::once(COLUMNS.map(str::to_owned)).chain(models.iter().map(row)).collect();
        table(&rows).iter().try_for_each(answer)
    }
}

/// Lines of a table whose columns are as wide as their widest cell; the last one is as long as it is.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(model: &Model) -> [String; 8] {
    let backends = model.backends.iter().map(|backend| match backend.detail.as_str() {
        "" => format!("{}: {}", backend.name, state(backend)),
        detail => format!("{}: {} ({})", backend.name, state(backend), one_line(detail)),
    });
    [
        model.id.clone(),
        model.family.clone(),
        tasks(model).join(","),
        model.latent_channels.to_string(),
        decimal(model.scaling_factor).to_string(),
        decimal(model.shift_factor).to_string(),
        model.revision.chars().take(REVISION_CHARACTERS).collect(),
        backends.collect::<Vec<_>>().join("; "),
    ]
}

fn as_json(model: &Model) -> Value {
    let backend = |it: &Backend| json!({ "name": it.name, "state": state(it), "detail": it.detail });
    json!({
        "id": model.id,
        "family": model.family,
        "tasks": tasks(model),
        "latent_channels": model.latent_channels,
        "spatial_scale": model.spatial_scale,
        "temporal_scale": model.temporal_scale,
        "scaling_factor": decimal(model.scaling_factor),
        "shift_factor": decimal(model.shift_factor),
        "revision": model.revision,
        "aliases": model.aliases,
        "backends": model.backends.iter().map(backend).collect::<Vec<_>>(),
    })
}

fn tasks(model: &Model) -> Vec<&'static str> {
    let name = |task| match task {
        proto::Task::Decode => "decode",
        proto::Task::Encode => "encode",
        proto::Task::Unspecified => "unknown",
    };
    model.tasks().map(name).collect()
}

fn state(backend: &Backend) -> &'static str {
    match backend.state() {
        State::Ready => "ready",
        State::Idle => "idle",
        State::Unavailable => "unavailable",
        State::Unspecified => "unknown",
    }
}

/// The decimal that a person wrote: the server keeps these numbers in single precision, whose digits beyond the
/// seventh are nobody's.
fn decimal(number: f64) -> f64 {
    (number as f32).to_string().parse().unwrap_or(number)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = [["a", "bbb", ""], ["aaaa", "b", "end"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), ["a     bbb", "aaaa  b    end"]);
    }

    #[test]
    fn numbers_are_shown_as_they_were_written() {
        assert_eq!(decimal(f64::from(0.18215f32)).to_string(), "0.18215");
        assert_eq!(decimal(1.0).to_string(), "1");
    }
}
