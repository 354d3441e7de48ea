//! The engine against PyTorch: recorded inputs and outputs of seeded models, see `tests/fixtures/make_fixtures.py`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use half::{bf16, f16};
use latentgate::backend::local::engine::{
    Autoencoder, Cancelled, Checkpoint, Device, EncodeMode, EngineError, Observer, Precision, Scaling, Task,
};
use latentgate::tensor::{DType, Shape, Tensor};
use safetensors::SafeTensors;

const FAMILIES: [&str; 7] = ["sd1", "sd1-old", "sdxl", "flux", "taesd", "taesd3", "taef2"];
const RAW: Scaling = Scaling { factor: 1.0, shift: 0.0 };
/// f32 against f32: the order of sums differs, nothing else.
const TOLERANCE: f64 = 1e-4;
/// Half precision rounds every layer to 8 (bf16) or 11 bits.
const HALF_TOLERANCE: f64 = 2e-2;

struct Count(u32);

impl Observer for Count {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        self.0 += 1;
        Ok(())
    }
}

struct CancelAt(u32);

impl Observer for CancelAt {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        self.0 -= 1;
        if self.0 == 0 { Err(Cancelled) } else { Ok(()) }
    }
}

struct Fixture {
    config: String,
    weights: Vec<u8>,
    goldens: HashMap<String, Tensor>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models")
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &safetensors::tensor::TensorView<'_>| {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            other => panic!("{other:?}"),
        };
        Tensor::try_new(dtype, Shape::try_new(view.shape()).unwrap(), Bytes::copy_from_slice(view.data())).unwrap()
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

fn fixture(name: &str) -> Fixture {
    let folder = folder().join(name);
    Fixture {
        config: std::fs::read_to_string(folder.join("config.json")).unwrap(),
        weights: std::fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap(),
        goldens: tensors(&folder.join("goldens.safetensors")),
    }
}

impl Fixture {
    fn load(&self, precision: Precision) -> Autoencoder {
        let checkpoint = Checkpoint { config: &self.config, weights: &self.weights };
        Autoencoder::load(&checkpoint, &Device::Cpu, precision).unwrap()
    }

    fn pairs(&self, input: &str, output: &str) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        let get = |kind: &str, i: usize| self.goldens.get(&format!("{kind}.{i}"));
        (0..4).map(move |i| (get(input, i).unwrap(), get(output, i).unwrap()))
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let data = tensor.data();
    match tensor.dtype() {
        DType::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        DType::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        DType::BF16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::U8 => panic!("floats wanted"),
    }
}

fn f32_tensor(values: &[f32], dims: &[usize]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), Bytes::from(data)).unwrap()
}

/// What was foretold for pictures `[n, 3, h, w]`.
fn steps(engine: &Autoencoder, task: Task, pictures: &Shape) -> u32 {
    let &[n, _, h, w] = pictures.dims() else { panic!("{pictures} is no batch of pictures") };
    engine.foretell(task, [n, h, w]).steps
}

/// Relative L2 distance, infinite where anything is not finite.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (floats(got), floats(want));
    if got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let apart: f64 = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let length: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum();
    (apart / length).sqrt()
}

/// The largest distance over all recorded decodes and encodes.
fn worst(fixture: &Fixture, engine: &Autoencoder) -> (f64, f64) {
    let (mut decode, mut encode) = (0.0f64, 0.0f64);
    for (latents, want) in fixture.pairs("latents", "decoded") {
        let mut count = Count(0);
        let got = engine.decode(latents, RAW, DType::F32, &mut count).unwrap();
        assert_eq!(count.0, steps(engine, Task::Decode, got.shape()));
        decode = decode.max(distance(&got, want));
    }
    for (picture, want) in fixture.pairs("picture", "encoded") {
        let mut count = Count(0);
        let got = engine.encode(picture, (EncodeMode::Mean, RAW), DType::F32, &mut count).unwrap();
        assert_eq!(count.0, steps(engine, Task::Encode, picture.shape()));
        encode = encode.max(distance(&got, want));
    }
    (decode, encode)
}

#[test]
fn f32_matches_diffusers() {
    for name in FAMILIES {
        let fixture = fixture(name);
        let (decode, encode) = worst(&fixture, &fixture.load(Precision::F32));
        println!("{name}: decode {decode:.1e}, encode {encode:.1e}");
        assert!(decode <= TOLERANCE && encode <= TOLERANCE, "{name}: decode {decode:.1e}, encode {encode:.1e}");
    }
}

