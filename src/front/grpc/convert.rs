//! Protobuf to typed specs and back. The only user of generated types beside the framing.

use bytes::Bytes;

use crate::{
    backend::ModelState,
    cache::alias::InputDigest,
    error::Error,
    job::{Batch, CachePolicy, DecodeSpec, EncodeInput, EncodeMode, EncodeSpec, Output, ScalingWish, Spec},
    meta::Meta,
    metrics::Outcome,
    model::{ModelSpec, Task},
    picture::Range,
    pipeline::BackendState,
    proto,
    tensor::{DType, Shape},
};

/// What a first message asks for.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) spec: Spec,
    pub(super) policy: CachePolicy,
    /// The digest a client says its input has.
    pub(super) claimed: Option<InputDigest>,
    pub(super) wants: proto::Wants,
}

/// A message of either request stream.
pub(super) trait RequestMessage: prost::Message + Default + Send + 'static {
    /// The task of its stream.
    const TASK: Task;

    /// The opening, if this message holds a spec, and the data.
    fn split(self) -> (Option<Result<Opening, Error>>, Bytes);
}

impl RequestMessage for proto::DecodeRequest {
    const TASK: Task = Task::Decode;

    fn split(self) -> (Option<Result<Opening, Error>>, Bytes) {
        (self.spec.map(decode_opening), self.data)
    }
}

impl RequestMessage for proto::EncodeRequest {
    const TASK: Task = Task::Encode;

    fn split(self) -> (Option<Result<Opening, Error>>, Bytes) {
        (self.spec.map(encode_opening), self.data)
    }
}

fn decode_opening(spec: proto::DecodeSpec) -> Result<Opening, Error> {
    let policy = policy(spec.cache)?;
    let latents = spec.latents.ok_or_else(|| missing("latents"))?;
    let picture = (spec.height > 0 && spec.width > 0).then_some((spec.height, spec.width));
    let (dtype, shape) = tensor(&latents, "latents.dtype", "latents.shape")?;
    let output = output(spec.output)?;
    let (model, scaling) = (spec.model, scaling(spec.scaling));
    let decode = DecodeSpec { model, dtype, shape, picture, scaling, output, batch: Batch::Whole };
    Ok(Opening {
        spec: Spec::Decode(decode),
        policy,
        claimed: digest(&spec.digest)?,
        wants: spec.wants.unwrap_or_default(),
    })
}

fn encode_opening(spec: proto::EncodeSpec) -> Result<Opening, Error> {
    use proto::encode_spec::{Input, Mode};
    let policy = policy(spec.cache)?;
    let input = match spec.input.ok_or_else(|| missing("input"))? {
        Input::Image(image) => EncodeInput::Image { length: image.length },
        Input::Pixels(pixels) => {
            let described = pixels.tensor.ok_or_else(|| missing("pixels.tensor"))?;
            let (dtype, shape) = tensor(&described, "pixels.tensor.dtype", "pixels.tensor.shape")?;
            EncodeInput::Pixels { dtype, shape, range: range(pixels.range)? }
        }
    };
    let mode = match spec.mode {
        None | Some(Mode::Mean(_)) => EncodeMode::Mean,
        Some(Mode::Sample(sample)) => EncodeMode::Sample { seed: sample.seed },
    };
    let dtype = float_or_f16(spec.output_dtype, "output_dtype")?;
    let encode = EncodeSpec { model: spec.model, input, mode, scaling: scaling(spec.scaling), dtype };
    Ok(Opening {
        spec: Spec::Encode(encode),
        policy,
        claimed: digest(&spec.digest)?,
        wants: spec.wants.unwrap_or_default(),
    })
}

fn missing(field: &'static str) -> Error {
    Error::bad_request(field, "required, and absent")
}

fn dtype(code: i32, field: &'static str) -> Result<Option<DType>, Error> {
    match proto::Dtype::try_from(code) {
        Ok(proto::Dtype::Unspecified) => Ok(None),
        Ok(proto::Dtype::F32) => Ok(Some(DType::F32)),
        Ok(proto::Dtype::F16) => Ok(Some(DType::F16)),
        Ok(proto::Dtype::Bf16) => Ok(Some(DType::BF16)),
        Ok(proto::Dtype::U8) => Ok(Some(DType::U8)),
        Err(_) => {
            Err(Error::bad_request(field, format!("{code} is no dtype; known are 1 (f32), 2 (f16), 3 (bf16), 4 (u8)")))
        }
    }
}

fn float_or_f16(code: i32, field: &'static str) -> Result<DType, Error> {
    let chosen = dtype(code, field)?.unwrap_or(DType::F16);
    if chosen.is_float() {
        Ok(chosen)
    } else {
        Err(Error::bad_request(field, format!("wanted f32, f16 or bf16, got {chosen}")))
    }
}

fn tensor(
    spec: &proto::TensorSpec,
    dtype_field: &'static str,
    shape_field: &'static str,
) -> Result<(DType, Shape), Error> {
    let dtype = dtype(spec.dtype, dtype_field)?.ok_or_else(|| missing(dtype_field))?;
    let shape = Shape::try_from_wire(&spec.shape).map_err(|error| Error::bad_request(shape_field, error))?;
    Ok((dtype, shape))
}

fn scaling(scaling: Option<proto::Scaling>) -> ScalingWish {
    use proto::scaling::Kind;
    match scaling.and_then(|scaling| scaling.kind) {
        None => ScalingWish::ModelDefault,
        Some(Kind::Given(given)) => ScalingWish::Given { factor: given.factor, shift: given.shift },
        Some(Kind::Applied(_)) => ScalingWish::Applied,
    }
}

