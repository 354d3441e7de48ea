//! The CUDA path without a GPU: its kernels, compiled for the CPU and called through the path's own code, against plain sums; and
//! whole networks on them against the CPU's kernels. What this cannot show is what NVIDIA's libraries do.
#![cfg(not(feature = "cudnn"))]

use super::super::tests::model;
use super::super::{
    Autoencoder, Cancelled, EncodeMode, Latents, Observer, Pictures, Scaling, Task, conv::Geometry, gaussian,
    map::Activation, place::Accelerator, values,
};
use super::machine::{Traits, numbers};
use super::*;
use crate::{job::Output, render};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::BF16];
const PLAIN: Traits = Traits { is_reversed: false, is_fused: true };
const RAW: Scaling = Scaling { factor: 1.0, shift: 0.0 };

struct Patient;

impl Observer for Patient {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        Ok(())
    }
}

/// What rounding once to the precision may change, relative to the largest number.
fn step(precision: Precision) -> f32 {
    match precision {
        Precision::F32 => 1e-6,
        Precision::F16 => 1.0 / 2048.0,
        Precision::BF16 => 1.0 / 256.0,
    }
}

fn noise(seed: u64, dims: [usize; 4], precision: Precision) -> Vec<f32> {
    let values = gaussian::normals(seed, dims.iter().product());
    numbers(&Buffer(rounded(&values, precision)), 0, values.len(), precision)
}

fn upload(machine: &Arc<Machine>, planes: &[f32], dims: [usize; 4], precision: Precision) -> CudaMap {
    CudaMap::from_planes(machine, planes, dims, precision).unwrap()
}

/// Numbers of a map, whose channels that are none must be zeros.
fn planes(map: &CudaMap) -> Vec<f32> {
    let all = numbers(&map.data, 0, map.n * map.pixels() * stored(map.c), map.precision);
    for pixel in all.chunks_exact(stored(map.c)) {
        assert!(pixel[map.c..].iter().all(|v| v.to_bits() == 0), "{:?}", &pixel[map.c..]);
    }
    map.to_planes().unwrap().0
}

/// Within so much of the largest number.
fn assert_near(got: &[f32], want: &[f32], within: f32, what: &str) {
    let largest = want.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    assert_within(got, want, within * largest, what);
}

fn assert_within(got: &[f32], want: &[f32], within: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= within, "{what}: {got} is not {want} at {at}");
    }
}

fn activated(v: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => v,
        Activation::Relu => v.max(0.0),
        Activation::Silu => v / (1.0 + (-v).exp()),
    }
}

#[test]
fn norms_are_those_of_plain_sums() {
    let Some(machine) = Machine::emulated(PLAIN, "norms") else { return };
    let reversed = Machine::emulated(Traits { is_reversed: true, ..PLAIN }, "norms").unwrap();
    // n, c, h, w, groups: widths below an octet, across octets, of one channel, the most channels; one pixel, more chunks than one.
    let shapes = [
        ([2, 32, 9, 7], 8),
        ([1, 24, 5, 3], 8),
        ([3, 20, 1, 1], 5),
        ([1, 12, 33, 2], 12),
        ([1, 2048, 3, 2], 32),
        ([2, 512, 17, 9], 32),
        ([1, 8, 190, 101], 2),
    ];
    for (dims, groups) in shapes {
        let [n, c, h, w] = dims;
        let (scale, shift) = (gaussian::normals(3, c), gaussian::normals(4, c));
        for (precision, activation) in
            PRECISIONS.into_iter().zip([Activation::Silu, Activation::None, Activation::Relu])
        {
            // Far from zero, where sums of squares would cancel.
            let x: Vec<f32> = noise(1, dims, precision).iter().map(|v| v + 40.0).collect();
            let x = numbers(&Buffer(rounded(&x, precision)), 0, x.len(), precision);
            let made = [&machine, &reversed].map(|machine| {
                let norm = CudaNorm::load(machine, (groups, 1e-6), &scale, &shift).unwrap();
                planes(&norm.apply(&upload(machine, &x, dims, precision), activation).unwrap())
            });
            assert_eq!(made[0], made[1], "{dims:?}: the order of threads shows");
            let len = c / groups * h * w;
            let mut want = Vec::new();
            for (group, values) in x.chunks_exact(len).enumerate() {
                let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
                let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len as f64;
                for (at, &v) in values.iter().enumerate() {
                    let channel = group % groups * (c / groups) + at / (h * w);
                    let normed = (f64::from(v) - mean) / (variance + 1e-6).sqrt();
                    let v = normed * f64::from(scale[channel]) + f64::from(shift[channel]);
                    want.push(activated(v, activation) as f32);
                }
            }
            assert_eq!(want.len(), n * c * h * w);
            // v * scale + shift cancels 40 in f32.
            assert_near(&made[0], &want, step(precision) + 2e-5, &format!("{dims:?} {precision:?}"));
        }
    }
}

