//! The kernels of the CPU path, at sizes of SD v1's autoencoder for 512x512 pixels, with all cores. `Gelem/s` are
//! multiplications of the sums as they are defined: Winograd needs fewer, so it may be above what the processor can do.

mod support;

use criterion::Throughput;
use latentgate::backend::local::engine::kernels::{Kernel, Kind};

/// Name, channels in and out, side of the input.
const CASES: [(&str, Kind, [usize; 2], usize); 10] = [
    ("3x3, 128 at 512x512", Kind::Same, [128, 128], 512),
    ("3x3, 512 at 64x64", Kind::Same, [512, 512], 64),
    ("norm, SiLU, 3x3, sum, 128 at 512x512", Kind::Residual, [128, 128], 512),
    ("upsample, 3x3, 256 to 512x512", Kind::Upsampling, [256, 256], 256),
    ("3x3 that halves, 128 at 512x512", Kind::Halving, [128, 128], 512),
    ("1x1, 256 to 128 at 512x512", Kind::Pointwise, [256, 128], 512),
    ("3x3, 4 to 512 at 64x64", Kind::Same, [4, 512], 64),
    ("3x3, 128 to 3 at 512x512", Kind::Same, [128, 3], 512),
    ("moments, 128 at 512x512", Kind::Moments, [128, 128], 512),
    ("attention, 512 at 64x64", Kind::Attention, [512, 512], 64),
];

fn main() {
    let mut criterion = support::quick();
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(10);
    for (name, kind, channels, side) in CASES {
        let kernel = Kernel::new(kind, channels, side);
        group.throughput(Throughput::Elements(kernel.multiplications()));
        group.bench_function(name, |bencher| bencher.iter(|| kernel.run()));
    }
    group.finish();
    criterion.final_summary();
}
