//! Requests of one size that wait at the same time share a run, and nobody can tell.

use std::path::Path;

use latentgate::{
    Config,
    backend::local::{devices::Devices, engine::Device},
    config::ModelConfig,
    proto::{DecodeSpec, Dtype, EncodeSpec, Output, Source, TensorSpec, encode_spec, output},
};
use tokio::task::JoinSet;

use crate::support::{Answer, Client, TestApp, config, decode_spec, latents};

/// Rounds after which the first run should have been shared.
const ROUNDS: u32 = 50;

/// A request, which can be made again.
#[derive(Clone)]
enum Asked {
    Decode(DecodeSpec, u32),
    Encode(EncodeSpec, u32),
}

impl Asked {
    async fn by(self, client: Client) -> Answer {
        match self {
            Self::Decode(spec, seed) => {
                let shape = spec.latents.as_ref().unwrap().shape.clone();
                client.decode(spec, latents(shape[2] as usize, shape[3] as usize, seed)).await.unwrap()
            }
            // As many numbers as three channels of 32 x 32 have, and any of them will do.
            Self::Encode(spec, seed) => client.encode(spec, latents(24, 32, seed)).await.unwrap(),
        }
    }
}

fn with_batch(batch: usize) -> Config {
    let mut config = config();
    config.engine.batch = batch;
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/sd1");
    config.models.insert("sd1".to_owned(), ModelConfig { weights: Some(weights), ..ModelConfig::default() });
    config
}

/// Requests of several shapes, forms, tasks and models; no two are equal, whatever the round.
fn mixed(round: u32) -> Vec<Asked> {
    let raw = |dtype: Dtype| output::Kind::Tensor(output::Tensor { dtype: dtype as i32 });
    let forms = [output::Kind::Png(output::Png {}), raw(Dtype::F32), raw(Dtype::Bf16)];
    let decode = |(index, kind)| {
        let spec = decode_spec(8, if index % 4 == 0 { 16 } else { 8 });
        Asked::Decode(DecodeSpec { output: Some(Output { kind: Some(kind) }), ..spec }, 100 * round + index)
    };
    let sample = |index: u32| {
        let tensor = Some(TensorSpec { dtype: Dtype::F32 as i32, shape: vec![1, 3, 32, 32] });
        let spec = EncodeSpec {
            model: "sd1".to_owned(),
            input: Some(encode_spec::Input::Pixels(encode_spec::Pixels { tensor, range: 2 })),
            mode: Some(encode_spec::Mode::Sample(encode_spec::Sample { seed: u64::from(index) })),
            ..EncodeSpec::default()
        };
        // One picture and several seeds: what differs is the noise alone.
        Asked::Encode(spec, 100 * round)
    };
    (0..16).zip(forms.into_iter().cycle()).map(decode).chain((0..6).map(sample)).collect()
}

/// Runs that answered more than one job each, one after the other.
async fn shared(app: &TestApp) -> f64 {
    app.metric("latentgate_engine_jobs_total", &[]).await - app.metric("latentgate_engine_run_seconds_count", &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_answered_as_one_by_one() {
    let (app, alone) = (TestApp::start(with_batch(8)).await, TestApp::start(with_batch(1)).await);
    let (client, other) = (app.client().await, alone.client().await);
    let mut rounds = 0;
    while shared(&app).await < 1.0 {
        rounds += 1;
        assert!(rounds <= ROUNDS, "no run was shared");
        let mut asked = JoinSet::new();
        for (index, request) in mixed(rounds).into_iter().enumerate() {
            let client = client.clone();
            asked.spawn(async move { (index, request.by(client).await) });
        }
        let mut got = asked.join_all().await;
        got.sort_by_key(|(index, _)| *index);
        for ((_, got), request) in got.into_iter().zip(mixed(rounds)) {
            let wanted = request.by(other.clone()).await;
            assert_eq!((got.source(), wanted.source()), (Source::Computed, Source::Computed));
            assert_eq!(got.accepted.content_key, wanted.accepted.content_key);
            assert!(got.bytes() == wanted.bytes(), "{:?}", got.header);
        }
    }
    assert_eq!(shared(&alone).await, 0.0);
    app.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_leave_a_shared_run_hurt_nobody_in_it() {
    let mut config = with_batch(8);
    // Whoever leaves is not kept for, however far the run is.
    config.flight.keep_from = 1.0;
    let (app, alone) = (TestApp::start(config).await, TestApp::start(with_batch(1)).await);
    let (client, other) = (app.client().await, alone.client().await);
    let mut rounds = 0;
    while shared(&app).await < 1.0 || rounds < 3 {
        rounds += 1;
        assert!(rounds <= ROUNDS, "no run was shared");
        let ask = |client: Client, seed| async move { client.decode(decode_spec(8, 8), latents(8, 8, seed)).await };
        let mut staying = JoinSet::new();
        let mut leaving = Vec::new();
        for seed in (0..12).map(|index| 100 * rounds + index) {
            if seed % 3 == 0 {
                leaving.push(tokio::spawn(ask(client.clone(), seed)));
            } else {
                let client = client.clone();
                staying.spawn(async move { (seed, ask(client, seed).await.unwrap()) });
            }
        }
        // When some are computed, others wait, and some of either are given up.
        let first = staying.join_next().await.unwrap();
        leaving.iter().for_each(tokio::task::JoinHandle::abort);
        let mut answers = staying.join_all().await;
        answers.push(first.unwrap());
        for (seed, answer) in answers {
            assert!(answer.bytes() == ask(other.clone(), seed).await.unwrap().bytes(), "{seed}");
        }
    }
    app.until_idle().await;
    app.until("latentgate_backend_queue_depth", &[], 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_devices_answer_as_one() {
    let mut config = with_batch(8);
    config.engine.device = Devices::new([Device::Cpu, Device::Cpu]);
    config.models.insert("builtin".to_owned(), ModelConfig { preload: true, ..ModelConfig::default() });
    let (app, alone) = (TestApp::start(config).await, TestApp::start(with_batch(1)).await);
    while app.admin("/readyz").await.0 != 200 {}
    let (client, other) = (app.client().await, alone.client().await);
    let mut asked = JoinSet::new();
    for (index, request) in mixed(1).into_iter().enumerate() {
        let client = client.clone();
        asked.spawn(async move { (index, request.by(client).await) });
    }
    let mut got = asked.join_all().await;
    got.sort_by_key(|(index, _)| *index);
    for ((_, got), request) in got.into_iter().zip(mixed(1)) {
        let wanted = request.by(other.clone()).await;
        assert_eq!(got.accepted.content_key, wanted.accepted.content_key);
        assert!(got.bytes() == wanted.bytes(), "{:?}", got.header);
    }
    app.until_idle().await;
}
