//! The accelerator's path on candle's own CPU device, against the kernels of the CPU path.

use bytes::Bytes;

use super::*;
use crate::tensor::{DType, Shape};

struct Patient;

impl Observer for Patient {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        Ok(())
    }
}

struct Steps(u32);

impl Observer for Steps {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        self.0 += 1;
        Ok(())
    }
}

fn noise(dims: &[usize]) -> Tensor {
    let values = gaussian::normals(1, dims.iter().product());
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::try_new(DType::F32, Shape::try_new(dims).unwrap(), Bytes::from(data)).unwrap()
}

fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (values::to_f32(got), values::to_f32(want));
    let square = |v: f64| v * v;
    let apart: f64 = got.iter().zip(&want).map(|(a, b)| square(f64::from(a - b))).sum();
    (apart / want.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

pub(super) fn model(name: &str, device: Option<Accelerator>) -> Autoencoder {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let weights = std::fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    Autoencoder::load_on(&Checkpoint { config: &config, weights: &weights }, device, Precision::F32).unwrap()
}

#[test]
fn both_paths_give_the_same_numbers() {
    for name in ["sd1", "flux", "taesd", "taef2"] {
        let (ours, candles) = (model(name, None), model(name, Some(Accelerator::Candle(candle_core::Device::Cpu))));
        let scaling = Scaling { factor: 1.0, shift: 0.0 };
        // Wide enough for Winograd at every size but the smallest, and no multiple of its tile.
        let latents = noise(&[2, ours.latent_channels(), 9, 7]);
        let decode = |m: &Autoencoder| m.decode(&latents, scaling, DType::F32, &mut Patient).unwrap();
        let apart = distance(&decode(&ours), &decode(&candles));
        assert!(apart < 1e-5, "{name}: decode {apart:.1e}");
        let pictures = noise(&[1, 3, 72, 56]);
        let mode = (EncodeMode::Mean, scaling);
        let encode = |m: &Autoencoder| m.encode(&pictures, mode, DType::F32, &mut Patient).unwrap();
        let apart = distance(&encode(&ours), &encode(&candles));
        assert!(apart < 1e-5, "{name}: encode {apart:.1e}");
    }
}

#[test]
fn bands_give_what_the_whole_gives_in_less_memory() {
    // Moments are summed in other runs of pixels where a band's are no multiple of one, and random weights make much of it.
    const WITHIN: f64 = 1e-5;
    let scaling = Scaling { factor: 1.0, shift: 0.0 };
    for name in ["sd1", "flux", "taesd", "taef2"] {
        let (whole, banded) = (model(name, None), model(name, None).with_memory(0));
        let scale = whole.facts().spatial_scale;
        // Not so few rows that there are no bands, and no multiple of their number.
        let (h, w) = (37, 5);
        let latents = noise(&[2, whole.latent_channels(), h, w]);
        let mut steps = Steps(0);
        let got = banded.decode(&latents, scaling, DType::F32, &mut steps).unwrap();
        let foretold = |m: &Autoencoder| m.foretell(Task::Decode, [2, h * scale, w * scale]).steps;
        assert_eq!(steps.0, foretold(&banded), "{name}");
        assert!(steps.0 >= foretold(&whole) + 5, "{name}: {} steps", steps.0);
        let apart = distance(&got, &whole.decode(&latents, scaling, DType::F32, &mut Patient).unwrap());
        assert!(apart < WITHIN, "{name}: decode {apart:.1e}");
        let pictures = noise(&[2, 3, h * scale, w * scale]);
        let encode =
            |m: &Autoencoder| m.encode(&pictures, (EncodeMode::Mean, scaling), DType::F32, &mut Patient).unwrap();
        let apart = distance(&encode(&banded), &encode(&whole));
        assert!(apart < WITHIN, "{name}: encode {apart:.1e}");
        for task in [Task::Decode, Task::Encode] {
            let bytes = |m: &Autoencoder| m.foretell(task, [1, 2048, 2048]).bytes;
            assert!(bytes(&banded) * 5 < bytes(&whole) * 4, "{name}: {} of {}", bytes(&banded), bytes(&whole));
        }
    }
}

#[test]
fn a_run_takes_what_was_foretold_whatever_ran_before() {
    let scaling = Scaling { factor: 1.0, shift: 0.0 };
    for memory in [u64::MAX, 0] {
        let model = model("sd1", None).with_memory(memory);
        let scale = model.facts().spatial_scale;
        let sizes = [(40, 24), (40, 24), (20, 60), (8, 8), (40, 24)];
        let mut largest = 0;
        for (h, w) in sizes {
            let latents = noise(&[1, model.latent_channels(), h, w]);
            model.decode(&latents, scaling, DType::F32, &mut Patient).unwrap();
            largest = largest.max(model.foretell(Task::Decode, [1, h * scale, w * scale]).inner);
        }
        let taken = model.arena.taken_bytes();
        assert!(taken * 20 <= largest * 21, "{taken} of {largest}");
    }
}

#[test]
fn in_one_run_each_input_has_the_bits_that_it_has_alone() {
    const SCALINGS: [Scaling; 3] = [
        Scaling { factor: 1.0, shift: 0.0 },
        Scaling { factor: 0.5, shift: 0.25 },
        Scaling { factor: 2.0, shift: -0.5 },
    ];
    for name in ["sd1", "flux", "taesd", "taef2"] {
        let model = model(name, None);
        let c = model.latent_channels();
        let latents: Vec<_> = (1..=3).map(|n| noise(&[n, c, 9, 7])).collect();
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let inputs = latents.iter().zip(SCALINGS).zip(dtypes);
        let inputs: Vec<_> = inputs.map(|((latents, scaling), dtype)| Latents { latents, scaling, dtype }).collect();
        let together = model.decode_all(&inputs, &mut Patient).unwrap();
        for (input, got) in inputs.iter().zip(&together) {
            let alone = model.decode(input.latents, input.scaling, input.dtype, &mut Patient).unwrap();
            assert!(*got == alone, "{name}: decode of {}", input.latents.shape());
        }
        let floats: Vec<_> = (1..=2).map(|n| noise(&[n, 3, 72, 56])).collect();
        let bytes: Bytes = (0..72 * 56 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let bytes = Tensor::try_new(DType::U8, Shape::try_new(&[1, 72, 56, 3]).unwrap(), bytes).unwrap();
        let modes = [EncodeMode::Sample { seed: 7 }, EncodeMode::Sample { seed: 8 }, EncodeMode::Mean];
        let inputs = floats.iter().chain([&bytes]).zip(modes).zip(SCALINGS).zip(dtypes);
        let one = |(((pictures, mode), scaling), dtype)| Pictures { pictures, mode, scaling, dtype };
        let inputs: Vec<_> = inputs.map(one).collect();
        let together = model.encode_all(&inputs, &mut Patient).unwrap();
        for (input, got) in inputs.iter().zip(&together) {
            let how = (input.mode, input.scaling);
            let alone = model.encode(input.pictures, how, input.dtype, &mut Patient).unwrap();
            assert!(*got == alone, "{name}: encode of {}", input.pictures.shape());
        }
    }
}

#[test]
fn one_run_is_for_one_height_and_width() {
    let model = model("taesd", None);
    let scaling = Scaling { factor: 1.0, shift: 0.0 };
    let c = model.latent_channels();
    let [wide, tall] = [noise(&[1, c, 2, 4]), noise(&[1, c, 4, 2])];
    let inputs = [&wide, &tall].map(|latents| Latents { latents, scaling, dtype: DType::F32 });
    let error = model.decode_all(&inputs, &mut Patient).unwrap_err().to_string();
    assert!(error.contains("like the others"), "{error}");
    assert!(model.decode_all(&[], &mut Patient).unwrap().is_empty());
    // Where one fits and two would need bands, they are not for one run.
    let one = model.foretell(Task::Decode, [1, 128, 128]).bytes;
    let model = model.with_memory(one);
    assert!(model.runs_whole(Task::Decode, 1, 128, 128) && !model.runs_whole(Task::Decode, 2, 128, 128));
}
