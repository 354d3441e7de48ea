//! What naming a request costs: canonical form and content key. Every request pays it, hits included, and inputs of up to
//! 64 KiB pay it on an async thread.

mod support;

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use half::f16;
use latentgate::{
    job::{Batch, DecodeSpec, Job, Output, ScalingWish, Spec},
    key::ContentKey,
    model::ModelTable,
    tensor::{DType, Shape},
};

fn main() {
    let mut criterion = support::quick();
    keys(&mut criterion);
    canonical(&mut criterion);
    criterion.final_summary();
}

fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("key");
    for (name, spec) in [
        ("4x64x64", latents("sd-v1", DType::F32, &[1, 4, 64, 64])),
        ("4x128x128", latents("sd-xl", DType::F32, &[1, 4, 128, 128])),
        ("packed 16x128x128", packed(DType::F32)),
    ] {
        let job = job(&spec);
        group.throughput(Throughput::Bytes(job.input().data().len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| ContentKey::of(black_box(&job), "")));
    }
    group.finish();
}

fn canonical(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("canonicalise");
    for (name, spec) in [
        ("f32 4x64x64", latents("sd-v1", DType::F32, &[1, 4, 64, 64])),
        ("f16 4x64x64", latents("sd-v1", DType::F16, &[1, 4, 64, 64])),
        ("f16 4x128x128", latents("sd-xl", DType::F16, &[1, 4, 128, 128])),
        ("f16 packed 16x128x128", packed(DType::F16)),
        ("f32 packed 16x128x128", packed(DType::F32)),
    ] {
        let checked = Spec::Decode(spec.clone()).check(&ModelTable::known(), &support::LIMITS).expect("the spec holds");
        let data = data(&spec);
        group.throughput(Throughput::Elements(spec.shape.elements()));
        group.bench_function(name, |bencher| bencher.iter(|| checked.canonicalise(black_box(data.clone()))));
    }
    group.finish();
}

fn latents(model: &str, dtype: DType, dims: &[usize]) -> DecodeSpec {
    let shape = Shape::try_new(dims).expect("a small shape");
    let (scaling, output, batch) = (ScalingWish::ModelDefault, Output::Png, Batch::Whole);
    DecodeSpec { model: model.to_owned(), dtype, shape, picture: None, scaling, output, batch }
}

/// FLUX's tokens for 1024x1024 pixels.
fn packed(dtype: DType) -> DecodeSpec {
    DecodeSpec { picture: Some((1024, 1024)), ..latents("flux", dtype, &[1, 64 * 64, 64]) }
}

fn data(spec: &DecodeSpec) -> Bytes {
    let wide = support::noise(spec.shape.elements() as usize * 4, 1);
    if spec.dtype == DType::F32 {
        return wide;
    }
    let (numbers, _) = wide.as_chunks::<4>();
    numbers.iter().flat_map(|&number| f16::from_f32(f32::from_le_bytes(number)).to_le_bytes()).collect()
}

fn job(spec: &DecodeSpec) -> Job {
    let checked = Spec::Decode(spec.clone()).check(&ModelTable::known(), &support::LIMITS).expect("the spec holds");
    checked.canonicalise(data(spec)).expect("the latents are finite")
}
