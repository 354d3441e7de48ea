//! A bounded load on loopback: how fast the cached and the computed answers of one server come.
//!
//! It starts the product in this process, on ports that the system chooses and a runtime of its own, unless `--server`
//! names another one on this machine. The loop is closed: each of `--concurrency` workers sends its next request when its
//! last answer is whole, so a slow answer delays the requests behind it and percentiles flatter an overloaded server.
//! Every answer is read to its trailer and its length is checked.

mod exchange;
mod input;
mod report;
mod server;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use latentgate::{
    proto::{self, output::Kind},
    task,
};
use tokio::time::Instant;
use tracing::Span;

use exchange::{Client, Sample};
use report::{Report, cpu_time};

/// Megabyte buffers from many threads: the allocator of the program itself, or the numbers are another product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hits before the measured ones: connections, allocator and branch predictors are warm after these.
const WARM_UP: u64 = 200;

/// Load a server on this machine with decodes of the builtin model, and print what came of it.
#[derive(Debug, Parser)]
struct Arguments {
    /// A server on this machine, as URL; without it, one starts in this process.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Measured requests.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// Requests under way at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    concurrency: u64,
    /// Connections that they share.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    connections: u64,
    /// Side of the decoded pictures in pixels, a multiple of 8.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=2048))]
    size: u64,
    /// Form of the answers.
    #[arg(long, value_enum, default_value_t = Form::Png)]
    output: Form,
    /// Different inputs, asked for in turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    distinct: u64,
    /// No warm-up: the first request of every input is a miss.
    #[arg(long)]
    cold: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    /// A PNG file.
    Png,
    /// Finished pixels.
    Uint8,
    /// The decoder's output.
    F16,
}

/// Connections, and what is asked for over them.
struct Load {
    clients: Vec<Client>,
    inputs: Vec<input::Input>,
    concurrency: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "this is the program's voice")]
fn complain(error: &anyhow::Error) {
    eprintln!("load: {error:#}");
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(arguments.size.is_multiple_of(8), "--size {}: wanted a multiple of 8", arguments.size);
    ensure!(arguments.connections <= arguments.concurrency, "more --connections than --concurrency would stay idle");
    let own = if arguments.server.is_none() { Some(server::Server::start()?) } else { None };
    let url = match (&arguments.server, &own) {
        (Some(url), _) => server::on_loopback(url)?,
        (None, Some(server)) => server.url(),
        (None, None) => unreachable!("one of the two is there"),
    };
    let runtime = server::runtime()?;
    let report = runtime.block_on(measure(arguments, url, own.is_some()))?;
    report.print()?;
    if let Some(server) = own {
        server.stop();
    }
    Ok(())
}

async fn measure(arguments: &Arguments, url: String, with_server: bool) -> anyhow::Result<Report> {
    let mut clients = Vec::new();
    for _ in 0..arguments.connections {
        clients.push(Client::connect(&url).await?);
    }
    let inputs = input::inputs(&clients[0], arguments).await?;
    let load = Arc::new(Load { clients, inputs, concurrency: arguments.concurrency });
    if !arguments.cold {
        load.clone().run(arguments.distinct).await?;
        load.clone().run(WARM_UP.min(arguments.requests)).await?;
    }
    let (began, cpu) = (Instant::now(), cpu_time()?);
    let samples = load.run(arguments.requests).await?;
    let (took, cpu) = (began.elapsed(), cpu_time()?.saturating_sub(cpu));
    Ok(Report { samples, took, cpu, with_server })
}

impl Load {
    /// Sends `requests` requests, `concurrency` at a time.
    async fn run(self: Arc<Self>, requests: u64) -> anyhow::Result<Vec<Sample>> {
        let next = Arc::new(AtomicU64::new(0));
        let worker = |worker: u64| {
            let (load, next) = (self.clone(), next.clone());
            task::spawn(Span::none(), async move {
                let client = &load.clients[worker as usize % load.clients.len()];
                let mut samples = Vec::with_capacity((requests / load.concurrency) as usize + 1);
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= requests {
                        return samples;
                    }
                    samples.push(client.decode(&load.inputs[turn as usize % load.inputs.len()]).await);
                }
            })
        };
        let workers: Vec<_> = (0..self.concurrency.min(requests)).map(worker).collect();
        let mut samples = Vec::with_capacity(requests as usize);
        for worker in workers {
            samples.extend(worker.join().await?);
        }
        Ok(samples)
    }
}

impl Form {
    fn wish(self) -> proto::Output {
        let kind = match self {
            Self::Png => Kind::Png(proto::output::Png {}),
            Self::Uint8 => Kind::Uint8(proto::output::Uint8 {}),
            Self::F16 => Kind::Tensor(proto::output::Tensor { dtype: proto::Dtype::F16 as i32 }),
        };
        proto::Output { kind: Some(kind) }
    }
}
