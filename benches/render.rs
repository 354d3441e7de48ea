//! What a 512x512 photograph costs in each form it may be asked for: it is paid once a key, on the blocking pool. The
//! sizes of the files are printed beside, for a faster encoder may just be a worse one.

mod support;

use std::hint::black_box;

use criterion::Throughput;
use half::f16;
use latentgate::{
    render,
    tensor::{DType, Shape, Tensor},
};

fn main() {
    let mut criterion = support::quick();
    let pixels = support::photograph();
    let decoded = as_decoded(&pixels);
    let mut group = criterion.benchmark_group("render 512x512");
    group.sample_size(40).throughput(Throughput::Elements(512 * 512));
    group.bench_function("uint8", |bencher| bencher.iter(|| render::uint8(black_box(&decoded))));
    group.bench_function("png", |bencher| bencher.iter(|| render::png(black_box(&pixels))));
    group.bench_function("jpeg", |bencher| bencher.iter(|| render::jpeg(black_box(&pixels), 75)));
    group.bench_function("webp", |bencher| bencher.iter(|| render::webp(black_box(&pixels))));
    group.finish();
    let [png, jpeg, webp] = [render::png(&pixels), render::jpeg(&pixels, 75), render::webp(&pixels)]
        .map(|file| file.expect("the picture renders").len());
    tell(&format!("bytes: uint8 {}, png {png}, jpeg {jpeg}, webp {webp}", pixels.data().len()));
    criterion.final_summary();
}

/// The picture as a decoder would have put it out: f16 `[1, 3, h, w]` in -1..1.
fn as_decoded(pixels: &Tensor) -> Tensor {
    let &[n, h, w, channels] = pixels.shape().dims() else { unreachable!("pictures have four dimensions") };
    let plane = |channel| pixels.data().iter().skip(channel).step_by(channels);
    let values = (0..channels).flat_map(plane).map(|&byte| f16::from_f32(f32::from(byte) / 127.5 - 1.0));
    let data = values.flat_map(f16::to_le_bytes).collect::<Vec<u8>>();
    let shape = Shape::try_new(&[n, channels, h, w]).expect("as many elements");
    Tensor::try_new(DType::F16, shape, data.into()).expect("two bytes an element")
}

#[expect(clippy::print_stdout, reason = "a bench talks to people")]
fn tell(line: &str) {
    println!("{line}");
}