#[test]
fn half_precisions_stay_near_f32() {
    for name in FAMILIES {
        for precision in [Precision::F16, Precision::BF16] {
            let fixture = fixture(name);
            let (decode, encode) = worst(&fixture, &fixture.load(precision));
            println!("{name} {precision:?}: decode {decode:.1e}, encode {encode:.1e}");
            assert!(
                decode <= HALF_TOLERANCE && encode <= HALF_TOLERANCE,
                "{name} {precision:?}: {decode:.1e}, {encode:.1e}"
            );
        }
    }
}

#[test]
fn bytes_of_pictures_differ_by_one_step_at_most() {
    for name in FAMILIES {
        let fixture = fixture(name);
        let engine = fixture.load(Precision::F32);
        for (latents, want) in fixture.pairs("latents", "decoded") {
            let got = engine.decode(latents, RAW, DType::F16, &mut Count(0)).unwrap();
            let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0).round_ties_even() as i32;
            // Rounded, halved and shifted in f16 as the protocol's servers do it, both sides alike: in f32 the recorded
            // side would differ by the formula and not by the engine.
            let half = |v: f32| f16::from_f32(v).to_f32();
            let rendered = |v: f32| byte(half(half(half(v) / 2.0) + 0.5));
            let got = floats(&got).into_iter().map(rendered);
            let apart: Vec<i32> = got.zip(floats(want)).map(|(a, b)| (a - rendered(b)).abs()).collect();
            let different = apart.iter().filter(|&&d| d > 0).count();
            assert!(apart.iter().all(|&d| d <= 1), "{name}");
            assert!(different * 200 <= apart.len(), "{name}: {different} of {}", apart.len());
        }
    }
}

#[test]
fn a_batch_is_its_pictures_one_by_one() {
    let fixture = fixture("sd1");
    let engine = fixture.load(Precision::F32);
    let latents = &fixture.goldens["latents.1"];
    let [n, c, h, w] = *latents.shape().dims() else { panic!("four dimensions") };
    let together = engine.decode(latents, RAW, DType::F32, &mut Count(0)).unwrap();
    let mut apart = Vec::new();
    for image in floats(latents).chunks(c * h * w) {
        let one = engine.decode(&f32_tensor(image, &[1, c, h, w]), RAW, DType::F32, &mut Count(0)).unwrap();
        apart.extend(floats(&one));
    }
    assert_eq!(n, 2);
    assert!(distance(&f32_tensor(&apart, together.shape().dims()), &together) < 1e-6);
}

#[test]
fn scaling_is_applied_both_ways() {
    let fixture = fixture("flux");
    let engine = fixture.load(Precision::F32);
    let scaling = Scaling { factor: 0.3611, shift: 0.1159 };
    let raw = floats(&fixture.goldens["latents.0"]);
    let scaled: Vec<f32> = raw.iter().map(|z| (z - scaling.shift) * scaling.factor).collect();
    let dims = fixture.goldens["latents.0"].shape().dims();
    let got = engine.decode(&f32_tensor(&scaled, dims), scaling, DType::F32, &mut Count(0)).unwrap();
    assert!(distance(&got, &fixture.goldens["decoded.0"]) <= TOLERANCE);
    let got =
        engine.encode(&fixture.goldens["picture.0"], (EncodeMode::Mean, scaling), DType::F32, &mut Count(0)).unwrap();
    let want: Vec<f32> =
        floats(&fixture.goldens["encoded.0"]).iter().map(|z| (z - scaling.shift) * scaling.factor).collect();
    assert!(distance(&got, &f32_tensor(&want, got.shape().dims())) <= TOLERANCE);
}

#[test]
fn samples_follow_the_seed_and_bytes_encode_like_floats() {
    let fixture = fixture("sd1");
    let engine = fixture.load(Precision::F32);
    let bytes: Vec<u8> = (0..16 * 8 * 3).map(|i| (i * 37 % 256) as u8).collect();
    let mut planes = vec![0.0; bytes.len()];
    for (i, &b) in bytes.iter().enumerate() {
        planes[i % 3 * 128 + i / 3] = f32::from(b) / 255.0 * 2.0 - 1.0;
    }
    let bytes = Tensor::try_new(DType::U8, Shape::try_new(&[1, 16, 8, 3]).unwrap(), Bytes::from(bytes)).unwrap();
    let planes = f32_tensor(&planes, &[1, 3, 16, 8]);
    let encode = |x: &Tensor, mode| engine.encode(x, (mode, RAW), DType::F32, &mut Count(0)).unwrap();
    assert_eq!(encode(&bytes, EncodeMode::Mean), encode(&planes, EncodeMode::Mean));
    let sample = |seed| encode(&planes, EncodeMode::Sample { seed });
    assert_eq!(sample(1), sample(1));
    assert_ne!(sample(1), sample(2));
    assert_ne!(sample(1), encode(&planes, EncodeMode::Mean));
}