#[test]
fn a_norm_of_too_many_channels_is_refused() {
    let Some(machine) = Machine::emulated(PLAIN, "a norm of too many channels") else { return };
    let many = vec![1.0; 2056];
    let refused = CudaNorm::load(&machine, (8, 1e-6), &many, &many).err().unwrap();
    assert_eq!(refused.to_string(), "not supported: a norm of 2056 channels on this device, 2048 are the most");
}

/// Plain sums of a convolution over `[n, c, h, w]`, in f64.
fn convolved(x: &[f32], [n, c, h, w]: [usize; 4], weight: &[f32], geometry: Geometry) -> (Vec<f64>, [usize; 4]) {
    let Geometry { outputs, kernel, stride, before, after, upsample, .. } = geometry;
    let extent = |side: usize| (side * upsample + before + after - kernel) / stride + 1;
    let (oh, ow) = (extent(h), extent(w));
    let mut y = Vec::new();
    for (image, output) in (0..n).flat_map(|image| (0..outputs).map(move |output| (image, output))) {
        for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
            let mut sum = 0.0;
            for (input, ky, kx) in (0..c).flat_map(|i| (0..kernel * kernel).map(move |k| (i, k / kernel, k % kernel))) {
                let at = |o: usize, k: usize, side: usize| {
                    (o * stride + k).checked_sub(before).map(|at| at / upsample).filter(|&at| at < side)
                };
                if let (Some(iy), Some(ix)) = (at(oy, ky, h), at(ox, kx, w)) {
                    let v = x[((image * c + input) * h + iy) * w + ix];
                    sum += f64::from(v) * f64::from(weight[((output * c + input) * kernel + ky) * kernel + kx]);
                }
            }
            y.push(sum);
        }
    }
    (y, [n, outputs, oh, ow])
}

