//! Ten thousand bad clients, and a good one beside them: what he notices, and what they leave behind.
//!
//! The server is the program as a process of its own, with TLS and named clients. The good client asks for the same answer
//! over and over on one connection, first in calm, then while strangers come in turns of every kind (`strangers.rs`);
//! memory is looked at again when they have gone. Goals: his p99 stays within twice that of calm, no request of his fails,
//! and the server's resident memory comes back to what it was, give or take a tenth. Everything is on loopback and bounded
//! in count and time. Numbers that miss a goal are printed and are no failure; an answer that is not whole is.

mod server;
mod strangers;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use clap::Parser;
use latentgate::task;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Builder,
    time::{Instant, sleep},
};
use tracing::Span;

use server::{Server, TOKEN};

/// Megabyte buffers: the allocator of the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Send ten thousand bad clients. Without `run` nothing is done: it takes a minute and a half.
#[derive(Debug, Parser)]
struct Arguments {
    /// Do it.
    #[arg(value_parser = ["run"])]
    run: Option<String>,
    /// Bad clients, beside those that say nothing.
    #[arg(long, default_value_t = 9000)]
    strangers: usize,
    /// Connections that say nothing.
    #[arg(long, default_value_t = 1000)]
    silent: usize,
    /// Bad clients a second.
    #[arg(long, default_value_t = 300)]
    rate: u64,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long calm is measured.
const CALM: Duration = Duration::from_secs(15);
/// After which a silent connection has been closed, lingering included, and freed memory given back.
const AFTERMATH: Duration = Duration::from_secs(20);
/// Between two requests of the good client: he is no load.
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.run.is_none() {
        tell("strangers: not run; it takes a minute and a half: cargo bench --bench strangers -- run");
        return ExitCode::SUCCESS;
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("strangers: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let server = Arc::new(Server::start()?);
    // Warm: memory that a server keeps is not what strangers leave behind.
    drop(good_client(&server, until(CALM / 3)).await?);
    strangers::come(&server, arguments.strangers / 20, arguments.rate).await;
    sleep(AFTERMATH / 4).await;

    let (resident, calm) = (server.resident_bytes()?, good_client(&server, until(CALM)).await?);
    let silent = server.silent(arguments.silent).await;
    let enough = Arc::new(AtomicBool::new(false));
    let beside = task::spawn(Span::none(), {
        let (server, enough) = (server.clone(), enough.clone());
        async move { good_client(&server, move || enough.load(Ordering::Relaxed)).await }
    });
    let outcomes = strangers::come(&server, arguments.strangers, arguments.rate).await;
    enough.store(true, Ordering::Relaxed);
    let siege = beside.join().await??;
    drop(silent);
    sleep(AFTERMATH).await;
    let after = server.resident_bytes()?;

    let total = arguments.strangers + arguments.silent;
    tell(&format!("{total} bad clients, {} a second; {} connections said nothing", arguments.rate, arguments.silent));
    for (kind, outcome, times) in outcomes {
        tell(&format!("    {kind:<34} {outcome:<28} {times:>6}"));
    }
    let (calm, siege) = (percentiles(calm), percentiles(siege));
    tell(&format!("good client, calm           p50 {:.3} ms, p99 {:.3} ms", calm[0], calm[1]));
    tell(&format!("good client, beside them    p50 {:.3} ms, p99 {:.3} ms", siege[0], siege[1]));
    judge("p99, of that in calm", siege[1] / calm[1], 2.0);
    judge("resident memory, of that before", after / resident, 1.1);
    tell(&format!("resident memory             {:.1} MiB before, {:.1} MiB after", mib(resident), mib(after)));
    Ok(())
}

/// Asks one after the other until told to stop; how long each answer took. All must be right.
async fn good_client(server: &Server, is_enough: impl Fn() -> bool) -> anyhow::Result<Vec<Duration>> {
    let mut stream = server.connect_tls().await?;
    let (request, mut taken, mut answer) = (server::decode(TOKEN), Vec::new(), Vec::new());
    while !is_enough() {
        let began = Instant::now();
        stream.write_all(&request).await?;
        answer.clear();
        while !server::is_whole(&answer) {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the good client's connection was closed");
        }
        taken.push(began.elapsed());
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "the good client was refused");
        sleep(PAUSE).await;
    }
    Ok(taken)
}

fn until(time: Duration) -> impl Fn() -> bool {
    let began = Instant::now();
    move || began.elapsed() >= time
}

/// Median and p99, in milliseconds.
fn percentiles(mut taken: Vec<Duration>) -> [f64; 2] {
    taken.sort_unstable();
    [50, 99].map(|percent| taken.get(taken.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3))
}

fn judge(what: &str, came: f64, most: f64) {
    let verdict = if came <= most { "reached" } else { "missed" };
    tell(&format!("{what:<34} {came:.2}, goal at most {most}: {verdict}"));
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

#[expect(clippy::print_stdout, reason = "this is the bench's voice")]
fn tell(line: &str) {
    println!("{line}");
}
