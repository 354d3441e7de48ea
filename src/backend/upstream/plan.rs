//! What is sent for a job, what must come back, and what is made of it here.
//!
//! Asked for is the cheapest form from which the answer follows exactly. Latents go in the narrowest float type that
//! holds every one of them exactly. Finished pixels of one picture come as a PNG, half the bytes of a raw tensor. A PNG
//! that was asked for is passed on as the endpoint wrote it; a JPEG or a WebP is made of its pixels here, as the local
//! engine makes it, so that it does not matter where the pixels were computed.
//! Scaling is always sent as numbers, or left out where the client has done it: what a server takes for its model's own
//! numbers never matters.

use bytes::Bytes;

use super::check::Form;
use crate::{
    error::Error,
    float, hf,
    hf::{Accept, ImageFormat, OutputType, Parameters},
    job::{Job, Output, Predicted, Work},
    meta::ContentType,
    model::Scaling,
    picture::{self, PictureError, PictureLimits},
    render,
    tensor::{DType, Shape, Tensor},
};

/// The whole exchange for one job.
pub(super) struct Plan {
    /// Query of the request, without `?`.
    pub(super) query: String,
    pub(super) accept: Accept,
    /// Encodes of pictures are sent without one.
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Bytes,
    /// What must come back.
    pub(super) form: Form,
    /// What is made of it.
    pub(super) finish: Finish,
    /// What the answer will be.
    pub(super) predicted: Predicted,
    pub(super) content_type_of_answer: ContentType,
}

/// From a reply's body to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// The file as it is.
    None,
    /// The tensor, cast if it is of another float type.
    Cast(DType),
    /// Decoder output to finished pixels in 0..1, as f16.
    Unit,
    /// A PNG's pixels.
    Pixels,
    /// A PNG to a JPEG of this quality.
    Jpeg(u8),
    /// A PNG to a WebP.
    Webp,
}

/// Why a reply cannot be finished.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The endpoint's fault.
    Picture(PictureError),
    /// The endpoint's too: a number is too large for the type that was asked for.
    NonFinite,
    /// Ours.
    Internal(Error),
}

impl Plan {
    /// Whether [`Plan::of`] is made without working through the input.
    pub(super) const fn is_at_hand(job: &Job) -> bool {
        job.narrow_latents().is_some()
    }

    /// The exchange for `job`. May work through every byte of the input: then off the async threads.
    pub(super) fn of(job: &Job) -> Result<Self, Error> {
        let predicted = job.predicted()?;
        match &job.work {
            Work::Decode { latents, output } => Self::decode(job, latents, *output, predicted),
            Work::Encode { pixels, dtype, .. } => Self::encode(job, pixels, *dtype, predicted),
        }
    }

    fn decode(job: &Job, latents: &Tensor, output: Output, predicted: Predicted) -> Result<Self, Error> {
        let is_video = job.model.is_video();
        let is_one_picture = !is_video && latents.shape().dims().first() == Some(&1);
        let (pil, pt) = (Some(OutputType::Pil), Some(OutputType::Pt));
        let (output_type, partial, accept, finish) = match output {
            Output::Tensor(dtype) => (pt, Some(false), Accept::Tensor, Finish::Cast(dtype)),
            Output::Unit if is_video => (pil, Some(false), Accept::Tensor, Finish::Cast(DType::F16)),
            Output::Unit => (pt, Some(false), Accept::Tensor, Finish::Unit),
            Output::Uint8 if is_one_picture => (pil, Some(false), Accept::Png, Finish::Pixels),
            Output::Uint8 => (pt, Some(true), Accept::Tensor, Finish::None),
            Output::Png => (pil, Some(false), Accept::Png, Finish::None),
            Output::Jpeg(quality) => (pil, Some(false), Accept::Png, Finish::Jpeg(quality)),
            Output::Webp => (pil, Some(false), Accept::Png, Finish::Webp),
            Output::Mp4(_) => (Some(OutputType::Mp4), Some(false), Accept::Text, Finish::None),
        };
        let form = match accept {
            Accept::Png => png_form(&predicted.shape)?,
            Accept::Text => Form::Mp4 { most: predicted.bytes },
            _ => Form::Tensor { shape: predicted.shape.clone(), is_bytes: output == Output::Uint8 },
        };
        let latents = job.narrow_latents().cloned().unwrap_or_else(|| narrowest(latents));
        let parameters = Parameters {
            shape: Some(latents.shape().clone()),
            dtype: Some(latents.dtype()),
            output_type,
            partial_postprocess: partial,
            image_format: (accept == Accept::Png).then_some(ImageFormat::Png),
            ..scaling(job.scaling)
        };
        Ok(Self {
            query: parameters.to_query(),
            accept,
            content_type: Some(hf::TENSOR_BINARY),
            body: latents.into_data(),
            form,
            finish,
            predicted,
            content_type_of_answer: ContentType::from(output),
        })
    }

