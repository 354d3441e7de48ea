//! From a checked spec and its payload to the job: one form for everything that means the same.

use bytes::Bytes;

use super::{Checked, DecodeSpec, EncodeInput, Job, Spec, Work, check::check_size};
use crate::{
    error::{Error, ErrorKind},
    latents, picture,
    picture::PictureError,
    tensor::{DType, Tensor},
};

impl Checked {
    /// Proves the payload and brings it to canonical form. Works through every byte, so it belongs off the async
    /// threads for anything large.
    pub fn canonicalise(&self, data: Bytes) -> Result<Job, Error> {
        let digest = *blake3::hash(&data).as_bytes();
        self.canonicalise_hashed(data, digest)
    }

    /// The same for a payload whose BLAKE3 is known: a payload that is canonical as it came is not hashed again.
    pub fn canonicalise_hashed(&self, data: Bytes, digest: [u8; 32]) -> Result<Job, Error> {
        let sent = data.as_ptr_range();
        let (work, narrow) = match &self.spec {
            Spec::Decode(spec) => {
                let (latents, narrow) = canonical_latents(spec, data, spec.takes_first(&self.model))?;
                (Work::Decode { latents, output: spec.output }, narrow)
            }
            Spec::Encode(spec) => {
                let pixels = self.canonical_pixels(&spec.input, data)?;
                (Work::Encode { pixels, mode: spec.mode, dtype: spec.dtype }, None)
            }
        };
        let input = work.input().data();
        let is_as_sent = input.as_ptr_range() == sent;
        let input_digest = if is_as_sent { digest } else { *blake3::hash(input).as_bytes() };
        Ok(Job { model: self.model.clone(), scaling: self.scaling, work, input_digest, narrow })
    }

    /// Bytes that [`Self::canonicalise`] will take beside the payload, known from the spec, or for an image file from
    /// its header: to be reserved before.
    pub fn canonical_bytes(&self, data: &Bytes) -> Result<u64, Error> {
        match &self.spec {
            // Widening doubles 16-bit latents, which stay beside; unpacking writes them once more.
            Spec::Decode(spec) => {
                let (wide, sent) = (spec.shape.elements() * 4, spec.shape.bytes(spec.dtype));
                Ok(wide * if spec.shape.rank() == 3 { 2 } else { 1 } + sent)
            }
            Spec::Encode(spec) => match &spec.input {
                EncodeInput::Pixels { shape, .. } => Ok(shape.elements() * 4),
                EncodeInput::Image { .. } => {
                    let (width, height) = picture::dimensions(data).map_err(bad_image)?;
                    check_size("image", 1, [height as usize, width as usize], &self.limits)?;
                    // Decoded at up to 16 bits and four channels, then 8-bit RGB, then resized.
                    Ok(u64::from(width) * u64::from(height) * (8 + 3 + 3))
                }
            },
        }
    }

    fn canonical_pixels(&self, input: &EncodeInput, data: Bytes) -> Result<Tensor, Error> {
        match input {
            EncodeInput::Image { .. } => {
                let limits = picture::PictureLimits { max_pixels: self.limits.max_pixels, max_side: MAX_SIDE };
                picture::read(&data, &limits).map_err(bad_image)
            }
            EncodeInput::Pixels { dtype, shape, range } => {
                let tensor =
                    Tensor::try_new(*dtype, shape.clone(), data).map_err(|error| Error::bad_request("data", error))?;
                picture::from_tensor(&tensor, *range).map_err(|error| Error::bad_request("data", error))
            }
        }
    }
}

/// The longest side a picture may have: what WebP allows is less, what JPEG allows is this.
const MAX_SIDE: u32 = 65_535;

/// The canonical latents, and the same in the 16-bit type that they came in.
fn canonical_latents(spec: &DecodeSpec, data: Bytes, first_only: bool) -> Result<(Tensor, Option<Tensor>), Error> {
    let bad = |error| Error::bad_request("data", error);
    let mut sent =
        Tensor::try_new(spec.dtype, spec.shape.clone(), data).map_err(|error| Error::bad_request("data", error))?;
    if first_only {
        sent = sent.first();
    }
    if let (Some((height, width)), 3) = (spec.picture, spec.shape.rank()) {
        sent = latents::unpack(&sent, height, width).map_err(bad)?;
    }
    let wide = latents::widen(&sent).map_err(bad)?;
    Ok((wide, Some(sent).filter(|sent| sent.dtype() != DType::F32)))
}

fn bad_image(error: PictureError) -> Error {
    match error {
        PictureError::TooLarge { .. } => Error::field(ErrorKind::TooLarge, "image", error),
        _ => Error::bad_request("image", error),
    }
}