/// The safetensors bytes with some tensors left out or given another shape.
fn rewritten(weights: &[u8], change: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) -> Vec<u8> {
    let file = SafeTensors::deserialize(weights).unwrap();
    let tensors = file.tensors();
    let views = tensors.iter().filter_map(|(name, view)| {
        let shape = change(name, view.shape())?;
        Some((name, safetensors::tensor::TensorView::new(view.dtype(), shape, view.data()).unwrap()))
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_by_name() {
    let fixture = fixture("sd1");
    let load = |weights: &[u8]| {
        let checkpoint = Checkpoint { config: &fixture.config, weights };
        Autoencoder::load(&checkpoint, &Device::Cpu, Precision::F32).map(|_| ()).unwrap_err().to_string()
    };
    let name = "decoder.mid_block.resnets.0.conv1.weight";
    let missing = rewritten(&fixture.weights, |n, s| (n != name).then(|| s.to_vec()));
    assert_eq!(load(&missing), format!("the checkpoint has no tensor {name} of shape [32, 32, 3, 3]"));
    let odd = rewritten(&fixture.weights, |n, s| Some(if n == name { vec![32, 288] } else { s.to_vec() }));
    assert_eq!(load(&odd), format!("tensor {name} has shape [32, 288], wanted [32, 32, 3, 3]"));
    let config = fixture.config.replace("AutoencoderKL", "AutoencoderOobleck");
    let checkpoint = Checkpoint { config: &config, weights: &fixture.weights };
    let error = Autoencoder::load(&checkpoint, &Device::Cpu, Precision::F32).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("AutoencoderOobleck"), "{error}");
    let config = r#"{"_class_name": "AutoencoderKL", "layers_per_block": 0}"#;
    let checkpoint = Checkpoint { config, weights: &fixture.weights };
    let error = Autoencoder::load(&checkpoint, &Device::Cpu, Precision::F32).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "not supported: layers_per_block 0");
}

#[test]
fn half_a_checkpoint_does_its_half() {
    let fixture = fixture("sd1");
    let weights = rewritten(&fixture.weights, |n, s| {
        (!n.starts_with("encoder.") && !n.starts_with("quant_conv.")).then(|| s.to_vec())
    });
    let checkpoint = Checkpoint { config: &fixture.config, weights: &weights };
    let engine = Autoencoder::load(&checkpoint, &Device::Cpu, Precision::F32).unwrap();
    let facts = engine.facts();
    assert!(facts.has_decoder && !facts.has_encoder);
    assert_eq!((facts.latent_channels, facts.spatial_scale, facts.scaling_factor), (4, 8, Some(0.18215)));
    let got = engine.decode(&fixture.goldens["latents.0"], RAW, DType::F32, &mut Count(0)).unwrap();
    assert!(distance(&got, &fixture.goldens["decoded.0"]) <= TOLERANCE);
    let error = engine.encode(&fixture.goldens["picture.0"], (EncodeMode::Mean, RAW), DType::F32, &mut Count(0));
    assert_eq!(error.unwrap_err().to_string(), "the checkpoint has no encoder");
}

#[test]
fn cancelling_stops_between_steps_and_inputs_are_checked() {
    let fixture = fixture("sd1");
    let engine = fixture.load(Precision::F32);
    let latents = &fixture.goldens["latents.0"];
    for at in [1, 5, steps(&engine, Task::Decode, fixture.goldens["decoded.0"].shape())] {
        let error = engine.decode(latents, RAW, DType::F32, &mut CancelAt(at)).unwrap_err();
        assert!(matches!(error, EngineError::Cancelled), "{error}");
    }
    let error = engine.decode(&fixture.goldens["decoded.0"], RAW, DType::F32, &mut Count(0)).unwrap_err();
    assert_eq!(error.to_string(), "input of shape [1,3,32,48] does not fit: [n,4,h,w] in floats");
    let odd = f32_tensor(&[0.0; 3 * 8 * 12], &[1, 3, 8, 12]);
    let error = engine.encode(&odd, (EncodeMode::Mean, RAW), DType::F32, &mut Count(0)).unwrap_err();
    assert!(error.to_string().contains("multiples of 8"), "{error}");
}

/// The same on the first NVIDIA GPU, by the path that no CPU takes.
#[test]
fn an_nvidia_gpu_matches_diffusers() {
    if !cfg!(feature = "cudnn") {
        println!("NOT RUN: built without the feature cudnn: an NVIDIA GPU matches diffusers");
        return;
    }
    for name in FAMILIES {
        let fixture = fixture(name);
        let checkpoint = Checkpoint { config: &fixture.config, weights: &fixture.weights };
        for (precision, tolerance) in
            [(Precision::F32, TOLERANCE), (Precision::F16, HALF_TOLERANCE), (Precision::BF16, HALF_TOLERANCE)]
        {
            let engine = match Autoencoder::load(&checkpoint, &Device::Cuda(0), precision) {
                Ok(engine) => engine,
                Err(error @ EngineError::Cuda { call: "opening the GPU", .. }) => {
                    println!("NOT RUN: {error}: an NVIDIA GPU matches diffusers");
                    return;
                }
                Err(error) => panic!("{name}: {error}"),
            };
            let (decode, encode) = worst(&fixture, &engine);
            println!("{name} {precision:?}: decode {decode:.1e}, encode {encode:.1e}");
            assert!(decode <= tolerance && encode <= tolerance, "{name} {precision:?}: {decode:.1e}, {encode:.1e}");
            let decode = |dtype| engine.decode(&fixture.goldens["latents.0"], RAW, dtype, &mut Count(0)).unwrap();
            assert_eq!(
                decode(DType::U8),
                latentgate::render::uint8(&decode(DType::F16)).unwrap(),
                "{name} {precision:?}"
            );
        }
    }
}

#[test]
fn models_that_overflow_in_f16_compute_in_f32() {
    let mut sdxl = fixture("sdxl");
    assert_eq!(sdxl.load(Precision::F16).facts().precision, Precision::F32);
    assert!(sdxl.config.contains(r#""force_upcast": true"#));
    // As the weights are published that were made to fit.
    sdxl.config = sdxl.config.replace(r#""force_upcast": true"#, r#""force_upcast": false"#);
    assert_eq!(sdxl.load(Precision::F16).facts().precision, Precision::F16);
    assert_eq!(fixture("sdxl").load(Precision::BF16).facts().precision, Precision::BF16);
    assert_eq!(fixture("sd1").load(Precision::F16).facts().precision, Precision::F16);
}

#[test]
fn the_published_taef2_decodes_real_latents() {
    let Some(shared) = crate::support::shared("the published taef2 decodes real latents") else { return };
    let model = shared.join("models/taef2");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let weights = std::fs::read(model.join("diffusion_pytorch_model.safetensors")).unwrap();
    let engine =
        Autoencoder::load(&Checkpoint { config: &config, weights: &weights }, &Device::Cpu, Precision::F32).unwrap();
    let golden = tensors(&folder().join("taef2-real.safetensors"));
    let latents = tensors(&shared.join("latents/chelsea.taef2.safetensors")).into_values().next().unwrap();
    let got = engine.decode(&latents, RAW, DType::F32, &mut Count(0)).unwrap();
    let [_, _, h, w] = *got.shape().dims() else { panic!("four dimensions") };
    let values = floats(&got);
    let mut crop = Vec::new();
    for (plane, (mean, std)) in
        values.chunks(h * w).zip(floats(&golden["mean"]).into_iter().zip(floats(&golden["std"])))
    {
        let got_mean = plane.iter().map(|&v| f64::from(v)).sum::<f64>() / plane.len() as f64;
        let variance = plane.iter().map(|&v| (f64::from(v) - got_mean).powi(2)).sum::<f64>() / (plane.len() - 1) as f64;
        assert!((got_mean - f64::from(mean)).abs() < 1e-4 && (variance.sqrt() - f64::from(std)).abs() < 1e-4);
        crop.extend((h / 2..h / 2 + 24).flat_map(|y| &plane[y * w + w / 2..][..24]));
    }
    let apart = distance(&f32_tensor(&crop, golden["crop"].shape().dims()), &golden["crop"]);
    println!("taef2 {h}x{w}: {apart:.1e}");
    assert!(apart <= TOLERANCE, "{apart:.1e}");
}