    fn encode(job: &Job, pixels: &Tensor, dtype: DType, predicted: Predicted) -> Result<Self, Error> {
        let factors = scaling(job.scaling);
        let is_one_picture = pixels.dtype() == DType::U8 && pixels.shape().dims().first() == Some(&1);
        let (parameters, content_type, body) = if is_one_picture {
            let file = render::png(pixels)
                .map_err(|error| Error::internal("canonical pixels make no PNG").caused_by(error))?;
            (factors, None, file)
        } else {
            let tensor = for_the_wire(pixels)?;
            let (shape, dtype) = (Some(tensor.shape().clone()), Some(tensor.dtype()));
            (Parameters { shape, dtype, ..factors }, Some(hf::TENSOR_BINARY), tensor.into_data())
        };
        Ok(Self {
            query: parameters.to_query(),
            accept: Accept::Any,
            content_type,
            body,
            form: Form::Tensor { shape: predicted.shape.clone(), is_bytes: false },
            finish: Finish::Cast(dtype),
            predicted,
            content_type_of_answer: ContentType::Tensor,
        })
    }
}

impl Finish {
    /// Whether a reply's bytes are the answer's, so that they can be passed on as they come.
    pub(super) fn is_nothing(self, reply: DType) -> bool {
        match self {
            Self::None => true,
            Self::Cast(dtype) => dtype == reply,
            Self::Unit | Self::Pixels | Self::Jpeg(_) | Self::Webp => false,
        }
    }

    /// The answer's bytes from a whole reply, whose frame has been checked. Blocks.
    pub(super) fn apply(self, dtype: DType, body: Bytes, shape: &Shape) -> Result<Bytes, Unfinished> {
        let tensor = |to| {
            let tensor = Tensor::try_new(dtype, shape.clone(), body.clone()).map_err(internal)?;
            let cast = float::cast(&tensor, to).map_err(internal)?;
            // The reply's own numbers have been judged as they came.
            if dtype == to || float::is_finite(&cast) { Ok(cast) } else { Err(Unfinished::NonFinite) }
        };
        match self {
            Self::None => Ok(body),
            Self::Cast(to) => Ok(tensor(to)?.into_data()),
            Self::Unit => Ok(render::unit(&tensor(DType::F16)?).map_err(internal)?.into_data()),
            Self::Pixels => Ok(pixels(&body, shape)?.into_data()),
            Self::Jpeg(quality) => render::jpeg(&pixels(&body, shape)?, quality).map_err(internal),
            Self::Webp => render::webp(&pixels(&body, shape)?).map_err(internal),
        }
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Unfinished {
    Unfinished::Internal(Error::internal("a checked reply cannot be finished").caused_by(error))
}

/// The pixels of a PNG whose header was found to have this `[1, h, w, 3]`.
fn pixels(file: &Bytes, shape: &Shape) -> Result<Tensor, Unfinished> {
    let limits = PictureLimits { max_pixels: shape.elements(), max_side: u32::MAX };
    picture::read(file, &limits).map_err(Unfinished::Picture)
}

/// Numbers for the query; nothing where nothing is to be done.
fn scaling(scaling: Scaling) -> Parameters {
    // The number that people wrote, not the f64 nearest to the f32: 0.18215.
    let decimal = |number: f32| number.to_string().parse::<f64>().ok();
    if scaling == Scaling::NONE {
        return Parameters::default();
    }
    Parameters {
        scaling_factor: decimal(scaling.factor),
        shift_factor: Some(scaling.shift).filter(|shift| *shift != 0.0).and_then(decimal),
        ..Parameters::default()
    }
}

fn png_form(shape: &Shape) -> Result<Form, Error> {
    let &[1, height, width, 3] = shape.dims() else {
        return Err(Error::internal(format!("one picture was predicted, of shape {shape}")));
    };
    let (width, height) = (width as u32, height as u32);
    Ok(Form::Png { width, height, most: render::png_bound(height, width) })
}

/// The same numbers in the narrowest float type that holds all of them exactly.
fn narrowest(latents: &Tensor) -> Tensor {
    let exactly = |dtype| float::narrow_exactly(latents, dtype);
    exactly(DType::F16).or_else(|| exactly(DType::BF16)).unwrap_or_else(|| latents.clone())
}

/// Pixels as f32 `[n, 3, h, w]`, in 0..1, or in -1..1 if any is negative: how an endpoint tells the two apart.
fn for_the_wire(pixels: &Tensor) -> Result<Tensor, Error> {
    let tensor = |dims: &[usize], data: Vec<u8>| {
        let shape = Shape::try_new(dims).map_err(|error| Error::internal("pixels without shape").caused_by(error))?;
        Tensor::try_new(DType::F32, shape, data.into())
            .map_err(|error| Error::internal("pixels of another length").caused_by(error))
    };
    match (pixels.dtype(), pixels.shape().dims()) {
        (DType::U8, &[n, h, w, 3]) => {
            let mut data = Vec::with_capacity(pixels.data().len() * 4);
            for picture in pixels.data().chunks_exact(h * w * 3) {
                for channel in 0..3 {
                    let plane = picture.iter().skip(channel).step_by(3);
                    data.extend(plane.flat_map(|&value| (f32::from(value) / 255.0).to_le_bytes()));
                }
            }
            tensor(&[n, 3, h, w], data)
        }
        (DType::F32, dims) => {
            if float::values(pixels.data()).any(|x| x < 0.0) {
                return Ok(pixels.clone());
            }
            tensor(dims, float::values(pixels.data()).flat_map(|x| f32::midpoint(x, 1.0).to_le_bytes()).collect())
        }
        _ => Err(Error::internal("canonical pixels have an unknown layout")),
    }
}

#[cfg(test)]
mod tests;
