//! The two ways of asking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use latentgate::task;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until},
};
use tracing::Span;

use crate::{
    arguments::End,
    exchange::Client,
    input::{Input, Inputs},
    live::Live,
    tally::Tally,
};

/// Connections, and what is asked for over them.
pub(crate) struct Load {
    pub(crate) clients: Vec<Client>,
    pub(crate) inputs: Inputs,
    pub(crate) concurrency: u64,
}

/// Requests that are let go, until it is enough.
struct Turns {
    next: AtomicU64,
    end: End,
    began: Instant,
}

impl Load {
    /// Every input, so that all are hits afterwards.
    pub(crate) async fn each_once(self: Arc<Self>) -> anyhow::Result<()> {
        let all = self.inputs.len() as u64;
        drop(self.in_turns(End::After(all), Live::silent(), Inputs::nth).await?);
        Ok(())
    }

    /// Each worker's next request follows on its last answer.
    pub(crate) async fn closed(self: Arc<Self>, end: End, live: Live) -> anyhow::Result<Tally> {
        self.in_turns(end, live, Inputs::pick).await
    }

    async fn in_turns(
        self: Arc<Self>,
        end: End,
        live: Live,
        choose: fn(&Inputs, u64) -> &Input,
    ) -> anyhow::Result<Tally> {
        let began = Instant::now();
        let turns = Arc::new(Turns { next: AtomicU64::new(0), end, began });
        let worker = |worker: u64| {
            let (load, turns, live) = (self.clone(), turns.clone(), live.clone());
            task::spawn(Span::none(), async move {
                let client = load.client(worker);
                let mut tally = Tally::default();
                while let Some(turn) = turns.take() {
                    let sample = client.ask(choose(&load.inputs, turn), Instant::now()).await;
                    live.note(&sample);
                    tally.note(&sample);
                }
                tally
            })
        };
        let workers: Vec<_> = (0..self.concurrency).map(worker).collect();
        let mut tally = Tally::default();
        for worker in workers {
            tally.add(&worker.join().await?);
        }
        Ok(tally.over(began.elapsed()))
    }

    /// Requests come at moments of their own.
    pub(crate) async fn open(self: Arc<Self>, rate: f64, end: End, live: Live) -> anyhow::Result<Tally> {
        let began = Instant::now();
        let turns = Turns { next: AtomicU64::new(0), end, began };
        let places = Arc::new(Semaphore::new(self.concurrency as usize));
        let (sender, mut samples) = mpsc::unbounded_channel();
        let counting = task::spawn(Span::none(), async move {
            let mut tally = Tally::default();
            while let Some(sample) = samples.recv().await {
                tally.note(&sample);
            }
            tally
        });
        let (mut at, mut crowded_out) = (began, 0);
        while let Some(turn) = turns.take() {
            at += gap(rate);
            sleep_until(at).await;
            let Ok(place) = places.clone().try_acquire_owned() else {
                crowded_out += 1;
                live.note_crowded_out();
                continue;
            };
            let (load, live, sender) = (self.clone(), live.clone(), sender.clone());
            let asking = async move {
                let sample = load.client(turn).ask(load.inputs.pick(turn), at).await;
                live.note(&sample);
                // Bounded by the places: who counts is quicker than who asks.
                drop((sender.send(sample), place));
            };
            task::spawn(Span::none(), asking).detach();
        }
        drop(sender);
        let mut tally = counting.join().await?.over(began.elapsed());
        tally.crowded_out = crowded_out;
        Ok(tally)
    }

    fn client(&self, turn: u64) -> &Client {
        &self.clients[turn as usize % self.clients.len()]
    }
}

impl Turns {
    fn take(&self) -> Option<u64> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match self.end {
            End::After(requests) => (turn < requests).then_some(turn),
            End::Within(time) => (self.began.elapsed() < time).then_some(turn),
        }
    }
}

/// Between two arrivals of a Poisson process: exponentially distributed.
fn gap(rate: f64) -> Duration {
    Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / rate)
}
