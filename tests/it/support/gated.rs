//! A backend whose runs wait for the test: exact counts without sleeps. Its answers are a function of the job alone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use latentgate::{
    backend::{Backend, BoxFuture, Compute, Health, ModelState},
    body::BodyWriter,
    error::{Error, ErrorKind},
    job::{Output, Work},
    key::ContentKey,
    meta::{ContentType, Meta, Provenance},
    model::ModelId,
    progress::Progress,
};
use tokio::sync::{Semaphore, watch};

/// Blocks of a run. It waits for the gate before its first byte, after its first half, and is done.
const BLOCKS: u32 = 10;

pub struct Gated {
    health: watch::Sender<Health>,
    begun: watch::Sender<usize>,
    stopped: watch::Sender<usize>,
    /// One permit lets one run answer.
    gate: Semaphore,
    /// Blocks done while waiting at the gate.
    pub blocks_before_gate: AtomicUsize,
    /// The next runs fail after their first bytes.
    pub failing: AtomicUsize,
    /// The next runs are refused before they begin.
    pub refusing: AtomicUsize,
    /// The next runs are left to the next backend once the gate lets them go.
    pub passing_on: AtomicUsize,
    /// How many it says are waiting.
    pub waiting: AtomicUsize,
}

/// Counts a run that was dropped before its end.
struct Running<'a>(&'a Gated, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.stopped.send_modify(|n| *n += 1);
        }
    }
}

impl Gated {
    pub fn new() -> Arc<Self> {
        let ready = |name| (ModelId::try_new(name).unwrap(), ModelState::Ready);
        let states = BTreeMap::from(["builtin", "sd1"].map(ready));
        Arc::new(Self {
            health: watch::Sender::new(states),
            begun: watch::Sender::new(0),
            stopped: watch::Sender::new(0),
            gate: Semaphore::new(0),
            blocks_before_gate: AtomicUsize::new(1),
            failing: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            passing_on: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Runs that have begun.
    pub fn runs(&self) -> usize {
        *self.begun.borrow()
    }

    /// Runs that were dropped before their end.
    pub fn stopped(&self) -> usize {
        *self.stopped.borrow()
    }

    /// Lets `runs` runs answer, present or future.
    pub fn open(&self, runs: usize) {
        self.gate.add_permits(runs);
    }

    pub async fn until_runs(&self, runs: usize) {
        until(&self.begun, runs).await;
    }

    pub async fn until_stopped(&self, runs: usize) {
        until(&self.stopped, runs).await;
    }

    async fn answer(&self, compute: Compute, writer: &mut BodyWriter) -> Result<(), Error> {
        if counts_down(&self.refusing) {
            return Err(Error::new(ErrorKind::Overloaded, "told to refuse"));
        }
        let mut running = Running(self, false);
        let done = self.blocks_before_gate.load(Ordering::SeqCst) as u32;
        compute.progress.send_replace(Progress { done, total: BLOCKS });
        self.begun.send_modify(|n| *n += 1);
        self.gate.acquire().await.expect("the gate is never closed").forget();
        if counts_down(&self.passing_on) {
            return Err(Error::new(ErrorKind::Unavailable, "told to pass it on"));
        }
        let (meta, bytes) = made(&compute)?;
        writer.begin(meta)?;
        let half = bytes.len() / 2;
        writer.append(bytes.slice(..half))?;
        if counts_down(&self.failing) {
            return Err(Error::new(ErrorKind::Unavailable, "told to fail midway"));
        }
        writer.append(bytes.slice(half..))?;
        compute.progress.send_replace(Progress { done: BLOCKS, total: BLOCKS });
        running.1 = true;
        Ok(())
    }
}

/// Whether there was one left.
fn counts_down(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

async fn until(counter: &watch::Sender<usize>, wanted: usize) {
    let mut watched = counter.subscribe();
    let reached = watched.wait_for(|&n| n >= wanted);
    let in_time = tokio::time::timeout(super::PATIENCE, reached).await.is_ok_and(|reached| reached.is_ok());
    assert!(in_time, "counted {}, waited for {wanted}", *counter.borrow());
}

/// Bytes that only this job gives, of the predicted shape.
fn made(compute: &Compute) -> Result<(Meta, Bytes), Error> {
    let job = &compute.job;
    let predicted = job.predicted()?;
    let content_type = match &job.work {
        Work::Decode { output, .. } => ContentType::from(*output),
        Work::Encode { dtype, .. } => ContentType::from(Output::Tensor(*dtype)),
    };
    let length = match content_type {
        ContentType::Tensor => predicted.bytes,
        _ => predicted.bytes.min(5 << 20),
    };
    let key = ContentKey::of(job, "");
    let bytes: Vec<u8> = key.as_bytes().iter().copied().cycle().take(length as usize).collect();
    let meta = Meta {
        content_type,
        dtype: predicted.dtype,
        shape: predicted.shape,
        length,
        provenance: Provenance::none("gated"),
    };
    Ok((meta, bytes.into()))
}

impl Backend for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn supports(&self, _job: &latentgate::job::Job) -> Result<(), Error> {
        Ok(())
    }

    fn waiting(&self, _: &latentgate::job::Job) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn run<'a>(&'a self, compute: Compute, writer: &'a mut BodyWriter) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.answer(compute, writer))
    }
}
