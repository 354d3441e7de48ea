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

#[test]
fn both_paths_give_the_same_numbers() {
    for name in ["sd1", "flux", "taesd", "taef2"] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let weights = std::fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        let checkpoint = Checkpoint { config: &config, weights: &weights };
        let ours = Autoencoder::load_on(&checkpoint, None, Precision::F32).unwrap();
        let candles = Autoencoder::load_on(&checkpoint, Some(candle_core::Device::Cpu), Precision::F32).unwrap();
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
