//! `bench`: what this machine takes for what a server on it would do.

use std::path::Path;

use clap::Subcommand;

mod engine;

/// `bench engine`.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Measure the local engine: time, processor time and memory of each size.
    Engine(engine::Engine),
}

impl BenchCommand {
    pub(super) fn run(self, file: Option<&Path>) -> anyhow::Result<()> {
        match self {
            Self::Engine(engine) => engine.run(file),
        }
    }
}
