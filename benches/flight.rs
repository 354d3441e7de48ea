//! What sharing one computation costs: N equal requests attach to one run, then all read its answer to the end.
//!
//! The backend waits until everybody is attached, so that exactly one leads, the others wait, and nobody is a memory hit.
//! Every round has an input of its own. What is measured is the pipeline: canonical form, key, look-or-join, 48 KiB of
//! body a reader; no sockets and no computing.

mod support;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use criterion::Throughput;
use futures_util::future::join_all;
use latentgate::{
    backend::{Backend, BoxFuture, Compute, Health, ModelState},
    body::BodyWriter,
    error::Error,
    job::{CachePolicy, Output},
    meta::{ContentType, Meta, Provenance},
    model::{BUILTIN, ModelId},
    pipeline::{Pipeline, Reply},
};
use tokio::sync::{Semaphore, watch};

/// Pixels a side: 4 KiB of latents, 48 KiB of uint8 pixels.
const SIDE: usize = 128;

/// Answers the same bytes to everything, one run a permit.
struct Gated {
    health: watch::Sender<Health>,
    gate: Semaphore,
    answer: Bytes,
}

fn main() {
    let mut criterion = support::quick();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (gated, mut round) = (Gated::new(), 0);
    let pipeline = support::pipeline(gated.clone());
    let mut group = criterion.benchmark_group("flight");
    group.sample_size(30);
    for waiters in [1, 16, 256] {
        group.throughput(Throughput::Elements(waiters));
        group.bench_function(format!("{waiters} waiters"), |bencher| {
            bencher.to_async(&runtime).iter(|| {
                round += 1;
                share(&pipeline, &gated, waiters, round)
            });
        });
    }
    group.finish();
    criterion.final_summary();
}

/// One round.
async fn share(pipeline: &Pipeline, gated: &Gated, waiters: u64, round: u32) {
    let data = support::noise(4 * (SIDE / 8) * (SIDE / 8) * 4, round);
    let mut replies = Vec::with_capacity(waiters as usize);
    for _ in 0..waiters {
        let request =
            support::request(pipeline, support::decode(SIDE, Output::Uint8), data.clone(), CachePolicy::NoStore);
        replies.push(pipeline.serve(request).await.expect("the request is served"));
    }
    gated.gate.add_permits(1);
    join_all(replies.into_iter().map(read)).await;
}

async fn read(mut reply: Reply) {
    reply.reader.meta().await.expect("an answer");
    while let Some(slice) = reply.reader.next().await.expect("an answer") {
        std::hint::black_box(slice);
    }
    reply.reader.seal().await.expect("a whole answer");
}

impl Gated {
    fn new() -> Arc<Self> {
        let id = ModelId::try_new(BUILTIN).expect("the constant is a valid name");
        let health = watch::Sender::new(BTreeMap::from([(id, ModelState::Ready)]));
        Arc::new(Self { health, gate: Semaphore::new(0), answer: vec![128; SIDE * SIDE * 3].into() })
    }
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
        0
    }

    fn run<'a>(&'a self, compute: Compute, writer: &'a mut BodyWriter) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.gate.acquire().await.expect("the gate is never closed").forget();
            let predicted = compute.job.predicted()?;
            writer.begin(Meta {
                content_type: ContentType::Tensor,
                dtype: predicted.dtype,
                shape: predicted.shape,
                length: predicted.bytes,
                provenance: Provenance::none("gated"),
            })?;
            writer.append(self.answer.clone())
        })
    }
}
