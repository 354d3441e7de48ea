//! A bounded load on loopback: how fast the cached and the computed answers of one server come, and what becomes of it in
//! an hour.
//!
//! It starts the product in this process, on ports that the system chooses and a runtime of its own, unless `--server`
//! names another one on this machine. Two ways of asking:
//!
//! - closed (the default): each of `--concurrency` workers sends its next request when its last answer is whole. It finds
//!   out what a server can do; a slow answer delays the requests behind it, so percentiles flatter an overloaded one.
//! - open (`--rate`): requests come at random moments (Poisson), whatever became of those before, and a request's time
//!   begins when it was to come. At most `--concurrency` are under way; those that find no place are counted, not sent.
//!
//! Keys are taken in turn, or by Zipf's law (`--zipf`); `--encodes` of a hundred requests are encodes. Every answer is read
//! to its trailer and its length is checked.

mod arguments;
mod drive;
mod exchange;
mod input;
mod live;
mod metrics;
mod report;
mod server;
mod tally;

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;

use arguments::{Arguments, End};
use drive::Load;
use exchange::Client;
use input::Inputs;
use live::Live;
use metrics::Scraped;
use report::{Report, cpu_time};

/// Megabyte buffers from many threads: the allocator of the program itself, or the numbers are another product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hits before the measured ones: connections, allocator and branch predictors are warm after these.
const WARM_UP: u64 = 200;

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
    arguments.check()?;
    let own = if arguments.server.is_none() { Some(server::Server::start()?) } else { None };
    let (url, admin) = match (&arguments.server, &own) {
        (Some(url), _) => (server::on_loopback(url)?, arguments.admin.as_deref().map(server::on_loopback).transpose()?),
        (None, Some(server)) => (server.url(), Some(server.admin_url())),
        (None, None) => unreachable!("one of the two is there"),
    };
    let runtime = server::runtime()?;
    let report = runtime.block_on(measure(arguments, url, (admin, own.is_some())))?;
    report.print()?;
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    if let Some(server) = own {
        server.stop();
    }
    report.judge()
}

async fn measure(
    arguments: &Arguments,
    url: String,
    (admin, with_server): (Option<String>, bool),
) -> anyhow::Result<Report> {
    let mut clients = Vec::new();
    for _ in 0..arguments.connections {
        clients.push(Client::connect(&url).await?);
    }
    let inputs = Inputs::make(&clients[0], arguments).await?;
    let load = Arc::new(Load { clients, inputs, concurrency: arguments.concurrency });
    if !arguments.cold {
        load.clone().each_once().await?;
        load.clone().closed(End::After(WARM_UP), Live::silent()).await?;
    }
    let before = Scraped::of(admin.as_deref()).await?;
    let live = Live::start(arguments.live, admin.clone());
    let cpu = cpu_time()?;
    let tally = match arguments.rate {
        Some(rate) => load.open(rate, arguments.end(), live.clone()).await?,
        None => load.closed(arguments.end(), live.clone()).await?,
    };
    let cpu = cpu_time()?.saturating_sub(cpu);
    let memory = live.stop().await;
    let after = Scraped::of(admin.as_deref()).await?;
    Ok(Report { tally, cpu, with_server, rate: arguments.rate, counted: before.zip(after), memory })
}