#[test]
fn convolutions_are_laid_out_spread_and_finished_as_plain_sums_say() {
    let geometries = [
        (Geometry::same(5, 9), [2, 5, 6, 7]),
        (Geometry::pointwise(3, 17), [1, 3, 4, 5]),
        (Geometry::halving(8), [1, 8, 7, 10]),
        (Geometry::halving_after(6), [2, 6, 8, 10]),
        (Geometry::upsampling(4, 2), [1, 4, 5, 3]),
        (Geometry::upsampling(9, 3), [2, 9, 2, 4]),
        // More octets than a block has threads.
        (Geometry::halving_after(2060), [1, 2060, 2, 2]),
    ];
    for is_fused in [true, false] {
        let Some(machine) = Machine::emulated(Traits { is_fused, ..PLAIN }, "convolutions") else { return };
        for (count, (geometry, dims)) in geometries.into_iter().enumerate() {
            let precision = PRECISIONS[count % 3];
            // The large one has too many weights for the sums above.
            let geometry = if geometry.inputs > 1000 { Geometry { outputs: 3, ..geometry } } else { geometry };
            let x = noise(1, dims, precision);
            let Geometry { inputs, outputs, kernel, .. } = geometry;
            let weight = noise(2, [outputs, inputs, kernel, kernel], precision);
            let bias = noise(3, [1, outputs, 1, 1], precision);
            let (sums, out) = convolved(&x, dims, &weight, geometry);
            let onto = noise(4, out, precision);
            for (activation, has_bias, is_onto) in
                [(Activation::Relu, true, true), (Activation::None, false, true), (Activation::Silu, true, false)]
            {
                let given = has_bias.then_some(&bias[..]);
                let conv = CudaConv::load(&machine, (geometry, precision), &weight, given).unwrap();
                let summand = is_onto.then(|| upload(&machine, &onto, out, precision));
                let got = conv.run(&upload(&machine, &x, dims, precision), summand, activation).unwrap();
                assert_eq!([got.n, got.c, got.h, got.w], out);
                let area = out[2] * out[3];
                let want = sums.iter().zip(&onto).enumerate().map(|(at, (sum, onto))| {
                    let bias = if has_bias { bias[at / area % outputs] } else { 0.0 };
                    let onto = if is_onto { *onto } else { 0.0 };
                    activated(sum + f64::from(bias) + f64::from(onto), activation) as f32
                });
                let want: Vec<f32> = want.collect();
                let what = format!("{geometry:?} {precision:?} {activation:?} fused {is_fused}");
                // Rounded twice where cuDNN does not do it all. Sums are as large as the root of what they are of, or a few times that.
                let terms = (inputs * kernel * kernel) as f32;
                assert_within(&planes(&got), &want, 4.0 * terms.sqrt() * (2.0 * step(precision) + 1e-6), &what);
            }
        }
    }
}

#[test]
fn attention_is_the_softmax_of_plain_sums() {
    let Some(machine) = Machine::emulated(PLAIN, "attention") else { return };
    for (precision, dims) in PRECISIONS.into_iter().zip([[2, 20, 7, 5], [1, 8, 1, 1], [1, 16, 19, 17]]) {
        let [n, c, h, w] = dims;
        let [q, k, v] = [1, 2, 3].map(|seed| noise(seed, dims, precision));
        let maps = [&q, &k, &v].map(|x| upload(&machine, x, dims, precision));
        let seen = planes(&attend(&maps[0], &maps[1], &maps[2]).unwrap());
        let (pixels, mut want) = (h * w, vec![0.0f32; n * c * h * w]);
        for (image, query) in (0..n).flat_map(|image| (0..pixels).map(move |query| (image, query))) {
            let of = |x: &[f32], channel: usize, pixel: usize| f64::from(x[(image * c + channel) * pixels + pixel]);
            let scores = (0..pixels).map(|key| (0..c).map(|i| of(&q, i, query) * of(&k, i, key)).sum::<f64>());
            let weights: Vec<f64> = scores.map(|score| (score / (c as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..c {
                let mix: f64 = weights.iter().enumerate().map(|(key, weight)| weight * of(&v, i, key)).sum();
                want[(image * c + i) * pixels + query] = (mix / sum) as f32;
            }
        }
        assert_near(&seen, &want, 2.0 * step(precision) + 1e-6, &format!("{dims:?} {precision:?}"));
    }
}

#[test]
fn every_half_is_read_written_and_shown_as_on_the_cpu() {
    let Some(machine) = Machine::emulated(PLAIN, "conversions") else { return };
    // Every f16 three times over, but NaN and infinity; then with them.
    let all: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
    let finite: Vec<f32> = all.iter().map(|v| if v.is_finite() { *v } else { 0.25 }).collect();
    for range in [Range::Symmetric, Range::Unit] {
        for (precision, values) in PRECISIONS.into_iter().flat_map(|p| [(p, &all), (p, &finite)]) {
            let pictures: Vec<f32> = values.iter().chain(values.iter().rev()).chain(values.iter()).copied().collect();
            let map = upload(&machine, &pictures, [1, 3, 256, 256], precision);
            let floats = map.to_pictures(range, DType::F16).unwrap();
            let kept = numbers(&Buffer(rounded(&pictures, precision)), 0, pictures.len(), precision);
            let shown = kept.iter().map(|&v| if range == Range::Unit { v * 2.0 - 1.0 } else { v });
            let shown: Vec<f32> = shown.collect();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let want = values::from_f32(&shown, [1, 3, 256, 256], dtype).unwrap();
                let got = map.to_pictures(range, dtype).unwrap();
                let same = values::to_f32(&got).into_iter().zip(values::to_f32(&want));
                assert!(
                    same.into_iter().all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())),
                    "{dtype}"
                );
            }
            let bytes = map.to_pictures(range, DType::U8).unwrap();
            if crate::float::is_finite(&floats) {
                assert_eq!(bytes, render::uint8(&floats).unwrap(), "{precision:?} {range:?}");
            } else {
                assert_eq!(bytes.dtype(), DType::F16);
            }
        }
    }
}

