//! Judging a spec without its payload: a 40-byte request must not reserve 40 GB.

use std::sync::Arc;

use super::{Batch, DecodeSpec, EncodeInput, EncodeMode, EncodeSpec, Limits, Output, ScalingWish, Spec};
use crate::{
    error::{Error, ErrorKind},
    latents,
    model::{ModelSpec, Scaling},
    tensor::{DType, Shape},
};

/// A spec that holds, with its model resolved. What is left to prove is the payload.
#[derive(Clone, Debug)]
pub struct Checked {
    pub(super) spec: Spec,
    pub(super) model: Arc<ModelSpec>,
    pub(super) scaling: Scaling,
    pub(super) limits: Limits,
    input_bytes: u64,
}

impl Checked {
    pub(super) fn new(spec: Spec, model: Arc<ModelSpec>, limits: Limits) -> Result<Self, Error> {
        let (input_bytes, wish) = match &spec {
            Spec::Decode(decode) => (check_decode(decode, &model, &limits)?, decode.scaling),
            Spec::Encode(encode) => (check_encode(encode, &model, &limits)?, encode.scaling),
        };
        if input_bytes > limits.max_input_bytes {
            let message = format!("{input_bytes} bytes, the limit is {}", limits.max_input_bytes);
            return Err(Error::field(ErrorKind::TooLarge, "data", message));
        }
        let scaling = resolve(wish, model.scaling)?;
        Ok(Self { spec, model, scaling, limits, input_bytes })
    }

    /// The spec as spelled.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The model it names.
    pub fn model(&self) -> &Arc<ModelSpec> {
        &self.model
    }

    /// Bytes the payload must have, exactly.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }
}

/// Numbers for a wish. f32 is what the engines compute in, so factors that differ by less are the same request.
fn resolve(wish: ScalingWish, default: Scaling) -> Result<Scaling, Error> {
    match wish {
        ScalingWish::ModelDefault => Ok(default),
        ScalingWish::Applied => Ok(Scaling::NONE),
        ScalingWish::Given { factor, shift } => {
            let given = Scaling { factor: factor as f32, shift: shift as f32 };
            if !given.factor.is_normal() {
                return Err(Error::bad_request(
                    "scaling.given.factor",
                    format!("wanted a finite number, not 0, got {factor}"),
                ));
            }
            if !given.shift.is_finite() {
                return Err(Error::bad_request("scaling.given.shift", format!("wanted a finite number, got {shift}")));
            }
            // -0.0 and 0.0 shift alike and must have one key.
            Ok(Scaling { shift: given.shift + 0.0, ..given })
        }
    }
}

fn check_decode(spec: &DecodeSpec, model: &ModelSpec, limits: &Limits) -> Result<u64, Error> {
    if !spec.dtype.is_float() {
        return Err(Error::bad_request("latents.dtype", format!("wanted a floating-point dtype, got {}", spec.dtype)));
    }
    let LatentDims { n, channels, frames, h, w } = latent_dims(spec, model)?;
    if channels != model.latent_channels {
        let message =
            format!("model {} takes {} channels, got {channels} in {}", model.id, model.latent_channels, spec.shape);
        return Err(Error::bad_request("latents.shape", message));
    }
    check_batch("latents.shape", n, limits)?;
    let n = if spec.takes_first(model) { 1 } else { n };
    let pictures = n.saturating_mul(model.decoded_frames(frames));
    let sides = [h, w].map(|side| side.saturating_mul(model.spatial_scale));
    check_pixel_count("latents.shape", pictures, sides, limits)?;
    check_output(spec.output, n, model)?;
    let (side, most) = (h.max(w) * model.spatial_scale, spec.output.max_side());
    if side > most {
        let message = format!("this file format has at most {most} pixels a side, the picture would have {side}");
        return Err(Error::field(ErrorKind::OutputUnsupported, "output", message));
    }
    Ok(spec.shape.bytes(spec.dtype))
}

/// The dimensions of latents once they are unpacked.
struct LatentDims {
    n: usize,
    channels: usize,
    /// One, of a picture.
    frames: usize,
    h: usize,
    w: usize,
}

