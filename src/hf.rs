//! The HTTP protocol of Hugging Face's hybrid inference, as diffusers, SD.Next and ComfyUI speak it: its words, parsed
//! and formatted in one place. The front parses what the upstream backend formats, so the two cannot drift apart.
//!
//! A request is a `POST` whose query holds the parameters, whose body is a raw tensor, JSON with base64 in it, or a
//! picture file, and whose `Accept` chooses the form of the answer; a tensor's answer says `shape` and `dtype` in
//! headers; a failure is `{"error": "..."}`. `None`s and booleans of Python, `do_scaling` and `partial_postprocess` end
//! here: behind this module there are typed specs alone.

use crate::{
    error::Error,
    job::{Batch, DecodeSpec, EncodeInput, EncodeMode, EncodeSpec, Output, ScalingWish},
    picture::Range,
    tensor::{DType, Shape},
};

mod envelope;
mod media;
mod parameters;

pub use envelope::{Base64Reply, Envelope, error_body, error_text};
pub use media::{Accept, BodyForm};
pub use parameters::{ImageFormat, OutputType, Parameters};

/// Media type of a raw tensor.
pub const TENSOR_BINARY: &str = "tensor/binary";
/// Media type of JSON with a tensor as base64.
pub const TENSOR_BASE64: &str = "tensor/base64";
/// What an MP4 comes as.
pub const TEXT_PLAIN: &str = "text/plain; charset=utf-8";
/// Response header with a tensor's dimensions, `[1,3,512,512]`.
pub const SHAPE_HEADER: &str = "shape";
/// Response header with a tensor's dtype, by the name PyTorch knows.
pub const DTYPE_HEADER: &str = "dtype";

/// What the two headers of a tensor's answer say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    /// Of the body.
    pub dtype: DType,
    /// Of the body.
    pub shape: Shape,
}

/// How the bytes of an answer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Representation {
    /// As they are.
    Raw,
    /// As base64 in JSON.
    Base64,
}

// === impl ReplyHead ===

impl ReplyHead {
    /// Reads the headers' values, or says what is wrong with them.
    pub fn parse(shape: &str, dtype: &str) -> Result<Self, Error> {
        let dtype = parameters::dtype(dtype)?;
        Ok(Self { dtype, shape: parameters::shape(&[shape])? })
    }

    /// The value of `shape`.
    pub fn shape_value(&self) -> String {
        self.shape.to_string()
    }
}

// === impl Parameters ===

impl Parameters {
    /// The decode that these parameters and an `Accept` ask of a model.
    pub fn decode(&self, model: &str, accept: Accept) -> Result<(DecodeSpec, Representation), Error> {
        let shape = self.shape.clone().ok_or_else(|| absent("shape"))?;
        let dtype = self.dtype.ok_or_else(|| absent("dtype"))?;
        // Other latents carry sizes that mean nothing: some clients always send them.
        let picture = if shape.rank() == 3 { self.height.zip(self.width) } else { None };
        let spec = DecodeSpec {
            model: model.to_owned(),
            dtype,
            shape,
            picture,
            scaling: self.decode_scaling(),
            output: self.output(accept)?,
            batch: Batch::FirstIfOne,
        };
        Ok((spec, accept.representation()))
    }

    /// The encode that these parameters and an `Accept` ask of a model; `length` is that of the body, which is a tensor
    /// if the parameters say its shape or dtype, else a picture file.
    pub fn encode(&self, model: &str, accept: Accept, length: u64) -> Result<(EncodeSpec, Representation), Error> {
        if !matches!(accept, Accept::Any | Accept::Tensor | Accept::TensorBase64) {
            let message = format!("encodes answer {TENSOR_BINARY} or {TENSOR_BASE64}, got {}", accept.name());
            return Err(Error::bad_request("accept", message));
        }
        let input = match (self.dtype, self.shape.clone()) {
            (None, None) => EncodeInput::Image { length },
            (Some(dtype), Some(shape)) => EncodeInput::Pixels { dtype, shape, range: Range::Auto },
            (None, Some(_)) => return Err(absent("dtype")),
            (Some(_), None) => return Err(absent("shape")),
        };
        let scaling = match self.given() {
            Some(given) => given,
            None if self.do_scaling == Some(true) => ScalingWish::ModelDefault,
            None => ScalingWish::Applied,
        };
        let (mode, dtype) = (EncodeMode::Mean, DType::F16);
        Ok((EncodeSpec { model: model.to_owned(), input, mode, scaling, dtype }, accept.representation()))
    }

    /// A factor wins over `do_scaling`; with neither, the client has done it.
    fn decode_scaling(&self) -> ScalingWish {
        match (self.scaling_factor, self.do_scaling) {
            (None, Some(true)) => ScalingWish::ModelDefault,
            _ => self.given().unwrap_or(ScalingWish::Applied),
        }
    }

    fn given(&self) -> Option<ScalingWish> {
        let (factor, shift) = (self.scaling_factor, self.shift_factor);
        (factor.is_some() || shift.is_some())
            .then(|| ScalingWish::Given { factor: factor.unwrap_or(1.0), shift: shift.unwrap_or(0.0) })
    }

    fn output(&self, accept: Accept) -> Result<Output, Error> {
        use Accept as A;
        use OutputType as T;
        let kind = self.output_type.unwrap_or(T::Pil);
        match (kind, accept) {
            (T::Pt, A::Any | A::Tensor | A::TensorBase64) if self.partial_postprocess == Some(true) => {
                Ok(Output::Uint8)
            }
            (T::Pt, A::Any | A::Tensor | A::TensorBase64) => Ok(Output::Tensor(DType::F16)),
            (T::Pil, A::Tensor | A::TensorBase64) => Ok(Output::Unit),
            (T::Pil, A::Any) if self.image_format == Some(ImageFormat::Jpeg) => {
                Ok(Output::Jpeg(Output::DEFAULT_JPEG_QUALITY))
            }
            (T::Pil, A::Any | A::Png) => Ok(Output::Png),
            (T::Pil, A::Jpeg) => Ok(Output::Jpeg(Output::DEFAULT_JPEG_QUALITY)),
            (T::Pil, A::Webp) => Ok(Output::Webp),
            (T::Mp4, A::Any | A::Text | A::Mp4) => Ok(Output::Mp4(Output::DEFAULT_FPS)),
            (kind, accept) => {
                let message = format!("output_type {} cannot come as {}", kind.name(), accept.name());
                Err(Error::bad_request("accept", message))
            }
        }
    }
}

fn absent(field: &'static str) -> Error {
    Error::bad_request(field, format!("expected `{field}` in the query parameters, and it is absent"))
}

#[cfg(test)]
mod tests;
