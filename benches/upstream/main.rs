//! What the proxy adds to a miss that an endpoint answers: the same request straight to the endpoint and through a
//! latentgate before it, in pairs, in a random order within each pair.
//!
//! Endpoint, proxy and client are in this process, each with threads of its own, and speak over loopback. Latents are
//! new in every pair, so that the proxy never has the answer, and the same within it. Not criterion: it would measure one
//! after the other, and what the machine does meanwhile would be in the difference. Slow numbers are printed beside the
//! goals and are no failure; wrong answers are.

#[path = "../support.rs"]
mod support;

mod client;
mod origin;
mod report;
mod waiters;
mod ways;

use std::{fmt, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::ensure;
use bytes::Bytes;
use bytesize::ByteSize;
use latentgate::{App, Config, task};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use origin::{Answers, Origin};
use report::{Goal, tell};
use ways::Ways;

/// Pairs before those that are measured: connections, allocator and branch predictors are warm after these.
const WARM_UP: usize = 50;
/// The same, where an answer takes its time.
const PACED_WARM_UP: usize = 2;

/// The models: each has an endpoint of its own, whose answers come at once or take their time.
const MODELS: [Model; 4] = [AT_ONCE, PACED, SLOW, LATE];
const AT_ONCE: Model = Model { name: "at-once", pace: None };
const PACED: Model = Model { name: "paced", pace: Some(Duration::from_millis(20)) };
const SLOW: Model = Model { name: "slow", pace: Some(Duration::from_secs(1)) };
/// As slow, and it thinks before.
const LATE: Model = Model { name: "late", pace: Some(origin::LATE) };

const TABLES: [Table; 5] = [
    Table { name: "png", form: Form::Png, model: AT_ONCE, pairs: 1000 },
    Table { name: "png-grpc", form: Form::PngOverGrpc, model: AT_ONCE, pairs: 1000 },
    Table { name: "png-paced", form: Form::Png, model: PACED, pairs: 200 },
    Table { name: "tensor", form: Form::Tensor, model: AT_ONCE, pairs: 400 },
    Table { name: "tensor-paced", form: Form::Tensor, model: SLOW, pairs: 20 },
];

/// The table of many who wait for one answer.
const WAITERS: &str = "waiters";

/// One measurement, by its name on the command line.
struct Table {
    name: &'static str,
    form: Form,
    model: Model,
    pairs: usize,
}

/// A model of the proxy, and how long its endpoint takes for an answer.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    pace: Option<Duration>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A 512x512 picture.
    Png,
    /// The same, through the proxy's gRPC front; straight to the endpoint it is HTTP.
    PngOverGrpc,
    /// The decoder's numbers of a large one.
    Tensor,
}

/// Who is asked, and what they must answer.
struct Ends {
    origin: SocketAddr,
    proxy: SocketAddr,
    answers: Answers,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("upstream: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let answers = Answers::new()?;
    let origin = Origin::start(&answers)?;
    let theirs = Builder::new_multi_thread().enable_all().build()?;
    let app = theirs.block_on(App::bind(config(origin.address)?))?;
    let ends = Ends { origin: origin.address, proxy: app.addresses().data, answers };
    let stop = CancellationToken::new();
    let until = stop.clone();
    let serving = theirs.block_on(async { task::spawn(Span::none(), app.serve(until)) });
    let ours = Builder::new_current_thread().enable_all().build()?;
    let measured = ours.block_on(measure(&ends));
    stop.cancel();
    theirs.block_on(serving.join())?;
    measured
}

/// A proxy that knows its models by their endpoints alone. Nothing is asked for twice, so its memory has room for a few
/// answers: then it stays as it is from pair to pair.
fn config(origin: SocketAddr) -> anyhow::Result<Config> {
    let section = |Model { name, pace }: Model| {
        let url = format!("http://{origin}{}", origin::path(pace));
        format!(r#"models.{name} = {{ like = "sd-v1", backends = ["upstream"], upstream.decode = ["{url}"] }}"#)
    };
    let listen = r#"listen = { data = "127.0.0.1:0", admin = "127.0.0.1:0" }"#.to_owned();
    let cache = r#"cache.memory.capacity = "64MiB""#.to_owned();
    let lines: Vec<_> = [listen, cache].into_iter().chain(MODELS.map(section)).collect();
    Ok(toml::from_str(&lines.join("\n"))?)
}

/// All tables, or those that the command line names.
async fn measure(ends: &Ends) -> anyhow::Result<()> {
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let known: Vec<_> = TABLES.iter().map(|table| table.name).chain([WAITERS]).collect();
    let is_known = named.iter().all(|name| known.contains(&name.as_str()));
    ensure!(is_known, "no such table; there are {}", known.join(", "));
    let is_wanted = |table: &str| named.is_empty() || named.iter().any(|name| name == table);
    report::machine();
    for table in TABLES {
        if is_wanted(table.name) {
            table.measure(ends).await?;
        }
    }
    if is_wanted(WAITERS) {
        waiters::measure(ends, LATE).await?;
    }
    Ok(())
}

impl Table {
    async fn measure(&self, ends: &Ends) -> anyhow::Result<()> {
        let mut ways = Ways::connect(ends, self.form, self.model).await?;
        let warm_up = if self.model.pace.is_some() { PACED_WARM_UP } else { WARM_UP };
        ways.pairs(&ends.answers, warm_up).await?;
        let pairs = ways.pairs(&ends.answers, self.pairs).await?;
        let pace = self.model.pace.map_or_else(String::new, |time| format!(" over {time:?}"));
        pairs.tell_head(&format!("{}: {}{pace}", self.name, ends.answers.describe(self.form)));
        if self.form == Form::Tensor {
            pairs.tell_first(Goal::TENSOR_FIRST);
        }
        pairs.tell_whole((self.form == Form::Png).then_some(Goal::PNG_WHOLE));
        pairs.tell_told();
        Ok(())
    }
}

/// A length, for people.
fn iec(bytes: &Bytes) -> impl fmt::Display {
    ByteSize(bytes.len() as u64).display().iec()
}