fn latent_dims(spec: &DecodeSpec, model: &ModelSpec) -> Result<LatentDims, Error> {
    let picture = |n, channels, h, w| Ok(LatentDims { n, channels, frames: 1, h, w });
    match (spec.shape.dims(), spec.picture) {
        (&[n, channels, frames, h, w], _) if model.is_video() => Ok(LatentDims { n, channels, frames, h, w }),
        _ if model.is_video() => {
            let message = format!("model {} makes videos of latents [n,c,f,h,w], got {}", model.id, spec.shape);
            Err(Error::bad_request("latents.shape", message))
        }
        (&[n, c, h, w], _) => picture(n, c, h, w),
        (&[_, _, _], Some((height, width))) => {
            let unpacked = latents::unpacked_shape(&spec.shape, height, width)
                .map_err(|error| Error::bad_request("latents.shape", error))?;
            let &[n, c, h, w] = unpacked.dims() else {
                return Err(Error::internal("unpacked latents are not 4-D"));
            };
            picture(n, c, h, w)
        }
        (&[_, _, _], None) => Err(Error::bad_request("height", "packed (3-D) latents need height and width in pixels")),
        _ => {
            Err(Error::bad_request("latents.shape", format!("wanted [n,c,h,w] or packed [n,l,4c], got {}", spec.shape)))
        }
    }
}

impl DecodeSpec {
    /// Whether only the first of the batch is decoded.
    pub(super) fn takes_first(&self, model: &ModelSpec) -> bool {
        self.batch == Batch::FirstIfOne && self.output.holds_one(model.is_video())
    }
}

fn check_output(output: Output, batch: usize, model: &ModelSpec) -> Result<(), Error> {
    let refused = |message: String| Err(Error::field(ErrorKind::OutputUnsupported, "output", message));
    match output {
        Output::Mp4(_) if !model.is_video() => refused(format!("mp4 needs a video model, {} makes pictures", model.id)),
        _ if output.is_picture() && model.is_video() => {
            refused(format!("{} makes videos: ask for an mp4, for finished frames or for a tensor", model.id))
        }
        _ if output.holds_one(model.is_video()) && batch > 1 => refused(format!(
            "this output has room for one, the batch has {batch}; ask for a tensor or send them one by one"
        )),
        Output::Tensor(DType::U8) => {
            refused("a tensor of decoder output is floating point; uint8 pixels are an output of their own".to_owned())
        }
        Output::Jpeg(quality) if !(1..=100).contains(&quality) => {
            Err(Error::bad_request("output.jpeg.quality", format!("wanted 1..100, got {quality}")))
        }
        _ => Ok(()),
    }
}

fn check_encode(spec: &EncodeSpec, model: &ModelSpec, limits: &Limits) -> Result<u64, Error> {
    if !spec.dtype.is_float() {
        return Err(Error::bad_request("output_dtype", format!("wanted a floating-point dtype, got {}", spec.dtype)));
    }
    if matches!(spec.mode, EncodeMode::Sample { .. }) && !model.family.has_posterior() {
        let message = format!("model {} has no posterior to sample from; ask for the mean", model.id);
        return Err(Error::bad_request("sample", message));
    }
    match &spec.input {
        EncodeInput::Image { length: 0 } => {
            Err(Error::bad_request("image.length", "an image file has at least one byte"))
        }
        EncodeInput::Image { length } => Ok(*length),
        EncodeInput::Pixels { dtype, shape, .. } => {
            check_pixels(shape, limits)?;
            Ok(shape.bytes(*dtype))
        }
    }
}

fn check_pixels(shape: &Shape, limits: &Limits) -> Result<(), Error> {
    let &[n, 3, h, w] = shape.dims() else {
        return Err(Error::bad_request("pixels.tensor.shape", format!("wanted [n,3,h,w], got {shape}")));
    };
    if h < 8 || w < 8 {
        return Err(Error::bad_request("pixels.tensor.shape", format!("wanted at least 8 pixels a side, got {shape}")));
    }
    check_size("pixels.tensor.shape", n, [h, w], limits)
}

/// Batch and pixels against the limits.
pub(super) fn check_size(field: &'static str, n: usize, sides: [usize; 2], limits: &Limits) -> Result<(), Error> {
    check_batch(field, n, limits)?;
    check_pixel_count(field, n, sides, limits)
}

fn check_batch(field: &'static str, n: usize, limits: &Limits) -> Result<(), Error> {
    if n <= limits.max_batch {
        return Ok(());
    }
    let message = format!("a batch of {n}, the limit is {}", limits.max_batch);
    Err(Error::field(ErrorKind::TooLarge, field, message))
}

fn check_pixel_count(field: &'static str, n: usize, [h, w]: [usize; 2], limits: &Limits) -> Result<(), Error> {
    let pixels = (n as u64).saturating_mul(h as u64).saturating_mul(w as u64);
    if pixels > limits.max_pixels {
        let message = format!("{n} x {h} x {w} pixels, the limit is {} in all", limits.max_pixels);
        return Err(Error::field(ErrorKind::TooLarge, field, message));
    }
    Ok(())
}
