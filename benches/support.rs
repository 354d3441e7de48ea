//! What several benches stand on: inputs, the demo's picture, a pipeline without sockets.

#![allow(dead_code, reason = "every bench uses another part")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::Criterion;
use latentgate::{
    admission::Gate,
    backend::Backend,
    cache::{
        alias::InputDigest,
        memory::{Config as MemoryConfig, Memory},
    },
    hops::{Hops, Instance},
    job::{Batch, CachePolicy, DecodeSpec, EncodeInput, EncodeMode, EncodeSpec, Limits, Output, ScalingWish, Spec},
    metrics::Metrics,
    model::{BUILTIN, ModelTable},
    picture::{self, PictureLimits},
    pipeline::{Keep, Parts, Pipeline, Policy, Request, Routes},
    tensor::{DType, Shape, Tensor},
};

/// Megabyte buffers from many threads: the program's own allocator, or it is another program that is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// "Lake Sherburne", CC0, 512x512: the demo's picture.
pub(crate) const PICTURE: &[u8] = include_bytes!("../assets/demo.jpg");

/// What the limits of a server are by default, near enough.
pub(crate) const LIMITS: Limits = Limits { max_pixels: 1 << 24, max_batch: 16, max_input_bytes: 256 << 20 };

/// Short measurements: the whole of `cargo bench` is to take a few minutes, and ratios are what counts.
pub(crate) fn quick() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args()
}

/// The picture's pixels: uint8 `[1, 512, 512, 3]`.
pub(crate) fn photograph() -> Tensor {
    let limits = PictureLimits { max_pixels: LIMITS.max_pixels, max_side: 4096 };
    picture::read(&Bytes::from_static(PICTURE), &limits).expect("the demo's picture is one")
}

/// Noise in -1..1, the same for the same seed; `bytes` bytes of f32.
pub(crate) fn noise(bytes: usize, seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0).to_le_bytes()
    };
    (0..bytes / 4).flat_map(next).collect::<Vec<u8>>().into()
}

/// A decode of f32 latents for a picture of `side` x `side` pixels by the builtin model.
pub(crate) fn decode(side: usize, output: Output) -> Spec {
    let shape = Shape::try_new(&[1, 4, side / 8, side / 8]).expect("a small shape");
    let scaling = ScalingWish::ModelDefault;
    let (model, batch) = (BUILTIN.to_owned(), Batch::Whole);
    Spec::Decode(DecodeSpec { model, dtype: DType::F32, shape, picture: None, scaling, output, batch })
}

/// An encode of a picture file by the builtin model.
pub(crate) fn encode(file: &Bytes) -> Spec {
    Spec::Encode(EncodeSpec {
        model: BUILTIN.to_owned(),
        input: EncodeInput::Image { length: file.len() as u64 },
        mode: EncodeMode::Mean,
        scaling: ScalingWish::ModelDefault,
        dtype: DType::F16,
    })
}

/// A pipeline with one backend and no sockets.
pub(crate) fn pipeline(backend: Arc<dyn Backend>) -> Pipeline {
    let (metrics, models) = (Metrics::new(), ModelTable::known());
    let by_model = models.iter().map(|spec| spec.id.clone()).zip(std::iter::repeat(vec![backend])).collect();
    Pipeline::new(Parts {
        tiers: Vec::new(),
        keep: Keep::Requested,
        namespace: String::new(),
        models,
        limits: LIMITS,
        gate: Gate::new(1024, 1 << 30, metrics.clone()),
        memory: Memory::new(&MemoryConfig::default(), metrics.clone()),
        keep_from: 0.5,
        flight_deadline: Duration::from_mins(1),
        routes: Routes::new(Policy { by_model, spill_at: 4 }),
        metrics,
        instance: Instance::new(1),
    })
}

/// What the front hands over when `data` has arrived whole, with the digest that it makes meanwhile.
pub(crate) fn request(pipeline: &Pipeline, spec: Spec, data: Bytes, policy: CachePolicy) -> Request {
    let checked = pipeline.check(spec).expect("the spec holds");
    let permit = pipeline.admit().expect("there is room");
    let held = pipeline.reserve(data.len() as u64).expect("there is memory");
    let digest: InputDigest = *blake3::hash(&data).as_bytes();
    Request { checked, data, digest, policy, permit, held, hops: Hops::default() }
}
