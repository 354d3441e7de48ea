//! The upstream backend by itself, before an origin: jobs in, bodies out, without app and cache.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use latentgate::{
    backend::{
        Backend as _, Compute, ModelState, Others,
        upstream::{BackoffConfig, Config, Upstream},
    },
    body::{Body, BodyReader, BodyWriter},
    error::Error,
    hops::{Hops, Instance},
    job::{Batch, DecodeSpec, EncodeInput, EncodeMode, EncodeSpec, Job, Limits, Output, ScalingWish, Spec},
    meta::Meta,
    metrics::Metrics,
    model::{Endpoints, ModelSpec, ModelTable},
    picture::Range,
    progress::Progress,
    tensor::{DType, Shape, Tensor},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;

pub struct Rig {
    pub backend: Upstream,
    pub model: Arc<ModelSpec>,
    pub metrics: Metrics,
    table: ModelTable,
}

/// Times that a test can wait for, and no retry unless a test wants one.
pub fn quick() -> Config {
    Config {
        retries: 0,
        backoff: BackoffConfig { base: Duration::from_millis(1), cap: Duration::from_millis(5) },
        ..Config::default()
    }
}

/// The origin's URLs, of one or more origins.
pub fn decode_at(urls: impl IntoIterator<Item = String>) -> Endpoints {
    Endpoints { decode: urls.into_iter().collect(), encode: Vec::new() }
}

pub fn encode_at(urls: impl IntoIterator<Item = String>) -> Endpoints {
    Endpoints { decode: Vec::new(), encode: urls.into_iter().collect() }
}

/// Whole answer.
pub type Whole = Result<(Meta, Bytes), Error>;

impl Rig {
    /// The backend for a known model with these endpoints.
    pub fn new(model: &str, endpoints: Endpoints, config: &Config) -> Self {
        let mut table = ModelTable::known();
        let known = table.get(model).expect("a known model");
        table.insert(ModelSpec { endpoints, ..(**known).clone() });
        let model = table.get(model).expect("just inserted").clone();
        let metrics = Metrics::new();
        let backend = Upstream::start(config, [&model], Instance::new(1), metrics.clone()).expect("the backend starts");
        Self { backend, model, metrics, table }
    }

    pub fn job(&self, spec: Spec, data: Bytes) -> Job {
        let limits = Limits { max_pixels: 1 << 24, max_batch: 8, max_input_bytes: 1 << 24 };
        spec.check(&self.table, &limits).expect("a right spec").canonicalise(data).expect("right data")
    }

    /// A decode of f32 latents with the model's own factors.
    pub fn decode(&self, latents: &Tensor, output: Output) -> Job {
        self.job(decode_spec(&self.model, latents, output), latents.data().clone())
    }

    /// An encode of a tensor `[n, 3, h, w]`, with the model's own factors.
    pub fn encode(&self, pixels: &Tensor, mode: EncodeMode, dtype: DType) -> Job {
        let (range, shape) = (Range::Signed, pixels.shape().clone());
        let spec = EncodeSpec {
            model: self.model.id.to_string(),
            input: EncodeInput::Pixels { dtype: pixels.dtype(), shape, range },
            mode,
            scaling: ScalingWish::ModelDefault,
            dtype,
        };
        self.job(Spec::Encode(spec), pixels.data().clone())
    }

    /// Runs a job to its end; nobody is asked after this backend.
    pub async fn run(&self, job: Job) -> Whole {
        self.run_with(job, Others::None).await
    }

    pub async fn run_with(&self, job: Job, others: Others) -> Whole {
        let (mut writer, body) = Body::channel();
        self.fill(job, others, &mut writer).await?;
        let seal = writer.finish(|_, _, _| ())?;
        let (meta, bytes) = read(body.reader()).await?;
        assert_eq!((seal.length, seal.digest), (meta.length, *blake3::hash(&bytes).as_bytes()));
        Ok((meta, bytes))
    }

    /// Runs a job into a body that somebody reads meanwhile.
    pub async fn fill(&self, job: Job, others: Others, writer: &mut BodyWriter) -> Result<(), Error> {
        let progress = watch::Sender::new(Progress::default());
        let compute =
            Compute { job: Arc::new(job), progress, cancel: CancellationToken::new(), others, hops: Hops::default() };
        tokio::time::timeout(PATIENCE, self.backend.run(compute, writer)).await.expect("an end in time")
    }

    pub fn state(&self) -> ModelState {
        self.backend.health().borrow()[&self.model.id].clone()
    }

    /// The value of the one sample of a metric that has all of these labels.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.render();
        let ours = |line: &&str| {
            let is_name = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            is_name && labels.iter().all(|label| line.contains(label))
        };
        text.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Everything of a whole body.
pub async fn read(mut reader: BodyReader) -> Whole {
    let meta = reader.meta().await?;
    let mut bytes = Vec::new();
    while let Some(slice) = reader.next().await? {
        bytes.extend_from_slice(&slice);
    }
    Ok((meta, bytes.into()))
}

pub fn decode_spec(model: &ModelSpec, latents: &Tensor, output: Output) -> Spec {
    Spec::Decode(DecodeSpec {
        model: model.id.to_string(),
        dtype: latents.dtype(),
        shape: latents.shape().clone(),
        picture: None,
        scaling: ScalingWish::ModelDefault,
        output,
        batch: Batch::Whole,
    })
}

/// f32 numbers that no 16-bit type holds.
pub fn floats(dims: &[usize], seed: usize) -> Tensor {
    let count: usize = dims.iter().product();
    let value = |i: usize| ((i * 2_654_435_761 + seed * 97) % 10_007) as f32 / 5_000.0 - 1.0;
    let data: Vec<u8> = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), data.into()).unwrap()
}
