//! What a miss costs: the builtin model on the CPU, f32, with all cores, without queue and rendering.

mod support;

use std::hint::black_box;

use criterion::Throughput;
use latentgate::{
    backend::local::engine::{Autoencoder, Cancelled, Checkpoint, Device, EncodeMode, Observer, Precision, Scaling},
    tensor::{DType, Shape, Tensor},
};

/// Of the builtin model: its channels, and pixels to a latent along each side.
const CHANNELS: usize = 4;
const SCALE: usize = 8;

/// Lets every run go on.
struct Unobserved;

impl Observer for Unobserved {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        Ok(())
    }
}

fn main() {
    let checkpoint = Checkpoint {
        config: include_str!("../assets/builtin/config.json"),
        weights: include_bytes!("../assets/builtin/diffusion_pytorch_model.safetensors"),
    };
    let model = Autoencoder::load(&checkpoint, &Device::Cpu, Precision::F32).expect("the builtin model loads");
    let mut criterion = support::quick();
    let mut group = criterion.benchmark_group("engine, builtin");
    group.sample_size(10);
    for side in [256, 512] {
        let latents = latents(side);
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
    criterion.final_summary();
}

fn latents(side: usize) -> Tensor {
    let shape = Shape::try_new(&[1, CHANNELS, side / SCALE, side / SCALE]).expect("a small shape");
    let data = support::noise(shape.bytes(DType::F32) as usize, 1);
    Tensor::try_new(DType::F32, shape, data).expect("four bytes an element")
}
