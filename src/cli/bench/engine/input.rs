//! What is computed: sizes, and noise of them that is the same each time.

use std::{f64::consts::TAU, fmt, str::FromStr};

use anyhow::ensure;

use crate::tensor::{DType, Shape, Tensor};

/// Of every input.
const SEED: u64 = 20_261_127;

/// Longest side: beyond it there is no picture format, and no memory.
const MAX_SIDE: usize = u16::MAX as usize;

/// Width and height of a picture in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Size {
    /// Whether a model with so many pixels to a latent can make it.
    pub(super) fn check(self, scale: usize) -> anyhow::Result<()> {
        let fits = self.width.is_multiple_of(scale) && self.height.is_multiple_of(scale);
        ensure!(fits, "--size {self}: sides of this model are multiples of {scale} pixels");
        Ok(())
    }

    pub(super) const fn pixels(self) -> usize {
        self.width * self.height
    }

    /// Standard normal latents.
    pub(super) fn latents(self, n: usize, channels: usize, scale: usize) -> anyhow::Result<Tensor> {
        let mut random = fastrand::Rng::with_seed(SEED);
        tensor(&[n, channels, self.height / scale, self.width / scale], || normal(&mut random))
    }

    /// Pictures of noise between -1 and 1.
    pub(super) fn pictures(self, n: usize) -> anyhow::Result<Tensor> {
        let mut random = fastrand::Rng::with_seed(SEED);
        tensor(&[n, 3, self.height, self.width], || random.f32() * 2.0 - 1.0)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let side = |text: &str| text.parse().ok().filter(|side| (1..=MAX_SIDE).contains(side));
        let (width, height) = text.split_once('x').unwrap_or((text, text));
        match (side(width), side(height)) {
            (Some(width), Some(height)) => Ok(Self { width, height }),
            _ => Err(format!("wanted a side of 1 to {MAX_SIDE} pixels such as 512, or WIDTHxHEIGHT such as 640x424")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

fn tensor(dims: &[usize], mut next: impl FnMut() -> f32) -> anyhow::Result<Tensor> {
    let shape = Shape::try_new(dims)?;
    let mut data = Vec::with_capacity(shape.bytes(DType::F32) as usize);
    for _ in 0..dims.iter().product() {
        data.extend(next().to_le_bytes());
    }
    Ok(Tensor::try_new(DType::F32, shape, data.into())?)
}

/// Box and Muller's transform.
fn normal(random: &mut fastrand::Rng) -> f32 {
    // Never 0, whose logarithm is none.
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    (radius * (TAU * random.f64()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_sides_or_width_and_height() {
        assert_eq!("512".parse(), Ok(Size { width: 512, height: 512 }));
        assert_eq!("640x424".parse(), Ok(Size { width: 640, height: 424 }));
        assert_eq!(Size { width: 640, height: 424 }.to_string(), "640x424");
        for wrong in ["", "0", "x", "8x", "x8", "8x8x8", "-8", "8.5", "65536", "512 "] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong:?}");
        }
        assert!("64".parse::<Size>().unwrap().check(8).is_ok());
        let error = "64x100".parse::<Size>().unwrap().check(8).unwrap_err().to_string();
        assert!(error.contains("64x100") && error.contains("multiples of 8"), "{error}");
    }

    #[test]
    fn inputs_are_noise_and_the_same_each_time() {
        let size: Size = "512x256".parse().unwrap();
        let latents = size.latents(1, 4, 8).unwrap();
        assert_eq!(latents.shape().dims(), [1, 4, 32, 64]);
        assert!(latents == size.latents(1, 4, 8).unwrap());
        let values: Vec<f64> = crate::float::values(latents.data()).map(f64::from).collect();
        let moment = |k: i32| values.iter().map(|v| v.powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.05 && (moment(2) - 1.0).abs() < 0.1, "{} {}", moment(1), moment(2));
        let picture = size.pictures(1).unwrap();
        assert_eq!(picture.shape().dims(), [1, 3, 256, 512]);
        assert!(crate::float::values(picture.data()).all(|value| (-1.0..=1.0).contains(&value)));
    }
}
