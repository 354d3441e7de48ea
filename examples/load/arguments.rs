//! What is asked for, and how.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use latentgate::proto::{self, output::Kind};

/// Load a server on this machine with requests to the builtin model, and print what came of it.
#[derive(Debug, Parser)]
pub(crate) struct Arguments {
    /// A server on this machine, as URL; without it, one starts in this process.
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Its admin port: memory and the count of outcomes are read there.
    #[arg(long, value_name = "URL", requires = "server")]
    pub(crate) admin: Option<String>,
    /// Measured requests; 1000 without --time.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: Option<u64>,
    /// Time to measure for, as 30s or 30m, in place of a number of requests.
    #[arg(long, value_parser = humantime::parse_duration, conflicts_with = "requests")]
    time: Option<Duration>,
    /// Requests a second, at random moments; without it, each worker asks when its last answer is whole.
    #[arg(long, value_name = "PER_SECOND")]
    pub(crate) rate: Option<f64>,
    /// Requests under way at a time, at most.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) concurrency: u64,
    /// Connections that they share.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) connections: u64,
    /// Sides of the pictures in pixels, multiples of 8; asked for alike.
    #[arg(long = "size", value_delimiter = ',', default_value = "512")]
    pub(crate) sizes: Vec<usize>,
    /// Form of the answers to decodes.
    #[arg(long, value_enum, default_value_t = Form::Png)]
    pub(crate) output: Form,
    /// Of a hundred requests so many are encodes.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub(crate) encodes: u64,
    /// Different inputs of each size and task.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) distinct: u64,
    /// Inputs are asked for as often as Zipf's law with this exponent says, in place of in turn.
    #[arg(long, value_name = "EXPONENT")]
    pub(crate) zipf: Option<f64>,
    /// No warm-up: the first request of every input is a miss.
    #[arg(long)]
    pub(crate) cold: bool,
    /// A line a second while it runs.
    #[arg(long)]
    pub(crate) live: bool,
    /// Write the numbers to this file too.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Form {
    /// A PNG file.
    Png,
    /// Finished pixels.
    Uint8,
    /// The decoder's output.
    F16,
}

/// When it is enough.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    After(u64),
    Within(Duration),
}

/// Requests that are measured unless told otherwise.
const REQUESTS: u64 = 1000;
/// Sides that the builtin model and this machine are asked for.
const SIDES: std::ops::RangeInclusive<usize> = 64..=2048;

impl Arguments {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for size in &self.sizes {
            let is_side = size.is_multiple_of(8) && SIDES.contains(size);
            ensure!(is_side, "--size {size}: wanted a multiple of 8 from 64 to 2048");
        }
        ensure!(self.connections <= self.concurrency, "more --connections than --concurrency would stay idle");
        let is_rate = |rate: f64| rate.is_finite() && rate > 0.0 && rate <= 1e6;
        ensure!(self.rate.is_none_or(is_rate), "--rate: wanted requests a second, more than 0 and at most a million");
        let is_exponent = |exponent: f64| (0.0..=4.0).contains(&exponent);
        ensure!(self.zipf.is_none_or(is_exponent), "--zipf: wanted an exponent from 0 to 4; 0.9 is usual of the web");
        Ok(())
    }

    pub(crate) fn end(&self) -> End {
        self.time.map_or(End::After(self.requests.unwrap_or(REQUESTS)), End::Within)
    }
}

impl Form {
    pub(crate) fn wish(self) -> proto::Output {
        let kind = match self {
            Self::Png => Kind::Png(proto::output::Png {}),
            Self::Uint8 => Kind::Uint8(proto::output::Uint8 {}),
            Self::F16 => Kind::Tensor(proto::output::Tensor { dtype: proto::Dtype::F16 as i32 }),
        };
        proto::Output { kind: Some(kind) }
    }
}
