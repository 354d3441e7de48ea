//! What an answer will look like and how large it will be, before anything is computed.

use super::{Job, Output, Work};
use crate::{
    error::Error,
    render,
    tensor::{DType, Shape},
};

/// Boxes of an MP4 around its coded frames, generously.
const MP4_ROOM_BYTES: u64 = 1 << 20;

/// Predicted shape and size of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// Dtype and shape of the tensor, or of the pixels that a picture shows.
    pub dtype: DType,
    /// See `dtype`.
    pub shape: Shape,
    /// Bytes of the answer: exact for tensors, an upper bound for pictures.
    pub bytes: u64,
    /// Bytes held while it is made and sent: the input, the tensor it is rendered from, the answer.
    pub held_bytes: u64,
}

impl Job {
    /// The prediction. Sizes were within the limits when the job was made.
    pub fn predicted(&self) -> Result<Predicted, Error> {
        let narrow = self.narrow_latents().map_or(0, |narrow| narrow.data().len());
        let input = (self.input().data().len() + narrow) as u64;
        match &self.work {
            Work::Decode { latents, output } => self.predict_decode(latents.shape(), *output, input),
            Work::Encode { pixels, dtype, .. } => self.predict_encode(pixels.shape(), pixels.dtype(), *dtype, input),
        }
    }

    fn predict_decode(&self, latents: &Shape, output: Output, input: u64) -> Result<Predicted, Error> {
        let scale = self.model.spatial_scale;
        // A video's frames are its pictures; where it is not a raw tensor, the batch is one.
        let (pictures, raw, [h, w]) = match *latents.dims() {
            [n, _, h, w] => (n, vec![n, 3, h * scale, w * scale], [h * scale, w * scale]),
            [n, _, f, h, w] => {
                let frames = self.model.decoded_frames(f);
                (n * frames, vec![n, 3, frames, h * scale, w * scale], [h * scale, w * scale])
            }
            _ => return Err(Error::internal("canonical latents are neither 4-D nor 5-D")),
        };
        let (raw, planar, finished) = (shape(&raw)?, shape(&[pictures, 3, h, w])?, shape(&[pictures, h, w, 3])?);
        // Everything but an explicit tensor is rendered from the f16 tensor, through finished pixels.
        let source = planar.bytes(DType::F16);
        let pixels = finished.bytes(DType::U8);
        let (dtype, shape, bytes, held) = match output {
            Output::Tensor(dtype) => (dtype, raw.clone(), raw.bytes(dtype), raw.bytes(dtype)),
            Output::Uint8 => (DType::U8, finished, pixels, source + pixels),
            Output::Unit => (DType::F16, planar, source, source + source),
            // No coder makes more of a picture than the picture and some room for headers.
            Output::Mp4(_) => (DType::U8, finished, pixels + MP4_ROOM_BYTES, pixels + MP4_ROOM_BYTES),
            Output::Png => picture(finished, source + pixels, render::png_bound(h as u32, w as u32)),
            Output::Jpeg(_) => picture(finished, source + pixels, render::jpeg_bound(h as u32, w as u32)),
            Output::Webp => picture(finished, source + pixels, render::webp_bound(h as u32, w as u32)),
        };
        Ok(Predicted { dtype, shape, bytes, held_bytes: input + held })
    }

    fn predict_encode(&self, pixels: &Shape, layout: DType, dtype: DType, input: u64) -> Result<Predicted, Error> {
        let ((DType::U8, &[n, h, w, 3]) | (_, &[n, 3, h, w])) = (layout, pixels.dims()) else {
            return Err(Error::internal("canonical pixels have an unknown layout"));
        };
        let scale = self.model.spatial_scale;
        let latents = shape(&[n, self.model.latent_channels, h / scale, w / scale])?;
        let bytes = latents.bytes(dtype);
        Ok(Predicted { dtype, shape: latents, bytes, held_bytes: input + bytes })
    }
}

fn picture(shape: Shape, from: u64, bound: u64) -> (DType, Shape, u64, u64) {
    (DType::U8, shape, bound, from + bound)
}

fn shape(dims: &[usize]) -> Result<Shape, Error> {
    Shape::try_new(dims).map_err(|error| Error::internal("a predicted shape is none").caused_by(error))
}
