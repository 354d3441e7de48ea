//! The accelerator's path on candle's own CPU device, against the kernels of the CPU path.

use bytes::Bytes;

use super::*;
use crate::tensor::Shape;

struct Patient;

impl Observer for Patient {
    fn block_done(&mut self) -> Result<(), Cancelled> {
        Ok(())
    }
}

/// Counts bands.
struct Parts(u32);

impl Observer for Parts {
    fn block_done(&mut self) -> Result<(), Cancelled> {
        Ok(())
    }

    fn part_done(&mut self) -> Result<(), Cancelled> {
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
        let mut parts = Parts(0);
        let got = banded.decode(&latents, scaling, DType::F32, &mut parts).unwrap();
        assert!(parts.0 > 8, "{name}: {} bands", parts.0);
        let apart = distance(&got, &whole.decode(&latents, scaling, DType::F32, &mut Patient).unwrap());
        assert!(apart < WITHIN, "{name}: decode {apart:.1e}");
        let pictures = noise(&[2, 3, h * scale, w * scale]);
        let encode =
            |m: &Autoencoder| m.encode(&pictures, (EncodeMode::Mean, scaling), DType::F32, &mut Patient).unwrap();
        let apart = distance(&encode(&banded), &encode(&whole));
        assert!(apart < WITHIN, "{name}: encode {apart:.1e}");
        for task in [Task::Decode, Task::Encode] {
            let bytes = |m: &Autoencoder| m.working_set_bytes(task, 1, 2048, 2048);
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
            largest = largest.max(model.working_set_bytes(Task::Decode, 1, h * scale, w * scale));
        }
        let taken = model.arena.taken_bytes();
        assert!(taken * 10 <= largest * 11, "{taken} of {largest}");
    }
}
