//! Cells: every way for one body over so many connections, slice by slice in turns.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    origin::Origin,
    received::Received,
    report::{self, Row},
    servers::{Server, Servers},
    ways::{Body, Connection, Input, WAYS, Way},
};

/// No slice takes this long on a machine that is worth measuring.
const PATIENCE: Duration = Duration::from_mins(2);
/// A disk is written behind the answer: so long it may take until a body is answered without the origin.
const FILL_TRIES: usize = 100;
const FILL_PAUSE: Duration = Duration::from_millis(20);

/// What is to be measured.
pub(crate) struct Plan<'a> {
    pub(crate) rounds: u32,
    pub(crate) connections: &'a [u32],
    pub(crate) bodies: &'a [Body],
    /// In the names of the ways.
    pub(crate) only: &'a str,
}

/// A way with its connections open, and what its slices said.
struct Asker<'a> {
    way: Way,
    server: &'a Server,
    connections: Vec<Connection>,
    slices: Vec<Slice>,
}

/// What a slice said.
struct Slice {
    requests: u32,
    took: Duration,
    /// Of the server.
    spent: Duration,
    latencies: Vec<Duration>,
}

impl Plan<'_> {
    fn ways(&self) -> impl Iterator<Item = Way> {
        WAYS.into_iter().filter(|way| way.name().contains(self.only))
    }

    pub(crate) async fn measure(&self, servers: &Servers, origin: &Origin) -> anyhow::Result<()> {
        report::head(servers);
        for &body in self.bodies {
            for way in self.ways() {
                if let Some(server) = way.server(servers) {
                    fill(way, server, body, origin)
                        .await
                        .with_context(|| format!("{} by {}", body.name, way.name()))?;
                }
            }
            for &connections in self.connections {
                let rows = self.cell(body, connections, (servers, origin)).await?;
                report::cell((body, origin.body(body).len()), connections, &rows);
            }
        }
        Ok(())
    }

    async fn cell(
        &self,
        body: Body,
        connections: u32,
        (servers, origin): (&Servers, &Origin),
    ) -> anyhow::Result<Vec<Row>> {
        let (asked, expected) = (origin.asked(), origin.body(body));
        let mut askers = Vec::new();
        for way in self.ways() {
            let Some(server) = way.server(servers) else { continue };
            let open = (0..connections).map(|_| way.connect(server, body));
            let mut asker = Asker { way, server, connections: try_join_all(open).await?, slices: Vec::new() };
            asker.warm_up(body, expected).await.with_context(|| format!("{} by {}", body.name, way.name()))?;
            askers.push(asker);
        }
        for _ in 0..self.rounds {
            let mut order: Vec<_> = (0..askers.len()).collect();
            fastrand::shuffle(&mut order);
            for turn in order {
                let asker = &mut askers[turn];
                let slice = timeout(PATIENCE, asker.slice(body.slice.max(2 * connections), expected)).await;
                let slice = slice.unwrap_or_else(|late| Err(late.into()));
                let slice = slice.with_context(|| format!("{} by {}", body.name, asker.way.name()))?;
                asker.slices.push(slice);
            }
        }
        ensure!(origin.asked() == asked, "{}: the origin was asked while hits were measured", body.name);
        Ok(askers.into_iter().map(|asker| asker.row(expected.len())).collect())
    }
}

/// Asks until the answer does not come from the origin.
async fn fill(way: Way, server: &Server, body: Body, origin: &Origin) -> anyhow::Result<()> {
    // A digest alone fills nothing.
    let way = if way.input == Input::Digest { Way { input: Input::Latents, ..way } } else { way };
    let mut connection = way.connect(server, body).await?;
    for _ in 0..FILL_TRIES {
        let asked = origin.asked();
        let mut received = Received::hashed();
        connection.ask(&mut received).await?;
        received.judge(origin.body(body))?;
        if origin.asked() == asked {
            return Ok(());
        }
        sleep(FILL_PAUSE).await;
    }
    anyhow::bail!("it is never a hit")
}

// === impl Asker ===

impl Asker<'_> {
    /// The digest once, and then as many requests as half of a slice.
    async fn warm_up(&mut self, body: Body, expected: &Bytes) -> anyhow::Result<()> {
        let mut received = Received::hashed();
        self.connections[0].ask(&mut received).await?;
        received.judge(expected)?;
        self.slice((body.slice / 2).max(self.connections.len() as u32), expected).await.map(drop)
    }

    /// So many requests over all connections, one at a time on each.
    async fn slice(&mut self, requests: u32, expected: &Bytes) -> anyhow::Result<Slice> {
        let share = requests.div_ceil(self.connections.len() as u32);
        let (before, began) = (self.server.process.spent()?, Instant::now());
        let work = self.connections.iter_mut().map(async |connection| {
            let mut latencies = Vec::with_capacity(share as usize);
            for _ in 0..share {
                let (began, mut received) = (Instant::now(), Received::default());
                connection.ask(&mut received).await?;
                latencies.push(began.elapsed());
                received.judge(expected)?;
            }
            anyhow::Ok(latencies)
        });
        let latencies = try_join_all(work).await?.concat();
        let (took, spent) = (began.elapsed(), self.server.process.spent()?.since(&before));
        Ok(Slice { requests: share * self.connections.len() as u32, took, spent, latencies })
    }

    fn row(self, bytes: usize) -> Row {
        let per_request = |slice: &Slice| slice.spent.as_secs_f64() / f64::from(slice.requests);
        let rate = |slice: &Slice| f64::from(slice.requests) / slice.took.as_secs_f64();
        let latencies = self.slices.iter().flat_map(|slice| &slice.latencies).map(Duration::as_secs_f64);
        let requests_a_second = median(self.slices.iter().map(rate));
        Row {
            way: self.way,
            request_bytes: self.connections[0].request_bytes(),
            processor: median(self.slices.iter().map(per_request)),
            latency: median(latencies),
            requests_a_second,
            bytes_a_second: requests_a_second * bytes as f64,
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = values.collect();
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
