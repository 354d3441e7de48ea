//! The table: a row for a way in a cell, and beside it what is wanted of it.

use std::{fmt::Write as _, fs};

use bytesize::ByteSize;

use crate::{
    servers::Servers,
    ways::{Body, Protocol, Way, Whom},
};

/// Medians of a way in a cell.
pub(crate) struct Row {
    pub(crate) way: Way,
    /// What a request brings along.
    pub(crate) request_bytes: usize,
    /// Of the server, in seconds a request.
    pub(crate) processor: f64,
    /// To the last byte, in seconds.
    pub(crate) latency: f64,
    pub(crate) requests_a_second: f64,
    pub(crate) bytes_a_second: f64,
}

/// The most that the processor time of a way may be, as a multiple of another's.
struct Goal {
    other: Whom,
    protocol: Protocol,
    most: f64,
}

/// The most that one connection may wait for a small body.
const FIRST_ANSWER: f64 = 0.15e-3;

/// On what, with what else going on, and the head of the table.
pub(crate) fn head(servers: &Servers) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, name)| name);
    let load = read("/proc/loadavg");
    let load: Vec<_> = load.split(' ').take(3).collect();
    tell(&format!("{model}; a core for the server, one for what asks; load average before: {}", load.join(" ")));
    if servers.disk.is_none() {
        tell("no rows of the disk: this latentgate knows no cache.disk.path");
    }
    tell(
        "sent: what a request brings along, the input or its digest; CPU: of the server with its children, user and system",
    );
    tell(&format!(
        "\n{:<9}{:>5}  {:<34}{:>10}{:>12}{:>11}{:>9}{:>8}  {}",
        "body", "conns", "server", "sent", "CPU/request", "p50", "req/s", "MB/s", "CPU as a multiple, and its goal"
    ));
}

/// The rows of a cell.
pub(crate) fn cell((body, bytes): (Body, usize), connections: u32, rows: &[Row]) {
    let size = ByteSize(bytes as u64).display().iec().to_string();
    for row in rows {
        let goals = row.goals(body).into_iter().filter_map(|goal| goal.judge(row, rows));
        let goals = goals.chain(row.first_answer(body, connections)).collect::<Vec<_>>().join("; ");
        tell(&format!(
            "{size:<9}{connections:>5}  {:<34}{:>10}{:>9.1} us{:>8.3} ms{:>9.0}{:>8.0}  {goals}",
            row.way.name(),
            ByteSize(row.request_bytes as u64).display().iec().to_string(),
            row.processor * 1e6,
            row.latency * 1e3,
            row.requests_a_second,
            row.bytes_a_second / 1e6,
        ));
    }
    tell("");
}

// === impl Row ===

impl Row {
    /// What is wanted of its processor time.
    fn goals(&self, body: Body) -> Vec<Goal> {
        let is_small = body.name == "small";
        let to = |other, protocol, most| Goal { other, protocol, most };
        match (self.way.whom, self.way.protocol) {
            (Whom::Memory, Protocol::Http1) => vec![
                to(Whom::Varnish, Protocol::Http1, 1.0),
                to(Whom::Nginx, Protocol::Http1, if is_small { 1.3 } else { 1.0 }),
            ],
            (Whom::Memory, Protocol::Grpc) => {
                vec![to(Whom::Varnish, Protocol::Http2, 1.0), to(Whom::Nginx, Protocol::Http2, 1.0)]
            }
            (Whom::Disk, Protocol::Http1) if !is_small => vec![to(Whom::Nginx, Protocol::Http1, 1.25)],
            (Whom::Disk, _) if !is_small => vec![to(Whom::Nginx, Protocol::Http2, 1.25)],
            _ => Vec::new(),
        }
    }

    fn first_answer(&self, body: Body, connections: u32) -> Option<String> {
        let counts = self.way.whom == Whom::Memory && body.name == "small" && connections == 1;
        counts.then(|| format!("p50 at most {} ms: {}", FIRST_ANSWER * 1e3, verdict(self.latency <= FIRST_ANSWER)))
    }
}

// === impl Goal ===

impl Goal {
    fn judge(&self, row: &Row, rows: &[Row]) -> Option<String> {
        let is_other = |other: &&Row| other.way.whom == self.other && other.way.protocol == self.protocol;
        let ratio = row.processor / rows.iter().find(is_other)?.processor;
        let name = if self.other == Whom::Nginx { "nginx" } else { "Varnish" };
        let mut text = format!("{ratio:.2}x {name}");
        // A String takes everything.
        let _ = write!(text, " (at most {}): {}", self.most, verdict(ratio <= self.most));
        Some(text)
    }
}

const fn verdict(is_reached: bool) -> &'static str {
    if is_reached { "reached" } else { "missed" }
}

#[expect(clippy::print_stdout, reason = "a bench talks to people")]
pub(crate) fn tell(line: &str) {
    println!("{line}");
}
