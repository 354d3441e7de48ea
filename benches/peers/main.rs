//! Cache hits beside nginx `proxy_cache` and Varnish: processor time of the server, latency and throughput, for the same
//! bodies on the same machine in one run.
//!
//! Every server is a process of its own with one worker, pinned to one core; what asks them is this process, on another
//! core. All have their bodies from the tiny origin in here. For a body and a number of connections
//! every way of asking has its connections open at the same time, and they are measured in turns: rounds of short slices,
//! in a random order in each, and the median of a way's slices is its number. So what else the machine does meets all of
//! them alike, and ratios hold where the numbers themselves are noisy. An answer's length is checked each time and its
//! digest once a cell; the origin counts what it is asked, and a measured request that reaches it is an error. Numbers that
//! miss a goal are printed and are no failure.

mod http1;
mod http2;
mod measure;
mod origin;
mod process;
mod received;
mod report;
mod servers;
mod ways;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;

use measure::Plan;
use origin::Origin;
use report::tell;
use servers::Servers;
use ways::{BODIES, Body};

/// Megabyte buffers: the allocator of the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compare cache hits with nginx and Varnish. `benches/peers/run.sh` starts it as it should be started.
#[derive(Debug, Parser)]
struct Arguments {
    /// The core of the servers. Without it nothing is measured.
    #[arg(long, value_name = "CORE")]
    server_core: Option<usize>,
    /// The core of what asks them; any, without it.
    #[arg(long, value_name = "CORE")]
    asking_core: Option<usize>,
    /// Slices of every way in every cell.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Connections of the cells.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: Vec<u32>,
    /// Bodies of the cells, by their names: small, middle, large.
    #[arg(long, value_delimiter = ',', default_value = "small,middle,large", value_parser = body)]
    bodies: Vec<Body>,
    /// Of the table's rows only those whose names have this in them; for a profile of one.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(core) = arguments.server_core else {
        tell("peers: not run; it needs nginx and Varnish: benches/peers/run.sh");
        return ExitCode::SUCCESS;
    };
    match run(core, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("peers: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(core: usize, arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(core) = arguments.asking_core {
        // Before there are threads, which inherit it.
        process::stay_on(core)?;
    }
    let origin = Origin::start()?;
    let servers = Servers::start(core, origin.address)?;
    let Arguments { rounds, connections, bodies, only, .. } = arguments;
    let plan = Plan { rounds: *rounds, connections, bodies, only };
    // One thread, as the servers have one: it is on a core of its own.
    Builder::new_current_thread().enable_all().build()?.block_on(plan.measure(&servers, &origin))
}

fn body(name: &str) -> Result<Body, String> {
    BODIES.into_iter().find(|body| body.name == name).ok_or_else(|| "wanted small, middle or large".to_owned())
}