#[test]
fn numbers_of_all_sizes_are_rounded_as_on_the_cpu() {
    let Some(machine) = Machine::emulated(PLAIN, "rounding") else { return };
    let bits = gaussian::normals(5, 1 << 16).into_iter().enumerate();
    // All exponents, and fractions next to what is halfway.
    let values = bits.map(|(at, v)| {
        let near = [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001][at % 8];
        f32::from_bits((v.to_bits() & 0x007e_0000) | (at as u32 & 0x1ff) << 23 | near)
    });
    let values: Vec<f32> = values.filter(|v| !v.is_nan()).collect();
    let dims = [1, 1, 1, values.len()];
    for precision in PRECISIONS {
        let got = upload(&machine, &values, dims, precision);
        let want = numbers(&Buffer(rounded(&values, precision)), 0, values.len(), precision);
        for (got, want) in planes(&got).iter().zip(&want) {
            assert_eq!(got.to_bits(), want.to_bits(), "{precision:?}");
        }
    }
}

fn tensor(values: &[f32], dims: &[usize]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), Bytes::from(data)).unwrap()
}

fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (values::to_f32(got), values::to_f32(want));
    let apart: f64 = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (apart / want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

fn on(machine: &Arc<Machine>, name: &str) -> Autoencoder {
    model(name, Some(Accelerator::Cuda(machine.clone())))
}

#[test]
fn whole_networks_give_what_the_cpu_gives() {
    let traits = [PLAIN, Traits { is_reversed: true, is_fused: false }];
    for name in ["sd1", "flux", "taesd", "taef2"] {
        let ours = model(name, None);
        let channels = ours.facts().latent_channels;
        let latents = tensor(&gaussian::normals(1, 2 * channels * 15), &[2, channels, 5, 3]);
        let pictures = tensor(&gaussian::normals(2, 3 * 40 * 24), &[1, 3, 40, 24]);
        let mode = (EncodeMode::Sample { seed: 1 }, RAW);
        let decoded = ours.decode(&latents, RAW, DType::F32, &mut Patient).unwrap();
        let encoded = ours.encode(&pictures, mode, DType::F32, &mut Patient).unwrap();
        for traits in traits {
            let Some(machine) = Machine::emulated(traits, "whole networks") else { return };
            let gpu = on(&machine, name);
            let apart = distance(&gpu.decode(&latents, RAW, DType::F32, &mut Patient).unwrap(), &decoded);
            assert!(apart < 1e-5, "{name}: decode {apart:.1e}");
            let apart = distance(&gpu.encode(&pictures, mode, DType::F32, &mut Patient).unwrap(), &encoded);
            assert!(apart < 1e-5, "{name}: encode {apart:.1e}");
        }
    }
}

#[test]
fn bytes_of_pictures_are_those_that_rendering_makes_and_bytes_encode_like_floats() {
    let Some(machine) = Machine::emulated(PLAIN, "bytes of pictures") else { return };
    for name in ["sd1", "taesd"] {
        let gpu = on(&machine, name);
        for output in [Output::Png, Output::Uint8, Output::Webp] {
            assert_eq!(gpu.decoded_dtype(output), DType::U8);
        }
        assert_eq!(gpu.decoded_dtype(Output::Unit), DType::F16);
        assert_eq!(gpu.decoded_dtype(Output::Tensor(DType::BF16)), DType::BF16);
        assert_eq!(model(name, None).decoded_dtype(Output::Png), DType::F16);
        let decode = |latents: &Tensor, dtype| gpu.decode(latents, RAW, dtype, &mut Patient).unwrap();
        let latents = tensor(&gaussian::normals(1, 4 * 6), &[1, 4, 3, 2]);
        assert_eq!(decode(&latents, DType::U8), render::uint8(&decode(&latents, DType::F16)).unwrap());
        let mut broken = values::to_f32(&latents);
        broken[5] = f32::NAN;
        let broken = decode(&tensor(&broken, &[1, 4, 3, 2]), DType::U8);
        assert!(broken.dtype() == DType::F16 && !crate::float::is_finite(&broken));

        let bytes: Vec<u8> = (0..16 * 8 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let bytes = Tensor::try_new(DType::U8, Shape::try_new(&[1, 16, 8, 3]).unwrap(), Bytes::from(bytes)).unwrap();
        let floats = tensor(&values::pictures(&bytes, [1, 3, 16, 8]), &[1, 3, 16, 8]);
        let encode = |x: &Tensor| gpu.encode(x, (EncodeMode::Mean, RAW), DType::F32, &mut Patient).unwrap();
        assert!(distance(&encode(&bytes), &encode(&floats)) < 1e-6);
    }
}

#[test]
fn jobs_of_one_run_are_each_answered_as_alone() {
    let Some(machine) = Machine::emulated(PLAIN, "several jobs of a run") else { return };
    let gpu = on(&machine, "taesd");
    let latents: Vec<_> = (1..4).map(|n| tensor(&gaussian::normals(n as u64, n * 24), &[n, 4, 3, 2])).collect();
    let inputs: Vec<_> = latents
        .iter()
        .zip([DType::U8, DType::F32, DType::U8])
        .map(|(latents, dtype)| Latents { latents, scaling: RAW, dtype })
        .collect();
    let together = gpu.decode_all(&inputs, &mut Patient).unwrap();
    for (input, together) in inputs.iter().zip(together) {
        assert_eq!(together, gpu.decode(input.latents, RAW, input.dtype, &mut Patient).unwrap());
    }
    let bytes = |seed: usize| {
        let bytes: Vec<u8> = (0..16 * 8 * 3).map(|i| (i * seed % 256) as u8).collect();
        Tensor::try_new(DType::U8, Shape::try_new(&[1, 16, 8, 3]).unwrap(), Bytes::from(bytes)).unwrap()
    };
    let pictures = [bytes(37), bytes(41)];
    let inputs = pictures.each_ref().map(|pictures| Pictures {
        pictures,
        mode: EncodeMode::Mean,
        scaling: RAW,
        dtype: DType::F32,
    });
    let together = gpu.encode_all(&inputs, &mut Patient).unwrap();
    for (pictures, together) in pictures.iter().zip(together) {
        let alone = gpu.encode(pictures, (EncodeMode::Mean, RAW), DType::F32, &mut Patient).unwrap();
        assert!(distance(&together, &alone) < 1e-6);
    }
}

#[test]
fn the_estimate_of_memory_holds_maps_scores_and_working_memory() {
    let Some(machine) = Machine::emulated(PLAIN, "the estimate of memory") else { return };
    let gpu = on(&machine, "sd1");
    let bytes = |n, side| gpu.foretell(Task::Decode, [n, side, side]).bytes;
    assert!(bytes(1, 64) > WORKSPACE as u64 + 8 * SCORES as u64);
    assert!(bytes(2, 1024) - bytes(1, 1024) > 1024 * 1024 * 4 * 4 * 16, "{}", bytes(1, 1024));
}
