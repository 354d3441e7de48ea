//! `cache`: what a server keeps, over gRPC on its admin port; and `warm`, which sends it files on its data port.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::serve;

mod look;
mod port;
mod sweep;
mod warm;

use port::AdminPort;

/// `cache stats|list|get|purge|verify|warm`.
#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// How full each tier is, and how it is.
    Stats(Stats),
    /// What is kept.
    List(List),
    /// Fetch one artifact by its key.
    Get(Get),
    /// Let go what is meant, in memory and on disk.
    Purge(Purge),
    /// Read and prove every byte on disk.
    Verify(Verify),
    /// Send files, so that their answers are kept: latents are decoded, pictures encoded.
    Warm(Box<warm::Warm>),
}

/// Where the admin port is.
#[derive(Clone, Debug, Args)]
pub(super) struct AdminConnection {
    /// The server's admin port.
    #[arg(long, value_name = "URL", env = "LATENTGATE_ADMIN", default_value = "http://127.0.0.1:8791")]
    pub(super) admin: String,
}

/// Flags of `cache stats`.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: AdminConnection,
}

/// Flags of `cache list`.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Artifacts of this model alone.
    #[arg(long, short, value_name = "MODEL", default_value = "", hide_default_value = true)]
    model: String,
    /// Artifacts at most. Default: all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: AdminConnection,
}

/// Flags of `cache get`.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The content key: 64 hex digits, or the first 8 or more of one that no other artifact's key begins with.
    #[arg(value_name = "KEY")]
    key: String,
    /// Where to. Tensors become .safetensors or .npy if the name says so; anything else is written as it is kept.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    connection: AdminConnection,
}

/// Flags of `cache purge`.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = true, args = ["model", "key", "older_than", "all"])]
pub(super) struct Purge {
    /// Everything of this model.
    #[arg(long, short, value_name = "MODEL", conflicts_with_all = ["key", "all"])]
    model: Option<String>,
    /// The artifact of this key: 64 hex digits, or the first 8 or more if they are unique.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["older_than", "all"])]
    key: Option<String>,
    /// Everything that was made at least so long ago, such as 7d or 12h. With --model, of that model.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration, conflicts_with = "all")]
    older_than: Option<std::time::Duration>,
    /// Everything.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: AdminConnection,
}

/// Flags of `cache verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Remove what is damaged.
    #[arg(long)]
    repair: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: AdminConnection,
}

impl CacheCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        serve::runtime()?.block_on(async {
            match self {
                Self::Stats(stats) => stats.run(AdminPort::connect(&stats.connection).await?).await,
                Self::List(list) => list.run(AdminPort::connect(&list.connection).await?).await,
                Self::Get(get) => get.run(AdminPort::connect(&get.connection).await?).await,
                Self::Purge(purge) => purge.run(AdminPort::connect(&purge.connection).await?).await,
                Self::Verify(verify) => verify.run(AdminPort::connect(&verify.connection).await?).await,
                Self::Warm(warm) => warm.run().await,
            }
        })
    }
}
