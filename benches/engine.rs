//! What a miss costs: the builtin model on the CPU, f32, with all cores, without queue and rendering. Where
//! `LATENTGATE_BENCH_MODELS` names a folder of diffusers directories (`tools/bench_engine/make_models.py` writes one of full
//! size), each of its models follows.

mod support;

use std::{env, fs, hint::black_box, path::Path};

use criterion::{Criterion, Throughput};
use latentgate::{
    backend::local::engine::{Autoencoder, Cancelled, Checkpoint, Device, EncodeMode, Observer, Precision, Scaling},
    tensor::{DType, Shape, Tensor},
};

/// Lets every run go on.
struct Unobserved;

impl Observer for Unobserved {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        Ok(())
    }
}

fn main() {
    let mut criterion = support::quick();
    let checkpoint = Checkpoint {
        config: include_str!("../assets/builtin/config.json"),
        weights: include_bytes!("../assets/builtin/diffusion_pytorch_model.safetensors"),
    };
    measure(&mut criterion, "builtin", &checkpoint);
    #[expect(clippy::disallowed_methods, reason = "no configuration: criterion reads the command line")]
    let models = env::var("LATENTGATE_BENCH_MODELS").ok();
    for folder in models.iter().flat_map(|models| fs::read_dir(models).expect("the folder of models can be read")) {
        let folder = folder.expect("the folder of models can be read").path();
        let read = |file: &str| fs::read(Path::new(&folder).join(file)).expect("a model is a diffusers directory");
        let config = String::from_utf8(read("config.json")).expect("config.json is text");
        let weights = read("diffusion_pytorch_model.safetensors");
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        measure(&mut criterion, &name, &Checkpoint { config: &config, weights: &weights });
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, name: &str, checkpoint: &Checkpoint<'_>) {
    let model = Autoencoder::load(checkpoint, &Device::Cpu, Precision::F32).expect("the model loads");
    let facts = model.facts();
    let mut group = criterion.benchmark_group(format!("engine, {name}"));
    group.sample_size(10);
    for side in [256, 512] {
        let latents = latents(facts.latent_channels, side / facts.spatial_scale);
        group.throughput(Throughput::Elements((side * side) as u64));
        group.bench_function(format!("decode {side}x{side}"), |bencher| {
            bencher.iter(|| model.decode(black_box(&latents), Scaling::NONE, DType::F16, &mut Unobserved));
        });
    }
    let pixels = support::photograph();
    group.bench_function("encode 512x512", |bencher| {
        let how = (EncodeMode::Mean, Scaling::NONE);
        bencher.iter(|| model.encode(black_box(&pixels), how, DType::F16, &mut Unobserved));
    });
    group.finish();
}

fn latents(channels: usize, side: usize) -> Tensor {
    let shape = Shape::try_new(&[1, channels, side, side]).expect("a small shape");
    let data = support::noise(shape.bytes(DType::F32) as usize, 1);
    Tensor::try_new(DType::F32, shape, data).expect("four bytes an element")
}