fn output(output: Option<proto::Output>) -> Result<Output, Error> {
    use proto::output::Kind;
    /// Frames a second, at most: a display's rate.
    const MAX_FPS: u32 = 120;
    match output.and_then(|output| output.kind).ok_or_else(|| missing("output"))? {
        Kind::Tensor(tensor) => Ok(Output::Tensor(float_or_f16(tensor.dtype, "output.tensor.dtype")?)),
        Kind::Uint8(_) => Ok(Output::Uint8),
        Kind::Png(_) => Ok(Output::Png),
        Kind::Jpeg(proto::output::Jpeg { quality: 0 }) => Ok(Output::Jpeg(Output::DEFAULT_JPEG_QUALITY)),
        Kind::Jpeg(jpeg) => u8::try_from(jpeg.quality)
            .map(Output::Jpeg)
            .map_err(|_| Error::bad_request("output.jpeg.quality", format!("wanted 1..100, got {}", jpeg.quality))),
        Kind::Webp(_) => Ok(Output::Webp),
        Kind::Unit(_) => Ok(Output::Unit),
        Kind::Mp4(proto::output::Mp4 { fps: 0 }) => Ok(Output::Mp4(Output::DEFAULT_FPS)),
        Kind::Mp4(mp4) if mp4.fps <= MAX_FPS => Ok(Output::Mp4(mp4.fps)),
        Kind::Mp4(mp4) => Err(Error::bad_request("output.mp4.fps", format!("wanted 1..{MAX_FPS}, got {}", mp4.fps))),
    }
}

fn policy(code: i32) -> Result<CachePolicy, Error> {
    match proto::CachePolicy::try_from(code) {
        Ok(proto::CachePolicy::Unspecified | proto::CachePolicy::Default) => Ok(CachePolicy::Default),
        Ok(proto::CachePolicy::Bypass) => Ok(CachePolicy::Bypass),
        Ok(proto::CachePolicy::NoStore) => Ok(CachePolicy::NoStore),
        Ok(proto::CachePolicy::OnlyIfCached) => Ok(CachePolicy::OnlyIfCached),
        Err(_) => Err(Error::bad_request("cache", format!("{code} is no cache policy; known are 1 to 4"))),
    }
}

fn range(code: i32) -> Result<Range, Error> {
    match proto::encode_spec::Range::try_from(code) {
        Ok(proto::encode_spec::Range::Unspecified) => Ok(Range::Auto),
        Ok(proto::encode_spec::Range::Unit) => Ok(Range::Unit),
        Ok(proto::encode_spec::Range::Signed) => Ok(Range::Signed),
        Err(_) => Err(Error::bad_request("pixels.range", format!("{code} is no range; known are 0 to 2"))),
    }
}

fn digest(bytes: &Bytes) -> Result<Option<InputDigest>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let digest = bytes.as_ref().try_into();
    digest
        .map(Some)
        .map_err(|_| Error::bad_request("digest", format!("wanted 32 bytes of BLAKE3, got {}", bytes.len())))
}

/// The wire's word for where an answer comes from.
pub(super) fn source(outcome: Outcome) -> proto::Source {
    match outcome {
        Outcome::HitMemory => proto::Source::Memory,
        Outcome::HitDisk => proto::Source::Disk,
        Outcome::Derived => proto::Source::Derived,
        Outcome::Coalesced => proto::Source::Coalesced,
        Outcome::Computed => proto::Source::Computed,
        Outcome::Error => proto::Source::Unspecified,
    }
}

/// What opens the bytes of an answer.
pub(super) fn header(meta: &Meta) -> proto::Header {
    let dims = meta.shape.dims().iter().map(|&d| d as i64).collect();
    let tensor = proto::TensorSpec { dtype: wire_dtype(meta.dtype) as i32, shape: dims };
    proto::Header { content_type: meta.content_type.name().to_owned(), tensor: Some(tensor), length: meta.length }
}

const fn wire_dtype(dtype: DType) -> proto::Dtype {
    match dtype {
        DType::F32 => proto::Dtype::F32,
        DType::F16 => proto::Dtype::F16,
        DType::BF16 => proto::Dtype::Bf16,
        DType::U8 => proto::Dtype::U8,
    }
}

/// One model of the list.
pub(super) fn model(spec: &ModelSpec, aliases: Vec<String>, backends: Vec<BackendState>) -> proto::Model {
    let task = |task: &Task| match task {
        Task::Decode => proto::Task::Decode as i32,
        Task::Encode => proto::Task::Encode as i32,
    };
    proto::Model {
        id: spec.id.to_string(),
        tasks: spec.tasks.iter().map(task).collect(),
        family: spec.family.class_name().to_owned(),
        latent_channels: spec.latent_channels as u32,
        spatial_scale: spec.spatial_scale as u32,
        temporal_scale: spec.temporal_scale.unwrap_or(1) as u32,
        scaling_factor: decimal(spec.scaling.factor),
        shift_factor: decimal(spec.scaling.shift),
        backends: backends.into_iter().map(backend).collect(),
        revision: spec.revision.clone(),
        aliases,
    }
}

/// The double nearest to the number's shortest decimal: 0.3611, not 0.36109998822.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

fn backend(BackendState { backend, state }: BackendState) -> proto::Backend {
    use proto::backend::State;
    let (state, detail) = match state {
        ModelState::Ready => (State::Ready, String::new()),
        ModelState::Idle => (State::Idle, "weights load on first use".to_owned()),
        ModelState::Loading => (State::Idle, "weights are loading".to_owned()),
        ModelState::Failed { why, .. } | ModelState::Unavailable(why) => (State::Unavailable, why),
    };
    proto::Backend { name: backend.to_owned(), state: state as i32, detail }
}
